"""Training data of ADT-Net, streamed from disk: score maps, labels and boxes of composed images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anomdino.adt.losses import VOID
from anomdino.adt.model import ScoreStatistics
from anomdino.errors import DataError
from anomdino.io.boxes import Boxes, read_box_results
from anomdino.io.images import read_image, read_label
from anomdino.io.listing import image_key, list_files, list_images, pair_by_key
from anomdino.io.maps import MAP_SUFFIXES, read_map
from anomdino.protocol import refuse_evaluation_data
from anomdino.seeding import derive_seed, rng


@dataclass(frozen=True)
class TrainingFiles:
    """Where the training data lies.

    Args:
        scores: Folder of score maps, in any format of :func:`anomdino.io.maps.read_map`.
        labels: Folder of ``<key>.png`` with 0, 1, 255.
        boxes: COCO results of detectors that were not trained on the image; with a parquet table of the same
            name beside it, only the images listed there are used.
        index: COCO data set (``ood.json``) that names the source of each composed image; optional.
        images: Folder of the images, by whose colours objects are outlined; None where nothing outlines them.
    """

    scores: Path
    labels: Path
    boxes: Path
    index: Path | None = None
    images: Path | None = None


@dataclass(frozen=True, eq=False)
class Item:
    """One composed image: its key, its files, the image it was made from, and its boxes.

    ``image``, its pixels, is there where objects are to be outlined.
    """

    key: str
    score: Path
    label: Path
    source: str
    boxes: Boxes
    image: Path | None = None


@dataclass(frozen=True)
class CropRules:
    """How training crops are drawn (see `anomdino.config.adt` for the meaning of each)."""

    crop: int = 256
    object_crops: float = 0.5
    scale_min: float = 0.5
    flip: float = 0.5
    box_score: float = 0.3
    box_jitter: float = 0.1
    box_drop_min: float = 0.1
    box_drop_max: float = 0.3
    box_drop_all: float = 0.15


class Crop(NamedTuple):
    """A training crop; the region means are those of the whole image, in units of the score."""

    scores: Tensor  # (1, h, w) float32
    labels: Tensor  # (1, h, w) uint8
    inside: Tensor  # (1, h, w) bool
    mean_fg: Tensor  # (1, 1, 1) float32
    mean_bg: Tensor  # (1, 1, 1) float32
    has_boxes: Tensor  # (1, 1, 1) bool


def list_items(files: TrainingFiles) -> list[Item]:
    """List the composed images that have honest boxes, sorted by key.

    Raises:
        ProtocolError: A file or folder is evaluation data.
        DataError: A score has no label or the reverse, a file is missing, or nothing is left.
    """
    given = (files.scores, files.labels, files.boxes, files.index, files.images)
    refuse_evaluation_data(*(path for path in given if path is not None))
    if files.scores.is_dir() and not files.labels.is_dir():
        raise DataError(
            files.labels,
            "is not there: ADT-Net learns from masks, and this training set has boxes alone, as S2M's published one",
            "compose a training set with masks: `dvc repro compose`",
        )
    scores, labels = list_files(files.scores, MAP_SUFFIXES), list_files(files.labels, {".png"})
    pairs = pair_by_key(scores, labels, ("score", "label"))
    boxes = read_box_results(files.boxes, [key for key, _, _ in pairs])
    images = list_images(files.images) if files.images else {}
    if files.images:
        pair_by_key(scores, images, ("score", "image"))
    detected = _detected_keys(files.boxes)
    sources = _sources(files.index)
    items = [
        Item(key, score, label, sources.get(key, key), boxes[key], images.get(key))
        for key, score, label in pairs
        if detected is None or key in detected
    ]
    if not items:
        raise DataError(files.boxes, "lists none of the composed images", "run the detect stage on them")
    return items


def by_folder_of(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Sort items by the folder in their key: "" for those in none, "a" for "a/1", "a/b" for "a/b/1"."""
    kinds: dict[str, list[Item]] = {}
    for item in items:
        kinds.setdefault(item.key.rpartition("/")[0], []).append(item)
    return kinds


