"""Freed memory goes back to the system, in a process of its own; what an evaluation keeps of an image is little."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from anomdino.benchmarks import Benchmark, ComponentLimits, Sample
from anomdino.benchmarks.labels import BINARY_WITH_VOID
from anomdino.evaluation import EvaluationSettings, Prediction, evaluate_benchmark, pixel_pass, write_results
from anomdino.evaluation.histograms import common_histograms, sketch, summed_histogram
from anomdino.evaluation.memory import FreedMemory, _c_library, _resident, share_one_heap
from anomdino.metrics.sorting import sort_scores
from anomdino.metrics.streaming import StreamingPixels

MEASURE = """
from anomdino.evaluation.memory import FreedMemory, _resident, share_one_heap
assert share_one_heap()
freed = FreedMemory(growth=16 << 20)
blocks = [bytes(100_000) + b"x" for _ in range(2000)]
blocks = blocks[-1:]  # the last one keeps the heap from shrinking by itself
before = _resident()
freed.give_back()
print(before - _resident())
"""


@pytest.mark.skipif(_c_library() is None or not _resident(), reason="not the GNU C library on Linux")
def test_freed_memory_is_given_back():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150e6


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("anomdino.evaluation.memory._c_library", lambda: None)
    assert not share_one_heap()
    FreedMemory(growth=-1).give_back()


SIZE = (40, 50)


class Drawn(Benchmark):
    """Frames with one object, made as they are read."""

    def read_label(self, sample):
        label = np.zeros(SIZE, np.uint8)
        label[10:20, 10:30] = 1
        return label


class FiveOutputs:
    names = ("raw", "hard", "soft", "boost", "fused")

    def predictions(self, sample):
        score = np.random.default_rng(int(sample.key)).normal(size=SIZE).astype(np.float32)
        score[10:20, 10:30] += 2
        return {name: Prediction(score * (index + 1)) for index, name in enumerate(self.names)}

    def boxes(self, sample):
        return None

    def classes(self, sample):
        return None


def peaks(count, folder):
    """Largest memory of evaluating and of writing, in bytes, as Python and numpy ask for it."""
    samples = tuple(Sample(str(index), Path("x"), Path("x")) for index in range(count))
    benchmark = Drawn("mine", "folder", "", samples, BINARY_WITH_VOID, ComponentLimits(5, 5), "pooled")
    tracemalloc.start()
    result = evaluate_benchmark(benchmark, FiveOutputs(), EvaluationSettings(bootstrap=20, workers=1))
    evaluated = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    write_results(folder, result)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return np.array([evaluated, written])


def test_memory_grows_little_with_the_images(tmp_path, monkeypatch):
    """Five outputs: 470 kB an image while evaluating and 560 kB while writing when all was kept as lists of floats."""
    small = lambda capacity, buffer: StreamingPixels(1 << 10, 1 << 14)  # noqa: E731 - bounded, but filled slowly
    monkeypatch.setattr(pixel_pass, "StreamingPixels", small)
    peaks(2, tmp_path)
    few, many = peaks(16, tmp_path), peaks(56, tmp_path)
    evaluating, writing = (many - few) / 40
    assert evaluating < 300e3
    assert writing < 200e3


def test_summed_histograms_are_the_sum_of_all_images():
    rng = np.random.default_rng(0)
    label = (rng.random((3, 500)) < 0.1).astype(np.uint8)
    sketches = [
        sketch(sort_scores(s, one), coarse=True)
        for s, one in zip(rng.normal(size=label.shape).astype(np.float32), label, strict=True)
    ]
    edges = np.linspace(3, -3, 50)
    each, together = common_histograms(sketches, edges), summed_histogram(sketches, edges)
    np.testing.assert_allclose(together.tp, each.tp.sum(axis=0, keepdims=True), atol=1e-9)
    np.testing.assert_allclose(together.fp, each.fp.sum(axis=0, keepdims=True), atol=1e-9)
    assert together.tp.sum() == pytest.approx(label.sum())
