"""Random changes of an image and its label: where it is cut, how large it is, its colours.

Images are uint8 RGB (H, W, 3), labels uint8 (H, W); the same generator gives the same result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.data.mixing import CutOut
from anomdino.data.rpl_mixing import object_label
from anomdino.scorer.base import IMAGENET_MEAN
from anomdino.scorer.batches import Pixels, UInt8Array
from anomdino.scorer.losses import VOID

if TYPE_CHECKING:
    from anomdino.config.rpl import AugmentConfig

PAD_COLOUR = tuple(round(255 * value) for value in IMAGENET_MEAN)


def random_crop(
    image: UInt8Array, label: UInt8Array, source: np.random.Generator, augment: AugmentConfig
) -> tuple[UInt8Array, UInt8Array]:
    """Scale, cut and flip at random, and pad to the crop's size (see :func:`cut_window`, :func:`pad_to`)."""
    return pad_to(*cut_window(image, label, source, augment), augment.crop)


def cut_window(
    image: UInt8Array, label: UInt8Array, source: np.random.Generator, augment: AugmentConfig
) -> tuple[UInt8Array, UInt8Array]:
    """Scale, cut and flip at random: (H, W, 3) and (H, W), at most of the crop's size.

    Only the window that is kept is resized.
    """
    height, width = augment.crop
    low, high = augment.scale
    scale = low * (high / low) ** source.random()
    rows, row_start = _window(image.shape[0], height, scale, source)
    columns, column_start = _window(image.shape[1], width, scale, source)
    window = (slice(row_start, row_start + rows), slice(column_start, column_start + columns))
    size = (max(1, min(width, round(columns * scale))), max(1, min(height, round(rows * scale))))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image[window], size, interpolation=method)
    scaled_label = cv2.resize(label[window], size, interpolation=cv2.INTER_NEAREST)
    if source.random() < augment.flip:
        scaled, scaled_label = scaled[:, ::-1], scaled_label[:, ::-1]
    return np.ascontiguousarray(scaled), np.ascontiguousarray(scaled_label)


def shrink_to(image: UInt8Array, label: UInt8Array, size: tuple[int, int]) -> tuple[UInt8Array, UInt8Array]:
    """Make a larger image, (H, W, 3) with its label (H, W), as large as fits into ``size``, sides in proportion."""
    height, width = label.shape
    factor = min(size[0] / height, size[1] / width)
    if factor >= 1:
        return image, label
    target = (max(1, int(width * factor)), max(1, int(height * factor)))
    small = np.asarray(cv2.resize(image, target, interpolation=cv2.INTER_AREA), np.uint8)
    return small, np.asarray(cv2.resize(label, target, interpolation=cv2.INTER_NEAREST), np.uint8)


def pad_to(image: UInt8Array, label: UInt8Array, size: tuple[int, int]) -> tuple[UInt8Array, UInt8Array]:
    """Put a smaller image in the middle of mean colour, its label in the middle of 255."""
    if label.shape == size:
        return image, label
    canvas, void = _canvas(size), np.full(size, VOID, np.uint8)
    _centre_into(canvas, image)
    _centre_into(void, label)
    return canvas, void


def change_colours(image: UInt8Array, source: np.random.Generator, augment: AugmentConfig) -> UInt8Array:
    """Change style, brightness, contrast, saturation, gains and gamma; blur; add noise."""
    if augment.style and source.random() < augment.style:
        image = change_style(image, source)
    if augment.grey and source.random() < augment.grey:
        image = np.asarray(
            cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8
        )
    if augment.jitter:
        brightness, contrast, saturation = 1 + augment.jitter * source.uniform(-1, 1, 3)
        gains = 1 + augment.jitter / 3 * source.uniform(-1, 1, 3)
        grey = np.array([0.299, 0.587, 0.114])
        mean = float(image.mean())
        mix = saturation * np.eye(3) + (1 - saturation) * grey[None]
        matrix = contrast * brightness * gains[:, None] * mix
        offset = (1 - contrast) * mean * brightness * gains
        transform = np.hstack([matrix, offset[:, None]])
        image = np.asarray(cv2.transform(image, transform), np.uint8)
    if augment.gamma:
        gamma = float(np.exp(augment.gamma * source.uniform(-1, 1)))
        curve = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
        image = np.asarray(cv2.LUT(image, curve), np.uint8)
    if augment.blur and source.random() < augment.blur:
        sigma = float(source.uniform(0.3, 1.5))
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    if augment.noise:
        deviation = np.float32(source.uniform(0, augment.noise))
        noisy = image + deviation * source.standard_normal(image.shape, dtype=np.float32)
        image = np.clip(noisy, 0, 255).astype(np.uint8)
    return image


def change_style(image: UInt8Array, source: np.random.Generator) -> UInt8Array:
    """Move the mean and the spread of every channel some way, at most 70 %, towards random ones.

    The target is a grey mean of 25 to 75 % with a tint, and a spread of 10 to 30 % of the range (statistics
    transfer after Reinhard et al., "Color Transfer between Images", 2001, in RGB).
    """
    mean, deviation = (item.ravel() for item in cv2.meanStdDev(image))
    strength = source.uniform(0, 0.7)
    target_mean = 255 * (source.uniform(0.25, 0.75) + source.normal(0, 0.06, 3))
    target_deviation = 255 * source.uniform(0.1, 0.3)
    gain = 1 + strength * (target_deviation / np.maximum(deviation, 4) - 1)
    offset = mean + strength * (target_mean - mean) - gain * mean
    return np.asarray(cv2.transform(image, np.hstack([np.diag(gain), offset[:, None]])), np.uint8)


def cut_out(photo: UInt8Array, mask: UInt8Array) -> CutOut:
    """Cut an object (mask > 0) out of its photo, tightly: RGB and bool mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return photo[:1, :1], np.zeros((1, 1), bool)
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return photo[window], mask[window] > 0


def centred_photo(
    photo: UInt8Array, mask: UInt8Array, size: tuple[int, int]
) -> tuple[UInt8Array, UInt8Array]:
    """Cut or pad an outlier photo about its centre to ``size``; labels 0, 254 on the object, 255 where
    padded.
    """
    canvas, label = _canvas(size), np.full(size, VOID, np.uint8)
    _centre_into(canvas, photo)
    _centre_into(label, object_label(mask))
    return canvas, label


def zeros_of(image: Pixels) -> Pixels:
    """Give an image of this size and type, uint8 or float32 (H, W, 3), that is zero once normalised."""
    return np.zeros_like(image) if image.dtype == np.float32 else _canvas(image.shape[:2])


def _window(side: int, crop: int, scale: float, source: np.random.Generator) -> tuple[int, int]:
    length = max(1, min(side, round(crop / scale)))
    return length, int(source.integers(0, side - length + 1))


def _canvas(size: tuple[int, ...]) -> UInt8Array:
    return np.full((*size, 3), PAD_COLOUR, np.uint8)


def _centre_into(canvas: UInt8Array, plane: npt.NDArray[Any]) -> None:
    target, origin = [], []
    for have, want in zip(plane.shape[:2], canvas.shape[:2], strict=True):
        length = min(have, want)
        at, start = (want - length) // 2, (have - length) // 2
        target.append(slice(at, at + length))
        origin.append(slice(start, start + length))
    canvas[tuple(target)] = plane[tuple(origin)]
