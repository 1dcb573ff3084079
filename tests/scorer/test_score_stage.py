"""The stage as users run it: parameters in, files in the pipeline's places out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anomdino.config.base import Block
from anomdino.config.score import ScoreConfig
from anomdino.io.images import write_png
from anomdino.io.scores import read_score
from anomdino.scorer.base import ScorerSpec, build_scorer, save_scorer
from anomdino.uncertainty import UncertaintyMaps
from pipeline.score import app

TINY = {"channels": [4, 6, 8, 8], "context_channels": 6, "skip_channels": 4, "head_channels": 8}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_scorer(build_scorer(ScorerSpec("small", 5, TINY)).eval(), "data/models/rpl")
    rng = np.random.default_rng(0)
    for index in range(3):
        image = rng.integers(0, 256, (30 + index, 44, 3), dtype=np.uint8)
        write_png(f"data/train_dataset/offline_dataset/{index}.png", image)
        write_png(f"photos/images/street {index}.png", image)
        write_png(f"photos/labels/street {index}.png", np.zeros(image.shape[:2], np.uint8))
    return tmp_path


def run(*arguments, score="", benchmark="{sets: {street: {root: photos, layout: folder}}}"):
    text = f"seed: 0\ndevice: cpu\nscore: {{{score}}}\nbenchmark: {benchmark}\n"
    Path("params.yaml").write_text(text, encoding="utf-8")
    return CliRunner().invoke(app, arguments)


def test_training_images(project):
    result = run("train", score="map_stride: 2")
    assert result.exit_code == 0, result.output
    assert "3 scored, 0 kept, 0 skipped" in result.output
    assert read_score(project / "data/train_dataset/offline_dataset_score/2.npz").shape == (32, 44)
    maps = UncertaintyMaps.load(project / "data/train_dataset/offline_dataset_maps/2.npz")
    assert maps.semantic.shape == (5, 16, 22)
    assert "0 scored, 3 kept" in run("train", score="map_stride: 2").output
    assert "3 scored, 0 kept" in run("train").output


def test_a_benchmark(project):
    result = run("benchmark", "street", score="widths: [32, 64]")
    assert result.exit_code == 0, result.output
    assert read_score(project / "data/scores/street/score/street 1.npz").shape == (31, 44)
    assert UncertaintyMaps.load(project / "data/scores/street/maps/street 1.npz").image_size == (31, 44)
    assert run("benchmark", "nowhere").exit_code == 2


def test_maps_of_another_method(project):
    for index in range(3):
        (project / "rba").mkdir(exist_ok=True)
        np.save(project / "rba" / f"street {index}.npy", np.full((30 + index, 44), index, np.float32))
    result = run("benchmark", "street", score="source: maps, maps: {street: rba}")
    assert result.exit_code == 0, result.output
    assert (read_score(project / "data/scores/street/score/street 2.npz") == 2).all()
    assert "0 scored, 3 kept" in run("benchmark", "street", score="source: maps, maps: {street: rba}").output
    np.save(project / "rba" / "street 2.npy", np.full((32, 44), 7, np.float32))
    assert "1 scored, 2 kept" in run("benchmark", "street", score="source: maps, maps: {street: rba}").output
    assert (read_score(project / "data/scores/street/score/street 2.npz") == 7).all()
    (project / "rba" / "street 0.npy").unlink()
    result = run("benchmark", "street", score="source: maps, maps: {street: rba}")
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("street 1", np.full((31, 44), np.nan, np.float32), "NaN"),
        ("street 1", np.zeros((44, 31), np.float32), "44 x 31"),
        ("street 1", np.zeros((31, 44), np.uint8), "8-bit"),
        ("stranger", np.zeros((31, 44), np.float32), "without an image: stranger"),
    ],
)
def test_maps_that_cannot_be_right_stop_the_stage_by_name(project, name, values, reason):
    (project / "rba").mkdir()
    for index in range(3):
        np.save(project / "rba" / f"street {index}.npy", np.zeros((30 + index, 44), np.float32))
    np.save(project / "rba" / f"{name}.npy", values)
    result = run("benchmark", "street", score="source: maps, maps: {street: rba}")
    assert result.exit_code == 2
    assert reason in result.output
    assert name in result.output
    assert not (project / f"data/scores/street/score/{name}.npz").exists()


def test_bad_images_fail_or_are_skipped(project):
    (project / "data/train_dataset/offline_dataset/1.png").write_bytes(b"<html>")
    assert run("train").exit_code == 2
    result = run("train", score="on_bad_input: skip, max_bad: 1")
    assert result.exit_code == 0
    assert "1 skipped" in result.output
    assert (project / "data/train_dataset/offline_dataset_maps/skipped.json").is_file()


def test_every_parameter_is_described():
    assert issubclass(ScoreConfig, Block)
    assert all(field.description for field in ScoreConfig.model_fields.values())
