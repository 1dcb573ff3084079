"""The network that lowers a score by the photo: against a slow formulation, its laws, its file, in the engine."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from anomdino.config.score import ScoreConfig
from anomdino.errors import CheckpointError, ConfigError
from anomdino.scorer.base import ScorerSpec, build_scorer, normalise, save_scorer
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.options import ScoringOptions
from anomdino.scorer.refinement import (
    Refinement,
    grid_size,
    load_refinement,
    refinement_file,
    save_refinement,
)
from anomdino.scorer.setup import engine_from
from tests.scorer.test_training import OPTIONS

SIZE = 60, 80


def random_refinement(seed=0, share=0.25, unit=2.0):
    torch.manual_seed(seed)
    network = Refinement(-7.0, 2.0, share)
    torch.nn.init.normal_(network.network.head.weight, std=0.3)
    with torch.no_grad():
        network.unit.fill_(unit)
    return network.eval().requires_grad_(False)


def random_input(seed=0, count=1, size=SIZE):
    source = np.random.default_rng(seed)
    images = source.integers(0, 256, (count, *size, 3)).astype(np.uint8)
    scores = torch.from_numpy(source.normal(-7, 2, (count, *size)).astype(np.float32))
    return scores, normalise(torch.from_numpy(images))


def resized(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=True)


@pytest.fixture
def scorer(tmp_path):
    torch.manual_seed(3)
    save_scorer(build_scorer(ScorerSpec("small", 4, OPTIONS)).eval(), tmp_path / "rpl")
    return tmp_path / "rpl"


@pytest.mark.parametrize("size", [SIZE, (75, 101), (3, 640), (90, 700)])
def test_scores_fall_by_a_part_of_what_the_network_says(size):
    network, (scores, images) = random_refinement(), random_input(1, size=size)
    scores[:, :, ::7] *= 9  # far beyond what the network is shown
    grid = (max(1, round(size[0] * 640 / size[1])), 640)
    assert grid_size(*size) == grid
    levels = (resized(scores[:, None], grid) + 7) / 2
    context = torch.cat([(levels / 3).clamp(-3, 3), torch.ones_like(levels)], 1)
    says = 2.0 * network.network(resized(images, grid), context)
    whole = F.interpolate(says[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    expected = scores + 2.0 * (0.25 * whole).clamp(max=0)
    moved = network(scores, images)
    assert moved.shape == scores.shape
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)
    assert (moved - scores).min() < -0.05  # it does move


def test_no_score_rises():
    for seed in range(5):
        scores, images = random_input(seed)
        network = random_refinement(seed, unit=20.0)
        falls = network(scores, images) - scores
        assert (falls <= 0).all()
        assert (falls < -0.1).any()
        assert (falls == 0).any()


def test_a_share_of_nothing_moves_nothing_and_pixels_of_equal_offset_keep_their_order():
    scores, images = random_input(3)
    torch.testing.assert_close(random_refinement(share=0.0)(scores, images), scores)
    network = random_refinement(unit=1.0)
    torch.nn.init.zeros_(network.network.head.weight)
    torch.nn.init.constant_(network.network.head.bias, -0.8)
    torch.testing.assert_close(network(scores, images), scores - 2.0 * 0.25 * 0.8)


def test_images_of_a_batch_do_not_see_each_other():
    network, (scores, images) = random_refinement(), random_input(4, count=3)
    together = network(scores, images)
    for index in range(3):
        alone = network(scores[index : index + 1], images[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-4)


def test_a_written_network_gives_the_same_scores_but_for_half_precision(scorer):
    network, given = random_refinement(5, share=0.2), random_input(5)
    save_refinement(network, scorer, {"steps": 7})
    read = load_refinement(scorer)
    assert not read.training
    assert float(read.share) == pytest.approx(0.2)
    torch.testing.assert_close(read(*given), network(*given), rtol=0, atol=0.05)
    assert refinement_file(scorer).stat().st_size < 2_500_000


@pytest.mark.parametrize(
    "damage", ["missing", "damaged", "of the format other", "another scorer", "unexpected"]
)
def test_a_file_that_does_not_fit_is_refused(scorer, damage):
    network = random_refinement()
    save_refinement(network, scorer)
    path = refinement_file(scorer)
    if damage == "missing":
        path.unlink()
        damage = "does not exist"
    elif damage == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "of the format other":
        save_file({}, path, {"format": "other", "content": json.dumps({"scorer": ""})})
    elif damage == "another scorer":
        torch.manual_seed(9)
        save_scorer(build_scorer(ScorerSpec("small", 4, OPTIONS)).eval(), scorer)
    else:
        network.register_buffer("more", torch.zeros(2))
        save_refinement(network, scorer)
    with pytest.raises(CheckpointError, match=damage) as caught:
        load_refinement(scorer)
    assert "refinement.safetensors" in str(caught.value)


def test_the_engine_lowers_the_score_last_and_leaves_the_maps(scorer):
    network = random_refinement(6)
    save_refinement(network, scorer)
    image = np.random.default_rng(6).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    plain = ScoreConfig(widths=[64], refine=[12])
    moved = plain.model_copy(update={"refine_net": True})
    (before, old), (after, new) = (engine_from(config, scorer) for config in (plain, moved))
    first, second = before.score(image), after.score(image)
    expected = load_refinement(scorer)(
        torch.from_numpy(first.score)[None], normalise(torch.from_numpy(image)[None])
    )[0]
    np.testing.assert_allclose(second.score, expected.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(first.maps.score, second.maps.score)
    np.testing.assert_array_equal(first.maps.semantic, second.maps.semantic)
    assert old != new


def test_results_depend_on_the_content_of_the_network(scorer):
    digests = set()
    for seed in (0, 1):
        save_refinement(random_refinement(seed), scorer)
        digests.add(engine_from(ScoreConfig(refine_net=True), scorer)[1])
    assert len(digests) == 2


@pytest.mark.parametrize(
    "other", [{"kind": "entropy"}, {"logits": "closed"}, {"source": "transformers", "logits": "closed"}]
)
def test_another_score_is_not_lowered(scorer, other):
    save_refinement(random_refinement(), scorer)
    with pytest.raises(ConfigError, match="refine_net"):
        engine_from(ScoreConfig(refine_net=True, **other), scorer)


def test_an_engine_without_the_network_that_it_needs_is_refused(scorer):
    network = build_scorer(ScorerSpec("small", 4, OPTIONS))
    with pytest.raises(ConfigError, match="refine_net"):
        ScoringEngine(network, ScoringOptions(refine_net=True))
