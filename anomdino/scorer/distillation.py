"""Distillation of a scorer that looks at an image at several widths into one that needs fewer of them.

The student starts as the teacher and learns, at every width of its own, what the teacher's stored results say: the
anomaly score S and the closed-set probabilities U_S. No label is needed, so any photo of the training domain teaches.
(Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; the ensemble is the same network at several
widths.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, optim
from torch.nn import functional as F

from anomdino.errors import ConfigError, DataError
from anomdino.io.digest import file_sha256
from anomdino.io.images import read_image
from anomdino.io.scores import read_score
from anomdino.scorer.base import (
    WEIGHTS_FILE,
    Scorer,
    gaussian_blur,
    load_scorer,
    normalise,
    pixel_score,
    resize,
)
from anomdino.scorer.batches import SampleId, stacked
from anomdino.scorer.distributed import World
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.objectives import Objective
from anomdino.scorer.options import ScoringOptions
from anomdino.scorer.residual import DecoderScorer
from anomdino.scorer.schedule import distillation_groups
from anomdino.scorer.scored import resized
from anomdino.scorer.small_training import Drawn, SmallPlan, mean_and_variance, train
from anomdino.scorer.training import Record
from anomdino.uncertainty import UncertaintyMaps

GRID = 4
"""Pixels of the network's input to a cell at which closed-set probabilities are compared."""


@dataclass(frozen=True)
class DistillationPlan(SmallPlan):
    """How a student learns; ``batch`` are windows, ``lr`` is that of the residual block, the decay that of matrices.

    Attributes:
        widths: Widths in pixels at which the student sees an image, one a step by turns. It scores by their mean.
        crop: (H, W) of the windows it learns from, in pixels at that width. Where the width is less than W, windows
            are as wide as it and as much lower.
        rest_factor: Factor on the rate for encoder, decoder and head.
        emphasis: How often a pixel counts whose score by the teacher is above mean + standard deviation of all.
        closed_weight: Weight of the closed-set part of the loss.
        flip: Probability that a window is mirrored.
        most_held_out: At most so many images of a folder are kept.
        validate_every: Steps between measurements, 0 for one at the end.
        precision: See :func:`anomdino.scorer.training.low_precision`.
    """

    steps: int = 1200
    lr: float = 3e-4
    weight_decay: float = 1e-4
    warmup: int = 20
    checkpoint_every: int = 100
    widths: tuple[int, ...] = (1280,)
    crop: tuple[int, int] = (608, 800)
    rest_factor: float = 0.1
    emphasis: float = 4.0
    closed_weight: float = 0.5
    flip: float = 0.5
    most_held_out: int = 8
    validate_every: int = 0
    precision: str = "auto"

    def window(self, width: int) -> tuple[int, int]:
        """Give (H, W) of the windows at a width."""
        rows, columns = self.crop
        shrunk = min(columns, width)
        return max(1, round(rows * shrunk / columns)), shrunk


@dataclass(frozen=True)
class ScoredImage:
    """An image with the teacher's results: files of the image, its score map and its uncertainty maps."""

    key: str
    image: Path
    score: Path
    maps: Path

    def content(self) -> str:
        """Give the SHA-256 of the three files, which hold all that the teacher says."""
        return "-".join(map(file_sha256, (self.image, self.score, self.maps)))


class Window(NamedTuple):
    """One window at one of the student's widths; what lies beyond the image is zero and does not count.

    Attributes:
        image: float32 (3, H, W), normalised.
        score: float32 (H, W), S of the teacher.
        valid: float32 (H, W), 1 inside the image, else 0.
        semantic: float32 (C, h, w), class probabilities of the teacher in cells of 4 x 4 pixels.
        key: Name of the image.
    """

    image: Tensor
    score: Tensor
    valid: Tensor
    semantic: Tensor
    key: str


