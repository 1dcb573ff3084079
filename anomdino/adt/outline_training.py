"""Training of the network that outlines objects in boxes: windows around boxes, labels, a cross-entropy and an overlap.

Half of the windows surround boxes that a detector found, whatever they hold, three eighths a labelled object, with a box
drawn inexactly or far too wide around it, and the rest places without an object whose score is high, where the outline is
to be empty. Score and colours are changed at random, so that the network believes neither alone: the score is weakened,
hidden in part and made uneven, and half of the windows are as coarse as those of objects far away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.adt.model import ScoreStatistics
from anomdino.adt.outline_net import (
    LEVEL,
    SIDE,
    OutlineNet,
    View,
    Window,
    box_map,
    cut,
    inside,
    resized,
    window_of,
)
from anomdino.errors import DataError
from anomdino.io.boxes import Boxes
from anomdino.io.images import read_image, read_label
from anomdino.io.maps import read_map
from anomdino.scorer.base import normalise
from anomdino.scorer.batches import SampleId, on_device, stacked
from anomdino.scorer.changes import changed_colours, changed_score
from anomdino.scorer.distributed import World
from anomdino.scorer.small_training import VOID, FineTuningPlan, InTurns, Share, SmallObjective, split, train
from anomdino.scorer.training import Record
from anomdino.seeding import rng

PER_IMAGE = 4
"""Windows of an image that is read."""
FOUND = 0.5
"""Share of the windows around boxes that the detector found."""
EMPTY = 0.25
"""Share of the others that are around nothing."""
LEAST_OBJECT = 12
"""Pixels of the smallest object that a window is drawn around."""
LEAST_BOX = 3
LEAST_CONFIDENCE = 0.03
MOST_BOXES = 10
"""Boxes of an image that windows are drawn around: the surest, from the least confidence on."""
JITTER, FOUND_JITTER = 0.09, 0.03
"""Standard deviations of a box's sides in units of the box, and of those of found boxes."""
LOOSE, WIDEST = 0.3, 8.0
"""Share of the boxes around objects that are drawn far too wide, and how often as long as the object they are at most."""
GROWN = 0.08
"""How much of a box's sides around it the loss counts as in full."""
BEYOND = 0.3
"""Weight of the loss farther from the box."""
COARSEST = 16
"""Pixels in the side of the coarsest window."""

FloatMap = npt.NDArray[np.float32]
LabelMap = npt.NDArray[np.uint8]
Generator = np.random.Generator


@dataclass(frozen=True)
class OutlinePlan(FineTuningPlan):
    """How the network, whose encoder starts from ImageNet, learns: windows a step, four an image."""

    steps: int = 2400
    batch: int = 16
    warmup: int = 50


