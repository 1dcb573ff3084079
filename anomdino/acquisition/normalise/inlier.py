"""Closed-set data sets as ``inlier/{train,val}/{images,labels}``, labels in Cityscapes train ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomdino.acquisition.pairs import LabelReader, Pair, copy_closed_set
from anomdino.acquisition.tree import Tree
from anomdino.errors import DataError
from anomdino.io.images import read_image, read_label
from anomdino.io.labels import check_values
from anomdino.io.listing import pair_by_key, walk_files

VOID = 255

CITYSCAPES_TRAIN_IDS = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}
"""Cityscapes label id to train id; every other label id is void."""
_CITYSCAPES_IDS = frozenset((*range(34), 255))

CAMVID_CLASSES: Mapping[str, tuple[tuple[int, int, int], int]] = {
    "Animal": ((64, 128, 64), VOID),
    "Archway": ((192, 0, 128), 2),
    "Bicyclist": ((0, 128, 192), 18),
    "Bridge": ((0, 128, 64), 2),
    "Building": ((128, 0, 0), 2),
    "Car": ((64, 0, 128), 13),
    "CartLuggagePram": ((64, 0, 192), VOID),
    "Child": ((192, 128, 64), 11),
    "Column_Pole": ((192, 192, 128), 5),
    "Fence": ((64, 64, 128), 4),
    "LaneMkgsDriv": ((128, 0, 192), 0),
    "LaneMkgsNonDriv": ((192, 0, 64), 0),
    "Misc_Text": ((128, 128, 64), 7),
    "MotorcycleScooter": ((192, 0, 192), 18),
    "OtherMoving": ((128, 64, 64), VOID),
    "ParkingBlock": ((64, 192, 128), 1),
    "Pedestrian": ((64, 64, 0), 11),
    "Road": ((128, 64, 128), 0),
    "RoadShoulder": ((128, 128, 192), 1),
    "Sidewalk": ((0, 0, 192), 1),
    "SignSymbol": ((192, 128, 128), 7),
    "Sky": ((128, 128, 128), 10),
    "SUVPickupTruck": ((64, 128, 192), 13),
    "TrafficCone": ((0, 0, 64), VOID),
    "TrafficLight": ((0, 64, 64), 7),
    "Train": ((192, 64, 128), 13),
    "Tree": ((128, 128, 0), 8),
    "Truck_Bus": ((192, 128, 192), 13),
    "Tunnel": ((64, 0, 64), 2),
    "VegetationMisc": ((192, 192, 0), 8),
    "Void": ((0, 0, 0), VOID),
    "Wall": ((64, 192, 0), 2),
}
"""CamVid's 32 classes: colour (RGB) and Cityscapes train id.

