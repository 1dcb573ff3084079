"""Convolutions of large dilation as one matrix product a tap, without the products with padding, on the CPU.

At a dilation of 36 on features of 90 x 160, 38 % of the products of a 3x3 convolution are with padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomdino.scorer.winograd import LARGEST_DILATION, TAPS, keeps_size, replace_convolutions

PIXELS_AT_ONCE = 1 << 11


def use_taps(network: nn.Module) -> int:
    """Replace, in place, the wide 3x3 convolutions of large dilation that keep the size, on the CPU.

    Returns:
        The number of convolutions replaced.
    """
    return replace_convolutions(
        network, lambda child: keeps_size(child) and child.dilation[0] > LARGEST_DILATION, TapwiseConv2d
    )


class TapwiseConv2d(nn.Module):
    """Stands for a dilated 3x3 convolution of stride 1 that keeps the size; for inference alone.

    Args:
        convolution: The convolution whose place it takes.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.dilation = convolution.dilation[0]
        weight = convolution.weight.detach()
        self.register_buffer("taps", weight.permute(2, 3, 1, 0).contiguous())  # (3, 3, C, K)
        self.bias = None if convolution.bias is None else convolution.bias.detach()

    taps: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, K, H, W), channels-last."""
        images = maps.permute(0, 2, 3, 1)
        output = images.new_zeros(*images.shape[:3], self.taps.shape[3])
        if self.bias is not None:
            output += self.bias
        rows = max(1, PIXELS_AT_ONCE // images.shape[2])
        for image, target in zip(images, output, strict=True):
            for top in range(0, len(image), rows):
                self._add_rows(image, target, top, min(top + rows, len(image)))
        return output.permute(0, 3, 1, 2)

    def _add_rows(self, image: Tensor, target: Tensor, top: int, bottom: int) -> None:
        """Add every tap's share of some rows of one image: (H, W, C) to (H, W, K)."""
        height, width, channels = image.shape
        for down in range(TAPS):
            dy = (down - 1) * self.dilation
            first, last = max(top, -dy), min(bottom, height - dy)
            for across in range(TAPS):
                dx = (across - 1) * self.dilation
                left, right = max(0, -dx), min(width, width - dx)
                if first >= last or left >= right:
                    continue
                pixels = image[first + dy : last + dy, left + dx : right + dx]
                share = torch.mm(pixels.reshape(-1, channels), self.taps[down, across])
                target[first:last, left:right] += share.view(last - first, right - left, -1)
