"""Band-limited noise that tiles, the raw material of every texture."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Reals = npt.NDArray[np.floating]

TILE = 512


@lru_cache(maxsize=32)
def tile(octave: int, variant: int = 0) -> FloatArray:
    """Periodic value noise, float32 (512, 512), about zero mean and unit deviation.

    Args:
        octave: grid cells a side are 2 ** octave (1 .. 9); 9 is white noise.
        variant: another pattern of the same kind.
    """
    cells = 2**octave
    grid = np.random.default_rng((octave, variant, 4711)).standard_normal((cells, cells)).astype(np.float32)
    if cells == TILE:
        return grid
    wrapped = np.pad(grid, 3, mode="wrap")
    step = TILE // cells
    large = cv2.resize(wrapped, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    smooth = large[3 * step : 3 * step + TILE, 3 * step : 3 * step + TILE]
    return np.ascontiguousarray((smooth - smooth.mean()) / smooth.std())


@lru_cache(maxsize=32)
def fractal(first: int, last: int, variant: int = 0) -> FloatArray:
    """Sum of octaves `first` .. `last`, each 0.6 times the one before; float32 (512, 512), unit deviation."""
    total = np.zeros((TILE, TILE), dtype=np.float32)
    for index, octave in enumerate(range(first, last + 1)):
        total += 0.6**index * tile(octave, variant)
    return np.ascontiguousarray(total / total.std())


def wrap(values: Reals, period: float) -> FloatArray:
    """`values` modulo `period`, float32; several times faster than `numpy.mod`."""
    if period == 1:
        turns = np.asarray(values, dtype=np.float32)
        whole = np.floor(turns)
        return np.subtract(turns, whole, out=whole)
    turns = np.asarray(values * np.float32(1 / period), dtype=np.float32)
    turns -= np.floor(turns)
    turns *= np.float32(period)
    return turns


def sample(noise: FloatArray, u: Reals, v: Reals) -> FloatArray:
    """Bilinear look-up with wrap-around; u, v float32 (H, W) in tiles (1.0 = one period)."""
    x, y = wrap(u, 1.0), wrap(v, 1.0)
    if not x.size:  # OpenCV refuses it
        return x
    x *= TILE
    y *= TILE
    return np.asarray(cv2.remap(noise, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), dtype=np.float32)


def pick(noise: FloatArray, u: Reals, v: Reals) -> FloatArray:
    """Nearest look-up with wrap-around for scattered points; u, v float32 (N,) in tiles."""
    columns, rows = wrap(u, 1.0) * TILE, wrap(v, 1.0) * TILE
    return noise[rows.astype(np.intp) % TILE, columns.astype(np.intp) % TILE]
