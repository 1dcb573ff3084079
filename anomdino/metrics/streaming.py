"""Pooled pixel metrics in bounded memory: a mergeable summary of fixed size with a computed error bound.

The summary is a list of disjoint score intervals with the number of anomalous and of in-distribution pixels
in each. As long as there are at most ``capacity`` distinct scores every interval is a single score and all
metrics are exact. Beyond it, neighbours are joined so that each interval holds at most about 3 / capacity of
the pixels of a class and changes the cumulative counts by a small factor. The order that *could* be hidden
inside the intervals gives the error bounds that :meth:`StreamingPixels.compute` reports: they hold for every
distribution.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from anomdino.metrics.curve import RECALL, Curve, Fpr95Rule
from anomdino.metrics.results import PixelMetrics, undefined_pixels
from anomdino.metrics.sorting import FloatArray, SortedScores, sort_scores

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
_Array = TypeVar("_Array", Float32, Int64)

CAPACITY = 1 << 21
_NEGATIVE_WEIGHTS = _POSITIVE_WEIGHTS = (0.35, 0.15)


@dataclass(frozen=True, eq=False)
class _Intervals:
    """Disjoint closed intervals of scores, ascending, with the pixels in each."""

    low: Float32
    high: Float32
    tp: Int64
    fp: Int64

    def __len__(self) -> int:
        return len(self.low)

    @staticmethod
    def none() -> _Intervals:
        return _Intervals(*(np.zeros(0, np.float32),) * 2, *(np.zeros(0, np.int64),) * 2)


@dataclass
class StreamingPixels:
    """Mergeable state for pooled AUROC, AP, FPR95 and best F1.

    Memory: about 24 bytes for each of the ``capacity`` intervals, four times that while pixels are added,
    plus 4 bytes for each of the ``buffer`` pixels, whatever the number of frames.

    Attributes:
        capacity: Intervals that are kept at most.
        buffer: Pixels that are collected before they are merged in.
    """

    capacity: int = CAPACITY
    buffer: int = 1 << 21
    _state: _Intervals = field(default_factory=_Intervals.none, repr=False)
    _waiting: list[SortedScores] = field(default_factory=list, repr=False)

    def update(self, score: FloatArray, label: npt.NDArray[np.integer]) -> None:
        """Add a frame (see :func:`anomdino.metrics.sorting.sort_scores` for the arguments)."""
        self.update_sorted(sort_scores(np.asarray(score, np.float32), label))

    def update_sorted(self, scores: SortedScores) -> None:
        """Add a frame whose scores are sorted already; they are kept as float32."""
        self._waiting.append(scores)
        if sum(part.positives.size + part.negatives.size for part in self._waiting) >= self.buffer:
            self._flush()

    def merge(self, other: StreamingPixels) -> None:
        """Add everything that another state has seen; the other stays usable."""
        other._flush()
        self._flush()
        self._state = _reduced(_joined(self._state, other._state), self.capacity)

    @property
    def exact(self) -> bool:
        """Whether every interval is still a single score."""
        self._flush()
        return bool((self._state.low == self._state.high).all())

    def curve(self) -> Curve:
        """Operating points at the lower ends of the intervals; each of them is exact."""
        self._flush()
        state = self._state
        tp, fp = np.cumsum(state.tp[::-1]), np.cumsum(state.fp[::-1])
        total = (int(tp[-1]), int(fp[-1])) if len(state) else (0, 0)
        return Curve(state.low[::-1].astype(np.float64), tp, fp, *total)

    def compute(self, rule: Fpr95Rule = "first") -> PixelMetrics:
        """All pixel metrics with their error bounds (0 while the state is exact)."""
        curve = self.curve()
        if not (curve.positives and curve.negatives):
            return undefined_pixels(curve.positives, curve.negatives)
        exact = curve.metrics(rule)
        if self.exact:
            return exact
        ap, ap_error = _average_precision(self._state)
        fpr95, fpr95_error = _fpr_at_recall(self._state, rule)
        return replace(
            exact,
            ap=ap,
            ap_error=ap_error,
            fpr95=fpr95,
            fpr95_error=fpr95_error,
            auroc_error=_roc_error(self._state),
        )

    def _flush(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        positives = _counted([part.positives for part in waiting])
        negatives = _counted([part.negatives for part in waiting])
        del waiting
        zeros = np.zeros(0, np.int64)
        new = _joined(
            _Intervals(positives[0], positives[0], positives[1], zeros),
            _Intervals(negatives[0], negatives[0], zeros, negatives[1]),
        )
        del positives, negatives
        joined = _joined(self._state, new)
        self._state = _Intervals.none()
        del new
        self._state = _reduced(joined, self.capacity)


def _counted(parts: list[FloatArray]) -> tuple[Float32, Int64]:
    """Distinct values, ascending, with their counts; -0.0 counts as 0.0."""
    values = np.concatenate(parts).astype(np.float32, copy=False) + np.float32(0.0)
    if len(parts) > 1:
        values.sort()
    starts = _starts(values[1:] != values[:-1]) if values.size else np.zeros(0, np.intp)
    return values[starts], np.diff(np.append(starts, values.size)).astype(np.int64)


def _joined(first: _Intervals, second: _Intervals) -> _Intervals:
    """Join two lists of intervals; those that overlap become one. A missing count array means zeros."""
    if not len(first) and len(second.tp) == len(second.fp):
        return second
    of_first = _places(first.low, second.low)

    def merged(one: _Array, two: _Array) -> _Array:
        values = np.empty(len(of_first), one.dtype)
        values[of_first] = one
        values[~of_first] = two
        return values

    low, high = merged(first.low, second.low), merged(first.high, second.high)
    np.maximum.accumulate(high, out=high)
    starts = _starts(low[1:] > high[:-1]) if low.size else np.zeros(0, np.intp)
    joined_low, joined_high = low[starts], high[np.append(starts[1:], low.size) - 1]
    del low, high

    def summed(one: Int64, two: Int64) -> Int64:
        counts = merged(_or_zeros(one, len(first)), _or_zeros(two, len(second)))
        return np.add.reduceat(counts, starts) if starts.size else counts

    return _Intervals(joined_low, joined_high, summed(first.tp, second.tp), summed(first.fp, second.fp))


def _places(first: Float32, second: Float32) -> npt.NDArray[np.bool_]:
    """Where, in the merger of two ascending lists, the elements of the first one stand; before equal ones."""
    if len(first) > len(second):
        places = np.ones(len(first) + len(second), bool)
        places[np.arange(len(second)) + np.searchsorted(first, second, side="right")] = False
    else:
        places = np.zeros(len(first) + len(second), bool)
        places[np.arange(len(first)) + np.searchsorted(second, first, side="left")] = True
    return places


def _starts(changes: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Where runs start, given where an element differs from the one before it."""
    return np.flatnonzero(np.concatenate([[True], changes]))


