"""Distilling the released scorer anew, from scenes and objects to the model that `predict` loads, at tiny size."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anomdino.config.params import load_params
from anomdino.errors import CheckpointError, DataError
from anomdino.io.boxes import image_id
from anomdino.io.images import write_png
from anomdino.io.listing import list_images
from anomdino.protocol import mark_evaluation_only
from anomdino.release.build import put_folder
from anomdino.scorer.base import load_scorer
from anomdino.scorer.dataset import ImagePairs, split_outliers
from anomdino.synthetic import outlier
from pipeline import _material, release_distil
from pipeline._release import TARGET
from pipeline.distil import distilled
from tests.release.tiny import invoke, tiny_release

WEIGHTS = "models/{}/model.safetensors"


@pytest.fixture
def tiny(sources, monkeypatch):
    monkeypatch.setattr(_material, "LEAST_WIDTH", 60)
    tiny_release(sources / "light", widths=[64, 96])
    return sources


def run(folder, *more):
    sizes = ["--count", "8", "--photos", "4", "--width", "80", "--crop", "48", "64"]
    return invoke(release_distil.app, folder, *sizes, "--steps", "2", "2", *more)


@pytest.mark.slow
def test_two_rounds_end_in_the_place_of_the_released_scorer(tiny, monkeypatch):
    params = (tiny / "light/params.yaml").read_bytes()
    students, starts = [], []

    def watched(*given):
        done = distilled(*given)
        students.append({name: tensor.clone() for name, tensor in done.scorer.state_dict().items()})
        starts.append(given[6])
        return done

    monkeypatch.setattr(release_distil, "distilled", watched)
    result = run(tiny)
    assert result.exit_code == 0, result.output
    light, work = tiny / "light", tiny / "work"
    before, after = load_file(TARGET / WEIGHTS.format("rpl")), load_file(light / WEIGHTS.format("rpl"))
    assert {name: tensor.dtype for name, tensor in before.items()} == {n: t.dtype for n, t in after.items()}
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    load_scorer(light / "models/rpl")
    assert starts == [None, work / "model1/models/rpl"]
    half = load_file(work / "model1" / WEIGHTS.format("rpl"))
    for name, tensor in before.items():
        if tensor.is_floating_point():
            mean = (tensor.float() + students[0][name].float()) / 2
            torch.testing.assert_close(half[name].float(), mean, rtol=2e-3, atol=1e-6, msg=name)
            assert torch.equal(after[name], students[1][name].half()), name
    first, second = (load_params(work / f"model{number}" / "params.yaml").score.widths for number in (1, 2))
    assert (first, second) == ([80], [64, 96])
    for part in ("detector", "adt"):
        kept = (light / WEIGHTS.format(part)).read_bytes()
        assert kept == (TARGET / WEIGHTS.format(part)).read_bytes()
    assert (light / "params.yaml").read_bytes() == params
    held_out = {path.name for path in held_out_photos(tiny)}
    assert held_out
    assert not held_out & {path.name for path in (work / "photos").rglob("*.png")}
    assert not held_out & {path.name for path in (work / "objects/images").iterdir()}
    assert len(list_images(work / "large/offline_dataset")) == 8
    assert len(list_images(work / "small/offline_dataset")) == 6  # three, each by two cameras
    small = json.loads((work / "small/ood.json").read_text())
    names = {one["id"]: Path(one["file_name"]).stem for one in small["images"]}
    assert names == {image_id(key): key for key in names.values()}
    boxes = {key: [] for key in names.values()}
    for one in small["annotations"]:
        boxes[names[one["image_id"]]].append(one["bbox"])
    assert all(boxes[f"s{key}"] == found for key, found in boxes.items() if not key.startswith("s"))


def held_out_photos(folder):
    pairs = ImagePairs(folder / "objects", "masks")
    holdout = load_params(folder / "light/params.yaml").rpl.residual.outlier_holdout
    return [pairs.files[index][1] for index in split_outliers(pairs, holdout, 0)[1]]


def test_evaluation_photos_and_missing_folders_teach_nothing(tiny):
    shutil.copytree(tiny / "scenes", tiny / "kept")
    mark_evaluation_only(tiny / "scenes")
    shutil.rmtree(tiny / "objects")
    result = run(tiny)
    assert result.exit_code != 0
    assert "evaluation data" in result.output
    result = run(tiny, "--inlier", str(tiny / "kept"))
    assert result.exit_code != 0
    assert "objects" in result.output
    kept, released = (folder / WEIGHTS.format("rpl") for folder in (tiny / "light", TARGET))
    assert kept.read_bytes() == released.read_bytes()


def test_a_new_scorer_joins_its_widths_by_their_mean_again(tiny):
    params = load_params(tiny / "light/params.yaml")
    score = params.score.model_copy(update={"fusion": "learned", "refine_net": True})
    changed = params.model_copy(update={"score": score.model_copy(update={"widths": []})})
    release_distil.put_parameters(changed, (64, 96), tiny / "light")
    assert load_params(tiny / "light/params.yaml") == params


def test_a_new_scorer_takes_the_place_of_the_old_one_and_of_its_networks(tmp_path):
    for name in ("config.json", "model.safetensors", "fusion-64-96.safetensors", "refinement.safetensors"):
        (tmp_path / "released").mkdir(exist_ok=True)
        (tmp_path / "released" / name).write_text("old")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "student").mkdir(exist_ok=True)
        (tmp_path / "student" / name).write_text("new")
    put_folder(tmp_path / "student", tmp_path / "released")
    left = {path.name: path.read_text() for path in (tmp_path / "released").iterdir()}
    assert left == {"config.json": "new", "model.safetensors": "new"}
    with pytest.raises(CheckpointError, match="nowhere: holds no file"):
        put_folder(tmp_path / "nowhere", tmp_path / "released")
    assert left == {path.name: path.read_text() for path in (tmp_path / "released").iterdir()}


def test_photos_that_are_wide_enough_are_spread_over_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(_material, "LEAST_WIDTH", 50)
    for index in range(9):
        image = outlier(index)[0]
        size = 60 if index != 4 else 40
        write_png(tmp_path / "images" / f"{index}.png", image[:size, :size])
    _material.link_photos(tmp_path / "images", tmp_path / "out", 3)
    wide = [key for key in map(str, range(9)) if key in list_images(tmp_path / "out")]
    assert wide[0] == "0"
    assert wide[-1] == "8"
    assert len(wide) == 3
    with pytest.raises(DataError, match="has 0 photos"):
        monkeypatch.setattr(_material, "LEAST_WIDTH", 500)
        _material.link_photos(tmp_path / "images", tmp_path / "out", 3)
