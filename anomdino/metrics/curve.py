"""The operating points of a score, from the highest threshold down, and what is read off them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from anomdino.metrics.results import PixelMetrics, undefined_pixels
from anomdino.metrics.sorting import SortedScores

Counts = npt.NDArray[np.integer] | npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
Fpr95Rule = Literal["first", "closest"]
RECALL = 0.95


@dataclass(frozen=True, eq=False)
class Curve:
    """Operating points; point i predicts every pixel with score >= thresholds[i].

    Attributes:
        thresholds: (K,) descending, distinct.
        tp: (K,) anomalous pixels predicted, not decreasing.
        fp: (K,) in-distribution pixels predicted, not decreasing.
        positives: Anomalous pixels altogether.
        negatives: In-distribution pixels altogether.
    """

    thresholds: Float64
    tp: Counts
    fp: Counts
    positives: int
    negatives: int

    @property
    def recall(self) -> Float64:
        """True-positive rate tp / positives."""
        return np.asarray(self.tp / self.positives, np.float64)

    @property
    def fpr(self) -> Float64:
        """False-positive rate fp / negatives."""
        return np.asarray(self.fp / self.negatives, np.float64)

    @property
    def precision(self) -> Float64:
        """Precision tp / (tp + fp), 1 where nothing is predicted."""
        predicted = self.tp + self.fp
        return np.divide(self.tp, predicted, out=np.ones(len(predicted)), where=predicted > 0)

    @property
    def f1(self) -> Float64:
        """F1 = 2 tp / (2 tp + fp + fn)."""
        return np.asarray(2 * self.tp / (self.tp + self.fp + self.positives), np.float64)

    def average_precision(self) -> float:
        """Step sum of precision over recall (scikit-learn's definition)."""
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))

    def area_under_roc(self) -> float:
        """Trapezoid under the ROC curve, from (0, 0) on."""
        recall, fpr = np.concatenate([[0.0], self.recall]), np.concatenate([[0.0], self.fpr])
        return float(np.trapezoid(recall, fpr))

    def fpr_at_recall(self, rule: Fpr95Rule = "first", level: float = RECALL) -> float:
        """False-positive rate at a recall.

        Args:
            rule: ``first`` point with recall >= level (SMIYC, Fishyscapes); ``closest`` recall, the higher
                one and then the lower threshold on ties, among the points up to full recall (RPL).
            level: The recall.

        Returns:
            The rate; 1.0 if the level is never reached.
        """
        recall = self.recall
        if rule == "first":
            index = int(np.searchsorted(recall, level))
            return float(self.fpr[index]) if index < len(recall) else 1.0
        full = int(np.searchsorted(self.tp, self.tp[-1]))
        downwards = recall[full::-1]
        return float(self.fpr[full - int(np.argmin(np.abs(downwards - level)))])

    def best_f1(self) -> tuple[float, float]:
        """Largest F1 and the highest threshold that reaches it (predict score >= threshold)."""
        f1 = self.f1
        index = int(np.argmax(f1))
        return float(f1[index]), float(self.thresholds[index])

    def metrics(self, rule: Fpr95Rule = "first") -> PixelMetrics:
        """All pixel metrics; null with a reason where a class is missing."""
        if not (self.positives and self.negatives):
            return undefined_pixels(self.positives, self.negatives)
        f1, threshold = self.best_f1()
        return PixelMetrics(
            ap=self.average_precision(),
            auroc=self.area_under_roc(),
            fpr95=self.fpr_at_recall(rule),
            best_f1=f1,
            best_f1_threshold=threshold,
            positives=self.positives,
            negatives=self.negatives,
        )

    def thinned(self, points: int) -> Curve:
        """Keep about ``points`` points, spread along both rates and their logs; ends and best F1 stay."""
        count = len(self.thresholds)
        if count <= points:
            return self
        ways = (
            self.tp / max(self.positives, 1),
            self.fp / max(self.negatives, 1),
            np.log1p(self.fp) / np.log1p(max(self.negatives, 1)),
            np.log1p(self.tp) / np.log1p(max(self.positives, 1)),
        )
        along = np.mean(ways, axis=0)
        keep = np.searchsorted(along, np.linspace(0, float(along[-1]), points - 3))
        best = int(np.argmax(self.f1)) if self.positives else 0
        keep = np.unique(np.concatenate([np.minimum(keep, count - 1), [0, best, count - 1]]))
        return Curve(self.thresholds[keep], self.tp[keep], self.fp[keep], self.positives, self.negatives)


def exact_curve(scores: SortedScores) -> Curve:
    """Operating points at every distinct score, as scikit-learn's ``roc_curve(drop_intermediate=False)``."""
    thresholds = np.unique(np.concatenate([scores.positives, scores.negatives]))[::-1]
    return _at(scores, thresholds)


def positive_curve(scores: SortedScores) -> Curve:
    """Operating points at the distinct scores of anomalous pixels alone.

    Recall rises at these alone, so that AP, FPR95 (rule ``first``) and best F1 are exact on it, at a fraction
    of the cost of :func:`exact_curve`.
    """
    values = scores.positives
    distinct = values[np.concatenate([[True], values[1:] != values[:-1]])] if values.size else values
    return _at(scores, distinct[::-1])


def rank_auroc(scores: SortedScores) -> float:
    """AUROC as the share of (anomaly, inlier) pairs in the right order, ties counted half (Mann-Whitney)."""
    below = np.searchsorted(scores.negatives, scores.positives, side="left").astype(np.float64)
    upto = np.searchsorted(scores.negatives, scores.positives, side="right").astype(np.float64)
    return float((below + upto).sum() / (2.0 * scores.positives.size * scores.negatives.size))


def _at(scores: SortedScores, thresholds: npt.NDArray[np.floating]) -> Curve:
    positives, negatives = scores.positives.size, scores.negatives.size
    return Curve(
        thresholds.astype(np.float64),
        positives - np.searchsorted(scores.positives, thresholds, side="left"),
        negatives - np.searchsorted(scores.negatives, thresholds, side="left"),
        positives,
        negatives,
    )
