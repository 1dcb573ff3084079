"""SegmentMeIfYouCan's pixel protocol: percentile bins a frame, curves pooled by threshold."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from anomdino.metrics.curve import Curve
from anomdino.metrics.results import PixelMetrics
from anomdino.metrics.sorting import FloatArray, SortedScores, sort_scores

NUM_BINS = 768


@dataclass(frozen=True, eq=False)
class FrameBins:
    """One frame's histogram.

    Attributes:
        thresholds: (K,) lower edges of the bins, descending, finite, in the precision of the scores, or float64 where
            this has no room for the edges: a constant frame, or scores at the ends of its range.
        tp: int32 (K,) anomalous pixels in each bin; a frame has fewer than 2^31 pixels.
        fp: int32 (K,) in-distribution pixels in each bin.
    """

    thresholds: npt.NDArray[np.floating]
    tp: npt.NDArray[np.int32]
    fp: npt.NDArray[np.int32]


def frame_bins(scores: SortedScores) -> FrameBins:
    """Histogram one frame on quantiles of its own scores.

    Args:
        scores: The frame's scores inside the region of interest.

    Raises:
        ValueError: The region of interest is empty, or float64 scores are too far apart.
    """
    if scores.empty:
        raise ValueError("the region of interest is empty: SMIYC's pixel metric is not defined on this frame")
    edges = _edges(scores)
    tp, fp = _histogram(scores.positives, edges), _histogram(scores.negatives, edges)
    return FrameBins(edges[:-1][::-1], tp[::-1], fp[::-1])


def pooled_curve(frames: list[FrameBins]) -> Curve:
    """Pool the frames' bins into one curve, points with the same threshold collapsed to their last.

    The first point is kept even if others share its threshold, so that with ties at the very top the curve depends
    on the order of the frames there; numpy's default sort gives the order that the benchmark has.
    """
    thresholds = np.concatenate([frame.thresholds for frame in frames])
    order = np.argsort(thresholds)[::-1]
    thresholds = thresholds[order].astype(np.float64)
    tp = np.cumsum(np.concatenate([frame.tp for frame in frames])[order], dtype=np.int64)
    fp = np.cumsum(np.concatenate([frame.fp for frame in frames])[order], dtype=np.int64)
    last = np.flatnonzero(thresholds[:-1] != thresholds[1:])
    keep = np.concatenate([[0], last, [len(thresholds) - 1]])
    positives, negatives = int(tp[-1]), int(fp[-1])
    thresholds, tp, fp = thresholds[keep], tp[keep], fp[keep]
    if tp[0] or fp[0]:
        thresholds = np.concatenate([[thresholds.max() + 1.0], thresholds])
        tp, fp = np.concatenate([[0], tp]), np.concatenate([[0], fp])
    return Curve(thresholds, tp, fp, positives, negatives)


@dataclass
class SmiycPixels:
    """Mergeable state of the protocol: at most 768 bins a frame, whatever the frame's size."""

    frames: list[FrameBins] = field(default_factory=list)

    def update(self, score: FloatArray, label: npt.NDArray[np.integer]) -> None:
        """Add a frame (see :func:`anomdino.metrics.sorting.sort_scores` for the arguments)."""
        self.update_sorted(sort_scores(score, label))

    def update_sorted(self, scores: SortedScores) -> None:
        """Add a frame whose scores are sorted already."""
        self.frames.append(frame_bins(scores))

    def merge(self, other: SmiycPixels) -> None:
        """Add the frames of another state."""
        self.frames.extend(other.frames)

    def curve(self) -> Curve:
        """The pooled curve.

        Raises:
            ValueError: No frame was added.
        """
        if not self.frames:
            raise ValueError("no frame was added")
        return pooled_curve(self.frames)

    def compute(self) -> PixelMetrics:
        """AP (``area_PRC``), FPR95 (``tpr95_fpr``), AUROC and best F1 as the benchmark reports them."""
        return self.curve().metrics("first")


def _edges(scores: SortedScores) -> npt.NDArray[np.floating]:
    parts = [values for values in (scores.positives, scores.negatives) if values.size]
    low, high = np.min([part[0] for part in parts]), np.max([part[-1] for part in parts])
    with np.errstate(over="ignore"):
        margin = np.maximum((high - low) * 1e-2, 1e-2)
        ends = np.array([low - margin, high + margin])
    if not np.isfinite(ends).all():  # such as a smallest float where a method has no score
        if ends.dtype == np.float64:
            raise ValueError(f"scores from {low:.3g} to {high:.3g} are too far apart for float64")
        return _edges(SortedScores(scores.positives.astype(np.float64), scores.negatives.astype(np.float64)))
    edges = [ends, *(np.quantile(part, np.linspace(0, 1, min(NUM_BINS // 2, part.size))) for part in parts)]
    distinct = np.unique(np.concatenate(edges))
    return distinct if len(distinct) > 1 else _around(float(distinct[0]))


def _around(value: float) -> npt.NDArray[np.float64]:
    """Edges of a frame whose scores are all ``value``, so large that their precision has no room for the margin."""
    margin = max(1e-2, 2 * float(np.spacing(abs(value))))
    return np.array([value - margin, value, value + margin])


def _histogram(values: FloatArray, edges: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    """``np.histogram`` on values that are sorted: half-open bins, the last one closed."""
    inner = np.searchsorted(values, _at_least(edges[:-1], values.dtype), side="left")
    return np.diff(np.append(inner, values.size)).astype(np.int32)


def _at_least(edges: npt.NDArray[np.floating], dtype: np.dtype[np.floating]) -> FloatArray:
    """Give the smallest value of ``dtype`` not below each edge, which spares a cast of the scores."""
    with np.errstate(over="ignore"):
        rounded = edges.astype(dtype)
    below = rounded < edges
    rounded[below] = np.nextafter(rounded[below], np.array(np.inf, dtype))
    return rounded
