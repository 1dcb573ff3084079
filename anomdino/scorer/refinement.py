"""A network that lowers a score where the photo shows no object: a patch of light, a hedge, the end of a road.

A scorer judges every pixel by its surroundings, one class against the others. A network that sees the photo with the
score upon it (:class:`anomdino.scorer.photo_unet.PhotoUNet`, on a grid 640 wide) says for every pixel how much more or
less likely an anomaly it is than its score says, o in standard deviations of the score. Where that is less, the score
falls by a part of it:

    S' = S + std * min(share * o, 0)

Nothing rises: what the network takes for an object in towns that it did not see is a hedge or a bin as often as not, and
no score of such a thing should be higher than the scorer made it. The rest of the image falling, objects stand out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.scorer.base import load_strictly
from anomdino.scorer.beside import load_beside, save_beside
from anomdino.scorer.photo_unet import PhotoUNet
from anomdino.scorer.scored import resized

FILE = "refinement.safetensors"
FORMAT = "anomdino-refinement-1"
GRID_WIDTH = 640
"""Columns of the grid on which the network sees photo and score, whatever the size of the image."""
LEVEL, MOST = 3.0, 3.0
"""Standard deviations of the score that are 1 to the network, and how many of these it sees at most."""
SHARE = 0.5
START = 0.3
"""Standard deviations that the network's number moves the score by before it has learned."""
CURE = "train it: `python -m pipeline.release_refinement`, or set score.refine_net: false"


class Refinement(nn.Module):
    """The network with what its number is worth.

    Args:
        mean: Mean of the scores that it learned from.
        std: Their standard deviation.
        share: Part of o by which a score falls, in [0, 1].
    """

    mean: Tensor
    std: Tensor
    share: Tensor

    def __init__(self, mean: float = 0.0, std: float = 1.0, share: float = SHARE) -> None:
        super().__init__()
        for name, value in {"mean": mean, "std": std, "share": share}.items():
            self.register_buffer(name, torch.tensor(float(value)))
        self.network = PhotoUNet(maps=2)
        self.unit = nn.Parameter(torch.tensor(START))

    def forward(self, scores: Tensor, images: Tensor) -> Tensor:
        """Lower the scores of images of one size.

        Args:
            scores: Floating (B, H, W), higher is more anomalous.
            images: float32 (B, 3, H, W), as :func:`anomdino.scorer.base.normalise` gives them.

        Returns:
            float32 (B, H, W), on the scale of the scores and nowhere above them.
        """
        grid = grid_size(scores.shape[-2], scores.shape[-1])
        levels = self.standardised(resized(scores.float()[:, None], grid)[:, 0])
        offsets = self.offsets(resized(images, grid), levels, torch.ones_like(levels))
        size = (scores.shape[-2], scores.shape[-1])
        moves = F.interpolate(offsets[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        return scores.float() + self.std * (self.share * moves).clamp(max=0)

    def offsets(self, images: Tensor, levels: Tensor, frame: Tensor) -> Tensor:
        """Give o of every cell, in standard deviations: float32 (B, h, w).

        Args:
            images: float32 (B, 3, h, w), on the grid, or a part of it; 0 beyond the image.
            levels: float32 (B, h, w), standardised scores; 0 beyond the image.
            frame: float32 (B, h, w), 1 in the image and 0 beyond it.
        """
        seen = (levels / LEVEL).clamp(-MOST, MOST)
        offsets: Tensor = self.unit * self.network(images, torch.stack([seen, frame], 1))
        return offsets

    def standardised(self, scores: Tensor) -> Tensor:
        """Give scores in standard deviations from the mean."""
        return (scores - self.mean) / self.std


def grid_size(height: int, width: int) -> tuple[int, int]:
    """Give rows and columns of the grid for an image of a size."""
    return max(1, round(height * GRID_WIDTH / width)), GRID_WIDTH


def refinement_file(scorer: Path | str) -> Path:
    """Give where the network lies beside a scorer's weights."""
    return Path(scorer) / FILE


def save_refinement(
    network: Refinement, scorer: Path | str, details: Mapping[str, Any] | None = None
) -> None:
    """Write :func:`refinement_file` in half precision beside the scorer that it was trained for, whole or not at all.

    Args:
        network: The trained network.
        scorer: Folder of the scorer.
        details: What else the file's metadata should say; JSON values.
    """
    save_beside(refinement_file(scorer), network, FORMAT, details or {}, half=True)


def load_refinement(scorer: Path | str) -> Refinement:
    """Read the network beside a scorer's weights, in evaluation mode. No code of the file is executed.

    Args:
        scorer: Folder of the scorer.

    Raises:
        CheckpointError: There is none, it is damaged, or it was trained for another scorer.
    """
    path = refinement_file(scorer)
    _, tensors = load_beside(path, FORMAT, "network of this kind", "score.refine_net is true", CURE)
    network = Refinement()
    load_strictly(network, tensors, path)
    return network.eval().requires_grad_(False)
