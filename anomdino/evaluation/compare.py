"""Comparing two evaluations image by image: is a gain real, and where does it come from?"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anomdino.errors import DataError
from anomdino.evaluation.bootstrap import (
    PIXEL_NAMES,
    ImageHistograms,
    component_values,
    pixel_values,
    resamplings,
)
from anomdino.evaluation.result import image_counts
from anomdino.evaluation.summary import rounded
from anomdino.evaluation.tables import read_table
from anomdino.evaluation.writing import HISTOGRAMS_FILE, IMAGES_FILE
from anomdino.seeding import rng

if TYPE_CHECKING:
    import pandas as pd

PREDICTIONS = Path("data/predictions")
Values = Mapping[str, Any]
_CHANGES = ("ap", "iou")
_RESOLUTION = 5e-4  # what other bins of the same scores can change


@dataclass(frozen=True)
class _Options:
    output: str | None
    images: int
    seed: int
    bootstrap: int


@dataclass(frozen=True, eq=False)
class _Run:
    """The tables of one run on one benchmark."""

    images: pd.DataFrame
    histograms: pd.DataFrame

    def rows(self, output: str) -> dict[str, dict[str, Any]]:
        return _by_key(self.images, output)

    def bins(self, output: str) -> dict[str, dict[str, Any]]:
        return _by_key(self.histograms, output)


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
        seed: Seed of the resamplings.
        bootstrap: Resamplings of the images, the same images in both runs.

    Returns:
        ``{benchmark: {output: {images, metrics, changed_most}}}`` with ``metrics`` as
        ``{name: {first, second, difference, low, high, significant}}``; differences are second - first.

    Raises:
        DataError: A run has no tables, or the two have no benchmark, output or image in common.
    """
    options = _Options(output, images, seed, bootstrap)
    with ExitStack() as stack:
        one, two = (_tables(run, stack) for run in (first, second))
        names = [name for name in one if name in two and benchmark in {None, name}]
        result = {name: _compared(one[name], two[name], options) for name in names}
    result = {name: outputs for name, outputs in result.items() if outputs}
    if not result:
        cause, cure = "have no benchmark and output in common", "evaluate both on the same set"
        raise DataError(f"{first}, {second}", cause, cure)
    return dict(rounded(result))


def _compared(one: _Run, two: _Run, options: _Options) -> dict[str, Any]:
    shared = set(two.images["output"])
    outputs = [str(name) for name in one.images["output"].unique() if name in shared]
    return {name: _paired(one, two, name, options) for name in outputs if options.output in {None, name}}


def _paired(one: _Run, two: _Run, output: str, options: _Options) -> dict[str, Any]:
    rows = [run.rows(output) for run in (one, two)]
    keys = [key for key in rows[0] if key in rows[1]]
    if not keys:
        raise DataError("compare", f"the runs share no image of output '{output}'", "evaluate the same set")
    sides = [_Side(row, run.bins(output), keys) for row, run in zip(rows, (one, two), strict=True)]
    plain = [side.values(np.ones((1, len(keys)))) for side in sides]
    names = [name for name in plain[0] if name in plain[1]]
    draws: dict[str, list[Any]] = {name: [] for name in names}
    for weights in resamplings(len(keys), options.bootstrap, rng(options.seed, "compare", output)):
        values = [side.values(weights) for side in sides]
        for name in names:
            draws[name].append(values[1][name] - values[0][name])
    changes = [
        {"key": key, **{name: (rows[0][key][name], rows[1][key][name]) for name in _CHANGES}} for key in keys
    ]
    changes.sort(key=lambda change: -max(_moved(*change[name]) for name in _CHANGES))
    return {
        "images": len(keys),
        "metrics": {
            name: _difference(
                float(plain[0][name][0]),
                float(plain[1][name][0]),
                draws[name],
                _RESOLUTION if name in PIXEL_NAMES else 0.0,
            )
            for name in names
        },
        "changed_most": changes[: options.images],
    }


class _Side:
    """One run's images in the order of the common keys."""

    def __init__(self, rows: Mapping[str, Values], histograms: Mapping[str, Values], keys: list[str]) -> None:
        self.counts = image_counts([dict(rows[key]) for key in keys])
        self.histograms: ImageHistograms | None = None
        if histograms:
            thresholds = np.asarray(histograms[keys[0]]["threshold"])
            tp, fp = (np.array([histograms[key][side] for key in keys]) for side in ("tp", "fp"))
            self.histograms = ImageHistograms(thresholds, tp, fp)

    def values(self, weights: Any) -> dict[str, Any]:
        pixel = {} if self.histograms is None else pixel_values(self.histograms, weights)
        return pixel if self.counts is None else pixel | component_values(self.counts, weights)


def _difference(first: float, second: float, draws: list[Any], resolution: float) -> dict[str, Any]:
    values = np.concatenate(draws) if draws else np.zeros(0)
    values = values[np.isfinite(values)]
    known = bool(np.isfinite(first) and np.isfinite(second))
    span = [float(end) for end in np.percentile(values, [2.5, 97.5])] if values.size and known else None
    return {
        "first": first if np.isfinite(first) else None,
        "second": second if np.isfinite(second) else None,
        "difference": second - first if known else None,
        "low": span[0] if span else None,
        "high": span[1] if span else None,
        "significant": bool(span and (span[0] > resolution or span[1] < -resolution)),
    }


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
    candidates = [folder, *sorted(folder.glob("*")), *sorted((folder / PREDICTIONS).glob("*"))]
    found = [path for path in candidates if (path / IMAGES_FILE).is_file()]
    if not found:
        raise DataError(run, f"holds no {IMAGES_FILE}", "run the evaluate stage, or `anomdino evaluate`")
    runs = [_Run(read_table(path / IMAGES_FILE), read_table(path / HISTOGRAMS_FILE)) for path in found]
    return {str(tables.images["benchmark"].iloc[0]): tables for tables in runs}


class _Revision:
    """The tables of a git revision, fetched from DVC's cache into a temporary folder."""

    def __init__(self, revision: str) -> None:
        self.revision = revision

    def __enter__(self) -> Path:
        self.folder = tempfile.TemporaryDirectory()
        target = Path(self.folder.name) / "predictions"
        command = [
            "dvc",
            "get",
            ".",
            str(PREDICTIONS),
            "--rev",
            self.revision,
            "--out",
            str(target),
            "--quiet",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise DataError(
                self.revision, "is no folder, and DVC is not installed", "pip install dvc"
            ) from error
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or ["unknown"]
            raise DataError(
                self.revision, f"is no folder and no revision with results ({reason[0]})", "`dvc fetch`?"
            )
        return target

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()
