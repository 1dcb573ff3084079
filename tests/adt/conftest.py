"""Small composed sets: blobs with noisy scores and noisy boxes, in the pipeline's layout."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anomdino.adt.dataset import TrainingFiles
from anomdino.adt.fusion import AdtModel, FusionRule
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.io.boxes import Boxes, write_box_results
from anomdino.io.images import write_png
from anomdino.io.scores import write_score


@pytest.fixture
def model() -> AdtModel:
    torch.manual_seed(3)
    return AdtModel(AdtNet(Architecture(), ScoreStatistics(-6.0, 2.0)).eval(), FusionRule())


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray, Boxes]:
    return draw_scene(np.random.default_rng(5), (90, 141))


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, Boxes]:
    """Two blobs that score higher than their noisy surroundings, one of them boxed; a void rim."""
    height, width = size
    label = np.zeros(size, np.uint8)
    for centre in ((width // 4, height // 2), (3 * width // 4, height // 2)):
        radius = int(rng.integers(min(size) // 10, min(size) // 5))
        cv2.circle(label, centre, radius, 1, -1)
        last = (centre, radius)
    noise = cv2.GaussianBlur(rng.normal(size=size).astype(np.float32), (0, 0), 2) * 4
    score = -7 + noise + 4 * cv2.GaussianBlur(label.astype(np.float32), (0, 0), 1)
    label[:3] = 255
    (x, y), r = last
    boxes = Boxes(np.array([[x - r - 2, y - r, x + r, y + r + 3], [1, 1, 20, 12]]), np.array([0.8, 0.4]))
    return score.astype(np.float32), label, boxes


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., TrainingFiles]:
    def make(
        name: str = "train", images: int = 10, size: tuple[int, int] = (64, 96), sources: int = 5
    ) -> TrainingFiles:
        root = tmp_path / name
        rng = np.random.default_rng(images)
        boxes, entries = {}, []
        for number in range(images):
            key = f"{number:03d}"
            score, label, boxes[key] = draw_scene(rng, size)
            write_score(root / "score" / f"{key}.npz", score)
            write_png(root / "label" / f"{key}.png", label)
            entries.append({"id": number, "file_name": f"{key}.png", "source": f"s{number % sources}"})
        write_box_results(root / "train.json", boxes, dict.fromkeys(boxes, size))
        (root / "ood.json").write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
        return TrainingFiles(root / "score", root / "label", root / "train.json", root / "ood.json")

    return make
