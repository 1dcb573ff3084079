"""Training the released detector on, from scenes to the model that `predict` loads, at tiny size."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anomdino.config.params import load_params, render_params
from anomdino.detector.records import Fold, Record
from anomdino.detector.weights import load_detector
from anomdino.errors import DataError
from anomdino.io.digest import file_sha256
from anomdino.io.images import write_png
from anomdino.io.listing import list_images
from anomdino.seeding import derive_seed
from pipeline import release_detector
from pipeline._release import TARGET
from tests.release.tiny import invoke, tiny_release


def run(folder, *settings):
    sizes = ["short_sides=[64]", "steps=1", "warmup=0", "val_interval=1", "log_interval=1", "batch_size=2"]
    changes = [text for change in (*sizes, *settings) for text in ("--set", change)]
    return invoke(release_detector.app, folder, "--count", "8", "--scenes", "3", "--seed", "5", *changes)


def test_of_few_images_no_scene_is_on_both_sides_either(tmp_path, monkeypatch):
    """One half marks a scene as held out; the other, which marks none, chooses one that the first learns from."""

    def records(folder):
        splits = {"large": {"a": "val", "b": "train", "c": "train"}, "small": {"b": "train", "c": "train"}}
        return [
            Record(f"{folder.name}/{key}", tmp_path, tmp_path, tmp_path, (1, 1), key, split, np.zeros((0, 4)))
            for key, split in splits[folder.name].items()
        ]

    monkeypatch.setattr("anomdino.data.compose.compose", lambda *given: None)
    for name in ("compose_twice", "score_images"):
        monkeypatch.setattr(release_detector, name, lambda *given: None)
    monkeypatch.setattr(release_detector, "records_of", records)
    fold = release_detector.composed(load_params(TARGET / "params.yaml"), 4, *[tmp_path] * 4)
    held = {record.source for record in fold.val}
    assert len(held) == 2
    assert {record.source for record in fold.train} == {*"abc"} - held


def test_street_scenes_are_scored_without_the_network_that_lowers_scores(sources, monkeypatch):
    """It takes a known class for no object, and that class is the anomaly there."""
    params, given = tiny_release(sources / "light"), []
    score = params.score.model_copy(update={"refine_net": True})
    text = render_params(params.model_copy(update={"score": score}))
    (sources / "light/params.yaml").write_text(text)

    def watched(params, *rest):
        given.append(params.score)
        raise DataError("street", "seen", "")

    monkeypatch.setattr(release_detector, "composed", lambda *given: Fold("final", [], [], []))
    monkeypatch.setattr(release_detector, "gather_street", watched)
    assert run(sources).exit_code != 0
    assert given == [params.score]


@pytest.mark.slow
def test_the_detector_is_trained_on_from_the_released_one(sources):
    target = sources / "light"
    tiny_release(target)
    params = (target / "params.yaml").read_bytes()
    before = load_file(target / "models/detector/model.safetensors")
    digest = file_sha256(target / "models/detector/model.safetensors")
    result = run(
        sources, "lr=1e-30", "weight_decay=0"
    )  # stands still: what is written is what it started from
    assert result.exit_code == 0, result.output
    after = load_file(target / "models/detector/model.safetensors")
    assert after.keys() == before.keys()
    for name, values in before.items():
        assert after[name].dtype == values.dtype
        if "score_" not in name:  # the statistics are those of the new scores
            torch.testing.assert_close(after[name], values, rtol=0, atol=0, msg=name)
    network, config, content = load_detector(target / "models/detector")
    assert config.init_checkpoint == ""
    assert str(sources) not in json.dumps(content)
    assert content["trained_on_from_sha256"] == digest
    assert content["seed"] == derive_seed(5, "detector", "final") % 2**31
    street = list_images(sources / "work/street/offline_dataset")
    assert street
    for key in street:
        assert (sources / "work/seen/street/maps" / f"{key}.npz").is_file()
    assert content["score"]["mean"] == pytest.approx(float(network.ouafs.score_mean), rel=1e-3)
    for part in ("rpl", "adt"):
        kept, released = (folder / "models" / part / "model.safetensors" for folder in (target, TARGET))
        assert kept.read_bytes() == released.read_bytes()
    assert (target / "params.yaml").read_bytes() == params


def test_both_halves_are_learned_from_and_no_scene_is_on_both_sides(sources):
    params = release_detector.changed(tiny_release(sources / "light"), sources / "light", [])
    fold = release_detector.composed(
        params, 8, sources / "scenes", sources / "objects", sources / "work", sources / "light" / "models"
    )
    halves = [record.key.split("/")[0] for record in (*fold.train, *fold.val)]
    assert halves.count("large") == halves.count("small") == 8
    assert {record.key.split("/")[0] for record in fold.val[:2]} == {"large", "small"}
    for part in (fold.train, fold.val):
        assert {record.key.split("/")[0] for record in part} == {"large", "small"}
        assert all(record.maps.exists() for record in part)
    assert any(record.key.startswith("small/s") and len(record.boxes) for record in fold.train)
    assert len({record.key for record in (*fold.train, *fold.val)}) == len(fold.train) + len(fold.val)
    assert not {record.source for record in fold.train} & {record.source for record in fold.val}


def test_street_scenes_join_on_the_side_that_their_scene_is_on(tmp_path):
    label = np.zeros((24, 32), np.uint8)
    label[4:12, 6:20] = 1
    for scene in ("town/1", "town/2", "town/3"):
        for number in (11, 13):
            key = f"{scene}_{number}"
            write_png(tmp_path / "street/offline_dataset" / f"{key}.png", np.zeros((24, 32, 3), np.uint8))
            write_png(tmp_path / "street/offline_dataset_label" / f"{key}.png", label)

    def record(key, source):
        return Record(key, tmp_path, tmp_path, tmp_path, (1, 1), source, "train", np.zeros((0, 4)))

    composed = [record("large/0", "town/1"), record("large/1", "town/2"), record("small/0", "town/2")]
    fold = release_detector.with_street(Fold("final", composed[:1], composed[1:], []), tmp_path)
    assert {one.key for one in fold.train} == {
        "large/0",
        *(f"street/town/{n}_{c}" for n in (1, 3) for c in (11, 13)),
    }
    assert [one.key for one in fold.val] == ["large/1", "street/town/2_11", "small/0", "street/town/2_13"]
    assert not {one.source for one in fold.train} & {one.source for one in fold.val}
    assert fold.train[-1].boxes.tolist() == [[6, 4, 20, 12]]
    assert fold.train[-1].maps == tmp_path / "seen/street/maps/town/3_13.npz"


def test_a_missing_folder_is_named_and_nothing_is_lost(sources):
    tiny_release(sources / "light")
    shutil.rmtree(sources / "scenes")
    result = run(sources)
    assert result.exit_code != 0
    assert "scenes" in result.output
    kept, released = (folder / "models/detector/model.safetensors" for folder in (sources / "light", TARGET))
    assert kept.read_bytes() == released.read_bytes()
