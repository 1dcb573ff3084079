"""Exact pixel metrics against scikit-learn and numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from anomdino.metrics.curve import Curve, exact_curve, positive_curve, rank_auroc
from anomdino.metrics.sorting import SortedScores, sort_scores


def slow_fpr95_closest(score, label):
    """RPL's rule, point by point: distinct scores downwards until full recall, then the closest recall."""
    positives, negatives = (label == 1).sum(), (label == 0).sum()
    points = []
    for threshold in sorted(set(score.tolist()), reverse=True):
        predicted = score >= threshold
        points.append(
            ((predicted & (label == 1)).sum() / positives, (predicted & (label == 0)).sum() / negatives)
        )
        if points[-1][0] == 1.0:
            break
    best = min(reversed(points), key=lambda point: abs(point[0] - 0.95))
    return best[1]


@st.composite
def scored_pixels(draw):
    size = draw(st.integers(2, 60))
    levels = draw(st.sampled_from([2, 4, 1000]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    score = (rng.integers(0, levels, size) / levels - 10).astype(np.float32)
    label = rng.choice(np.array([0, 1, 255], np.uint8), size, p=[0.6, 0.3, 0.1])
    label[:2] = 0, 1
    return score, label


@given(scored_pixels())
@settings(max_examples=150, deadline=None)
def test_agrees_with_scikit_learn_ties_included(pixels):
    score, label = pixels
    valid = label != 255
    truth, value = label[valid], score[valid]
    metrics = exact_curve(sort_scores(score, label)).metrics()
    assert metrics.ap == pytest.approx(average_precision_score(truth, value), abs=1e-9)
    assert metrics.auroc == pytest.approx(roc_auc_score(truth, value), abs=1e-9)
    fpr, tpr, _ = roc_curve(truth, value, drop_intermediate=False)
    assert metrics.fpr95 == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-9)
    precision, recall, thresholds = precision_recall_curve(truth, value)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert metrics.best_f1 == pytest.approx(f1.max(), abs=1e-9)
    top = thresholds[np.flatnonzero(np.isclose(f1[:-1], f1.max(), rtol=0, atol=1e-12)).max()]
    assert metrics.best_f1_threshold == pytest.approx(top)


@given(scored_pixels())
@settings(max_examples=150, deadline=None)
def test_fast_paths_equal_the_full_curve(pixels):
    scores = sort_scores(*pixels)
    full, fast = exact_curve(scores), positive_curve(scores)
    assert fast.average_precision() == pytest.approx(full.average_precision(), abs=1e-12)
    assert fast.fpr_at_recall() == full.fpr_at_recall()
    assert fast.best_f1() == pytest.approx(full.best_f1())
    assert rank_auroc(scores) == pytest.approx(full.area_under_roc(), abs=1e-12)


@given(scored_pixels())
@settings(max_examples=150, deadline=None)
def test_rpl_takes_the_recall_closest_to_95_percent(pixels):
    score, label = pixels
    assert exact_curve(sort_scores(score, label)).fpr_at_recall("closest") == pytest.approx(
        slow_fpr95_closest(score, label), abs=1e-12
    )


def test_the_rules_for_fpr95_differ_by_hand():
    """16 anomalies: recall 15/16 = 0.9375 is closest to 0.95, while the first recall >= 0.95 is 16/16.

    At the last anomaly's score, 0.5, an inlier is tied; one inlier lies above, at 1.0, and one below.
    """
    score = np.array([2.0] * 15 + [0.5] + [1.0, 0.5, 0.1], np.float32)
    label = np.array([1] * 16 + [0] * 3, np.uint8)
    curve = exact_curve(sort_scores(score, label))
    assert curve.fpr_at_recall("first") == pytest.approx(2 / 3)
    assert curve.fpr_at_recall("closest") == pytest.approx(1 / 3)


def test_constant_score_gives_prevalence():
    label = np.array([1, 0, 0, 0], np.uint8)
    metrics = exact_curve(sort_scores(np.zeros(4, np.float32), label)).metrics()
    assert (metrics.ap, metrics.auroc, metrics.fpr95) == (0.25, 0.5, 1.0)


@pytest.mark.parametrize(("only", "word"), [(0, "anomalous"), (1, "in-distribution"), (255, "anomalous")])
def test_one_class_gives_null_with_a_reason(only, word):
    metrics = exact_curve(sort_scores(np.arange(3, dtype=np.float32), np.full(3, only, np.uint8))).metrics()
    assert metrics.ap is None
    assert metrics.auroc is None
    assert metrics.fpr95 is None
    assert word in metrics.reasons["ap"]


def test_nan_is_refused_inside_the_roi_and_ignored_outside():
    score = np.array([0.0, 1.0, np.nan], np.float32)
    sort_scores(score, np.array([0, 1, 255], np.uint8))
    with pytest.raises(ValueError, match="NaN"):
        sort_scores(score, np.array([0, 1, 1], np.uint8))
    with pytest.raises(ValueError, match="shape"):
        sort_scores(score, np.zeros(4, np.uint8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("label", [0, 1])
def test_infinity_of_either_sign_is_refused_in_either_class(value, label):
    score = np.array([0, value, 1], np.float32)
    with pytest.raises(ValueError, match="infinity"):
        sort_scores(score, np.full(3, label, np.uint8))


def test_precision_is_one_where_nothing_is_predicted():
    curve = Curve(np.array([2.0, 1.0]), np.array([0, 3]), np.array([0, 1]), 4, 5)
    assert curve.precision.tolist() == [1.0, 0.75]
    assert curve.fpr_at_recall() == 1.0  # recall stays at 0.75


def test_thinned_curve_keeps_ends_and_best_f1():
    rng = np.random.default_rng(0)
    label = (rng.random(20_000) < 0.02).astype(np.uint8)
    curve = exact_curve(sort_scores((rng.normal(size=20_000) + 2 * label).astype(np.float32), label))
    thin = curve.thinned(128)
    assert len(thin.thresholds) <= 130
    assert thin.best_f1() == curve.best_f1()
    assert (thin.tp[-1], thin.fp[-1]) == (curve.positives, curve.negatives)
    assert thin.average_precision() == pytest.approx(curve.average_precision(), abs=0.02)


def test_parts_of_a_frame_merge_to_the_frame():
    rng = np.random.default_rng(0)
    score, label = rng.integers(-20, 20, (40, 30)).astype(np.float32), rng.choice([0, 1, 255], (40, 30))
    whole = sort_scores(score, label)
    merged = SortedScores.merged([sort_scores(score[rows], label[rows]) for rows in (slice(9), slice(9, 40))])
    np.testing.assert_array_equal(merged.positives, whole.positives)
    np.testing.assert_array_equal(merged.negatives, whole.negatives)
