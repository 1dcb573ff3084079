"""Noise and surface patterns that scenes and objects are textured with."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]
TILE = 256


def fractal_noise(rng: np.random.Generator, size: tuple[int, int], cell: float, octaves: int = 4) -> FloatImage:
    """Sum octaves of smooth noise: float32 (H, W) in [0, 1], features of about ``cell`` pixels and smaller."""
    height, width = size
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        step = max(1.0, cell / 2**octave)
        grid = rng.random((int(height / step) + 2, int(width / step) + 2), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    low, high = total.min(), total.max()
    return (total - low) / max(high - low, np.float32(1e-6))


@lru_cache(maxsize=1)
def ground_tile() -> FloatImage:
    """A fixed grain that repeats without a seam, float32 (256, 256) in [-1, 1]."""
    grain = np.random.default_rng(20).standard_normal((TILE, TILE)).astype(np.float32)
    mixed = grain + 1.5 * cv2.GaussianBlur(np.tile(grain, (3, 3)), (0, 0), 3)[TILE : 2 * TILE, TILE : 2 * TILE] * 4
    return np.clip(mixed / 3, -1, 1)


def sample_tile(x: FloatImage, z: FloatImage, metres: float) -> FloatImage:
    """Look the grain up at ground coordinates, one grain cell per ``metres``: float32, shape of ``x``."""
    columns = np.floor(x / metres).astype(np.int64) % TILE
    rows = np.floor(z / metres).astype(np.int64) % TILE
    return ground_tile()[rows, columns]


def pattern(rng: np.random.Generator, kind: str, size: tuple[int, int], colours: FloatImage) -> FloatImage:
    """Paint a surface pattern.

    Args:
        rng: Source of random numbers.
        kind: plain, stripes, checker, noise, dots, rings, plaid, gradient or spots.
        size: (H, W).
        colours: float32 (3, 3), three RGB colours in [0, 1].

    Returns:
        float32 (H, W, 3) in [0, 1].
    """
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.12, 0.4) * max(height, width)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = -np.sin(angle) * x + np.cos(angle) * y
    centre = np.hypot(x - width / 2, y - height / 2)
    soft = fractal_noise(rng, size, max(height, width) / 3)
    shares: dict[str, FloatImage] = {
        "plain": np.zeros(size, np.float32),
        "stripes": ((along / period) % 1 > 0.5).astype(np.float32),
        "checker": (((along // period) + (across // period)) % 2).astype(np.float32),
        "noise": soft,
        "dots": (np.hypot((along % period) - period / 2, (across % period) - period / 2) < period / 3.2).astype(np.float32),
        "rings": ((centre / (0.6 * period)) % 1 > 0.5).astype(np.float32),
        "plaid": (((along / period) % 1 > 0.6).astype(np.float32) + ((across / period) % 1 > 0.6)) / 2,
        "gradient": np.clip(y / max(height - 1, 1), 0, 1),
        "spots": (soft > 0.58).astype(np.float32),
    }
    share = shares[kind][..., None].astype(np.float32)
    grain = 0.06 * (soft[..., None] - 0.5)
    return np.clip(colours[0] * (1 - share) + colours[1] * share + grain, 0, 1).astype(np.float32)
