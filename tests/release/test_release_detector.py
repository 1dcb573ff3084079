"""Training the released detector on, from scenes to the model that `predict` loads, at tiny size."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from anomdino.detector.weights import load_detector
from pipeline import release_detector
from pipeline._release import TARGET
from tests.release.tiny import invoke, tiny_release


def run(folder, *settings):
    sizes = ["short_sides=[64]", "steps=1", "warmup=0", "val_interval=1", "log_interval=1", "batch_size=2"]
    changes = [text for change in (*sizes, *settings) for text in ("--set", change)]
    return invoke(release_detector.app, folder, "--count", "8", *changes)


@pytest.mark.slow
def test_the_detector_is_trained_on_from_the_released_one(sources):
    target = sources / "light"
    tiny_release(target)
    params = (target / "params.yaml").read_bytes()
    before = load_file(target / "models/detector/model.safetensors")
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
    for part in (fold.train, fold.val):
        assert {record.key.split("/")[0] for record in part} == {"large", "small"}
        assert all(record.maps.exists() for record in part)
    assert any(record.key.startswith("small/s") and len(record.boxes) for record in fold.train)
    assert len({record.key for record in (*fold.train, *fold.val)}) == len(fold.train) + len(fold.val)
    assert not {record.source for record in fold.train} & {record.source for record in fold.val}


def test_a_missing_folder_is_named_and_nothing_is_lost(sources):
    tiny_release(sources / "light")
    shutil.rmtree(sources / "scenes")
    result = run(sources)
    assert result.exit_code != 0
    assert "scenes" in result.output
    kept, released = (folder / "models/detector/model.safetensors" for folder in (sources / "light", TARGET))
    assert kept.read_bytes() == released.read_bytes()
