"""The closer look at the middle of an image, against a formulation by two looks and weights by hand."""

import numpy as np
import pytest
import torch

from anomdino.scorer.base import ScorerSpec, build_scorer
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.options import ScoringOptions
from anomdino.scorer.tiling import Tile
from anomdino.scorer.window import EDGE, joined, middle_window, window_weights
from tests.scorer.test_inference import with_statistics

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return with_statistics(build_scorer(ScorerSpec("small")))


@pytest.mark.parametrize(
    ("size", "share", "align", "expected"),
    [
        ((720, 1280), 0.5, 4, (180, 320, 540, 960)),
        ((720, 1280), 0.25, 4, (272, 480, 452, 800)),
        ((101, 203), 0.5, 4, (24, 52, 76, 152)),
        ((37, 41), 0.9, 8, (0, 0, 32, 40)),
        ((5, 5), 0.99, 1, (0, 0, 5, 5)),
    ],
)
def test_the_window_lies_in_the_middle_on_the_cells_of_the_maps(size, share, align, expected):
    window = middle_window(*size, share, align)
    assert (window.top, window.left, window.bottom, window.right) == expected


@pytest.mark.parametrize(("size", "share"), [((3, 3), 0.5), ((1, 900), 0.5), ((720, 1280), 0.001)])
def test_an_image_that_is_too_small_has_none(size, share):
    assert middle_window(*size, share, 4) is None


def by_hand(window):
    """Half in the middle, less towards the edges of the window: k / (edge + 1) of it in the k-th row and column."""
    high, wide = window.bottom - window.top, window.right - window.left
    edge = round(EDGE * min(high, wide))
    weights = np.empty((high, wide))
    for row in range(high):
        for column in range(wide):
            nearest = (min(at, side - 1 - at) + 1 for at, side in ((row, high), (column, wide)))
            weights[row, column] = 0.5 * np.prod([min(1.0, k / (edge + 1)) for k in nearest])
    return weights


def test_weights_fall_towards_the_edges():
    window = Tile(20, 24, 80, 104)
    weights = window_weights(window, 100, 128).numpy()
    assert weights.shape == (60, 80)
    assert weights[30, 40] == 0.5
    assert (weights > 0).all()
    np.testing.assert_allclose(weights, by_hand(window), rtol=1e-6)
    np.testing.assert_allclose(weights, weights[::-1, ::-1])


def test_outside_the_window_nothing_changes():
    whole, closer = torch.rand(2, 3, 10, 12), torch.rand(2, 3, 4, 6)
    before, weights = whole.clone(), torch.rand(4, 6)
    result = joined(whole, closer, Tile(2, 3, 6, 9), weights)
    torch.testing.assert_close(whole, before, rtol=0, atol=0)
    inside = torch.zeros(10, 12, dtype=bool)
    inside[2:6, 3:9] = True
    assert (result[..., ~inside] == whole[..., ~inside]).all()
    torch.testing.assert_close(result[..., 2:6, 3:9], (1 - weights) * whole[..., 2:6, 3:9] + weights * closer)


@pytest.mark.parametrize(("size", "widths"), [((64, 96), (48, 144)), ((61, 99), (80,)), ((64, 96), ())])
def test_it_is_the_mean_of_both_looks_inside(small, size, widths):
    images = RNG.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    engine = ScoringEngine(small, ScoringOptions(widths=widths, window=0.5, precision="fp32"))
    plain = ScoringEngine(small, ScoringOptions(widths=widths, precision="fp32"))
    window = middle_window(*size, 0.5, 4)
    weights = window_weights(window, *size).numpy()
    rows, columns = window.rows, window.columns
    for image, found in zip(images, engine.score_batch(list(images)), strict=True):
        whole, near = plain.score(image), plain.score(np.ascontiguousarray(image[rows, columns]))
        expected = whole.score.copy()
        expected[rows, columns] = (1 - weights) * whole.score[rows, columns] + weights * near.score
        np.testing.assert_allclose(found.score, expected, atol=2e-5)
        cells = weights.reshape(len(weights) // 4, 4, -1, 4).mean(axis=(1, 3))
        top, left = window.top // 4, window.left // 4
        for name in ("semantic", "entropy", "distance"):
            ours, theirs = getattr(found.maps, name), getattr(whole.maps, name).astype(np.float64)
            part = theirs[..., top : top + cells.shape[0], left : left + cells.shape[1]]
            part += cells * (getattr(near.maps, name) - part)
            np.testing.assert_allclose(ours, theirs, atol=2e-3)  # halves
    np.testing.assert_array_equal(engine.score_alone(images[1]), engine.score(images[1]).score)


def test_without_a_window_nothing_is_looked_at_twice(small, monkeypatch):
    engine, looks = ScoringEngine(small, ScoringOptions(precision="fp32")), []
    look = ScoringEngine._look
    monkeypatch.setattr(ScoringEngine, "_look", lambda *given: looks.append(1) or look(*given))
    image = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    engine.score(image)
    assert len(looks) == 1
    engine.options = ScoringOptions(precision="fp32", window=0.5)
    engine.score(image)
    assert len(looks) == 3
