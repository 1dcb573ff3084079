"""Scores of one frame, split by label and sorted once, from which all pixel metrics are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class SortedScores:
    """Scores inside the region of interest.

    Attributes:
        positives: Scores of anomalous pixels, ascending.
        negatives: Scores of in-distribution pixels, ascending.
    """

    positives: FloatArray
    negatives: FloatArray

    @property
    def empty(self) -> bool:
        """Whether the region of interest holds no pixel."""
        return not (self.positives.size or self.negatives.size)

    @staticmethod
    def merged(parts: Sequence[SortedScores]) -> SortedScores:
        """Join the scores of parts of a frame; runs that are sorted already are merged, not sorted again."""
        positives = np.concatenate([part.positives for part in parts])
        negatives = np.concatenate([part.negatives for part in parts])
        positives.sort(kind="stable")
        negatives.sort(kind="stable")
        return SortedScores(positives, negatives)


def sort_scores(score: FloatArray, label: npt.NDArray[np.integer]) -> SortedScores:
    """Split scores by label and sort them.

    Args:
        score: Float array of any shape, higher = more anomalous; integers and booleans are taken as float64.
        label: Integers of the same shape: 0 in-distribution, 1 anomaly; any other value is left out.

    Raises:
        ValueError: Shapes differ, or a score inside the region of interest is NaN or infinite.
    """
    if score.shape != label.shape:
        raise ValueError(f"score has shape {score.shape}, label {label.shape}")
    if score.dtype.kind != "f":
        score = score.astype(np.float64)
    positives, negatives = score[label == 1], score[label == 0]
    for values in (positives, negatives):
        values.sort()
        if values.size and not (np.isfinite(values[0]) and np.isfinite(values[-1])):
            raise ValueError("scores hold NaN or infinity")
    return SortedScores(positives, negatives)
