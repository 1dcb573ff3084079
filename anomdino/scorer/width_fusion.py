"""Learned fusion of the scores at several widths: which width to believe, pixel by pixel.

Large objects stand out best in a small image, small ones in a large image; a mean over widths compromises. A small
network sees the scores at all widths on one grid, with their surroundings, and gives every pixel a weight for each width
and an offset:

    S = mean + std * (sum_w g_w z_w + o),  z_w = (S_w - mean) / std,  sum_w g_w = 1, g_w >= 0

It reads scores alone, no image, so it cannot learn what pasted objects look like. It starts as the mean of the widths,
and a `share` below 1 keeps that much of the mean: g = share g' + (1 - share) / widths, o = share o'. At last S is mapped
by a rising function, which changes no order, to the distribution that the mean of the widths has: what reads the scores
by fixed statistics, detector and ADT-Net, finds them where they were.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.errors import CheckpointError
from anomdino.scorer.base import load_strictly
from anomdino.scorer.beside import load_beside, save_beside
from anomdino.scorer.scored import resized

GRID_WIDTH = 640
"""Columns of the grid on which the network sees the scores of every width, whatever the size of the image."""
FORMAT = "anomdino-width-fusion-1"
CHANNELS = (12, 16, 24, 32, 32)
KNOTS = 32
"""Places at which the rising function is stored; it is linear between them and beyond the outermost."""
CURE = "train it: `python -m pipeline.release_fusion`, or set score.fusion: mean"


class WidthFusion(nn.Module):
    """A U-Net of five levels from scores at several widths to weights and an offset.

    Args:
        widths: Widths in pixels at which images are scored, in the order of the scores.
        mean: Mean of the scores that the network learned from.
        std: Their standard deviation.
        share: Share of the network in the result, in [0, 1]; the rest is the mean of the widths.
    """

    mean: Tensor
    std: Tensor
    share: Tensor
    levels: Tensor

    def __init__(
        self, widths: Sequence[int], mean: float = 0.0, std: float = 1.0, share: float = 1.0
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))
        self.register_buffer("share", torch.tensor(float(share)))
        self.register_buffer("levels", torch.linspace(-1, 1, KNOTS).repeat(2, 1))
        levels = list(itertools.pairwise(CHANNELS))
        self.stem = _convolution(2 * len(self.widths), CHANNELS[0])
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(fine, coarse, stride=2), _convolution(coarse, coarse))
            for fine, coarse in levels
        )
        self.up = nn.ModuleList(_convolution(coarse + fine, fine) for fine, coarse in levels)
        self.whole = nn.Linear(CHANNELS[-1], CHANNELS[-1])
        self.head = nn.Conv2d(CHANNELS[0], len(self.widths) + 1, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def gates(self, grid: Tensor) -> Tensor:
        """Give the weights of the widths, which sum to one, and the offset in standard deviations.

        Args:
            grid: float32 (B, widths, h, w), scores of every width on the grid (:func:`at_grid`), or a part of it.

        Returns:
            float32 (B, widths + 1, ceil(h / 2), ceil(w / 2)).
        """
        levels = self.standardised(grid)
        x = self.stem(
            torch.cat([F.avg_pool2d(levels, 2, ceil_mode=True), F.max_pool2d(levels, 2, ceil_mode=True)], 1)
        )
        finer = []
        for down in self.down:
            finer.append(x)
            x = down(x)
        x = x + self.whole(x.mean((2, 3)))[:, :, None, None]
        for up, fine in zip(reversed(self.up), reversed(finer), strict=True):
            x = up(torch.cat([fine, _enlarged(x, fine.shape[-2:])], 1))
        x = self.head(x)
        weights = torch.lerp(
            torch.full_like(x[:, :-1], 1 / len(self.widths)), x[:, :-1].softmax(1), self.share
        )
        return torch.cat([weights, self.share * x[:, -1:]], 1)

    def forward(self, scores: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Fuse the scores of images of one size.

        Args:
            scores: float32 (B, h_w, w_w), the score at each width at that width's own size.
            size: (H, W) of the images.

        Returns:
            float32 (B, H, W).
        """
        return self.mapped(self.joined(self.gates(at_grid(scores, size)), scores, size))

    def joined(self, gates: Tensor, scores: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Put scores (B, h_w, w_w) together by the gates of :meth:`gates`, whatever grid these are of: (B, H, W)."""
        fused = _enlarged(gates[:, -1:], size)[:, 0]
        for index, score in enumerate(scores):
            share = _enlarged(gates[:, index : index + 1], size)[:, 0]
            fused = fused + share * self.standardised(resized(score[:, None], size)[:, 0])
        return self.mean + self.std * fused

    def mapped(self, fused: Tensor) -> Tensor:
        """Map scores by the rising function through the points of ``levels``, float32 (2, 32): from, to."""
        old, new = self.levels
        left = (torch.bucketize(fused.contiguous(), old) - 1).clamp(0, KNOTS - 2)
        slope = (new[1:] - new[:-1]) / (old[1:] - old[:-1])
        mapped: Tensor = new[left] + slope[left] * (fused - old[left])
        return mapped

    def standardised(self, scores: Tensor) -> Tensor:
        """Give scores in standard deviations from the mean."""
        return (scores - self.mean) / self.std


def at_grid(scores: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Bring the scores (B, h_w, w_w) of images of ``size`` (H, W) to the network's grid: (B, widths, h, 640)."""
    height = max(1, round(size[0] * GRID_WIDTH / size[1]))
    return torch.stack([resized(score[:, None], (height, GRID_WIDTH))[:, 0] for score in scores], dim=1)


def fusion_file(scorer: Path | str, widths: Sequence[int]) -> Path:
    """Give where the network for these widths, in their order, lies beside a scorer's weights."""
    return Path(scorer) / f"fusion-{'-'.join(map(str, widths))}.safetensors"


def save_fusion(network: WidthFusion, scorer: Path | str, details: Mapping[str, Any] | None = None) -> None:
    """Write :func:`fusion_file` beside the weights of the scorer that it was trained for, whole or not at all.

    Args:
        network: The trained network.
        scorer: Folder of the scorer.
        details: What else the file's metadata should say; JSON values.
    """
    content = {"widths": network.widths, **(details or {})}
    save_beside(fusion_file(scorer, network.widths), network, FORMAT, content)


def load_fusion(scorer: Path | str, widths: Sequence[int]) -> WidthFusion:
    """Read the network beside a scorer's weights, in evaluation mode.

    Args:
        scorer: Folder of the scorer.
        widths: Widths at which images are scored.

    Raises:
        CheckpointError: There is none, it is damaged, or it was trained for other widths or for another scorer.
    """
    path = fusion_file(scorer, widths)
    content, tensors = load_beside(path, FORMAT, "fusion of widths", "score.fusion is learned", CURE)
    trained = tuple(content.get("widths", ()))
    if trained != tuple(widths):
        raise CheckpointError(path, f"was trained for the widths {trained}, not {tuple(widths)}", CURE)
    network = WidthFusion(trained)
    load_strictly(network, tensors, path)
    return network.eval().requires_grad_(False)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1))


def _enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
