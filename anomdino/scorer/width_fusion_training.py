"""Training of the learned fusion of widths: from the scores at every width and labels, by a cross-entropy.

The scorer stays as it is. What it gives at each width for a labelled image is stored once on the network's grid
(:func:`write_grid`); the training reads crops of these files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.errors import DataError
from anomdino.io.atomic import atomic_path
from anomdino.io.npz import write_npz
from anomdino.scorer.batches import SampleId, stacked
from anomdino.scorer.distributed import World
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.small_training import (
    VOID,
    InTurns,
    SmallObjective,
    SmallPlan,
    StoredItem,
    WeightedShare,
    mean_and_variance,
    read_arrays,
    split,
    train,
)
from anomdino.scorer.training import Record
from anomdino.scorer.width_fusion import KNOTS, WidthFusion, at_grid

CELLS = 4_000_000
"""Cells of all images, about, whose scores the rising function is fitted on."""


@dataclass(frozen=True)
class FusionPlan(SmallPlan):
    """How the fusion learns.

    Attributes:
        crop: Rows and columns of a crop, in cells of the grid.
        flip: Probability that a crop is mirrored.
    """

    warmup: int = 30
    clip: float = 1.0
    checkpoint_every: int = 500
    crop: int = 320
    flip: float = 0.5


class FusionShare(WeightedShare[StoredItem]):
    """Images of one kind, stored by :func:`write_grid`."""


class Crop(NamedTuple):
    """A crop: scores float32 (widths, h, w), label uint8 (h, w; void beyond the image), weight of its loss, key."""

    scores: Tensor
    label: Tensor
    weight: float
    key: str


class CropBatch(NamedTuple):
    """Crops of one step, stacked."""

    scores: Tensor
    labels: Tensor
    weights: Tensor
    keys: list[str]


def write_grid(
    path: Path, engine: ScoringEngine, image: npt.NDArray[np.uint8], label: npt.NDArray[np.uint8], digest: str
) -> None:
    """Score an image at every width of the engine and store the scores with the label on the fusion's grid.

    Args:
        path: Final ``.npz`` file: ``scores`` float16 (widths, h, 640), ``label`` uint8 (h, 640; 0, 1, void from 2 on),
            ``digest``.
        engine: The scorer.
        image: uint8 (H, W, 3), RGB.
        label: uint8 (H, W).
        digest: What scores and label depend on: scorer, options, and the contents of image and label.

    Raises:
        DataError: Image and label are not of one size.
    """
    size = (image.shape[0], image.shape[1])
    if label.shape != size:
        raise DataError(path.name, f"has a label of {label.shape} for an image of {size}", "make them equal")
    grid = at_grid(engine.score_widths(image), size)[0].half().cpu().numpy()
    small = cv2.resize(label, (grid.shape[2], grid.shape[1]), interpolation=cv2.INTER_NEAREST)
    with atomic_path(path) as temporary:
        write_npz(temporary, {"scores": grid, "label": np.asarray(small), "digest": np.array(digest)})


def is_written(path: Path, digest: str) -> bool:
    """Tell whether :func:`write_grid` has written a file with this digest, and all of it can still be read."""
    try:
        *_, stored = read_arrays(path, "scores", "label", "digest")
    except DataError:
        return False
    return str(stored) == digest


def read_grid(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Read scores, float32 (widths, h, 640), and label, uint8 (h, 640), of a file of :func:`write_grid`.

    Raises:
        DataError: The file is missing or damaged.
    """
    scores, label = read_arrays(path, "scores", "label")
    return scores.astype(np.float32), label


class Crops(InTurns[Crop, FusionShare]):
    """Random crops.

    Args:
        shares: Images by kind.
        plan: Size and mirroring.
        seed: Seed of all crops.
    """

    def __init__(self, shares: Sequence[FusionShare], plan: FusionPlan, seed: int) -> None:
        super().__init__(shares, seed, "width fusion")
        self.plan = plan

    def __getitem__(self, sample: SampleId) -> Crop:
        """Cut the crop of a number."""
        source, share, image = self.turn(sample)
        scores, label = read_grid(image.file)
        corner = [int(source.integers(max(1, side - self.plan.crop + 1))) for side in label.shape]
        rows, columns = (slice(start, start + self.plan.crop) for start in corner)
        scores, label = scores[:, rows, columns], label[rows, columns]
        if source.random() < self.plan.flip:
            scores, label = scores[..., ::-1], label[:, ::-1]
        missing = [(0, self.plan.crop - side) for side in label.shape]
        scores = np.pad(scores, [(0, 0), *missing], mode="edge")
        label = np.pad(label, missing, constant_values=255)
        return Crop(torch.from_numpy(scores), torch.from_numpy(label), share.weight, image.key)


def join(crops: list[Crop]) -> CropBatch:
    """Stack crops."""
    return stacked(CropBatch, crops)


