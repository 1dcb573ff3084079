import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anomdino.adt.fusion import FusionRule, fuse
from anomdino.adt.outline_net import FILE, OutlineNet
from anomdino.adt.store import CONFIG, WEIGHTS, load_adt, save_adt
from anomdino.adt.thresholds import Threshold
from anomdino.errors import CheckpointError


def test_a_stored_model_gives_the_same(model, scene, tmp_path):
    threshold = Threshold(0.5, "f1", "boost", {"set": "x", "images": 3})
    kept = replace(model, rule=FusionRule(output="boost", b=0.3), threshold=threshold, provenance={"seed": 1})
    save_adt(kept, tmp_path)
    loaded = load_adt(tmp_path)
    assert (loaded.rule, loaded.threshold, loaded.provenance) == (kept.rule, threshold, {"seed": 1})
    assert loaded.net.statistics == model.net.statistics
    score, _, boxes = scene
    np.testing.assert_array_equal(fuse(score, boxes, loaded).score, fuse(score, boxes, kept).score)
    np.testing.assert_array_equal(fuse(score, boxes, loaded).mask, fuse(score, boxes, kept).mask)
    assert json.loads((tmp_path / CONFIG).read_text())["architecture"]["resolution"] == 8


def test_a_network_of_another_model_beside_this_one_is_not_read(model, tmp_path):
    torch.manual_seed(0)
    outliner = OutlineNet().eval()
    save_adt(replace(model, outliner=outliner), tmp_path / "with")
    assert load_adt(tmp_path / "with").outliner is not None
    save_adt(model, tmp_path / "without")
    shutil.copy(tmp_path / "with" / FILE, tmp_path / "without")
    assert load_adt(tmp_path / "without").outliner is None


def test_an_older_model_takes_the_network_beside_it(model, tmp_path):
    """As the released model, whose description says nothing of a network."""
    from safetensors import safe_open

    torch.manual_seed(0)
    save_adt(replace(model, outliner=OutlineNet().eval()), tmp_path)
    with safe_open(tmp_path / WEIGHTS, "pt") as stored:
        config = json.loads(stored.metadata()["config"])
    del config["outline_network"]
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, metadata={"config": json.dumps(config)})
    assert load_adt(tmp_path).outliner is not None


def test_files_are_the_same_bytes_each_time(model, tmp_path):
    for name in ("a", "b"):
        save_adt(model, tmp_path / name)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_a_missing_or_damaged_file_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_adt(tmp_path)
    save_adt(model, tmp_path)
    path = tmp_path / WEIGHTS
    for content in (b"", path.read_bytes()[:-40], b"x" * 500):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            load_adt(tmp_path)


def test_another_model_is_refused(model, tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="no ADT-Net"):
        load_adt(tmp_path)


@pytest.mark.parametrize("change", ["drop", "add", "shape"])
def test_weights_that_do_not_fit_are_refused(model, tmp_path, change):
    from safetensors import safe_open

    save_adt(model, tmp_path)
    path = tmp_path / WEIGHTS
    tensors = load_file(path)
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    if change == "drop":
        del tensors["raw_slopes"]
    elif change == "add":
        tensors["extra"] = torch.zeros(1)
    else:
        tensors["raw_slopes"] = torch.zeros(3)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_adt(tmp_path)


def test_a_number_that_is_none_leaves_the_model_of_before(model, tmp_path):
    save_adt(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="nan"):
        save_adt(replace(model, provenance={"held_out": float("nan")}), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
