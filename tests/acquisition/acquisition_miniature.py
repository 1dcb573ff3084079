"""A miniature of every registered item, in its published form, and the registry that describes them."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from anomdino.acquisition.normalise.inlier import CAMVID_CLASSES
from anomdino.acquisition.registry import Registry, load_registry

HEIGHT, WIDTH = 64, 128
TRAIN, VAL = 4, 2
ROAD, CAR, SKY = 7, 26, 23

Files = Mapping[str, bytes]


def picture(seed: int, size: tuple[int, int] = (HEIGHT, WIDTH), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return encoded(pixels, kind)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


def halves(top: int, bottom: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    values = np.full(size, top, np.uint8)
    values[size[0] // 2 :] = bottom
    return values


def score_file(seed: int) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH)).astype(np.float32))
    return stream.getvalue()


def cityscapes_images() -> Files:
    return {
        f"leftImg8bit/{split}/town/town_{number:06d}_000019_leftImg8bit.png": picture(number)
        for split, numbers in (("train", range(TRAIN)), ("val", range(100, 100 + VAL)), ("test", [200]))
        for number in numbers
    } | {"README": b"images", "license.txt": b"terms"}


def cityscapes_labels() -> Files:
    label, colour = encoded(halves(SKY, ROAD)), picture(9)
    files: dict[str, bytes] = {"README": b"labels", "license.txt": b"terms"}
    for split, numbers in (("train", range(TRAIN)), ("val", range(100, 100 + VAL)), ("test", [200])):
        for number in numbers:
            stem = f"gtFine/{split}/town/town_{number:06d}_000019_gtFine"
            files |= {
                f"{stem}_labelIds.png": label,
                f"{stem}_color.png": colour,
                f"{stem}_polygons.json": b"{}",
            }
    return files


COCO_NAMES = {1: "person", 3: "car", 17: "cat", 47: "cup"}
COCO_SIZES = {1: (480, 640), 2: (500, 480), 3: (479, 640), 4: (480, 480), 5: (480, 500), 6: (600, 600)}
"""Image id to (H, W): 3 is too small, 4 shows a car, 5 has no instance; 1, 2 and 6 pass the filter."""


def coco_images() -> Files:
    return {f"train2017/{n:012d}.jpg": picture(n, size, "JPEG") for n, size in COCO_SIZES.items()}


def coco_annotations() -> Files:
    square = [[10.0, 20.0, 110.0, 20.0, 110.0, 220.0, 10.0, 220.0]]
    crowd = {"size": [500, 480], "counts": [500 * 100, 500 * 50, 500 * 330]}
    objects = [
        {"id": 1, "image_id": 1, "category_id": 17, "segmentation": square, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 47, "segmentation": crowd, "iscrowd": 1},
        {"id": 3, "image_id": 3, "category_id": 17, "segmentation": square, "iscrowd": 0},
        {"id": 4, "image_id": 4, "category_id": 17, "segmentation": square, "iscrowd": 0},
        {"id": 5, "image_id": 4, "category_id": 3, "segmentation": square, "iscrowd": 0},
        {"id": 6, "image_id": 6, "category_id": 47, "segmentation": square, "iscrowd": 0},
    ]
    content = {
        "images": [
            {"id": n, "file_name": f"{n:012d}.jpg", "height": h, "width": w}
            for n, (h, w) in COCO_SIZES.items()
        ],
        "annotations": objects,
        "categories": [{"id": number, "name": name} for number, name in COCO_NAMES.items()],
    }
    return {
        "annotations/instances_train2017.json": json.dumps(content).encode(),
        "annotations/captions_train2017.json": b"{}",
    }


CAMVID_FRAMES = (
    "0001TP_006690",
    "0006R0_f00930",
    "0016E5_00390",
    "0016E5_07959",
    "0016E5_08159",
    "Seq05VD_f00000",
)


def camvid_label(colours: bool) -> bytes:
    names = sorted(CAMVID_CLASSES)
    indices = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % len(names)
    table = np.array([CAMVID_CLASSES[name][0] for name in names], np.uint8)
    return encoded(table[indices] if colours else indices.astype(np.uint8))


def camvid_indexed() -> Files:
    files = {f"camvid/images/{name}.png": picture(5) for name in CAMVID_FRAMES}
    files |= {f"camvid/labels/{name}_P.png": camvid_label(colours=False) for name in CAMVID_FRAMES}
    return files | {"camvid/codes.txt": "\n".join(sorted(CAMVID_CLASSES)).encode(), "camvid/valid.txt": b""}


def camvid_images() -> Files:
    return {f"701_StillsRaw_full/{name}.png": picture(5) for name in CAMVID_FRAMES}


def camvid_labels() -> Files:
    return {f"{name}_L.png": camvid_label(colours=True) for name in CAMVID_FRAMES}


def anomaly_label(seed: int) -> bytes:
    values = halves(255, 0)
    values[40 : 50 + seed % 8, 30:60] = 1
    return encoded(values)


def track(name: str, stem: str, suffix: str, kind: str, count: int, first: int = 0) -> Files:
    files: dict[str, bytes] = {f"dataset_{name}/LICENSE.txt": b"terms"}
    for number in range(first, first + count):
        frame = stem.format(number)
        files[f"dataset_{name}/images/{frame}.{suffix}"] = picture(number, kind=kind)
        files[f"dataset_{name}/labels_masks/{frame}_labels_semantic.png"] = anomaly_label(number)
        files[f"dataset_{name}/labels_masks/{frame}_labels_semantic_color.png"] = picture(number)
    return files


def anomaly_track() -> Files:
    files = dict(track("AnomalyTrack", "validation{:04d}", "jpg", "JPEG", 3))
    files["dataset_AnomalyTrack/images/airplane0000.jpg"] = picture(1, kind="JPEG")
    return files


def obstacle_track() -> Files:
    return track("ObstacleTrack", "validation_{}", "webp", "WEBP", 3, first=9)


def road_anomaly() -> Files:
    files: dict[str, bytes] = {}
    for number in range(3):
        files[f"RoadAnomaly_jpg/frames/animals{number:02d}.jpg"] = picture(number, kind="JPEG")
        label = halves(0, 1)
        label[50:, 20:40] = 2
        files[f"RoadAnomaly_jpg/frames/animals{number:02d}.labels/labels_semantic.png"] = encoded(label)
        files[f"RoadAnomaly_jpg/frames/animals{number:02d}.labels/labels_semantic_color.png"] = picture(
            number
        )
    return files


def s2m_val() -> Files:
    files: dict[str, bytes] = {}
    for number in range(3):
        files[f"val/road_anomaly/original/animals{number:02d}.jpg"] = picture(number, kind="JPEG")
        files[f"val/road_anomaly/labels/animals{number:02d}.png"] = anomaly_label(number)
        files[f"val/road_anomaly/score/{number}.npz"] = score_file(number)
        files[f"val/fishyscapes/LostAndFound/original/image_{number + 9}.png"] = picture(number)
        files[f"val/fishyscapes/LostAndFound/labels/image_{number + 9}.png"] = anomaly_label(number)
        files[f"val/fishyscapes/LostAndFound/score/{number}.npz"] = score_file(number)
    for one in (anomaly_track(), obstacle_track()):
        files |= {
            f"val/segment_me/{name}": content for name, content in one.items() if "airplane" not in name
        }
    for name in ("AnomalyTrack", "ObstacleTrack"):
        files |= {f"val/segment_me/dataset_{name}/score/{rank}.npz": score_file(rank) for rank in range(3)}
    return files


def s2m_train() -> Files:
    entries = [
        {"file_name": f"{number}.png", "annotations": {"bbox": [10, 20, 10 + number, 40], "category_id": 0}}
        for number in range(5)
    ]
    files = {f"train_dataset/offline_dataset/{number}.png": picture(number) for number in range(5)}
    files |= {f"train_dataset/offline_dataset_score/{number}.npz": score_file(number) for number in range(5)}
    files |= {
        f"train_dataset/offline_dataset_score_view/{number}.png": picture(number) for number in range(5)
    }
    return files | {"train_dataset/ood.json": json.dumps(entries).encode()}


LAF_FRAMES = {
    "train": ("01_Street_45_000000_000010",),
    "test": ("04_Way_8_000000_000030", "04_Way_8_000001_000040"),
}


def laf_images() -> Files:
    return {
        f"leftImg8bit/{split}/{frame[:6]}/{frame}_leftImg8bit.png": picture(len(frame))
        for split, frames in LAF_FRAMES.items()
        for frame in frames
    }


def laf_labels() -> Files:
    return {
        f"gtCoarse/{split}/{frame[:6]}/{frame}_gtCoarse_{kind}.png": encoded(halves(0, 1))
        for split, frames in LAF_FRAMES.items()
        for frame in frames
        for kind in ("labelIds", "labelTrainIds", "instanceIds")
    }


def fishyscapes_labels() -> Files:
    return {
        f"{rank:04d}_{frame}_labels.png": anomaly_label(rank) for rank, frame in enumerate(LAF_FRAMES["test"])
    }


def checkpoint() -> bytes:
    stream = io.BytesIO()
    torch.save({"branch1.weight": torch.zeros(2)}, stream)
    return stream.getvalue()


ARCHIVES: Mapping[str, Callable[[], Files]] = {
    "cityscapes_images": cityscapes_images,
    "cityscapes_labels": cityscapes_labels,
    "coco_train_images": coco_images,
    "coco_annotations": coco_annotations,
    "camvid_indexed": camvid_indexed,
    "camvid_images": camvid_images,
    "camvid_labels": camvid_labels,
    "s2m_val": s2m_val,
    "s2m_train": s2m_train,
    "road_anomaly": road_anomaly,
    "smiyc_anomaly_track": anomaly_track,
    "smiyc_obstacle_track": obstacle_track,
    "fishyscapes_labels": fishyscapes_labels,
    "laf_images": laf_images,
    "laf_labels": laf_labels,
}
PLAIN: Mapping[str, Callable[[], bytes]] = {
    "rpl_seed": checkpoint,
    "rpl_corocl": checkpoint,
    "wide_resnet38_cityscapes": checkpoint,
    "mm_grounding_dino_t": checkpoint,
    "bert_config": lambda: b'{"hidden_size": 8}',
    "bert_tokenizer": lambda: b'{"model": {}}',
    "bert_tokenizer_config": lambda: b'{"do_lower_case": true}',
    "bert_vocabulary": lambda: b"[PAD]\n[UNK]\nood\n",
    "bert_weights": lambda: safetensors_bytes({"embeddings": torch.zeros(2)}),
}
COUNTS = {
    "leftImg8bit/train/*/*_leftImg8bit.png": {"cityscapes": TRAIN, "lost_and_found": 1},
    "leftImg8bit/val/*/*_leftImg8bit.png": {"cityscapes": VAL},
    "gtFine/train/*/*_gtFine_labelIds.png": {"cityscapes": TRAIN},
    "gtFine/val/*/*_gtFine_labelIds.png": {"cityscapes": VAL},
    "leftImg8bit/test/*/*_leftImg8bit.png": {"lost_and_found": 2},
    "gtCoarse/train/*/*_gtCoarse_labelIds.png": {"lost_and_found": 1},
    "gtCoarse/test/*/*_gtCoarse_labelIds.png": {"lost_and_found": 2},
}
OTHER_COUNTS = {
    "camvid": 6,
    "road_anomaly": 3,
    "smiyc_anomaly_track": 3,
    "smiyc_obstacle_track": 3,
    "fishyscapes_laf": 2,
}


def packed(name: str, files: Files) -> bytes:
    stream = io.BytesIO()
    if name.endswith((".tar", ".tgz")):
        with tarfile.open(fileobj=stream, mode="w:gz" if name.endswith(".tgz") else "w") as archive:
            for member, content in files.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    else:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in files.items():
                archive.writestr(zipfile.ZipInfo(member), content)
    return stream.getvalue()


@cache
def published_files() -> dict[str, bytes]:
    """Give the content of every registered file, in miniature, by id."""
    files = load_registry().files
    content = {file: packed(files[file].name, make()) for file, make in ARCHIVES.items()}
    return content | {file: make() for file, make in PLAIN.items()}


def miniature_registry(address: str = "", **changes: object) -> Registry:
    """Give the packaged registry with miniature counts, no sizes or digests, and all sources at ``address``."""
    content = load_registry().model_dump()
    for entry in content["files"].values():
        entry.update(dict.fromkeys(("size", "about", "md5", "sha256", "sha256_prefix")) | changes)
        entry["sources"] = [{"url": f"{address}/{entry['name']}"}] if address else entry["sources"]
    for name, item in content["items"].items():
        for expected in (one for bundle in item["layout"] for one in bundle if one["count"] not in {None, 1}):
            expected["count"] = COUNTS.get(expected["pattern"], {}).get(name) or OTHER_COUNTS[name]
        for expected in (one for bundle in item["layout"] for one in bundle if one["least"] > 1):
            expected["least"] = OTHER_COUNTS[name]
    return Registry.model_validate({**content, "files": _one_kind(content["files"])})


def _one_kind(files: dict) -> dict:
    for entry in files.values():
        entry["sources"] = [{kind: text for kind, text in one.items() if text} for one in entry["sources"]]
    return files


def write_published(folder: Path, only: set[str] | None = None) -> None:
    """Write the miniature files under their published names, as a person would have saved them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = load_registry().files
    for file, content in published_files().items():
        if only is None or file in only:
            (folder / files[file].name).write_bytes(content)


def write_unpacked(folder: Path, files: Files) -> None:
    """Write an archive's members as files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
