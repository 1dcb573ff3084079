"""The graph of profile `paper` on miniatures of the published files, through the same code as the real ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import acquisition_miniature as miniature
import pytest
from ruamel.yaml import YAML

from anomdino.config.params import check_params, flatten, profile_params

pytest.importorskip("dvc")
pytest.importorskip("mmdet")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SETS = ("RoadAnomaly", "AnomalyTrack", "ObstacleTrack")
SMALL: dict[str, dict[str, Any]] = {
    "compose": {"count": 8, "size": 0, "workers": 1},
    "rpl": {
        "architecture": "small",
        "source": "train",
        "checkpoint": "",
        "closed_set": {
            "source": "train",
            "checkpoint": "",
            "schedule": {"steps": 3},
            "augment": {"crop": [64, 96]},
            "batch": 2,
        },
        "residual": {
            "schedule": {"steps": 3},
            "augment": {"crop": [64, 96]},
            "rule": "objects",
            "batch": 2,
            "corocl": {"enabled": False},
            "validation_images": 2,
        },
        "workers": 0,
    },
    "detector": {
        "backbone": "tiny",
        "freeze_backbone": False,
        "text_encoder": "tiny",
        "init_checkpoint": "",
        "embed_dims": 32,
        "fusion_dims": 32,
        "feedforward": 32,
        "queries": 10,
        "levels": 3,
        "heads": 2,
        "points": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "denoising_queries": 4,
        "short_sides": [64],
        "long_side": 128,
        "test_short_side": 64,
        "steps": 2,
        "batch_size": 2,
        "warmup": 1,
        "workers": 0,
        "val_interval": 2,
        "val_images": 2,
        "amp": False,
        "checkpointing": False,
    },
    "detect": {"folds": 2, "max_boxes": 5},
    "adt": {"epochs": 1, "batch": 2, "crop": 64, "workers": 0},
    "benchmark": {"bootstrap": 10},
}


def small_paper(registry_file: str, hand: Path) -> dict[str, Any]:
    """Give the paper profile with networks, sizes and steps of a miniature; sources and items stay the paper's."""
    content = profile_params("paper").model_dump(mode="json")
    for block, changes in SMALL.items():
        merge(content[block], changes)
    content["device"] = "cpu"
    content["data"]["registry"].update(file=registry_file, from_dir=str(hand), offline=True)
    for one in content["benchmark"]["sets"].values():
        one.update(
            layout=LAYOUTS[one["entry"]], split=SPLITS[one["entry"]], entry=None, min_predicted=10, min_gt=5
        )
    return content


LAYOUTS = {
    "RoadAnomaly": "road_anomaly",
    "AnomalyTrack": "smiyc_anomaly_track",
    "ObstacleTrack": "smiyc_obstacle_track",
}
SPLITS = {"RoadAnomaly": "all", "AnomalyTrack": "validation", "ObstacleTrack": "validation"}


def merge(content: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            merge(content[key], value)
        else:
            content[key] = value


def run(project: Path, *command: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(project), "PATH": path, "OMP_NUM_THREADS": "1"}
    environment["DVC_NO_ANALYTICS"] = "1"
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def test_the_paper_graph_runs_from_published_files_to_metrics(tmp_path):
    project = tmp_path / "project"
    for name in ("anomdino", "pipeline"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    with (project / "registry.yaml").open("w") as stream:
        YAML().dump(miniature.miniature_registry().model_dump(exclude_defaults=True), stream)
    miniature.write_published(tmp_path / "hand")
    params = small_paper("registry.yaml", tmp_path / "hand")
    check_params(params, "the miniature's parameters")
    with (project / "params.yaml").open("w") as stream:
        YAML().dump(params, stream)
    run(project, "git", "init", "-q")
    run(project, "dvc", "init", "-q")
    run(project, "dvc", "repro")
    metrics = json.loads((project / "metrics.json").read_text())
    assert set(SETS) <= set(flatten_keys(metrics))
    assert "didn't change" in run(project, "dvc", "repro")


def flatten_keys(content: Any) -> set[str]:
    if not isinstance(content, dict):
        return set()
    return set(content) | {key for value in content.values() for key in flatten_keys(value)}


def test_the_paper_profile_reads_what_its_items_give():
    """Every weight file that the profile names is one that an item of the profile lays out."""
    params = profile_params("paper")
    named = {str(value) for value in flatten(params).values() if str(value).startswith("data/weights/")}
    registry = miniature.load_registry()
    given = {
        f"data/weights/{registry.files[file].name}"
        for name in params.data.registry.items
        for file in registry.item(name).bundles[0]
    } | {"data/weights/bert-base-uncased"}
    assert named <= given
    assert set(SETS) == set(params.benchmark.sets)
