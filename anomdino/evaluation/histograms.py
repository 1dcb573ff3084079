"""Per-image histograms of scores on bins that all images share, made without a second look at the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomdino.evaluation.bootstrap import ImageHistograms
from anomdino.metrics.sorting import SortedScores

Counts = npt.NDArray[np.uint32]
_UNIFORM, _TAIL = 257, 129
_COARSE = 4


@dataclass(frozen=True, eq=False)
class ScoreSketch:
    """Exact counts of one image at up to 772 of its own scores.

    Attributes:
        thresholds: float32 (K,) ascending.
        at_least: uint32 (2, K), anomalous and in-distribution pixels with score >= threshold.
        above: uint32 (2, K), those with score > threshold.
    """

    thresholds: npt.NDArray[np.float32]
    at_least: Counts
    above: Counts

    def cumulative(self, thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Count pixels with score >= each threshold, (2, B), linear between the image's own scores."""
        own = self.thresholds.astype(np.float64)
        right = np.searchsorted(own, thresholds, side="left")
        inside = np.clip(right, 1, len(own) - 1) if len(own) > 1 else np.zeros_like(right)
        left = np.maximum(inside - 1, 0)
        gap = np.where(inside > left, own[inside] - own[left], 1.0)
        share = np.clip((thresholds - own[left]) / gap, 0.0, 1.0)
        at_least, above = self.at_least.astype(np.float64), self.above.astype(np.float64)
        between = above[:, left] + (at_least[:, inside] - above[:, left]) * share
        exact = own[np.minimum(right, len(own) - 1)] == thresholds
        between = np.where(exact, at_least[:, np.minimum(right, len(own) - 1)], between)
        between = np.where(right == 0, at_least[:, :1], between)
        return np.where(right == len(own), 0.0, between)


def sketch(scores: SortedScores, *, coarse: bool = False) -> ScoreSketch:
    """Sketch one image: even ranks of both classes, and the upper tail of both on a logarithmic scale.

    Args:
        scores: The image's scores, or those of a part of it; at least one.
        coarse: Keep a quarter of the points.
    """
    parts = (scores.positives, scores.negatives)
    share = _COARSE if coarse else 1
    own = [part[_ranks(part.size, _UNIFORM // share, _TAIL // share)] for part in parts]
    thresholds = np.unique(np.concatenate(own)).astype(np.float32)

    def counted(side: str) -> Counts:
        above = [part.size - np.searchsorted(part, thresholds, side=side) for part in parts]  # type: ignore[call-overload]
        return np.stack(above).astype(np.uint32)

    return ScoreSketch(thresholds, counted("left"), counted("right"))


def common_histograms(
    sketches: Sequence[ScoreSketch], thresholds: npt.NDArray[np.float64]
) -> ImageHistograms:
    """Bring the sketches of all images of an output to common bins.

    Args:
        sketches: One an image.
        thresholds: float64 (B,) descending lower edges; the last bin takes everything below too.
    """
    counts = np.empty((2, len(sketches), len(thresholds)))
    for index, one in enumerate(sketches):
        counts[:, index] = _binned(one, thresholds)
    return ImageHistograms(thresholds, counts[0], counts[1])


def summed_histogram(sketches: Sequence[ScoreSketch], thresholds: npt.NDArray[np.float64]) -> ImageHistograms:
    """Give the bins of all sketches together, as those of one image; see :func:`common_histograms`."""
    counts = np.zeros((2, len(thresholds)))
    for one in sketches:
        counts += _binned(one, thresholds)
    return ImageHistograms(thresholds, counts[:1], counts[1:])


def _binned(one: ScoreSketch, thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pixels of both classes in each bin, (2, B)."""
    cumulative = one.cumulative(thresholds)
    cumulative[:, -1] = one.at_least[:, 0]
    return np.diff(cumulative, axis=1, prepend=0.0)


def _ranks(size: int, uniform: int, tail_ranks: int) -> npt.NDArray[np.intp]:
    if not size:
        return np.zeros(0, np.intp)
    even = np.linspace(0, size - 1, min(uniform, size))
    tail = size - np.geomspace(1, size, min(tail_ranks, size))
    return np.unique(np.rint(np.concatenate([even, tail])).astype(np.intp))
