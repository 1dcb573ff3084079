"""Regions swapped between road scenes: seams without an anomaly.

A network that learns outliers from pasted objects can learn the paste instead of the object. A region in
the shape of an object, filled from the same place of another scene of the same domain, has the same seams
but nothing foreign in it; its pixels keep the class they have in the scene they come from. (A relative of
CutMix, Yun et al., ICCV 2019, with free-form regions that stay in place.)
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

VOID = 255
GAIN = 0.25
HEIGHT = (0.06, 0.7)
SOFTNESS = (0.5, 1.5)
SOFT_SHARE = 0.6

UInt8Array = npt.NDArray[np.uint8]
Scene = tuple[UInt8Array, UInt8Array]


def swap_region(
    scene: Scene,
    other_scene: Scene,
    shape: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> Scene:
    """Fill a region of a scene from the same place of another scene.

    Size (log-uniform height, a share of the scene's), place, light (gains up to 25 %), mirroring of the other
    scene and softness of the seam are random.

    Args:
        scene: Image (H, W, 3) uint8 RGB and label (H, W) uint8 train ids.
        other_scene: The same of the other scene, resized to this one's size where it differs.
        shape: (h, w) bool, the region's form; resized.
        rng: numpy generator; the same state gives the same bytes.

    Returns:
        New image and label; 255 where the seam mixes both scenes and the scene's own pixel weighs more.
    """
    image, label = scene
    other, other_label = other_scene
    height, width = label.shape
    if other_label.shape != label.shape:
        other = np.asarray(cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        resized = cv2.resize(other_label, (width, height), interpolation=cv2.INTER_NEAREST)
        other_label = np.asarray(resized, np.uint8)
    if rng.random() < 0.5:
        other, other_label = other[:, ::-1], other_label[:, ::-1]
    alpha = _region(shape, (height, width), rng)
    gains = rng.uniform(1 - GAIN, 1 + GAIN) * rng.uniform(1 - GAIN / 2, 1 + GAIN / 2, 3)
    touched = alpha > 0
    filled = image.copy()
    own, foreign = image[touched].astype(np.float32), other[touched] * gains.astype(np.float32)
    blended = own + alpha[touched][:, None] * (foreign - own)
    filled[touched] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
    solid = alpha >= 0.5
    swapped = np.where(solid, other_label, np.where(touched, np.uint8(VOID), label))
    return filled, np.asarray(swapped, np.uint8)


def _region(
    shape: npt.NDArray[np.bool_], size: tuple[int, int], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Place a form at random in a frame of ``size``: (H, W) float32, weights of the other scene."""
    height, width = size
    low, high = np.log(HEIGHT[0]), np.log(HEIGHT[1])
    rows = int(np.clip(np.exp(rng.uniform(low, high)) * height, 2, height))
    columns = int(np.clip(round(shape.shape[1] * rows / max(shape.shape[0], 1)), 2, width))
    form = cv2.resize(shape.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
    alpha = np.zeros(size, np.float32)
    alpha[top : top + rows, left : left + columns] = form
    if rng.random() < SOFT_SHARE:
        alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), float(rng.uniform(*SOFTNESS))), np.float32)
        return np.where(alpha < 0.02, np.float32(0), alpha)
    return (alpha >= 0.5).astype(np.float32)
