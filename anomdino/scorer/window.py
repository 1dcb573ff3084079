"""A second, closer look at the middle of an image, where roads meet the horizon and objects are small."""

from __future__ import annotations

from torch import Tensor

from anomdino.scorer.scored import pooled
from anomdino.scorer.tiling import Tile, blend_weights

WEIGHT = 0.5
"""Of the closer look, inside the window: the mean of both, as over the widths of one look."""
EDGE = 0.05
"""Share of the window's shorter side over which that weight falls to 0 at its edges."""


def middle_window(height: int, width: int, share: float, align: int) -> Tile | None:
    """Give the middle part of an image.

    Args:
        height: Of the image.
        width: Of the image.
        share: Sides of the part in sides of the image, in (0, 1).
        align: Its edges are multiples of this, so that maps pooled by it lie on the image's own.

    Returns:
        The part; ``None`` if the image is too small to have one of a pixel of the pooled maps.
    """
    top, left = (round(side * (1 - share) / 2 / align) * align for side in (height, width))
    rows, columns = (round(side * share / align) * align for side in (height, width))
    bottom, right = min(top + rows, height // align * align), min(left + columns, width // align * align)
    return Tile(top, left, bottom, right) if bottom > top and right > left else None


def window_weights(window: Tile, height: int, width: int) -> Tensor:
    """Weigh the pixels of a window: 0.5 inside, falling linearly towards its edges: float32 (rows, columns), above 0."""
    edge = max(1, round(EDGE * min(window.bottom - window.top, window.right - window.left)))
    return WEIGHT * blend_weights(window, height, width, edge)


def joined(whole: Tensor, closer: Tensor, window: Tile, weights: Tensor) -> Tensor:
    """Put a closer look into a whole one.

    Args:
        whole: (B, ..., H, W).
        closer: (B, ..., rows, columns) of the window.
        window: Where it lies.
        weights: Of the closer look, (rows, columns).

    Returns:
        (B, ..., H, W); outside the window it is ``whole``.
    """
    result = whole.clone()
    inside = result[..., window.rows, window.columns]
    result[..., window.rows, window.columns] = inside + weights * (closer - inside)
    return result


def pooled_weights(weights: Tensor, stride: int) -> Tensor:
    """Average weights over blocks of ``stride`` x ``stride``."""
    return pooled(weights[None, None], stride)[0, 0]
