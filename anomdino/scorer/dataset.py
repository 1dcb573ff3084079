"""Training crops, streamed: closed-set scenes, and scenes with pasted outliers.

A crop depends on the seed and on its number in the training alone, so that it is the same for any number of
loading processes, of training processes, and after a resume.
"""

from __future__ import annotations

import math
import multiprocessing
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from anomdino.data.mixing import CutOut, PasteRules, paste_objects
from anomdino.data.rpl_mixing import mix_rpl, object_label
from anomdino.data.swaps import swap_region
from anomdino.errors import ConfigError, DataError
from anomdino.io.images import read_image, read_label
from anomdino.io.listing import list_images, pair_by_key
from anomdino.scorer.base import IMAGENET_MEAN, normalise
from anomdino.scorer.losses import VOID
from anomdino.seeding import derive_seed, rng

if TYPE_CHECKING:
    from anomdino.config.rpl import AugmentConfig, PasteConfig, ResidualConfig

UInt8Array = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

_Item = TypeVar("_Item")
PAD_COLOUR = tuple(round(255 * value) for value in IMAGENET_MEAN)


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
    """What the training loop needs to know of the samples of a step."""

    @property
    def keys(self) -> list[str]:
        """Names of the images, for messages."""

    def to(self, device: torch.device) -> Self:
        """Move every tensor to a device, without waiting where the memory is pinned."""


B = TypeVar("B", bound=AnyBatch)
S = TypeVar("S")


class Batch(NamedTuple):
    """Crops of one step, as tensors of the :class:`Sample` fields; labels are uint8 (B, H, W)."""

    images: Tensor
    labels: Tensor
    keys: list[str]
    outlier_images: Tensor | None = None
    outlier_labels: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Move every tensor to a device, without waiting where the memory is pinned."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.keys,
            None if self.outlier_images is None else self.outlier_images.to(device, non_blocking=True),
            None if self.outlier_labels is None else self.outlier_labels.to(device, non_blocking=True),
        )


def network_input(images: Tensor) -> Tensor:
    """Turn the images of a batch, uint8 or normalised float32 (B, H, W, 3), into float32 (B, 3, H, W)."""
    return normalise(images) if images.dtype == torch.uint8 else images.permute(0, 3, 1, 2)