@dataclass(frozen=True, eq=False)
class OutlineItem:
    """A labelled image.

    Attributes:
        key: What messages call it.
        image: Its file.
        score: Its score map's, ``.npz``.
        label: Its label's, 0, 1, 255.
        boxes: Boxes of any confidence that a detector found in it.
    """

    key: str
    image: Path
    score: Path
    label: Path
    boxes: Boxes

    def content(self) -> str:
        """Give the SHA-256 of everything that training reads of the image."""
        digest = hashlib.sha256()
        for path in (self.image, self.score, self.label):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        digest.update(self.boxes.xyxy.tobytes() + self.boxes.scores.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class OutlineShare(Share[OutlineItem]):
    """Images of one kind.

    Attributes:
        shown: Probability that the network sees the image; where it does not, only score and box. What it learns of
            pasted objects by their looks does not hold for real ones.
    """

    shown: float = 1.0


class Loaded(NamedTuple):
    """An image with its standardised score, its label, and the boxes around its objects and those found, (N, 4)."""

    image: npt.NDArray[np.uint8]
    score: FloatMap
    label: LabelMap
    objects: npt.NDArray[np.float64]
    found: npt.NDArray[np.float64]


class Sample(NamedTuple):
    """A window as the network sees it, what it holds, how much each pixel counts, float32 (160, 160), and its image."""

    view: View
    target: Tensor
    weight: Tensor
    key: str


class SampleBatch(NamedTuple):
    """Windows of one step, stacked."""

    images: Tensor
    context: Tensor
    targets: Tensor
    weights: Tensor
    keys: list[str]


class Windows(InTurns[list[Sample], OutlineShare]):
    """Windows of random images.

    Args:
        shares: Images by kind.
        statistics: What scores are standardised with.
        seed: Seed of all windows.
    """

    def __init__(self, shares: Sequence[OutlineShare], statistics: ScoreStatistics, seed: int) -> None:
        super().__init__(shares, seed, "outlines")
        self.statistics = statistics

    def __getitem__(self, sample: SampleId) -> list[Sample]:
        """Draw the windows of a number from one image."""
        source, share, item = self.turn(sample)
        loaded = load(item, self.statistics)
        return [draw_sample(source, loaded, item.key, share.shown) for _ in range(PER_IMAGE)]


def load(item: OutlineItem, statistics: ScoreStatistics) -> Loaded:
    """Read an image.

    Raises:
        DataError: A file is damaged, or score, label and image are not of one size.
    """
    image, label = read_image(item.image), read_label(item.label)
    size = (image.shape[0], image.shape[1])
    if label.shape != size:
        raise DataError(item.label, f"is {label.shape}, its image {size}", "make them equal")
    score = (statistics.sign * read_map(item.score, size) - statistics.mean) / statistics.std
    kept = item.boxes.clipped(size).kept(LEAST_CONFIDENCE)
    best = np.argsort(-kept.scores, kind="stable")[:MOST_BOXES]
    found = kept.xyxy[best].astype(np.float64)
    return Loaded(image, score.astype(np.float32), label, object_boxes(label), found)


def object_boxes(label: LabelMap) -> npt.NDArray[np.float64]:
    """Give the boxes of the anomalous components, and the one around all of them: float64 (N, 4), half-open."""
    anomalous = (label == 1).astype(np.uint8)
    _, _, figures, _ = cv2.connectedComponentsWithStats(anomalous, connectivity=8)
    x, y, width, height, pixels = figures[1:].T
    boxes = np.stack([x, y, x + width, y + height], 1)[pixels >= LEAST_OBJECT].astype(np.float64)
    if len(boxes) > 1:
        boxes = np.vstack([boxes, [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]])
    return np.asarray(boxes.reshape(-1, 4), np.float64)


def draw_sample(source: Generator, loaded: Loaded, key: str, shown: float = 1.0) -> Sample:
    """Draw a window, changed at random; with the probability 1 - ``shown`` without colours."""
    box = draw_box(source, loaded)
    window = window_of(box)
    frame, area = inside(loaded.label.shape, window), box_map(box, window)
    label = cv2.resize(cut(loaded.label, window, 255), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    colours, score = resized(cut(loaded.image, window, 0)), resized(cut(loaded.score, window, 0.0))
    coarse = draw_coarseness(source, window)
    if coarse:
        colours, score = (resized(resized(part, coarse)) for part in (colours, score))
    near = box_map(grown(box, GROWN), window)
    weight = np.where(near > 0, np.float32(1), np.float32(BEYOND)) * frame * (label < VOID)
    colours, score = changed_colours(source, colours), changed_score(source, score, label == 0)
    context = np.stack([np.clip(score / LEVEL, -LEVEL, LEVEL), area]) * frame
    image = normalise(torch.from_numpy(colours)[None])[0] * torch.from_numpy(frame)
    image = image if source.random() < shown else torch.zeros_like(image)
    parts = [image, torch.from_numpy(context.astype(np.float32)), torch.from_numpy(label == 1).float()]
    parts.append(torch.from_numpy(weight.astype(np.float32)))
    if source.random() < 0.5:
        parts = [part.flip(-1) for part in parts]
    return Sample(View(parts[0], parts[1]), parts[2], parts[3], key)


def draw_box(source: Generator, loaded: Loaded) -> npt.NDArray[np.float64]:
    """Draw a box: one that was found, one around an object, or one around nothing; clipped to the image."""
    height, width = loaded.label.shape
    for _ in range(20):
        if len(loaded.found) and source.random() < FOUND:
            box = jittered(source, loaded.found[source.integers(len(loaded.found))], FOUND_JITTER)
        elif len(loaded.objects) and source.random() >= EMPTY:
            around = loaded.objects[source.integers(len(loaded.objects))]
            wide = source.random() < LOOSE
            box = loosened(source, around) if wide else jittered(source, around, JITTER)
        else:
            box = around_nothing(source, loaded)
        box = np.clip(box, 0, [width, height, width, height])
        if min(box[2] - box[0], box[3] - box[1]) >= LEAST_BOX:
            return box
    return np.array([0, 0, width, height], np.float64)


def jittered(source: Generator, box: npt.NDArray[np.float64], deviation: float) -> npt.NDArray[np.float64]:
    """Move every side of a box, by that much of the box."""
    sides = np.tile(box[2:] - box[:2], 2)
    moved: npt.NDArray[np.float64] = box + source.normal(0, deviation, 4) * sides
    return moved


def loosened(source: Generator, box: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Draw a box that holds another one somewhere in it, each of its sides up to eight times as long."""
    longer = np.exp(source.uniform(0, np.log(WIDEST), 2)) - 1
    spare = longer * (box[2:] - box[:2])
    before = spare * source.uniform(0, 1, 2)
    return np.concatenate([box[:2] - before, box[2:] + spare - before])


def grown(box: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.float64]:
    """Grow a box by a share of its sides, on each side."""
    sides = box[2:] - box[:2]
    return np.concatenate([box[:2] - share * sides, box[2:] + share * sides])


def around_nothing(source: Generator, loaded: Loaded, step: int = 4) -> npt.NDArray[np.float64]:
    """Draw a box, at most a third of the image, around a pixel without an object, the likelier the higher its score."""
    height, width = loaded.label.shape
    chance = np.exp(np.clip(loaded.score[::step, ::step].astype(np.float64), -6, 6))
    chance *= loaded.label[::step, ::step] == 0
    if not chance.any():
        return np.zeros(4)
    cell = source.choice(chance.size, p=chance.ravel() / chance.sum())
    y, x = (step * part for part in np.unravel_index(cell, chance.shape))
    wide = np.exp(source.uniform(np.log(14), np.log(max(15, width / 3))))
    high = min(wide * np.exp(source.normal(0, 0.4)), height / 1.5)
    return np.array([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2])


def draw_coarseness(source: Generator, window: Window) -> int:
    """Draw the side in pixels at which a window is seen first, for half of the windows; 0 leaves it as it is."""
    side = int(np.exp(source.uniform(np.log(COARSEST), np.log(SIDE))))
    return side if source.random() < 0.5 and side < min(SIDE, window.side) else 0


def join(samples: list[list[Sample]]) -> SampleBatch:
    """Stack the windows of several images."""
    return stacked(SampleBatch, ((*view, *rest) for some in samples for view, *rest in some))


class OutlineObjective(SmallObjective[SampleBatch]):
    """:func:`outline_loss`, the encoder's weights at a rate of their own."""

    scorer: OutlineNet

    def encoder(self) -> nn.Module:
        """Give the network's encoder."""
        return self.scorer.encoder

    def forward(self, batch: SampleBatch, **hints: Any) -> dict[str, Tensor]:
        """Give ``loss`` and, of the windows with an object, ``overlap`` (IoU at 0.5)."""
        logits = self.scorer(batch.images, batch.context)
        overlap = overlaps(logits.detach(), batch.targets, batch.weights)
        return {
            "loss": outline_loss(logits, batch.targets, batch.weights).mean(),
            "overlap": overlap.nan_to_num(0).sum() / overlap.isfinite().sum().clamp(min=1),
        }


def outline_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Give the weighted binary cross-entropy of each window, and 1 - Dice where it holds an object: (B,).

    Args:
        logits: float32 (B, h, w).
        targets: float32 (B, h, w), 0 or 1.
        weights: float32 (B, h, w), not negative.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    entropy = (losses * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1)
    found, true = logits.sigmoid() * weights, targets * weights
    dice = (2 * (found * true).sum((1, 2)) + 1) / (found.sum((1, 2)) + true.sum((1, 2)) + 1)
    return entropy + (1 - dice) * holds_object(targets, weights)


def overlaps(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Give the weighted IoU of each window at 0.5, NaN where it holds no object: (B,)."""
    found, true = (logits > 0) * weights, targets * weights
    both, either = torch.minimum(found, true).sum((1, 2)), torch.maximum(found, true).sum((1, 2))
    return torch.where(holds_object(targets, weights), both / either.clamp(min=1e-6), torch.nan)


def holds_object(targets: Tensor, weights: Tensor) -> Tensor:
    """Tell which windows have more than a few labelled pixels: bool (B,)."""
    return (targets * weights).sum((1, 2)) > 8


@dataclass(frozen=True)
class Trained:
    """Result of :func:`train_outlines`.

    Attributes:
        network: The network, in evaluation mode.
        overlap: Mean IoU of windows of kept images around objects, kind by kind; NaN where there are none.
        history: Records of losses in order.
    """

    network: OutlineNet
    overlap: list[float]
    history: list[Record]


def train_outlines(
    shares: Sequence[OutlineShare],
    statistics: ScoreStatistics,
    plan: OutlinePlan,
    state: Path,
    *,
    seed: int,
    world: World,
) -> Trained:
    """Train the network from ImageNet's weights; a training that was killed goes on from ``state``.

    Args:
        shares: Labelled images of the training domain by kind, never evaluation data
            (:func:`anomdino.protocol.refuse_evaluation_data` is the caller's to ask).
        statistics: What the ADT-Net standardises these scores with.
        plan: How it learns.
        state: Folder of resume points.
        seed: Seed of weights and windows.
        world: Training processes.

    Raises:
        BackendMissing: ImageNet's weights are not installed.
        DataError: A kind has fewer than two images.
        TrainingError: The loss is not finite.
    """
    learned, kept = split(shares, plan.held_out)
    torch.manual_seed(seed)
    network = OutlineNet()
    network.encoder.load_imagenet()
    network.to(world.device)

    def measured() -> Mapping[str, float]:
        overlap = (kept_overlap(network, share, statistics, seed) for share in kept)
        return {f"overlap {index}": value for index, value in enumerate(overlap)}

    depends = {
        "statistics": asdict(statistics),
        "images": [[share.draws, share.shown, *(item.content() for item in share.items)] for share in shares],
    }
    objective, windows = OutlineObjective(network, world, plan), Windows(learned, statistics, seed)
    history = train(
        objective,
        windows,
        join,
        plan,
        state,
        measure=measured,
        depends=depends,
        per_image=PER_IMAGE,
        world=world,
    )
    overlap = [float(history[-1][f"overlap {index}"]) for index in range(len(kept))]
    return Trained(network.eval().requires_grad_(False), overlap, history)


@torch.inference_mode()
def kept_overlap(
    network: OutlineNet, share: OutlineShare, statistics: ScoreStatistics, seed: int, most: int = 40
) -> float:
    """Give the mean IoU of windows of images of one kind; NaN if none holds an object."""
    device = next(network.parameters()).device
    values: list[Tensor] = []
    for index, item in enumerate(share.items[:most]):
        source = rng(seed, "outlines kept", index)
        loaded = load(item, statistics)
        windows = [draw_sample(source, loaded, item.key, share.shown) for _ in range(PER_IMAGE)]
        batch = on_device(join([windows]), device)
        values.append(overlaps(network(batch.images, batch.context), batch.targets, batch.weights))
    return float(torch.cat(values).nanmean())
