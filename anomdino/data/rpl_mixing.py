"""Outlier exposure by the published rule (RPL, ICCV 2023, and its code).

All objects of one photo, scaled together, are pasted as one rigid group at a uniform position, with hard edges. The
improved rule is in `anomdino.data.mixing`; images, labels and purity are as described there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.data.mixing import OUTLIER, VOID, BoolArray, FloatArray, UInt8Array, extent

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RPL_SCALES = (0.25, 0.5, 0.5, 0.75, 0.1, 0.125)
RPL_FLIP = 0.8


@dataclass(frozen=True)
class RplMix:
    """One item of RPL's training set, all planes of one size (S, S).

    Attributes:
        image: (S, S, 3) float32, normalised by the ImageNet mean and std; 0 where padded.
        label: (S, S) uint8 train ids; 255 where padded.
        mixed_image: `image` with the outlier group pasted.
        mixed_label: `label` with 254 on the pasted pixels.
        outlier_image: (S, S, 3) float32, the outlier photo unscaled, centred.
        outlier_label: (S, S) uint8, 0 / 254 / 255 (padding), the mask that belongs to `outlier_image`.
    """

    image: FloatArray
    label: UInt8Array
    mixed_image: FloatArray
    mixed_label: UInt8Array
    outlier_image: FloatArray
    outlier_label: UInt8Array


def normalise(image: UInt8Array) -> npt.NDArray[np.float64]:
    """(x / 255 - mean) / std, ImageNet's statistics, uint8 (H, W, 3) RGB to float64."""
    return np.asarray(cv2.LUT(np.ascontiguousarray(image), _NORMALISED_LEVELS), np.float64)


def denormalise(image: npt.NDArray[np.floating]) -> UInt8Array:
    """Inverse of `normalise`, rounded and clipped to uint8."""
    levels = np.multiply(image, np.asarray(IMAGENET_STD) * 255.0, dtype=np.float32)
    levels += np.asarray(IMAGENET_MEAN, dtype=np.float32) * np.float32(255.0)
    return np.asarray(np.clip(np.rint(levels, out=levels), 0, 255, out=levels), dtype=np.uint8)


_LEVELS = np.arange(256)[None, :, None]
_NORMALISED_LEVELS = (_LEVELS / 255.0 - np.asarray(IMAGENET_MEAN)) / np.asarray(IMAGENET_STD)
_PADDED_COLOUR = denormalise(np.zeros((1, 1, 3), np.float32))


def mix_rpl(
    image: UInt8Array,
    label: UInt8Array,
    outlier: UInt8Array,
    outlier_mask: npt.NDArray[np.uint8] | BoolArray,
    rng: random.Random,
    *,
    size: int = 700,
    scales: Sequence[float] = RPL_SCALES,
    flip: float = RPL_FLIP,
) -> RplMix:
    """Mix one outlier photo into one road scene exactly as RPL's training does.

    Draws from `rng`, in this order (the caller has drawn the index of the outlier photo before, with
    `rng.randint`): `random()` for the flip (flipped when >= 1 - flip, as published 0.2);
    `randint(0, H - size + 1)` crop row, if H > size; `randint(0, W - size + 1)` crop column, if W > size;
    `choice(scales)`; `randint(0, size - h_box)` paste row; `randint(0, size - w_box)` paste column.

    Args:
        image: (H, W, 3) uint8 road scene.
        label: (H, W) uint8 train ids.
        outlier: (h, w, 3) uint8 photo with foreign objects.
        outlier_mask: (h, w), objects where non-zero.
        rng: Python generator; the same state gives the same item.
        size: side S of the square planes that are returned.
        scales: factors of the outlier photo; a repeated factor is drawn more often.
        flip: probability of flipping the road scene (published: 0.8).

    Returns:
        RplMix of float32 normalised images and uint8 labels.
    """
    image, label = _rpl_crop(image, label, rng, size, flip)
    outlier_image, outlier_label = normalise(outlier), object_label(outlier_mask)
    group = _rpl_group(outlier_image, outlier_label, rng, size, scales)
    city_image = _pad_centred(normalise(image), size, 0.0).astype(np.float32)
    city_label = _pad_centred(label, size, VOID)
    mixed_image, mixed_label = city_image.copy(), city_label.copy()
    mixed_image[group.target][group.mask] = group.image[group.mask]
    mixed_label[group.target][group.mask] = OUTLIER
    return RplMix(
        image=city_image,
        label=city_label,
        mixed_image=mixed_image,
        mixed_label=mixed_label,
        outlier_image=_centre(outlier_image, size, 0.0).astype(np.float32),
        outlier_label=_centre(outlier_label, size, VOID),
    )


