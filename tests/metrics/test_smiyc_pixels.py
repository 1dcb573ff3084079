"""SMIYC's pixel protocol against a slow transcript of the specification's words."""

from __future__ import annotations

import numpy as np
import pytest

from anomdino.metrics.curve import exact_curve
from anomdino.metrics.smiyc import SmiycPixels
from anomdino.metrics.sorting import sort_scores


def specified(frames):
    """Reference d.2, with numpy's own quantile and histogram."""
    points, lower_edges, positives, negatives = [], [], 0, 0
    for score, label in frames:
        roi = label < 255
        value, truth = score[roi], label[roi] != 0
        pos, neg = value[truth], value[~truth]
        eps = max(0.01 * (value.max() - value.min()), 0.01)
        edges = [np.array([value.min() - eps, value.max() + eps])]
        parts = [part for part in (pos, neg) if part.size]
        edges += [np.quantile(part, np.linspace(0, 1, min(384, part.size))) for part in parts]
        edges = np.unique(np.concatenate(edges))
        tp, _ = np.histogram(pos, edges)
        fp, _ = np.histogram(neg, edges)
        points += [(float(edges[i]), int(tp[i]), int(fp[i])) for i in reversed(range(len(tp)))]
        lower_edges.append(edges[:-1][::-1])
        positives, negatives = positives + pos.size, negatives + neg.size
    points = [points[i] for i in np.argsort(np.concatenate(lower_edges))[::-1]]
    cumulative, total_tp, total_fp = [], 0, 0
    for threshold, tp, fp in points:
        total_tp, total_fp = total_tp + tp, total_fp + fp
        cumulative.append((threshold, total_tp, total_fp))
    kept = [
        point
        for index, point in enumerate(cumulative)
        if index in {0, len(cumulative) - 1} or point[0] != cumulative[index + 1][0]
    ]
    if kept[0][1] or kept[0][2]:
        kept.insert(0, (kept[0][0] + 1, 0, 0))
    ap = auroc = best = 0.0
    fpr95, best_threshold = None, None
    previous = (0.0, 0.0)
    for threshold, tp, fp in kept:
        recall, fpr = tp / positives, fp / negatives
        ap += (recall - previous[0]) * (tp / (tp + fp) if tp + fp else 1.0)
        auroc += (fpr - previous[1]) * (recall + previous[0]) / 2
        f1 = 2 * tp / (2 * tp + fp + positives - tp)
        if best_threshold is None or f1 > best:
            best, best_threshold = f1, threshold
        if fpr95 is None and recall >= 0.95:
            fpr95 = fpr
        previous = (recall, fpr)
    return ap, auroc, 1.0 if fpr95 is None else fpr95, best, best_threshold


def frames(seed, count=4, dtype=np.float32, size=4000, rate=0.05, decimals=None):
    rng = np.random.default_rng(seed)
    for index in range(count):
        label = rng.choice(np.array([0, 1, 255], np.uint8), size, p=[0.8 - rate, rate, 0.2])
        score = rng.normal(-10 + index * 0.1, 1, size) + 1.5 * (label == 1)
        if decimals is not None:
            score = score.round(decimals)
        yield score.astype(dtype), label


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decimals": 1},
        {"rate": 0.002},
        {"size": 60},
        {"dtype": np.float16},
        {"dtype": np.float64},
        {"decimals": 0},
    ],
    ids=str,
)
def test_equals_the_specification(seed, options):
    data = list(frames(seed, **options))
    state = SmiycPixels()
    for score, label in data:
        state.update(score, label)
    got = state.compute()
    expected = specified(data)
    assert (got.ap, got.auroc, got.fpr95, got.best_f1, got.best_f1_threshold) == pytest.approx(
        expected, abs=1e-9
    )


