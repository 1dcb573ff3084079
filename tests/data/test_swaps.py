"""Swapped regions: what must change, what must not, and whose label a pixel has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomdino.data.swaps import swap_region


def scene(level: int, label: int, size: tuple[int, int] = (60, 90)) -> tuple[np.ndarray, np.ndarray]:
    return np.full((*size, 3), level, np.uint8), np.full(size, label, np.uint8)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(12, 40), columns=st.integers(12, 40))
def test_pixels_keep_their_scene_and_labels_follow(seed: int, rows: int, columns: int) -> None:
    own, other = scene(100, 3), scene(200, 7)
    image, label = swap_region(own, other, np.ones((rows, columns), bool), np.random.default_rng(seed))
    assert image.shape == (60, 90, 3)
    assert set(np.unique(label)) <= {3, 7, 255}
    assert np.all(image[label == 3] == 100)
    assert (label != 3).any()
    # Of the other scene a pixel has at least half: gains of at most 25 % and 12.5 % bound what that can be.
    lowest = 0.5 * 100 + 0.5 * 200 * 0.75 * 0.875
    assert np.all(image[label == 7] >= np.floor(lowest))
    assert np.all(own[0] == 100)
    assert np.all(own[1] == 3)


def test_region_stays_in_place() -> None:
    """A scene filled from itself, unmirrored and without gains, would be itself: positions are kept."""
    column = np.tile(np.arange(90, dtype=np.uint8), (60, 1))
    own = (np.zeros((60, 90, 3), np.uint8), np.zeros((60, 90), np.uint8))
    other = (np.repeat(column[..., None], 3, axis=2), column)
    straight = mirrored = 0
    for seed in range(40):
        _, label = swap_region(own, other, np.ones((9, 9), bool), np.random.default_rng(seed))
        rows, columns = np.nonzero((label > 0) & (label < 255))
        straight += bool(np.all(label[rows, columns] == columns))
        mirrored += bool(np.all(label[rows, columns] == 89 - columns))
    assert straight + mirrored == 40
    assert min(straight, mirrored) > 5


def test_same_state_same_bytes_and_other_sizes() -> None:
    shape = np.tri(20, dtype=bool)
    first = swap_region(scene(50, 1), scene(90, 2, (30, 45)), shape, np.random.default_rng(4))
    again = swap_region(scene(50, 1), scene(90, 2, (30, 45)), shape, np.random.default_rng(4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_void_lies_at_the_seam_alone(seed: int) -> None:
    _, label = swap_region(scene(0, 1), scene(255, 2), np.ones((10, 10), bool), np.random.default_rng(seed))
    rows, columns = np.nonzero(label == 255)
    inside = np.argwhere(label == 2)
    top, left = inside.min(axis=0) - 7
    bottom, right = inside.max(axis=0) + 7
    assert np.all((rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right))


def test_a_soft_seam_runs_from_one_scene_to_the_other_without_a_step():
    """Weights of a blurred edge: between the scene's level and that of the region there are levels in between."""
    soft = 0
    for seed in range(12):
        own, other = scene(100, 3), scene(200, 7)
        image, label = swap_region(own, other, np.ones((10, 10), bool), np.random.default_rng(seed))
        if not (label == 255).any():
            continue
        soft += 1
        region = image[label == 7].astype(float)
        inner = np.where(region.mean(0) > 100, region.max(0), region.min(0))
        seam = image[label == 255].astype(float)
        share = (seam - 100) / np.where(inner == 100, 1, inner - 100)
        told = np.abs(inner - 100) > 20
        assert (share[:, told] < 0.9).all()
        assert (share[:, told] > -0.05).all()
        assert share[:, told].min() < 0.2
    assert soft >= 3


def test_regions_have_the_heights_and_lights_and_all_the_places_that_are_said():
    own, other = scene(100, 3, (60, 120)), scene(200, 7, (60, 120))
    heights, levels, places = [], [], []
    for seed in range(80):
        image, label = swap_region(own, other, np.ones((10, 10), bool), np.random.default_rng(seed))
        rows, columns = np.nonzero(label == 7)
        heights.append(np.ptp(rows) + 1)
        places.append(columns.mean())
        levels.append(image[rows, columns].astype(float).mean(axis=1).max())
    assert max(heights) <= 0.7 * 60 + 1
    assert max(heights) > 0.5 * 60
    assert min(places) < 35
    assert max(places) > 85
    assert 200 * 0.75 * 0.87 < min(levels) < 165
    assert 220 < max(levels) <= 255
