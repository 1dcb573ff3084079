"""Training of the network that lowers a score by the photo (:mod:`anomdino.scorer.refinement`).

The scorer stays as it is. Photo, score and label of every labelled image are stored once on the network's grid; the
training reads crops of them, enlarged or shrunk at random, their score and colours changed
(:mod:`anomdino.scorer.changes`). The loss has three parts: the cross-entropy of the score as moved by the whole of what
the network says, up and down; an overlap where there is an object; and the cross-entropy of the score itself, which
keeps the scale on which the number of the network is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from anomdino.errors import DataError
from anomdino.io.atomic import atomic_path
from anomdino.io.npz import write_npz
from anomdino.scorer.base import normalise
from anomdino.scorer.batches import SampleId, stacked
from anomdino.scorer.changes import changed_colours, changed_score
from anomdino.scorer.distributed import World
from anomdino.scorer.photo_unet import PhotoUNet
from anomdino.scorer.refinement import Refinement, grid_size
from anomdino.scorer.scored import resized
from anomdino.scorer.small_training import (
    VOID,
    FineTuningPlan,
    InTurns,
    SmallObjective,
    StoredItem,
    WeightedShare,
    read_arrays,
    split,
    train,
)
from anomdino.scorer.training import Record
from anomdino.scorer.width_fusion_training import cross_entropy

CROP = 320
"""Rows and columns of a crop, in cells of the grid."""
ZOOM = 0.5, 1.5
"""By how much a crop is shrunk or enlarged, at most."""
ON_OBJECT = 0.5
"""Share of the crops that are drawn around a pixel of an object."""
GAIN, SHIFT = (0.6, 1.3), 0.4
"""How much the scores of a crop are changed as a whole (:func:`anomdino.scorer.changes.changed_score`)."""
LEAST = 8
"""Cells of the smallest object whose overlap counts."""

LabelMap = npt.NDArray[np.uint8]
Generator = np.random.Generator


@dataclass(frozen=True)
class RefinementPlan(FineTuningPlan):
    """How the network learns.

    Attributes:
        overlap: Weight of 1 - Dice beside the cross-entropy.
        anchor: Weight of the cross-entropy of the score itself.
    """

    steps: int = 1500
    lr: float = 5e-4
    encoder_lr: float = 5e-5
    overlap: float = 0.3
    anchor: float = 0.3


@dataclass(frozen=True)
class RefinementShare(WeightedShare[StoredItem]):
    """Images of one kind, stored by :func:`write_item`.

    Attributes:
        shown: Probability that the network sees a crop's photo, and not only the score: what it learns of pasted objects
            by their looks does not hold for real ones.
    """

    shown: float = 1.0


class Sample(NamedTuple):
    """A crop.

    Attributes:
        image: float32 (3, 320, 320), normalised RGB; 0 beyond the image.
        level: float32 (320, 320), standardised score; 0 beyond the image.
        frame: float32 (320, 320), 1 in the image.
        label: uint8 (320, 320), 0, 1, 255 for void.
        weight: Weight of its loss.
        key: Of its image.
    """

    image: Tensor
    level: Tensor
    frame: Tensor
    label: Tensor
    weight: float
    key: str


class SampleBatch(NamedTuple):
    """Crops of one step, stacked."""

    images: Tensor
    levels: Tensor
    frames: Tensor
    labels: Tensor
    weights: Tensor
    keys: list[str]


def write_item(
    path: Path, image: npt.NDArray[np.uint8], score: npt.NDArray[np.float32], label: LabelMap
) -> None:
    """Store an image with its score and its label on the network's grid.

    Args:
        path: Final ``.npz`` file: ``image`` uint8 (h, 640, 3), ``score`` float16 (h, 640), ``label`` uint8 (h, 640; 0, 1,
            void from 2 on).
        image: uint8 (H, W, 3), RGB.
        score: float32 (H, W).
        label: uint8 (H, W).

    Raises:
        DataError: They are not of one size.
    """
    size = (image.shape[0], image.shape[1])
    if not score.shape == label.shape == size:
        raise DataError(
            path.name,
            f"has a score of {score.shape} and a label of {label.shape} for {size}",
            "make them equal",
        )
    grid = grid_size(*size)
    maps = torch.cat([torch.from_numpy(image).permute(2, 0, 1).float(), torch.from_numpy(score)[None]])
    small = resized(maps[None], grid)[0].numpy()
    stored = {
        "image": np.clip(np.rint(small[:3]), 0, 255).astype(np.uint8).transpose(1, 2, 0),
        "score": small[3].astype(np.float16),
        "label": np.asarray(cv2.resize(label, grid[::-1], interpolation=cv2.INTER_NEAREST)),
    }
    with atomic_path(path) as temporary:
        write_npz(temporary, stored)


def read_item(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], LabelMap]:
    """Read image, score, float32, and label of a file of :func:`write_item`.

    Raises:
        DataError: The file is missing or damaged.
    """
    image, score, label = read_arrays(path, "image", "score", "label")
    return image, score.astype(np.float32), label


class Crops(InTurns[Sample, RefinementShare]):
    """Random crops.

    Args:
        shares: Images by kind.
        statistics: Mean and standard deviation of the scores.
        seed: Seed of all crops.
    """

    def __init__(self, shares: Sequence[RefinementShare], statistics: tuple[float, float], seed: int) -> None:
        super().__init__(shares, seed, "refinement")
        self.statistics = statistics

    def __getitem__(self, sample: SampleId) -> Sample:
        """Draw the crop of a number."""
        source, share, item = self.turn(sample)
        return draw_sample(source, item, share, self.statistics)


def draw_sample(
    source: Generator, item: StoredItem, share: RefinementShare, statistics: tuple[float, float]
) -> Sample:
    """Draw a crop of an image, changed at random."""
    image, score, label = read_item(item.file)
    corner, side = draw_place(source, label)
    frame = crop(np.ones(label.shape, np.float32), corner, side, 0)
    colours, label = crop(image, corner, side, 0), crop(label, corner, side, 255, nearest=True)
    mean, std = statistics
    level = crop((score - np.float32(mean)) / np.float32(std), corner, side, 0)
    frame = (frame > 0.5).astype(np.float32)
    level = changed_score(source, level, label == 0, GAIN, SHIFT) * frame
    shown = normalise(torch.from_numpy(changed_colours(source, colours))[None])[0] * torch.from_numpy(frame)
    shown = shown if source.random() < share.shown else torch.zeros_like(shown)
    label = np.where(frame > 0, label, np.uint8(255))
    parts = [shown, *(torch.from_numpy(part) for part in (level, frame, label))]
    if source.random() < 0.5:
        parts = [part.flip(-1) for part in parts]
    return Sample(parts[0], parts[1], parts[2], parts[3], share.weight, item.key)


def draw_place(source: Generator, label: LabelMap) -> tuple[tuple[int, int], int]:
    """Draw where a crop begins, row and column, and its side, in cells of an image; it may reach beyond the image."""
    side = round(CROP / float(np.exp(source.uniform(*np.log(ZOOM)))))
    centre = source.integers(label.shape)
    cells = np.flatnonzero(label == 1)
    if len(cells) and source.random() < ON_OBJECT:
        cell = np.unravel_index(int(source.choice(cells)), label.shape)
        centre = np.array(cell) + source.integers(-(side // 3), side // 3 + 1, 2)
    spare = np.array(label.shape) - side
    corner = np.clip(centre - side // 2, np.minimum(0, spare), np.maximum(0, spare))
    return (int(corner[0]), int(corner[1])), side


def crop(
    values: npt.NDArray[Any], corner: tuple[int, int], side: int, beyond: float, *, nearest: bool = False
) -> npt.NDArray[Any]:
    """Cut a square out of (H, W) or (H, W, 3) and bring it to 320 cells a side; ``beyond`` fills what lies outside."""
    square = np.full((side, side, *values.shape[2:]), beyond, values.dtype)
    low = [max(0, start) for start in corner]
    high = [min(length, start + side) for length, start in zip(values.shape, corner, strict=False)]
    there = tuple(slice(a - start, b - start) for a, b, start in zip(low, high, corner, strict=True))
    square[there] = values[low[0] : high[0], low[1] : high[1]]
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_AREA if side > CROP else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (CROP, CROP), interpolation=how))


def join(samples: list[Sample]) -> SampleBatch:
    """Stack crops."""
    return stacked(SampleBatch, samples)


class Calibrated(nn.Module):
    """The network with the slope and the offset by which a standardised score becomes a logit, for training alone."""

    def __init__(self, network: Refinement) -> None:
        super().__init__()
        self.refinement = network
        self.slope = nn.Parameter(torch.tensor(1.5))
        self.offset = nn.Parameter(torch.tensor(-4.0))

    def forward(self, batch: SampleBatch) -> tuple[Tensor, Tensor]:
        """Give the logits of the score itself and of the moved one, float32 (B, h, w)."""
        moved = batch.levels + self.refinement.offsets(batch.images, batch.levels, batch.frames)
        return self.slope * batch.levels + self.offset, self.slope * moved + self.offset


class RefinementObjective(SmallObjective[SampleBatch]):
    """Cross-entropy and overlap of the moved scores, times the weight of the kind."""

    scorer: Calibrated
    plan: RefinementPlan

    def encoder(self) -> nn.Module:
        """Give the network's encoder."""
        return self.scorer.refinement.network.encoder

    def forward(self, batch: SampleBatch, **hints: Any) -> dict[str, Tensor]:
        """Give ``loss``, and the cross-entropy ``before`` and ``after``, without weights."""
        plain, moved = self.scorer(batch)
        before, after = (cross_entropy(logits, batch.labels) for logits in (plain, moved))
        losses = after + self.plan.overlap * lacking(moved, batch.labels) + self.plan.anchor * before
        return {"loss": (losses * batch.weights).mean(), "before": before.mean(), "after": after.mean()}


