"""The field's pixel protocols by name, for arrays in memory.

===============  ====================================================================================
``pooled``       all pixels of the set together, scikit-learn's definitions, FPR at the first recall >= 0.95
``rpl``          the same, with FPR at the recall closest to 0.95, as RPL's `eval_ood_measure`
``fishyscapes``  the same as ``pooled``, by the name under which Fishyscapes publishes it
``smiyc``        768 percentile bins a frame, curves pooled by threshold, as road-anomaly-benchmark's `PixBinaryClass`
``per_image``    each image alone, then the mean over the images that hold both classes
===============  ====================================================================================

Void pixels never count. ``pooled``, ``rpl`` and ``fishyscapes`` here sort all pixels at once;
:class:`anomdino.metrics.StreamingPixels` gives the same numbers in bounded memory, for scores in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from anomdino.metrics.curve import exact_curve
from anomdino.metrics.results import PixelMetrics
from anomdino.metrics.smiyc import SmiycPixels
from anomdino.metrics.sorting import FloatArray, SortedScores, sort_scores

Frame = tuple[FloatArray, npt.NDArray[np.integer]]
PooledProtocol = Literal["pooled", "rpl", "fishyscapes", "smiyc"]


@dataclass(frozen=True)
class PerImageMetrics:
    """Means over images, None where no image holds both classes.

    Attributes:
        ap: Mean average precision.
        auroc: Mean AUROC.
        fpr95: Mean FPR95 (first recall >= 0.95).
        images: Images in the means.
        left_out: Images left out, by reason.
    """

    ap: float | None
    auroc: float | None
    fpr95: float | None
    images: int
    left_out: dict[str, int]


def pixel_metrics(frames: Iterable[Frame], protocol: PooledProtocol = "pooled") -> PixelMetrics:
    """Pixel metrics of a data set.

    Args:
        frames: (score, label) of each image: float (H, W), higher = more anomalous, and integers (H, W): 0
            in-distribution, 1 anomaly, anything else void.
        protocol: See the table of this module.

    Raises:
        ValueError: The protocol is unknown, shapes differ, a score is not finite, or (``smiyc``) the region of
            interest of a frame is empty.
    """
    if protocol not in get_args(PooledProtocol):
        raise ValueError(f"protocol '{protocol}' is unknown, known: {', '.join(get_args(PooledProtocol))}")
    if protocol == "smiyc":
        state = SmiycPixels()
        for score, label in frames:
            state.update(score, label)
        return state.compute()
    parts = [sort_scores(score, label) for score, label in frames]
    pooled = SortedScores(_together([p.positives for p in parts]), _together([p.negatives for p in parts]))
    return exact_curve(pooled).metrics("closest" if protocol == "rpl" else "first")


def per_image_metrics(frames: Iterable[Frame]) -> PerImageMetrics:
    """Mean of each image's own metrics; images that lack a class are left out and counted by reason.

    Args:
        frames: See :func:`pixel_metrics`.

    Raises:
        ValueError: Shapes differ, or a score is not finite.
    """
    kept: list[PixelMetrics] = []
    left_out: dict[str, int] = {}
    for score, label in frames:
        measured = exact_curve(sort_scores(score, label)).metrics()
        if measured.reasons:
            reason = measured.reasons["ap"]
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            kept.append(measured)

    def mean(name: str) -> float | None:
        return float(np.mean([getattr(one, name) for one in kept])) if kept else None

    return PerImageMetrics(mean("ap"), mean("auroc"), mean("fpr95"), len(kept), left_out)


def _together(parts: list[FloatArray]) -> FloatArray:
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.float32)