class WindowBatch(NamedTuple):
    """Windows of one step, stacked: the tensors of :class:`Window` with a leading axis."""

    images: Tensor
    score: Tensor
    valid: Tensor
    semantic: Tensor
    keys: list[str]


class Windows(Drawn[Window]):
    """Random windows of scored images; every folder is drawn from equally often. All windows of a step have one width.

    Args:
        folders: Images of each folder.
        plan: Widths, size, mirroring and windows a step.
        stride: Pixels of an image to a cell of its uncertainty maps.
        seed: Seed of all windows.
    """

    def __init__(
        self, folders: Sequence[Sequence[ScoredImage]], plan: DistillationPlan, stride: int, seed: int
    ) -> None:
        super().__init__(sum(map(len, folders)), seed, "distillation")
        self.folders, self.plan, self.stride = folders, plan, stride

    def __getitem__(self, sample: SampleId) -> Window:
        """Cut the window of a number."""
        source = self.source(sample)
        folder = self.folders[int(source.integers(len(self.folders)))]
        width = self.plan.widths[sample.number // self.plan.batch % len(self.plan.widths)]
        window = self.cut(folder[int(source.integers(len(folder)))], width, source)
        return _mirrored(window) if source.random() < self.plan.flip else window

    def cut(self, scored: ScoredImage, width: int, source: np.random.Generator) -> Window:
        """Cut a random window of an image and resize it as scoring resizes the image to ``width``.

        Raises:
            DataError: Image, score and maps are not of one size.
        """
        image = read_image(scored.image)
        maps = UncertaintyMaps.load(scored.maps)
        size = image.shape[:2]
        score = read_score(scored.score, (size[0], size[1]))
        if tuple(maps.image_size) != size:
            raise DataError(
                scored.maps, f"is of an image of {maps.image_size}, not {size}", "score the image again"
            )
        scale, crop = width / size[1], self.plan.window(width)
        spans = [self._span(side, most, scale, source) for side, most in zip(size, crop, strict=True)]
        (rows, height), (columns, length) = spans
        cells = tuple(slice(s.start // self.stride, -(-s.stop // self.stride)) for s in (rows, columns))
        picture = normalise(torch.from_numpy(np.ascontiguousarray(image[rows, columns]))[None])
        semantic = torch.from_numpy(maps.semantic[:, cells[0], cells[1]].astype(np.float32))[None]
        target = torch.from_numpy(np.ascontiguousarray(score[rows, columns]))[None, None]
        grid = (-(-crop[0] // GRID), -(-crop[1] // GRID))
        return Window(
            _padded(resized(picture, (height, length)), crop)[0],
            _padded(resized(target, (height, length)), crop)[0, 0],
            _padded(torch.ones(1, 1, height, length), crop)[0, 0],
            _padded(resized(semantic, (-(-height // GRID), -(-length // GRID))), grid)[0],
            scored.key,
        )

    def _span(self, side: int, crop: int, scale: float, source: np.random.Generator) -> tuple[slice, int]:
        """Choose where a window lies along a side, from the edge of a cell on, and how long it becomes."""
        length = max(1, min(side, round(crop / scale)))
        start = self.stride * int(source.integers((side - length) // self.stride + 1))
        return slice(start, start + length), max(1, min(crop, round(length * scale)))


def join(windows: list[Window]) -> WindowBatch:
    """Stack windows."""
    return stacked(WindowBatch, windows)


class DistillationObjective(Objective[WindowBatch]):
    """Smooth L1 between the scores, and the Kullback-Leibler divergence of the closed-set probabilities.

    Args:
        scorer: The student.
        world: Training processes.
        plan: Rates and weights.
        options: How the student scores.
        high: The teacher's score above which a pixel counts ``plan.emphasis`` times.
    """

    scorer: DecoderScorer

    def __init__(
        self,
        scorer: DecoderScorer,
        world: World,
        plan: DistillationPlan,
        options: ScoringOptions,
        high: float,
    ) -> None:
        super().__init__(scorer, world)
        self.plan, self.options, self.high = plan, options, high

    def start_step(self) -> None:
        """Train every weight; batch normalisations keep the teacher's statistics."""
        self.scorer.eval().requires_grad_(True)

    def optimiser(self) -> optim.Optimizer:
        """AdamW over the residual block and the rest, each at its rate."""
        plan = self.plan
        groups = distillation_groups(self.scorer, plan.lr, plan.rest_factor, plan.weight_decay)
        return optim.AdamW(groups, fused=self.world.device.type == "cuda")

    def forward(self, batch: WindowBatch, **hints: Any) -> dict[str, Tensor]:
        """Give ``loss`` and its parts ``score`` and ``closed``."""
        output = self.scorer.decode(batch.images)
        score = self._score_loss(
            output.residual_logits if self.options.logits == "residual" else output.logits, batch
        )
        closed = self._closed_loss(at_cells(output.logits.float(), batch.score.shape[-2:]), batch.semantic)
        return {"loss": score + self.plan.closed_weight * closed, "score": score, "closed": closed}

    def _score_loss(self, logits: Tensor, batch: WindowBatch) -> Tensor:
        score = resize(pixel_score(logits, self.options.kind)[:, None], batch.score.shape[-2:])[:, 0]
        if self.options.blurs:
            score = gaussian_blur(score)
        counts = batch.valid * torch.where(batch.score > self.high, self.plan.emphasis, 1.0)
        distance = F.smooth_l1_loss(score, batch.score, reduction="none")
        return (distance * counts).sum() / self.world.count(counts.sum())

    def _closed_loss(self, logits: Tensor, semantic: Tensor) -> Tensor:
        divergence = torch.xlogy(semantic, semantic) - semantic * logits.log_softmax(dim=1)
        inside = semantic.sum(dim=1) > 0
        return (divergence.sum(dim=1) * inside).sum() / self.world.count(inside.sum().float())


def at_cells(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Read logits (B, C, h, w) of an input of ``size`` (H, W) in the middles of its 4 x 4 cells: (B, C, H/4, W/4).

    The logits' corners are those of the input, as everywhere in the network.
    """
    axes = []
    for side in size:
        middles = torch.arange(-(-side // GRID), device=logits.device) * GRID + (GRID - 1) / 2
        axes.append(2 * middles.clamp(max=side - 1) / max(side - 1, 1) - 1)
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1).to(logits).expand(len(logits), -1, -1, -1)
    return F.grid_sample(logits, grid, align_corners=True)


@dataclass(frozen=True)
class Distilled:
    """Result of :func:`distil`.

    Attributes:
        scorer: The student, in evaluation mode.
        before: Distances of the student as it started, at its own widths, to the teacher on held-out images, as
            :func:`distance` gives them; empty on processes that do not lead.
        after: Those of the student.
        history: Records of losses and measurements in order.
    """

    scorer: Scorer
    before: Mapping[str, float]
    after: Mapping[str, float]
    history: list[Record]


def distil(
    teacher: Path,
    options: ScoringOptions,
    folders: Sequence[Sequence[ScoredImage]],
    plan: DistillationPlan,
    state: Path,
    *,
    seed: int,
    world: World,
    start: Path | None = None,
) -> Distilled:
    """Train a student that scores at its widths as the teacher does at the teacher's.

    A training that was killed goes on from its last resume point in ``state``.

    Args:
        teacher: Folder of the scorer.
        options: How the teacher scored the images.
        folders: Scored images, folder by folder; each teaches equally often. Never evaluation data
            (:func:`anomdino.protocol.refuse_evaluation_data` is the caller's to ask).
        plan: How the student learns.
        state: Folder of resume points.
        seed: Seed of the windows.
        world: Training processes.
        start: Folder of the scorer that the student starts as; None for the teacher.

    Raises:
        ConfigError: The scorer to start from has no decoder, or the batch does not divide by the processes.
        DataError: A folder has too few images, or files do not belong together.
        TrainingError: The loss is not finite.
    """
    if plan.batch % world.size:
        raise ConfigError("batch", f"{plan.batch} does not divide by {world.size} processes", "change one")
    begun = start or teacher
    student = load_scorer(begun, world.device)
    if not isinstance(student, DecoderScorer):
        raise ConfigError(
            str(begun), f"'{student.spec.architecture}' has no decoder that could be trained", "use another"
        )
    own = replace(options, widths=plan.widths, fusion="mean")
    learned, kept = split(folders, plan)
    high = high_score([image for folder in learned for image in folder])
    before = distance(student, own, kept, world.device) if world.leads else {}
    depends = {
        "options": asdict(options),
        "start": file_sha256(begun / WEIGHTS_FILE),
        "images": [[(image.key, image.content()) for image in folder] for folder in folders],
    }
    history = train(
        DistillationObjective(student, world, plan, own, high),
        Windows(learned, plan, options.map_stride, seed),
        join,
        plan,
        state,
        measure=lambda: distance(student, own, kept, world.device),
        depends=depends,
        precision=plan.precision,
        validate_every=plan.validate_every,
        world=world,
    )
    measured = next(record for record in reversed(history) if "distance_score" in record)
    after = {name: value for name, value in measured.items() if name.startswith("distance_")}
    return Distilled(student.eval().requires_grad_(False), before, after, history)


def split(
    folders: Sequence[Sequence[ScoredImage]], plan: DistillationPlan
) -> tuple[list[list[ScoredImage]], list[ScoredImage]]:
    """Keep some images of every folder back: those to learn from, by folder, and those kept.

    Raises:
        DataError: A folder has fewer than two images.
    """
    learned: list[list[ScoredImage]] = []
    kept: dict[Path, ScoredImage] = {}
    for folder in folders:
        if len(folder) < 2:
            raise DataError("a folder of images", f"has {len(folder)}", "give at least two in each")
        back = list(folder[:: plan.held_out])[: plan.most_held_out]
        kept |= {image.image: image for image in back}
        learned.append([image for image in folder if image not in back])
    return learned, list(kept.values())


def high_score(images: Sequence[ScoredImage]) -> float:
    """Give mean + standard deviation of the teacher's scores over all pixels of the maps (h, w) of all images."""
    mean, variance = mean_and_variance(UncertaintyMaps.load(scored.maps).score for scored in images)
    return float(mean + np.sqrt(max(0.0, variance)))


def distance(
    scorer: Scorer, options: ScoringOptions, images: Sequence[ScoredImage], device: torch.device
) -> dict[str, float]:
    """Measure how far a scorer is from the teacher on whole images.

    ``distance_score`` is the mean absolute difference of S, ``distance_closed`` the mean total variation between the
    class probabilities (half the sum of their absolute differences, in [0, 1]).

    Args:
        scorer: Unchanged afterwards.
        options: How it scores.
        images: With the teacher's results.
        device: Where it runs.
    """
    engine = ScoringEngine(scorer, options, device)
    scores, closed = [], []
    for scored in images:
        found = engine.score(read_image(scored.image), scored.image)
        maps = UncertaintyMaps.load(scored.maps)
        scores.append(np.abs(found.score - read_score(scored.score)).mean())
        gap = np.abs(found.maps.semantic.astype(np.float32) - maps.semantic.astype(np.float32))
        closed.append(gap.sum(axis=0).mean() / 2)
    return {"distance_score": float(np.mean(scores)), "distance_closed": float(np.mean(closed))}


def _mirrored(window: Window) -> Window:
    image, score, valid, semantic, key = window
    return Window(image.flip(-1), score.flip(-1), valid.flip(-1), semantic.flip(-1), key)


def _padded(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Add zeros to the right and below."""
    height, width = maps.shape[-2:]
    return F.pad(maps, (0, size[1] - width, 0, size[0] - height))
