"""COCO objects for outlier exposure, chosen as Meta-OoD and RPL choose them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.acquisition.archives import unpack
from anomdino.acquisition.pairs import copy_outliers
from anomdino.acquisition.staging import scratch_folder
from anomdino.acquisition.tree import Tree
from anomdino.errors import BackendMissing, DataError
from anomdino.io.images import write_png
from anomdino.progress import track

log = logging.getLogger(__name__)

STREET = frozenset({"person", "bicycle", "car", "motorcycle", "bus", "truck", "traffic light", "stop sign"})
"""Categories whose images are left out: they are classes of Cityscapes."""
SMALLEST = 480
COUNT = 2975
ANNOTATIONS = "annotations/instances_train2017.json"


def coco(tree: Tree, out: Path) -> dict[str, int]:
    """COCO 2017 train: as many images without street classes as Cityscapes has for training, and masks.

    Masks are the union of all instances, crowds included. Of the images that pass, the published count (2975)
    is drawn by a digest of the id, so that everyone gets the same ones.

    Raises:
        DataError: Images or annotations are missing or damaged, or no image passes.
        BackendMissing: pycocotools, which draws COCO's masks, is not installed.
    """
    annotations = tree.need(ANNOTATIONS) / ANNOTATIONS
    images, objects, suitable = _read(annotations)
    if not suitable:
        cause = f"has no image of {SMALLEST} pixels a side without street classes"
        raise DataError(annotations, cause, "get the annotations again")
    chosen = draw(suitable, COUNT)
    log.info("%d of %d COCO images pass the filter, %d are taken", len(suitable), len(images), len(chosen))
    with scratch_folder(out / ".coco") as work:
        photos = _photos(tree, {str(images[number]["file_name"]) for number in chosen}, work / "images")
        pairs = []
        for number in track(chosen, "coco masks"):
            name = Path(str(images[number]["file_name"])).stem
            mask = work / "masks" / f"{name}.png"
            write_png(mask, union_mask(images[number], objects[number]))
            pairs.append((f"coco_{name}", photos[name], mask))
        count = copy_outliers(pairs, out / "outliers", "coco", link=tree.owned)
    return {"outliers": count}


def choose(
    images: Mapping[int, Mapping[str, Any]],
    objects: Mapping[int, list[dict[str, Any]]],
    names: Mapping[int, str],
) -> list[int]:
    """Give the ids of images with both sides >= 480 and instances, none of them of a street class, sorted.

    Args:
        images: COCO image entries by id.
        objects: COCO annotations by image id.
        names: Category names by id.
    """
    return sorted(
        number
        for number, entry in images.items()
        if min(int(entry["height"]), int(entry["width"])) >= SMALLEST
        and objects.get(number)
        and not any(names[int(one["category_id"])] in STREET for one in objects[number])
    )


def draw(ids: list[int], count: int) -> list[int]:
    """Draw ``count`` ids, the same ones everywhere: those with the smallest digests, sorted by id."""
    ranked = sorted(ids, key=lambda number: hashlib.sha256(f"{number:012d}".encode()).digest())
    return sorted(ranked[:count])


def union_mask(image: Mapping[str, Any], objects: list[dict[str, Any]]) -> npt.NDArray[np.uint8]:
    """Draw the union of all instances of an image.

    Returns:
        uint8 (H, W), 0 and 255.

    Raises:
        DataError: An instance has no shape, or one that cannot be drawn.
        BackendMissing: pycocotools is not installed.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise BackendMissing(
            "pycocotools", "is not installed; COCO's masks need it", "pip install 'anomdino[detector]'"
        ) from error
    height, width = int(image["height"]), int(image["width"])
    union = np.zeros((height, width), bool)
    try:
        for one in objects:
            shape = one["segmentation"]
            runs = [shape] if isinstance(shape, dict) else shape
            encoded = coco_mask.frPyObjects(runs, height, width)
            union |= coco_mask.decode(encoded).any(axis=2)
    except Exception as error:  # pycocotools raises no narrower one
        cause = f"has an instance in image {image['file_name']} that cannot be drawn ({error!r})"
        raise DataError(ANNOTATIONS, cause, "get the annotations again") from error
    return np.where(union, np.uint8(255), np.uint8(0))


def _photos(tree: Tree, names: set[str], work: Path) -> dict[str, Path]:
    archive = tree.files.get("coco_train_images")
    if archive is not None:
        work.mkdir(parents=True)
        found = {
            path.name: path for path in unpack(archive, work, chosen=lambda name: Path(name).name in names)
        }
    else:
        base = tree.need("train2017/*.jpg") / "train2017"
        found = {name: base / name for name in names if (base / name).is_file()}
    missing = sorted(names - found.keys())
    if missing:
        raise DataError(
            archive or "train2017", f"lacks {len(missing)} images: {', '.join(missing[:5])}", "get it again"
        )
    return {Path(name).stem: path for name, path in found.items()}


def _read(path: Path) -> tuple[dict[int, dict[str, Any]], dict[int, list[dict[str, Any]]], list[int]]:
    """Read images and instances, by the image's id, and the ids of the images to draw from."""
    try:
        content = json.loads(path.read_bytes())
        images = {
            int(entry["id"]): {"file_name": str(entry["file_name"]), **entry} for entry in content["images"]
        }
        objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for entry in content["annotations"]:
            objects[int(entry["image_id"])].append(entry)
        names = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
        return images, objects, choose(images, objects, names)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(path, f"is no COCO instance file ({error!r})", "get the annotations again") from error
