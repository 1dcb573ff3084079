"""Random changes of scores and colours, for networks that read a score and a photo and are to believe neither alone."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

FloatMap = npt.NDArray[np.float32]
Generator = np.random.Generator


def changed_score(
    source: Generator,
    score: FloatMap,
    background: npt.NDArray[np.bool_],
    gain: tuple[float, float] = (0.5, 1.4),
    shift: float = 0.6,
) -> FloatMap:
    """Weaken or strengthen a standardised score, hide it in part, blur it and make it uneven, each now and then.

    Args:
        source: Random numbers.
        score: float32 (S, S).
        background: bool (S, S), where no object is.
        gain: What its distance from the background's median is multiplied by, at least and at most.
        shift: Standard deviation of what is added to all of it.
    """
    side = len(score)
    level = float(np.median(score[background])) if background.any() else 0.0
    score = level + (score - level) * source.uniform(*gain) + source.normal(0, shift)
    if source.random() < 0.35:
        waves = uneven(source, int(source.integers(2, 5)), side) + source.normal(0, 0.5)
        hidden = source.uniform(0.3, 1) / (1 + np.exp(-4 * waves))
        score = np.where(score > level, score + (level - score) * hidden, score)
    if source.random() < 0.3:
        score = np.asarray(cv2.GaussianBlur(score, (0, 0), source.uniform(1, 5)), np.float32)
    if source.random() < 0.3:
        score = score + uneven(source, int(source.integers(3, 12)), side) * source.uniform(0.2, 1)
    return np.asarray(score, np.float32)


def changed_colours(source: Generator, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Change light, contrast and tint of an image, uint8 (H, W, 3); now and then take the colours out or add noise."""
    colours = 255 * (image / 255) ** np.exp(source.normal(0, 0.35))
    colours = colours * source.uniform(0.7, 1.3) + source.uniform(-20, 20)
    colours = colours * source.uniform(0.9, 1.1, 3)
    if source.random() < 0.15:
        colours = np.repeat(colours.mean(2, keepdims=True), 3, 2)
    if source.random() < 0.3:
        colours = colours + source.standard_normal(colours.shape) * source.uniform(1, 8)
    return np.asarray(np.clip(np.rint(colours), 0, 255), np.uint8)


def uneven(source: Generator, cells: int, side: int) -> FloatMap:
    """Give a smooth random field with so many hills a side, float32 (side, side), of standard deviation 1 or less."""
    field = source.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC))
