"""Comparing two evaluations image by image: is a gain real, and where does it come from?"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anomdino.errors import DataError
from anomdino.evaluation.bootstrap import (
    Float64,
    ImageHistograms,
    gathered,
    reach,
    resamplings,
    without_each,
)
from anomdino.evaluation.result import image_counts
from anomdino.evaluation.summary import rounded
from anomdino.evaluation.swaps import RunImages, swap_test
from anomdino.evaluation.tables import read_table
from anomdino.evaluation.writing import DETAILS_FILE, HISTOGRAMS_FILE, IMAGES_FILE
from anomdino.seeding import rng

if TYPE_CHECKING:
    import pandas as pd

PREDICTIONS = Path("data/predictions")
Values = Mapping[str, Any]
_CHANGES = ("ap", "iou")
_SAME = (
    "height",
    "width",
    "roi_pixels",
    "anomaly_pixels",
)  # what the labels of an image give, whatever the method
_STORED = {"AP": "ap", "FPR95": "fpr95", "AUROC": "auroc", "sIoU": "siou", "PPV": "ppv", "F1*": "f1"}
_CHANCE = 0.05


@dataclass(frozen=True)
class _Options:
    output: str | None
    images: int
    seed: int
    bootstrap: int


@dataclass(frozen=True, eq=False)
class _Run:
    """The tables of one run on one benchmark, and its ``details.json`` where there is one."""

    folder: Path
    images: pd.DataFrame
    histograms: pd.DataFrame
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def benchmark(self) -> str:
        return str(self.images["benchmark"].iloc[0])

    def rows(self, output: str) -> dict[str, dict[str, Any]]:
        return _by_key(self.images, output)

    def bins(self, output: str) -> dict[str, dict[str, Any]]:
        return _by_key(self.histograms, output)

    def stored(self, output: str) -> dict[str, float | None]:
        """The metrics that the run itself measured over all its images, by its protocol; empty if it left none."""
        found = self.details.get("outputs", {}).get(output)
        if found is None:
            return {}
        pixel = found.get("pixel", {}).get(self.details["protocol"])
        measured = (pixel or {}) | (found["components"] or {})
        return {name: measured.get(key) for name, key in _STORED.items()}


def compare_runs(
    first: str,
    second: str,
    *,
    benchmark: str | None = None,
    output: str | None = None,
    images: int = 5,
    seed: int = 0,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Compare two evaluations on the images that both have.

    Args:
        first: Folder with the tables of an evaluation (or with one folder a benchmark, or a project folder),
            or a git revision whose DVC outputs hold ``data/predictions``.
        second: The other one.
        benchmark: A benchmark; all that both have when None.
        output: An output; all that both have when None.
        images: How many of the images that changed most are listed.
        seed: Seed of the resamplings and swaps.
        bootstrap: Resamplings of the images for the intervals, the same images in both runs, and swaps for p.

    Returns:
        ``{benchmark: {output: {images, protocol, metrics, changed_most}}}`` with ``metrics`` as
        ``{name: {first, second, difference, low, high, p, significant}}``; differences are second - first. The two
        values are those that the runs stored, by ``protocol``; where the runs share a part of their images alone, or
        stored none, they are pooled over the shared images from histograms and ``protocol`` is null. ``low`` and
        ``high`` are a 95 % interval, ``p`` is that of :func:`anomdino.evaluation.swaps.swap_test`.

    Raises:
        DataError: A run has no tables or two of a benchmark, the two have no benchmark, output or image in common, or
            they were measured with other labels, component limits or protocols.
    """
    options = _Options(output, images, seed, bootstrap)
    with ExitStack() as stack:
        one, two = (_tables(run, stack) for run in (first, second))
        names = [name for name in one if name in two and benchmark in {None, name}]
        result = {name: _compared(one[name], two[name], options) for name in names}
    result = {name: outputs for name, outputs in result.items() if outputs}
    if not result:
        wanted = (
            f"benchmark{f' {benchmark!r}' if benchmark else ''} and output{f' {output!r}' if output else ''}"
        )
        cause = f"have no {wanted} in common; the first has {_contents(one)}; the second {_contents(two)}"
        raise DataError(f"{first}, {second}", cause, "name what both have, or evaluate both on the same set")
    return dict(rounded(result))


