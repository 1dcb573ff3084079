import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, roc_curve

from anomdino.adt.histogram import ScoreHistogram, bin_edge, score_bins
from anomdino.errors import DataError


def sample(seed=0, count=4000, shift=1.0):
    rng = np.random.default_rng(seed)
    label = (rng.random(count) < 0.1).astype(np.uint8)
    score = (rng.normal(size=count) * 3 + shift * label * 3 - 7).astype(np.float32)
    return score, label


@given(arrays(np.float32, 50, elements=st.floats(-(2.0**99), 2.0**99, width=32)), st.integers(8, 20))
@settings(deadline=None)
def test_bins_follow_the_order_and_edges_are_their_least_value(scores, bits):
    scores = np.sort(scores)
    bins = score_bins(scores, bits)
    assert (np.diff(bins.astype(np.int64)) >= 0).all()
    for score, index in zip(scores, bins, strict=True):
        edge = bin_edge(int(index), bits)
        assert edge <= score
        assert score_bins(np.array([edge]), bits)[0] == index


def test_measures_against_sklearn():
    score, label = sample()
    histogram = ScoreHistogram(bits=22)
    for part in np.array_split(np.arange(len(score)), 7):
        histogram.add(score[part], label[part])
    assert histogram.average_precision() == pytest.approx(average_precision_score(label, score), abs=1e-3)
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    assert histogram.fpr_at_recall() == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=2e-3)


def test_best_f1_against_every_threshold():
    score, label = sample(shift=2)
    histogram = ScoreHistogram(bits=22)
    histogram.add(score, label)
    f1, threshold = histogram.best_f1()

    def f1_at(t):
        predicted = score >= t
        return 2 * (predicted & (label == 1)).sum() / (predicted.sum() + (label == 1).sum())

    assert f1_at(threshold) == pytest.approx(f1, abs=1e-12)
    assert f1 == pytest.approx(max(f1_at(t) for t in score), abs=1e-3)


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5])
def test_threshold_at_fpr_keeps_the_rate_and_wastes_little(rate):
    score, label = sample()
    histogram = ScoreHistogram(bits=22)
    histogram.add(score, label)
    reached = (score[label == 0] >= np.float32(histogram.threshold_at_fpr(rate))).mean()
    assert rate - 0.003 <= reached <= rate


def test_void_is_left_out_and_merging_adds():
    score, label = sample()
    void = label.copy()
    void[::3] = 255
    first, second = ScoreHistogram(16), ScoreHistogram(16)
    first.add(score, void)
    second.add(score[::3], label[::3])
    whole = ScoreHistogram(16)
    whole.add(score, label)
    merged = first.merge(second)
    np.testing.assert_array_equal(merged.positive, whole.positive)
    np.testing.assert_array_equal(merged.negative, whole.negative)


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_is_refused(value):
    histogram = ScoreHistogram(16)
    histogram.add(np.arange(5, dtype=np.float32), np.full(5, value, np.uint8))
    with pytest.raises(DataError, match="there is no"):
        histogram.average_precision()


def test_a_rate_that_is_met_exactly_is_met():
    histogram = ScoreHistogram(16)
    histogram.add(np.array([4, 3, 2, 1, 5], np.float32), np.array([0, 0, 0, 0, 1], np.uint8))
    threshold = histogram.threshold_at_fpr(0.5)
    assert 2 < threshold <= 3
