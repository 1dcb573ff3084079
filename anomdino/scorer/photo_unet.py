"""A U-Net that reads a photo and maps of the same size: one number for every pixel.

The photo goes through EfficientNet-Lite0 up to stride 16 (:mod:`anomdino.scorer.efficientnet_lite`); the maps, a score
and what else is known of the pixels, join its features at every stride, and a decoder (Ronneberger et al., 2015) brings
them back to stride 2.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.scorer.efficientnet_lite import EfficientNetLite0

ENCODER_STRIDES = {2: 16, 4: 24, 8: 40, 16: 112}
"""Channels of the encoder's deepest feature at each stride."""
CHANNELS = {2: 16, 4: 32, 8: 48, 16: 64}
"""Channels of the decoder at each stride."""
GROUPS = 8


class PhotoUNet(nn.Module):
    """The network. Its normalisations in the encoder keep ImageNet's statistics, in training too.

    Args:
        maps: Number of maps beside the photo.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        strides = list(CHANNELS)
        self.encoder = EfficientNetLite0(deepest=strides[-1])
        narrow = [maps, *CHANNELS.values()]
        self.down = nn.ModuleList(
            _convolution(inputs, outputs, stride=2)
            for inputs, outputs in zip(narrow, CHANNELS.values(), strict=False)
        )
        self.join = nn.ModuleList(nn.Conv2d(ENCODER_STRIDES[s], CHANNELS[s], 1) for s in strides)
        self.mix = nn.ModuleList(_convolution(CHANNELS[s], CHANNELS[s]) for s in strides)
        self.up = nn.ModuleList(
            _convolution(CHANNELS[fine] + CHANNELS[2 * fine], CHANNELS[fine]) for fine in strides[:-1]
        )
        self.head = nn.Conv2d(CHANNELS[strides[0]], 1, 3, padding=1)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the encoder's normalisations stay as they are."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images: Tensor, context: Tensor) -> Tensor:
        """Give the number of every pixel, float32 (B, H, W).

        Args:
            images: float32 (B, 3, H, W), as :func:`anomdino.scorer.base.normalise` gives them.
            context: float32 (B, maps, H, W).
        """
        layout = torch.channels_last
        images, x = images.contiguous(memory_format=layout), context.contiguous(memory_format=layout)
        features = self.encoder.pyramid(images, CHANNELS).values()
        levels = []
        for down, join, mix, feature in zip(self.down, self.join, self.mix, features, strict=True):
            x = mix(down(x) + join(feature))
            levels.append(x)
        for up, fine in zip(reversed(self.up), reversed(levels[:-1]), strict=True):
            x = up(torch.cat([fine, _enlarged(x, fine.shape[-2:])], 1))
        return _enlarged(self.head(x), images.shape[-2:])[:, 0].float()


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.GroupNorm(GROUPS, outputs),
        nn.ReLU(inplace=True),
    )


def _enlarged(values: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)
