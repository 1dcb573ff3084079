"""The archives of the S2M and AnomDINO authors: validation sets with scores, and a composed training set."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from anomdino.acquisition.staging import place
from anomdino.acquisition.tree import Tree
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.boxes import CATEGORY_ID, CATEGORY_NAME, image_id
from anomdino.io.images import image_size
from anomdino.io.listing import list_images
from anomdino.progress import track
from anomdino.protocol import mark_evaluation_only

log = logging.getLogger(__name__)

HELD_OUT = 100
"""S2M validates on the first 100 entries of its list."""

NO_MASKS = (
    "S2M's training set has one box an image but no masks: the detector can train on it, ADT-Net cannot. "
    "For ADT-Net compose a training set with masks: keep the stage `compose` (Cityscapes and COCO objects)."
)

_SETS = {
    "RoadAnomaly": ("road_anomaly", ("original", "labels")),
    "AnomalyTrack": ("segment_me/dataset_AnomalyTrack", ("images", "labels_masks")),
    "ObstacleTrack": ("segment_me/dataset_ObstacleTrack", ("images", "labels_masks")),
    "Fishyscapes/LostAndFound": ("fishyscapes/LostAndFound", ("original", "labels")),
    "Fishyscapes/Static": ("fishyscapes/Static", ("original", "labels")),
}


def validation(tree: Tree, out: Path) -> dict[str, int]:
    """S2M's validation archive: each set becomes ``val/<benchmark>/``, with its published scores if any.

    Scores are numbered by the rank of their image (by name; ObstacleTrack by number); they get the image's
    name, so that they can be used as a scorer's output: ``val/<benchmark>/s2m_score/<key>.npz``.

    Raises:
        DataError: The archive holds none of the sets, or a set's scores do not fit its images.
    """
    counts = {}
    for name, (folder, parts) in _SETS.items():
        base = tree.base(f"{folder}/{parts[0]}/*")
        if base is None:
            continue
        target = out / "val" / name
        for part in parts:
            for key, path in track(list_images(base / folder / part).items(), f"{name} {part}"):
                place(path, target / part / f"{key}{path.suffix}", tree.owned)
        _copy_scores(base / folder, parts[0], target / "s2m_score", tree.owned)
        mark_evaluation_only(target)
        counts[f"val/{name}"] = len(list_images(target / parts[0]))
    if not counts:
        raise DataError("S2M's validation archive", "holds none of the known sets", ", ".join(_SETS))
    return counts


def training(tree: Tree, out: Path) -> dict[str, int]:
    """S2M's training set as ``s2m_train/``: offline_dataset, offline_dataset_score, COCO ``ood.json``.

    The published ``ood.json`` is a list with one inclusive xyxy box an image; it becomes COCO detection JSON
    with half-open boxes (``w = x1 - x0 + 1``). The first 100 entries are the split ``val``.

    Raises:
        DataError: The list is damaged or names images that are not there.
    """
    base = tree.need("offline_dataset/*")
    target = out / "s2m_train"
    images = list_images(base / "offline_dataset")
    entries = read_s2m_list(tree.need("ood.json") / "ood.json")
    content = to_coco(entries, images)
    for key, path in track(images.items(), "offline_dataset"):
        place(path, target / "offline_dataset" / f"{key}{path.suffix}", tree.owned)
    scores = sorted((base / "offline_dataset_score").glob("*.npz"))
    for path in track(scores, "offline_dataset_score", unit="file"):
        place(path, target / "offline_dataset_score" / path.name, tree.owned)
    atomic_write_json(target / "ood.json", content, indent=None)
    log.warning(NO_MASKS)
    return {"s2m_train": len(images), "s2m_train/scores": len(scores)}


def read_s2m_list(path: Path) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Read S2M's ``ood.json``: a list of ``{"file_name": ..., "annotations": {"bbox": [x0, y0, x1, y1]}}``.

    Returns:
        File name and box (xyxy, last index inclusive) of each entry, in the file's order.

    Raises:
        DataError: The file is no such list.
    """
    try:
        content = json.loads(path.read_bytes())
        return [(str(entry["file_name"]), _box(entry["annotations"]["bbox"])) for entry in content]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            path, f"is not S2M's list of boxes ({error!r})", "get the training set again"
        ) from error


def to_coco(
    entries: Iterable[tuple[str, tuple[float, float, float, float]]], images: dict[str, Path]
) -> dict[str, Any]:
    """Turn S2M's list into COCO detection JSON.

    Args:
        entries: File name and inclusive xyxy box; several entries may name one image.
        images: The images by key.

    Returns:
        ``images`` (id, file_name, width, height, source, split), ``annotations`` (xywh, area of the box), and
        the one category ``ood-object``.

    Raises:
        DataError: An entry names an image that is not there.
    """
    by_name = {path.name: path for path in images.values()}
    records: dict[str, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for rank, (name, (x0, y0, x1, y1)) in enumerate(entries):
        if name not in by_name:
            raise DataError("ood.json", f"names {name}, which is not in offline_dataset", "get the set again")
        if name not in records:
            height, width = image_size(by_name[name])
            records[name] = {
                "id": image_id(Path(name).stem),
                "file_name": name,
                "width": width,
                "height": height,
                "source": Path(name).stem,
                "split": "val" if rank < HELD_OUT else "train",
            }
        box_width, box_height = x1 - x0 + 1, y1 - y0 + 1
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": records[name]["id"],
                "category_id": CATEGORY_ID,
                "bbox": [x0, y0, box_width, box_height],
                "area": box_width * box_height,
                "iscrowd": 0,
            }
        )
    categories = [{"id": CATEGORY_ID, "name": CATEGORY_NAME}]
    return {"images": list(records.values()), "annotations": annotations, "categories": categories}


def _box(values: Any) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in values)
    if not (np.isfinite([x0, y0, x1, y1]).all() and x1 >= x0 and y1 >= y0):
        raise ValueError(f"box {values} is not xyxy")
    return x0, y0, x1, y1


def _copy_scores(folder: Path, images: str, target: Path, link: bool) -> None:
    scores = {int(path.stem): path for path in (folder / "score").glob("*.npz") if path.stem.isdigit()}
    if not scores:
        return
    keys = sorted(list_images(folder / images), key=_rank)
    if sorted(scores) != list(range(len(keys))):
        log.warning("%s: %d scores for %d images; they are left out", folder, len(scores), len(keys))
        return
    for rank, key in enumerate(keys):
        place(scores[rank], target / f"{key}.npz", link)


def _rank(key: str) -> tuple[str, int, str]:
    """Order ``validation0003`` by name and ``validation_3`` or ``image_3`` by number."""
    stem, _, number = key.rpartition("_")
    return (stem, int(number), key) if number.isdigit() and stem else (key, 0, key)
