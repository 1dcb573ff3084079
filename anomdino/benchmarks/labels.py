"""From the values that a data set stores to 0 in-distribution, 1 anomaly, 255 void."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomdino.errors import ConfigError, DataError

IN_DISTRIBUTION, ANOMALY, VOID = 0, 1, 255
_UNKNOWN = 254


@dataclass(frozen=True)
class LabelMap:
    """Which raw label values mean what.

    Attributes:
        inlier: Raw values of in-distribution pixels.
        anomaly: Raw values of anomalous pixels.
        void: Raw values of pixels outside the region of interest.
        rest: What every other value means: 0, 1, 255, or None to refuse a label image that holds one.
    """

    inlier: frozenset[int]
    anomaly: frozenset[int]
    void: frozenset[int] = field(default_factory=frozenset)
    rest: int | None = None

    @staticmethod
    def of(
        inlier: Iterable[int], anomaly: Iterable[int], void: Iterable[int] = (), rest: int | None = None
    ) -> LabelMap:
        """Build a map from any iterables of raw values (ranges, lists).

        Raises:
            ConfigError: A value is outside 0..255 or declared twice.
        """
        groups = (frozenset(inlier), frozenset(anomaly), frozenset(void))
        together = [value for group in groups for value in group]
        if len(together) != len(set(together)):
            raise ConfigError("label map", "declares a raw value twice", "each value has one meaning")
        if together and (min(together) < 0 or max(together) > 255):
            raise ConfigError(
                "label map", f"declares values {min(together)}..{max(together)}", "labels are 0..255"
            )
        if rest not in {None, IN_DISTRIBUTION, ANOMALY, VOID}:
            raise ConfigError("label map", f"maps other values to {rest}", "use 0, 1, 255 or nothing")
        return LabelMap(groups[0], groups[1], groups[2], rest)

    @staticmethod
    def from_values(values: Mapping[int, int], rest: int | None = None) -> LabelMap:
        """Build a map from ``{raw value: 0 | 1 | 255}``.

        Raises:
            ConfigError: A meaning is not one of 0, 1, 255.
        """
        wrong = {
            raw: meaning for raw, meaning in values.items() if meaning not in {IN_DISTRIBUTION, ANOMALY, VOID}
        }
        if wrong:
            raise ConfigError("label map", f"has meanings {wrong}", "0 in-distribution, 1 anomaly, 255 void")

        def raws(wanted: int) -> set[int]:
            return {raw for raw, meaning in values.items() if meaning == wanted}

        return LabelMap.of(raws(IN_DISTRIBUTION), raws(ANOMALY), raws(VOID), rest)

    @property
    def known(self) -> frozenset[int]:
        """The raw values that are declared."""
        return self.inlier | self.anomaly | self.void

    def apply(self, raw: npt.NDArray[np.uint8], path: Path | str = "label") -> npt.NDArray[np.uint8]:
        """Translate a raw label image.

        Args:
            raw: uint8 (H, W), the values as stored.
            path: Name for messages.

        Returns:
            uint8 (H, W) of 0, 1, 255.

        Raises:
            DataError: The image holds values that are not declared; the message counts their pixels.
        """
        table = np.full(256, _UNKNOWN if self.rest is None else self.rest, np.uint8)
        for values, meaning in ((self.inlier, IN_DISTRIBUTION), (self.anomaly, ANOMALY), (self.void, VOID)):
            table[sorted(values)] = meaning
        label = np.take(table, raw)
        if self.rest is None and (label == _UNKNOWN).any():
            raise DataError(path, *self._explain(raw, path))
        return label

    def _explain(self, raw: npt.NDArray[np.uint8], path: Path | str) -> tuple[str, str]:
        counts = np.bincount(raw.ravel(), minlength=256)
        unknown = [int(value) for value in np.flatnonzero(counts) if int(value) not in self.known]
        listed = ", ".join(f"{value}: {counts[value]} px" for value in unknown[:10])
        more = f" and {len(unknown) - 10} more values" if len(unknown) > 10 else ""
        return (
            f"holds undeclared label values ({listed}{more}); declared are {_ranges(self.known)}",
            "; ".join(filter(None, [_palette_hint(path), _value_hint(unknown)]))
            or "export the declared values, or declare what these mean",
        )


def _palette_hint(path: Path | str) -> str:
    try:
        with Image.open(path) as image:
            if image.mode == "P":
                return "this is a palette image: its indices were read, check that they are the label values"
    except OSError:
        pass
    return ""


def _value_hint(unknown: Collection[int]) -> str:
    if set(unknown) == {38} or 38 in unknown:
        return "38 is what a grey conversion makes of a palette's red: write the indices instead"
    if set(unknown) == {2}:
        return "2 is the anomaly in RoadAnomaly's `frames/` form; in `labels/` it is 1"
    return ""


def _ranges(values: Collection[int]) -> str:
    """Write ``{0, 2, 3, 4}`` as ``0, 2..4``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


BINARY_WITH_VOID = LabelMap.of([0], [1], [255])
