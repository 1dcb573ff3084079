"""Training the network that lowers a released model's score, from scenes and objects to a model that uses it."""

import json

import pytest
from safetensors import safe_open

from anomdino.config.params import load_params
from anomdino.io.listing import list_images
from anomdino.scorer.refinement import FILE, load_refinement
from pipeline import release_refinement
from pipeline._release import TARGET
from tests.release.test_release_distil import held_out_photos
from tests.release.tiny import invoke


def run(folder, *more):
    return invoke(release_refinement.app, folder, "--count", "8", "--photos", "4", *more)


@pytest.mark.slow
def test_the_model_lowers_its_scores_by_the_network_that_was_trained(tiny):
    file = tiny / "light/models/rpl" / FILE
    file.unlink(missing_ok=True)
    result = run(tiny, "--steps", "2", "--scenes", "3", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert "cross-entropy of kept images photos" in result.output
    load_refinement(file.parent)
    with safe_open(file, framework="pt") as stored:
        content = json.loads(stored.metadata()["content"])
    street = list_images(tiny / "work/street/offline_dataset")
    assert content["images"] == {"photos": 4, "small": 6, "large": 8, "street": len(street)}
    assert (content["steps"], content["seed"]) == (2, 5)
    assert load_params(tiny / "light/params.yaml").score.refine_net
    for part in ("rpl", "detector", "adt"):
        kept, released = (
            folder / "models" / part / "model.safetensors" for folder in (tiny / "light", TARGET)
        )
        assert kept.read_bytes() == released.read_bytes()
    used = list_images(tiny / "work/photos")
    assert not {path.name for path in held_out_photos(tiny)} & {path.name for path in used.values()}


@pytest.mark.slow
def test_the_network_learns_from_scores_that_no_such_network_lowered(tiny):
    assert run(tiny, "--steps", "1", "--scenes", "3").exit_code == 0
    before = {path.name: path.read_bytes() for path in (tiny / "work/grids/large").iterdir()}
    assert load_params(tiny / "light/params.yaml").score.refine_net
    assert run(tiny, "--steps", "1", "--scenes", "3").exit_code == 0
    for name, content in before.items():
        assert (tiny / "work/grids/large" / name).read_bytes() == content


def test_evaluation_data_are_refused(tiny):
    (tiny / "scenes/EVALUATION_ONLY").touch()
    result = run(tiny)
    assert result.exit_code != 0
    assert "EVALUATION_ONLY" in result.output or "evaluation" in result.output
    assert not (tiny / "work").exists()
