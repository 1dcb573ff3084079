"""Training the released ADT-Net anew, from scenes to the model that `predict` loads, at tiny size."""

import json

import numpy as np
import torch
from typer.testing import CliRunner

from anomdino.adt.store import load_adt
from anomdino.io.images import read_image, read_label
from anomdino.release.camera import other_camera
from anomdino.scorer.dataset import ImagePairs, split_outliers
from anomdino.synthetic import scene
from pipeline import _material, release_adt
from pipeline._release import TARGET
from tests.release.tiny import invoke, tiny_release


def test_the_whole_way_gives_a_model_that_loads(sources):
    target = sources / "light"
    params = tiny_release(target)
    before = load_adt(target / "models" / "adt")
    result = invoke(release_adt.app, sources, "--count", "6", "--seed", "5")
    assert result.exit_code == 0, result.output
    after = load_adt(target / "models" / "adt")
    assert after.provenance["seed"] == 5
    assert after.provenance["images"]["training"] + after.provenance["images"]["held_out"] == 12
    assert after.provenance["inputs_sha256"] != before.provenance["inputs_sha256"]
    outlines = [model.outliner.state_dict() for model in (before, after)]
    assert all(torch.equal(tensor, outlines[1][name]) for name, tensor in outlines[0].items())
    for part in ("rpl", "detector"):
        kept, released = (folder / "models" / part / "model.safetensors" for folder in (target, TARGET))
        assert kept.read_bytes() == released.read_bytes()

    pairs = ImagePairs(sources / "objects", "masks")
    trained, held = split_outliers(pairs, params.rpl.residual.outlier_holdout, params.seed)
    linked = {path.stem for path in (sources / "work/outliers/images").iterdir()}
    assert linked == {pairs.key(index) for index in held}
    assert not linked & {pairs.key(index) for index in trained}


def test_the_second_copy_of_an_image_has_its_objects(sources):
    params = tiny_release(sources / "light")
    _material.compose_twice(params, 4, sources / "scenes", sources / "objects", sources / "train")
    content = json.loads((sources / "train/ood.json").read_text())
    images = content["images"]
    assert [record["file_name"] for record in images[4:]] == [f"s{r['file_name']}" for r in images[:4]]
    for first, second in zip(images[:4], images[4:], strict=True):
        assert first["source"] == second["source"]
        names = [record["file_name"] for record in (first, second)]
        labels = [read_label(sources / "train/offline_dataset_label" / name) for name in names]
        np.testing.assert_array_equal(*labels)
        pixels = [read_image(sources / "train/offline_dataset" / name) for name in names]
        assert pixels[0].shape == pixels[1].shape
        assert (pixels[0] != pixels[1]).mean() > 0.5
    assert len({record["id"] for record in images}) == 8
    boxes = {record["id"]: [] for record in images}
    for one in content["annotations"]:
        boxes[one["image_id"]].append(one["bbox"])
    assert any(boxes.values())
    for first, second in zip(images[:4], images[4:], strict=True):
        assert boxes[first["id"]] == boxes[second["id"]]
    assert len({one["id"] for one in content["annotations"]}) == len(content["annotations"])


def test_another_camera_keeps_what_is_where():
    image = scene("val", 0, size=(96, 128)).image
    seen = [other_camera(image, np.random.default_rng(seed)) for seed in range(8)]
    np.testing.assert_array_equal(seen[0], other_camera(image, np.random.default_rng(0)))
    assert len({one.tobytes() for one in seen}) == 8
    for one in seen:
        assert one.dtype == np.uint8
        assert np.corrcoef(one.mean(2).ravel(), image.mean(2).ravel())[0, 1] > 0.8


def test_a_missing_folder_is_named(sources):
    result = CliRunner().invoke(
        release_adt.app,
        [
            "--inlier",
            str(sources / "nowhere"),
            "--outliers",
            str(sources / "objects"),
            "--work",
            str(sources / "w"),
        ],
    )
    assert result.exit_code != 0
    assert "nowhere" in result.output
