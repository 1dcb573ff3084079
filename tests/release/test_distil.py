"""Distilling the released scorer, from photos to a model that `predict` loads, at tiny size."""

import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anomdino.config.params import load_params
from anomdino.io.images import read_image, write_png
from anomdino.io.scores import read_score
from anomdino.protocol import mark_evaluation_only
from anomdino.scorer.base import ScorerSpec, build_scorer, load_scorer, save_scorer
from anomdino.scorer.setup import engine_from
from anomdino.synthetic import outlier, scene
from pipeline import distil
from pipeline._release import TARGET
from tests.forked import launch
from tests.release.tiny import invoke, tiny_release

WEIGHTS = "models/{}/model.safetensors"
SIZES = ["--width", "96", "--crop", "64", "80", "--steps", "2", "--batch", "2"]


@pytest.fixture(scope="module")
def drawn_photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        write_png(folder / "roads" / f"{index}.png", scene("train", index, size=(48, 64)).image)
        write_png(folder / "objects" / f"{index}.png", outlier(index)[0])
    return folder


@pytest.fixture
def photos(drawn_photos, tmp_path):
    tiny_release(tmp_path / "light", widths=[64, 96])
    return shutil.copytree(drawn_photos, tmp_path, dirs_exist_ok=True)


def run(folder, *more):
    names = {"--images": "roads", "--of": "light", "--to": "student", "--work": "work"}
    return invoke(distil.app, folder, *SIZES, *more, folders=names)


def test_the_student_takes_the_scorers_place_in_a_whole_model(photos):
    result = run(photos, "--images", str(photos / "objects"))
    assert result.exit_code == 0, result.output
    student = photos / "student"
    assert load_params(student / "params.yaml").score.widths == [96]
    assert load_params(student / "params.yaml").model_copy(update={"score": None}) == load_params(
        photos / "light/params.yaml"
    ).model_copy(update={"score": None})
    for part in ("detector", "adt"):
        assert (student / WEIGHTS.format(part)).read_bytes() == (TARGET / WEIGHTS.format(part)).read_bytes()
    assert (photos / "light" / WEIGHTS.format("rpl")).read_bytes() == (
        TARGET / WEIGHTS.format("rpl")
    ).read_bytes()
    before, after = (load_file(folder / WEIGHTS.format("rpl")) for folder in (TARGET, student))
    assert {name: tensor.dtype for name, tensor in before.items()} == {n: t.dtype for n, t in after.items()}
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    load_scorer(student / "models/rpl")
    assert "now (held-out images, mean)" in result.output


def test_nothing_of_a_model_that_lay_there_before_stays(photos):
    shutil.rmtree(photos / "light/models/detector")
    shutil.copytree(TARGET, photos / "student")
    assert run(photos).exit_code == 0
    left = {file.parent.name: file for file in (photos / "student/models").rglob("*") if file.is_file()}
    assert left.keys() == {"rpl", "adt"}
    assert {file.name for file in (photos / "student/models/rpl").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_weights_are_shared_between_teacher_and_student(photos):
    for name, share in (("student", "1"), ("half", "0.5"), ("none", "0")):
        result = run(
            photos, "--to", str(photos / name), "--work", str(photos / f"work_{name}"), "--share", share
        )
        assert result.exit_code == 0, result.output
    teacher = load_file(TARGET / WEIGHTS.format("rpl"))
    student, half, none = (
        load_file(photos / name / WEIGHTS.format("rpl")) for name in ("student", "half", "none")
    )
    assert any(not torch.equal(tensor, student[name]) for name, tensor in teacher.items())
    for name, tensor in teacher.items():
        assert torch.equal(none[name], tensor), name
        if tensor.is_floating_point():
            mean = (tensor.float() + student[name].float()) / 2
            torch.testing.assert_close(half[name].float(), mean, rtol=2e-3, atol=1e-6, msg=name)


def test_the_filter_after_the_network_is_not_taught(photos):
    params = load_params(photos / "light/params.yaml")
    assert params.score.refine  # the released model's
    assert run(photos).exit_code == 0
    assert load_params(photos / "student/params.yaml").score.refine == params.score.refine
    plain = params.score.model_copy(update={"refine": []})
    engine, _ = engine_from(plain, photos / "light/models/rpl")
    stored = read_score(distil.results_of(photos / "roads", photos / "work") / "scores" / "0.npz")
    expected = engine.score(read_image(photos / "roads" / "0.png")).score
    np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-4)