def test_merge_equals_one_state():
    data = list(frames(7))
    whole, left, right = SmiycPixels(), SmiycPixels(), SmiycPixels()
    for index, (score, label) in enumerate(data):
        whole.update(score, label)
        (left if index < 2 else right).update(score, label)
    left.merge(right)
    assert left.compute() == whole.compute()


def test_is_an_approximation_of_the_exact_curve():
    score, label = next(frames(3, size=40_000))
    state = SmiycPixels()
    state.update(score, label)
    exact = exact_curve(sort_scores(score, label)).average_precision()
    assert state.compute().ap == pytest.approx(exact, abs=0.01)
    assert state.compute().ap != exact


def test_frame_of_one_class_counts_in_the_pool():
    label = np.zeros(100, np.uint8)
    score = np.linspace(0, 1, 100, dtype=np.float32)
    mixed = label.copy()
    mixed[90:] = 1
    state = SmiycPixels()
    state.update(score, label)
    state.update(score, mixed)
    assert (state.compute().positives, state.compute().negatives) == (10, 190)


def test_empty_roi_is_refused():
    with pytest.raises(ValueError, match="region of interest is empty"):
        SmiycPixels().update(np.zeros(4, np.float32), np.full(4, 255, np.uint8))
    with pytest.raises(ValueError, match="no frame"):
        SmiycPixels().compute()


@pytest.mark.parametrize("value", [1e6, -3e5, 40, 1e15, 3e38])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_constant_frame_counts_however_large_its_score(value, dtype):
    """In the scores' precision the margin of 0.01 around such a score is lost, and with it every bin."""
    if dtype is np.float16 and abs(value) > 6e4:
        pytest.skip("beyond float16")
    rng = np.random.default_rng(0)
    label = (rng.random(500) < 0.1).astype(np.uint8)
    constant = np.full(500, value, dtype)
    alone = SmiycPixels()
    alone.update(constant, label)
    measured = alone.compute()
    assert (measured.positives, measured.negatives) == (label.sum(), 500 - label.sum())
    assert measured.ap == pytest.approx(label.mean())
    assert measured.auroc == 0.5
    both, other = SmiycPixels(), np.linspace(-1, 1, 500).astype(dtype)
    both.update(constant, label)
    both.update(other, label)
    expected = exact_curve(sort_scores(np.concatenate([constant, other]), np.tile(label, 2))).metrics()
    assert both.compute().positives == expected.positives
    assert both.compute().auroc == pytest.approx(expected.auroc, abs=0.02)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("ends", ["lowest", "highest", "both", "span"])
def test_scores_at_the_ends_of_their_precision_have_finite_edges(dtype, ends):
    """A method may fill pixels without a score with the smallest float; the margin below it is none of this precision."""
    rng, limits = np.random.default_rng(0), np.finfo(dtype)
    label = (rng.random(400) < 0.2).astype(np.uint8)
    score = rng.normal(size=400) + label
    if ends == "span":
        score *= 0.99 * float(limits.max) / np.abs(score).max()
    score = score.astype(dtype)
    if ends in {"lowest", "both"}:
        score[:40] = limits.min
    if ends in {"highest", "both"}:
        score[40:45] = limits.max
    state = SmiycPixels()
    with np.errstate(all="raise", under="ignore"):
        state.update(score, label)
        curve = state.curve()
    assert np.isfinite(curve.thresholds).all()
    exact = exact_curve(sort_scores(score, label)).metrics()
    measured = curve.metrics()
    assert measured.ap == pytest.approx(exact.ap, abs=0.02)
    assert measured.best_f1 == pytest.approx(exact.best_f1, abs=0.01)
    assert (measured.positives, measured.negatives) == (exact.positives, exact.negatives)


def test_scores_beyond_the_reach_of_float64_are_refused():
    score = np.array([-1.7e308, 1.7e308, 0, 1])
    with pytest.raises(ValueError, match=r"-1.7e\+308 to 1.7e\+308"):
        SmiycPixels().update(score, np.array([0, 1, 0, 1], np.uint8))
