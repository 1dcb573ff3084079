"""The composed training set: outlier objects pasted into inlier scenes, written image by image."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.config.compose import ComposeConfig
from anomdino.data.mixing import OUTLIER, VOID, CutOut, PasteRules, paste_objects
from anomdino.data.rpl_mixing import paste_rpl
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.boxes import CATEGORY_ID, CATEGORY_NAME, image_id
from anomdino.io.digest import file_sha256, json_sha256
from anomdino.io.images import read_image, read_label, write_png
from anomdino.io.labels import check_train_ids
from anomdino.io.listing import list_images, pair_by_key
from anomdino.io.locking import exclusive
from anomdino.progress import track
from anomdino.protocol import refuse_evaluation_data
from anomdino.seeding import derive_seed, rng

_FORMAT = 2
_CACHED_FILES = 64
_RPL_SIZE = 700
HALF = 127
_TRUTH = np.zeros(256, np.uint8)
_TRUTH[[OUTLIER, VOID]] = 1, VOID


@dataclass(frozen=True)
class Sources:
    """What is composed.

    Attributes:
        scenes: ``(key, image, closed-set label)`` of inlier scenes, sorted by key.
        objects: ``(key, image, mask)`` of outlier objects, sorted by key.
    """

    scenes: tuple[tuple[str, Path, Path], ...]
    objects: tuple[tuple[str, Path, Path], ...]

    @staticmethod
    def read(inlier: Path, outliers: Path) -> Sources:
        """List inlier scenes (``images/``, ``labels/``) and outlier objects (``images/``, ``masks/``).

        Raises:
            ProtocolError: One of them is evaluation data.
            DataError: A folder is missing or empty, or partners are missing.
        """
        refuse_evaluation_data(inlier, outliers)
        scenes = pair_by_key(list_images(inlier / "images"), list_images(inlier / "labels"))
        objects = pair_by_key(
            list_images(outliers / "images"), list_images(outliers / "masks"), ("image", "mask")
        )
        for found, folder in ((scenes, inlier), (objects, outliers)):
            if not found:
                raise DataError(
                    folder, "holds no images", "run the download stage first: `dvc repro download`"
                )
        return Sources(tuple(scenes), tuple(objects))


@dataclass(frozen=True)
class Item:
    """One image to compose: its number, its scene, and the part of the set it belongs to."""

    number: int
    scene: int
    split: str

    @property
    def key(self) -> str:
        """Key of the composed image."""
        return f"{self.number:05d}"


def plan_items(config: ComposeConfig, scenes: int, seed: int) -> list[Item]:
    """Deal the scenes out in rounds, each round in another order; a scene is in one part of the set alone.

    Args:
        config: Count and share of the held-out part.
        scenes: Number of inlier scenes.
        seed: Root of the random numbers.
    """
    order = rng(seed, "compose", "split").permutation(scenes)
    held_out = set(order[: max(1, round(config.val_fraction * scenes))].tolist()) if scenes > 1 else set()
    items: list[Item] = []
    for round_number in range(math.ceil(config.count / scenes)):
        for scene in rng(seed, "compose", "round", round_number).permutation(scenes).tolist():
            if len(items) < config.count:
                items.append(Item(len(items), scene, "val" if scene in held_out else "train"))
    return items


@lru_cache(maxsize=2)
def objects_of_part(config: ComposeConfig, objects: int, seed: int, split: str) -> tuple[int, ...]:
    """Give the numbers of the outlier objects that may be pasted in a part of the set.

    With `split_objects` the parts share no object, so that what the detector predicts on the held-out part it predicts on
    objects that it never saw (the scorer has a split of its own); all objects serve both parts where there are fewer than
    four.
    """
    if not config.split_objects or objects < 4:
        return tuple(range(objects))
    order = rng(seed, "compose", "objects").permutation(objects).tolist()
    held_out = min(max(1, round(config.val_fraction * objects)), objects - 1)
    return tuple(sorted(order[:held_out] if split == "val" else order[held_out:]))


def compose(config: ComposeConfig, seed: int, inlier: Path, outliers: Path, out: Path) -> dict[str, int]:
    """Write the composed set: ``offline_dataset/``, ``offline_dataset_label/`` and ``ood.json``.

    Labels are 0 for in-distribution, 1 for pasted objects, 255 for the soft rim of an object and for pixels that the
    scene's own label leaves open. Item i depends on the seed, the parameters and i alone, so that the number of
    processes does not matter. Finished items of an interrupted run with the same parameters are kept.

    Args:
        config: Parameters.
        seed: Root of the random numbers.
        inlier: Folder with ``images/`` and ``labels/``.
        outliers: Folder with ``images/`` and ``masks/``.
        out: Folder of the training set.

    Returns:
        Counts: images, objects, images_without_objects, kept.

    Raises:
        ProtocolError: A source is evaluation data.
        DataError: Sources are missing, damaged, do not pair, or a label holds other values than train ids; or another
            process composes there.
    """
    with exclusive(out / ".compose.lock"):
        return _compose(config, seed, inlier, outliers, out)


def _compose(config: ComposeConfig, seed: int, inlier: Path, outliers: Path, out: Path) -> dict[str, int]:
    _scene.cache_clear()
    _cutout.cache_clear()
    sources = Sources.read(inlier, outliers)
    items = plan_items(config, len(sources.scenes), seed)
    by_scene = sorted(items, key=lambda item: (item.scene, item.number))
    notes = out / ".compose" / _digest(config, seed, sources)
    _forget_other_runs(out, notes, {item.key for item in items})
    work = partial(_compose_item, config, seed, sources, out, notes)
    workers = min(config.workers or os.cpu_count() or 1, len(items))
    records = (
        _in_processes(work, by_scene, workers)
        if workers > 1
        else [work(item) for item in track(by_scene, "compose")]
    )
    records.sort(key=lambda record: int(record["number"]))
    if config.objects_max and config.empty < 1 and not any(record["boxes"] for record in records):
        raise DataError(
            outliers,
            f"none of its {len(sources.objects)} objects found a place in any of {len(records)} images",
            "check that masks are whole objects of some size (0 / 255), or widen compose.height_min and height_max",
        )
    atomic_write_json(out / "ood.json", to_coco(records), indent=None)
    shutil.rmtree(out / ".compose")
    empty = sum(not record["boxes"] for record in records)
    return {
        "images": len(records),
        "objects": sum(len(record["boxes"]) for record in records),
        "images_without_objects": empty,
        "kept": sum(bool(record["kept"]) for record in records),
    }


def _in_processes(
    work: Callable[[Item], dict[str, Any]], items: Sequence[Item], workers: int
) -> list[dict[str, Any]]:
    """Do all items in `workers` processes; a process that dies ends the stage instead of hanging it."""
    try:
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_start_process, initargs=(work,)
        ) as pool:
            return list(track(pool.map(_do, items, chunksize=4), "compose", total=len(items)))
    except BrokenProcessPool as error:
        raise DataError(
            "compose",
            "a worker process died (killed, or out of memory)",
            "run again: finished images are kept; lower compose.workers where memory is short",
        ) from error


_work: list[Callable[[Item], dict[str, Any]]] = []


def _start_process(work: Callable[[Item], dict[str, Any]]) -> None:
    """Keep what a process does with its items: it names all sources, too much to send with every item."""
    cv2.setNumThreads(1)
    _work[:] = [work]


def _do(item: Item) -> dict[str, Any]:
    return _work[0](item)


def to_coco(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the records of composed images as COCO detection JSON, one annotation an object.

    An image's id is :func:`anomdino.io.boxes.image_id` of its key, as in files of boxes, which are COCO results of it.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        number = image_id(Path(record["file_name"]).stem)
        facts = {name: record[name] for name in ("file_name", "height", "width", "source", "split")}
        images.append({"id": number, **facts})
        for (x0, y0, x1, y1), area in zip(record["boxes"], record["areas"], strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": CATEGORY_ID,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": CATEGORY_ID, "name": CATEGORY_NAME}]
    return {"images": images, "annotations": annotations, "categories": categories}


def paste_rules(config: ComposeConfig) -> PasteRules:
    """Give the parameters of the block ``compose`` as rules of :func:`anomdino.data.mixing.paste_objects`."""
    return replace(
        PasteRules(),
        scale=config.scale,
        height=(config.height_min, config.height_max),
        ground_height=(config.ground_height_min, config.ground_height_max),
        edges=config.edges,
        match=(0.0, config.match),
        jitter=config.jitter,
        shadow=config.shadow,
    )


def _compose_item(
    config: ComposeConfig, seed: int, sources: Sources, out: Path, notes: Path, item: Item
) -> dict[str, Any]:
    note = notes / f"{item.key}.json"
    image_path, label_path = (
        out / folder / f"{item.key}.png" for folder in ("offline_dataset", "offline_dataset_label")
    )
    finished = _read_note(note, image_path, label_path)
    if finished is not None:
        return {**finished, "kept": True}
    key, scene_path, scene_label_path = sources.scenes[item.scene]
    scene, label = _scene(scene_path, scene_label_path, config.enlarge)
    image, mixed, boxes, areas = _mixed(config, seed, sources, item, scene, label)
    write_png(image_path, image, config.png_compression)
    write_png(label_path, np.asarray(cv2.LUT(mixed, _TRUTH), np.uint8), config.png_compression)
    record = {
        "number": item.number,
        "file_name": image_path.name,
        "height": image.shape[0],
        "width": image.shape[1],
        "source": key,
        "split": item.split,
        "boxes": boxes,
        "areas": areas,
    }
    files = [file_sha256(image_path), file_sha256(label_path)]
    atomic_write_json(note, {"record": record, "files": files}, indent=None)
    return {**record, "kept": False}


def _read_note(note: Path, *files: Path) -> dict[str, Any] | None:
    """Give the record of a finished image; None without a note, or where it or one of the files is damaged or changed."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        intact = content["files"] == [file_sha256(file) for file in files]
        return dict(content["record"]) if intact else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mixed(
    config: ComposeConfig,
    seed: int,
    sources: Sources,
    item: Item,
    scene: npt.NDArray[np.uint8],
    label: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], list[list[int]], list[int]]:
    generator = rng(seed, "compose", "item", item.number)
    bare = bool(generator.random() < config.empty)
    allowed = objects_of_part(config, len(sources.objects), seed, item.split)
    if config.rule == "rpl":
        chosen = _cutout(*sources.objects[allowed[int(generator.integers(len(allowed)))]][1:])
        draws = random.Random(derive_seed(seed, "compose", "rpl", item.number))
        mixed = paste_rpl(
            scene, label, chosen[0], chosen[1] & (not bare), draws, size=config.size or _RPL_SIZE
        )
        return *mixed, *_objects_of_group(mixed[1] == OUTLIER)
    if config.size:
        scene, label = _random_crop(scene, label, config.size, generator)
    count = 0 if bare else int(generator.integers(config.objects_min, config.objects_max + 1))
    numbers = generator.choice(len(allowed), size=count, replace=count > len(allowed))
    objects = [_cutout(*sources.objects[allowed[int(number)]][1:]) for number in numbers]
    pasted = paste_objects(scene, label, objects, generator, paste_rules(config))
    boxes = [[int(v) for v in box] for box in pasted.boxes]
    return pasted.image, pasted.label, boxes, [int(area) for area in pasted.areas]


