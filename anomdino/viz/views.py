"""A close view of one object, for lists of what was found."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.viz.overlay import MASK_COLOUR, PAPER, outline

SIZE = (320, 240)
"""Width and height of a view."""
AROUND = 2.5
"""Sides of what a view shows, in sides of the object."""
CLOSEST = 96
"""Pixels of the photo across a view, at least."""


def object_view(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], box: Sequence[float]
) -> npt.NDArray[np.uint8]:
    """Cut an object out of a photo with what is around it, and outline what is anomalous there.

    Args:
        image: uint8 (H, W, 3), RGB.
        mask: bool (H, W), the anomaly.
        box: Of the object, xyxy, pixels of ``image``.

    Returns:
        uint8 (240, 320, 3), RGB; what is shown lies in the photo, with dark beside it where that is of another shape.
    """
    x0, y0, x1, y1 = box
    width = max(AROUND * max(x1 - x0, (y1 - y0) * SIZE[0] / SIZE[1]), CLOSEST)
    rows = _within((y0 + y1) / 2, width * SIZE[1] / SIZE[0], image.shape[0])
    columns = _within((x0 + x1) / 2, width, image.shape[1])
    shown = image[rows, columns]
    scale = min(SIZE[0] / shown.shape[1], SIZE[1] / shown.shape[0])
    size = (max(1, round(shown.shape[1] * scale)), max(1, round(shown.shape[0] * scale)))
    small = np.array(cv2.resize(shown, size, interpolation=cv2.INTER_AREA), np.uint8)
    share = cv2.resize(mask[rows, columns].astype(np.float32), size, interpolation=cv2.INTER_AREA)
    outline(small, np.asarray(share >= 0.5, np.bool_), MASK_COLOUR, 1)
    view = np.full((SIZE[1], SIZE[0], 3), PAPER, np.uint8)
    top, left = (SIZE[1] - size[1]) // 2, (SIZE[0] - size[0]) // 2
    view[top : top + size[1], left : left + size[0]] = small
    return view


def _within(middle: float, length: float, whole: int) -> slice:
    """Give a stretch of pixels round a place, moved and, if need be, shortened so that it lies in 0 .. ``whole``."""
    length = min(round(length), whole)
    first = min(max(round(middle - length / 2), 0), whole - length)
    return slice(first, first + length)
