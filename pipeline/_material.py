"""What the commands that train parts of a released model learn from: images of the training domain, scores and boxes.

:func:`gathered` composes images with large and with small objects, from objects alone that the scorer's training did not
hold out, and chooses the objects' own photos; :func:`gather_street` makes street scenes in which a known class is the
anomaly. Their folder of work has `large/` and `small/`, each as the stage `compose` writes them, `photos/`, `objects/`
(`images/`, `masks/`), `street/`, and in `seen/<kind>/` what the released model makes of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from anomdino.config.params import Params
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.boxes import image_id
from anomdino.io.digest import file_sha256
from anomdino.io.images import image_size, read_image, read_label, write_png
from anomdino.io.listing import list_images
from anomdino.seeding import rng

if TYPE_CHECKING:
    import numpy.typing as npt

    from anomdino.adt.model import ScoreStatistics
    from anomdino.scorer.distributed import World
    from anomdino.scorer.inference import ScoringEngine

T = TypeVar("T")
IMAGES, LABELS, LIST = "offline_dataset", "offline_dataset_label", "ood.json"
LARGE = {"enlarge": 1.0, "height_min": 0.05, "ground_height_min": 0.12, "objects_max": 4}
"""Parameters of `compose` for images with large objects."""
PHOTOS, STREET = "photos", "street"
SHOWN = {PHOTOS: 0.95, "small": 0.4, "large": 0.4, STREET: 1.0}
"""How often a network sees the colours of a kind, not the score alone: objects that were pasted give themselves away."""
LEAST_WIDTH = 300
"""Photos of objects that are narrower teach nothing: they would be enlarged several times."""


def gathered(
    params: Params, inlier: Path, outliers: Path, work: Path, count: int, photos: int, world: World
) -> list[Path]:
    """Compose images and choose photos; photos are named twice, for they teach twice as often.

    Raises:
        DataError: A folder is missing, or fewer than two photos are wide enough.
    """
    from anomdino.data.compose import compose

    if world.leads:
        objects = linked_objects(params, outliers, work / "objects", held_out=False)
        large = params.compose.model_copy(update={**LARGE, "count": count})
        compose(large, params.seed, inlier, objects, work / "large")
        compose_twice(params, count * 3 // 8, inlier, objects, work / "small")
        link_photos(objects / "images", work / PHOTOS, photos)
    world.wait()
    return [images_of(work, kind) for kind in ("large", "small", PHOTOS, PHOTOS)]


def images_of(work: Path, kind: str) -> Path:
    """Give the folder of a kind's images: of photos of objects, or of images as the stage `compose` writes them."""
    return work / kind if kind == PHOTOS else work / kind / IMAGES


def linked_objects(params: Params, outliers: Path, out: Path, *, held_out: bool) -> Path:
    """Link the objects that the scorer's training held out, or the others."""
    from anomdino.scorer.dataset import ImagePairs, split_outliers

    pairs = ImagePairs(outliers, "masks")
    learned, held = split_outliers(pairs, params.rpl.residual.outlier_holdout, params.seed)
    shutil.rmtree(out, ignore_errors=True)
    for index in held if held_out else learned:
        key, image, mask = pairs.files[index]
        for folder, source in (("images", image), ("masks", mask)):
            _link(source, out / folder / f"{key}{source.suffix}")
    return out


def held_out_objects(params: Params, outliers: Path, out: Path) -> Path:
    """Link the objects that the scorer's training held out."""
    return linked_objects(params, outliers, out, held_out=True)


def link_photos(images: Path, out: Path, count: int) -> None:
    """Link at most ``count`` photos that are wide enough, spread over the folder."""
    wide = [(key, path) for key, path in list_images(images).items() if image_size(path)[1] >= LEAST_WIDTH]
    if len(wide) < 2:
        raise DataError(
            images, f"has {len(wide)} photos of {LEAST_WIDTH} pixels in width", "give at least two"
        )
    shutil.rmtree(out, ignore_errors=True)
    for key, path in _spread(wide, count):
        _link(path, out / f"{key}{path.suffix}")