def _random_crop(
    image: npt.NDArray[np.uint8], label: npt.NDArray[np.uint8], size: int, generator: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    height, width = label.shape
    if height < size or width < size:
        factor = size / min(height, width)
        image, label = _resized(
            image, label, (max(size, round(width * factor)), max(size, round(height * factor)))
        )
        height, width = label.shape
    top, left = int(generator.integers(height - size + 1)), int(generator.integers(width - size + 1))
    window = np.s_[top : top + size, left : left + size]
    return image[window], label[window]


def _objects_of_group(mask: npt.NDArray[np.bool_]) -> tuple[list[list[int]], list[int]]:
    """Box and area of each object of a pasted group: its connected parts (8 neighbours).

    A photo's mask does not say which of its parts are one object. Splinters below a hundredth of the group stay in
    the label and get no box.
    """
    _, _, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = statistics[1:, cv2.CC_STAT_AREA]
    parts = statistics[1:][100 * areas >= areas.sum()].tolist()
    boxes = [[left, top, left + width, top + height] for left, top, width, height, _ in parts]
    return boxes, [area for *_, area in parts]


@lru_cache(maxsize=1)
def _scene(
    image_path: Path, label_path: Path, enlarge: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    image, label = read_image(image_path), read_label(label_path)
    if image.shape[:2] != label.shape:
        raise DataError(label_path, f"is {label.shape}, its image is {image.shape[:2]} (H, W)", "")
    check_train_ids(label_path, label)
    if enlarge == 1:
        return image, label
    size = (round(label.shape[1] * enlarge), round(label.shape[0] * enlarge))
    return _resized(image, label, size)


def _resized(
    image: npt.NDArray[np.uint8], label: npt.NDArray[np.uint8], size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Resize to (width, height)."""
    resized = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    return resized, np.asarray(cv2.resize(label, size, interpolation=cv2.INTER_NEAREST), np.uint8)


@lru_cache(maxsize=_CACHED_FILES)
def _cutout(image_path: Path, mask_path: Path) -> CutOut:
    image, mask = read_image(image_path), read_label(mask_path)
    if image.shape[:2] != mask.shape:
        raise DataError(mask_path, f"is {mask.shape}, its image is {image.shape[:2]} (H, W)", "")
    return image, object_pixels(mask)


def object_pixels(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Give the pixels of an object by its mask, uint8 (H, W), 0 / 1 or 0 / 255 with a rim in between: bool (H, W)."""
    return mask > HALF if mask.max(initial=0) > 1 else mask > 0


def _digest(config: ComposeConfig, seed: int, sources: Sources) -> str:
    """Digest of all that the images depend on; the number of processes is not among it."""
    listed = [
        (key, *((path.stat().st_size, path.stat().st_mtime_ns) for path in paths))
        for key, *paths in (*sources.scenes, *sources.objects)
    ]
    content = [_FORMAT, config.model_dump(exclude={"workers"}), seed, listed]
    return json_sha256(content)[:16]


def _forget_other_runs(out: Path, notes: Path, keys: set[str]) -> None:
    """Remove what runs with other parameters left behind, and notes of images that are gone."""
    for other in (out / ".compose").glob("*"):
        if other.is_dir() and other != notes:
            shutil.rmtree(other)
    kept = {note.stem for note in notes.glob("*.json")} & keys
    for part in ("offline_dataset", "offline_dataset_label"):
        for path in (out / part).glob("*.png"):
            if path.stem not in kept:
                path.unlink()
    notes.mkdir(parents=True, exist_ok=True)
