"""How boxes move from one frame to the next, by the flow of the picture in and around them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SIDE = 640
"""Longer side of the grey picture in which points are followed."""
PER_BOX = 6
"""Points along each side of a box."""
PER_FRAME = (12, 8)
"""Points across and down the frame, for the motion of the camera."""
SMALLEST = 16.0
"""Pixels of the grey picture over which a box's points are spread at least: small boxes move with what is around them."""
FEWEST = 8
"""Points of a box that must be found again; with fewer it moves with the camera."""
RETURNS = 0.7
"""Pixels of the grey picture by which a point that is followed there and back may miss its place."""
GROWTH = (0.8, 1.25)
"""By how much a box shrinks or grows between two pictures, at most."""
WINDOW, LEVELS = (21, 21), 4
"""Of Lucas-Kanade: pixels that are compared round a point, and how often the pictures are halved."""


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """What is kept of a picture in order to follow boxes through it.

    Attributes:
        grey: uint8 (h, w), its longer side at most :data:`SIDE`.
        scale: Sides of ``grey`` in sides of the picture, at most 1.
    """

    grey: npt.NDArray[np.uint8]
    scale: float

    @property
    def size(self) -> Floats:
        """Width and height of the picture in its own pixels, float64 (2,)."""
        return np.array(self.grey.shape[::-1], np.float64) / self.scale


def thumbnail(image: npt.NDArray[np.uint8]) -> Thumbnail:
    """Shrink a picture, uint8 (H, W, 3), RGB."""
    scale = min(1.0, SIDE / max(image.shape[:2]))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if scale < 1:
        size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return Thumbnail(np.asarray(grey, np.uint8), scale)


class BoxFlow:
    """Moves boxes along with what they show.

    Points on a grid in each box are followed by pyramidal Lucas-Kanade (Bouguet 2000) there and back; the box takes the
    median of their shifts and of the changes of their distances, as in Median Flow (Kalal et al. 2010). A box in which
    too few points are found again, on bare asphalt for instance, takes the motion of the camera: a similarity fitted to
    points of the whole frame, by RANSAC.
    """

    def __init__(self) -> None:
        self._before: Thumbnail | None = None

    def advance(self, picture: Thumbnail, boxes: Floats) -> Floats:
        """Move boxes from the picture before to this one.

        Args:
            picture: Of :func:`thumbnail`; a first one, or one of another size, moves nothing.
            boxes: float64 (N, 4), xyxy in pixels of the whole picture.

        Returns:
            float64 (N, 4), in the same pixels; they may leave the picture.
        """
        before, self._before = self._before, picture
        if before is None or not len(boxes):
            return boxes
        if (before.grey.shape, before.scale) != (picture.grey.shape, picture.scale):
            return boxes
        return _moved(before.grey, picture.grey, boxes * picture.scale) / picture.scale


def _moved(before: npt.NDArray[np.uint8], now: npt.NDArray[np.uint8], boxes: Floats) -> Floats:
    height, width = now.shape
    groups = [_grid(_spread(box), (PER_BOX, PER_BOX)) for box in boxes]
    groups.append(_grid(np.array([0.0, 0.0, width, height]), PER_FRAME))
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    start = np.concatenate(groups)
    end, good = _followed(before, now, start)
    camera = _camera(start[good & (owner == len(boxes))], end[good & (owner == len(boxes))])
    moved = np.empty_like(boxes)
    for index, box in enumerate(boxes):
        mine = good & (owner == index)
        if np.count_nonzero(mine) >= FEWEST:
            shift, growth = _median_motion(start[mine], end[mine])
            middle = (box[:2] + box[2:]) / 2 + shift
        else:
            middle = camera[:, :2] @ ((box[:2] + box[2:]) / 2) + camera[:, 2]
            growth = float(np.hypot(*camera[:, 0]))
        half = (box[2:] - box[:2]) / 2 * float(np.clip(growth, *GROWTH))
        moved[index] = np.concatenate([middle - half, middle + half])
    return moved


def _spread(box: Floats) -> Floats:
    """Give a box as it is, or as large as points need to be found again, round the same middle."""
    middle, half = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, SMALLEST / 2)
    return np.concatenate([middle - half, middle + half])


def _grid(box: Floats, counts: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Give points spread evenly over a box: float32 (N, 2), x and y."""
    across = box[0] + (np.arange(counts[0]) + 0.5) / counts[0] * (box[2] - box[0])
    down = box[1] + (np.arange(counts[1]) + 0.5) / counts[1] * (box[3] - box[1])
    return np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2).astype(np.float32)


def _followed(
    before: npt.NDArray[np.uint8], now: npt.NDArray[np.uint8], points: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Follow points there and back; give where they are, and which are to be believed."""
    end, found = _lucas_kanade(before, now, points)
    back, returned = _lucas_kanade(now, before, end)
    missed = np.linalg.norm(back - points, axis=1)
    height, width = now.shape
    inside = (end >= 0).all(axis=1) & (end < (width, height)).all(axis=1)
    return end, found & returned & inside & (missed < RETURNS)


def _lucas_kanade(
    before: npt.NDArray[np.uint8], now: npt.NDArray[np.uint8], points: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Give where points, float32 (N, 2), went, and which were found."""
    start = points[:, None]
    end, found, _ = cv2.calcOpticalFlowPyrLK(before, now, start, start.copy(), None, None, WINDOW, LEVELS)
    return np.asarray(end, np.float32)[:, 0], np.asarray(found)[:, 0] == 1


def _median_motion(start: npt.NDArray[np.float32], end: npt.NDArray[np.float32]) -> tuple[Floats, float]:
    """Give the median shift, float64 (2,), and the median factor of the distances between points."""
    shift = np.median((end - start).astype(np.float64), axis=0)
    first, second = np.triu_indices(len(start), 1)
    distance = np.linalg.norm((start[first] - start[second]).astype(np.float64), axis=1)
    after = np.linalg.norm((end[first] - end[second]).astype(np.float64), axis=1)
    return shift, float(np.median(after / distance))


def _camera(start: npt.NDArray[np.float32], end: npt.NDArray[np.float32]) -> Floats:
    """Fit the similarity of the frame, float64 (2, 3); none can be fitted to a few points, and nothing moves."""
    still = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    if len(start) < FEWEST:
        return still
    fitted, _ = cv2.estimateAffinePartial2D(start, end, ransacReprojThreshold=2.0)
    return still if fitted is None or not np.isfinite(fitted).all() else np.asarray(fitted, np.float64)
