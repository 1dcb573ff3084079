"""95 % intervals over images: how far a number would move with other images of the same kind.

Pooled metrics are computed anew from each image's histogram of scores (or its counts of components), once without
each image and for images drawn with replacement: a thousand resamplings of a data set cost less than reading it once.
An interval is Student's t with as many degrees of freedom as images less one, on the log-odds of the metric, with
the larger of the two standard errors that leaving out and drawing give. Percentiles of the draws alone are far too
narrow for few images (``benchmarks/intervals.py`` measures both, ``docs/evaluation.md`` has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
PIXEL_NAMES = ("AP", "FPR95", "AUROC")
_CHUNK = 64
_RECALL = 0.95
_EDGE, _COMPONENT_EDGE = (
    1e-4,
    1e-2,
)  # keeps the log-odds of 0 and 1 finite; few components often give just these


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


def without_each(images: int) -> Iterator[Float64]:
    """Leave out one image after another.

    Yields:
        float64 (up to 64, images) at a time of ones, each row with one zero.
    """
    for start in range(0, images, _CHUNK):
        rows = min(_CHUNK, images - start)
        weights = np.ones((rows, images))
        weights[np.arange(rows), start + np.arange(rows)] = 0.0
        yield weights


def gathered(
    values: Callable[[Float64], Mapping[str, Float64]], weights: Iterator[Float64]
) -> dict[str, Float64]:
    """Compute values (R,) by name over all rows of weights that come in parts."""
    parts: dict[str, list[Float64]] = {}
    for some in weights:
        for name, found in values(some).items():
            parts.setdefault(name, []).append(found)
    return {name: np.concatenate(found) for name, found in parts.items()}


def student(freedom: int) -> float:
    """Give the 97.5 % quantile of Student's t, to 0.2 % (Abramowitz and Stegun 26.7.5, exact for 1 and 2)."""
    if freedom == 1:
        return float(np.tan(np.pi * 0.475))
    if freedom == 2:
        return float(0.95 * np.sqrt(2 / (1 - 0.95**2)))
    z = 1.959963984540054
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def reach(without: Float64, drawn: Float64) -> float | None:
    """Give how far a 95 % interval reaches to each side of a value.

    Args:
        without: (N,) values without each of the N images, at least two.
        drawn: (R,) values of drawn images; NaN where a draw has none.

    Returns:
        Student's quantile times the larger standard error, that of the jackknife or that of the draws; None where
        leaving out a single image leaves no value, for then everything hangs on this image.
    """
    if not np.isfinite(without).all():
        return None
    images = len(without)
    errors = [np.sqrt((images - 1) * without.var())]
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) > 1:
        errors.append(drawn.std(ddof=1) * np.sqrt(images / (images - 1)))
    return float(student(images - 1) * max(errors))


def intervals(
    histograms: ImageHistograms | None,
    counts: ImageCounts | None,
    resamples: int,
    generator: np.random.Generator,
    measured: Mapping[str, float | None],
) -> dict[str, tuple[float, float]]:
    """95 % intervals of pooled metrics over images, around what was measured.

    Args:
        histograms: Scores of the images, or None for a mask without scores.
        counts: Components of the images, or None.
        resamples: Number of resamplings.
        generator: Source of random numbers.
        measured: The metrics by name.

    Returns:
        ``{name: (low, high)}``, inside [0, 1]. One image has no interval, and no metric that hangs on one image.
    """
    images = len(histograms.tp) if histograms is not None else len(counts.tp) if counts is not None else 0
    if images < 2 or not resamples:
        return {}

    def log_odds(weights: Float64) -> dict[str, Float64]:
        values = {} if histograms is None else pixel_values(histograms, weights)
        values |= {} if counts is None else component_values(counts, weights)
        return {name: _log_odds(value, name) for name, value in values.items()}

    without = gathered(log_odds, without_each(images))
    drawn = gathered(log_odds, resamplings(images, resamples, generator))
    result = {}
    for name, values in without.items():
        value, far = measured.get(name), reach(values, drawn[name])
        if value is not None and far is not None:
            centre = float(_log_odds(np.array(value), name))
            result[name] = (_share(centre - far, name), _share(centre + far, name))
    return result


def _log_odds(share: Float64, name: str) -> Float64:
    edge = _EDGE if name in PIXEL_NAMES else _COMPONENT_EDGE
    return np.asarray(np.log((share + edge) / (1 - share + edge)), np.float64)


def _share(log_odds: float, name: str) -> float:
    """Undo :func:`_log_odds`, inside [0, 1]."""
    edge = _EDGE if name in PIXEL_NAMES else _COMPONENT_EDGE
    share = 1 / (1 + np.exp(-log_odds)) * (1 + 2 * edge) - edge
    return float(np.clip(share, 0, 1))
