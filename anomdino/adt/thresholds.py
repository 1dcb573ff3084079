"""Thresholds on the final score that a user can ask for, instead of ADT-Net's own thresholds for each pixel.

``fixed:X``
    X, as it is.
``f1``
    The best pixel F1 on calibration data.
``fpr:RATE``
    At most RATE of all in-distribution pixels of the calibration data are predicted.
``conformal:RATE``
    Split conformal risk control (Angelopoulos et al., "Conformal Risk Control", ICLR 2024): on a new image
    that is exchangeable with the calibration images, the *expected* share of in-distribution pixels that are
    predicted is at most RATE.
``conformal_miss:RATE``
    The same for the expected share of an image's anomalous components that are missed; a component is found
    when a quarter of its pixels is predicted. Masks then keep small components (:attr:`Threshold.keeps_small`).

The guarantee holds on average over calibration sets and new images, for images that are exchangeable: drawn
like the calibration images (same camera, places, weather), none of which trained the model. It says nothing
about one given calibration set, one given image, or images from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.adt.components import remove_small_components
from anomdino.adt.histogram import ScoreHistogram, bin_edge, score_bins, smallest_safe_edge
from anomdino.errors import ConfigError, DataError

KINDS = {"fixed": True, "f1": False, "fpr": True, "conformal": True, "conformal_miss": True}
FOUND_SHARE = 0.25


@dataclass(frozen=True)
class ThresholdKind:
    """A kind of threshold with its number, as in ``fpr:0.05``."""

    name: str
    number: float | None = None

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}:{self.number:g}"

    @staticmethod
    def parse(text: str) -> ThresholdKind:
        """Read ``fixed:X``, ``f1``, ``fpr:RATE``, ``conformal:RATE`` or ``conformal_miss:RATE``.

        Raises:
            ConfigError: It is none of these, or a rate is not between 0 and 1.
        """
        name, colon, number = text.partition(":")
        usage = "use fixed:X, f1, fpr:RATE, conformal:RATE or conformal_miss:RATE, for example fpr:0.05"
        if name not in KINDS or KINDS[name] != bool(colon):
            raise ConfigError("threshold", f"unknown kind '{text}'", usage)
        if not colon:
            return ThresholdKind(name)
        try:
            value = float(number)
        except ValueError as error:
            raise ConfigError("threshold", f"'{number}' in '{text}' is no number", usage) from error
        if not math.isfinite(value) or (name != "fixed" and not 0 < value < 1):
            raise ConfigError("threshold", f"the number in '{text}' is out of range", usage)
        return ThresholdKind(name, value)


@dataclass(frozen=True)
class Threshold:
    """A threshold on the final score; a pixel is predicted where score >= value.

    Attributes:
        value: The threshold, a float32 number.
        kind: What was asked for, for example ``fpr:0.05``.
        output: The output rule whose scores it belongs to.
        calibration: Name of the calibration set, and what was counted in it.
        rule: The fields of the rule (:class:`anomdino.adt.fusion.FusionRule`) that made those scores, ``outline`` as it
            was carried out; None where it is not known.
        boxes: Whether the images had boxes; None where it is not known.
    """

    value: float
    kind: str
    output: str
    calibration: dict[str, Any]
    rule: dict[str, Any] | None = None
    boxes: bool | None = None

    def __post_init__(self) -> None:
        """Refuse a value that no score can be compared with."""
        if not math.isfinite(self.value):
            raise ConfigError("threshold", f"{self.kind} is {self.value}", "calibrate it again")

    def as_dict(self) -> dict[str, Any]:
        """Give the fields as plain values for JSON."""
        return asdict(self)

    @property
    def keeps_small(self) -> bool:
        """Whether components of any size count: what a small one found would be missed without it."""
        return self.kind.startswith("conformal_miss")

    def mask(self, score: npt.NDArray[np.float32], min_component: int) -> npt.NDArray[np.bool_]:
        """Give the mask of a final score (H, W), without components below ``min_component`` pixels unless they count."""
        above = score >= np.float32(self.value)
        return above if self.keeps_small else remove_small_components(above, min_component)

    def require(self, rule: Mapping[str, Any], boxes: bool | None = None) -> None:
        """Check that it belongs to final scores that are made in a certain way.

        Args:
            rule: Fields of the rule. ``min_component`` does not matter, for ``raw`` nothing but the output does, and what
                boxes do does not where there are none.
            boxes: Whether there are boxes; None leaves it open.

        Raises:
            ConfigError: It was calibrated for scores made in another way.
        """
        cure = "calibrate for what you ask for, or use `--threshold adt`"
        if rule["output"] != self.output:
            cause = f"is {rule['output']}, the stored threshold {self.kind} belongs to {self.output}"
            raise ConfigError("output", cause, cure)
        if self.output == "raw" or self.rule is None or self.kind.startswith("fixed"):
            return
        unimportant = {"min_component"} | ({"box_score", "b", "outline"} if self.boxes is False else set())
        for name, value in self.rule.items():
            if name not in unimportant and rule[name] != value:
                cause = f"is {rule[name]}, the stored threshold {self.kind} was calibrated with {value}"
                raise ConfigError(name, cause, cure)
        if boxes is not None and self.boxes is not None and boxes != self.boxes:
            words = ("without boxes", "with boxes")
            cause = f"the stored threshold {self.kind} was calibrated {words[self.boxes]}"
            raise ConfigError("boxes", f"{cause}, and is to be used {words[boxes]}", cure)


class ThresholdCalibration:
    """What thresholds need to know of a calibration set; images are added one at a time, memory is constant.

    Args:
        bits: Resolution of the scores (see :class:`ScoreHistogram`); thresholds are lower edges of its bins.
    """

    def __init__(self, bits: int = 20) -> None:
        self.pixels = ScoreHistogram(bits)
        self.false_positive_share = np.zeros(1 << bits)
        self.component_share = np.zeros(1 << bits)
        self.images = self.images_with_normal = self.images_with_components = 0

    def add(self, score: npt.NDArray[np.float32], label: npt.NDArray[np.uint8]) -> None:
        """Add an image: final score (H, W) float32 and label (H, W) 0, 1, 255."""
        self.images += 1
        self.pixels.add(score, label)
        normal = score[label == 0]
        if normal.size:
            self.images_with_normal += 1
            np.add.at(self.false_positive_share, self._bins(normal), 1 / normal.size)
        found_at = component_scores(score, label)
        if found_at.size:
            self.images_with_components += 1
            np.add.at(self.component_share, self._bins(found_at), 1 / found_at.size)

    def threshold(
        self, kind: ThresholdKind, rule: Mapping[str, Any], name: str, boxes: bool | None = None
    ) -> Threshold:
        """Give the threshold of the asked kind.

        Args:
            kind: What is asked for.
            rule: Fields of the rule that the scores come from, ``output`` among them.
            name: Name of the calibration set.
            boxes: Whether the images had boxes.

        Raises:
            DataError: The set lacks what the kind needs, such as anomalous pixels, or has too few images for
                the rate.
        """
        counted = {
            "set": name,
            "images": self.images,
            "in_distribution_pixels": int(self.pixels.negative.sum()),
            "anomalous_pixels": int(self.pixels.positive.sum()),
        }
        return Threshold(float(self._value(kind)), str(kind), rule["output"], counted, dict(rule), boxes)

    def _value(self, kind: ThresholdKind) -> np.floating[Any] | float:
        rate = kind.number or 0.0
        if kind.name == "fixed":
            return np.float32(rate)
        if kind.name == "f1":
            return self.pixels.best_f1()[1]
        if kind.name == "fpr":
            return self.pixels.threshold_at_fpr(rate)
        if kind.name == "conformal":
            _require_images(self.images_with_normal, rate, "with in-distribution pixels")
            predicted = np.cumsum(self.false_positive_share[::-1])
            return smallest_safe_edge(_controlled(predicted, self.images_with_normal, rate), self.pixels.bits)
        _require_images(self.images_with_components, rate, "with anomalies")
        missed = np.concatenate([[0.0], np.cumsum(self.component_share)[:-1]])
        safe = _controlled(missed, self.images_with_components, rate)
        return bin_edge(int(np.flatnonzero(safe & (self.component_share > 0)).max()), self.pixels.bits)

    def _bins(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
        return score_bins(values, self.pixels.bits)


def component_scores(score: npt.NDArray[np.float32], label: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Give, for each anomalous component, the highest threshold at which a quarter of it is predicted."""
    count, components, statistics, _ = cv2.connectedComponentsWithStats(
        (label == 1).view(np.uint8), connectivity=8
    )
    found = np.zeros(count - 1, np.float32)
    for component in range(1, count):
        left, top, width, height = statistics[component, :4]
        window = np.s_[top : top + height, left : left + width]
        inside = score[window][components[window] == component]
        needed = math.ceil(FOUND_SHARE * inside.size)
        found[component - 1] = np.partition(inside, inside.size - needed)[inside.size - needed]
    return found


def _controlled(losses: npt.ArrayLike, images: int, rate: float) -> npt.NDArray[np.bool_]:
    """Tell where the conformal bound (sum of losses + 1) / (n + 1) <= rate holds; a loss is at most 1."""
    return np.asarray(losses) + 1 <= rate * (images + 1) * (1 + 1e-12)


def _require_images(images: int, rate: float, kind: str) -> None:
    if not _controlled(0.0, images, rate):
        needed = max(images + 1, math.ceil(1 / rate - 1 - 1e-9))
        raise DataError(
            "calibration set",
            f"has {images} images {kind}; a conformal rate of {rate:g} needs at least {needed}",
            "add images or ask for a higher rate",
        )
