"""The guided filter against a fit in every window by hand, the laws it keeps, and what it is for."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from anomdino.config.score import ScoreConfig
from anomdino.scorer.base import ScorerSpec, build_scorer, to_input
from anomdino.scorer.guided import EPS, guided_filter, refine
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.options import ScoringOptions
from anomdino.scorer.run import content_digest


def fitted(score, image, radius, eps):
    """Slopes and offset (4, h, w) of every window, by ridge regression in float64, and their means over windows."""
    height, width = score.shape
    fits = np.zeros((4, height, width))
    for y in range(height):
        for x in range(width):
            window = np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            colours = image[(slice(None), *window)].reshape(3, -1).T.astype(np.float64)
            values = score[window].ravel().astype(np.float64)
            centred = colours - colours.mean(0)
            covariance = centred.T @ centred / len(values) + eps * np.eye(3)
            slopes = np.linalg.solve(covariance, centred.T @ (values - values.mean()) / len(values))
            fits[:, y, x] = (*slopes, values.mean() - slopes @ colours.mean(0))
    means = np.zeros_like(fits)
    for y in range(height):
        for x in range(width):
            window = np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            means[:, y, x] = fits[(slice(None), *window)].reshape(4, -1).mean(1)
    return means


def bounds(score, radius):
    """Lowest and highest score in the window around every pixel."""
    height, width = score.shape
    windows = [
        score[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        for y in range(height)
        for x in range(width)
    ]
    return (np.array([how(window) for window in windows]).reshape(score.shape) for how in (np.min, np.max))


def applied(means, image):
    return (means[:3] * image).sum(0) + means[3]


def random_pair(height, width, seed=0):
    source = np.random.default_rng(seed)
    return (
        source.normal(-8, 3, (height, width)).astype(np.float32),
        source.normal(0, 1, (3, height, width)).astype(np.float32),
    )


def filtered(score, image, radius, eps=EPS):
    maps = torch.from_numpy(score)[None], torch.from_numpy(image)[None]
    return guided_filter(*maps, radius, eps)[0].numpy()


@pytest.mark.parametrize(
    ("size", "radius"), [((9, 13), 2), ((13, 9), 1), ((5, 4), 3), ((1, 6), 2), ((12, 12), 7)]
)
def test_agrees_with_a_fit_in_every_window(size, radius):
    score, image = random_pair(*size)
    expected = np.clip(applied(fitted(score, image, radius, EPS), image), *bounds(score, radius))
    np.testing.assert_allclose(filtered(score, image, radius), expected, rtol=1e-3, atol=2e-3)


def test_large_radii_are_fitted_on_a_smaller_image_and_applied_to_the_whole_one():
    score, image = random_pair(6, 7)
    blocks = np.kron(score, np.ones((3, 3))).astype(np.float32), np.kron(image, np.ones((1, 3, 3)))
    fits = torch.from_numpy(fitted(score, image, 4, EPS))[None]
    maps = torch.cat([fits, torch.from_numpy(np.stack(list(bounds(score, 4))))[None]], 1)
    enlarged = F.interpolate(maps, size=(18, 21), mode="bilinear", align_corners=False)[0].numpy()
    result = filtered(blocks[0], blocks[1].astype(np.float32), 12)  # every third pixel, 4 cells
    expected = np.clip(applied(enlarged[:4], blocks[1]), enlarged[4], enlarged[5])
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=2e-3)


def test_cells_of_a_smaller_image_are_means_and_windows_have_the_nearest_number_of_them():
    score, image = random_pair(18, 21)
    small, colours = (maps.reshape(*maps.shape[:-2], 6, 3, 7, 3).mean((-3, -1)) for maps in (score, image))
    maps = np.concatenate([fitted(small, colours, 5, EPS), np.stack(list(bounds(small, 5)))])  # 14 / 3 cells
    enlarged = F.interpolate(
        torch.from_numpy(maps)[None], size=(18, 21), mode="bilinear", align_corners=False
    )[0].numpy()
    expected = np.clip(applied(enlarged[:4], image), enlarged[4], enlarged[5])
    np.testing.assert_allclose(filtered(score, image, 14), expected, rtol=1e-3, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60))
def test_no_pixel_leaves_the_range_of_the_scores(height, width, radius):
    score, image = random_pair(height, width)
    result = filtered(score, image, radius)
    assert result.min() >= score.min() - 1e-4
    assert result.max() <= score.max() + 1e-4


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.integers(1, 600), min_size=1, max_size=3),
    st.floats(0.1, 10),
    st.floats(-20, 20),
)
def test_a_rising_straight_line_over_all_scores_may_come_before_or_after(height, width, radii, slope, offset):
    score, image = (torch.from_numpy(part)[None] for part in random_pair(height, width))
    before = refine(slope * score + offset, image, radii)
    after = slope * refine(score, image, radii) + offset
    torch.testing.assert_close(before, after, rtol=1e-3, atol=0.02)


@pytest.mark.parametrize(
    ("radius", "tolerance"), [(2, 0.01), (9, 0.07)]
)  # ends of the range lie between the cells of 9
def test_a_score_that_colour_explains_stays(radius, tolerance):
    _, image = random_pair(40, 50)
    smooth = F.avg_pool2d(torch.from_numpy(image)[None], 15, 1, 7)[0].numpy()
    score = 2 * smooth[0] - smooth[1] + 0.5 * smooth[2] - 4
    np.testing.assert_allclose(filtered(score, smooth, radius, 1e-7), score, atol=tolerance)


def test_an_image_of_one_colour_guides_nothing():
    score, image = random_pair(20, 30)
    image[:] = image[:, :1, :1]
    maps = torch.from_numpy(score)[None, None]
    means = F.avg_pool2d(maps, 5, 1, 2, count_include_pad=False)
    twice = F.avg_pool2d(means, 5, 1, 2, count_include_pad=False)[0, 0].numpy()
    np.testing.assert_allclose(filtered(score, image, 2), twice, atol=2e-3)


def test_a_blurred_score_ends_where_the_object_ends():
    label = np.zeros((160, 160), bool)
    label[70:82, 60:100] = True
    noise = np.random.default_rng(0).normal(0, 0.05, (3, 160, 160))
    image = np.where(label, np.array([1.0, -0.5, 0.3])[:, None, None], 0) + noise
    score = torch.from_numpy(label.astype(np.float32))[None, None]
    for _ in range(3):
        score = F.avg_pool2d(score, 17, 1, 8)
    blurred = score[0]
    refined = refine(blurred, torch.from_numpy(image.astype(np.float32))[None], (32, 96, 160))
    before, after = (average_precision_score(label.ravel(), maps.ravel()) for maps in (blurred, refined))
    assert before < 0.95
    assert after > 0.99


def test_half_the_mean_and_half_the_maximum_of_the_score_and_what_the_radii_make_of_it():
    score, image = (torch.from_numpy(part)[None] for part in random_pair(30, 640))
    small, large = (guided_filter(score, image, radius) for radius in (2, 10))  # half of 1280 columns: half
    maps = torch.stack([score, small, large])
    torch.testing.assert_close(refine(score, image, (4, 20)), maps.mean(0) / 2 + maps.max(0).values / 2)
    assert refine(score, image, ()) is score


def test_images_of_a_batch_do_not_see_each_other():
    pairs = [random_pair(24, 36, seed) for seed in range(2)]
    scores, images = (torch.from_numpy(np.stack(parts)) for parts in zip(*pairs, strict=True))
    together = refine(scores, images, (40, 300))
    for index in range(2):
        alone = refine(scores[index : index + 1], images[index : index + 1], (40, 300))
        torch.testing.assert_close(together[index : index + 1], alone)


def test_the_engine_refines_the_joined_score_and_leaves_the_maps_that_the_detector_reads():
    torch.manual_seed(0)
    scorer = build_scorer(ScorerSpec("small")).eval()
    image = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
    options = ScoringOptions(widths=(48, 64))
    plain = ScoringEngine(scorer, options).score(image)
    scored = ScoringEngine(scorer, ScoringOptions(widths=(48, 64), refine=(40, 120))).score(image)
    expected = refine(torch.from_numpy(plain.score)[None], to_input(image), (40, 120))
    np.testing.assert_allclose(scored.score, expected[0].numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(scored.score - plain.score).max() > 1e-3
    for name in ("score", "semantic", "entropy", "distance"):
        np.testing.assert_array_equal(getattr(scored.maps, name), getattr(plain.maps, name))


def test_results_of_other_radii_are_not_valid_those_from_before_radii_are():
    digests = {content_digest(ScoringOptions(refine=radii), None) for radii in ((), (4,), (4, 12))}
    assert len(digests) == 3
    settings = asdict(ScoringOptions())
    for name in ("batch", "compile", "compile_mode", "fusion", "refine"):
        del settings[name]
    # what it was before the option existed
    expected = hashlib.sha256(json.dumps([settings], sort_keys=True).encode()).hexdigest()
    assert content_digest(ScoringOptions(), None) == expected


@pytest.mark.parametrize("radii", [[0], [4, 641], ["wide"], 4])
def test_radii_that_cannot_be_are_refused(radii):
    with pytest.raises(ValidationError, match="refine"):
        ScoreConfig(refine=radii)
