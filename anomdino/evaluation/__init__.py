"""Evaluating a method on benchmarks: the loop, its tables and files, intervals and comparison of runs."""

from anomdino.evaluation.result import BenchmarkResult, EvaluationSettings
from anomdino.evaluation.run import evaluate_benchmark
from anomdino.evaluation.sources import CascadeOutputs, OutputSource, Prediction, ScoreFolder
from anomdino.evaluation.writing import (
    write_metric_tables,
    write_metrics,
    write_plots,
    write_prediction,
    write_results,
)

__all__ = [
    "BenchmarkResult",
    "CascadeOutputs",
    "EvaluationSettings",
    "OutputSource",
    "Prediction",
    "ScoreFolder",
    "evaluate_benchmark",
    "write_metric_tables",
    "write_metrics",
    "write_plots",
    "write_prediction",
    "write_results",
]
