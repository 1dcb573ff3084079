"""Backbones beside mmdet's own: a tiny convnet, none at all, and the scorer's frozen encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomdino.detector.mmdet_parts import MODELS
from anomdino.errors import ConfigError

STRIDES = (8, 16, 32)
SCORERS = ("efficientnet_lite0",)
"""Architectures of scorers whose encoders give features at these strides."""


def _step(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@MODELS.register_module()
class TinyBackbone(nn.Module):
    """Seven 3x3 convolutions: features at strides 8, 16 and 32.

    Args:
        channels: Widths at strides 2, 4, 8, 16 and 32.
    """

    def __init__(self, channels: tuple[int, ...] = (16, 24, 48, 64, 96)) -> None:
        super().__init__()
        half, quarter, *rest = channels
        self.stem = nn.Sequential(_step(3, half, 2), _step(half, quarter, 2))
        stages = []
        before = quarter
        for width in rest:
            stages.append(nn.Sequential(_step(before, width, 2), _step(width, width, 1)))
            before = width
        self.stages = nn.ModuleList(stages)

    def init_weights(self) -> None:
        """Nothing to do: torch's initialisation is kept."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images, float (B, 3, H, W), to features (B, channels, ceil(H / s), ceil(W / s)) for s = 8, 16, 32."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)


@MODELS.register_module()
class NoBackbone(nn.Module):
    """No image features: zeros at every level, so that the detector sees the uncertainty maps alone.

    Args:
        dims: Channels of the levels.
        levels: Number of levels, from stride 8.
    """

    def __init__(self, dims: int, levels: int) -> None:
        super().__init__()
        self.dims, self.levels = dims, levels

    def init_weights(self) -> None:
        """Nothing to do: there are no weights."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give zeros (B, dims, ceil(H / s), ceil(W / s)) for s = 8, 16, ..."""
        batch, _, height, width = images.shape
        return tuple(
            images.new_zeros(batch, self.dims, -(-height // s), -(-width // s))
            for s in (8 << i for i in range(self.levels))
        )


@MODELS.register_module()
class ScorerBackbone(nn.Module):
    """The scorer's own encoder, frozen, at strides 8, 16 and 32.

    Its weights are not stored with the detector: they are the scorer's. Its features are not shared with the scorer,
    which sees the photo at other sizes (``score.widths``; ``detector.test_short_side`` here): the encoder runs for each.

    Args:
        folder: A scorer saved by ``anomdino.scorer.base.save_scorer``.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        from anomdino.scorer.base import load_scorer

        self.folder = folder
        self._scorer = [load_scorer(Path(folder)).eval().requires_grad_(False)]

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the features at strides 8, 16 and 32.

        Raises:
            ConfigError: The scorer's encoder has no features at one of them.
        """
        scorer = self._scorer[0]
        fits = scorer.spec.architecture in SCORERS
        features = scorer.encoder_features(torch.zeros(1, 3, 64, 64)) if fits else {}
        if not features.keys() >= set(STRIDES):
            raise ConfigError(
                "detector.backbone",
                f"is 'scorer', but the encoder of the architecture '{scorer.spec.architecture}', which {self.folder} "
                f"holds, does not give features at the strides {', '.join(map(str, STRIDES))}",
                f"use another backbone, or a scorer with rpl.architecture: {' or '.join(SCORERS)}",
            )
        return tuple(features[stride].shape[1] for stride in STRIDES)

    def init_weights(self) -> None:
        """Nothing to do: the scorer is trained."""

    def _apply(self, *args: Any, **kwargs: Any) -> ScorerBackbone:
        self._scorer[0]._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images, float (B, 3, H, W), to the encoder's features at strides 8, 16 and 32."""
        features = self._scorer[0].encoder_features(images)
        return tuple(features[stride] for stride in STRIDES)
