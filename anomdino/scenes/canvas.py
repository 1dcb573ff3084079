"""The picture under construction: colour, class and what is drawn in which order."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.scenes.world import SKY, Weather

FloatImage = npt.NDArray[np.float32]
Points = list[tuple[float, float]]
_SHIFT = 4


class Canvas:
    """Colour (H, W, 3) float32 in [0, 1] before light, and class ids (H, W), painted from far to near.

    Args:
        size: (H, W).
        weather: Its haze is laid over everything by distance.
    """

    def __init__(self, size: tuple[int, int], weather: Weather) -> None:
        self.size, self.weather = size, weather
        self.colour = np.zeros((*size, 3), np.float32)
        self.label = np.full(size, SKY, np.uint8)

    def hazed(self, colour: FloatImage, ahead: FloatImage | float) -> FloatImage:
        """Mix a colour with that of the air at a distance in metres."""
        clear = np.exp(-np.asarray(ahead, np.float32) / self.weather.haze)
        clear = clear[..., None] if clear.ndim else clear
        return (colour * clear + self.weather.sky[1] * (1 - clear)).astype(np.float32)

    def polygon(self, points: Points, colour: FloatImage, label: int | None, ahead: float) -> None:
        """Fill a polygon with one colour; ``label`` ``None`` paints without changing classes."""
        corners = np.array(points, np.float64)
        if not np.isfinite(corners).all() or np.abs(corners).max() > 1e4:
            return
        fixed = np.round(corners * 2**_SHIFT).astype(np.int32)
        tone = self.hazed(np.asarray(colour, np.float32), ahead)
        cv2.fillPoly(self.colour, [fixed], tuple(float(v) for v in tone), cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.label, [fixed], int(label), cv2.LINE_8, _SHIFT)

    def stamp(
        self, patch: FloatImage, alpha: FloatImage, left: float, top: float, label: int | None, ahead: float
    ) -> npt.NDArray[np.bool_]:
        """Lay a patch over the picture.

        Args:
            patch: float32 (h, w, 3) in [0, 1].
            alpha: float32 (h, w), 1 = opaque; pixels from 0.5 on take the label.
            left: Column of the patch's left edge.
            top: Row of the patch's top edge.
            label: Class id, or ``None`` to keep what is there.
            ahead: Metres ahead, for haze.

        Returns:
            bool (H, W), the pixels that took the patch.
        """
        taken = np.zeros(self.size, bool)
        x, y = round(left), round(top)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + patch.shape[1], self.size[1]), min(y + patch.shape[0], self.size[0])
        if x1 <= x0 or y1 <= y0:
            return taken
        inner = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
        window, share = np.s_[y0:y1, x0:x1], alpha[inner][..., None]
        self.colour[window] = self.colour[window] * (1 - share) + self.hazed(patch[inner], ahead) * share
        taken[window] = alpha[inner] >= 0.5
        if label is not None:
            self.label[taken] = label
        return taken

    def shade(self, x: float, y: float, radius: tuple[float, float], strength: float) -> None:
        """Darken a soft ellipse, such as the shadow under an object."""
        if radius[0] < 0.5 or radius[1] < 0.3:
            return
        x0, x1 = max(0, int(x - 2 * radius[0])), min(self.size[1], int(x + 2 * radius[0]) + 1)
        y0, y1 = max(0, int(y - 2 * radius[1])), min(self.size[0], int(y + 2 * radius[1]) + 1)
        if x1 <= x0 or y1 <= y0:
            return
        rows, columns = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        distance = ((columns - x) / radius[0]) ** 2 + ((rows - y) / radius[1]) ** 2
        dark = 1 - np.float32(strength) * np.exp(-(distance**1.5))
        self.colour[y0:y1, x0:x1] *= dark[..., None].astype(np.float32)
