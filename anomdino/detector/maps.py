"""Uncertainty maps on the detector's input grid: they follow the image through every geometric transform."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from anomdino.uncertainty import UncertaintyMaps


def stack_maps(maps: UncertaintyMaps) -> npt.NDArray[np.float32]:
    """Stack the maps of an image as the detector reads them.

    What the semantic and the distance map hold is decided where they are made (``score.semantic``,
    ``score.distance``).

    Returns:
        float32 (C + 3, h, w): semantic, entropy, distance, score.
    """
    single = [m.astype(np.float32)[None] for m in (maps.entropy, maps.distance, maps.score)]
    return np.concatenate([maps.semantic.astype(np.float32), *single])


def resized_maps(maps: npt.NDArray[np.float32], grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resample maps, float32 (K, h, w), to another grid (h', w') over the same image, without aliasing."""
    if maps.shape[1:] == grid:
        return maps
    scale = np.diag([grid[1] / maps.shape[2], grid[0] / maps.shape[1], 1.0])
    return warp_maps(maps, (maps.shape[1], maps.shape[2]), scale, grid, 1)


def warp_maps(
    maps: npt.NDArray[np.float32],
    image_size: tuple[int, int],
    homography: npt.NDArray[np.floating],
    output_size: tuple[int, int],
    stride: int,
) -> npt.NDArray[np.float32]:
    """Resample maps of an original image onto the grid of the transformed image.

    A cell of the result averages enough bilinear samples to cover its footprint in the stored maps, so that
    shrinking does not alias. Positions outside the original image take its border's value.

    Args:
        maps: float32 (K, h, w) covering the whole original image.
        image_size: (H, W) of the original image in pixels.
        homography: (3, 3), continuous pixel coordinates (x, y, 1) of the original image to those of the transformed
            one, as mmdet's transforms record it; affine.
        output_size: (H', W') of the transformed image in pixels.
        stride: Pixels of the transformed image a cell of the result covers.

    Returns:
        float32 (K, ceil(H' / stride), ceil(W' / stride)).
    """
    rows, columns = -(-output_size[0] // stride), -(-output_size[1] // stride)
    back = np.linalg.inv(np.asarray(homography, np.float64))
    cells = np.array([maps.shape[2] / image_size[1], maps.shape[1] / image_size[0]])
    footprint = stride * np.abs(back[:2, :2] * cells[:, None]).sum(0)
    finer = [max(1, math.ceil(side - 1e-6)) for side in footprint]
    x = (np.arange(columns * finer[0]) + 0.5) * (stride / finer[0])
    y = (np.arange(rows * finer[1]) + 0.5) * (stride / finer[1])
    grid_x, grid_y = np.meshgrid(x, y)
    source_x = back[0, 0] * grid_x + back[0, 1] * grid_y + back[0, 2]
    source_y = back[1, 0] * grid_x + back[1, 1] * grid_y + back[1, 2]
    grid = np.stack([2 * source_x / image_size[1] - 1, 2 * source_y / image_size[0] - 1], -1)
    writable = np.require(maps, requirements=["C", "W"])  # torch warns of others
    sampled = F.grid_sample(
        torch.from_numpy(writable)[None],
        torch.from_numpy(grid.astype(np.float32))[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    pooled = F.avg_pool2d(sampled, (finer[1], finer[0]))[0]
    return np.ascontiguousarray(pooled.numpy())
