"""How each data set lies on disk: functions from (root, split) to samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from anomdino.benchmarks.model import Sample
from anomdino.errors import ConfigError, DataError
from anomdino.io.listing import list_images, pair_by_key

Files = Mapping[str, Path]
TAGS_FILE = "tags.json"


def pair_up(
    images: Files,
    labels: Files,
    tags: Callable[[str], tuple[str, ...]] = lambda key: (),
    where: Path | None = None,
) -> list[Sample]:
    """Pair images with labels by key.

    No label at all makes a split that can be predicted but not scored; labels for some are a mistake.

    Args:
        images: Image files by key.
        labels: Label files by the key of their image.
        tags: Groups of a key.
        where: Folder for messages.

    Returns:
        Samples in order of their key.

    Raises:
        DataError: There is no image, or a partner is missing on either side; the message lists both sides.
    """
    where = where or (next(iter(images.values())).parent if images else Path())
    if not images:
        raise DataError(where, "holds no image", "check the root and the split of the benchmark")
    lone_images, lone_labels = sorted(images.keys() - labels.keys()), sorted(labels.keys() - images.keys())
    if lone_labels or (lone_images and labels):
        parts = [
            f"{len(keys)} {text}: {', '.join(keys[:10])}{' ...' if len(keys) > 10 else ''}"
            for keys, text in ((lone_images, "images without label"), (lone_labels, "labels without image"))
            if keys
        ]
        raise DataError(
            where, "; ".join(parts), "add the partners, remove the lone files, or choose another split"
        )
    return [Sample(key, images[key], labels.get(key), tags(key)) for key in sorted(images)]


def road_anomaly(root: Path, split: str) -> list[Sample]:
    """RoadAnomaly as prepared by RPL: ``original/*.jpg`` + ``labels/*.png``, 1 = anomaly."""
    if not (root / "original").is_dir() and (root / "frames").is_dir():
        raise DataError(root, "has RoadAnomaly's `frames/` form", "set layout: road_anomaly_frames")
    return _beside(root / "original", root / "labels")


def road_anomaly_frames(root: Path, split: str) -> list[Sample]:
    """RoadAnomaly as published: ``frames/<name>.jpg`` + ``<name>.labels/labels_semantic.png``, 2 anomaly."""
    folder = root / "frames"
    everything = list_images(folder)
    images = {key: path for key, path in everything.items() if not _in_label_folder(path, folder)}
    labels = {
        key.split(".labels/")[0]: path
        for key, path in everything.items()
        if key.endswith(".labels/labels_semantic")
    }
    return pair_up(images, labels, where=folder)


def smiyc_anomaly_track(root: Path, split: str) -> list[Sample]:
    """SMIYC AnomalyTrack: ``images/<fid>.jpg`` + ``labels_masks/<fid>_labels_semantic.png``.

    ``root`` is ``dataset_AnomalyTrack`` or the folder above it.
    """
    folder = _inside(root, "dataset_AnomalyTrack", "images")
    chosen = {
        "all": lambda key: True,
        "validation": lambda key: key.startswith("validation"),
        "test": lambda key: not key.startswith("validation"),
    }[split]
    return _smiyc(folder, chosen, lambda key: ())


_OBSTACLE_SPECIAL = {"night": {"driveway"}, "snowstorm": {"snowstorm1", "snowstorm2"}}
_OBSTACLE_EXCLUDED = tuple(f"validation_{number}" for number in (19, *range(21, 30)))


def smiyc_obstacle_track(root: Path, split: str) -> list[Sample]:
    """SMIYC ObstacleTrack: ``images/<scene>_<n>.webp`` + ``labels_masks/<fid>_labels_semantic.png``.

    ``root`` is ``dataset_ObstacleTrack`` or the folder above it. The scene is the frame's name up to its
    first ``_``. The validation split leaves out ten frames by prefix, as the benchmark does, unless the set
    holds exactly the 30 that remain (copies that were renumbered). ``noNight`` has no validation frame: the benchmark
    lets them in, but asks for the number of frames without them, 382.
    """
    folder = _inside(root, "dataset_ObstacleTrack", "images")
    night, snow = _OBSTACLE_SPECIAL["night"], _OBSTACLE_SPECIAL["snowstorm"]

    def scene(key: str) -> str:
        return key.split("_", maxsplit=1)[0]

    chosen: dict[str, Callable[[str], bool]] = {
        "all": lambda key: True,
        "noNight": lambda key: scene(key) not in night | {"validation"},
        "night": lambda key: scene(key) in night,
        "snowstorm": lambda key: scene(key) in snow,
        "test": lambda key: scene(key) not in night | snow | {"validation"},
        "validation": lambda key: scene(key) == "validation",
    }
    samples = _smiyc(folder, chosen[split], lambda key: _obstacle_tags(scene(key)))
    if split == "validation" and len(samples) != 30:
        samples = [sample for sample in samples if not sample.key.startswith(_OBSTACLE_EXCLUDED)]
    return samples


_LAF_INVALID = {
    "train": (44, 67, 88, 109, 131, 614),
    "test": (17, 37, 55, 72, 91, 110, 129, 153, 174, 197, 218, 353, 490, 618, 686, 792, 793),
}
_LAF_KNOWN_OBJECTS = (
    "15_Rechbergstr_Deckenpfronn",
    "01_Hanns_Klemm_Str_45_000006",
    "01_Hanns_Klemm_Str_45_000007",
    "10_Schlossberg_9_000004",
)


def lost_and_found(root: Path, split: str, labels: str = "labelIds") -> list[Sample]:
    """LostAndFound: ``leftImg8bit/<split>/<scene>/<fid>_leftImg8bit.png`` and its ``gtCoarse`` label ids.

    ``trainValid`` and ``testValid`` leave out frames whose labels are empty, by their index in the full list;
    ``testNoKnown`` leaves out pedestrians and cyclists too.
    """
    base = "train" if split.startswith("train") else "test"
    root = _inside(root, "dataset_LostAndFound", "leftImg8bit")
    image_root, label_root = root / "leftImg8bit" / base, root / "gtCoarse" / base
    images = {key: path for key, path in list_images(image_root).items() if key.endswith("_leftImg8bit")}
    ending = f"_gtCoarse_{labels}"
    found = list_images(label_root) if label_root.is_dir() else {}
    partners = {
        key.removesuffix(ending) + "_leftImg8bit": path for key, path in found.items() if key.endswith(ending)
    }
    samples = [
        replace(sample, frame_id=sample.image.stem.removesuffix("_leftImg8bit"))
        for sample in pair_up(images, partners, lambda key: (key.split("/", maxsplit=1)[0],), image_root)
    ]
    samples.sort(key=lambda sample: sample.frame_id)
    if split != base:
        samples = [sample for index, sample in enumerate(samples) if index not in _LAF_INVALID[base]]
    if split == "testNoKnown":
        samples = [sample for sample in samples if not sample.frame_id.startswith(_LAF_KNOWN_OBJECTS)]
    return samples


def lost_and_found_train_ids(root: Path, split: str) -> list[Sample]:
    """LostAndFound with RPL's labels, ``labelTrainIds``: 1 free road, 2 obstacle."""
    return lost_and_found(root, split, labels="labelTrainIds")


def fishyscapes(root: Path, split: str) -> list[Sample]:
    """Fishyscapes as RPL and S2M lay it out: ``[<split>/]original/*.png`` + ``labels/*.png``."""
    folder = root / split if (root / split).is_dir() else root
    return _beside(folder / "original", folder / "labels")


def fishyscapes_laf(root: Path, split: str) -> list[Sample]:
    """Fishyscapes LostAndFound as SMIYC reads it: images of LostAndFound, labels of ``dataset_FishyLAF``.

    ``dataset_FishyLAF/labels/val/<fid>_fishy-labels.png``; the labels say which frames belong to the set.
    """
    label_root = root / "dataset_FishyLAF" / "labels" / "val"
    images_root = _inside(root, "dataset_LostAndFound", "leftImg8bit") / "leftImg8bit"
    labels = {
        path.stem.removesuffix("_fishy-labels"): path
        for path in list_images(label_root).values()
        if path.stem.endswith("_fishy-labels")
    }
    frames = {
        path.stem.removesuffix("_leftImg8bit"): (key, path) for key, path in list_images(images_root).items()
    }
    if not labels:
        raise DataError(label_root, "holds no <frame>_fishy-labels.png", "fetch the labels of FishyLAF")
    lone = sorted(labels.keys() - frames.keys())
    if lone:
        raise DataError(
            label_root, f"{len(lone)} labels without image: {', '.join(lone[:10])}", "fetch LostAndFound"
        )
    samples = [Sample(frames[fid][0], frames[fid][1], labels[fid], frame_id=fid) for fid in sorted(labels)]
    return sorted(samples, key=lambda sample: sample.key)


def street_hazards(root: Path, split: str) -> list[Sample]:
    """StreetHazards: ``images/test/<town>/*.png`` + ``annotations/test/<town>/*.png``, 14 = anomaly."""
    root = _inside(root, "test", "images")
    images, annotations = root / "images" / "test", root / "annotations" / "test"
    return _beside(images, annotations, lambda key: (key.split("/", maxsplit=1)[0],))


def folder(root: Path, split: str, images: str = "images", labels: str = "labels") -> list[Sample]:
    """A plain folder: ``images/<key>.*`` + ``labels/<key>.png`` (or ``masks/``), and ``instances/``.

    Where there is a folder ``instances/``, every image has a file in it, as instances that are not there would not
    count as missed and what is predicted there not as false.
    """
    root = _split_of(root, split, images)
    label_root = root / labels
    if not label_root.is_dir() and labels == "labels" and (root / "masks").is_dir():
        label_root = root / "masks"
    samples = _beside(root / images, label_root, _folder_tags)
    if not (root / "instances").is_dir():
        return samples
    images_by_key = {sample.key: sample.image for sample in samples}
    pairs = pair_by_key(images_by_key, list_images(root / "instances"), ("image", "instances"))
    instances = {key: path for key, _, path in pairs}
    return [replace(sample, instances=instances[sample.key]) for sample in samples]


def _split_of(root: Path, split: str, images: str) -> Path:
    """Give the folder of a split, ``root/<split>``; where none is named, or ``all``, ``root`` itself.

    Raises:
        ConfigError: There is no such folder; the message lists those there are.
    """
    if split and (root / split).is_dir():
        return root / split
    if split in {"", "all"} or not root.is_dir():
        return root
    there = sorted(path.parent.name for path in root.glob(f"*/{images}"))
    raise ConfigError(
        f"split of {root}",
        f"'{split}' is no folder there",
        f"splits are folders with {images}/: {', '.join(there) or 'none'}",
    )


