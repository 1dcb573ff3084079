"""Cutting large images into tiles that overlap, and the weights that blend them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A half-open rectangle of pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.left, self.right)

    @property
    def pixels(self) -> int:
        """Its area."""
        return (self.bottom - self.top) * (self.right - self.left)

    def shrunk(self, stride: int) -> Tile:
        """Give the cells that the tile covers in a grid of this stride, which divides its top and left."""
        return Tile(
            self.top // stride, self.left // stride, -(-self.bottom // stride), -(-self.right // stride)
        )


def tiles(height: int, width: int, max_pixels: int, overlap: int, align: int = 8) -> list[Tile]:
    """Cover an image by as few tiles of about one size as the limit allows.

    Args:
        height: H.
        width: W.
        max_pixels: Most pixels of a tile; an image of at most this size is one tile. Limits under
            (4 * align) ** 2 count as that.
        overlap: Pixels that neighbours share at least; halved while tiles of the limit cannot have it.
        align: Inner edges of tiles lie on multiples of this.

    Returns:
        Tiles in row-major order that cover every pixel.
    """
    if height * width <= max_pixels:
        return [Tile(0, 0, height, width)]
    limit = max(max_pixels, (4 * align) ** 2)
    choices = []
    for rows in range(1, height // align + 2):
        for columns in range(1, width // align + 2):
            tall, wide = _side(height, rows, overlap, align), _side(width, columns, overlap, align)
            if tall * wide <= limit:
                choices.append((rows * columns, abs(math.log(tall / wide)), rows, columns))
                break
    if not choices:
        return tiles(height, width, max_pixels, overlap // 2, align)
    _, _, rows, columns = min(choices)
    vertical = _spans(height, rows, overlap, align)
    horizontal = _spans(width, columns, overlap, align)
    return [Tile(top, left, bottom, right) for top, bottom in vertical for left, right in horizontal]


def blend_weights(tile: Tile, height: int, width: int, overlap: int) -> Tensor:
    """Weigh the pixels of a tile: 1 inside, falling linearly towards the edges that lie inside the image.

    Returns:
        float32 (tile height, tile width), all > 0.
    """
    vertical = _ramp(tile.bottom - tile.top, overlap, tile.top > 0, tile.bottom < height)
    horizontal = _ramp(tile.right - tile.left, overlap, tile.left > 0, tile.right < width)
    return vertical[:, None] * horizontal[None, :]


def _side(length: int, count: int, overlap: int, align: int) -> int:
    """Give the longest side that :func:`_spans` makes."""
    if count == 1:
        return length
    equal = math.ceil((length + (count - 1) * overlap) / count)
    return min(length, -(-equal // align) * align + 2 * align)


def _spans(length: int, count: int, overlap: int, align: int) -> list[tuple[int, int]]:
    side = _side(length, count, overlap, align) - (align if count > 1 else 0)
    last = length - side
    if count == 1 or last <= 0:
        return [(0, length)]
    starts = [index * last // (count - 1) // align * align for index in range(count)]
    ends = [start + side // align * align for start in starts[:-1]]
    return list(zip(starts, [*ends, length], strict=True))


def _ramp(length: int, overlap: int, before: bool, after: bool) -> Tensor:
    rising = (torch.arange(length, dtype=torch.float32) + 1) / (overlap + 1)
    ramp = torch.ones(length)
    if before and overlap:
        ramp = torch.minimum(ramp, rising)
    if after and overlap:
        ramp = torch.minimum(ramp, rising.flip(0))
    return ramp
