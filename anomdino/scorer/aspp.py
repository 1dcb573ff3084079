"""Atrous spatial pyramid pooling, as DeepLabV3+ has it (Chen et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anomdino.scorer.base import resize


class ASPP(nn.Module):
    """Image pooling, a 1x1 convolution and dilated 3x3 convolutions side by side.

    The output is the concatenation, in this order, of image pooling, 1x1 and one branch per dilation: (B,
    branch_channels * (2 + len(dilations)), h, w). Convolutions have no bias; each is followed by batch
    normalisation and ReLU. Parameter names are those of RPL (``img_conv.{0,1}``, ``features.{i}.{0,1}``).

    Args:
        in_channels: Channels of the input.
        branch_channels: Channels of every branch.
        dilations: Dilation (= padding) of the 3x3 branches.
    """

    def __init__(self, in_channels: int, branch_channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            [_branch(in_channels, branch_channels, 1, 1)]
            + [_branch(in_channels, branch_channels, 3, dilation) for dilation in dilations]
        )
        self.img_conv = _branch(in_channels, branch_channels, 1, 1)
        self.out_channels = branch_channels * (2 + len(dilations))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h, w)."""
        pooled = self.img_conv(maps.mean(dim=(2, 3), keepdim=True))
        pooled = resize(pooled, maps.shape[-2:])
        return torch.cat([pooled, *(branch(maps) for branch in self.features)], dim=1)


def _branch(in_channels: int, out_channels: int, kernel: int, dilation: int) -> nn.Sequential:
    padding = dilation if kernel == 3 else 0
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
