"""Score maps on disk: npz with the key ``arr_0``, as S2M reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError
from anomdino.io.atomic import atomic_path
from anomdino.io.npz import DAMAGED, open_npz, write_npz

KEY = "arr_0"  # what numpy calls the first unnamed array


def write_score(path: Path | str, score: npt.NDArray[np.float32]) -> None:
    """Write an anomaly score map, whole or not at all, with the same bytes for the same values.

    Args:
        path: Final ``.npz`` file.
        score: float32 (H, W), higher = more anomalous.

    Raises:
        DataError: The map is not 2-D or holds NaN or infinity; nothing is written.
    """
    score = np.asarray(score, dtype=np.float32)
    check_score(path, score)
    with atomic_path(path) as temporary:
        write_npz(temporary, {KEY: score})


def read_score(path: Path | str, size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
    """Read an anomaly score map.

    Args:
        path: An ``.npz`` file with the key ``arr_0``.
        size: The (H, W) that the map must have, usually the image's.

    Returns:
        float32 (H, W).

    Raises:
        DataError: The file is missing or damaged, lacks the key, or the map has another size, NaN or infinity.
    """
    try:
        with open_npz(path) as stored:
            if KEY not in stored:
                raise DataError(
                    path, f"has no array '{KEY}' but {sorted(stored)}", "save it with np.savez(path, score)"
                )
            score = stored[KEY]
    except FileNotFoundError as error:
        raise DataError(path, "does not exist", "run the score stage first: `dvc repro score`") from error
    except DAMAGED as error:
        raise DataError(
            path, f"is no score file or is damaged ({error})", "remove it and run the score stage"
        ) from error
    score = np.asarray(score, dtype=np.float32)
    check_score(path, score, size)
    return score


def check_score(
    path: object,
    score: npt.NDArray[np.float32],
    size: tuple[int, int] | None = None,
    cure: str = "fix the method that made it",
) -> None:
    """Check that a score map is (H, W), finite, and of the given size.

    Args:
        path: What the message names: the map's file, or its image.
        score: float32 (H, W).
        size: The (H, W) that the map must have.
        cure: What the message advises where values are not finite.

    Raises:
        DataError: It is not; the message counts the bad pixels and gives the range of the finite ones.
    """
    if score.ndim != 2:
        raise DataError(
            path, f"has shape {score.shape}, a score map is (H, W)", "write one map for each image"
        )
    if size is not None and score.shape != tuple(size):
        raise DataError(
            path,
            f"is {score.shape[0]} x {score.shape[1]}, the image is {size[0]} x {size[1]} (H x W)",
            "write the score at the size of its image, or remove the map of another one",
        )
    finite = np.isfinite(score)
    if not finite.all():
        good = score[finite]
        span = f"finite values {good.min():.4g} .. {good.max():.4g}" if good.size else "no finite value"
        raise DataError(
            path,
            f"holds {int((~finite).sum())} NaN or infinite pixels of {score.size} ({span})",
            cure,
        )
