"""Histograms on common bins, and the intervals made from them, against pixels and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t
from sklearn.metrics import average_precision_score, roc_auc_score

from anomdino.evaluation.bootstrap import (
    ImageCounts,
    ImageHistograms,
    component_values,
    intervals,
    pixel_values,
    reach,
    resamplings,
    student,
    without_each,
)
from anomdino.evaluation.histograms import common_histograms, sketch
from anomdino.metrics.curve import exact_curve
from anomdino.metrics.sorting import sort_scores


def images(kind, count=6, size=20_000):
    rng = np.random.default_rng(0)
    for index in range(count):
        label = (rng.random(size) < [0.02, 0.0, 0.1, 0.002, 0.05, 0.03][index % 6]).astype(np.uint8)
        score = rng.normal(-10 + 0.3 * index, 1, size) + 2 * label
        if kind == "ties":
            score = np.maximum(np.round(score, 1), -10)
        yield score.astype(np.float32), label


def common(data, bins=1024):
    scores = [sort_scores(*image) for image in data]
    pooled = exact_curve(
        sort_scores(np.concatenate([s for s, _ in data]), np.concatenate([label for _, label in data]))
    )
    return common_histograms([sketch(one) for one in scores], pooled.thinned(bins).thresholds)


@pytest.mark.parametrize("kind", ["smooth", "ties"])
def test_any_subset_of_images_is_pooled_closely(kind):
    data = list(images(kind))
    histograms = common(data)
    rng = np.random.default_rng(5)
    for _ in range(5):
        drawn = rng.integers(0, len(data), len(data))
        weights = np.bincount(drawn, minlength=len(data)).astype(float)[None]
        score, label = (np.concatenate([data[i][part] for i in drawn]) for part in (0, 1))
        got = pixel_values(histograms, weights)
        assert got["AP"][0] == pytest.approx(average_precision_score(label, score), abs=4e-3)
        assert got["AUROC"][0] == pytest.approx(roc_auc_score(label, score), abs=1e-3)
        exact = exact_curve(sort_scores(score, label))
        assert got["FPR95"][0] == pytest.approx(exact.fpr_at_recall(), abs=6e-3)


def test_counts_at_the_images_own_scores_are_exact_and_ties_are_steps():
    score = np.array([0.0, 0.0, 0.0, 1.0, 2.0], np.float32)
    label = np.array([0, 0, 1, 1, 0], np.uint8)
    one = sketch(sort_scores(score, label))
    np.testing.assert_array_equal(one.cumulative(np.array([2.0, 1.0, 0.0])), [[0, 1, 2], [1, 1, 3]])
    np.testing.assert_array_equal(one.cumulative(np.array([3.0, 0.5, -1.0])), [[0, 1, 2], [0, 1, 3]])


def test_an_image_of_one_score_is_a_step():
    one = sketch(sort_scores(np.full(3, 2, np.float32), np.array([0, 1, 0], np.uint8)))
    with np.errstate(all="raise"):
        counted = one.cumulative(np.array([1e30, 2.0, 1.0, -1e30]))
    np.testing.assert_array_equal(counted, [[0, 1, 1, 1], [0, 2, 2, 2]])


def test_every_pixel_is_counted_once():
    data = list(images("smooth"))
    histograms = common(data, bins=64)
    for index, (_, label) in enumerate(data):
        assert histograms.tp[index].sum() == pytest.approx((label == 1).sum())
        assert histograms.fp[index].sum() == pytest.approx((label == 0).sum())


def test_the_last_bin_takes_what_lies_below_it_too():
    score, label = np.arange(6, dtype=np.float32), np.array([0, 1, 0, 0, 1, 0], np.uint8)
    histograms = common_histograms([sketch(sort_scores(score, label))], np.array([5.0, 4.0, 3.0]))
    assert (histograms.tp.tolist(), histograms.fp.tolist()) == ([[0, 1, 1]], [[1, 0, 3]])


def test_component_values_equal_a_loop_over_drawn_images():
    rng = np.random.default_rng(2)
    found, missed, false = (rng.integers(0, 4, (5, 11)) for _ in range(3))
    missed[:, 0] += 1
    gt, predicted = (found + missed)[:, 0], rng.integers(1, 5, 5)
    counts = ImageCounts(found, missed, false, rng.random(5) * gt, rng.random(5) * predicted, predicted)
    drawn = [0, 0, 3, 4, 1]
    weights = np.bincount(drawn, minlength=5).astype(float)[None]
    got = component_values(counts, weights)
    tp, fn, fp = (sum(part[i] for i in drawn) for part in (found, missed, false))
    assert got["F1*"][0] == pytest.approx((2 * tp / (2 * tp + fn + fp)).mean())
    siou = sum(counts.siou_sum[i] for i in drawn) / sum(gt[i] for i in drawn)
    assert got["sIoU"][0] == pytest.approx(siou)
    assert got["PPV"][0] == pytest.approx(
        sum(counts.ppv_sum[i] for i in drawn) / sum(predicted[i] for i in drawn)
    )


def test_resamplings_draw_as_many_images_as_there_are():
    rows = np.concatenate(list(resamplings(7, 150, np.random.default_rng(0))))
    assert rows.shape == (150, 7)
    assert (rows.sum(axis=1) == 7).all()
    assert rows.std() > 0


@pytest.mark.parametrize("images", [10, 30])
def test_intervals_cover_the_truth_about_as_often_as_they_claim(images):
    """Sets from one population: the interval of a set holds the population's value in nearly 95 of 100 sets.

    Percentiles of the draws, the method of before, hold AP in 80 to 87 of them and FPR95 in 70 to 80.
    """
    rng = np.random.default_rng(1)
    edges, everything = np.linspace(6, -4, 60), 20_000
    gain, anomalies = rng.normal(2.2, 1, everything), 3000 * 10 ** rng.uniform(-2.5, -0.7, everything)
    tp, fp = (1 - norm.cdf(edges - np.asarray(mean)[..., None]) for mean in (gain, np.zeros(everything)))
    tp[:, -1] = fp[:, -1] = 1
    tp, fp = (np.diff(part, prepend=0.0, axis=1) for part in (tp, fp))
    tp, fp = tp * anomalies[:, None], fp * (3000 - anomalies)[:, None]

    def measured(chosen):
        some = ImageHistograms(edges, tp[chosen], fp[chosen])
        values = pixel_values(some, np.ones((1, len(chosen))))
        return some, {name: float(value[0]) for name, value in values.items()}

    _, truth = measured(np.arange(everything))
    held, sets = dict.fromkeys(truth, 0), 200
    for _ in range(sets):
        some, values = measured(rng.choice(everything, images, replace=False))
        for name, (low, high) in intervals(some, None, 200, rng, values).items():
            held[name] += low <= truth[name] <= high
            assert low <= values[name] <= high
    least = {"AP": 0.87, "AUROC": 0.85, "FPR95": 0.8}
    assert all(held[name] / sets >= share for name, share in least.items()), held
    assert held["AP"] / sets <= 0.99, held


def test_students_quantile():
    for freedom in (1, 2, 3, 4, 9, 29, 1000):
        assert student(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=2e-3)


def test_without_each_leaves_one_image_out():
    np.testing.assert_array_equal(np.concatenate(list(without_each(70))), 1 - np.eye(70))


def test_an_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(size=12)
    without = np.array([np.delete(values, index).mean() for index in range(12)])
    wanted = t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert reach(without, np.array([np.nan])) == pytest.approx(wanted, rel=2e-3)
    weights = np.concatenate(list(resamplings(12, 20_000, np.random.default_rng(1))))
    assert reach(np.zeros(12), weights @ values / 12) == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("share", [0, 1, 2, 4])
def test_images_that_are_all_alike_have_an_interval_of_one_point(share):
    found = np.full((6, 11), share)
    counts = ImageCounts(found, 4 - found, 0 * found, np.full(6, share), np.full(6, 1.0), np.full(6, 4))
    measured = {name: float(value[0]) for name, value in component_values(counts, np.ones((1, 6))).items()}
    spans = intervals(None, counts, 20, np.random.default_rng(0), measured)
    assert spans.keys() == measured.keys()
    for name, value in measured.items():
        assert spans[name] == pytest.approx((value, value), abs=1e-9)


def test_fpr95_is_taken_at_a_recall_of_exactly_95_percent():
    histograms = ImageHistograms(np.array([2.0, 1.0, 0.0]), np.array([[19.0, 1, 0]]), np.array([[3.0, 4, 3]]))
    assert pixel_values(histograms, np.ones((1, 1)))["FPR95"].tolist() == [0.3]


def test_a_metric_that_hangs_on_one_image_or_is_of_one_image_has_no_interval():
    data = list(images("smooth"))
    measured = {"AP": 0.5}
    clean = [(score, np.zeros_like(label)) for score, label in data[1:]]
    assert intervals(common([data[0], *clean]), None, 50, np.random.default_rng(0), measured) == {}
    assert intervals(common(data[:1]), None, 50, np.random.default_rng(0), measured) == {}
    assert "AP" in intervals(common(data), None, 50, np.random.default_rng(0), measured)


def test_no_interval_without_resamplings_or_value():
    data = common(list(images("smooth")))
    assert intervals(data, None, 0, np.random.default_rng(0), {"AP": 0.5}) == {}
    assert "AP" not in intervals(data, None, 10, np.random.default_rng(0), {"AP": None})
