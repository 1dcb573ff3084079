"""Views of a whole set of score maps, on one scale."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from anomdino.viz.overlay import ScoreRange

_SAMPLES_PER_IMAGE = 4096


def common_range(scores: Iterable[npt.NDArray[np.float32]], low: float, high: float) -> ScoreRange:
    """Find the score range between two percentiles of a whole set.

    Every map is thinned to about 4096 evenly spaced pixels, so that memory stays small and the result does not depend
    on chance.

    Args:
        scores: Score maps, float32 (H, W), read one by one.
        low: Lower percentile, 0..100.
        high: Upper percentile, above ``low``.
    """
    thinned = [s.ravel()[:: max(1, s.size // _SAMPLES_PER_IMAGE)] for s in scores]
    pooled = np.concatenate(thinned) if thinned else np.zeros(1, np.float32)
    lower, upper = np.percentile(pooled.astype(np.float64), [low, high])
    return ScoreRange(float(lower), float(upper), f"{low:g} - {high:g} percentile")
