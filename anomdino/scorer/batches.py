"""What a training reads, step by step: samples, batches, and the order they come in."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from anomdino.errors import ConfigError, DataError
from anomdino.scorer.base import normalise
from anomdino.seeding import rng

UInt8Array = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

_Item = TypeVar("_Item")


class SampleId(NamedTuple):
    """One crop of a training: its number from the start, the scene it is cut from, and whether outliers go
    in.
    """

    number: int
    scene: int
    with_outliers: bool = True


class Sample(NamedTuple):
    """One crop.

    Attributes:
        image: (H, W, 3), uint8 RGB, or float32 already normalised.
        label: uint8 (H, W), train ids, 254 on pasted outliers, 255 void.
        key: Name of the scene.
        outlier_image: The outlier photo alone, as ``image``; ``None`` in closed-set training.
        outlier_label: uint8 (H, W): 0, 254 on the object, 255 padding.
    """

    image: Pixels
    label: UInt8Array
    key: str
    outlier_image: Pixels | None = None
    outlier_label: UInt8Array | None = None


class AnyBatch(Protocol):
    """What the training loop needs to know of the samples of a step: a named tuple of tensors, and who they are."""

    @property
    def keys(self) -> list[str]:
        """Names of the images, for messages."""

    def __iter__(self) -> Iterator[Any]:
        """Give the fields."""


B = TypeVar("B", bound=AnyBatch)
S = TypeVar("S")


def stacked(kind: Callable[..., B], samples: Iterable[Iterable[Any]]) -> B:
    """Make a batch of samples, whose fields are those of the batch in the same order.

    Args:
        kind: Type of the batch.
        samples: Tensors and arrays of a field have one shape and are stacked, numbers become a tensor, names a list; what
            is None stays None.
    """
    return kind(*(_stacked(values) for values in zip(*samples, strict=True)))


def _stacked(values: tuple[Any, ...]) -> Tensor | list[Any] | None:
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values))
    if isinstance(values[0], int | float):
        return torch.tensor(values)
    return None if values[0] is None else list(values)


def on_device(batch: B, device: torch.device) -> B:
    """Move every tensor of a batch to a device, without waiting where the memory is pinned."""
    kind: Callable[..., B] = type(batch)
    return kind(*(part.to(device, non_blocking=True) if isinstance(part, Tensor) else part for part in batch))


class Batch(NamedTuple):
    """Crops of one step, as tensors of the :class:`Sample` fields; labels are uint8 (B, H, W)."""

    images: Tensor
    labels: Tensor
    keys: list[str]
    outlier_images: Tensor | None = None
    outlier_labels: Tensor | None = None


def network_input(images: Tensor) -> Tensor:
    """Turn the images of a batch, uint8 or normalised float32 (B, H, W, 3), into float32 (B, 3, H, W)."""
    return normalise(images) if images.dtype == torch.uint8 else images.permute(0, 3, 1, 2)


class StepSampler(Sampler[list[SampleId]]):
    """The crops of every step of one process.

    An epoch has ``count // batch`` steps (at least one) and leaves the rest of its order out, as the
    published loader does. Every process takes its slice of the global batch.

    Args:
        count: Scenes.
        batch: Crops a step over all processes; divisible by ``world``.
        steps: Steps of the training.
        seed: Seed of the order.
        start: First step (after a resume).
        rank: Number of this process.
        world: Number of processes.
        shuffle: Draw a new order every epoch; else file order.
        outlier_probability: Share of the batches of an epoch, rounded down, that carry outliers.

    Raises:
        ConfigError: The processes cannot share the batch equally.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        steps: int,
        seed: int,
        *,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        outlier_probability: float = 1.0,
    ) -> None:
        if batch % world:
            raise ConfigError("batch", f"{batch} does not divide by {world} processes", "change one")
        self.count, self.batch, self.steps, self.seed, self.start = count, batch, steps, seed, start
        self.rank, self.local = rank, batch // world
        self.shuffle, self.outlier_probability = shuffle, outlier_probability
        self.steps_per_epoch = max(1, count // batch)

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[SampleId]]:
        epoch, order, carrying = -1, np.zeros(0, int), frozenset[int]()
        for step in range(self.start, self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order, carrying = self._order(epoch), self._carrying(epoch)
            within = step % self.steps_per_epoch
            slots = range(self.rank * self.local, (self.rank + 1) * self.local)
            yield [
                SampleId(step * self.batch + slot, int(order[within * self.batch + slot]), within in carrying)
                for slot in slots
            ]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        rounds = math.ceil(self.batch / self.count)
        source = rng(self.seed, "order", epoch)
        orders = [
            source.permutation(self.count) if self.shuffle else np.arange(self.count) for _ in range(rounds)
        ]
        return np.concatenate(orders)

    def _carrying(self, epoch: int) -> frozenset[int]:
        count = int(self.outlier_probability * self.steps_per_epoch)
        chosen = rng(self.seed, "outliers", epoch).permutation(self.steps_per_epoch)[:count]
        return frozenset(chosen.tolist())


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of one size."""
    return stacked(Batch, samples)


def load_batches(
    dataset: Dataset[Sample], sampler: Sampler[list[SampleId]], workers: int, pin: bool = False
) -> Iterable[Batch]:
    """Stream batches of crops (see :func:`stream`)."""
    return stream(dataset, sampler, collate, workers, pin)


def stream(
    dataset: Dataset[S],
    sampler: Sampler[list[SampleId]],
    join: Callable[[list[S]], B],
    workers: int,
    pin: bool = False,
) -> Iterable[B]:
    """Stream batches, each joined of its samples; the loader draws no random number of the process."""
    methods = multiprocessing.get_all_start_methods()
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=join,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
        multiprocessing_context="fork" if workers and "fork" in methods else None,
        prefetch_factor=4 if workers else None,
        timeout=300 if workers else 0,
    )
    return cast("Iterable[B]", loader)


def held_back(items: Sequence[_Item], every: int) -> tuple[list[_Item], list[_Item]]:
    """Split labelled images of one kind into those to learn from, and every so many-th to measure by, from the first on.

    Raises:
        DataError: Nothing is left to learn from.
    """
    learned = [item for index, item in enumerate(items) if index % every]
    if not learned:
        raise DataError("labelled images", "are fewer than two of a kind", "give more")
    return learned, list(items[::every])


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
