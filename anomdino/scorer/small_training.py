"""What the trainings on a scorer's stored results share: samples drawn by number, AdamW, and a resume point.

The scorer's student is trained so (:mod:`anomdino.scorer.distillation`), and so are the small networks around a scorer,
which stays as it is: the one that joins widths (:mod:`anomdino.scorer.width_fusion_training`), the one that lowers the
score (:mod:`anomdino.scorer.refinement_training`) and the one that outlines objects
(:mod:`anomdino.adt.outline_training`). These learn from labelled images of several kinds in turns (:class:`InTurns`), of
which some are kept to measure the network by (:func:`split`), by all weights at once (:class:`SmallObjective`).
:func:`train` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn, optim
from torch.utils.data import Dataset

from anomdino.errors import DataError
from anomdino.io.digest import file_sha256, json_sha256
from anomdino.io.npz import DAMAGED, open_npz
from anomdino.scorer.batches import B, S, SampleId, StepSampler, held_back, stream
from anomdino.scorer.distributed import World
from anomdino.scorer.objectives import Objective
from anomdino.scorer.schedule import PolySchedule
from anomdino.scorer.training import Plan, Record, fit
from anomdino.seeding import rng

VOID = 2
"""Labels from here on count for nothing."""


@dataclass(frozen=True)
class SmallPlan:
    """How a network learns.

    Attributes:
        steps: Steps of the training.
        batch: Samples a step.
        lr: Peak learning rate of AdamW.
        weight_decay: Of all weights.
        warmup: Steps of a linear rise.
        clip: Largest gradient norm.
        held_out: Every so many-th image of a kind is kept to measure the network.
        checkpoint_every: Steps between resume points.
    """

    steps: int = 2000
    batch: int = 4
    lr: float = 1e-3
    weight_decay: float = 1e-3
    warmup: int = 40
    clip: float = 5.0
    held_out: int = 20
    checkpoint_every: int = 250


@dataclass(frozen=True)
class FineTuningPlan(SmallPlan):
    """A plan for a network with a trained encoder.

    Attributes:
        encoder_lr: Peak learning rate of the encoder.
    """

    encoder_lr: float = 1e-4


@dataclass(frozen=True)
class StoredItem:
    """A labelled image, stored on a network's grid.

    Attributes:
        key: What messages call it.
        file: Its ``.npz`` file.
    """

    key: str
    file: Path

    def content(self) -> str:
        """Give the SHA-256 of the file."""
        return file_sha256(self.file)


def read_arrays(path: Path, *names: str) -> list[npt.NDArray[Any]]:
    """Read arrays of a stored image's file.

    Raises:
        DataError: The file is missing or damaged, or lacks one of them.
    """
    try:
        with open_npz(path) as stored:
            return [stored[name] for name in names]
    except DAMAGED as error:
        raise DataError(path, f"is missing or damaged ({error})", "remove it and run again") from error


def mean_and_variance(maps: Iterable[npt.NDArray[np.floating]]) -> tuple[float, float]:
    """Give mean and variance over all values of maps, one map at a time; roundings may leave a variance below 0."""
    count, total, squares = 0, 0.0, 0.0
    for values in maps:
        values = values.astype(np.float64)
        count, total, squares = count + values.size, total + values.sum(), squares + np.square(values).sum()
    mean = total / count
    return mean, squares / count - mean**2


I = TypeVar("I")  # noqa: E741


@dataclass(frozen=True)
class Share(Generic[I]):
    """Images of one kind.

    Attributes:
        items: The images.
        draws: How often they are drawn from, relative to the other kinds.
    """

    items: Sequence[I]
    draws: int = 1


@dataclass(frozen=True)
class WeightedShare(Share[I]):
    """Images of one kind whose loss has a weight.

    Attributes:
        weight: Weight of their loss: small objects hold few pixels, and their loss is small.
    """

    weight: float = 1.0


K = TypeVar("K", bound=Share[Any])


class Drawn(Dataset[S]):
    """Random samples, of which one depends on the seed and on its number alone.

    Args:
        images: How many images they are drawn from.
        seed: Seed of all samples.
        name: Tells the random numbers of one training from those of another.
    """

    def __init__(self, images: int, seed: int, name: str) -> None:
        self.images, self.seed, self.name = images, seed, name

    def source(self, sample: SampleId) -> np.random.Generator:
        """Give the random numbers of a sample."""
        return rng(self.seed, self.name, sample.number)


class InTurns(Drawn[S], Generic[S, K]):
    """Random samples of kinds that take turns.

    Args:
        shares: Images by kind.
        seed: Seed of all samples.
        name: Tells the random numbers of one training from those of another.
    """

    def __init__(self, shares: Sequence[K], seed: int, name: str) -> None:
        super().__init__(sum(len(share.items) for share in shares), seed, name)
        self.turns = [share for share in shares for _ in range(share.draws)]

    def turn(self, sample: SampleId) -> tuple[np.random.Generator, K, Any]:
        """Give the random numbers of a sample, the kind whose turn it is, and the image that is drawn from it."""
        source = self.source(sample)
        share = self.turns[sample.number % len(self.turns)]
        return source, share, share.items[int(source.integers(len(share.items)))]


def split(shares: Sequence[K], every: int) -> tuple[list[K], list[K]]:
    """Split every kind into the images to learn from and those to measure by (:func:`held_back`).

    Raises:
        DataError: A kind has fewer than two images.
    """
    parts = [held_back(share.items, every) for share in shares]
    learned, kept = (
        [replace(share, items=part[index]) for share, part in zip(shares, parts, strict=True)]
        for index in (0, 1)
    )
    return learned, kept


def adamw(network: nn.Module, plan: SmallPlan, encoder: nn.Module | None = None) -> optim.AdamW:
    """Build AdamW over all weights of a network; its encoder has a rate of its own (:class:`FineTuningPlan`)."""
    slower = [] if encoder is None else list(encoder.parameters())
    own = {id(parameter) for parameter in slower}
    others = [parameter for parameter in network.parameters() if id(parameter) not in own]
    groups = [{"params": others, "base_lr": plan.lr, "factor": 1.0}]
    if slower:
        assert isinstance(plan, FineTuningPlan)
        groups.append({"params": slower, "base_lr": plan.encoder_lr, "factor": 1.0})
    return optim.AdamW(groups, plan.lr, weight_decay=plan.weight_decay)


class SmallObjective(Objective[B]):
    """The loss of a small network, all of whose weights are trained.

    Args:
        network: The network.
        world: Training processes.
        plan: Rates.
    """

    def __init__(self, network: nn.Module, world: World, plan: SmallPlan) -> None:
        super().__init__(network, world)
        self.plan = plan

    def start_step(self) -> None:
        """Train every weight; an encoder that keeps its normalisations' statistics goes on to."""
        self.scorer.train()

    def encoder(self) -> nn.Module | None:
        """Give the part of the network that has a rate of its own."""
        return None

    def optimiser(self) -> optim.Optimizer:
        """AdamW over all weights."""
        return adamw(self.scorer, self.plan, self.encoder())