def test_nothing_to_learn_leaves_the_weights_alone(photos):
    assert run(photos, "--lr", "0").exit_code == 0
    before, after = (load_file(folder / WEIGHTS.format("rpl")) for folder in (TARGET, photos / "student"))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_another_model_is_where_the_student_starts_and_two_widths_are_written(photos):
    assert run(photos, "--to", str(photos / "first")).exit_code == 0
    more = ["--from", str(photos / "first"), "--work", str(photos / "work2"), "--width", "64", "--lr", "0"]
    assert run(photos, *more).exit_code == 0
    first, second = (load_file(photos / name / WEIGHTS.format("rpl")) for name in ("first", "student"))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert load_params(photos / "student/params.yaml").score.widths == [96, 64]


def test_a_start_of_another_architecture_is_refused_before_anything_is_scored(photos):
    demo = build_scorer(ScorerSpec("small", 19, {}))
    save_scorer(demo, photos / "demo/models/rpl")
    result = run(photos, "--from", str(photos / "demo"))
    assert result.exit_code != 0
    assert "--from" in result.output
    assert "small" in result.output
    assert not (photos / "work").exists()


def distil_as_a_rank(folder, *more):
    result = run(folder, *more)
    sys.exit(f"{result.output}{result.exception!r}" if result.exit_code else 0)


@pytest.mark.slow
def test_two_processes_give_the_model_of_one(photos):
    assert run(photos, "--to", str(photos / "alone")).exit_code == 0
    together = (photos, "--work", str(photos / "work2"))
    assert launch(distil_as_a_rank, [together] * 2) == [0, 0]
    alone, together = (load_file(photos / name / WEIGHTS.format("rpl")) for name in ("alone", "student"))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name].float(), tensor.float(), atol=2e-3, rtol=2e-3, msg=name)


def test_evaluation_photos_teach_nothing(photos):
    mark_evaluation_only(photos / "roads")
    result = run(photos)
    assert result.exit_code != 0
    assert "evaluation data" in result.output
    assert not (photos / "work").exists()
    assert not (photos / "student").exists()


def test_a_folder_of_one_image_is_named_before_anything_is_scored(photos):
    (photos / "roads" / "1.png").unlink()
    (photos / "roads" / "2.png").unlink()
    result = run(photos)
    assert result.exit_code != 0
    assert f"{photos / 'roads'} has 1 images" in result.output
    assert not (photos / "work").exists()


def test_a_truncated_photo_is_named_and_nothing_is_written(photos):
    file = photos / "roads" / "1.png"
    file.write_bytes(file.read_bytes()[:200])
    result = run(photos)
    assert result.exit_code != 0
    assert "1.png" in result.output
    assert not (photos / "student").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--crop", "8", "80"), "16 pixels"),
        (("--width", "96"), "name each width once"),
        (("--images", "nowhere"), "nowhere"),
        (("--of", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_is_named_and_nothing_is_written(photos, change, message):
    result = run(photos, *change)
    assert result.exit_code != 0
    assert message in result.output
    assert not (photos / "student").exists()


def test_the_teacher_is_not_written_over(photos):
    before = (photos / "light" / WEIGHTS.format("rpl")).read_bytes()
    result = run(photos, "--to", str(photos / "roads" / ".." / "light"))
    assert result.exit_code != 0
    assert "teacher itself" in result.output
    assert (photos / "light" / WEIGHTS.format("rpl")).read_bytes() == before