def lacking(logits: Tensor, labels: Tensor) -> Tensor:
    """Give 1 - Dice of each image, 0 where it has no object: float32 (B,).

    Args:
        logits: float32 (B, h, w).
        labels: uint8 (B, h, w); void from 2 on.
    """
    known, true = labels < VOID, (labels == 1).float()
    found = logits.sigmoid() * known
    dice = (2 * (found * true).sum((1, 2)) + 1) / (found.sum((1, 2)) + true.sum((1, 2)) + 1)
    return (1 - dice) * (true.sum((1, 2)) > LEAST)


@dataclass(frozen=True)
class Refined:
    """Result of :func:`train_refinement`.

    Attributes:
        network: The network, in evaluation mode.
        before: Cross-entropy of kept images, kind by kind, of the score itself.
        after: That of the score as moved by the whole of what the network says.
        history: Records of losses in order.
    """

    network: Refinement
    before: list[float]
    after: list[float]
    history: list[Record]


def train_refinement(
    shares: Sequence[RefinementShare],
    statistics: tuple[float, float],
    plan: RefinementPlan,
    state: Path,
    *,
    seed: int,
    world: World,
    start: PhotoUNet | None = None,
) -> Refined:
    """Train the network; a training that was killed goes on from ``state``.

    Args:
        shares: Labelled images of the training domain by kind, never evaluation data
            (:func:`anomdino.protocol.refuse_evaluation_data` is the caller's to ask).
        statistics: Mean and standard deviation of the scores of scenes, by which the network reads them: where nothing
            is, beyond the border, is the mean.
        plan: How it learns.
        state: Folder of resume points.
        seed: Seed of weights and crops.
        world: Training processes.
        start: A network of two maps, a score and a place, whose weights it starts from: the one that outlines objects
            (:mod:`anomdino.adt.outline_net`) knows already what belongs to an object. None: ImageNet's in the encoder.

    Raises:
        BackendMissing: ImageNet's weights are not installed.
        DataError: A kind has fewer than two images.
        TrainingError: The loss is not finite.
    """
    learned, kept = split(shares, plan.held_out)
    torch.manual_seed(seed)
    network = Calibrated(Refinement(*statistics))
    if start is None:
        network.refinement.network.encoder.load_imagenet()
    else:
        network.refinement.network.load_state_dict(start.state_dict())
    network.to(world.device)

    def measured() -> Mapping[str, float]:
        found = losses_of(network, kept, world.device)
        return {
            f"{name} {index}": value
            for index, pair in enumerate(found)
            for name, value in zip(("before", "after"), pair, strict=True)
        }

    depends = {
        "statistics": list(statistics),
        "start": None if start is None else _weights(start),
        "images": [
            [share.weight, share.draws, share.shown, *(item.content() for item in share.items)]
            for share in shares
        ],
    }
    objective, crops = RefinementObjective(network, world, plan), Crops(learned, statistics, seed)
    history = train(objective, crops, join, plan, state, measure=measured, depends=depends, world=world)
    before, after = zip(*losses_of(network, kept, world.device), strict=True)
    return Refined(network.refinement.eval().requires_grad_(False), list(before), list(after), history)


@torch.inference_mode()
def losses_of(
    network: Calibrated, shares: Sequence[RefinementShare], device: torch.device
) -> list[tuple[float, float]]:
    """Give the mean cross-entropy of whole images, kind by kind, of the score and of the moved one."""
    network.eval()
    means = []
    for share in shares:
        losses = []
        for item in share.items:
            image, score, label = read_item(item.file)
            level = network.refinement.standardised(torch.from_numpy(score)[None].to(device))
            inputs = normalise(torch.from_numpy(image)[None].to(device))
            batch = SampleBatch(
                inputs,
                level,
                torch.ones_like(level),
                torch.from_numpy(label)[None].to(device),
                torch.ones(1),
                [item.key],
            )
            losses.append([float(cross_entropy(one, batch.labels)) for one in network(batch)])
        before, after = np.mean(losses, axis=0)
        means.append((float(before), float(after)))
    return means


def _weights(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