def _contents(runs: Mapping[str, _Run]) -> str:
    """Name the benchmarks of a run with their outputs."""
    return ", ".join(f"{name} ({', '.join(run.images['output'].unique())})" for name, run in runs.items())


def _compared(one: _Run, two: _Run, options: _Options) -> dict[str, Any]:
    _require_equal_rules(one, two)
    shared = set(two.images["output"])
    outputs = [str(name) for name in one.images["output"].unique() if name in shared]
    return {name: _paired(one, two, name, options) for name in outputs if options.output in {None, name}}


def _paired(one: _Run, two: _Run, output: str, options: _Options) -> dict[str, Any]:
    rows = [run.rows(output) for run in (one, two)]
    keys = [key for key in rows[0] if key in rows[1]]
    if not keys:
        raise DataError("compare", f"the runs share no image of output '{output}'", "evaluate the same set")
    _require_equal_labels(one, two, rows, keys)
    sides = [_side(row, run.bins(output), keys) for row, run in zip(rows, (one, two), strict=True)]
    stored = [run.stored(output) for run in (one, two)]
    whole = all(stored) and all(len(row) == len(keys) for row in rows)
    changes = [
        {"key": key, **{name: (rows[0][key][name], rows[1][key][name]) for name in _CHANGES}} for key in keys
    ]
    changes.sort(key=lambda change: -max(_moved(*change[name]) for name in _CHANGES))
    return {
        "images": len(keys),
        "protocol": one.details["protocol"] if whole else None,
        "metrics": _metrics(sides, stored if whole else None, output, options),
        "changed_most": changes[: options.images],
    }


def _metrics(
    sides: list[RunImages],
    stored: list[dict[str, float | None]] | None,
    output: str,
    options: _Options,
) -> dict[str, dict[str, Any]]:
    one, two = sides
    images = len(one)
    pooled = [
        {name: float(value[0]) for name, value in side.values(np.ones((1, images))).items()} for side in sides
    ]
    names = [name for name in pooled[0] if name in pooled[1]]

    def differences(weights: Float64) -> dict[str, Float64]:
        first, second = one.values(weights), two.values(weights)
        return {name: second[name] - first[name] for name in names}

    drawn: dict[str, Float64] = {}
    if images > 1 and options.bootstrap:
        draws = resamplings(images, options.bootstrap, rng(options.seed, "compare", output))
        drawn = gathered(differences, draws)
    without = gathered(differences, without_each(images)) if drawn else {}
    chance = swap_test(one, two, options.bootstrap, rng(options.seed, "compare", output, "swaps"))
    result = {}
    for name in names:
        first, second = (side[name] for side in (stored or pooled))
        moved = pooled[1][name] - pooled[0][name]
        far = reach(without[name], drawn[name]) if drawn else None
        result[name] = _difference(first, second, moved, far, chance[name])
    return result


def _side(rows: Mapping[str, Values], histograms: Mapping[str, Values], keys: list[str]) -> RunImages:
    """One run's images in the order of the common keys."""
    counts, pooled = image_counts([dict(rows[key]) for key in keys]), None
    if histograms:
        thresholds = np.asarray(histograms[keys[0]]["threshold"])
        tp, fp = (np.array([histograms[key][side] for key in keys]) for side in ("tp", "fp"))
        pooled = ImageHistograms(thresholds, tp, fp)
    return RunImages(pooled, counts)


def _difference(
    first: float | None, second: float | None, moved: float, far: float | None, p: float | None
) -> dict[str, Any]:
    """Say of a metric how it differs.

    Args:
        first: Its value in the first run; None or NaN where it has none.
        second: Its value in the second run.
        moved: Its difference by the histograms and counts that ``far`` and ``p`` come from.
        far: How far the interval reaches to each side.
        p: Share of swaps that give a difference as large.
    """
    before, after = (
        None if value is None or not np.isfinite(value) else float(value) for value in (first, second)
    )
    difference = None if before is None or after is None else after - before
    span: tuple[float, float] | None = None
    if difference is not None and far is not None:
        span = max(difference - far, -1.0), min(difference + far, 1.0)
    agreed = difference is not None and difference * moved > 0
    return {
        "first": before,
        "second": after,
        "difference": difference,
        "low": span[0] if span else None,
        "high": span[1] if span else None,
        "p": None if difference is None else p,
        "significant": bool(agreed and p is not None and p < _CHANCE),
    }


