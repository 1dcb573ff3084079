"""Whether two runs differ by more than chance: their outputs for the same images, swapped at random.

If neither run is better, it is chance which of an image's two outputs belongs to which run. So the difference of
the two runs is compared with what it is after swapping the outputs of some images: p is the share of all swaps that give
a difference at least as large. Nothing is assumed of its distribution, and fewer than six images cannot give p < 0.05.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from anomdino.evaluation.bootstrap import (
    PIXEL_NAMES,
    Float64,
    ImageCounts,
    ImageHistograms,
    component_values,
    gathered,
    pixel_values,
)

_CHUNK = 64
_ROUNDING = 1e-12
_RESOLUTION = 5e-4  # what other bins of the same scores can change


@dataclass(frozen=True, eq=False)
class RunImages:
    """What a run left of N images.

    Attributes:
        histograms: Their scores, or None for a mask without scores.
        counts: Their components, or None for scores without masks.
    """

    histograms: ImageHistograms | None
    counts: ImageCounts | None

    def __len__(self) -> int:
        if self.histograms is not None:
            return len(self.histograms.tp)
        return 0 if self.counts is None else len(self.counts.tp)

    def values(self, weights: Float64) -> dict[str, Float64]:
        """Pooled metrics (R,) by name of weighted images, (R, N); NaN where one is not defined."""
        pixel = {} if self.histograms is None else pixel_values(self.histograms, weights)
        return pixel if self.counts is None else pixel | component_values(self.counts, weights)

    def chosen(self, images: npt.NDArray[np.intp]) -> RunImages:
        """The images at these places."""
        histograms = self.histograms
        if histograms is not None:
            histograms = ImageHistograms(histograms.thresholds, histograms.tp[images], histograms.fp[images])
        counts = self.counts
        if counts is not None:
            counts = ImageCounts(*(getattr(counts, part.name)[images] for part in fields(ImageCounts)))
        return RunImages(histograms, counts)


def swap_test(
    one: RunImages, two: RunImages, swaps: int, generator: np.random.Generator
) -> dict[str, float | None]:
    """Two-sided p of the difference of each metric.

    Args:
        one: A run.
        two: Another one, the same images in the same order.
        swaps: Random swaps; where there are no more different ones, all are tried.
        generator: Source of random numbers.

    Returns:
        p by name of the metrics that both have; None without swaps or where a run has no value. Differences of pixel
        metrics that are smaller than what binning the scores changes have p = 1.
    """
    both, images = _stacked(one, two), len(one)
    names = list(both.values(np.ones((1, 2 * images))))
    if not swaps:
        return dict.fromkeys(names)

    def differences(swapped: Float64) -> dict[str, Float64]:
        first = both.values(np.concatenate([1 - swapped, swapped], axis=1))
        second = both.values(np.concatenate([swapped, 1 - swapped], axis=1))
        return {name: np.abs(second[name] - first[name]) for name in names}

    every = images - 1 <= swaps.bit_length() and 1 << (images - 1) <= swaps
    tried = gathered(differences, _all_swaps(images) if every else _random_swaps(images, swaps, generator))
    result: dict[str, float | None] = {}
    for name, observed in differences(np.zeros((1, images))).items():
        if not np.isfinite(observed[0]):
            result[name] = None
            continue
        less = observed[0] - (_RESOLUTION if name in PIXEL_NAMES else _ROUNDING)
        as_large = np.count_nonzero(~(tried[name] < less))  # a swap without a value counts as well
        result[name] = as_large / len(tried[name]) if every else (1 + as_large) / (1 + swaps)
    return result


def on_common_rates(one: ImageHistograms, two: ImageHistograms) -> tuple[ImageHistograms, ImageHistograms]:
    """Bring the scores of two runs to one scale: the false-positive rate of the whole run at the score.

    Runs may score on different scales, and here their images are pooled. Counts between a run's own bins are linear.
    """
    rates = [_rates(run) for run in (one, two)]
    grid = np.union1d(*rates)

    def spread(run: ImageHistograms, own: Float64) -> ImageHistograms:
        right = np.clip(np.searchsorted(own, grid, side="right"), 1, len(own) - 1)
        gap = np.maximum(own[right] - own[right - 1], np.finfo(np.float64).tiny)
        share = np.clip((grid - own[right - 1]) / gap, 0.0, 1.0)
        sides = []
        for counts in (run.tp, run.fp):
            upto = np.pad(np.cumsum(counts, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
            at = upto[:, right - 1] + (upto[:, right] - upto[:, right - 1]) * share
            at[:, -1] = upto[:, -1]
            sides.append(np.diff(at, prepend=0.0, axis=1))
        return ImageHistograms(-grid, *sides)

    return spread(one, rates[0]), spread(two, rates[1])


def _rates(run: ImageHistograms) -> Float64:
    """False-positive rate above the first bin and down to each bin, (B + 1,); zeros without in-distribution pixels."""
    upto = np.cumsum(np.concatenate([[0.0], run.fp.sum(axis=0, dtype=np.float64)]))
    return np.asarray(upto / max(float(upto[-1]), 1.0), np.float64)


def _stacked(one: RunImages, two: RunImages) -> RunImages:
    """The images of both runs one after another, on common bins; only what both have."""
    histograms = counts = None
    if one.histograms is not None and two.histograms is not None:
        first, second = on_common_rates(one.histograms, two.histograms)
        tp, fp = (np.concatenate([getattr(first, side), getattr(second, side)]) for side in ("tp", "fp"))
        histograms = ImageHistograms(first.thresholds, tp, fp)
    if one.counts is not None and two.counts is not None:
        parts = ((getattr(run.counts, part.name) for run in (one, two)) for part in fields(ImageCounts))
        counts = ImageCounts(*(np.concatenate(list(part)) for part in parts))
    return RunImages(histograms, counts)


def _all_swaps(images: int) -> Iterator[Float64]:
    """Every swap once, up to swapping all images, which changes no more than the sign."""
    total = 1 << (images - 1)
    for start in range(0, total, _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, total))
        yield (numbers[:, None] >> np.arange(images) & 1).astype(np.float64)


def _random_swaps(images: int, count: int, generator: np.random.Generator) -> Iterator[Float64]:
    for start in range(0, count, _CHUNK):
        yield generator.integers(0, 2, (min(_CHUNK, count - start), images)).astype(np.float64)