def hold_out(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split items into training and held-out ones, all images of a source on the same side.

    The sources with the smallest seeded hash are held out, at least one, until they have ``share`` of the
    images.

    Raises:
        DataError: There are not two sources.
    """
    sources = {item.source for item in items}
    if len(sources) < 2:
        raise DataError("training set", f"comes from {len(sources)} source image", "compose from two or more")
    held: set[str] = set()
    by_hash = sorted(sources, key=lambda source: derive_seed(seed, "adt", "holdout", source))
    for source in by_hash[:-1]:
        if held and sum(item.source in held for item in items) >= share * len(items):
            break
        held.add(source)
    return [i for i in items if i.source not in held], [i for i in items if i.source in held]


def check_label(path: Path, label: npt.NDArray[np.uint8]) -> None:
    """Refuse a label with other values than 0, 1 and 255; the message counts them."""
    counts = np.bincount(label.ravel(), minlength=VOID + 1)
    wrong = {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value not in (0, 1, VOID)}
    if wrong:
        raise DataError(path, f"has the values {wrong} (value: pixels)", "labels hold 0, 1 and 255")


def read_item(item: Item) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Read score map and label of an image, both (H, W).

    Raises:
        DataError: A file is damaged, the sizes differ, or the label has values other than 0, 1, 255.
    """
    label = read_label(item.label)
    score = read_map(item.score)
    if label.shape != score.shape:
        sizes = " x ".join(map(str, label.shape)), " x ".join(map(str, score.shape))
        raise DataError(
            item.label,
            f"is {sizes[0]}, its score map {item.score} is {sizes[1]} (H x W)",
            "make both the image's size",
        )
    check_label(item.label, label)
    return score, label


def read_photo(item: Item, size: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    """Read the pixels of an item, uint8 (H, W, 3) RGB; None where its image is not known.

    Raises:
        DataError: The file is damaged, or not of the score's size.
    """
    if item.image is None:
        return None
    photo = read_image(item.image)
    if photo.shape[:2] != size:
        raise DataError(item.image, f"is {photo.shape[:2]}, its score {size} (H, W)", "score the image again")
    return photo


def measure_scores(maps: Iterable[npt.NDArray[np.float32]], sign: int = 1) -> ScoreStatistics:
    """Measure mean and standard deviation of ``sign * score`` over all pixels, one map at a time.

    Args:
        maps: Score maps (H, W); an iterator that reads them when asked keeps memory constant.
        sign: -1 for a method whose higher scores are more normal.

    Raises:
        DataError: There is no map, or all scores are equal.
    """
    count, mean, squares = 0, 0.0, 0.0
    for stored in maps:
        score = sign * stored.astype(np.float64)
        delta = score.mean() - mean
        total = count + score.size
        squares += score.var() * score.size + delta**2 * count * score.size / total
        mean, count = mean + delta * score.size / total, total
    if not count:
        raise DataError("score maps", "there are none", "check the folder of score maps")
    deviation = float(np.sqrt(squares / count))
    if not deviation > 1e-6 * abs(mean):
        raise DataError(
            "score maps", f"all scores are (nearly) {mean:g}", "maps without contrast rank nothing"
        )
    return ScoreStatistics(mean=float(mean), std=deviation, sign=1 if sign > 0 else -1)


def digest(items: Sequence[Item]) -> str:
    """Give the SHA-256 of all inputs of the items: keys, scores, labels, boxes, and images where they are known."""
    total = hashlib.sha256()
    for item in items:
        boxes = item.boxes.xyxy.tobytes() + item.boxes.scores.tobytes()
        files = [item.score, item.label, *([item.image] if item.image else [])]
        for part in (item.key.encode(), *(file.read_bytes() for file in files), boxes):
            total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


class CropDataset(Dataset[Crop]):
    """Training crops of one epoch; crop ``i`` depends on seed, epoch and ``i`` alone, not on the process.

    Args:
        items: Training images.
        rules: How crops are drawn.
        samples: Number of crops.
        seed: Root seed.
        epoch: Number of the epoch.
    """

    def __init__(self, items: Sequence[Item], rules: CropRules, samples: int, seed: int, epoch: int) -> None:
        self.items, self.rules, self.samples, self.seed, self.epoch = items, rules, samples, seed, epoch
        rounds = -(-samples // len(items))
        draw = rng(seed, "adt", "order", epoch)
        self.order = np.concatenate([draw.permutation(len(items)) for _ in range(rounds)])[:samples]

    def __len__(self) -> int:
        return self.samples

    def item(self, index: int) -> Item:
        """The image that a crop is cut from."""
        return self.items[int(self.order[index])]

    def __getitem__(self, index: int) -> Crop:
        """Read one image and draw its crop."""
        draw = rng(self.seed, "adt", "crop", self.epoch, index)
        item = self.item(index)
        score, label = read_item(item)
        boxes = item.boxes.clipped((label.shape[0], label.shape[1])).kept(self.rules.box_score)
        score, label, boxes = shrink(score, label, boxes, _draw_scale(self.rules.scale_min, draw))
        boxes = perturb_boxes(boxes, self.rules, (label.shape[0], label.shape[1]), draw)
        return cut(score, label, boxes, self.rules, draw)


def perturb_boxes(boxes: Boxes, rules: CropRules, size: tuple[int, int], draw: np.random.Generator) -> Boxes:
    """Drop boxes and shift the sides of the others, as a detector on unknown images would.

    Args:
        boxes: Boxes of the image.
        rules: Shares of dropping and jitter.
        size: (H, W) that the result is clipped to.
        draw: Source of chance.
    """
    if draw.random() < rules.box_drop_all:
        return Boxes.empty()
    keep = draw.random(len(boxes)) >= draw.uniform(rules.box_drop_min, rules.box_drop_max)
    xyxy = boxes.xyxy[keep]
    extent = np.tile(xyxy[:, 2:] - xyxy[:, :2], 2)
    shift = draw.uniform(-rules.box_jitter, rules.box_jitter, xyxy.shape) * extent
    return Boxes((xyxy + shift).astype(np.float32), boxes.scores[keep]).clipped(size)


def shrink(
    score: npt.NDArray[np.float32], label: npt.NDArray[np.uint8], boxes: Boxes, scale: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], Boxes]:
    """Shrink an image's maps: scores by area, labels by nearest neighbour, boxes with them."""
    height, width = (max(1, round(side * scale)) for side in label.shape)
    if (height, width) == label.shape:
        return score, label, boxes
    factor = np.array([width / label.shape[1], height / label.shape[0]] * 2, np.float32)
    small = cv2.resize(score, (width, height), interpolation=cv2.INTER_AREA)
    small_label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    return small.astype(np.float32), small_label.astype(np.uint8), Boxes(boxes.xyxy * factor, boxes.scores)


def cut(
    score: npt.NDArray[np.float32],
    label: npt.NDArray[np.uint8],
    boxes: Boxes,
    rules: CropRules,
    draw: np.random.Generator,
) -> Crop:
    """Cut one crop; an image smaller than the crop is continued by reflection, void in the label."""
    size = (label.shape[0], label.shape[1])
    inside = boxes.mask(size)
    mean_fg, mean_bg = (score[where].mean() if where.any() else score.mean() for where in (inside, ~inside))
    has_boxes = bool(inside.any())
    top, left = _place(label, rules, draw)
    window = np.s_[top : top + rules.crop, left : left + rules.crop]
    missing = [(0, rules.crop - min(rules.crop, side)) for side in size]
    arrays = (
        np.pad(score[window], missing, mode="symmetric"),
        np.pad(label[window], missing, constant_values=VOID),
        np.pad(inside[window], missing, mode="symmetric"),
    )
    flip = -1 if draw.random() < rules.flip else 1
    scores, labels, covered = (torch.from_numpy(np.ascontiguousarray(a[None, :, ::flip])) for a in arrays)
    means = torch.tensor([float(mean_fg), float(mean_bg)], dtype=torch.float32).view(2, 1, 1, 1)
    return Crop(scores, labels, covered, means[0], means[1], torch.tensor(has_boxes).view(1, 1, 1))


def _place(label: npt.NDArray[np.uint8], rules: CropRules, draw: np.random.Generator) -> tuple[int, int]:
    """Choose the top left corner of a crop: anywhere, or so that a randomly chosen object is inside."""
    corner = [int(draw.integers(0, max(0, side - rules.crop) + 1)) for side in label.shape]
    if draw.random() >= rules.object_crops or not (label == 1).any():
        return corner[0], corner[1]
    count, _, statistics, _ = cv2.connectedComponentsWithStats((label == 1).view(np.uint8), connectivity=8)
    chosen = statistics[1 + draw.integers(count - 1)]
    starts, extents = (chosen[1], chosen[0]), (chosen[3], chosen[2])
    for axis in range(2):
        first, last = sorted((starts[axis] + extents[axis] - rules.crop, starts[axis]))
        limit = max(0, label.shape[axis] - rules.crop)
        corner[axis] = int(np.clip(draw.integers(first, last + 1), 0, limit))
    return corner[0], corner[1]


def _draw_scale(smallest: float, draw: np.random.Generator) -> float:
    return float(np.exp(draw.uniform(np.log(smallest), 0)))


def _detected_keys(boxes: Path) -> set[str] | None:
    table = boxes.with_suffix(".parquet")
    if not table.is_file():
        return None
    import pyarrow.parquet as pq

    return set(pq.read_table(table, columns=["image"])["image"].to_pylist())


def _sources(index: Path | None) -> dict[str, str]:
    if index is None:
        return {}
    content = json.loads(index.read_text(encoding="utf-8"))
    images = content["images"] if isinstance(content, dict) else []
    named = {Path(image["file_name"]): image.get("source") for image in images}
    return {image_key(path, Path()): str(source) for path, source in named.items() if source is not None}
