"""Objects of a frame, against a slow formulation with SciPy's labelling and figures worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from anomdino.io.boxes import Boxes
from anomdino.tracking.objects import objects_of


def boxes(*rows):
    return Boxes(
        np.array([row[:4] for row in rows], np.float32), np.array([row[4] for row in rows], np.float32)
    )


def masked(*windows, size=(20, 30)):
    mask = np.zeros(size, bool)
    for x0, y0, x1, y1 in windows:
        mask[y0:y1, x0:x1] = True
    return mask


def corners(found):
    return sorted(map(tuple, found.xyxy.astype(int).tolist()))


@settings(max_examples=60, deadline=None)
@given(arrays(bool, (7, 9)), st.integers(0, 2**31))
def test_without_boxes_each_connected_part_is_an_object(mask, seed):
    score = np.random.default_rng(seed).normal(size=mask.shape).astype(np.float32)
    found = objects_of(mask, score, Boxes.empty())
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    assert len(found) == count
    expected = {}
    for number in range(1, count + 1):
        rows, columns = np.nonzero(labels == number)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        expected[tuple(map(int, box)), len(rows)] = float(score[labels == number].mean())
    keys = [
        (tuple(box), pixels)
        for box, pixels in zip(found.xyxy.astype(int).tolist(), found.pixels, strict=True)
    ]
    if len(expected) == count:  # no two parts of one box and size
        assert dict(zip(keys, found.scores.tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)


def test_a_mask_without_an_anomaly_has_none():
    found = objects_of(np.zeros((4, 5), bool), np.zeros((4, 5), np.float32), boxes((0, 0, 5, 4, 0.9)))
    assert (found.xyxy.shape, found.scores.shape, found.pixels.shape) == ((0, 4), (0,), (0,))
    assert len(found) == 0


def test_parts_in_one_box_are_one_object_with_the_mean_of_all_pixels():
    mask = masked((2, 2, 6, 12), (8, 2, 10, 12))
    score = np.zeros(mask.shape, np.float32)
    score[:, :7], score[:, 7:] = 1.0, 4.0
    found = objects_of(mask, score, boxes((1, 1, 11, 13, 0.5)))
    assert corners(found) == [(2, 2, 10, 12)]
    assert found.pixels.tolist() == [60]
    assert found.scores == pytest.approx([(40 * 1 + 20 * 4) / 60])


@pytest.mark.parametrize(("share", "count"), [(7, 2), (8, 1)])
def test_a_part_lies_in_a_box_with_four_fifths_of_its_pixels(share, count):
    mask = masked((2, 2, 6, 12), (8, 2, 18, 12))
    assert len(objects_of(mask, np.ones(mask.shape, np.float32), boxes((1, 1, 8 + share, 13, 0.5)))) == count


@pytest.mark.parametrize(("right", "count"), [(19, 1), (22, 2)])
def test_parts_that_leave_their_box_nearly_empty_are_apart(right, count):
    mask = masked((0, 0, 2, 10), (15, 0, 17, 10))  # 40 pixels, a fifth of 200
    assert (
        len(objects_of(mask, np.ones(mask.shape, np.float32), boxes((0, 0, right + 0.9, 10, 0.5)))) == count
    )


def test_a_part_goes_to_the_surest_box():
    mask = masked((1, 1, 4, 9), (5, 1, 8, 9), (9, 1, 12, 9))
    found = objects_of(mask, np.ones(mask.shape, np.float32), boxes((0, 0, 8, 10, 0.3), (5, 0, 12, 10, 0.6)))
    assert corners(found) == [(1, 1, 4, 9), (5, 1, 12, 9)]


def test_the_edge_of_a_box_is_half_open():
    mask = masked((1, 1, 2, 9), (4, 1, 5, 9))
    score = np.ones(mask.shape, np.float32)
    assert (
        len(objects_of(mask, score, boxes((1, 1, 4.5, 9, 0.5)))) == 2
    )  # the centres of column 4 lie on its edge
    assert len(objects_of(mask, score, boxes((1, 1, 4.6, 9, 0.5)))) == 1


def test_of_thousands_of_parts_the_largest_are_taken():
    mask = np.zeros((200, 200), bool)
    mask[::2, ::2] = True  # 10,000 parts of one pixel
    mask[100, 101] = mask[50, [7, 9]] = True  # two and three of them joined
    found = objects_of(mask, np.ones(mask.shape, np.float32), Boxes.empty())
    assert len(found) == 200
    assert sorted(found.pixels.tolist())[-3:] == [1, 3, 5]
