"""SMIYC's component metrics against a loop over components, and each fact of the specification by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anomdino.metrics.components import ComponentState, frame_components, predicted_mask

TAUS = np.linspace(0.25, 0.75, 11)


def specified(mask, label, min_predicted, min_gt):
    """Reference d.3, component by component."""
    label = label.copy()
    eight = np.ones((3, 3))
    gt, n_gt = ndimage.label(label == 1, eight)
    predicted, n_predicted = ndimage.label(mask & (label != 255), eight)
    for j in range(n_predicted + 1):
        if (predicted == j).sum() < min_predicted:
            predicted[predicted == j] = 0
    for k in range(n_gt + 1):
        if (gt == k).sum() < min_gt:
            label[gt == k] = 255
    roi = label < 255
    gt, predicted = gt[roi], predicted[roi]

    def siou(one, other, k):
        touching = [j for j in np.unique(other[one == k]) if j != 0]
        union = np.isin(other, touching)
        intersection = (union & (one == k)).sum()
        adjustment = (union & (one != k) & (one != 0)).sum()
        return intersection / (union.sum() + (one == k).sum() - intersection - adjustment)

    gt_ids, predicted_ids = [k for k in np.unique(gt) if k], [j for j in np.unique(predicted) if j]
    siou_gt = [siou(gt, predicted, k) for k in gt_ids]
    siou_predicted = [siou(predicted, gt, j) for j in predicted_ids]
    ppv = [((predicted == j) & (gt > 0)).sum() / (predicted == j).sum() for j in predicted_ids]
    return siou_gt, siou_predicted, ppv


def blobs(seed, size=(40, 60), density=0.35):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=size), 1.2)
    other = ndimage.gaussian_filter(rng.normal(size=size), 1.2)
    label = (smooth > np.quantile(smooth, 1 - density)).astype(np.uint8)
    label[ndimage.gaussian_filter(rng.normal(size=size), 3) > 0.15] = 255
    mask = 0.6 * smooth + 0.4 * other > np.quantile(0.6 * smooth + 0.4 * other, 1 - density)
    return mask, label


@given(
    st.integers(0, 10_000),
    st.sampled_from([0, 1, 5, 12]),
    st.sampled_from([0, 1, 4, 15]),
    st.floats(0.02, 0.98),
)
@settings(max_examples=120, deadline=None)
def test_equals_the_loop_over_components(seed, min_predicted, min_gt, density):
    mask, label = blobs(seed, density=density)
    frame = frame_components(mask, label, min_predicted, min_gt)
    siou_gt, siou_predicted, ppv = specified(mask, label, min_predicted, min_gt)
    assert sorted(frame.gt.siou) == pytest.approx(sorted(siou_gt), abs=1e-12)
    assert sorted(frame.predicted.siou) == pytest.approx(sorted(siou_predicted), abs=1e-12)
    assert sorted(frame.predicted.covered) == pytest.approx(sorted(ppv), abs=1e-12)


def test_data_set_means_pool_components_and_sum_counts():
    frames = [blobs(seed) for seed in range(6)]
    state, siou, predicted_siou, ppv = ComponentState(), [], [], []
    for mask, label in frames:
        state.update(frame_components(mask, label, 5, 4))
        got = specified(mask, label, 5, 4)
        siou, predicted_siou, ppv = siou + got[0], predicted_siou + got[1], ppv + got[2]
    result = state.compute()
    siou, ppv = np.array(siou), np.array(ppv)
    f1 = []
    for tau in TAUS:
        tp, fn, fp = (siou >= tau).sum(), (siou < tau).sum(), (ppv < tau).sum()
        f1.append(2 * tp / (2 * tp + fn + fp))
    assert result.siou == pytest.approx(siou.mean(), abs=1e-12)
    assert result.siou_predicted == pytest.approx(np.mean(predicted_siou), abs=1e-12)
    assert result.ppv == pytest.approx(ppv.mean(), abs=1e-12)
    assert result.f1 == pytest.approx(np.mean(f1), abs=1e-12)
    assert result.missed == {"25": (siou < 0.25).sum(), "50": (siou < 0.5).sum(), "75": (siou < 0.75).sum()}
    assert result.false == {"25": (ppv < 0.25).sum(), "50": (ppv < 0.5).sum(), "75": (ppv < 0.75).sum()}
    assert list(result.f1_at.values()) == pytest.approx([f1[0], f1[5], f1[10]])


def test_merge_equals_one_state():
    whole, left, right = ComponentState(), ComponentState(), ComponentState()
    for seed in range(4):
        frame = frame_components(*blobs(seed), 5, 4)
        whole.update(frame)
        (left if seed < 2 else right).update(frame)
    left.merge(right)
    merged, expected = left.compute().as_dict(), whole.compute().as_dict()
    for name in ("siou", "siou_predicted", "ppv", "f1"):
        assert merged.pop(name) == pytest.approx(expected.pop(name), abs=1e-12)
    assert merged == expected


def grid(*rows):
    return np.array([[int(mark, 16) if mark != "v" else 255 for mark in row] for row in rows], np.uint8)


def test_threshold_is_strict():
    score = np.array([[0.4, 0.5, 0.6]], np.float32)
    assert predicted_mask(score, 0.5).tolist() == [[False, False, True]]
    binary = np.array([[0.0, 1.0]], np.float32)
    assert not predicted_mask(binary, 1.0).any()


def test_threshold_between_two_floats_is_taken_in_the_precision_of_the_score():
    score = np.array([[0.1]], np.float32)
    assert not predicted_mask(score, 0.1).any()
    assert float(np.float32(0.1)) > 0.1


def test_diagonal_neighbours_are_one_component():
    label = grid("1000", "0100", "0010")
    frame = frame_components(label == 1, label, 0, 0)
    assert len(frame.gt) == 1
    assert frame.gt.size.tolist() == [3]


def test_limits_keep_components_of_exactly_that_size():
    label = grid("11100", "00000", "00011")
    mask = label == 1
    assert frame_components(mask, label, 3, 3).gt.size.tolist() == [3]
    assert frame_components(mask, label, 3, 2).predicted.size.tolist() == [3]
    assert frame_components(mask, label, 3, 2).gt.size.tolist() == [3, 2]


def test_prediction_on_void_is_cut_before_the_size_limit():
    label = grid("vv100", "vv000")
    mask = grid("11100", "00000") == 1
    assert len(frame_components(mask, label, 2, 0).predicted) == 0
    assert frame_components(mask, label, 1, 0).predicted.size.tolist() == [1]


def test_small_ground_truth_leaves_the_roi_with_the_predictions_on_it():
    """The one-pixel anomaly becomes void: two pixels of the prediction stay, both wrong; none is missed."""
    label = grid("0100", "0000")
    mask = grid("1110", "0000") == 1
    frame = frame_components(mask, label, 3, 2)
    assert len(frame.gt) == 0
    assert frame.predicted.size.tolist() == [2]
    assert frame.predicted.covered.tolist() == [0.0]


def test_prediction_that_lies_on_removed_ground_truth_alone_vanishes():
    label = grid("0110", "0000")
    assert len(frame_components(label == 1, label, 0, 3).predicted) == 0


def test_a_background_smaller_than_the_limit_leaves_the_roi_too():
    """Six anomalous pixels, two of background: with a limit of 3 false positives on the background vanish."""
    label = grid("1110", "1110")
    mask = np.ones((2, 4), bool)
    assert frame_components(mask, label, 0, 2).predicted.covered.tolist() == [0.75]
    assert frame_components(mask, label, 0, 3).predicted.covered.tolist() == [1.0]


def test_adjustment_spares_a_component_that_shares_its_prediction():
    """One prediction over two anomalies: I = 2, |K| = 5, |k| = 2, A = 2, so sIoU = 2 / (5 + 2 - 2 - 2)."""
    label = grid("11011", "00000")
    mask = grid("11111", "00000") == 1
    frame = frame_components(mask, label, 0, 0)
    assert frame.gt.siou == pytest.approx([2 / 3, 2 / 3])
    assert frame.predicted.siou == pytest.approx([4 / 5])
    assert frame.predicted.covered == pytest.approx([4 / 5])


def test_false_positives_count_by_ppv_not_by_siou():
    """A small prediction inside a large anomaly: sIoU_pred is 1/8 but PPV 1: missed but not false."""
    label = grid("1111", "1111")
    mask = grid("1000", "0000") == 1
    state = ComponentState()
    state.update(frame_components(mask, label, 0, 0))
    result = state.compute()
    assert result.siou_predicted == pytest.approx(1 / 8)
    assert result.false["25"] == 0
    assert result.missed["25"] == 1
    assert result.f1 == 0.0


def test_siou_at_the_threshold_counts_as_found():
    label = grid("1111")
    state = ComponentState()
    state.update(frame_components(grid("1000") == 1, label, 0, 0))
    assert state.compute().missed == {"25": 0, "50": 1, "75": 1}


def test_boxes_are_half_open():
    label = grid("0000", "0110", "0010")
    assert frame_components(label == 1, label, 0, 0).gt.boxes.tolist() == [[1, 1, 3, 3]]
    label = grid("00000", "00111")
    assert frame_components(label == 1, label, 0, 0).predicted.boxes.tolist() == [[2, 1, 5, 2]]


def test_nothing_at_all_is_null_with_a_reason():
    state = ComponentState()
    state.update(frame_components(np.zeros((3, 3), bool), np.zeros((3, 3), np.uint8)))
    result = state.compute()
    assert (result.siou, result.ppv, result.f1) == (None, None, None)
    assert set(result.reasons) == {"siou", "siou_predicted", "ppv", "f1"}


def test_missed_everything_scores_zero_and_ppv_is_null():
    state = ComponentState()
    state.update(frame_components(np.zeros((2, 2), bool), np.ones((2, 2), np.uint8), 0, 0))
    result = state.compute()
    assert (result.siou, result.f1, result.ppv) == (0.0, 0.0, None)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        frame_components(np.zeros((2, 2), bool), np.zeros((2, 3), np.uint8))