def _require_equal_rules(one: _Run, two: _Run) -> None:
    """Refuse runs whose ``details.json`` say that they were measured by other rules.

    Raises:
        DataError: Component limits or protocols differ.
    """
    for rule in ("component_limits", "protocol"):
        first, second = one.details.get(rule), two.details.get(rule)
        if first is not None and second is not None and first != second:
            name = rule.replace("_", " ")
            raise DataError(
                two.folder,
                f"was measured with the {name} {second}, {one.folder} with {first}",
                "evaluate both runs by the same rules",
            )


def _require_equal_labels(
    one: _Run, two: _Run, rows: list[dict[str, dict[str, Any]]], keys: list[str]
) -> None:
    """Refuse runs on other labels: shared images must agree in size, anomalous pixels and region of interest.

    Raises:
        DataError: Some do not; the message lists the first ten.
    """
    other = [key for key in keys if any(rows[0][key][name] != rows[1][key][name] for name in _SAME)]
    if other:
        listed = ", ".join(other[:10]) + (" ..." if len(other) > 10 else "")
        raise DataError(
            two.folder,
            f"was measured with other labels than {one.folder} on {len(other)} of {len(keys)} images: {listed}",
            "evaluate both runs on the same labels",
        )


def _moved(first: float | None, second: float | None) -> float:
    return abs((second or 0.0) - (first or 0.0))


def _by_key(table: pd.DataFrame, output: str) -> dict[str, dict[str, Any]]:
    chosen = table[table["output"] == output].astype(object)
    records = chosen.where(chosen.notna(), None).to_dict("records")
    return {str(record["key"]): {str(name): value for name, value in record.items()} for record in records}


def _tables(run: str, stack: ExitStack) -> dict[str, _Run]:
    folder = Path(run)
    if not folder.exists():
        folder = stack.enter_context(_Revision(run))
    if (folder / IMAGES_FILE).is_file():
        found = [folder]
    else:
        below = [*sorted(folder.glob("*")), *sorted((folder / PREDICTIONS).glob("*"))]
        found = [path for path in below if (path / IMAGES_FILE).is_file()]
    if not found:
        raise DataError(run, f"holds no {IMAGES_FILE}", "run the evaluate stage, or `anomdino evaluate`")
    runs: dict[str, _Run] = {}
    for tables in map(_read, found):
        name = tables.benchmark
        if name in runs:
            cause = f"holds two runs on '{name}': {runs[name].folder} and {tables.folder}"
            raise DataError(run, cause, "name the folder of one of them")
        runs[name] = tables
    return runs


def _read(folder: Path) -> _Run:
    path = folder / DETAILS_FILE
    try:
        details = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(path, f"is no JSON ({error})", "remove it and evaluate again") from error
    if not isinstance(details, dict) or (details and not {"outputs", "protocol"} <= details.keys()):
        raise DataError(path, "is not what an evaluation writes", "remove it and evaluate again")
    return _Run(folder, read_table(folder / IMAGES_FILE), read_table(folder / HISTOGRAMS_FILE), details)


class _Revision:
    """The tables of a git revision, fetched from DVC's cache into a temporary folder."""

    def __init__(self, revision: str) -> None:
        self.revision = revision

    def __enter__(self) -> Path:
        self.folder = tempfile.TemporaryDirectory()
        target = Path(self.folder.name) / "predictions"
        if importlib.util.find_spec("dvc") is None:
            raise DataError(self.revision, "is no folder, and DVC is not installed", "pip install dvc")
        command = [
            *(sys.executable, "-m", "dvc", "get", ".", str(PREDICTIONS)),
            *("--rev", self.revision, "--out", str(target)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or ["unknown"]
            cause = f"is no folder and no revision with results ({said[0].removeprefix('ERROR: ')})"
            raise DataError(
                self.revision, cause, "check the name; `dvc fetch` gets results of other machines"
            )
        return target

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()
