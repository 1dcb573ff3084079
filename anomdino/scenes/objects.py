"""Foreign objects: families of shapes and patterns, some for training, others for evaluation alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.scenes.noise import fractal_noise, pattern

FloatImage = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
_UNIT = 128


@dataclass(frozen=True)
class Family:
    """A family of objects.

    Attributes:
        outline: Draws the silhouette into a mask of 128 x 128, the ground at the lowest row.
        metres: Least and greatest height.
        aspect: Width over height.
    """

    outline: Callable[[np.random.Generator], Mask]
    metres: tuple[float, float]
    aspect: tuple[float, float]


def _blank() -> Mask:
    return np.zeros((_UNIT, _UNIT), np.uint8)


def _fill(mask: Mask, points: list[tuple[float, float]]) -> Mask:
    cv2.fillPoly(mask, [np.round(np.array(points) * _UNIT * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask


def _disc(mask: Mask, x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Mask:
    centre, axes = (round(x * _UNIT), round(y * _UNIT)), (max(1, round(rx * _UNIT)), max(1, round(ry * _UNIT)))
    cv2.ellipse(mask, centre, axes, turn, 0, 360, 255, -1, cv2.LINE_AA)
    return mask


def _line(mask: Mask, a: tuple[float, float], b: tuple[float, float], width: float) -> Mask:
    ends = [(round(x * _UNIT), round(y * _UNIT)) for x, y in (a, b)]
    cv2.line(mask, ends[0], ends[1], 255, max(1, round(width * _UNIT)), cv2.LINE_AA)
    return mask


def _ball(rng: np.random.Generator) -> Mask:
    return _disc(_blank(), 0.5, 0.5, 0.48, 0.49)


def _crate(rng: np.random.Generator) -> Mask:
    lean, top = rng.uniform(-0.1, 0.1), rng.uniform(0.02, 0.15)
    return _fill(_blank(), [(0.05, 1), (0.05 + lean, top), (0.6, 0), (0.95 + min(lean, 0), top), (0.95, 0.95), (0.6, 1)])


def _barrel(rng: np.random.Generator) -> Mask:
    mask = _fill(_blank(), [(0.1, 0.12), (0.9, 0.12), (0.97, 0.5), (0.9, 0.9), (0.1, 0.9), (0.03, 0.5)])
    return _disc(_disc(mask, 0.5, 0.12, 0.4, 0.1), 0.5, 0.9, 0.4, 0.09)


def _sack(rng: np.random.Generator) -> Mask:
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    reach = rng.uniform(0.36, 0.5, 12)
    return _fill(_blank(), [(0.5 + r * np.cos(a), 0.5 + r * np.sin(a)) for r, a in zip(reach, angles, strict=True)])


def _cone(rng: np.random.Generator) -> Mask:
    return _fill(_blank(), [(0.43, 0), (0.57, 0), (0.8, 0.9), (0.98, 0.9), (0.98, 1), (0.02, 1), (0.02, 0.9), (0.2, 0.9)])


def _creature(rng: np.random.Generator) -> Mask:
    mask = _disc(_blank(), 0.48, 0.45, 0.36, 0.22)
    mask = _disc(mask, 0.86, 0.28, 0.13, 0.12)
    for x in (0.2, 0.33, 0.62, 0.75):
        _line(mask, (x, 0.5), (x + rng.uniform(-0.05, 0.05), 0.98), 0.07)
    return _line(mask, (0.14, 0.4), (0.03, 0.2), 0.05)


def _plank(rng: np.random.Generator) -> Mask:
    low, high = sorted(rng.uniform(0.1, 0.9, 2))
    return _fill(_blank(), [(0, 1 - 0.3 * low), (0.05, 0.6 - 0.3 * low), (1, 0.1 * high), (1, 0.5), (0.1, 1)])


def _stag(rng: np.random.Generator) -> Mask:
    mask = _disc(_blank(), 0.42, 0.55, 0.3, 0.15, rng.uniform(-8, 8))
    _fill(mask, [(0.58, 0.5), (0.72, 0.22), (0.82, 0.26), (0.7, 0.62)])
    _disc(mask, 0.82, 0.24, 0.12, 0.06, 25)
    for x in (0.18, 0.28, 0.56, 0.65):
        _line(mask, (x, 0.6), (x + rng.uniform(-0.06, 0.06), 0.99), 0.04)
    for side in (-1, 1):
        _line(mask, (0.78, 0.2), (0.78 + 0.12 * side, 0.02), 0.025)
        _line(mask, (0.78 + 0.07 * side, 0.1), (0.78 + 0.16 * side, 0.12), 0.02)
    return mask


def _tent(rng: np.random.Generator) -> Mask:
    peak = rng.uniform(0.35, 0.65)
    return _fill(_blank(), [(peak, 0.0), (0.99, 0.97), (0.75, 1), (peak, 0.35), (0.25, 1), (0.01, 0.97)])


def _umbrella(rng: np.random.Generator) -> Mask:
    mask = _disc(_blank(), 0.5, 0.42, 0.48, 0.4)
    mask[round(0.42 * _UNIT) :] = 0
    for x in (0.18, 0.5, 0.82):
        _disc(mask, x, 0.42, 0.16, 0.07)
    return _line(mask, (0.5, 0.4), (0.5, 0.98), 0.035)


def _chair(rng: np.random.Generator) -> Mask:
    mask = _fill(_blank(), [(0.1, 0.5), (0.9, 0.5), (0.95, 0.62), (0.05, 0.62)])
    _fill(mask, [(0.1, 0.0), (0.85, 0.02), (0.85, 0.36), (0.1, 0.34)])
    for x in (0.12, 0.86):
        _line(mask, (x, 0.02), (x, 0.98), 0.06)
    for x in (0.3, 0.68):
        _line(mask, (x, 0.55), (x, 0.9), 0.05)
    return mask


def _balloons(rng: np.random.Generator) -> Mask:
    mask = _blank()
    for _ in range(int(rng.integers(3, 6))):
        x, y = rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.5)
        _disc(mask, x, y, 0.16, 0.15)
        _line(mask, (x, y), (0.5, 0.97), 0.015)
    return _disc(mask, 0.5, 0.95, 0.1, 0.05)


def _tube(rng: np.random.Generator) -> Mask:
    mask, points = _blank(), np.linspace(0.1, 0.9, 7)
    rows = 0.5 + 0.3 * np.sin(points * rng.uniform(5, 9) + rng.uniform(0, 6))
    for i in range(6):
        _line(mask, (points[i], rows[i]), (points[i + 1], rows[i + 1]), 0.2)
    return mask


TRAINING: dict[str, Family] = {
    "ball": Family(_ball, (0.25, 1.1), (0.9, 1.1)),
    "crate": Family(_crate, (0.3, 1.2), (0.8, 1.6)),
    "barrel": Family(_barrel, (0.6, 1.2), (0.6, 0.9)),
    "sack": Family(_sack, (0.25, 0.9), (0.9, 1.7)),
    "cone": Family(_cone, (0.4, 0.9), (0.6, 0.8)),
    "creature": Family(_creature, (0.35, 1.3), (1.1, 1.7)),
    "plank": Family(_plank, (0.15, 0.4), (2.0, 4.0)),
}
EVALUATION: dict[str, Family] = {
    "stag": Family(_stag, (0.9, 1.9), (0.9, 1.3)),
    "tent": Family(_tent, (0.9, 1.9), (1.0, 1.6)),
    "umbrella": Family(_umbrella, (0.5, 1.4), (0.9, 1.2)),
    "chair": Family(_chair, (0.6, 1.2), (0.7, 1.0)),
    "balloons": Family(_balloons, (0.7, 1.8), (0.7, 1.0)),
    "tube": Family(_tube, (0.25, 0.6), (1.8, 3.0)),
}
TRAINING_PATTERNS = ("plain", "stripes", "checker", "noise")
EVALUATION_PATTERNS = ("dots", "rings", "plaid", "gradient", "spots")


def draw_object(
    rng: np.random.Generator, family: Family, patterns: tuple[str, ...], height: int, aspect: float
) -> tuple[FloatImage, FloatImage]:
    """Draw an object.

    Args:
        rng: Source of random numbers.
        family: Its shape.
        patterns: Patterns to choose from.
        height: Height in pixels.
        aspect: Width over height.

    Returns:
        Colour float32 (h, w, 3) in [0, 1] and opacity float32 (h, w).
    """
    width = max(2, round(height * aspect))
    mask = family.outline(rng)
    if rng.random() < 0.5:
        mask = mask[:, ::-1]
    alpha = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    hue, value = rng.uniform(0, 1), rng.uniform(0.35, 0.95)
    base = cv2.cvtColor(np.float32([[[360 * hue, rng.uniform(0.15, 0.95), value]]]), cv2.COLOR_HSV2RGB)[0, 0]
    other = np.clip(base * rng.uniform(0.3, 0.7) + rng.uniform(0, 0.5, 3), 0, 1)
    colours = np.stack([base, other, 1 - base]).astype(np.float32)
    paint = pattern(rng, str(rng.choice(patterns)), (height, width), colours)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    light = 1.12 - 0.35 * y / height - 0.25 * np.abs(x / width - rng.uniform(0.25, 0.6))
    relief = 0.9 + 0.2 * fractal_noise(rng, (height, width), max(3.0, height / 4))
    return np.clip(paint * (light * relief)[..., None], 0, 1).astype(np.float32), alpha
