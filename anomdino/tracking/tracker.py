"""Objects followed from look to look: which object of this frame is which of the frames before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.errors import BackendMissing
from anomdino.tracking.motion import BoxFlow, Floats, Thumbnail, thumbnail

PATIENCE = 3
"""Looks one behind the other in which an object may be missing; then it is gone, and what comes later is another."""
OVERLAP = 0.2
"""IoU of the grown boxes from which on they may be the same object."""
MARGIN, LEAST_MARGIN = 0.25, 0.005
"""By how much boxes grow at each side before they are compared: a share of their own side, and of the frame's longer
side at least, so that a few pixels do not part small ones (as in buffered IoU, Yang et al. 2023)."""


@dataclass(eq=False)
class Track:
    """An object that is followed.

    Attributes:
        number: Its number, the first is 1; no two of a tracker are equal.
        box: float64 (4,), xyxy, where it is in the latest picture, seen or moved along.
        looks: In how many looks it was seen.
        missed: In how many looks since it was not.
    """

    number: int
    box: Floats
    looks: int = 1
    missed: int = 0


class Tracker:
    """Numbers the objects of a video or camera, the same object with the same number.

    Between looks, pictures may be shown (:meth:`follow`): boxes move along with them (:class:`BoxFlow`). In a look,
    objects and boxes are assigned to each other so that the sum of the overlaps is the largest (Hungarian method).

    Args:
        patience: Looks in which an object may be missing before it is forgotten; so is one whose middle left the frame.

    Raises:
        BackendMissing: SciPy is not installed.
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        require_scipy()
        self._patience, self._flow, self._count = patience, BoxFlow(), 0
        self.tracks: list[Track] = []

    def follow(self, picture: Thumbnail) -> None:
        """Move the boxes along to a picture in which nothing was looked for (:func:`.motion.thumbnail`).

        One whose box is a picture's side away from it, or larger than two of them, is forgotten: after a cut, boxes may
        go anywhere.
        """
        boxes = np.array([track.box for track in self.tracks], np.float64).reshape(-1, 4)
        for track, box in zip(self.tracks, self._flow.advance(picture, boxes), strict=True):
            track.box = box
        self.tracks = [track for track in self.tracks if _is_near(track.box, picture.size)]

    def look(self, image: npt.NDArray[np.uint8], found: npt.NDArray[np.float32]) -> list[Track]:
        """Take the objects of a frame.

        Args:
            image: uint8 (H, W, 3), RGB.
            found: Boxes of the objects, float32 (N, 4), xyxy.

        Returns:
            The track of each object, N of them, new ones for objects that were not there before.
        """
        picture = thumbnail(image)
        self.follow(picture)
        before = np.array([track.box for track in self.tracks], np.float64).reshape(-1, 4)
        boxes = np.asarray(found, np.float64).reshape(-1, 4)
        margin = LEAST_MARGIN * max(image.shape[:2])
        seen: dict[int, Track] = {}
        for track in self.tracks:
            track.missed += 1
        for old, new in assigned(overlaps(grown(before, margin), grown(boxes, margin)), OVERLAP):
            track = self.tracks[old]
            track.box, track.looks, track.missed = boxes[new], track.looks + 1, 0
            seen[new] = track
        self.tracks = [track for track in self.tracks if self._stays(track, picture.size)]
        for new, box in enumerate(boxes):
            if new not in seen:
                self._count += 1
                seen[new] = Track(self._count, box)
                self.tracks.append(seen[new])
        return [seen[new] for new in range(len(boxes))]

    def _stays(self, track: Track, size: Floats) -> bool:
        middle = (track.box[:2] + track.box[2:]) / 2
        inside = bool((middle >= 0).all() and (middle < size).all())
        return track.missed == 0 or (track.missed <= self._patience and inside)


def _is_near(box: Floats, size: Floats) -> bool:
    near = (box[2:] > -size).all() and (box[:2] < 2 * size).all()
    return bool(near and (box[2:] - box[:2] <= 2 * size).all())


def grown(boxes: Floats, margin: float) -> Floats:
    """Grow boxes, float64 (N, 4), at each side by :data:`MARGIN` of their own, and by ``margin`` pixels at least."""
    sides = np.maximum(MARGIN * (boxes[:, 2:] - boxes[:, :2]), margin)
    return np.concatenate([boxes[:, :2] - sides, boxes[:, 2:] + sides], axis=1)


def overlaps(first: Floats, second: Floats) -> Floats:
    """Give the IoU of each box of the first with each of the second, float64 (N, M), in [0, 1]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return np.asarray(both / (areas[0][:, None] + areas[1][None] - both), np.float64)


def assigned(benefit: Floats, least: float) -> list[tuple[int, int]]:
    """Assign rows and columns to each other, one to one, so that the sum of the benefits is the largest.

    Args:
        benefit: float64 (N, M), 0 or more.
        least: Pairs with less are not assigned, and count nothing.

    Returns:
        Pairs of row and column, in the order of the rows.
    """
    rows, columns = require_scipy()(np.where(benefit >= least, benefit, 0.0), maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if benefit[i, j] >= least]


def require_scipy() -> Any:
    """Give the function that assigns.

    Raises:
        BackendMissing: SciPy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        cure = "pip install 'anomdino[video]'"
        raise BackendMissing("scipy", "is not installed; following objects needs it", cure) from error
    return linear_sum_assignment
