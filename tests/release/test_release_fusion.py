"""Training the fusion of widths of a released model, from scenes and objects to a model that scores with it."""

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from anomdino.config.params import load_params, render_params
from anomdino.io.images import read_image, read_label, write_png
from anomdino.io.listing import list_images
from anomdino.scorer.setup import engine_from
from anomdino.scorer.width_fusion import KNOTS, fusion_file, load_fusion
from pipeline import release_fusion
from tests.release.test_release_distil import held_out_photos
from tests.release.tiny import invoke

SCORER = "light/models/rpl"


def run(folder, *more):
    sizes = ["--count", "8", "--photos", "4", "--steps", "2", "--width", "48", "--width", "64"]
    return invoke(release_fusion.app, folder, *sizes, *more)


@pytest.mark.slow
def test_the_model_scores_with_the_network_that_was_trained(tiny):
    scorer = (tiny / SCORER / "model.safetensors").read_bytes()
    result = run(tiny)
    assert result.exit_code == 0, result.output
    assert "cross-entropy of kept images large" in result.output
    score = load_params(tiny / "light/params.yaml").score
    assert (score.fusion, score.widths) == ("learned", [48, 64])
    assert (tiny / SCORER / "model.safetensors").read_bytes() == scorer
    with safe_open(fusion_file(tiny / SCORER, [48, 64]), "pt") as file:
        assert file.get_tensor("share") == 0.5
        assert not torch.equal(
            file.get_tensor("levels")[0], torch.linspace(-1, 1, KNOTS)
        )  # fitted to the scores
        assert not torch.equal(file.get_tensor("head.weight"), torch.zeros(3, 12, 1, 1))
    photo = next(iter(held_out_photos(tiny)))
    engine, _ = engine_from(score, tiny / SCORER)
    plain, _ = engine_from(score.model_copy(update={"fusion": "mean"}), tiny / SCORER)
    learned, mean = (one.score(read_image(photo)).score for one in (engine, plain))
    assert abs(learned - mean).max() > 1e-5
    grids = tiny / "work/grids"
    assert {kind: len(list((grids / kind).rglob("*.npz"))) for kind in ("large", "small")} == {
        "large": 8,
        "small": 6,
    }
    held_out = {path.name for path in held_out_photos(tiny)}
    assert not held_out & {path.name for path in list_images(tiny / "work/photos").values()}
    times = {path: path.stat().st_mtime_ns for path in grids.rglob("*.npz")}
    mask = sorted((tiny / "objects/masks").glob("*.png"))
    changed = next(path for path in mask if (grids / "photos" / f"{path.stem}.npz").is_file())
    write_png(changed, 255 - read_label(changed))
    again = run(tiny, "--steps", "3")
    assert again.exit_code == 0, again.output
    kept = {path for path, time in times.items() if path.stat().st_mtime_ns == time}
    assert grids / "photos" / f"{changed.stem}.npz" not in kept  # scored again with its new mask
    assert {path for path in times if path.parent.name == "photos"} - kept == {
        grids / "photos" / f"{changed.stem}.npz"
    }


@pytest.mark.slow
def test_beside_leaves_the_models_own_widths(tiny):
    before = (tiny / "light/params.yaml").read_bytes()
    assert run(tiny, "--beside").exit_code == 0
    assert (tiny / "light/params.yaml").read_bytes() == before
    assert load_fusion(tiny / SCORER, [48, 64]).widths == (48, 64)
    times = {path: path.stat().st_mtime_ns for path in (tiny / "work/grids").rglob("*.npz")}
    params = load_params(tiny / "light/params.yaml")
    score = params.score.model_copy(update={"refine": [8]})
    (tiny / "light/params.yaml").write_text(render_params(params.model_copy(update={"score": score})))
    assert run(tiny, "--beside").exit_code == 0  # the filter comes after the widths: nothing is scored again
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("widths", [["64"], ["48", "48"]])
def test_one_width_and_the_same_twice_are_refused(tiny, widths):
    names = {"--inlier": tiny / "scenes", "--outliers": tiny / "objects", "--to": tiny / "light"}
    given = [str(text) for pair in names.items() for text in pair]
    result = CliRunner().invoke(
        release_fusion.app, given + [text for width in widths for text in ("--width", width)]
    )
    assert result.exit_code != 0
    assert "give two different widths" in result.output
