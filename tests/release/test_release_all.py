"""All parts of the released model by one command, at tiny size; `pipeline.release`, the first, has tests of its own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anomdino.adt.store import load_adt
from anomdino.cascade import Cascade
from anomdino.config.params import load_params
from anomdino.errors import ConfigError
from anomdino.io.atomic import atomic_write_text
from anomdino.io.locking import exclusive
from anomdino.scorer.refinement import FILE as REFINEMENT
from anomdino.scorer.width_fusion import fusion_file
from anomdino.synthetic import scene
from pipeline import release_all
from pipeline.release_all import PARTS, Call, arguments_of, calls, run_parts
from tests.release.tiny import invoke

IMAGES = "--count 8 --photos 4 --steps 2"
DETECTOR = "short_sides=[64] steps=1 warmup=0 val_interval=1 log_interval=1 batch_size=2"
TINY = {
    "distil": "--count 8 --photos 4 --width 80 --crop 48 64 --steps 2 2",
    "fusion": f"{IMAGES} --width 48 --width 64",
    "fusion_beside": IMAGES,
    "recalibrate": "--count 4",
    "detector": " ".join(["--count 8 --scenes 3", *(f"--set {change}" for change in DETECTOR.split())]),
    "outline": f"{IMAGES} --scenes 3",
    "refinement": f"{IMAGES} --scenes 3",
    "tune": "--count 4 --photos 2",
}
WITH = [text for part, arguments in TINY.items() for text in ("--with", f"{part}: {arguments}")]


@pytest.fixture
def released(tiny, monkeypatch):
    """``tiny`` with the first part's results in place of it, and smaller widths beside."""
    real = release_all.run

    def run(part):
        if part.command != "release":
            return real(part)
        for name in ("train", "val"):
            shutil.copytree(tiny / "scenes", tiny / "work/release/data/inlier" / name)
        shutil.copytree(tiny / "objects", tiny / "work/release/data/outliers")
        return shutil.copytree(tiny / "light", part.model)

    beside = ("--width", "32", "--width", "56", "--beside")
    parts = tuple(replace(part, arguments=beside) if part.name == "fusion_beside" else part for part in PARTS)
    monkeypatch.setattr(release_all, "run", run)
    monkeypatch.setattr(release_all, "PARTS", parts)
    return tiny


def call(folder, *more):
    return invoke(release_all.app, folder, *more, folders={"--work": "work", "--to": "out"})


@pytest.mark.slow
def test_every_part_is_in_the_model_and_is_done_once(released):
    pytest.importorskip("mmdet")
    (released / "out/models/rpl").mkdir(parents=True)
    (released / "out/models/rpl/fusion-1-2.safetensors").touch()
    (released / "out/README.md").touch()
    result = call(released, *WITH)
    assert result.exit_code == 0, result.output

    out, params = released / "out", load_params(released / "out/params.yaml")
    assert (params.score.widths, params.score.fusion) == ([48, 64], "learned")
    assert params.score.refine_net
    assert params.adt.outline
    rpl, adt = out / "models/rpl", load_adt(out / "models/adt")
    kept = {fusion_file(rpl, (48, 64)).name, fusion_file(rpl, (32, 56)).name, REFINEMENT}
    assert {file.name for file in rpl.iterdir()} == {*kept, "model.safetensors", "config.json"}
    assert (out / "README.md").is_file()
    assert adt.outliner.details["steps"] == 2
    assert adt.provenance["recalibrated_for"]
    assert adt.provenance["box_evidence"]["images"] == 8 + 2
    kinds = json.loads((released / "work/tune/tuning.json").read_text())
    assert set(kinds["kinds"]) == {"composed", "photos"}
    models = released / "work/models"
    for before, after, file in (
        ("release", "distil", "rpl/model.safetensors"),
        ("recalibrate", "detector", "detector/model.safetensors"),
        ("outline", "tune", "adt/model.safetensors"),
    ):
        old, new = (models / name / "models" / file for name in (before, after))
        assert old.read_bytes() != new.read_bytes(), file
    prediction = Cascade.load(out / "models", params, torch.device("cpu")).predict(
        scene("val", 0, size=(96, 128)).image
    )
    assert np.isfinite(prediction.score).all()

    again = call(released, *WITH)
    assert again.output.count("done before") == len(PARTS) + 1


