"""Training the network that outlines objects for a released model, from scenes and objects to a model that uses it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from anomdino.adt.outline_net import FILE
from anomdino.adt.store import load_adt, save_adt
from anomdino.adt.thresholds import Threshold
from anomdino.config.params import load_params
from anomdino.io.images import read_image, read_label, write_png
from anomdino.io.listing import list_images
from anomdino.io.scores import read_score
from pipeline import _material, release_outline
from pipeline._release import TARGET
from tests.release.test_release_distil import held_out_photos
from tests.release.tiny import invoke


def run(folder, *more):
    return invoke(release_outline.app, folder, "--count", "8", "--photos", "4", "--scenes", "3", *more)


@pytest.mark.slow
def test_the_model_outlines_with_the_network_that_was_trained(tiny):
    adt = tiny / "light/models/adt"
    (adt / FILE).unlink(missing_ok=True)
    before = load_adt(adt)
    save_adt(replace(before, threshold=Threshold(0.5, "fixed:0.5", "fused", {})), adt)
    result = run(tiny, "--steps", "2")
    assert result.exit_code == 0, result.output
    assert "overlap (IoU) of kept images" in result.output
    after = load_adt(adt)
    assert before.outliner is None
    street = list_images(tiny / "work/street/offline_dataset")
    assert after.outliner.details["images"] == {"photos": 4, "small": 6, "large": 8, "street": len(street)}
    assert after.outliner.details["steps"] == 2
    assert after.rule.outline
    assert after.threshold is None  # it belonged to the final score without these outlines
    assert load_params(tiny / "light/params.yaml").adt.outline
    for name, tensor in before.net.state_dict().items():
        assert torch.equal(tensor, after.net.state_dict()[name])
    for part in ("rpl", "detector"):
        kept, released = (
            folder / "models" / part / "model.safetensors" for folder in (tiny / "light", TARGET)
        )
        assert kept.read_bytes() == released.read_bytes()
    used = list_images(tiny / "work/photos")
    assert not {path.name for path in held_out_photos(tiny)} & {path.name for path in used.values()}
    for key in used:
        mask = read_label(list_images(tiny / "objects/masks")[key])
        written = read_label(tiny / "work/seen/photos/offline_dataset_label" / f"{key}.png")
        np.testing.assert_array_equal(written, mask > 127)


def test_scenes_with_a_known_class_as_the_anomaly_are_written_once(tiny):
    models, work = tiny / "light/models", tiny / "work"
    statistics, params = load_adt(models / "adt").net.statistics, load_params(tiny / "light/params.yaml")

    def gather(count=3, statistics=statistics, seed=0):
        chosen = params.model_copy(update={"seed": seed})
        _material.gather_street(chosen, models, tiny / "scenes", work, count, statistics)

    gather()
    street = list_images(work / "street/offline_dataset")
    scenes = list_images(tiny / "scenes/images")
    assert len(list((work / "street/scenes").glob("*.json"))) == 3
    assert street
    for key, path in street.items():
        scene, number = key.rsplit("_", 1)
        assert path.resolve() == scenes[scene].resolve()
        of_scene = read_label(list_images(tiny / "scenes/labels")[scene])
        label = read_label(work / "street/offline_dataset_label" / f"{key}.png")
        assert (of_scene[label == 1] == int(number)).all()
        assert (label[of_scene == int(number)] != 0).all()
        assert read_score(work / "seen/street/scores" / f"{key}.npz", label.shape).shape == label.shape

    def written():
        return {path.stem: path.stat().st_mtime_ns for path in (work / "seen/street/scores").iterdir()}

    before = written()
    gather()
    assert written() == before
    gather(statistics=replace(statistics, std=2 * statistics.std))
    other = written()
    assert not other.items() & before.items()
    gather(seed=1)
    assert not written().items() & before.items()
    gather()
    before = written()
    first = next(iter(before)).rsplit("_", 1)[0]
    write_png(scenes[first], 255 - read_image(scenes[first]))
    gather()
    again = written()
    assert {name.rsplit("_", 1)[0] for name, _ in before.items() - again.items()} == {first}
    gather(count=2)
    ends = {min(scenes), max(scenes)}
    assert {name.rsplit("_", 1)[0] for name in written()} <= ends < {name.rsplit("_", 1)[0] for name in again}
    folders = (work / "street/offline_dataset_label", work / "seen/street/maps")
    assert all({path.stem for path in folder.iterdir()} == written().keys() for folder in folders)
    assert list_images(work / "street/offline_dataset").keys() == written().keys()


@pytest.mark.parametrize("inside", [1, 255])
def test_masks_of_photos_are_read_as_those_that_are_pasted(tmp_path, inside):
    mask = np.zeros((8, 9), np.uint8)
    mask[2:5, 3:7] = inside
    write_png(tmp_path / "mask.png", mask)
    np.testing.assert_array_equal(_material.read_kind(tmp_path / "mask.png", "photos"), mask > 0)


@pytest.mark.slow
def test_scenes_without_an_object_are_refused(tiny):
    before = (tiny / "light/models/adt/config.json").read_bytes()
    for path in (tiny / "scenes/labels").iterdir():
        write_png(path, np.zeros_like(read_label(path)))
    result = run(tiny, "--steps", "1")
    assert result.exit_code != 0
    assert "has no two scenes in which a known object stands out" in result.output
    assert (tiny / "light/models/adt/config.json").read_bytes() == before


def test_evaluation_data_are_refused(tiny):
    (tiny / "scenes/EVALUATION_ONLY").touch()
    result = run(tiny)
    assert result.exit_code != 0
    assert "EVALUATION_ONLY" in result.output or "evaluation" in result.output
    assert not (tiny / "work").exists()
