"""Evaluating every output on a benchmark in two passes over the images, at most two images in memory.

The first pass pools pixel scores and finds each output's best-F1 threshold by SMIYC's protocol. The second
takes the masks at these thresholds apart into components and fills the tables.
"""

from __future__ import annotations

from anomdino.benchmarks import Benchmark
from anomdino.evaluation.bootstrap import intervals
from anomdino.evaluation.component_pass import compare_components, measure_boxes
from anomdino.evaluation.pixel_pass import pool_pixels
from anomdino.evaluation.result import (
    BenchmarkResult,
    EvaluationSettings,
    Save,
    headline_values,
    image_counts,
)
from anomdino.evaluation.sources import OutputSource
from anomdino.seeding import rng


def evaluate_benchmark(
    benchmark: Benchmark,
    source: OutputSource,
    settings: EvaluationSettings | None = None,
    save: Save | None = None,
) -> BenchmarkResult:
    """Evaluate all outputs of a source on a benchmark.

    A set that lacks a class, such as one of clean roads alone, has null pixel metrics with the reason; the
    false-positive rate of a method's own mask, or at a given threshold, is measured all the same.

    Args:
        benchmark: A split with labels.
        source: Gives the outputs of an image.
        settings: How.
        save: Called once an image with its outputs, for example to write them.

    Raises:
        DataError: The split has no labels, a label or an output cannot be used, or every pixel is void.
    """
    settings = settings or EvaluationSettings()
    benchmark.require_labels()
    result = BenchmarkResult(benchmark)
    pool_pixels(result, source, settings, save)
    compare_components(result, source, settings)
    measure_boxes(result, source, settings)
    _add_intervals(result, settings)
    return result


def _add_intervals(result: BenchmarkResult, settings: EvaluationSettings) -> None:
    for name in result.components:
        generator = rng(settings.seed, "evaluate", result.benchmark.name, "bootstrap")
        counts, measured = image_counts(result.rows_of(name)), headline_values(result, name)
        histograms = result.histograms.get(name)
        result.intervals[name] = intervals(histograms, counts, settings.bootstrap, generator, measured)
