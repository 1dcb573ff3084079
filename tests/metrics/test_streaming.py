"""The streaming summary against the full sort, on distributions made to hurt it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomdino.metrics.curve import exact_curve
from anomdino.metrics.sorting import sort_scores
from anomdino.metrics.streaming import StreamingPixels


def energies(rng, size):
    label = (rng.random(size) < 0.01).astype(np.uint8)
    return rng.normal(-10, 0.3, size) + 0.6 * label, label


def heavy_ties(rng, size):
    label = (rng.random(size) < 0.1).astype(np.uint8)
    return rng.integers(0, 7, size) + 2.0 * label, label


def tiny_rate(rng, size):
    label = np.zeros(size, np.uint8)
    label[rng.integers(0, size, 12)] = 1
    return rng.normal(size=size) + 3.5 * label, label


def mostly_anomalous(rng, size):
    label = (rng.random(size) < 0.98).astype(np.uint8)
    return rng.normal(size=size) + 1.0 * label, label


def many_magnitudes(rng, size):
    label = (rng.random(size) < 0.05).astype(np.uint8)
    return 10.0 ** rng.uniform(-30, 30, size) * rng.choice([-1, 1], size) * (1 + label), label


def narrow(rng, size):
    """All scores within a thousand neighbouring floats near -10, and tied clumps."""
    label = (rng.random(size) < 0.03).astype(np.uint8)
    steps = rng.integers(0, 1000, size) + 200 * label
    return np.float32(-10) + steps * np.spacing(np.float32(10)), label


def drifting(rng, size):
    """Frames move upwards, so that what is merged early is not where later frames need it."""
    score, label = energies(rng, size)
    drifting.offset = getattr(drifting, "offset", 0.0) + 0.4
    return score + drifting.offset, label


DISTRIBUTIONS = [energies, heavy_ties, tiny_rate, mostly_anomalous, many_magnitudes, narrow, drifting]


def streamed(make, frames, size, capacity, buffer=1 << 14):
    rng = np.random.default_rng(0)
    drifting.offset = 0.0
    state, scores, labels = StreamingPixels(capacity, buffer), [], []
    for _ in range(frames):
        score, label = make(rng, size)
        score = score.astype(np.float32)
        state.update(score, label)
        scores.append(score)
        labels.append(label)
    return state, exact_curve(sort_scores(np.concatenate(scores), np.concatenate(labels)))


@pytest.mark.parametrize("make", DISTRIBUTIONS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("rule", ["first", "closest"])
def test_exact_below_its_capacity(make, rule):
    state, curve = streamed(make, 4, 5_000, capacity=1 << 20)
    assert state.exact
    got, expected = state.compute(rule), curve.metrics(rule)
    assert got.ap_error == got.fpr95_error == 0.0
    assert (got.ap, got.auroc, got.fpr95) == pytest.approx(
        (expected.ap, expected.auroc, expected.fpr95), abs=1e-12
    )
    assert got.best_f1_threshold == expected.best_f1_threshold


@pytest.mark.parametrize("make", DISTRIBUTIONS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("rule", ["first", "closest"])
@pytest.mark.parametrize("capacity", [64, 1024])
def test_the_reported_bound_holds_far_above_its_capacity(make, rule, capacity):
    state, curve = streamed(make, 12, 5_000, capacity)
    got, expected = state.compute(rule), curve.metrics(rule)
    assert len(state.curve().thresholds) <= capacity
    assert abs(got.ap - expected.ap) <= got.ap_error + 1e-12
    assert abs(got.fpr95 - expected.fpr95) <= got.fpr95_error + 1e-12
    assert abs(got.auroc - expected.auroc) <= got.auroc_error + 1e-12
    assert (got.positives, got.negatives) == (expected.positives, expected.negatives)


@pytest.mark.parametrize("make", DISTRIBUTIONS, ids=lambda make: make.__name__)
def test_close_to_the_full_sort_with_a_fifth_of_the_distinct_scores(make):
    """500,000 pixels in 100,000 intervals."""
    state, curve = streamed(make, 10, 50_000, capacity=100_000, buffer=1 << 16)
    got, expected = state.compute(), curve.metrics()
    assert abs(got.ap - expected.ap) <= 2e-6
    assert abs(got.fpr95 - expected.fpr95) <= min(2e-5, got.fpr95_error + 1e-12)
    assert abs(got.auroc - expected.auroc) <= min(1e-5, got.auroc_error + 1e-12)


@given(st.integers(0, 1000), st.sampled_from([16, 200, 10_000]))
@settings(max_examples=40, deadline=None)
def test_merging_shards_keeps_counts_and_bounds(seed, capacity):
    rng = np.random.default_rng(seed)
    whole = [energies(rng, 400) for _ in range(6)]
    left, right = StreamingPixels(capacity, 500), StreamingPixels(capacity, 500)
    for index, (score, label) in enumerate(whole):
        (left if index % 2 else right).update(score.astype(np.float32), label)
    before = right.compute()
    left.merge(right)
    assert right.compute() == before
    label = np.concatenate([label for _, label in whole])
    score = np.concatenate([score for score, _ in whole]).astype(np.float32)
    expected = exact_curve(sort_scores(score, label)).metrics()
    got = left.compute()
    assert (got.positives, got.negatives) == (expected.positives, expected.negatives)
    assert abs(got.ap - expected.ap) <= got.ap_error + 1e-12
    assert abs(got.fpr95 - expected.fpr95) <= got.fpr95_error + 1e-12


def test_every_operating_point_is_exact_even_when_merged():
    state, curve = streamed(energies, 6, 5_000, capacity=256)
    for threshold, tp, fp in zip(
        *(getattr(state.curve(), name) for name in ("thresholds", "tp", "fp")), strict=True
    ):
        index = np.searchsorted(-curve.thresholds, -threshold, side="right") - 1
        assert (curve.tp[index], curve.fp[index]) == (tp, fp)


@pytest.mark.parametrize("capacity", [1, 2, 5])
@pytest.mark.parametrize("order", ["worst", "best", "mixed"])
@pytest.mark.parametrize(("anomalies", "others"), [(180, 20), (20, 180), (1, 50), (50, 1), (97, 3)])
def test_bounds_hold_for_the_least_lucky_orders(capacity, order, anomalies, others):
    """Everything in few intervals, in which all anomalies lie below, or above, all other pixels."""
    label = np.repeat([1, 0], [anomalies, others]).astype(np.uint8)
    if order == "worst":
        score = np.arange(len(label), dtype=np.float32)
    elif order == "best":
        score = -np.arange(len(label), dtype=np.float32)
    else:
        score = np.random.default_rng(anomalies).permutation(len(label)).astype(np.float32)
    state = StreamingPixels(capacity)
    state.update(score, label)
    for rule in ("first", "closest"):
        got, exact = state.compute(rule), exact_curve(sort_scores(score, label)).metrics(rule)
        for name in ("ap", "auroc", "fpr95"):
            assert abs(getattr(got, name) - getattr(exact, name)) <= getattr(got, f"{name}_error") + 1e-12


def test_negative_zero_ties_with_zero():
    state = StreamingPixels()
    state.update(np.array([0.0, -0.0], np.float32), np.array([1, 0], np.uint8))
    assert state.compute().ap == 0.5


def test_empty_state_is_null_with_a_reason():
    assert StreamingPixels().compute().reasons["ap"]
