"""S2M's mask metrics: IoU, AuIoU and mean F1 over 101 thresholds, as its published evaluation has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.metrics.sorting import FloatArray, SortedScores, sort_scores

TAUS: npt.NDArray[np.float64] = np.arange(0, 1.01, 0.01)


@dataclass
class S2mState:
    """Mergeable sums of per-image IoU and F1 at every threshold; void pixels count as background."""

    iou_sum: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(TAUS)))
    f1_sum: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(TAUS)))
    images: int = 0

    def update(self, confidence: npt.NDArray[np.floating], label: npt.NDArray[np.uint8]) -> None:
        """Add an image.

        Args:
            confidence: (H, W) in [0, 1]; a pixel is predicted at tau where confidence > tau. A mask counts as 0 and 1.
            label: (H, W), 1 = anomaly; every other value, void too, is background.

        Raises:
            ValueError: Shapes differ, or a confidence is NaN or infinite, on void too.
        """
        scores = sort_scores(confidence, (label == 1).astype(np.uint8))
        self.update_sorted(scores, scores.negatives[:0])

    def update_sorted(self, scores: SortedScores, void: FloatArray) -> None:
        """Add an image whose confidences are sorted already.

        Args:
            scores: Those of anomalous and of in-distribution pixels.
            void: Those of all other pixels, ascending.
        """
        hit, truth = _above(scores.positives), scores.positives.size
        other = _above(scores.negatives) + _above(void)
        union, total = truth + other, truth + hit + other
        self.iou_sum += np.divide(hit, union, out=np.zeros(len(TAUS)), where=union > 0)
        self.f1_sum += np.divide(2 * hit, total, out=np.zeros(len(TAUS)), where=union > 0)
        self.images += 1

    def merge(self, other: S2mState) -> None:
        """Add the images of another state."""
        self.iou_sum += other.iou_sum
        self.f1_sum += other.f1_sum
        self.images += other.images

    def compute(self) -> dict[str, Any]:
        """Give the entries of S2M's ``save.json``, ``area`` being AuIoU, and ``mean_f1``.

        Raises:
            ValueError: No image was added.
        """
        if not self.images:
            raise ValueError("no image was added")
        ious, f1 = self.iou_sum / self.images, self.f1_sum / self.images
        best = int(np.argmax(ious))
        return {
            "ious": ious.tolist(),
            "threshold_list": TAUS.tolist(),
            "area": float(np.trapezoid(ious, TAUS)),
            "Best_miou": float(ious[best]),
            "Best_threshold": float(TAUS[best]),
            "f1_scores": f1.tolist(),
            "mean_f1": float(f1.mean()),
        }


def _above(ordered: FloatArray) -> npt.NDArray[np.int64]:
    """Count the values, ascending, above each threshold, compared in float64."""
    edges = TAUS.astype(ordered.dtype)
    too_low = edges.astype(np.float64) < TAUS
    edges[too_low] = np.nextafter(edges[too_low], np.array(np.inf, ordered.dtype))
    exact = edges.astype(np.float64) == TAUS
    right = np.searchsorted(ordered, edges, side="right")
    left = np.searchsorted(ordered, edges, side="left")
    return (ordered.size - np.where(exact, right, left)).astype(np.int64)
