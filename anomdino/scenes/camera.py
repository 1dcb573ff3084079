"""A pinhole camera above a flat road."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Camera:
    """Where the road is seen from.

    Attributes:
        height: Rows of the image.
        width: Columns of the image.
        horizon: Row of the horizon.
        centre: Column towards which straight roads run.
        focal: Focal length in pixels.
        above: Metres above the road.
    """

    height: int
    width: int
    horizon: float
    centre: float
    focal: float
    above: float

    def ground(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Ground coordinates in metres, sideways and ahead, of the pixels below the horizon: two (h, W) maps."""
        first = int(np.ceil(self.horizon)) + 1
        rows = np.arange(first, self.height, dtype=np.float32)[:, None] + 0.5
        columns = np.arange(self.width, dtype=np.float32)[None] + 0.5
        ahead = np.broadcast_to(self.above * self.focal / (rows - self.horizon), (len(rows), self.width))
        sideways = (columns - self.centre) * ahead / self.focal
        return sideways.astype(np.float32), ahead.astype(np.float32)

    def project(self, sideways: float, up: float, ahead: float) -> tuple[float, float]:
        """Image position (x, y) of a point in metres."""
        return self.centre + self.focal * sideways / ahead, self.horizon + self.focal * (self.above - up) / ahead

    def pixels(self, metres: float, ahead: float) -> float:
        """Length in pixels of something upright at a distance."""
        return self.focal * metres / ahead

    def distance(self, row: float) -> float:
        """Metres ahead at which the ground is seen in a row below the horizon."""
        return self.above * self.focal / max(row - self.horizon, 1e-3)
