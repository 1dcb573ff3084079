"""Training crops, streamed: closed-set scenes, and scenes with pasted outliers.

A crop depends on the seed and on its number in the training alone, so that it is the same for any number of
loading processes, of training processes, and after a resume.
"""

from __future__ import annotations

import math
import multiprocessing
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from anomdino.data.mixing import PasteRules, paste_objects
from anomdino.data.rpl_mixing import mix_rpl, object_label
from anomdino.data.swaps import swap_region
from anomdino.errors import ConfigError, DataError
from anomdino.io.images import read_image, read_label
from anomdino.io.listing import list_images, pair_by_key
from anomdino.scorer.augment import (
    centred_photo,
    change_colours,
    cut_out,
    cut_window,
    pad_to,
    random_crop,
    shrink_to,
    zeros_of,
)
from anomdino.scorer.batches import Sample, SampleId, UInt8Array
from anomdino.seeding import derive_seed, rng

if TYPE_CHECKING:
    from anomdino.config.rpl import AugmentConfig, PasteConfig, ResidualConfig


PASTE_RANGES = {"height": 1e-6, "ground_height": 1e-6, "softness": 0.0, "match": 0.0}
"""Fields of the paste rules that are ranges, with the least value that each can have."""


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
            return made._replace(image=zeros_of(made.image), label=np.zeros_like(made.label))
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


def paste_rules(config: PasteConfig) -> PasteRules:
    """Give the rules for pasting; lists (from YAML or JSON) become tuples.

    Raises:
        ConfigError: ``rules`` names a field that the rules do not have, or gives a range whose ends are not in order.
    """
    fields: dict[str, Any] = {"scale": config.scale, "height": config.height, "edges": config.edges}
    fields |= dict(config.rules)
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    try:
        rules = PasteRules(**fields)
    except TypeError as error:
        known = ", ".join(PasteRules.__dataclass_fields__)
        raise ConfigError("rpl.residual.paste.rules", str(error), f"fields are: {known}") from error
    for name, least in PASTE_RANGES.items():
        _check_range(f"rpl.residual.paste.rules.{name}", getattr(rules, name), least)
    return rules


def _check_range(name: str, value: Any, least: float) -> None:
    fits = isinstance(value, tuple) and len(value) == 2 and all(isinstance(end, int | float) for end in value)
    if not fits or not least <= value[0] <= value[1] < math.inf:
        cure = f"give [low, high] with {least:g} <= low <= high"
        raise ConfigError(name, f"{value} is no range of numbers from {least:g}", cure)


def split_outliers(outliers: ImagePairs, holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Split outlier photos into those for training and those for validation, at random but the same every
    time.
    """
    order = rng(seed, "outlier_holdout").permutation(len(outliers)).tolist()
    held = min(round(holdout * len(order)), len(order) - 1)
    return sorted(order[held:]), sorted(order[:held] or order)
