"""95 % intervals over images: how far a number would move with other images of the same kind.

Images are drawn with replacement and pooled metrics are computed anew from each image's histogram of scores
(or its counts of components): a thousand resamplings of a data set cost less than reading it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
PIXEL_NAMES = ("AP", "FPR95", "AUROC")
_CHUNK = 64
_RECALL = 0.95


@dataclass(frozen=True, eq=False)
class ImageHistograms:
    """Scores of every image on common bins, from the highest threshold down.

    Attributes:
        thresholds: float64 (B,) descending lower edges of the bins.
        tp: float64 (N, B) anomalous pixels of each image in each bin.
        fp: float64 (N, B) in-distribution pixels of each image in each bin.
    """

    thresholds: Float64
    tp: Float64
    fp: Float64


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Component counts of every image.

    Attributes:
        tp: (N, T) found ground-truth components at each sIoU threshold.
        fn: (N, T) missed ones.
        fp: (N, T) false predicted components.
        siou_sum: (N,) sum of the sIoU of ground-truth components.
        ppv_sum: (N,) sum of the PPV of predicted components.
        predicted: (N,) predicted components.
    """

    tp: npt.NDArray[np.int64]
    fn: npt.NDArray[np.int64]
    fp: npt.NDArray[np.int64]
    siou_sum: Float64
    ppv_sum: Float64
    predicted: npt.NDArray[np.int64]


def resamplings(images: int, count: int, generator: np.random.Generator) -> Iterator[Float64]:
    """Draw how often each image occurs in each resampling.

    Yields:
        float64 (up to 64, images) at a time, each row summing to ``images``.
    """
    for start in range(0, count, _CHUNK):
        rows = min(_CHUNK, count - start)
        yield generator.multinomial(images, np.full(images, 1.0 / images), size=rows).astype(np.float64)


def pixel_values(histograms: ImageHistograms, weights: Float64) -> dict[str, Float64]:
    """Pooled AP, FPR95 and AUROC of weighted images.

    Args:
        histograms: Scores of N images.
        weights: (R, N), how often each image counts.

    Returns:
        Values (R,) by name; NaN where a resampling lacks a class. Inside the library only, never in a file.
    """
    tp, fp = np.cumsum(weights @ histograms.tp, axis=1), np.cumsum(weights @ histograms.fp, axis=1)
    positives, negatives = tp[:, -1:], fp[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, fpr = tp / positives, fp / negatives
        precision = np.where(tp + fp > 0, tp / (tp + fp), 1.0)
    steps = np.diff(recall, axis=1, prepend=0.0)
    reached = np.argmax(recall >= _RECALL, axis=1)
    lower = np.concatenate([np.zeros((len(recall), 1)), recall[:, :-1]], axis=1)
    undefined = ((positives == 0) | (negatives == 0))[:, 0]
    values = {
        "AP": (steps * precision).sum(axis=1),
        "FPR95": fpr[np.arange(len(fpr)), reached],
        "AUROC": (np.diff(fpr, axis=1, prepend=0.0) * (recall + lower) / 2).sum(axis=1),
    }
    return {name: np.where(undefined, np.nan, value) for name, value in values.items()}


def component_values(counts: ImageCounts, weights: Float64) -> dict[str, Float64]:
    """Pooled sIoU, PPV and F1* of weighted images; see :func:`pixel_values`."""
    tp, fn, fp = weights @ counts.tp, weights @ counts.fn, weights @ counts.fp
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "sIoU": weights @ counts.siou_sum / (tp + fn)[:, 0],
            "PPV": weights @ counts.ppv_sum / (weights @ counts.predicted),
            "F1*": (2 * tp / (2 * tp + fn + fp)).mean(axis=1),
        }


def intervals(
    histograms: ImageHistograms | None,
    counts: ImageCounts | None,
    resamples: int,
    generator: np.random.Generator,
    measured: Mapping[str, float | None],
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of pooled metrics over resampled images.

    Args:
        histograms: Scores of the images, or None for a mask without scores.
        counts: Components of the images, or None.
        resamples: Number of resamplings.
        generator: Source of random numbers.
        measured: The metrics by name; an interval is shifted by what binning the scores changes.

    Returns:
        ``{name: (low, high)}``; names without a defined interval are left out.
    """
    images = len(histograms.tp) if histograms is not None else len(counts.tp) if counts is not None else 0
    if not images or not resamples:
        return {}
    drawn: dict[str, list[Float64]] = {}
    once = np.ones((1, images))
    plain = _values(histograms, counts, once)
    for weights in resamplings(images, resamples, generator):
        for name, values in _values(histograms, counts, weights).items():
            drawn.setdefault(name, []).append(values)
    result = {}
    for name, parts in drawn.items():
        values, centre = np.concatenate(parts), measured.get(name)
        values = values[np.isfinite(values)]
        if centre is None or not values.size:
            continue
        low, high = np.percentile(values, [2.5, 97.5]) + (centre - plain[name][0])
        result[name] = (float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))
    return result


def _values(
    histograms: ImageHistograms | None, counts: ImageCounts | None, weights: Float64
) -> dict[str, Float64]:
    values = pixel_values(histograms, weights) if histograms is not None else {}
    return values | (component_values(counts, weights) if counts is not None else {})
