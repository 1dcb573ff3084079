"""What a scene is painted on: colour, class, depth and foreign-object planes that always agree."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.synthetic.camera import Camera
from anomdino.synthetic.light import Light

VOID = 255
_SHIFT = 4

Colour = tuple[float, float, float]
Points = npt.NDArray[np.float64]


class Canvas:
    """Painter's canvas: what is painted later hides what was painted before, in every plane.

    Attributes:
        camera: projection.
        light: weather.
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 train ids.
        depth: (H, W) float32 metres.
        foreign: (H, W) uint8, 0 or the number of the foreign object seen.
    """

    def __init__(self, camera: Camera, light: Light) -> None:
        self.camera, self.light = camera, light
        shape = (camera.height, camera.width)
        self.image = np.zeros((*shape, 3), dtype=np.uint8)
        self.label = np.full(shape, VOID, dtype=np.uint8)
        self.depth = np.full(shape, 1e4, dtype=np.float32)
        self.foreign = np.zeros(shape, dtype=np.uint8)

    def polygon(self, points: Points, colour: Colour, label: int, depth: float) -> None:
        """Fill a polygon given as (N, 2) pixel coordinates (column, row) with one colour."""
        outline = fixed(points)
        cv2.fillPoly(self.image, outline, [min(max(float(c), 0.0), 255.0) for c in colour], shift=_SHIFT)
        cv2.fillPoly(self.label, outline, [label], shift=_SHIFT)
        cv2.fillPoly(self.depth, outline, [depth], shift=_SHIFT)
        cv2.fillPoly(self.foreign, outline, [0], shift=_SHIFT)

    def face(self, corners: npt.ArrayLike, colour: Colour, label: int, depth: float) -> None:
        """Fill a polygon given as (N, 3) road coordinates."""
        self.polygon(self.camera.project(corners), colour, label, depth)

    def stroke(self, points: Points, width: float, colour: Colour, label: int, depth: float) -> None:
        """Draw a line of `width` pixels through (N, 2) pixel coordinates, as one quad a segment."""
        for start, end in pairwise(points):
            along = end - start
            length = max(float(np.hypot(*along)), 1e-6)
            aside = np.array([-along[1], along[0]]) / length * width / 2
            self.polygon(
                np.stack([start - aside, end - aside, end + aside, start + aside]), colour, label, depth
            )

    def ellipse(
        self, centre: tuple[float, float], axes: tuple[float, float], colour: Colour, label: int, depth: float
    ) -> None:
        """Fill an axis-aligned ellipse; centre (column, row) and half axes in pixels."""
        turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        points = np.stack([centre[0] + axes[0] * np.cos(turn), centre[1] + axes[1] * np.sin(turn)], axis=1)
        self.polygon(points, colour, label, depth)

    def textured(
        self, corners: npt.ArrayLike, texture: npt.NDArray[np.uint8], label: int, depth: float
    ) -> None:
        """Stretch a texture (h, w, 3) over a quad of road coordinates, counter-clockwise from bottom-left."""
        quad = self.camera.project(corners)
        self.warped(quad, texture, label, depth)

    def warped(self, quad: Points, texture: npt.NDArray[np.uint8], label: int, depth: float) -> None:
        """Stretch a texture over a quad of pixel coordinates, in the order of `textured`."""
        height, width = self.label.shape
        low = np.floor(np.clip(quad.min(axis=0), 0, (width, height))).astype(int)
        high = np.ceil(np.clip(quad.max(axis=0), 0, (width, height))).astype(int) + 1
        if (high - low <= 1).any():
            return
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        rows, columns = texture.shape[:2]
        source = np.array([[0, rows], [columns, rows], [columns, 0], [0, 0]], dtype=np.float32)
        transform = cv2.getPerspectiveTransform(source, (quad - low).astype(np.float32))
        patch = cv2.warpPerspective(
            texture, transform, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        inside = np.zeros((size[1], size[0]), dtype=np.uint8)
        cv2.fillPoly(inside, fixed(quad - low), [1], shift=_SHIFT)
        self.stamp(np.asarray(patch, np.uint8), inside > 0, (int(low[1]), int(low[0])), label, depth)

    def stamp(
        self, patch: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_], corner: tuple[int, int], label: int,
        depth: float, foreign: int = 0,
    ) -> None:  # fmt: skip
        """Copy the pixels of `patch` where `inside`, top-left at `corner` (row, column); clipped to the frame."""
        row, column = corner
        height, width = self.label.shape
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + inside.shape[0], height), min(column + inside.shape[1], width)
        if top >= bottom or left >= right:
            return
        part = (slice(top - row, bottom - row), slice(left - column, right - column))
        target = (slice(top, bottom), slice(left, right))
        chosen = inside[part]
        cv2.copyTo(patch[part], chosen.view(np.uint8), self.image[target])
        for plane, value in ((self.label, label), (self.depth, depth), (self.foreign, foreign)):
            np.copyto(plane[target], value, where=chosen)


def fixed(points: Points) -> list[npt.NDArray[np.int32]]:
    """Points in OpenCV's fixed-point form, kept within what it can hold."""
    return [np.rint(np.clip(points, -3e4, 3e4) * (1 << _SHIFT)).astype(np.int32)]
