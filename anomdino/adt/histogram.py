"""Pixel measures of a whole set of images in constant memory, for any scale of scores.

A bin holds neighbouring float32 values: the first bits of their ordered bit pattern. So bins need no range,
are the same for every image and fixed before any data is seen, and 20 bits resolve 0.05 % of a score's value.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError

FloatArray = npt.NDArray[np.float64]


class ScoreHistogram:
    """Counts of anomalous and in-distribution pixels per score bin; those of equal ``bits`` can be merged.

    Args:
        bits: Bits of a bin's number; memory is 16 bytes * 2^bits.
    """

    def __init__(self, bits: int = 20) -> None:
        self.bits = bits
        self.positive = np.zeros(1 << bits, np.float64)
        self.negative = np.zeros(1 << bits, np.float64)

    def add(self, score: npt.NDArray[np.float32], label: npt.NDArray[np.uint8]) -> None:
        """Count the pixels of one image, void (255) left out."""
        bins = score_bins(score, self.bits)
        self.positive += np.bincount(bins[label == 1], minlength=1 << self.bits)
        self.negative += np.bincount(bins[label == 0], minlength=1 << self.bits)

    def merge(self, other: ScoreHistogram) -> ScoreHistogram:
        """Give the counts of both."""
        merged = ScoreHistogram(self.bits)
        merged.positive, merged.negative = self.positive + other.positive, self.negative + other.negative
        return merged

    def average_precision(self) -> float:
        """Step sum of precision over recall, one operating point a bin; positives are anomalies."""
        hits, alarms = self._descending()
        precision = hits / np.maximum(hits + alarms, 1)
        return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * precision))

    def fpr_at_recall(self, recall: float = 0.95) -> float:
        """False-positive rate at the first operating point whose recall is at least ``recall``."""
        hits, alarms = self._descending()
        return float(alarms[np.searchsorted(hits, recall * hits[-1])] / alarms[-1])

    def best_f1(self) -> tuple[float, float]:
        """Best F1 and its threshold: predict where score >= threshold, the highest one among equals."""
        hits, alarms = self._descending()
        f1 = 2 * hits / (hits + alarms + hits[-1])
        best = int(np.argmax(f1))
        return float(f1[best]), float(bin_edge(self._bins_descending()[best], self.bits))

    def threshold_at_fpr(self, rate: float) -> float:
        """Smallest threshold that at most ``rate`` of the in-distribution pixels reach."""
        alarms = np.cumsum(self.negative[::-1])
        if not alarms[-1]:
            raise DataError("calibration set", "has no in-distribution pixel", "add images that have some")
        return float(smallest_safe_edge(alarms <= rate * alarms[-1], self.bits))

    def _bins_descending(self) -> npt.NDArray[np.intp]:
        return np.flatnonzero(self.positive + self.negative)[::-1]

    def _descending(self) -> tuple[FloatArray, FloatArray]:
        bins = self._bins_descending()
        hits, alarms = np.cumsum(self.positive[bins]), np.cumsum(self.negative[bins])
        if not len(bins) or not hits[-1] or not alarms[-1]:
            lacking = "anomalous" if not len(bins) or not hits[-1] else "in-distribution"
            raise DataError("pixel measures", f"there is no {lacking} pixel", "add images that have some")
        return hits, alarms


def score_bins(score: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.uint32]:
    """Give each score's bin; a larger score never has a smaller bin."""
    without_minus_zero = np.ascontiguousarray(score, np.float32) + np.float32(0)
    pattern = without_minus_zero.view(np.uint32)
    negative = pattern >> 31 == 1
    ordered = np.where(negative, ~pattern, pattern | np.uint32(0x80000000))
    return ordered >> np.uint32(32 - bits)


def bin_edge(index: int | np.intp, bits: int) -> np.float32:
    """Give the smallest float32 of a bin."""
    ordered = np.uint32(int(index) << (32 - bits))
    pattern = ordered & np.uint32(0x7FFFFFFF) if ordered >> 31 else ~ordered
    return np.float32(np.array([pattern], np.uint32).view(np.float32)[0])


def smallest_safe_edge(safe_descending: npt.NDArray[np.bool_], bits: int) -> np.float32:
    """Give the lower edge of the lowest bin of the safe run that starts at the top, a finite number.

    Where nothing is safe, only scores in the largest float32's own bin are predicted; where everything is, all are.
    """
    safe = len(safe_descending) if safe_descending.all() else int(np.argmin(safe_descending))
    lowest = (1 << bits) - safe
    largest = np.finfo(np.float32).max
    first, last = score_bins(np.array([-largest, largest], np.float32), bits)
    return bin_edge(int(np.clip(lowest, first, last)), bits)
