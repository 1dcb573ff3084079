"""What stands for an object in one frame: connected parts of the mask, those in one box together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomdino.io.boxes import Boxes
from anomdino.metrics.instances import components_as_instances

INSIDE = 0.8
"""Share of a part's pixels from which on it lies in a box."""
FILLED = 0.2
"""Share of a box's area that its parts fill before they count as one object: an emptier box holds several, or none."""


@dataclass(frozen=True, eq=False)
class FrameObjects:
    """Objects of one frame.

    Attributes:
        xyxy: float32 (N, 4), smallest boxes round their pixels, half-open, pixels of the frame.
        scores: float32 (N,), mean of the final score inside, higher = more anomalous.
        pixels: int64 (N,), number of pixels.
    """

    xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    pixels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


def objects_of(mask: npt.NDArray[np.bool_], score: npt.NDArray[np.float32], boxes: Boxes) -> FrameObjects:
    """Take the objects out of a mask.

    An object is an 8-connected part of the mask. Parts that lie in the same box, and fill a fifth of it together, are
    one object: a thing behind a pole, or of two colours. A part goes to the box of the highest confidence that has it.

    Args:
        mask: bool (H, W), the anomaly.
        score: float32 (H, W), the final score.
        boxes: Boxes of the detector in pixels of the mask.
    """
    ids, confidence = components_as_instances(mask, score)
    count = len(confidence)
    rows, columns = np.nonzero(mask)
    parts = ids[rows, columns] - 1
    pixels = np.bincount(parts, minlength=count)
    owner = _joined(parts, rows, columns, pixels, boxes)
    numbers, object_of = np.unique(owner, return_inverse=True)
    xyxy = np.empty((len(numbers), 4), np.float32)
    low = np.full((len(numbers), 2), np.iinfo(np.int64).max)
    high = np.zeros((len(numbers), 2), np.int64)
    places = np.stack([columns, rows], axis=1)
    np.minimum.at(low, object_of[parts], places)
    np.maximum.at(high, object_of[parts], places + 1)
    xyxy[:, :2], xyxy[:, 2:] = low, high
    area = np.bincount(object_of, weights=pixels, minlength=len(numbers))
    total = np.bincount(object_of, weights=pixels * confidence, minlength=len(numbers))
    return FrameObjects(xyxy, (total / area).astype(np.float32), area.astype(np.int64))


def _joined(
    parts: npt.NDArray[np.int32],
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
    pixels: npt.NDArray[np.int64],
    boxes: Boxes,
) -> npt.NDArray[np.int64]:
    """Give the object, by the number of its first part, to which each part belongs: int64 (parts,)."""
    owner, free = np.arange(len(pixels)), np.ones(len(pixels), bool)
    for box in boxes.xyxy[np.argsort(-boxes.scores, kind="stable")].astype(np.float64):
        x0, y0, x1, y1 = box
        inside = (columns + 0.5 >= x0) & (columns + 0.5 < x1) & (rows + 0.5 >= y0) & (rows + 0.5 < y1)
        share = np.bincount(parts[inside], minlength=len(pixels)) / pixels
        members = np.flatnonzero(free & (share >= INSIDE))
        if len(members) > 1 and pixels[members].sum() >= FILLED * (x1 - x0) * (y1 - y0):
            owner[members] = members[0]
        free[members] = False
    return owner