class Calibrated(nn.Module):
    """The fusion with the slope and the offset by which its score becomes a logit; they serve training alone."""

    def __init__(self, fusion: WidthFusion) -> None:
        super().__init__()
        self.fusion = fusion
        self.slope = nn.Parameter(torch.tensor(1.5))
        self.offset = nn.Parameter(torch.tensor(-3.0))

    def forward(self, grid: Tensor) -> Tensor:
        """Give the logit of every cell, float32 (B, h, w), of scores on the grid or a part of it (B, widths, h, w)."""
        size = (grid.shape[-2], grid.shape[-1])
        fused = self.fusion.joined(self.fusion.gates(grid), grid.unbind(1), size)
        return self.slope * self.fusion.standardised(fused) + self.offset


class WidthFusionObjective(SmallObjective[CropBatch]):
    """Mean binary cross-entropy of a crop's cells that are not void, times the weight of its kind."""

    scorer: Calibrated

    def forward(self, batch: CropBatch, **hints: Any) -> dict[str, Tensor]:
        """Give ``loss``."""
        losses = cross_entropy(self.scorer(batch.scores), batch.labels)
        return {"loss": (losses * batch.weights).mean()}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Give the mean binary cross-entropy over the cells that are not void of each image: (B,); 0 where all are void.

    Args:
        logits: float32 (B, h, w).
        labels: uint8 (B, h, w).
    """
    known = labels < VOID
    losses = F.binary_cross_entropy_with_logits(logits, (labels == 1).float(), reduction="none")
    return (losses * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)


@dataclass(frozen=True)
class Fused:
    """Result of :func:`train_fusion`.

    Attributes:
        network: The fusion, in evaluation mode.
        before: Cross-entropy of kept images, kind by kind, of the mean of the widths with the slope and the offset that
            training began with.
        after: That of the fusion.
        history: Records of losses in order.
    """

    network: WidthFusion
    before: list[float]
    after: list[float]
    history: list[Record]


def train_fusion(
    shares: Sequence[FusionShare],
    widths: Sequence[int],
    plan: FusionPlan,
    state: Path,
    *,
    seed: int,
    world: World,
) -> Fused:
    """Train the fusion of the scores at some widths; a training that was killed goes on from ``state``.

    Args:
        shares: Labelled images of the training domain by kind, never evaluation data
            (:func:`anomdino.protocol.refuse_evaluation_data` is the caller's to ask).
        widths: The widths of the stored scores.
        plan: How it learns.
        state: Folder of resume points.
        seed: Seed of weights and crops.
        world: Training processes.

    Raises:
        DataError: A kind has fewer than two images.
        TrainingError: The loss is not finite.
    """
    learned, kept = split(shares, plan.held_out)
    torch.manual_seed(seed)
    network = Calibrated(WidthFusion(widths, *statistics(learned))).to(world.device)

    def measured() -> Mapping[str, float]:
        return {f"kind {index}": value for index, value in enumerate(losses_of(network, kept, world.device))}

    before = losses_of(network, kept, world.device)
    depends = {
        "widths": list(widths),
        "images": [
            [share.weight, share.draws, *(item.content() for item in share.items)] for share in shares
        ],
    }
    objective, crops = WidthFusionObjective(network, world, plan), Crops(learned, plan, seed)
    history = train(objective, crops, join, plan, state, measure=measured, depends=depends, world=world)
    after = losses_of(network, kept, world.device)
    return Fused(network.fusion.eval().requires_grad_(False), before, after, history)


@torch.inference_mode()
def match_levels(network: WidthFusion, shares: Sequence[FusionShare]) -> None:
    """Fit the rising function of the network: the quantiles of its score become those of the mean of the widths.

    Some four million cells are looked at, evenly from all images.

    Args:
        network: The trained network; its ``levels`` change.
        shares: Labelled images by kind.
    """
    images = [image for share in shares for image in share.items]
    fused, means = [], []
    for image in images:
        grid = torch.from_numpy(read_grid(image.file)[0])[None].to(network.levels.device)
        size = (grid.shape[-2], grid.shape[-1])
        step = size[0] * size[1] * len(images) // CELLS | 1  # odd: no column is left out
        score = network.joined(network.gates(grid), grid.unbind(1), size)
        fused.append(score.flatten()[::step].cpu().numpy())
        means.append(grid.mean(1).flatten()[::step].cpu().numpy())
    places = (1 - np.cos(np.linspace(0, np.pi, KNOTS))) / 2  # close together at both ends
    levels = [np.quantile(np.concatenate(part), places) for part in (fused, means)]
    network.levels.copy_(torch.from_numpy(np.stack([_rising(level) for level in levels])))


def _rising(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.maximum.accumulate(levels) + 1e-3 * np.arange(len(levels)))


def statistics(shares: Sequence[FusionShare]) -> tuple[float, float]:
    """Give mean and standard deviation of all stored scores."""
    mean, variance = mean_and_variance(read_grid(image.file)[0] for share in shares for image in share.items)
    return mean, float(np.sqrt(max(1e-12, variance)))


@torch.inference_mode()
def losses_of(network: Calibrated, shares: Sequence[FusionShare], device: torch.device) -> list[float]:
    """Give the mean cross-entropy of whole images, kind by kind."""
    network.eval()
    means = []
    for share in shares:
        losses = []
        for image in share.items:
            scores, label = (torch.from_numpy(part)[None].to(device) for part in read_grid(image.file))
            losses.append(float(cross_entropy(network(scores), label)))
        means.append(float(np.mean(losses)))
    return means