def train(
    objective: Objective[B],
    dataset: Drawn[S],
    join: Callable[[list[S]], B],
    plan: SmallPlan,
    state: Path,
    *,
    measure: Callable[[], Mapping[str, float]],
    depends: Mapping[str, Any],
    per_image: int = 1,
    precision: str = "float32",
    validate_every: int = 0,
    world: World,
) -> list[Record]:
    """Train an objective on samples drawn by number; a training that was killed goes on from ``state``.

    Args:
        objective: Network and loss, on the world's device.
        dataset: Draws the samples.
        join: Stacks samples to a batch.
        plan: How the network learns.
        state: Folder of resume points.
        measure: Measures the network on kept images.
        depends: What the result depends on besides plan and seed; JSON values. A resume point of others is not taken up.
        per_image: Samples that the dataset draws of an image at a time; ``plan.batch`` is a multiple.
        precision: See :func:`anomdino.scorer.training.low_precision`.
        validate_every: Steps between measurements, 0 for one at the end.
        world: Training processes.

    Returns:
        Records of losses and measurements in order.

    Raises:
        TrainingError: The loss is not finite.
    """

    def load(first: int) -> Iterable[B]:
        batch = plan.batch // per_image
        sampler = StepSampler(
            dataset.images, batch, plan.steps, dataset.seed, start=first, rank=world.rank, world=world.size
        )
        return stream(dataset, sampler, join, 0, pin=world.device.type == "cuda")

    training = Plan(
        name=dataset.name,
        schedule=PolySchedule(plan.steps, warmup=plan.warmup),
        precision=precision,
        clip=plan.clip,
        validate_every=validate_every,
        checkpoint_every=plan.checkpoint_every,
        fingerprint=json_sha256(
            {"plan": asdict(replace(plan, checkpoint_every=0)), "seed": dataset.seed, **depends}
        ),
    )
    return fit(objective, load, measure, training, world=world, folder=state)
