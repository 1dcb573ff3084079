"""Evaluation sets as ``val/<benchmark>/``, as :mod:`anomdino.benchmarks` reads them, marked as evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from anomdino.acquisition.archives import unpack
from anomdino.acquisition.staging import place, scratch_folder
from anomdino.acquisition.tree import Tree
from anomdino.errors import DataError
from anomdino.io.images import read_image, read_label, write_png
from anomdino.io.listing import pair_by_key, walk_files
from anomdino.progress import track
from anomdino.protocol import mark_evaluation_only


def road_anomaly(tree: Tree, out: Path) -> dict[str, int]:
    """RoadAnomaly: ``frames/<name>.jpg`` and ``frames/<name>.labels/`` to original/ and labels/ (2 to 1)."""
    frames = tree.need("frames/*.labels/labels_semantic.png") / "frames"
    pairs = pair_by_key(
        {path.stem: path for path in frames.glob("*.jpg")},
        {
            path.parent.name.removesuffix(".labels"): path
            for path in frames.glob("*.labels/labels_semantic.png")
        },
    )
    target = out / "val" / "RoadAnomaly"
    for name, image, label in track(pairs, "RoadAnomaly"):
        read_image(image)
        place(image, target / "original" / image.name, tree.owned)
        write_png(target / "labels" / f"{name}.png", (read_label(label) == 2).astype(np.uint8))
    return _marked(target, len(pairs))


def smiyc_anomaly_track(tree: Tree, out: Path) -> dict[str, int]:
    """SMIYC AnomalyTrack: images, labels and credits as they are."""
    return _smiyc(tree, out, "AnomalyTrack", "validation*.jpg")


def smiyc_obstacle_track(tree: Tree, out: Path) -> dict[str, int]:
    """SMIYC ObstacleTrack: images, labels and credits as they are."""
    return _smiyc(tree, out, "ObstacleTrack", "validation*.webp")


def lost_and_found(tree: Tree, out: Path) -> dict[str, int]:
    """LostAndFound: ``leftImg8bit/{train,test}`` and the label ids of ``gtCoarse/{train,test}``."""
    target = out / "val" / "LostAndFound"
    images = _copy(tree, "leftImg8bit/*/*/*_leftImg8bit.png", target)
    _copy(tree, "gtCoarse/*/*/*_gtCoarse_label*.png", target)
    return _marked(target, images)


def fishyscapes_laf(tree: Tree, out: Path) -> dict[str, int]:
    """Fishyscapes LostAndFound: 100 frames of LostAndFound with Fishyscapes' labels, as original/ + labels/.

    A label is called ``<rank>_<frame>_labels.png``; both files get the frame's name.
    """
    labels = {_frame_of(path): path for path in tree.glob("*_labels.png")}
    target = out / "val" / "Fishyscapes" / "LostAndFound"
    with scratch_folder(out / "val" / ".frames") as work:
        images = _laf_images(tree, labels, work)
        for frame, image, label in track(pair_by_key(images, labels), "Fishyscapes LostAndFound"):
            read_image(image)
            place(image, target / "original" / f"{frame}.png", tree.owned)
            write_png(target / "labels" / f"{frame}.png", read_label(label))
    return _marked(target, len(labels))


def _smiyc(tree: Tree, out: Path, name: str, images: str) -> dict[str, int]:
    base = tree.need(f"dataset_{name}/images/{images}") / f"dataset_{name}"
    target = out / "val" / name
    files = [path for path in walk_files(base) if path.parent.name in {base.name, "images", "labels_masks"}]
    for path in track(files, name, unit="file"):
        place(path, target / path.relative_to(base), tree.owned)
    return _marked(target, len([path for path in files if path.parent.name == "images"]))


def _copy(tree: Tree, pattern: str, target: Path) -> int:
    base = tree.need(pattern)
    files = tree.glob(pattern)
    for path in track(files, pattern, unit="file"):
        place(path, target / path.relative_to(base), tree.owned)
    return len(files)


def _frame_of(label: Path) -> str:
    match = re.fullmatch(r"\d+_(.+)_labels", label.stem)
    if match is None:
        raise DataError(label, "is not named <rank>_<frame>_labels.png", "is it Fishyscapes' validation set?")
    return match[1]


def _laf_images(tree: Tree, frames: Iterable[str], work: Path) -> dict[str, Path]:
    wanted = {f"{frame}_leftImg8bit.png" for frame in frames}
    archive = tree.files.get("laf_images")
    if archive is None:
        found = tree.glob("leftImg8bit/*/*/*_leftImg8bit.png")
    else:
        found = unpack(archive, work, chosen=lambda name: name.rpartition("/")[2] in wanted)
    return {path.name.removesuffix("_leftImg8bit.png"): path for path in found if path.name in wanted}


def _marked(target: Path, count: int) -> dict[str, int]:
    mark_evaluation_only(target)
    return {f"val/{target.relative_to(next(p for p in target.parents if p.name == 'val')).as_posix()}": count}
