"""The demo scorer: an encoder-decoder that learns to segment within minutes on two CPU cores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anomdino.scorer.aspp import ASPP
from anomdino.scorer.base import NUM_CLASSES, resize
from anomdino.scorer.residual import ClosedSetFeatures, DecoderScorer, ResidualBlock

STRIDES = (2, 4, 8, 16)


def build(
    num_classes: int = NUM_CLASSES,
    *,
    channels: Sequence[int] = (16, 24, 64, 128),
    blocks: Sequence[int] = (1, 2, 2),
    deep_channels: int = 96,
    context_channels: int = 48,
    skip_channels: int = 24,
    head_channels: int = 48,
    dilations: Sequence[int] = (2, 4, 8),
) -> SmallScorer:
    """Build the demo scorer (see :class:`SmallScorer`)."""
    return SmallScorer(
        num_classes,
        channels=channels,
        blocks=blocks,
        deep_channels=deep_channels,
        context_channels=context_channels,
        skip_channels=skip_channels,
        head_channels=head_channels,
        dilations=dilations,
    )


class SmallScorer(DecoderScorer):
    """A residual encoder to stride 16, ASPP at stride 8, and a decoder at stride 4 with a skip connection.

    Objects are small in small images: what ASPPs read joins the features of strides 8 and 16, at stride 8.

    Dense 3x3 convolutions with few channels: on a CPU they train faster than depthwise ones.

    Args:
        num_classes: C.
        channels: Channels of the encoder at strides 2, 4, 8 and 16.
        blocks: Residual blocks at strides 4, 8 and 16.
        deep_channels: Channels of the joint features that both ASPPs read.
        context_channels: Channels of an ASPP branch and of its reduction.
        skip_channels: Channels of the stride-4 skip connection after its 1x1 convolution.
        head_channels: Channels between the two convolutions of the head.
        dilations: Dilations of the ASPPs' 3x3 branches, at stride 8.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int],
        blocks: Sequence[int],
        deep_channels: int,
        context_channels: int,
        skip_channels: int,
        head_channels: int,
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, blocks)
        self.join = nn.Sequential(
            *conv_norm(channels[-2] + channels[-1], deep_channels, kernel=1), nn.ReLU(inplace=True)
        )
        self.aspp = ASPP(deep_channels, context_channels, dilations)
        self.bot_aspp = nn.Conv2d(self.aspp.out_channels, context_channels, 1, bias=False)
        self.bot_fine = nn.Conv2d(channels[1], skip_channels, 1, bias=False)
        decoder_channels = skip_channels + context_channels
        self.final = nn.Sequential(
            *conv_norm(decoder_channels, head_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(head_channels, num_classes, 1, bias=False),
        )
        self.residual_block = ResidualBlock(
            ASPP(deep_channels, context_channels, dilations),
            self.aspp.out_channels,
            context_channels,
            decoder_channels,
        )

    def closed_set_features(self, images: Tensor) -> ClosedSetFeatures:
        """See :meth:`DecoderScorer.closed_set_features`; the decoder's features have stride 4."""
        features = self.encoder(images)
        fine = features[8]
        deep = self.join(torch.cat([fine, resize(features[16], fine.shape[-2:])], dim=1))
        skip = self.bot_fine(features[4])
        context = resize(self.bot_aspp(self.aspp(deep)), skip.shape[-2:])
        return ClosedSetFeatures(deep, torch.cat([skip, context], dim=1))

    def encoder_features(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the encoder's features at strides 2, 4, 8 and 16."""
        features: dict[int, Tensor] = self.encoder(images)
        return features


class Encoder(nn.Module):
    """Four stages; each halves the size by its first block."""

    def __init__(self, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        if len(channels) != len(STRIDES) or len(blocks) != len(STRIDES) - 1:
            raise TypeError(f"strides {STRIDES} need one channel count each, and one block count less")
        first, *rest = channels
        self.stages = nn.ModuleList([nn.Sequential(*conv_norm(3, first, stride=2), nn.ReLU(inplace=True))])
        for before, after, count in zip(channels, rest, blocks, strict=False):
            further = (BasicBlock(after, after) for _ in range(count - 1))
            self.stages.append(nn.Sequential(BasicBlock(before, after, stride=2), *further))

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Give the output of every stage by stride."""
        features = {}
        maps = images
        for stride, stage in zip(STRIDES, self.stages, strict=True):
            maps = features[stride] = stage(maps)
        return features


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, ReLU after the sum."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *conv_norm(before, after, stride), nn.ReLU(inplace=True), *conv_norm(after, after)
        )
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(before, after, stride, kernel=1))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, before, h, w) to (B, after, ceil(h / stride), ceil(w / stride))."""
        return torch.relu(self.convs(maps) + self.shortcut(maps))


def conv_norm(before: int, after: int, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    """Give a convolution without bias and its batch normalisation."""
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(after)]