class ImagePairs:
    """Images with their label (or mask) files, read on demand; a bounded part stays decoded in memory.

    Args:
        root: Folder with ``images`` and, below ``planes``, files of the same keys.
        planes: Name of the second folder: ``labels`` or ``masks``.
        allowed: Values that the second files may hold; ``None`` allows all.
        cache_mb: Memory for decoded pairs; the first pairs that fit are decoded at once, with threads, so
            that forked loading processes share them.

    Raises:
        DataError: A folder is missing or empty, a file lacks its partner or cannot be read, sizes differ, or
            a value is not allowed.
    """

    def __init__(
        self, root: Path, planes: str, allowed: Sequence[int] | None = None, cache_mb: int = 0
    ) -> None:
        self.files = pair_by_key(
            list_images(root / "images"), list_images(root / planes), ("image", planes[:-1])
        )
        if not self.files:
            raise DataError(root / "images", "holds no image", "run the download stage: `dvc repro download`")
        self._allowed = None if allowed is None else np.isin(np.arange(256), allowed)
        self._cache: dict[int, tuple[UInt8Array, UInt8Array]] = {}
        self._fill_cache(cache_mb * 2**20)

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        """Give the key of a pair."""
        return self.files[index][0]

    def __getitem__(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """Give uint8 (H, W, 3) RGB and uint8 (H, W); not to be written to."""
        return self._cache[index] if index in self._cache else self._read(index)

    def _read(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        _, image_path, plane_path = self.files[index]
        image, plane = read_image(image_path), read_label(plane_path)
        if image.shape[:2] != plane.shape:
            sizes = f"{plane.shape[1]} x {plane.shape[0]}, its image {image.shape[1]} x {image.shape[0]}"
            raise DataError(plane_path, f"is {sizes}", "make both of one size")
        if self._allowed is not None:
            counts = np.bincount(plane.ravel(), minlength=256)
            wrong = {int(v): int(counts[v]) for v in np.flatnonzero((counts > 0) & ~self._allowed)}
            if wrong:
                raise DataError(
                    plane_path,
                    f"holds values that are no class (value: pixels): {wrong}",
                    "labels are train ids below rpl.num_classes, and 255 for void",
                )
        return image, plane

    def _fill_cache(self, limit: int) -> None:
        indices = iter(range(len(self)))
        with ThreadPoolExecutor(max_workers=min(16, multiprocessing.cpu_count())) as pool:
            while chunk := [index for index, _ in zip(indices, range(64), strict=False)]:
                for index, pair in zip(chunk, pool.map(self._read, chunk), strict=True):
                    limit -= pair[0].nbytes + pair[1].nbytes
                    if limit < 0:
                        return
                    self._cache[index] = pair


class PhotoCrops(Dataset[Sample]):
    """Outlier photos in whole, shrunk where they are larger and padded to one size.

    Images are uint8 RGB (H, W, 3); labels uint8 (H, W), 254 on the object, 0 elsewhere, 255 padded.

    Args:
        outliers: Photos with object masks.
        chosen: Indices of the photos, in order.
        size: (height, width) of a crop.
    """

    def __init__(self, outliers: ImagePairs, chosen: Sequence[int], size: tuple[int, int]) -> None:
        self.outliers, self.chosen, self.size = outliers, list(chosen), size

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        """Give the photo of a place in the order."""
        number = self.chosen[index]
        photo, mask = self.outliers[number]
        fitted = shrink_to(photo, object_label(mask), self.size)
        return Sample(*pad_to(*fitted, self.size), self.outliers.key(number))


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


class ClosedSetCrops(Dataset[Sample]):
    """Augmented crops of labelled scenes."""

    def __init__(self, scenes: ImagePairs, augment: AugmentConfig, seed: int) -> None:
        self.scenes, self.augment, self.seed = scenes, augment, seed

    def __getitem__(self, sample: SampleId) -> Sample:
        """Cut the crop of a number."""
        source = rng(self.seed, "closed_set", sample.number)
        image, label = random_crop(*self.scenes[sample.scene], source, self.augment)
        return Sample(change_colours(image, source, self.augment), label, self.scenes.key(sample.scene))


class OutlierCrops(Dataset[Sample]):
    """Scenes with pasted outliers, by the published rule or by the one for several objects.

    Args:
        scenes: Inlier scenes with closed-set labels.
        outliers: Photos with object masks.
        chosen: Indices of the outlier photos that may be used.
        config: The rule and its parameters.
        seed: Seed of all draws.
        stream: Name of the draws; training and validation have streams of their own.
    """

    def __init__(
        self,
        scenes: ImagePairs,
        outliers: ImagePairs,
        chosen: Sequence[int],
        config: ResidualConfig,
        *,
        seed: int,
        stream: str = "residual",
    ) -> None:
        self.scenes, self.outliers, self.chosen = scenes, outliers, list(chosen)
        self.config, self.seed, self.stream = config, seed, stream
        self.rules = paste_rules(config.paste)

    def __getitem__(self, sample: SampleId) -> Sample:
        """Compose the crop of a number."""
        make = self._by_published_rule if self.config.rule == "rpl" else self._by_objects
        made = make(sample)
        if not sample.with_outliers and self.config.without_outliers == "zeros":
            return made._replace(image=_zeros_of(made.image), label=np.zeros_like(made.label))
        return made

    def _by_published_rule(self, sample: SampleId) -> Sample:
        source = random.Random(derive_seed(self.seed, self.stream, sample.number))
        outlier = self.chosen[source.randint(0, len(self.chosen) - 1)]
        image, label = self.scenes[sample.scene]
        mix = mix_rpl(
            image,
            label,
            *self.outliers[outlier],
            source,
            size=self.config.rpl_size,
            scales=self.config.rpl_scales,
            flip=self.config.rpl_flip,
        )
        key = self.scenes.key(sample.scene)
        if not sample.with_outliers:
            return Sample(mix.image, mix.label, key, mix.outlier_image, mix.outlier_label)
        return Sample(mix.mixed_image, mix.mixed_label, key, mix.outlier_image, mix.outlier_label)

    def _by_objects(self, sample: SampleId) -> Sample:
        source = rng(self.seed, self.stream, sample.number)
        share = self.config.whole_photos
        if sample.with_outliers and share and source.random() < share:
            return self._whole_photo(source)
        image, label = cut_window(*self._scene(sample.scene, source), source, self.config.augment)
        low, high = self.config.paste.objects
        drawn = source.choice(self.chosen, size=int(source.integers(low, high + 1)))
        if sample.with_outliers:
            objects = [cut_out(*self.outliers[int(index)]) for index in drawn]
            pasted = paste_objects(image, label, objects, source, self.rules)
            image, label = pasted.image, pasted.label
        image, label = pad_to(image, label, self.config.augment.crop)
        image = change_colours(image, source, self.config.augment)
        photo = int(drawn[0]) if len(drawn) else self.chosen[0]
        return self._with_photo(Sample(image, label, self.scenes.key(sample.scene)), photo)

    def _whole_photo(self, source: np.random.Generator) -> Sample:
        """Cut a crop of an outlier photo: 254 on the object, 0 on the scene that it was photographed in."""
        index = int(source.choice(self.chosen))
        photo, mask = self.outliers[index]
        image, label = random_crop(photo, object_label(mask), source, self.config.augment)
        image = change_colours(image, source, self.config.augment)
        return self._with_photo(Sample(image, label, self.outliers.key(index)), index)

    def _with_photo(self, sample: Sample, photo: int) -> Sample:
        """Add the outlier photo of CoroCL, where that loss is on."""
        if not self.config.corocl.enabled:
            return sample
        image, label = centred_photo(*self.outliers[photo], self.config.augment.crop)
        return sample._replace(outlier_image=image, outlier_label=label)

    def _scene(self, index: int, source: np.random.Generator) -> tuple[UInt8Array, UInt8Array]:
        """Give a scene, with regions of other scenes swapped in where that is asked for."""
        image, label = self.scenes[index]
        low, high = self.config.paste.swaps
        if high == 0:
            return image, label
        for _ in range(int(source.integers(low, high + 1))):
            other = self.scenes[int(source.integers(len(self.scenes)))]
            _, shape = cut_out(*self.outliers[int(source.choice(self.chosen))])
            image, label = swap_region((image, label), other, shape, source)
        return image, label


def random_crop(
    image: UInt8Array, label: UInt8Array, source: np.random.Generator, augment: AugmentConfig
) -> tuple[UInt8Array, UInt8Array]:
    """Scale, cut and flip at random, and pad to the crop's size (see :func:`cut_window`, :func:`pad_to`)."""
    return pad_to(*cut_window(image, label, source, augment), augment.crop)


def cut_window(
    image: UInt8Array, label: UInt8Array, source: np.random.Generator, augment: AugmentConfig
) -> tuple[UInt8Array, UInt8Array]:
    """Scale, cut and flip at random: (H, W, 3) and (H, W), at most of the crop's size.

    Only the window that is kept is resized.
    """
    height, width = augment.crop
    low, high = augment.scale
    scale = low * (high / low) ** source.random()
    rows, row_start = _window(image.shape[0], height, scale, source)
    columns, column_start = _window(image.shape[1], width, scale, source)
    window = (slice(row_start, row_start + rows), slice(column_start, column_start + columns))
    size = (min(width, round(columns * scale)), min(height, round(rows * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image[window], size, interpolation=method)
    scaled_label = cv2.resize(label[window], size, interpolation=cv2.INTER_NEAREST)
    if source.random() < augment.flip:
        scaled, scaled_label = scaled[:, ::-1], scaled_label[:, ::-1]
    return np.ascontiguousarray(scaled), np.ascontiguousarray(scaled_label)


def shrink_to(image: UInt8Array, label: UInt8Array, size: tuple[int, int]) -> tuple[UInt8Array, UInt8Array]:
    """Make a larger image, (H, W, 3) with its label (H, W), as large as fits into ``size``, sides in proportion."""
    height, width = label.shape
    factor = min(size[0] / height, size[1] / width)
    if factor >= 1:
        return image, label
    target = (max(1, int(width * factor)), max(1, int(height * factor)))
    small = np.asarray(cv2.resize(image, target, interpolation=cv2.INTER_AREA), np.uint8)
    return small, np.asarray(cv2.resize(label, target, interpolation=cv2.INTER_NEAREST), np.uint8)


def pad_to(image: UInt8Array, label: UInt8Array, size: tuple[int, int]) -> tuple[UInt8Array, UInt8Array]:
    """Put a smaller image in the middle of mean colour, its label in the middle of 255."""
    if label.shape == size:
        return image, label
    canvas, void = _canvas(size), np.full(size, VOID, np.uint8)
    _centre_into(canvas, image)
    _centre_into(void, label)
    return canvas, void


def change_colours(image: UInt8Array, source: np.random.Generator, augment: AugmentConfig) -> UInt8Array:
    """Change style, brightness, contrast, saturation, gains and gamma; blur; add noise."""
    if augment.style and source.random() < augment.style:
        image = change_style(image, source)
    if augment.grey and source.random() < augment.grey:
        image = np.asarray(
            cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8
        )
    if augment.jitter:
        brightness, contrast, saturation = 1 + augment.jitter * source.uniform(-1, 1, 3)
        gains = 1 + augment.jitter / 3 * source.uniform(-1, 1, 3)
        grey = np.array([0.299, 0.587, 0.114])
        mean = float(image.mean())
        mix = saturation * np.eye(3) + (1 - saturation) * grey[None]
        matrix = contrast * brightness * gains[:, None] * mix
        offset = (1 - contrast) * mean * brightness * gains
        transform = np.hstack([matrix, offset[:, None]])
        image = np.asarray(cv2.transform(image, transform), np.uint8)
    if augment.gamma:
        gamma = float(np.exp(augment.gamma * source.uniform(-1, 1)))
        curve = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
        image = np.asarray(cv2.LUT(image, curve), np.uint8)
    if augment.blur and source.random() < augment.blur:
        sigma = float(source.uniform(0.3, 1.5))
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    if augment.noise:
        deviation = np.float32(source.uniform(0, augment.noise))
        noisy = image + deviation * source.standard_normal(image.shape, dtype=np.float32)
        image = np.clip(noisy, 0, 255).astype(np.uint8)
    return image


def change_style(image: UInt8Array, source: np.random.Generator) -> UInt8Array:
    """Move the mean and the spread of every channel some way, at most 70 %, towards random ones.

    The target is a grey mean of 25 to 75 % with a tint, and a spread of 10 to 30 % of the range (statistics
    transfer after Reinhard et al., "Color Transfer between Images", 2001, in RGB).
    """
    mean, deviation = (item.ravel() for item in cv2.meanStdDev(image))
    strength = source.uniform(0, 0.7)
    target_mean = 255 * (source.uniform(0.25, 0.75) + source.normal(0, 0.06, 3))
    target_deviation = 255 * source.uniform(0.1, 0.3)
    gain = 1 + strength * (target_deviation / np.maximum(deviation, 4) - 1)
    offset = mean + strength * (target_mean - mean) - gain * mean
    return np.asarray(cv2.transform(image, np.hstack([np.diag(gain), offset[:, None]])), np.uint8)


def cut_out(photo: UInt8Array, mask: UInt8Array) -> CutOut:
    """Cut an object (mask > 0) out of its photo, tightly: RGB and bool mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return photo[:1, :1], np.zeros((1, 1), bool)
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return photo[window], mask[window] > 0


def centred_photo(
    photo: UInt8Array, mask: UInt8Array, size: tuple[int, int]
) -> tuple[UInt8Array, UInt8Array]:
    """Cut or pad an outlier photo about its centre to ``size``; labels 0, 254 on the object, 255 where
    padded.
    """
    canvas, label = _canvas(size), np.full(size, VOID, np.uint8)
    _centre_into(canvas, photo)
    _centre_into(label, object_label(mask))
    return canvas, label


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of one size."""
    images, labels, keys, outlier_images, outlier_labels = zip(*samples, strict=True)
    with_outliers = outlier_images[0] is not None
    return Batch(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(labels)),
        list(keys),
        torch.from_numpy(np.stack(outlier_images)) if with_outliers else None,
        torch.from_numpy(np.stack(outlier_labels)) if with_outliers else None,
    )


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


def paste_rules(config: PasteConfig) -> PasteRules:
    """Give the rules for pasting; lists (from YAML or JSON) become tuples.

    Raises:
        ConfigError: ``rules`` names a field that the rules do not have.
    """
    fields: dict[str, Any] = {"scale": config.scale, "height": config.height, "edges": config.edges}
    fields |= dict(config.rules)
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    try:
        return PasteRules(**fields)
    except TypeError as error:
        known = ", ".join(PasteRules.__dataclass_fields__)
        raise ConfigError("rpl.residual.paste.rules", str(error), f"fields are: {known}") from error


def split_outliers(outliers: ImagePairs, holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Split outlier photos into those for training and those for validation, at random but the same every
    time.
    """
    order = rng(seed, "outlier_holdout").permutation(len(outliers)).tolist()
    held = min(round(holdout * len(order)), len(order) - 1)
    return sorted(order[held:]), sorted(order[:held] or order)


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


def _window(side: int, crop: int, scale: float, source: np.random.Generator) -> tuple[int, int]:
    length = max(1, min(side, round(crop / scale)))
    return length, int(source.integers(0, side - length + 1))


def _zeros_of(image: Pixels) -> Pixels:
    """Give an image that is zero once normalised."""
    return np.zeros_like(image) if image.dtype == np.float32 else _canvas(image.shape[:2])


def _canvas(size: tuple[int, ...]) -> UInt8Array:
    return np.full((*size, 3), PAD_COLOUR, np.uint8)


def _centre_into(canvas: UInt8Array, plane: npt.NDArray[Any]) -> None:
    target, origin = [], []
    for have, want in zip(plane.shape[:2], canvas.shape[:2], strict=True):
        length = min(have, want)
        at, start = (want - length) // 2, (have - length) // 2
        target.append(slice(at, at + length))
        origin.append(slice(start, start + length))
    canvas[tuple(target)] = plane[tuple(origin)]
