"""A measured value, or the reason why there is none: never NaN."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

NO_ANOMALY = "no anomalous pixel in the region of interest (labels: 1 is an anomaly, 255 void)"
NO_INLIER = "no in-distribution pixel in the region of interest"


@dataclass(frozen=True)
class PixelMetrics:
    """Pixel metrics of one set of pixels; fractions in [0, 1].

    Attributes:
        ap: Average precision (step sum), or None.
        auroc: Area under the ROC curve, or None.
        fpr95: False-positive rate at 95 % true-positive rate, or None.
        best_f1: Largest F1 over all thresholds, or None.
        best_f1_threshold: Highest threshold that reaches it; a pixel is predicted where score >= threshold.
        positives: Anomalous pixels.
        negatives: In-distribution pixels.
        ap_error: Largest possible distance of ``ap`` from the exact value.
        fpr95_error: The same for ``fpr95``.
        auroc_error: The same for ``auroc``.
        reasons: Why a value is None, by the name of the value.
    """

    ap: float | None
    auroc: float | None
    fpr95: float | None
    best_f1: float | None
    best_f1_threshold: float | None
    positives: int
    negatives: int
    ap_error: float = 0.0
    fpr95_error: float = 0.0
    auroc_error: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stays None and ``reasons`` explains it."""
        return asdict(self)


def undefined_pixels(positives: int, negatives: int) -> PixelMetrics:
    """Give the result of a set that lacks one of the two classes."""
    reason = NO_ANOMALY if positives == 0 else NO_INLIER
    names = ("ap", "auroc", "fpr95", "best_f1", "best_f1_threshold")
    return PixelMetrics(
        None, None, None, None, None, positives, negatives, reasons=dict.fromkeys(names, reason)
    )
