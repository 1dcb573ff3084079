"""Whether a label holds the values that it may hold."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError

TRAIN_IDS = frozenset((*range(19), 255))


def check_train_ids(path: Path, values: npt.NDArray[np.uint8]) -> None:
    """Refuse a label, uint8 (H, W), that holds other values than Cityscapes train ids (see :func:`check_values`)."""
    check_values(path, values, TRAIN_IDS, "Cityscapes train ids 0..18 and 255 (void)")


def check_values(path: Path, values: npt.NDArray[np.uint8], allowed: frozenset[int], name: str) -> None:
    """Refuse a label, uint8 (H, W), that holds other values than allowed.

    Args:
        path: The label file, for the message.
        values: Its values.
        allowed: Values that it may hold.
        name: What these are, for the message.

    Raises:
        DataError: It does; the message has the first eight with their numbers of pixels.
    """
    table = np.ones(256, np.uint8)
    table[[*allowed]] = 0
    strange = values[cv2.LUT(values, table) > 0]
    if strange.size:
        found = (part[:8].tolist() for part in np.unique(strange, return_counts=True))
        counts = dict(zip(*found, strict=True))
        raise DataError(path, f"has label values that are not {name}: {counts}", "")