def _or_zeros(counts: Int64, length: int) -> Int64:
    return counts if len(counts) == length else np.zeros(length, np.int64)


def _reduced(state: _Intervals, capacity: int) -> _Intervals:
    """Join neighbours until at most ``capacity`` intervals are left."""
    if len(state) <= capacity:
        return state
    along, scratch, counts = np.zeros(len(state)), np.empty(len(state)), np.empty(len(state))
    for pixels, share, relative in ((state.fp, *_NEGATIVE_WEIGHTS), (state.tp, *_POSITIVE_WEIGHTS)):
        np.cumsum(pixels[::-1], dtype=np.float64, out=counts)
        total = max(float(counts[-1]), 1.0)
        along += np.multiply(counts, share / total, out=scratch)
        along += np.multiply(np.log1p(counts, out=counts), relative / np.log1p(total), out=scratch)
    along *= capacity - 1
    cell = along.astype(np.int32)[::-1]
    del along, scratch, counts
    starts = _starts(cell[1:] != cell[:-1])
    ends = np.append(starts[1:], len(state)) - 1
    return _Intervals(
        state.low[starts],
        state.high[ends],
        np.add.reduceat(state.tp, starts),
        np.add.reduceat(state.fp, starts),
    )


def _average_precision(state: _Intervals) -> tuple[float, float]:
    """AP if the pixels of an interval alternate evenly, and its largest distance to AP in any other order."""
    p, n = state.tp[::-1].astype(np.float64), state.fp[::-1].astype(np.float64)
    above_tp, above_fp = np.cumsum(p) - p, np.cumsum(n) - n
    tie = (state.low == state.high)[::-1]
    has = p > 0

    def precision(tp: npt.NDArray[np.float64], fp: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp > 0)

    def after(k: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return precision(above_tp + k, above_fp + n * k / (p + 1))

    tied = precision(above_tp + p, above_fp + n)
    even = (after(np.minimum(p, 1.0)) + 4 * after((p + 1) / 2) + after(p)) / 6
    best, worst = precision(above_tp + p, above_fp), precision(above_tp + np.minimum(p, 1.0), above_fp + n)
    total = p.sum()
    value = float((np.where(tie, tied, even) * p)[has].sum() / total)
    upper = float((np.where(tie, tied, best) * p)[has].sum() / total)
    lower = float((np.where(tie, tied, worst) * p)[has].sum() / total)
    return value, max(upper - value, value - lower, 0.0)


def _roc_error(state: _Intervals) -> float:
    """Largest error of the trapezoid under the ROC curve: half of the pairs whose order is hidden."""
    hidden = state.low != state.high
    pairs = float((state.tp[hidden].astype(np.float64) * state.fp[hidden]).sum())
    return pairs / (2.0 * float(state.tp.sum()) * float(state.fp.sum()))


def _fpr_at_recall(state: _Intervals, rule: Fpr95Rule) -> tuple[float, float]:
    """FPR95, interpolated inside the interval where the recall is reached, and its largest error."""
    levels = _Levels(state)
    bounds = levels.closest() if rule == "closest" else levels.first()
    return levels.rated(*bounds)


class _Levels:
    """False positives at the recall levels around 95 %: a lower bound, an estimate and an upper bound."""

    def __init__(self, state: _Intervals) -> None:
        self.p, self.n = state.tp[::-1], state.fp[::-1]
        self.tp, self.fp = np.cumsum(self.p), np.cumsum(self.n)
        self.tie = (state.low == state.high)[::-1]
        self.positives, self.negatives = int(self.tp[-1]), int(self.fp[-1])
        self.reach = int(np.searchsorted(self.tp / self.positives, RECALL))
        self.start = (
            int(self.tp[self.reach] - self.p[self.reach]),
            int(self.fp[self.reach] - self.n[self.reach]),
        )

    def first(self) -> tuple[float, float, float]:
        """At the first recall of at least 95 %."""
        end = float(self.fp[self.reach])
        if self.tie[self.reach]:
            return end, end, end
        needed = int(np.searchsorted(np.arange(self.positives + 1) / self.positives, RECALL))
        return self.start[1], self.start[1] + self._share(needed - self.start[0]), end

    def closest(self) -> tuple[float, float, float]:
        """At the recall closest to 95 %, the higher one on ties, before the next anomaly is predicted."""
        here, before = int(self.tp[self.reach]), self.start[0]
        if self.tie[self.reach]:
            nearer = abs(here / self.positives - RECALL) <= abs(before / self.positives - RECALL)
            return self._before_next(self.reach) if nearer or not before else (float(self.start[1]),) * 3
        wanted = np.arange(max(before, 1), here + 1)
        level = int(wanted[::-1][np.argmin(np.abs(wanted[::-1] / self.positives - RECALL))])
        upper = self._before_next(self.reach)
        if level == here:
            return self.start[1], upper[1], upper[2]
        return self.start[1], self.start[1] + self._share(level - before + 1), upper[2]

    def rated(self, lower: float, value: float, upper: float) -> tuple[float, float]:
        """Rate and largest error."""
        return value / self.negatives, max(value - lower, upper - value, 0.0) / self.negatives

    def _share(self, anomalies: int) -> float:
        return float(self.n[self.reach]) * anomalies / float(self.p[self.reach] + 1)

    def _before_next(self, index: int) -> tuple[float, float, float]:
        """False positives after interval ``index``, before the next anomaly; at full recall at the last."""
        if self.tp[index] == self.positives:
            end = float(self.fp[index])
            inside = 0.0 if self.tie[index] else float(self.n[index])
            return end - inside, end - inside / float(self.p[index] + 1), end
        following = index + 1 + int(np.argmax(self.p[index + 1 :] > 0))
        lower = float(self.fp[following] - self.n[following])
        if self.tie[following]:
            return lower, lower, lower
        hidden = float(self.n[following])
        return lower, lower + hidden / float(self.p[following] + 1), lower + hidden
