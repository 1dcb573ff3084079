"""S2M's mask metrics against the loop of the specification."""

from __future__ import annotations

import numpy as np
import pytest

from anomdino.metrics.s2m import S2mState


def specified(images):
    ious, f1s = [], []
    taus = np.arange(0, 1.01, 0.01)
    for tau in taus:
        iou, f1 = [], []
        for confidence, label in images:
            predicted, truth = confidence > tau, label == 1
            inter, union = (predicted & truth).sum(), (predicted | truth).sum()
            iou.append(inter / union if union else 0.0)
            f1.append(2 * inter / (inter + union) if union else 0.0)
        ious.append(np.mean(iou))
        f1s.append(np.mean(f1))
    return ious, f1s, np.trapezoid(ious, taus)


def test_equals_the_loop_over_thresholds():
    rng = np.random.default_rng(0)
    images = []
    for index in range(4):
        label = rng.choice(np.array([0, 1, 255], np.uint8), (20, 30), p=[0.6, 0.3, 0.1])
        confidence = rng.random((20, 30)).astype(np.float32)
        if index == 1:
            confidence = confidence.round(2)
        if index == 2:
            label[label == 1] = 0
        images.append((confidence, label))
    state = S2mState()
    for image in images:
        state.update(*image)
    result = state.compute()
    ious, f1s, area = specified(images)
    assert result["ious"] == pytest.approx(ious, abs=1e-12)
    assert result["f1_scores"] == pytest.approx(f1s, abs=1e-12)
    assert result["area"] == pytest.approx(area, abs=1e-12)
    assert result["mean_f1"] == pytest.approx(np.mean(f1s), abs=1e-12)
    assert result["Best_threshold"] == np.arange(0, 1.01, 0.01)[int(np.argmax(ious))]


def test_void_pixels_count_as_background():
    state = S2mState()
    state.update(np.array([[0.9, 0.9]]), np.array([[1, 255]], np.uint8))
    assert state.compute()["Best_miou"] == 0.5


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16])
def test_a_mask_counts_as_zero_and_one(dtype):
    rng = np.random.default_rng(0)
    mask, label = rng.random((9, 9)) < 0.3, rng.choice(np.array([0, 1, 255], np.uint8), (9, 9))
    state = S2mState()
    state.update(mask.astype(dtype), label)
    assert state.compute()["area"] == pytest.approx(specified([(mask.astype(float), label)])[2], abs=1e-12)


def test_nan_is_refused_on_void_too_for_it_counts_there():
    with pytest.raises(ValueError, match="NaN"):
        S2mState().update(np.array([[0.9, np.nan]]), np.array([[1, 255]], np.uint8))


def test_nothing_predicted_and_nothing_there_is_zero():
    state = S2mState()
    state.update(np.zeros((2, 2)), np.zeros((2, 2), np.uint8))
    assert state.compute()["Best_miou"] == 0.0
    with pytest.raises(ValueError, match="no image"):
        S2mState().compute()


def test_merge_adds_images():
    rng = np.random.default_rng(1)
    one, two, both = S2mState(), S2mState(), S2mState()
    for state in (one, two):
        confidence, label = rng.random((5, 5)), rng.integers(0, 2, (5, 5)).astype(np.uint8)
        state.update(confidence, label)
        both.update(confidence, label)
    one.merge(two)
    assert one.compute() == both.compute()
