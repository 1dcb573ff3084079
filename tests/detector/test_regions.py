"""Boxes round regions of the score map, compared with a slow formulation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anomdino.detector import regions
from anomdino.detector.infer import joined
from anomdino.detector.regions import contrasts, region_boxes, score_regions
from anomdino.io.boxes import Boxes
from anomdino.uncertainty import UncertaintyMaps


def maps_of(score, stride=4):
    height, width = score.shape
    flat = np.zeros(score.shape, np.float16)
    semantic = np.zeros((3, *score.shape), np.float16)
    return UncertaintyMaps(semantic, flat, flat, score, (stride * height, stride * width))


def scene(objects, size=(60, 90), seed=0):
    """Quiet noise with rectangles (x0, y0, x1, y1, height) on it."""
    score = np.random.default_rng(seed).normal(-8, 0.3, size).astype(np.float32)
    for x0, y0, x1, y1, height in objects:
        score[y0:y1, x0:x1] += height
    return score


def slow_boxes(score):
    levels = np.quantile(score, 1 - np.geomspace(1e-5, 0.5, 40))
    found = set()
    for level in levels:
        labelled, _ = ndimage.label(score >= level, np.ones((3, 3)))
        for number, (rows, columns) in enumerate(ndimage.find_objects(labelled), 1):
            box = (columns.start, rows.start, columns.stop, rows.stop)
            area = (box[2] - box[0]) * (box[3] - box[1])
            if (labelled == number).sum() >= 4 and area <= 0.25 * score.size:
                found.add(box)
    return found


def slow_contrast(score, box):
    x0, y0, x1, y1 = box
    wide, high = int(0.5 * (x1 - x0)) + 4, int(0.5 * (y1 - y0)) + 4
    frame = np.zeros(score.shape, bool)
    frame[max(0, y0 - high) : y1 + high, max(0, x0 - wide) : x1 + wide] = True
    frame[y0:y1, x0:x1] = False
    inside = score[y0:y1, x0:x1].astype(np.float64).mean()
    return inside - score[frame].astype(np.float64).mean() if frame.any() else 0.0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(2, 30), width=st.integers(2, 30))
def test_boxes_and_contrasts_are_those_of_the_slow_formulation(seed, height, width):
    rng = np.random.default_rng(seed)
    score = ndimage.gaussian_filter(rng.normal(size=(height, width)), 1.5).astype(np.float32)
    found = region_boxes(score)
    assert {tuple(box) for box in found.tolist()} == slow_boxes(score)
    assert len(found) == len(np.unique(found, axis=0))
    for box, contrast in zip(found, contrasts(score, found), strict=True):
        assert contrast == pytest.approx(slow_contrast(score, box.tolist()), abs=1e-9)


def test_objects_are_boxed_in_pixels_of_the_image():
    objects = [(10, 20, 18, 26, 6.0), (50, 30, 80, 50, 5.0)]
    found = score_regions(maps_of(scene(objects)), std=2.0, weight=0.2)
    first, second = found.xyxy[:2]
    np.testing.assert_allclose(first, 4 * np.array(objects[0][:4]), atol=4)
    np.testing.assert_allclose(second, 4 * np.array(objects[1][:4]), atol=4)
    assert (np.diff(found.scores) <= 0).all()
    contrast = slow_contrast(scene(objects), objects[0][:4]) / 2.0
    assert found.scores[0] == pytest.approx(0.2 / (1 + np.exp(7.4 - 4.5 * contrast)), rel=0.05)
    assert found.scores[1] > 0.1
    assert (found.scores[2:] < 0.01).all()  # noise


def test_regions_lie_in_an_image_that_is_no_multiple_of_the_cells():
    maps = replace(maps_of(scene([(10, 20, 18, 26, 6.0)])), image_size=(60 * 4 - 3, 90 * 6))
    found = score_regions(maps, std=2.0, weight=0.2)
    np.testing.assert_allclose(found.xyxy[0], [10 * 6, 20 * 3.95, 18 * 6, 26 * 3.95], atol=0.1)


def test_scale_and_offset_of_the_score_do_not_matter():
    score = scene([(10, 20, 18, 26, 4.0)])
    one, other = score_regions(maps_of(score), 2.0, 0.3), score_regions(maps_of(3 * score + 7), 6.0, 0.3)
    np.testing.assert_array_equal(one.xyxy[0], other.xyxy[0])
    assert other.scores[0] == pytest.approx(one.scores[0], rel=1e-3)


def test_stronger_contrast_more_confidence_never_above_the_weight():
    heights = (1.0, 2.0, 4.0, 8.0, 100.0)
    best = [
        score_regions(maps_of(scene([(10, 20, 20, 30, height)])), 2.0, 0.4).scores[0] for height in heights
    ]
    assert best == sorted(best)
    assert best[-1] == pytest.approx(0.4)


@pytest.mark.filterwarnings("error")
def test_a_tiny_deviation_overflows_nothing():
    found = score_regions(maps_of(scene([(10, 20, 20, 30, 5.0)])), 1e-6, 0.4)
    assert np.isfinite(found.scores).all()
    assert found.scores.max() == pytest.approx(0.4)


@pytest.mark.parametrize("score", [np.zeros((5, 7), np.float32), np.zeros((1, 1), np.float32)])
def test_a_map_of_one_value_has_no_region(score):
    assert len(score_regions(maps_of(score), 1.0, 0.5)) == 0


def test_no_more_boxes_than_are_kept():
    rng = np.random.default_rng(0)
    busy = maps_of(rng.normal(size=(200, 300)).astype(np.float32))
    assert len(score_regions(busy, 1.0, 0.5)) == regions.KEPT


def test_joined_behind_the_boxes_of_the_detector():
    details = {"level": np.array([1.0], np.float32)}
    own = Boxes(np.array([[0, 0, 4, 4]]), np.array([0.9]), details)
    more = joined(own, Boxes(np.array([[8, 8, 9, 9]]), np.array([0.1])))
    assert more.xyxy.tolist() == [[0, 0, 4, 4], [8, 8, 9, 9]]
    assert more.scores == pytest.approx([0.9, 0.1])
    assert more.details["level"][0] == 1
    assert np.isnan(more.details["level"][1])
    assert len(joined(own, Boxes.empty())) == len(joined(Boxes.empty(), own)) == 1
