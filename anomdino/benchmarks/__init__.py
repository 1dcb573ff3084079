"""Readers of the field's evaluation sets, and the registry that says what each of them must look like."""

from anomdino.benchmarks.labels import LabelMap
from anomdino.benchmarks.model import Benchmark, ComponentLimits, Sample
from anomdino.benchmarks.opening import open_benchmark, open_registered, open_set
from anomdino.benchmarks.registry import LAYOUTS, REGISTRY, Entry, Layout

__all__ = [
    "LAYOUTS",
    "REGISTRY",
    "Benchmark",
    "ComponentLimits",
    "Entry",
    "LabelMap",
    "Layout",
    "Sample",
    "open_benchmark",
    "open_registered",
    "open_set",
]
