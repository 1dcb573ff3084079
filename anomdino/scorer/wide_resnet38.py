"""RPL's network at the size of the paper: DeepLabV3+ on WideResNet-38 with the residual anomaly block.

Sources: Liu et al., "Residual Pattern Learning for Pixel-wise Out-of-Distribution Detection in Semantic
Segmentation" (ICCV 2023), section 3 and figure 2; Wu et al., "Wider or Deeper" (2019) for the trunk; Chen et
al., "Encoder-Decoder with Atrous Separable Convolution" (ECCV 2018) for ASPP and decoder. Parameter names are
those of the published RPL checkpoints (``branch1.mod4.block2.convs.conv1.weight``), so that they load
strictly: 302 entries, 167,998,832 parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.errors import ConfigError
from anomdino.scorer.aspp import ASPP
from anomdino.scorer.base import NUM_CLASSES, ScorerSpec, resize
from anomdino.scorer.residual import ClosedSetFeatures, DecoderScorer, ResidualBlock


@dataclass(frozen=True)
class Stage:
    """One stage of the trunk: identity-mapping blocks that share a shape.

    Attributes:
        name: name of the stage in the checkpoint.
        blocks: number of blocks.
        channels: output channels of each convolution of a block; three of them make a bottleneck.
        kernels: kernel size of each convolution of a block.
        pooled: a 3x3 max-pooling of stride 2 precedes the stage.
        stride: stride of the first convolution (and of the projecting shortcut) of the first block.
        dilation: dilation of every 3x3 convolution.
        dropout: probability of dropping a whole channel before the last convolution, in training only.
    """

    name: str
    blocks: int
    channels: tuple[int, ...]
    kernels: tuple[int, ...] = (3, 3)
    pooled: bool = False
    stride: int = 1
    dilation: int = 1
    dropout: float = 0.0


STEM_CHANNELS = 64
TRUNK: tuple[Stage, ...] = (
    Stage("mod2", 3, (128, 128), pooled=True),
    Stage("mod3", 3, (256, 256), pooled=True),
    Stage("mod4", 6, (512, 512), stride=2),
    Stage("mod5", 3, (512, 1024), dilation=2),
    Stage("mod6", 1, (512, 1024, 2048), kernels=(1, 3, 1), dilation=4, dropout=0.3),
    Stage("mod7", 1, (1024, 2048, 4096), kernels=(1, 3, 1), dilation=4, dropout=0.5),
)
LOW_LEVEL_STAGE = "mod2"
ASPP_DILATIONS = (12, 24, 36)
ASPP_CHANNELS = 256
LOW_LEVEL_CHANNELS = 48


def norm_relu(channels: int) -> nn.Sequential:
    """Batch normalisation and ReLU; the ReLU overwrites the fresh output of the normalisation."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Convolution without bias whose padding keeps the size (divided by the stride, rounded up)."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)


class IdentityBlock(nn.Module):
    """Pre-activation residual block: ``convs(relu(bn(x))) + shortcut``, nothing after the sum.

    The shortcut is the raw input, or ``proj_conv(relu(bn(x)))`` where stride or channel count change.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...], stage: Stage, stride: int) -> None:
        super().__init__()
        self.bn1 = norm_relu(in_channels)
        self.proj_conv = None
        if stride != 1 or in_channels != channels[-1]:
            self.proj_conv = conv(in_channels, channels[-1], 1, stride)
        self.convs = nn.Sequential(self._layers(in_channels, channels, stage, stride))

    @staticmethod
    def _layers(
        in_channels: int, channels: tuple[int, ...], stage: Stage, stride: int
    ) -> OrderedDict[str, nn.Module]:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        sizes = (in_channels, *channels)
        for number, kernel in enumerate(stage.kernels, start=1):
            if number > 1:
                layers[f"bn{number}"] = norm_relu(sizes[number - 1])
            if number == len(stage.kernels) and stage.dropout > 0:
                layers["dropout"] = nn.Dropout2d(stage.dropout)
            first_stride = stride if number == 1 else 1
            layers[f"conv{number}"] = conv(
                sizes[number - 1], sizes[number], kernel, first_stride, stage.dilation
            )
        return layers

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) to (B, C', ceil(h / stride), ceil(w / stride))."""
        activated = self.bn1(features)
        output: Tensor = self.convs(activated)
        return output.add_(features if self.proj_conv is None else self.proj_conv(activated))


