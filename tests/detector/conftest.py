import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomdino.config.detector import DetectorConfig, FusionConfig
from anomdino.io.images import write_png
from anomdino.uncertainty import UncertaintyMaps

CLASSES = 5


@pytest.fixture(autouse=True)
def one_thread():
    torch = pytest.importorskip("torch")
    pytest.importorskip("mmdet")
    torch.manual_seed(0)
    torch.set_num_threads(1)


def small_config(**changes):
    fusion = {"heads": 4, "key_pool": 2, "gate_init": 0.0, **changes.pop("fusion", {})}
    settings = {
        "embed_dims": 32,
        "fusion_dims": 32,
        "feedforward": 64,
        "queries": 12,
        "levels": 3,
        "points": 2,
        "denoising_queries": 8,
        "short_sides": [64],
        "test_short_side": 64,
        "long_side": 160,
        "batch_size": 2,
        "steps": 4,
        "val_interval": 2,
        "log_interval": 2,
        "warmup": 1,
        "dense_loss": 0.0,
    }
    return DetectorConfig(**{**settings, **changes}, fusion=FusionConfig(**fusion))


@pytest.fixture
def config():
    return small_config()


def make_maps(rng, size, classes=CLASSES, stride=4):
    h, w = -(-size[0] // stride), -(-size[1] // stride)
    p = rng.dirichlet(np.ones(classes), (h, w)).transpose(2, 0, 1)
    return UncertaintyMaps(
        p.astype(np.float16),
        rng.random((h, w)).astype(np.float16),
        rng.random((h, w)).astype(np.float16),
        rng.normal(size=(h, w)).astype(np.float32),
        size,
    )


@pytest.fixture
def composed(tmp_path):
    """Write a composed set of ten images of two sizes; returns its folder."""
    rng = np.random.default_rng(0)
    root = tmp_path / "train_dataset"
    images, annotations = [], []
    for index in range(10):
        size = (64, 96) if index % 3 else (60, 128)
        label = np.zeros(size, np.uint8)
        for _ in range(index % 3):
            x, y = int(rng.integers(0, size[1] - 24)), int(rng.integers(0, size[0] - 20))
            cv2.rectangle(label, (x, y), (x + 19, y + 15), 1, -1)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": index + 1, "category_id": 1, "bbox": [x, y, 20, 16]}
            )
        image = rng.integers(0, 90, (*size, 3)).astype(np.uint8) + (label[..., None] * 150)
        maps = make_maps(rng, size)
        key = f"part{index % 2}/{index:03d}"
        write_png(root / "offline_dataset" / f"{key}.png", image)
        write_png(root / "offline_dataset_label" / f"{key}.png", label)
        small = cv2.resize(label.astype(np.float32), maps.score.shape[::-1], interpolation=cv2.INTER_AREA)
        maps.score[:] += 6 * small
        maps.save(root / "offline_dataset_maps" / f"{key}.npz")
        images.append(
            {
                "id": index + 1,
                "file_name": f"{key}.png",
                "height": size[0],
                "width": size[1],
                "source": f"s{index // 2}",
                "split": "val" if index // 2 == 4 else "train",
            }
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ood-object"}]}
    (root / "ood.json").write_text(json.dumps(content))
    return root


def read_set(root: Path):
    from anomdino.detector.records import read_records

    return read_records(
        root / "ood.json",
        root / "offline_dataset",
        root / "offline_dataset_maps",
        root / "offline_dataset_label",
    )
