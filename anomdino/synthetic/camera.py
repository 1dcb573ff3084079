"""A pinhole camera over a flat, gently curved road."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Reals = npt.NDArray[np.floating]
NEAR = 1.2


@dataclass(frozen=True)
class Camera:
    """Where the camera stands and what it sees; lengths in metres, image measures in pixels.

    Road coordinates: `x` to the right of the road's centre line, `z` ahead, `y` up from the ground.

    Attributes:
        height: image rows.
        width: image columns.
        focal: focal length.
        horizon: row of the horizon.
        eye: height of the camera above the ground.
        offset: lateral position of the camera, to the right of the road's centre line.
        curvature: 1 / radius of the road, positive to the right.
        yaw: tangent of the angle between road and view.
    """

    height: int
    width: int
    focal: float
    horizon: float
    eye: float
    offset: float
    curvature: float
    yaw: float

    def bend(self, z: Reals) -> Reals:
        """Lateral shift of the road's centre line at the distance z."""
        return 0.5 * self.curvature * z * z + self.yaw * z

    def project(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Project (N, 3) road coordinates (x, y, z) to (N, 2) pixels (column, row); z is cut at 1.2 m."""
        x, y, z = np.asarray(points, dtype=np.float64).reshape(-1, 3).T
        z = np.maximum(z, NEAR)
        column = self.width / 2 + self.focal * (x - self.offset + self.bend(z)) / z
        row = self.horizon + self.focal * (self.eye - y) / z
        return np.stack([column, row], axis=1)

    def scale(self, z: float) -> float:
        """Pixels a metre at the distance z."""
        return self.focal / max(z, NEAR)

    def ground_grid(self) -> tuple[int, FloatArray, FloatArray]:
        """First row below the horizon, and x and z (rows, W) of the ground seen from there on."""
        first = int(np.ceil(self.horizon + 1.5))
        rows = np.arange(first, self.height, dtype=np.float32)[:, None]
        columns = np.arange(self.width, dtype=np.float32)[None, :]
        z = np.broadcast_to(
            self.focal * self.eye / (rows - np.float32(self.horizon)), (rows.size, self.width)
        )
        x = (columns - self.width / 2) * z / self.focal + self.offset - self.bend(z)
        return first, np.asarray(x, dtype=np.float32), np.ascontiguousarray(z, dtype=np.float32)
