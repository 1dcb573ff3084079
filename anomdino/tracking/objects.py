"""What stands for an object in one frame: connected parts of the mask, those in one box together."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.io.boxes import Boxes

INSIDE = 0.8
"""Share of a part's pixels from which on it lies in a box."""
FILLED = 0.2
"""Share of a box's area that its parts fill before they count as one object: an emptier box holds several, or none."""

MOST = 200
"""Objects of a frame at most, the largest; a mask that falls into thousands of parts has no objects to follow."""


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
    Of more than 200 objects the largest are taken.

    Args:
        mask: bool (H, W), the anomaly.
        score: float32 (H, W), the final score.
        boxes: Boxes of the detector in pixels of the mask.
    """
    count, ids, about, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=8
    )
    left, top, width, height, pixels = about[1:].T.astype(np.int64)
    inside = np.flatnonzero(mask)
    total = np.bincount(ids.ravel()[inside], weights=score.ravel()[inside], minlength=count)[1:]
    owner = _joined(np.asarray(ids), pixels, boxes)
    numbers, object_of = np.unique(owner, return_inverse=True)
    low = np.full((len(numbers), 2), np.iinfo(np.int64).max)
    high = np.zeros((len(numbers), 2), np.int64)
    np.minimum.at(low, object_of, np.stack([left, top], axis=1))
    np.maximum.at(high, object_of, np.stack([left + width, top + height], axis=1))
    area = np.bincount(object_of, weights=pixels, minlength=len(numbers))
    mean = np.bincount(object_of, weights=total, minlength=len(numbers)) / area
    xyxy = np.concatenate([low, high], axis=1).astype(np.float32)
    kept = np.sort(np.argsort(-area, kind="stable")[:MOST])
    return FrameObjects(xyxy[kept], mean[kept].astype(np.float32), area[kept].astype(np.int64))


def _joined(ids: npt.NDArray[np.int32], pixels: npt.NDArray[np.int64], boxes: Boxes) -> npt.NDArray[np.int64]:
    """Give the object, by the number of its first part, to which each part belongs: int64 (parts,)."""
    owner, free = np.arange(len(pixels)), np.ones(len(pixels), bool)
    if len(pixels) < 2:
        return owner
    for box in boxes.xyxy[np.argsort(-boxes.scores, kind="stable")].astype(np.float64):
        x0, y0, x1, y1 = np.ceil(np.maximum(box, 0) - 0.5).astype(int)  # pixels whose centres are inside
        there = np.bincount(ids[y0:y1, x0:x1].ravel(), minlength=len(pixels) + 1)[1:]
        members = np.flatnonzero(free & (there >= INSIDE * pixels))
        if len(members) > 1 and pixels[members].sum() >= FILLED * (box[2] - box[0]) * (box[3] - box[1]):
            owner[members] = members[0]
        free[members] = False
    return owner
