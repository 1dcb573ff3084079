"""Colours of many pixels at once, in ways that are fast though the last axis, the three colours, is short."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.synthetic.camera import Reals


def shaded(tone: Reals, colour: Iterable[float]) -> Reals:
    """Brightness times a colour, `tone[..., None] * colour` in the type of `tone`.

    Args:
        tone: (H, W) or (N,).
        colour: three factors, RGB.

    Returns:
        (H, W, 3) or (N, 3).
    """
    if not tone.size:
        return np.zeros((*tone.shape, 3), dtype=tone.dtype)
    planes = [tone * tone.dtype.type(part) for part in colour]
    return np.asarray(cv2.merge(planes), dtype=tone.dtype).reshape(*tone.shape, 3)


def take(image: npt.NDArray[Any], where: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Give the colours (N, 3) of the chosen pixels: `image[where]` of an image (H, W, 3)."""
    return _whole(image)[where].view(image.dtype).reshape(-1, 3)


def put(image: npt.NDArray[Any], where: npt.NDArray[np.bool_], colours: npt.NDArray[Any]) -> None:
    """Set the colours of the chosen pixels: `image[where] = colours`, (N, 3), in an image (H, W, 3)."""
    items = np.ascontiguousarray(colours, dtype=image.dtype)
    _whole(image)[where] = _whole(items)


def _whole(image: npt.NDArray[Any]) -> npt.NDArray[np.void]:
    """View the three numbers of a pixel as one item, which numpy copies as a whole."""
    return image.view(np.dtype((np.void, 3 * image.itemsize)))[..., 0]
