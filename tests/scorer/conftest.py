"""Tiny scenes and objects on disk, in the pipeline's layout."""

import cv2
import numpy as np
import pytest


def write_scenes(root, train=6, val=3, height=48, width=64, seed=0):
    """Write random scenes of five classes and random disc-shaped objects."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (5, 3))
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            label = np.zeros((height, width), np.uint8)
            label[: height // 3] = 1
            label[height // 3 : height // 2] = 2
            column = int(rng.integers(0, width - 12))
            label[height // 2 : height // 2 + 10, column : column + 12] = 3
            image = np.clip(colours[label] + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)
            label[:2] = 255
            _write(root / "inlier" / split / "images" / f"s{index}.png", image)
            _write(root / "inlier" / split / "labels" / f"s{index}.png", label)
    for index in range(5):
        mask = np.zeros((40, 30), np.uint8)
        cv2.circle(mask, (15, 20), int(rng.integers(6, 14)), 255, -1)
        image = np.clip(rng.integers(0, 256, 3) + rng.normal(0, 30, (40, 30, 3)), 0, 255).astype(np.uint8)
        _write(root / "outliers" / "images" / f"o{index}.png", image)
        _write(root / "outliers" / "masks" / f"o{index}.png", mask)
    return root


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("tiny_data"))


def _write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1])
