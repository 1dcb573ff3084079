"""Close views of objects."""

import numpy as np
import pytest

from anomdino.viz.overlay import PAPER
from anomdino.viz.views import object_view

RNG = np.random.default_rng(0)


def test_an_object_lies_in_the_middle_with_what_is_around_it():
    image = np.full((720, 1280, 3), 60, np.uint8)
    mask = np.zeros((720, 1280), bool)
    mask[300:360, 600:680] = True  # 80 x 60: the view shows 200 x 150
    image[mask] = (200, 40, 40)
    view = object_view(image, mask, (600, 300, 680, 360))
    assert view.shape == (240, 320, 3)
    inside = (view[..., 0] > 150) & (view[..., 1] < 80)
    rows, columns = np.nonzero(inside)
    for found, expected in zip(
        (columns.min(), columns.max(), rows.min(), rows.max()), (96, 223, 72, 167), strict=True
    ):
        assert abs(found - expected) <= 4  # the outline lies on its edge
    assert (view[:60] == 60).all()
    green = (view[..., 1] > 150) & (view[..., 0] < 150)
    assert green.any()


@pytest.mark.parametrize("box", [(0, 0, 10, 10), (1270, 710, 1280, 720), (0, 700, 12, 720)])
def test_at_the_edge_the_view_stays_in_the_photo(box):
    image = RNG.integers(100, 200, (720, 1280, 3), dtype=np.uint8)
    view = object_view(image, np.zeros((720, 1280), bool), box)
    assert (view > 90).all()


@pytest.mark.parametrize("size", [(720, 1280), (200, 60), (60, 200), (5, 7), (1, 1)])
def test_an_object_as_large_as_the_photo_shows_the_photo(size):
    image = np.full((*size, 3), 150, np.uint8)
    view = object_view(image, np.zeros(size, bool), (0, 0, size[1], size[0]))
    assert view.shape == (240, 320, 3)
    shown = (view == 150).all(axis=2)
    assert (shown | (view == PAPER).all(axis=2)).all()
    rows, columns = np.nonzero(shown)
    wide, high = columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()
    assert wide / high == pytest.approx(size[1] / size[0], rel=0.05)
    assert wide == 320 or high == 240


def test_the_photo_is_not_drawn_into():
    image = RNG.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    before = image.copy()
    mask = np.zeros((240, 320), bool)
    mask[50:100, 50:100] = True
    object_view(image, mask, (0, 0, 320, 240))
    np.testing.assert_array_equal(image, before)
