"""The composed training set as the detector reads it: ``ood.json``, images, maps, and how it is split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError
from anomdino.io.boxes import Boxes
from anomdino.io.images import image_size, read_label
from anomdino.io.listing import image_key, list_images
from anomdino.protocol import refuse_evaluation_data
from anomdino.seeding import derive_seed

FINAL_HOLDOUT = 0.1
LEAST_OBJECT = 12
"""Pixels of the smallest part of a label that is taken for an object."""


@dataclass(frozen=True, eq=False)
class Record:
    """One composed image.

    Attributes:
        key: Its key.
        image: Its file.
        maps: Its uncertainty maps.
        label: Its label, 0/1/255.
        size: (H, W) in pixels.
        source: The inlier image it was composed from; images of one source stay together.
        split: ``train`` or ``val``.
        boxes: float32 (N, 4), xyxy of its objects, half-open.
    """

    key: str
    image: Path
    maps: Path
    label: Path
    size: tuple[int, int]
    source: str
    split: str
    boxes: npt.NDArray[np.float32]


def read_records(
    ood_json: Path | str, images: Path | str, maps: Path | str, labels: Path | str
) -> list[Record]:
    """Read the annotations of the composed set, in COCO's form or as S2M's list.

    S2M's boxes are inclusive at the lower right; its list has no sources and no split: every file is its own source.
    Boxes are cut to their image; of those without area, and of COCO's crowds, there is no object.

    Returns:
        The records sorted by key.

    Raises:
        DataError: The file is missing, is no such JSON, holds a box that is not finite, or names an image that is not
            there or two that have one key.
        ProtocolError: The set is evaluation data.
    """
    refuse_evaluation_data(images, ood_json)
    path = Path(ood_json)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = _from_list(content, Path(images)) if isinstance(content, list) else _from_coco(content)
    except FileNotFoundError as error:
        raise DataError(path, "does not exist", "run the compose stage first: `dvc repro compose`") from error
    except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
        cause = f"is neither COCO JSON nor S2M's list ({error!r})"
        raise DataError(path, cause, "run the compose stage again") from error
    records: dict[str, Record] = {}
    for file_name, size, source, split, corners in entries:
        image = Path(images) / file_name
        key = image_key(image, Path(images))
        if key in records:
            cause = f"names {image.name} and {records[key].image.name}, both of the key '{key}'"
            raise DataError(path, cause, "rename one of the two: maps and labels are named by the key")
        if not image.is_file():
            raise DataError(
                image, f"is named by {path.name} but does not exist", "run the compose stage again"
            )
        found = np.array(corners, np.float32).reshape(-1, 4)
        if not np.isfinite(found).all():
            raise DataError(
                path, f"has a box of {file_name} that is not finite", "run the compose stage again"
            )
        boxes = Boxes(found, np.ones(len(found), np.float32)).clipped(size).xyxy
        file, label = Path(maps) / f"{key}.npz", Path(labels) / f"{key}.png"
        records[key] = Record(key, image, file, label, size, source or key, split, boxes)
    if not records:
        raise DataError(path, "names no image", "run the compose stage again")
    return sorted(records.values(), key=lambda record: record.key)


def labelled_records(
    images: Path | str, labels: Path | str, maps: Path | str, source_of: Callable[[str], str]
) -> list[Record]:
    """Read labelled images that no ``ood.json`` names; an object is an 8-connected part of the label.

    Args:
        images: Folder of images.
        labels: Folder of ``<key>.png``, 0, 1, 255, of the images' sizes.
        maps: Folder of ``<key>.npz``.
        source_of: Gives the source of an image by its key.

    Returns:
        The images that hold an object of 12 pixels or more, sorted by key, for training; smaller parts have no box.

    Raises:
        DataError: A label is missing or damaged.
        ProtocolError: The images are evaluation data.
    """
    refuse_evaluation_data(images, labels)
    records = []
    for key, image in sorted(list_images(images).items()):
        label = Path(labels) / f"{key}.png"
        values = read_label(label)
        _, _, figures, _ = cv2.connectedComponentsWithStats((values == 1).view(np.uint8), connectivity=8)
        x, y, width, height, pixels = figures[1:].T
        boxes = np.stack([x, y, x + width, y + height], 1)[pixels >= LEAST_OBJECT].astype(np.float32)
        if not len(boxes):
            continue
        size = (values.shape[0], values.shape[1])
        file = Path(maps) / f"{key}.npz"
        records.append(Record(key, image, file, label, size, source_of(key), "train", boxes))
    return records


_Entry = tuple[str, tuple[int, int], str, str, list[list[float]]]


def _from_coco(content: dict[str, Any]) -> list[_Entry]:
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        x, y, width, height = map(float, annotation["bbox"])
        if not annotation.get("iscrowd"):
            boxes[annotation["image_id"]].append([x, y, x + width, y + height])
    return [
        (
            _named(image),
            (int(image["height"]), int(image["width"])),
            str(image.get("source", "")),
            str(image.get("split", "train")),
            boxes[image["id"]],
        )
        for image in content["images"]
    ]


def _named(entry: dict[str, Any]) -> str:
    name: str = entry["file_name"]
    if not Path(name).name or Path(name).is_absolute():
        raise ValueError(f"the file_name {name!r}")
    return name


def _from_list(content: list[dict[str, Any]], images: Path) -> list[_Entry]:
    grouped: dict[str, list[list[float]]] = {}
    for item in content:
        x0, y0, x1, y1 = map(float, item["annotations"]["bbox"])
        grouped.setdefault(_named(item), []).append([x0, y0, x1 + 1, y1 + 1])
    return [(name, image_size(images / name), "", "train", boxes) for name, boxes in grouped.items()]


@dataclass(frozen=True, eq=False)
class Fold:
    """One detector's share of the composed set.

    Attributes:
        name: ``final`` or ``fold0``, ``fold1``, ...
        train: Images it learns from.
        val: Held-out images by which its best weights are chosen.
        predict: Images that it neither learned from nor shares a source with, for which it predicts boxes. They are
            those of ``val``, too: no gradient came from them, but the best of a training's few evaluations did.
        folds: Into how many folds the set was split.
    """

    name: str
    train: list[Record]
    val: list[Record]
    predict: list[Record]
    folds: int = 1


def split_folds(records: Sequence[Record], folds: int, holdout: float, seed: int) -> list[Fold]:
    """Split the composed set by source image.

    With ``folds = 1`` one detector, ``final``, trains on the set's ``train`` images and predicts its ``val`` images;
    where ``ood.json`` names no split, a share ``holdout`` of the sources is held out. With more folds, detector
    ``fold<i>`` trains on all but part i and predicts part i, and ``final`` trains on nine tenths of everything and
    predicts nothing. Every detector's best weights are chosen on images that it did not train on; for a detector that
    predicts they are the images that it predicts, so that its boxes there flatter by what a choice among a training's
    few evaluations gives.

    Raises:
        DataError: There are too few sources to split.
    """
    order = sorted({record.source for record in records}, key=lambda s: (derive_seed(seed, "fold", s), s))
    if len(order) < max(2, folds):
        raise DataError("ood.json", f"has {len(order)} source images, too few for a split", "compose more")

    def fold(name: str, held: set[str], predicts: bool = True) -> Fold:
        kept = [record for record in records if record.source not in held]
        out = sorted((r for r in records if r.source in held), key=lambda r: derive_seed(seed, "val", r.key))
        return Fold(name, kept, out, sorted(out, key=lambda r: r.key) if predicts else [], folds)

    def first(share: float) -> set[str]:
        return set(order[: min(len(order) - 1, max(1, round(share * len(order))))])

    if folds == 1:
        marked = {record.source for record in records if record.split == "val"}
        held = marked if 0 < len(marked) < len(order) else first(holdout)
        return [fold("final", held)]
    parts = [fold(f"fold{index}", set(order[index::folds])) for index in range(folds)]
    return [*parts, fold("final", first(FINAL_HOLDOUT), predicts=False)]