def _link(file: Path, link: Path) -> None:
    """Link a file, in the place of an earlier link."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(file.resolve())


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Choose at most ``count`` items, spread evenly, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in np.unique(places)]


def compose_twice(params: Params, count: int, inlier: Path, outliers: Path, out: Path) -> None:
    """Compose images and add each one as another camera sees it, under its key with an `s` before it."""
    from anomdino.data.compose import compose
    from anomdino.release.camera import other_camera

    compose(params.compose.model_copy(update={"count": count}), params.seed, inlier, outliers, out)
    content = json.loads((out / LIST).read_text(encoding="utf-8"))
    copies, boxes = [], []
    last = max((one["id"] for one in content["annotations"]), default=0)
    other: dict[int, int] = {}
    for record in content["images"]:
        name, source = record["file_name"], rng(params.seed, "other camera", record["file_name"])
        write_png(out / IMAGES / f"s{name}", other_camera(read_image(out / IMAGES / name), source))
        write_png(out / LABELS / f"s{name}", read_label(out / LABELS / name))
        other[record["id"]] = image_id(f"s{Path(name).stem}")
        copies.append({**record, "id": other[record["id"]], "file_name": f"s{name}"})
    for number, one in enumerate(content["annotations"], 1):
        boxes.append({**one, "id": last + number, "image_id": other[one["image_id"]]})
    content["images"] += copies
    content["annotations"] += boxes
    atomic_write_json(out / LIST, content, indent=None)


def gather_street(
    params: Params, models: Path, inlier: Path, work: Path, count: int, statistics: ScoreStatistics
) -> None:
    """Write scenes in which a known class is the anomaly, spread over the folder: images, labels, scores and maps.

    What a call before wrote of a scene stays if scorer, statistics, seed, photo and label are the same; the rest goes.

    Raises:
        DataError: There are fewer than two.
    """
    from anomdino.device import resolve_device
    from anomdino.scorer.dataset import ImagePairs
    from anomdino.scorer.setup import engine_from

    score = params.score.model_copy(update={"map_stride": 1})
    engine, digest = engine_from(score, models / "rpl", resolve_device(params.device))
    chosen = _spread(ImagePairs(inlier, "labels").files, count)
    notes, found = work / STREET / "scenes", set[str]()
    for key, image, label in chosen:
        depends = [digest, asdict(statistics), params.seed, file_sha256(image), file_sha256(label)]
        names = _read_street(notes / f"{key}.json", depends)
        if names is None:
            names = _write_street(key, image, label, work, engine, statistics, params.seed)
            atomic_write_json(notes / f"{key}.json", {"depends": depends, "names": names})
        found.update(names)
    _remove_other_street(work, found, {key for key, *_ in chosen})
    if len(found) < 2:
        raise DataError(
            inlier,
            "has no two scenes in which a known object stands out",
            "give more scenes, or more --scenes",
        )


def _read_street(note: Path, depends: list[Any]) -> list[str] | None:
    """Read which street scenes were made of a scene; None if none were, or from something else."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        return list(content["names"]) if content["depends"] == depends else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_street(
    key: str,
    image: Path,
    label: Path,
    work: Path,
    engine: ScoringEngine,
    statistics: ScoreStatistics,
    seed: int,
) -> list[str]:
    """Write the street scenes of one scene, and give their names."""
    from anomdino.io.scores import write_score
    from anomdino.release.street import cases

    out, seen, names = work / STREET, work / "seen" / STREET, []
    source = rng(seed, STREET, key)
    for case in cases(engine, read_image(image), read_label(label), statistics, source):
        names.append(f"{key}_{case.number}")
        write_score(seen / "scores" / f"{names[-1]}.npz", case.scored.score)
        case.scored.maps.save(seen / "maps" / f"{names[-1]}.npz")
        write_png(out / LABELS / f"{names[-1]}.png", case.label)
        _link(image, out / IMAGES / f"{names[-1]}{image.suffix}")
    return names


def _remove_other_street(work: Path, names: set[str], scenes: set[str]) -> None:
    """Remove street scenes of other names, and the notes of other scenes, which calls before left."""
    out, seen = work / STREET, work / "seen" / STREET
    folders = dict.fromkeys((out / IMAGES, out / LABELS, seen / "scores", seen / "maps"), names)
    for folder, kept in (folders | {out / "scenes": scenes}).items():
        for file in sorted(folder.rglob("*")):
            if not file.is_dir() and file.relative_to(folder).with_suffix("").as_posix() not in kept:
                file.unlink()


def label_files(work: Path, kind: str) -> dict[str, Path]:
    """List the labels of a kind of images by key: those of composed images, or the masks of all photos of objects."""
    return list_images(work / "objects" / "masks" if kind == PHOTOS else work / kind / LABELS)


def read_kind(label: Path, kind: str) -> npt.NDArray[np.uint8]:
    """Read a label, uint8 (H, W): 0, 1, 255 of composed images, 0 and 1 of photos by their objects' masks."""
    from anomdino.data.compose import object_pixels

    read = read_label(label)
    return object_pixels(read).astype(np.uint8) if kind == PHOTOS else read


def written_labels(keys: Iterable[str], work: Path, kind: str) -> dict[str, Path]:
    """Give the files of images' labels, 0, 1, 255; those of photos are written from their masks."""
    files = label_files(work, kind)
    if kind != PHOTOS:
        return {key: files[key] for key in keys}
    written = {key: work / "seen" / kind / LABELS / f"{key}.png" for key in keys}
    for key, file in written.items():
        write_png(file, read_kind(files[key], kind))
    return written


def score_kind(params: Params, models: Path, work: Path, kind: str) -> tuple[Path, Path]:
    """Score the images of a kind, but for street scenes, which were scored as they were made.

    Returns:
        The folder of the images, and that of their scores and maps.
    """
    images, seen = images_of(work, kind), work / "seen" / kind
    if kind != STREET:
        score_images(params, models / "rpl", images, seen)
    return images, seen


def score_images(params: Params, scorer: Path, images: Path, work: Path) -> None:
    """Write scores and maps of a folder of images into ``work``; valid ones stay."""
    from anomdino.device import resolve_device
    from anomdino.scorer.run import Outputs
    from anomdino.scorer.setup import set_scorer

    outputs, device = Outputs(work / "scores", work / "maps"), resolve_device(params.device)
    set_scorer(params.score, scorer, device, outputs, f"score {work.name}").run(list_images(images))


def detect_images(params: Params, models: Path, images: Path, work: Path) -> None:
    """Write boxes of a folder of images into ``work``, where their maps lie, by the detector in ``models``."""
    from anomdino.detector.infer import Detector
    from anomdino.detector.run import Input, detect_set
    from anomdino.device import resolve_device

    device = resolve_device(params.device)
    detector = Detector.load(models / "detector", device, params.detect, models / "rpl")
    inputs = [Input(key, path, work / "maps" / f"{key}.npz") for key, path in list_images(images).items()]
    detect_set(detector, inputs, work / "boxes.json", "detect")