def paste_rpl(
    image: UInt8Array,
    label: UInt8Array,
    outlier: UInt8Array,
    outlier_mask: npt.NDArray[np.uint8] | BoolArray,
    rng: random.Random,
    *,
    size: int = 700,
    scales: Sequence[float] = RPL_SCALES,
) -> tuple[UInt8Array, UInt8Array]:
    """Give the mixed image of `mix_rpl` as uint8 RGB and its label, several times as fast.

    Equal byte for byte to `denormalise(mix.mixed_image)` and `mix.mixed_label`, with the same draws: pixels of the
    scene, which normalising and its inverse give back, are copied; the pasted group alone takes the way through
    normalised numbers.

    Args:
        image: (H, W, 3) uint8 road scene.
        label: (H, W) uint8 train ids.
        outlier: (h, w, 3) uint8 photo with foreign objects.
        outlier_mask: (h, w), objects where non-zero.
        rng: Python generator; the same state gives the same item.
        size: side S.
        scales: factors of the outlier photo.

    Returns:
        (S, S, 3) uint8 RGB and (S, S) uint8 train ids, 254 pasted, 255 void.
    """
    image, label = _rpl_crop(image, label, rng, size)
    group = _rpl_group(normalise(outlier), object_label(outlier_mask), rng, size, scales)
    mixed_image, mixed_label = image.copy(), _pad_centred(label, size, VOID)
    if label.shape != mixed_label.shape:
        mixed_image = np.tile(_PADDED_COLOUR, (size, size, 1))
        top, left = ((size - side) // 2 for side in label.shape)
        mixed_image[top : top + label.shape[0], left : left + label.shape[1]] = image
    mixed_image[group.target][group.mask] = denormalise(group.image[group.mask].astype(np.float32))
    mixed_label[group.target][group.mask] = OUTLIER
    return mixed_image, mixed_label


@dataclass(frozen=True)
class _RplGroup:
    """Objects of one photo, cut out: normalised (h, w, 3) float64, mask (h, w), and where they are pasted."""

    image: npt.NDArray[np.float64]
    mask: BoolArray
    target: tuple[slice, slice]


def _rpl_crop(
    image: UInt8Array, label: UInt8Array, rng: random.Random, size: int, flip: float = RPL_FLIP
) -> tuple[UInt8Array, UInt8Array]:
    """Flip and crop a scene; sides that are short, or one pixel short at the last position, are not yet padded."""
    flipped = rng.random() >= round(1 - flip, 12)
    height, width = label.shape
    row = rng.randint(0, height - size + 1) if height > size else 0
    column = rng.randint(0, width - size + 1) if width > size else 0
    first, last = (max(width - column - size, 0), width - column) if flipped else (column, column + size)
    window = (slice(row, row + size), slice(first, last))
    if not flipped:
        return image[window], label[window]
    return np.asarray(cv2.flip(image[window], 1), np.uint8), np.asarray(cv2.flip(label[window], 1), np.uint8)


def object_label(mask: npt.NDArray[np.uint8] | BoolArray) -> UInt8Array:
    """Turn a mask (H, W), objects where non-zero, into labels: uint8 (H, W), 254 on objects, 0 elsewhere."""
    return np.where(mask > 0, np.uint8(OUTLIER), np.uint8(0))


def _rpl_group(
    image: npt.NDArray[np.float64], label: UInt8Array, rng: random.Random, size: int, scales: Sequence[float]
) -> _RplGroup:
    """Scale a normalised photo, frame it, cut out the box of its objects and draw where they go."""
    scale = rng.choice(scales)
    scaled_size = (max(int(label.shape[1] * scale), 1), max(int(label.shape[0] * scale), 1))
    scaled_image = np.asarray(cv2.resize(image, scaled_size, interpolation=cv2.INTER_LINEAR), np.float64)
    scaled_label = cv2.resize(label, scaled_size, interpolation=cv2.INTER_NEAREST)
    rows, columns = (_centred_part(side, size) for side in scaled_label.shape)
    visible = scaled_label[rows, columns] == OUTLIER
    top, left, bottom, right = extent(visible)
    box = (slice(top, bottom), slice(left, right))
    mask = visible[box]
    paste_row = rng.randint(0, size - mask.shape[0])
    paste_column = rng.randint(0, size - mask.shape[1])
    target = (slice(paste_row, paste_row + mask.shape[0]), slice(paste_column, paste_column + mask.shape[1]))
    return _RplGroup(scaled_image[rows, columns][box], mask, target)


def _pad_centred(plane: np.ndarray, size: int, value: float) -> np.ndarray:
    """Pad each side shorter than `size`: half before, the odd one after."""
    missing = [max(size - side, 0) for side in plane.shape[:2]]
    widths = [(m // 2, m // 2 + m % 2) for m in missing] + [(0, 0)] * (plane.ndim - 2)
    return np.pad(plane, widths, constant_values=value)


def _centre(plane: np.ndarray, size: int, value: float) -> np.ndarray:
    """Pad short sides to `size`, then cut the centre `size` x `size` (start = n // 2 - size // 2)."""
    rows, columns = (_centred_part(side, size) for side in plane.shape[:2])
    return _pad_centred(plane[rows, columns], size, value)


def _centred_part(side: int, size: int) -> slice:
    """Give the `size` pixels in the middle of a side, or all where it is shorter."""
    start = max(side // 2 - size // 2, 0)
    return slice(start, start + size)