class TestParts:
    @pytest.fixture
    def parts(self, tmp_path):
        return [Call(name, name, ["1"], tmp_path / name) for name in "abc"]

    @pytest.fixture
    def ran(self, monkeypatch):
        """Names of the parts that ran; each adds its name to the model's parameters, `fails` raises."""
        names = []

        def run(part):
            if part.arguments == ["fails"]:
                raise KeyboardInterrupt
            names.append(part.name)
            file = part.model / "params.yaml"
            text = file.read_text() if file.is_file() else ""
            atomic_write_text(file, f"{text}{part.name}")

        monkeypatch.setattr(release_all, "run", run)
        return names

    def test_each_works_on_the_model_of_the_one_before(self, parts, ran, tmp_path):
        last = run_parts(parts, tmp_path)
        assert ran == ["a", "b", "c"]
        assert (last / "params.yaml").read_text() == "abc"
        assert (tmp_path / "a/params.yaml").read_text() == "a"

    def test_a_killed_call_goes_on(self, parts, ran, tmp_path):
        broken = [parts[0], replace(parts[1], arguments=["fails"]), parts[2]]
        with pytest.raises(KeyboardInterrupt):
            run_parts(broken, tmp_path)
        last = run_parts(parts, tmp_path)
        assert ran == ["a", "b", "c"]
        assert (last / "params.yaml").read_text() == "abc"

    def test_what_follows_other_arguments_is_done_again(self, parts, ran, tmp_path):
        run_parts(parts, tmp_path)
        other = [parts[0], replace(parts[1], arguments=["2"]), parts[2]]
        last = run_parts(other, tmp_path)
        assert ran == ["a", "b", "c", "b", "c"]
        assert (last / "params.yaml").read_text() == "abc"

    def test_what_was_done_before_a_failure_with_other_arguments_is_not_taken_for_done(
        self, parts, ran, tmp_path
    ):
        run_parts(parts, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run_parts([parts[0], replace(parts[1], arguments=["fails"]), parts[2]], tmp_path)
        run_parts(parts, tmp_path)
        assert ran == ["a", "b", "c", "b", "c"]

    def test_a_part_whose_model_was_removed_is_done_again_where_it_is_needed(self, parts, ran, tmp_path):
        run_parts(parts, tmp_path)
        shutil.rmtree(tmp_path / "b")
        run_parts(parts, tmp_path)
        assert ran == ["a", "b", "c"]  # `c`, the last, is there
        shutil.rmtree(tmp_path / "c")
        last = run_parts(parts, tmp_path)
        assert ran == ["a", "b", "c", "b", "c"]
        assert (last / "params.yaml").read_text() == "abc"

    @pytest.mark.parametrize("text", ["", "{", "[]"])
    def test_a_broken_list_is_no_list(self, parts, ran, tmp_path, text):
        (tmp_path / "done.json").write_text(text)
        run_parts(parts, tmp_path)
        assert ran == ["a", "b", "c"]


def test_every_part_takes_the_arguments_that_it_is_given(tmp_path):
    """What :func:`calls` writes are options of the commands: a wrong one would show after hours."""
    import importlib

    import typer

    further = arguments_of([f"{name}: {arguments}" for name, arguments in TINY.items()])
    found = calls(tmp_path / "camvid", tmp_path / "objects", tmp_path / "work", further)
    assert [part.name for part in found] == ["release", *TINY]
    for part in found:
        runner = typer.main.get_command(importlib.import_module(f"pipeline.{part.command}").app)
        runner.make_context(part.command, list(part.arguments))
    assert found[0].arguments[:4] == [
        "--inlier",
        str(tmp_path / "camvid"),
        "--outliers",
        str(tmp_path / "objects"),
    ]
    scenes = [part.arguments[1].rpartition("/")[2] for part in found[1:]]
    assert scenes == ["train"] * 7 + ["val"]


def test_the_same_folders_give_the_same_calls_however_they_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = (calls(None, None, work, {}) for work in (Path("work"), tmp_path / "x/../work"))
    assert [part.arguments for part in one] == [part.arguments for part in other]


def test_an_open_quotation_is_named():
    with pytest.raises(ConfigError, match='--with: is .*"--steps.*quotation'):
        arguments_of(['fusion: "--steps 2'])


@pytest.mark.parametrize("text", ["fusion", "fusions: --steps 2", ": --steps 2"])
def test_a_part_that_there_is_not_is_named(text):
    result = CliRunner().invoke(release_all.app, ["--with", text])
    assert result.exit_code == 2
    assert "fusion_beside" in result.output


def test_what_a_part_does_not_take_ends_the_call(released):
    result = call(released, "--with", "distil: --stepz 2")
    assert result.exit_code == 2
    assert "stepz" in result.output
    assert not (released / "out").exists()


def test_a_second_call_at_the_same_time_is_refused(released):
    with exclusive(released / "work/.release_all.lock"):
        result = call(released)
    assert result.exit_code != 0
    assert "is held by process" in result.output
    assert not (released / "work/models").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(release_all.app, ["--work", str(tmp_path / "file")])
    assert result.exit_code == 3
    assert str(tmp_path / "file") in result.output