The classes are joined to the eleven that CamVid is usually trained with (road, pavement, building, fence,
pole, sign, vegetation, sky, person, car, bicycle). Animals, prams and luggage, traffic cones and "other
moving" are void: an anomaly segmenter must not learn them as in-distribution.
"""

_CAMVID_FIRST_HALF = "0001TP_008550"
_CAMVID_VAL = ("0016E5_07959", "0016E5_08159")


def cityscapes(tree: Tree, out: Path) -> dict[str, int]:
    """Cityscapes: ``leftImg8bit/{train,val}`` with ``gtFine/{train,val}``, label ids made train ids."""
    counts = {}
    images = tree.need("leftImg8bit/*/*/*_leftImg8bit.png")
    labels = tree.need("gtFine/*/*/*_gtFine_labelIds.png")
    for split in ("train", "val"):
        pairs = pair_by_key(
            _by_key(images / "leftImg8bit" / split, "_leftImg8bit.png"),
            _by_key(labels / "gtFine" / split, "_gtFine_labelIds.png"),
        )
        counts[f"inlier/{split}"] = copy_closed_set(
            pairs, out / "inlier" / split, f"cityscapes {split}", read_cityscapes_label, tree.owned
        )
    return counts


def camvid(tree: Tree, out: Path) -> dict[str, int]:
    """CamVid, all 701 frames: colour labels (``*_L.png``) or indices (``*_P.png`` with ``codes.txt``).

    Frames are split as usual for this set: training are the first half of 0001TP, all of 0006R0 and most of
    0016E5, validation the 101 frames of 0016E5 recorded at twice the rate. The test half (rest of 0001TP,
    Seq05VD) is left out.
    """
    indexed = tree.base("labels/*_P.png")
    if indexed is not None:
        names = (tree.need("codes.txt") / "codes.txt").read_text("utf-8").split()
        lookup = _camvid_index_table(names, indexed / "codes.txt")
        pairs = _camvid_pairs(indexed / "images", indexed / "labels", "_P.png")
        known, what = frozenset(range(len(names))), "lines of codes.txt"
        return _camvid_write(pairs, out, tree, lambda path: np.take(lookup, _known_values(path, known, what)))
    labels = tree.need("*_L.png")
    images = tree.need("701_StillsRaw_full/*.png") / "701_StillsRaw_full"
    return _camvid_write(_camvid_pairs(images, labels, "_L.png"), out, tree, read_camvid_colours)


def read_cityscapes_label(path: Path) -> npt.NDArray[np.uint8]:
    """Read a Cityscapes label-id image as train ids.

    Returns:
        uint8 (H, W): 0..18, 255 void.

    Raises:
        DataError: The label holds ids that Cityscapes does not have.
    """
    table = np.full(256, VOID, np.uint8)
    for label, train_id in CITYSCAPES_TRAIN_IDS.items():
        table[label] = train_id
    return np.take(table, _known_values(path, _CITYSCAPES_IDS, "Cityscapes label ids 0..33 (255 for -1)"))


def read_camvid_colours(path: Path) -> npt.NDArray[np.uint8]:
    """Read a CamVid colour label as Cityscapes train ids.

    Returns:
        uint8 (H, W): train ids, 255 void.

    Raises:
        DataError: The label holds colours that CamVid does not have.
    """
    pixels = read_image(path).astype(np.uint32)
    codes = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    known = {
        (red << 16) | (green << 8) | blue: train_id
        for (red, green, blue), train_id in CAMVID_CLASSES.values()
    }
    present, where = np.unique(codes, return_inverse=True)
    strange = [int(code) for code in present if int(code) not in known]
    if strange:
        colours = ", ".join(f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in strange[:5])
        raise DataError(path, f"has {len(strange)} colours that are no CamVid class: {colours}", "")
    return np.array([known[int(code)] for code in present], np.uint8)[where].reshape(codes.shape)


def camvid_split(stem: str) -> str:
    """Give the usual split (train, val or test) of a CamVid frame by its name."""
    if stem.startswith("Seq05VD") or (stem.startswith("0001TP") and stem >= _CAMVID_FIRST_HALF):
        return "test"
    return "val" if _CAMVID_VAL[0] <= stem <= _CAMVID_VAL[1] else "train"


def _by_key(root: Path, ending: str) -> dict[str, Path]:
    found = (path for path in walk_files(root) if path.name.endswith(ending))
    return {path.relative_to(root).as_posix().removesuffix(ending): path for path in found}


def _camvid_pairs(images: Path, labels: Path, ending: str) -> list[Pair]:
    frames = {path.stem: path for path in sorted(images.glob("*.png"))}
    partners = {path.name.removesuffix(ending): path for path in sorted(labels.glob(f"*{ending}"))}
    return pair_by_key(frames, partners)


def _camvid_write(pairs: list[Pair], out: Path, tree: Tree, read: LabelReader) -> dict[str, int]:
    return {
        f"inlier/{split}": copy_closed_set(
            [pair for pair in pairs if camvid_split(pair[0]) == split],
            out / "inlier" / split,
            f"camvid {split}",
            read,
            tree.owned,
        )
        for split in ("train", "val")
    }


def _known_values(path: Path, known: frozenset[int], name: str) -> npt.NDArray[np.uint8]:
    values = read_label(path)
    check_values(path, values, known, name)
    return values


def _camvid_index_table(names: list[str], path: Path) -> npt.NDArray[np.uint8]:
    unknown = sorted(set(names) - CAMVID_CLASSES.keys())
    if unknown or not names:
        raise DataError(path, f"names classes that CamVid does not have: {unknown[:5]}", "")
    table = np.full(256, VOID, np.uint8)
    table[: len(names)] = [CAMVID_CLASSES[name][1] for name in names]
    return table
