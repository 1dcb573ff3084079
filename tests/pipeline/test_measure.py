"""Measuring the released model on a user's sets by one command."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from anomdino.config.params import Params, profile_params
from anomdino.errors import ConfigError
from anomdino.io.images import write_png
from anomdino.release import released_folder
from pipeline import _steps
from pipeline.measure import app, copy_models, parameters, steps
from tests.forked import ModuleProcess


def test_sets_are_those_of_the_command_line(tmp_path):
    base = profile_params("light")
    folders = dict.fromkeys(["ObstacleTrack", "FishyLAFAnomaly", "mine"], tmp_path)
    params = parameters(base, folders, ["benchmark.sets.mine.min_gt=7", "device=cpu"])
    sets = params.benchmark.sets
    assert list(sets) == list(folders)
    assert sets["ObstacleTrack"].layout == base.benchmark.sets["ObstacleTrack"].layout
    assert sets["FishyLAFAnomaly"].entry == "FishyLAFAnomaly"
    assert (sets["mine"].layout, sets["mine"].min_gt) == ("folder", 7)
    assert {str(one.root) for one in sets.values()} == {f"data/val/{name}" for name in folders}
    assert params.data.folder.benchmarks == {name: str(tmp_path.resolve()) for name in folders}
    assert params.device == "cpu"
    assert params.score.widths == base.score.widths
    with pytest.raises(ConfigError, match="x=.*nothing is no folder"):
        parameters(Params(), {"x": tmp_path / "nothing"}, [])


@pytest.mark.parametrize("text", ["AnomalyTrack", "=folder", "AnomalyTrack="])
def test_a_set_without_a_folder_is_refused_before_anything_runs(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["--benchmark", text])
    assert result.exit_code == 2
    assert "NAME=FOLDER" in result.output
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(released_folder() is None, reason="this checkout carries no released model")
@pytest.mark.parametrize(("value", "reason"), [(2, "unusable"), (None, "label")])
def test_labels_are_read_before_anything_is_scored(tmp_path, monkeypatch, value, reason):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "set/images/a.png", np.zeros((8, 9, 3), np.uint8))
    if value is not None:
        write_png(tmp_path / "set/labels/a.png", np.full((8, 9), value, np.uint8))
    result = CliRunner().invoke(app, ["--benchmark", "mine=set", "--models", "released"])
    assert result.exit_code != 0
    assert reason in result.output
    assert not (tmp_path / "out").exists()


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_models_of_an_earlier_run_leave_nothing_behind(tmp_path):
    for name, files in (("first", ["adt/model", "adt/outline", "rpl/fusion-384"]), ("second", ["adt/model"])):
        for file in files:
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    work = tmp_path / "work/data/models"
    for name in ("first", "second", "first"):
        copy_models(tmp_path / name, work)
        assert contents(work) == contents(tmp_path / name)
    copy_models(work, work)
    assert contents(work) == contents(tmp_path / "first")


def test_models_that_measure_did_not_copy_stay(tmp_path):
    mine = tmp_path / "data/models"
    (tmp_path / "other").mkdir()
    mine.mkdir(parents=True)
    (mine / "trained").write_text("weeks")
    with pytest.raises(ConfigError, match="--work.*did not copy"):
        copy_models(tmp_path / "other", mine)
    copy_models(mine, mine)
    assert contents(mine) == {"trained": "weeks"}


def test_a_change_without_a_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--set.*device.*"):
        parameters(profile_params("light"), {"mine": tmp_path}, ["device"])


def test_stages_never_train():
    names = [step.name for step in steps(["a", "b"])]
    assert names == [
        "download",
        "score benchmark a",
        "detect benchmark a",
        "score benchmark b",
        "detect benchmark b",
        "evaluate",
    ]


@pytest.mark.slow
@pytest.mark.skipif(released_folder() is None, reason="this checkout carries no released model")
def test_the_released_model_is_measured_and_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_steps, "subprocess", SimpleNamespace(Popen=ModuleProcess))
    rng = np.random.default_rng(0)
    for key in ("a", "b"):
        label = np.zeros((96, 160), np.uint8)
        label[50:80, 60:100] = 1
        photo = np.where(label[..., None] == 1, rng.integers(0, 256, 3), 110).astype(np.uint8)
        write_png(tmp_path / f"set/images/{key}.png", photo)
        write_png(tmp_path / f"set/labels/{key}.png", label)
    result = CliRunner().invoke(
        app,
        [
            *("--benchmark", "mine=set", "--work", "out", "--set", "score.widths=[160]"),
            *("--set", "score.fusion=mean", "--set", "device=cpu"),
        ],
    )
    assert result.exit_code == 0, result.output
    block = json.loads((tmp_path / "out/metrics.json").read_text())["mine"]
    assert block["images"] == 2
    assert set(block) >= {"raw", "hard", "soft", "boost", "fused", "mask", "detector"}
    assert (tmp_path / "out/report/index.html").is_file()
    assert not (tmp_path / "data").exists()
    assert json.loads((tmp_path / "out/data/models/rpl/config.json").read_text())