def with_tags(samples: Iterable[Sample], root: Path) -> list[Sample]:
    """Add the tags of ``<root>/tags.json``, ``{key: [tag, ...]}``, where there is such a file; each counts once.

    Raises:
        DataError: The file is no such mapping.
    """
    path = root / TAGS_FILE
    if not path.is_file():
        return list(samples)
    try:
        tags = json.loads(path.read_text(encoding="utf-8"))
        return [
            replace(sample, tags=tuple(dict.fromkeys((*sample.tags, *_listed(tags.get(sample.key, ()))))))
            for sample in samples
        ]
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(path, f"is no mapping from key to a list of tags ({error})") from error


def _listed(tags: object) -> list[str]:
    if not isinstance(tags, list | tuple):
        raise TypeError(f"{tags!r} is no list")
    return [str(tag) for tag in tags]


def _beside(
    images: Path, labels: Path, tags: Callable[[str], tuple[str, ...]] = lambda key: ()
) -> list[Sample]:
    return pair_up(list_images(images), list_images(labels) if labels.is_dir() else {}, tags, images.parent)


def _smiyc(root: Path, chosen: Callable[[str], bool], tags: Callable[[str], tuple[str, ...]]) -> list[Sample]:
    images = {key: path for key, path in list_images(root / "images").items() if chosen(key)}
    found = list_images(root / "labels_masks") if (root / "labels_masks").is_dir() else {}
    ending = "_labels_semantic"
    labels = {key.removesuffix(ending): path for key, path in found.items() if key.endswith(ending)}
    labels = {key: path for key, path in labels.items() if chosen(key)}
    hidden = {key: path for key, path in images.items() if not key.startswith("validation")}
    if labels and hidden and not hidden.keys() & labels.keys():
        public = {key: path for key, path in images.items() if key not in hidden}
        samples = [*pair_up(public, labels, tags, root), *pair_up(hidden, {}, tags, root)]
        return sorted(samples, key=lambda sample: sample.key)
    return pair_up(images, labels, tags, root)


def _inside(root: Path, name: str, needed: str) -> Path:
    """Give ``root/name`` or ``root``, whichever holds the folder ``needed``."""
    for folder_ in (root / name, root):
        if (folder_ / needed).is_dir():
            return folder_
    raise DataError(
        root, f"holds neither '{name}/{needed}' nor '{needed}'", "check root and layout of the benchmark"
    )


def _in_label_folder(path: Path, root: Path) -> bool:
    return any(part.endswith(".labels") for part in path.relative_to(root).parts[:-1])


def _obstacle_tags(scene: str) -> tuple[str, ...]:
    special = tuple(tag for tag, scenes in _OBSTACLE_SPECIAL.items() if scene in scenes)
    return (scene, *special)


def _folder_tags(key: str) -> tuple[str, ...]:
    return (key.split("/", maxsplit=1)[0],) if "/" in key else ()


def check_split(layout: str, split: str, splits: tuple[str, ...]) -> None:
    """Refuse a split that a layout does not have.

    Raises:
        ConfigError: The message lists the splits there are.
    """
    if splits and split not in splits:
        raise ConfigError(f"split of {layout}", f"'{split}' is unknown", f"choose one of {', '.join(splits)}")