class DeepLabV3PlusWideResNet38(nn.Module):
    """The single branch of RPL's network, its children in the order of the published checkpoints."""

    def __init__(self, num_classes: int, channel_divisor: int) -> None:
        super().__init__()
        self.mod1 = nn.Sequential(OrderedDict(conv1=conv(3, STEM_CHANNELS // channel_divisor, 3)))
        in_channels = STEM_CHANNELS // channel_divisor
        low_level_channels = in_channels
        for stage in TRUNK:
            channels = tuple(width // channel_divisor for width in stage.channels)
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for number in range(1, stage.blocks + 1):
                blocks[f"block{number}"] = IdentityBlock(
                    in_channels, channels, stage, stage.stride if number == 1 else 1
                )
                in_channels = channels[-1]
            setattr(self, stage.name, nn.Sequential(blocks))
            if stage.name == LOW_LEVEL_STAGE:
                low_level_channels = in_channels
        reduced, skip = ASPP_CHANNELS // channel_divisor, LOW_LEVEL_CHANNELS // channel_divisor
        decoder = skip + reduced
        context = ASPP(in_channels, reduced, ASPP_DILATIONS)
        self.residual_block = ResidualBlock(context, context.out_channels, reduced, decoder)
        self.aspp = ASPP(in_channels, reduced, ASPP_DILATIONS)
        self.bot_fine = conv(low_level_channels, skip, 1)
        self.bot_aspp = conv(context.out_channels, reduced, 1)
        self.final = nn.Sequential(
            conv(decoder, reduced, 3), *norm_relu(reduced),
            conv(reduced, reduced, 3), *norm_relu(reduced),
            conv(reduced, num_classes, 1),
        )  # fmt: skip

    def trunk(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of the trunk.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            m2 (B, 128, h2, w2) and z (B, 4096, h8, w8), where h2 = ceil(H / 2), h4 = ceil(h2 / 2),
            h8 = ceil(h4 / 2).
        """
        features = self.mod1(images)
        low_level = images
        for stage in TRUNK:
            if stage.pooled:
                features = F.max_pool2d(features, kernel_size=3, stride=2, padding=1)
            for block in self.get_submodule(stage.name).children():
                features = block(features)
            if stage.name == LOW_LEVEL_STAGE:
                low_level = features
        return low_level, features


class WideResNet38Scorer(DecoderScorer):
    """RPL's network with 167,998,832 parameters; all names begin with ``branch1.`` as published.

    Args:
        num_classes: C, closed-set classes.
        channel_divisor: Divides every channel count but C: 1, 2, 4, 8 or 16. 1 is the published size, 16 one
            for tests.

    Raises:
        ConfigError: Another divisor.
    """

    def __init__(self, num_classes: int = NUM_CLASSES, channel_divisor: int = 1) -> None:
        super().__init__()
        if channel_divisor not in {1, 2, 4, 8, 16}:
            raise ConfigError(
                "rpl.options.channel_divisor",
                f"{channel_divisor} is not allowed",
                "use 1, 2, 4, 8 or 16",
            )
        self.spec = ScorerSpec("wide_resnet38", num_classes, {"channel_divisor": channel_divisor})
        self.branch1 = DeepLabV3PlusWideResNet38(num_classes, channel_divisor)

    def closed_set_features(self, images: Tensor) -> ClosedSetFeatures:
        """Run the trunk, the ASPP and the skip connection (see :meth:`DecoderScorer.closed_set_features`)."""
        low_level, deep = self.branch1.trunk(images)
        context = resize(self.branch1.bot_aspp(self.branch1.aspp(deep)), low_level.shape[-2:])
        return ClosedSetFeatures(deep, torch.cat([self.branch1.bot_fine(low_level), context], dim=1))

    def head(self, decoder: Tensor) -> Tensor:
        """Map decoder features (B, 304, h2, w2) to logits (B, C, h2, w2)."""
        logits: Tensor = self.branch1.final(decoder)
        return logits

    def closed_set_context(self) -> tuple[nn.Module, nn.Module]:
        """Give the closed-set ASPP and its reduction."""
        return self.branch1.aspp, self.branch1.bot_aspp

    def residual_module(self) -> ResidualBlock:
        """Give the residual block."""
        return self.branch1.residual_block

    def encoder_features(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the trunk's features: strides 2 (m2) and 8 (z) (see :meth:`Scorer.encoder_features`)."""
        low_level, deep = self.branch1.trunk(images)
        return {2: low_level, 8: deep}

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Give the parameters of the trunk."""
        names = ("mod1", *(stage.name for stage in TRUNK))
        return [parameter for name in names for parameter in self.branch1.get_submodule(name).parameters()]


def build(num_classes: int = NUM_CLASSES, channel_divisor: int = 1) -> WideResNet38Scorer:
    """Build the network with fresh weights (see :class:`WideResNet38Scorer`)."""
    return WideResNet38Scorer(num_classes, channel_divisor)
