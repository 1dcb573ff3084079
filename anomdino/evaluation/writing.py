"""What an evaluation leaves on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from anomdino.benchmarks import Sample
from anomdino.evaluation.result import BenchmarkResult
from anomdino.evaluation.sources import Prediction
from anomdino.evaluation.summary import benchmark_details, benchmark_metrics, curve_points, rounded
from anomdino.evaluation.tables import (
    COMPONENTS,
    HISTOGRAMS,
    IMAGES,
    histogram_parts,
    write_parts,
    write_table,
)
from anomdino.io.atomic import atomic_path, atomic_write_json
from anomdino.io.images import write_png
from anomdino.io.scores import write_score

IMAGES_FILE, COMPONENTS_FILE, HISTOGRAMS_FILE = "images.parquet", "components.parquet", "histograms.parquet"
DETAILS_FILE = "details.json"


def write_results(folder: Path, result: BenchmarkResult) -> None:
    """Write the tables and ``details.json`` of a benchmark into a folder; those of before stay until all are written."""
    with ExitStack() as files:
        images, components, histograms, details = (
            files.enter_context(atomic_path(folder / name))
            for name in (IMAGES_FILE, COMPONENTS_FILE, HISTOGRAMS_FILE, DETAILS_FILE)
        )
        write_table(images, result.image_rows, IMAGES)
        write_table(components, result.component_rows, COMPONENTS)
        write_parts(histograms, histogram_parts(result.keys, result.histograms), HISTOGRAMS)
        atomic_write_json(details, benchmark_details(result))


def write_metrics(
    path: Path, results: Sequence[BenchmarkResult], seed: int, closed_set: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``metrics.json``, nested by benchmark and output, and return what was written.

    Args:
        path: Final file.
        results: One a benchmark.
        seed: Seed of the evaluation.
        closed_set: Closed-set quality of the scorer, where it is known.
    """
    content: dict[str, Any] = {"seed": seed}
    if closed_set is not None:
        content["closed_set"] = rounded(closed_set)
    content |= {result.benchmark.name: benchmark_metrics(result) for result in results}
    atomic_write_json(path, content)
    return content


def write_metric_tables(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write ``<benchmark>/<output>.json``, one flat file an output, rows of `dvc metrics show`.

    Args:
        folder: Folder of the files.
        metrics: What :func:`write_metrics` returned.
    """
    for name, block in metrics.items():
        rows = (
            {key: row for key, row in block.items() if _is_output(row)} if isinstance(block, Mapping) else {}
        )
        for output, row in rows.items():
            values = {key: round(value, 4) for key, value in row.items() if isinstance(value, int | float)}
            atomic_write_json(folder / name / f"{output}.json", values)


def _is_output(row: object) -> bool:
    return isinstance(row, Mapping) and "F1*" in row


def write_plots(folder: Path, results: Sequence[BenchmarkResult]) -> None:
    """Write the rows of every plot as ``<plot>.json`` (see :func:`curve_points`)."""
    for name, points in curve_points(results).items():
        atomic_write_json(folder / f"{name}.json", points, indent=None)


def write_prediction(folder: Path, sample: Sample, prediction: Prediction) -> None:
    """Write one image's final score ``score/<key>.npz`` and mask ``mask/<key>.png`` (0 or 255)."""
    write_score(folder / "score" / f"{sample.key}.npz", prediction.score)
    if prediction.mask is not None:
        write_png(folder / "mask" / f"{sample.key}.png", prediction.mask.astype(np.uint8) * 255)
