"""Images with their labels and outputs, the next one prepared while the current one is worked on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomdino.benchmarks import Sample
from anomdino.evaluation.memory import FreedMemory
from anomdino.evaluation.result import BenchmarkResult
from anomdino.evaluation.sources import OutputSource, Prediction
from anomdino.progress import track


@dataclass(frozen=True, eq=False)
class LoadedFrame:
    """An image's label, uint8 (H, W) of 0, 1, 255, and its outputs by name."""

    sample: Sample
    label: npt.NDArray[np.uint8]
    predictions: Mapping[str, Prediction]


def loaded_frames(
    result: BenchmarkResult, source: OutputSource, what: str, workers: int
) -> Iterator[LoadedFrame]:
    """Yield the images of a benchmark that are not left out, in order; at most two are in memory.

    Args:
        result: Its benchmark is read; images in ``left_out`` are not.
        source: Gives the outputs.
        what: Name of the pass on the progress bar.
        workers: With more than one the next image is prepared in a thread.
    """
    benchmark = result.benchmark
    samples = [sample for sample in benchmark.samples if sample.key not in result.left_out]

    def load(sample: Sample) -> LoadedFrame:
        return LoadedFrame(sample, benchmark.read_label(sample), source.predictions(sample))

    freed = FreedMemory()
    if workers < 2:
        for sample in track(samples, f"{benchmark.name}: {what}"):
            yield load(sample)
            freed.give_back()
        return
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(load, samples[0]) if samples else None
        for index, _ in enumerate(track(samples, f"{benchmark.name}: {what}")):
            assert coming is not None
            frame = coming.result()
            if index + 1 < len(samples):
                coming = pool.submit(load, samples[index + 1])
            yield frame
            del frame
            freed.give_back()
