"""Multi-scale deformable attention in plain torch (Deformable DETR, arXiv 2010.04159, equation 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def level_sizes(spatial_shapes: Tensor | Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Give the (h, w) of every level as plain numbers (one device-to-host copy when they are a CUDA tensor)."""
    rows = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    return [(int(h), int(w)) for h, w in rows]


def deformable_attention(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sample every level bilinearly at each head's points and sum with the attention weights.

    Zero outside the map, pixel centres at half coordinates (grid_sample with ``align_corners=False``). On the CPU
    without gradients the sum runs as one weighted bag of rows (four corners a point), which reads each head's
    channels contiguously; elsewhere through ``grid_sample``, whose backward pass torch provides.

    Args:
        value: float (B, sum h*w, heads, channels), the levels flattened and concatenated.
        value_spatial_shapes: int (levels, 2), (h, w) of each level.
        sampling_locations: float (B, queries, heads, levels, points, 2), (x, y) in [0, 1] of a level's width, height.
        attention_weights: float (B, queries, heads, levels, points).

    Returns:
        float (B, queries, heads * channels).
    """
    if value.device.type == "cpu" and not (
        torch.is_grad_enabled() and _needs_grad(value, sampling_locations)
    ):
        return bag_attention(value, value_spatial_shapes, sampling_locations, attention_weights)
    return grid_attention(value, value_spatial_shapes, sampling_locations, attention_weights)


def grid_attention(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The operator through ``grid_sample``, differentiable on every device; see :func:`deformable_attention`."""
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    exact = torch.promote_types(value.dtype, sampling_locations.dtype)  # half positions would be pixels off
    # Points before queries: what follows runs along the queries, contiguous in memory, not along the few points.
    grids = (2 * sampling_locations - 1).to(exact).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
    weights = (
        attention_weights.to(exact).permute(0, 2, 3, 4, 1).flatten(0, 1)
    )  # (B heads, levels, points, queries)
    sizes = level_sizes(value_spatial_shapes)
    total = grids.new_zeros(batch * heads, channels, queries)
    for level, (part, (h, w)) in enumerate(
        zip(torch.split(value, [h * w for h, w in sizes], dim=1), sizes, strict=True)
    ):
        image = part.permute(0, 2, 3, 1).reshape(batch * heads, channels, h, w).to(exact)
        sampled = F.grid_sample(
            image, grids[:, level], mode="bilinear", padding_mode="zeros", align_corners=False
        )
        total = total + (sampled * weights[:, None, level]).sum(2)
    return total.view(batch, heads * channels, queries).transpose(1, 2).contiguous().to(value.dtype)


def bag_attention(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The operator as one weighted ``embedding_bag`` over the corners of all points; see :func:`deformable_attention`."""
    batch, tokens, heads, channels = value.shape
    queries, levels, points = (
        sampling_locations.shape[1],
        sampling_locations.shape[3],
        sampling_locations.shape[4],
    )
    index, weight = corner_rows(value_spatial_shapes, sampling_locations, attention_weights)
    first_row = torch.arange(batch * heads, device=value.device).view(batch, 1, heads, 1) * tokens
    bags = (index + first_row).view(batch * queries * heads, levels * points * 4)
    rows = value.transpose(1, 2).reshape(batch * heads * tokens, channels)
    summed = F.embedding_bag(
        bags, rows, mode="sum", per_sample_weights=weight.view_as(bags).to(rows.dtype).contiguous()
    )
    return summed.view(batch, queries, heads * channels)


def corner_rows(
    value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Give, for every sampling point, the token numbers of its four corners and their weights.

    Returns:
        ``index`` int64 and ``weight`` float, both (B, queries, heads, levels * points * 4); a corner outside its
        level has weight 0 and a valid index.
    """
    sizes = level_sizes(value_spatial_shapes)
    counts = [h * w for h, w in sizes]
    device = sampling_locations.device
    width, height = (torch.tensor([size[i] for size in sizes], device=device).view(-1, 1) for i in (1, 0))
    start = torch.tensor([sum(counts[:i]) for i in range(len(counts))], device=device).view(-1, 1)
    x0, x1, left, right = _neighbours(sampling_locations[..., 0], width)
    y0, y1, upper, lower = _neighbours(sampling_locations[..., 1], height)
    rows = (start + y0 * width, start + y1 * width)
    heavy = (attention_weights * upper, attention_weights * lower)
    index = torch.stack([row + x for row in rows for x in (x0, x1)], -1)
    weight = torch.stack([share * side for share in heavy for side in (left, right)], -1)
    return index.flatten(3), weight.flatten(3)


def _neighbours(location: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give the two nearest indices along an axis (cut to it) and their weights, 0 for an index outside."""
    position = location * length - 0.5
    low = position.floor()
    fraction = position - low
    before = (1 - fraction) * ((low >= 0) & (low < length))
    after = fraction * ((low >= -1) & (low < length - 1))
    first = low.long()
    zero = torch.zeros_like(length)
    return first.clamp(zero, length - 1), (first + 1).clamp(zero, length - 1), before, after


def _needs_grad(*tensors: Tensor) -> bool:
    return any(tensor.requires_grad for tensor in tensors)
