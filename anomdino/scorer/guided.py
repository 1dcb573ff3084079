"""Guided filtering of a score map by its image: a region of one colour gets one score, which ends where the region ends.

A network's scores are blurred over many pixels; objects end at edges of the image. In every window of radius r the score
p is fitted by a linear function of the colour I (He et al., "Guided Image Filtering", 2013, equations 19 and 20),

    q = a . I + b,  a = (cov(I) + eps 1)^-1 cov(I, p),  b = mean(p) - a . mean(I),

and a pixel gets the mean of what the windows around it say, but nothing beyond the scores in its own window: a straight
line says anything of a colour, a reflection's, say, that lies far from those it was fitted to. A window evens out what
is as large as itself, so there are several radii, and the score itself, q_0 = p. The mean of all wears lone small
objects away, their maximum keeps every speckle; half of both is taken:

    S' = (mean_r q_r + max_r q_r) / 2,  r = 0 and the radii

Windows are `CELLS` cells in radius whatever their size: those of large radii are fitted on smaller images (He and Sun,
"Fast Guided Filter", 2015). Nothing is learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH = 1280
"""Radii are in pixels of an image of so many columns; on others they grow and shrink with the width."""
EPS = 0.002
"""Added to the variances of a window's colours, in the unit of the scorers' input: noise of 0.01 of the colour range."""
CELLS = 4


def refine(scores: Tensor, images: Tensor, radii: Sequence[int]) -> Tensor:
    """Refine score maps by the images that they belong to.

    Args:
        scores: Floating (B, H, W), higher is more anomalous.
        images: float32 (B, 3, H, W), as :func:`anomdino.scorer.base.normalise` gives them.
        radii: Radii in pixels of an image 1280 wide; none at all leaves the scores as they are.

    Returns:
        float32 (B, H, W), on the scale of the scores; without radii the scores themselves.
    """
    if not radii:
        return scores
    total = highest = scores.float()
    for radius in radii:
        filtered = guided_filter(scores.float(), images, max(1, round(radius * scores.shape[-1] / WIDTH)))
        total, highest = total + filtered, torch.maximum(highest, filtered)
    return (total / (1 + len(radii)) + highest) / 2


def guided_filter(scores: Tensor, images: Tensor, radius: int, eps: float = EPS) -> Tensor:
    """Filter score maps with colour images as guidance, windows cut off at the border.

    Args:
        scores: float32 (B, H, W).
        images: float32 (B, 3, H, W).
        radius: Of the windows, in pixels. From twice `CELLS` on, coefficients are computed on an image that is smaller
            by radius // `CELLS`.
        eps: Added to the variances of ``images``, in their unit squared.

    Returns:
        float32 (B, H, W).
    """
    height, width = scores.shape[-2:]
    step = max(1, radius // CELLS)
    grid = (-(-height // step), -(-width // step))
    cells = round(radius / step)
    small = _shrunk(scores[:, None], grid)
    slopes = _box_mean(_slopes(_shrunk(images, grid), small, cells, eps), cells)
    result = _enlarged(slopes[:, 3:], (height, width))
    for channel in range(3):
        slope = _enlarged(slopes[:, channel : channel + 1], (height, width))
        result = result + slope * images[:, channel, None]
    low, high = (
        _enlarged(bound, (height, width)) for bound in (-_box_max(-small, cells), _box_max(small, cells))
    )
    return result.clamp(low, high)[:, 0]


def _slopes(images: Tensor, scores: Tensor, radius: int, eps: float) -> Tensor:
    """Fit the scores (B, 1, h, w) in every window: (B, 4, h, w), a and b."""
    means = _box_mean(torch.cat([images, scores, images * scores, _pairs(images)], 1), radius)
    colour, score, products, pairs = torch.split(means, [3, 1, 3, 6], 1)
    shared = products - colour * score
    rr, rg, rb, gg, gb, bb = torch.split(pairs - _pairs(colour), 1, 1)
    columns = [
        torch.cat(column, 1) for column in ((rr + eps, rg, rb), (rg, gg + eps, gb), (rb, gb, bb + eps))
    ]
    adjugate = [torch.linalg.cross(columns[i - 2], columns[i - 1], dim=1) for i in range(3)]
    determinant = (columns[0] * adjugate[0]).sum(1, keepdim=True)
    slopes = torch.cat([(row * shared).sum(1, keepdim=True) for row in adjugate], 1) / determinant
    return torch.cat([slopes, score - (slopes * colour).sum(1, keepdim=True)], 1)


def _pairs(colours: Tensor) -> Tensor:
    """Products of every two channels of (B, 3, h, w), in the order 00, 01, 02, 11, 12, 22: (B, 6, h, w)."""
    return torch.cat([colours[:, first:] * colours[:, first, None] for first in range(3)], 1)


def _box_mean(maps: Tensor, radius: int) -> Tensor:
    """Average over windows of 2 radius + 1 pixels a side."""
    side = 2 * radius + 1
    rows = F.avg_pool2d(maps, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), 1, (0, radius), count_include_pad=False)


def _box_max(maps: Tensor, radius: int) -> Tensor:
    """Highest value in windows of 2 radius + 1 pixels a side."""
    rows = F.max_pool2d(maps, (2 * radius + 1, 1), 1, (radius, 0))
    return F.max_pool2d(rows, (1, 2 * radius + 1), 1, (0, radius))


def _shrunk(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size=size, mode="area")


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
