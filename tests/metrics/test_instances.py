"""Instance AP worked by hand, and against a slow matcher."""

from __future__ import annotations

import numpy as np
import pytest

from anomdino.metrics.instances import InstanceState, components_as_instances


def ids(*rows):
    return np.array([[int(mark) for mark in row] for row in rows])


def ap(instances, predicted, confidence, void=None, min_gt=0):
    state = InstanceState(min_gt)
    void = np.zeros(instances.shape, bool) if void is None else void
    state.update(instances, void, predicted, np.array(confidence))
    return state.compute()


def test_perfect_instances():
    instances = ids("1100220", "1100220")
    result = ap(instances, instances, [0.9, 0.8])
    assert (result.ap, result.ap50, result.instances, result.predictions) == (1.0, 1.0, 2, 2)


def test_one_component_over_several_instances_finds_one_at_most():
    assert ap(ids("11122"), ids("11111"), [0.9]).ap50 == pytest.approx(51 / 101)
    assert ap(ids("112233"), ids("111111"), [0.9]).ap == 0.0


def test_iou_of_two_thirds_counts_at_four_of_ten_thresholds():
    """IoU 4/6: right at 0.50, 0.55, 0.60 and 0.65."""
    result = ap(ids("111111"), ids("111100"), [0.9])
    assert result.ap50 == pytest.approx(1.0)
    assert result.ap == pytest.approx(0.4)


def test_a_surer_false_instance_halves_the_precision():
    result = ap(ids("1100000"), ids("1100220"), [0.5, 0.9])
    assert result.ap50 == pytest.approx(0.5)
    assert ap(ids("1100000"), ids("1100220"), [0.9, 0.5]).ap50 == pytest.approx(1.0)


def test_prediction_on_void_is_ignored():
    void = ids("0000111") == 1
    assert ap(ids("1100000"), ids("1100220"), [0.5, 0.9], void).ap50 == pytest.approx(1.0)


def test_what_of_an_instance_lies_on_void_does_not_count():
    void = ids("0011000") == 1
    assert ap(ids("1111000"), ids("1100000"), [0.5], void).ap == pytest.approx(1.0)


def test_small_instances_are_ignored_and_not_missed():
    instances, predicted = ids("1100200"), ids("1100200")
    result = ap(instances, predicted, [0.5, 0.9], min_gt=2)
    assert (result.instances, result.ap50) == (1, pytest.approx(1.0))
    assert ap(instances, ids("1100000"), [0.5], min_gt=2).ap50 == pytest.approx(1.0)


def test_nothing_there_is_null_and_nothing_found_is_zero():
    nothing = ids("000")
    assert ap(nothing, nothing, []).ap is None
    assert ap(nothing, nothing, []).reasons["ap"]
    assert ap(ids("110"), nothing, []).ap == 0.0


def slow_ap50(images):
    """Greedy matching by confidence; interpolated precision at 101 recall levels."""
    found, total = [], 0
    for instances, predicted, confidence in images:
        truth = [instances == k for k in np.unique(instances[instances > 0])]
        total += len(truth)
        free = set(range(len(truth)))
        for j in np.argsort(-np.asarray(confidence), kind="stable"):
            mask = predicted == j + 1
            ious = {k: (mask & truth[k]).sum() / (mask | truth[k]).sum() for k in free}
            best = max(ious, key=ious.get, default=None)
            right = best is not None and ious[best] >= 0.5
            if right:
                free.remove(best)
            found.append((confidence[j], right))
    found.sort(key=lambda pair: -pair[0])
    right = np.cumsum([hit for _, hit in found])
    precision, recall = right / np.arange(1, len(found) + 1), right / total
    levels = np.linspace(0, 1, 101)
    return np.mean([precision[recall >= level].max(initial=0.0) for level in levels])


def test_agrees_with_a_slow_matcher():
    rng = np.random.default_rng(0)
    images, state = [], InstanceState()
    for _ in range(8):
        instances, predicted = np.zeros((30, 40), int), np.zeros((30, 40), int)
        for k in range(4):
            y, x = 7 * k, int(rng.integers(0, 20))
            instances[y : y + 5, x : x + 12] = k + 1
            shift = int(rng.integers(0, 8))
            predicted[y : y + 5, x + shift : x + shift + 12] = k + 1
        confidence = rng.permutation(100)[:4] / 100 + rng.random(4) / 1000
        images.append((instances, predicted, confidence))
        state.update(instances, np.zeros((30, 40), bool), predicted, confidence)
    assert state.compute().ap50 == pytest.approx(slow_ap50(images), abs=1e-9)


def test_components_become_instances_with_their_mean_score():
    mask = ids("1100110", "0000000", "1000000") == 1
    score = np.arange(21.0).reshape(3, 7)
    numbers, confidence = components_as_instances(mask, score, min_pixels=2)
    np.testing.assert_array_equal(numbers, ids("1100220", "0000000", "0000000"))
    assert confidence.tolist() == [0.5, 4.5]


def test_merge_adds_images():
    one, two, both = InstanceState(), InstanceState(), InstanceState()
    void = np.zeros((1, 6), bool)
    for state, predicted in ((one, ids("110000")), (two, ids("000110"))):
        for target in (state, both):
            target.update(ids("110000"), void, predicted, np.array([0.5]))
    one.merge(two)
    assert one.compute() == both.compute()
