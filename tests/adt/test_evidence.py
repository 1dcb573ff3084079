from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from anomdino.adt.evidence import features, fit, holds_object, weighed
from anomdino.adt.fusion import FusionRule, fuse
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.adt.store import load_adt
from anomdino.adt.training import train_adt
from anomdino.io.boxes import Boxes
from tests.adt.conftest import draw_scene
from tests.adt.test_training import PLAN

WEIGHING = Architecture(box_evidence=True)
STATISTICS = ScoreStatistics(-6.0, 2.0)


def net_with(weights, statistics=STATISTICS):
    net = AdtNet(WEIGHING, statistics).eval()
    net.box_weights.copy_(torch.tensor(weights))
    return net


def logit(p):
    return np.log(p / (1 - p))


def examples(count=30, seed=0):
    """Scenes with boxes on objects, boxes beside them, and confidences that say little."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        score, label, _ = draw_scene(rng, (90, 141))
        corners = rng.uniform(0, [110, 60], (6, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(8, 30, (6, 2))], 1)
        yield score, label, Boxes(boxes, rng.uniform(0.02, 0.4, 6))


def test_features_of_a_box_worked_by_hand():
    score = np.full((40, 60), -8.0, np.float32)
    score[10:20, 20:30] = np.linspace(-5, 1, 100, dtype=np.float32).reshape(10, 10)
    score[:, 31] = 4.0  # one column of the frame, which is 2 + 3 pixels wide
    boxes = Boxes(np.array([[20, 10, 30, 20], [20.6, 10.2, 29.4, 19.9]]), np.array([0.2, 0.5]))
    found = features(boxes, score, net_with([0, 1, 0, 0]))
    highest = np.percentile(np.linspace(-5, 1, 100), 98)
    frame = 20 * 20 - 10 * 10
    around = (-8.0 * (frame - 20) + 4.0 * 20) / frame
    expected = [[logit(0.2), (highest + 6) / 2, (around + 6) / 2]]
    np.testing.assert_allclose(found[:1], expected, rtol=1e-5)
    np.testing.assert_allclose(found[1, 1:], found[0, 1:], rtol=1e-6)  # a touched pixel counts


def test_a_box_over_the_whole_image_has_no_surroundings():
    score = np.random.default_rng(0).normal(-7, 2, (300, 400)).astype(np.float32)
    _, highest, around = features(
        Boxes(np.array([[0, 0, 400, 300]]), np.array([0.9])), score, net_with([0, 1, 0, 0])
    )[0]
    assert around == highest == pytest.approx((np.percentile(score, 98) + 6) / 2, abs=0.05)
    assert highest == pytest.approx(
        (np.percentile(score[::2, ::2], 98) + 6) / 2, rel=1e-6
    )  # 346 / 128 is read as 2


@given(scale=st.floats(0.1, 20), shift=st.floats(-50, 50), flipped=st.booleans())
@settings(max_examples=30, deadline=None)
def test_features_do_not_depend_on_the_scale_of_the_score(scale, shift, flipped):
    score, _, boxes = draw_scene(np.random.default_rng(1), (60, 80))
    sign = -1 if flipped else 1
    moved = (sign * (score.astype(np.float64) * scale + shift)).astype(np.float32)
    statistics = ScoreStatistics(-6.0 * scale + shift, 2.0 * scale, sign)
    keeping = [0.0, 1.0, 0.0, 0.0]
    np.testing.assert_allclose(
        features(boxes, moved, net_with(keeping, statistics)),
        features(boxes, score, net_with(keeping)),
        atol=1e-3,
    )


def test_the_weights_are_those_of_scikit_learn():
    net = net_with([0.0, 1.0, 0.0, 0.0])
    found = fit(examples(), net)
    inputs, held = (
        np.concatenate(parts)
        for parts in zip(*((features(b, s, net), holds_object(b, y)) for s, y, b in examples()), strict=True)
    )
    assert 20 < held.sum() < 150
    reference = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000).fit(inputs, held)
    np.testing.assert_allclose(found, [*reference.intercept_, *reference.coef_[0]], rtol=1e-4, atol=1e-5)
    net.box_weights.copy_(torch.from_numpy(found))
    given = np.concatenate([weighed(b, s, net).scores for s, _, b in examples()])
    np.testing.assert_allclose(given, reference.predict_proba(inputs)[:, 1], atol=1e-4)


def test_boxes_hold_an_object_as_counted_slowly():
    rng = np.random.default_rng(3)
    label = np.zeros((50, 70), np.uint8)
    objects = [(5, 5, 15, 12), (40, 20, 44, 45)]
    for x0, y0, x1, y1 in objects:
        label[y0:y1, x0:x1] = 1
    corners = rng.uniform(0, 40, (200, 2))
    boxes = Boxes(np.concatenate([corners, corners + rng.uniform(2, 30, (200, 2))], 1), np.full(200, 0.5))

    def overlap(box, other):
        shared = max(0, min(box[2], other[2]) - max(box[0], other[0])) * max(
            0, min(box[3], other[3]) - max(box[1], other[1])
        )
        return shared / (
            (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared
        )

    expected = [
        max(overlap(box, other) for other in objects) >= 0.1 for box in boxes.xyxy.astype(float).tolist()
    ]
    assert 0 < sum(expected) < 200
    assert holds_object(boxes, label).tolist() == expected
    assert not holds_object(boxes, np.zeros_like(label)).any()


def test_boxes_that_do_not_tell_leave_the_confidences_alone():
    scenes = list(examples(4))
    net = net_with([0.0, 1.0, 0.0, 0.0])
    assert fit([(s, np.zeros_like(y), b) for s, y, b in scenes], net) is None
    assert fit([(s, y, Boxes.empty()) for s, y, _ in scenes], net) is None
    assert fit([], net) is None
    assert fit([(s, np.full_like(y, 255), b) for s, y, b in scenes], net) is None  # void teaches nothing
    score, _, boxes = scenes[0]
    np.testing.assert_allclose(weighed(boxes, score, net).scores, boxes.scores, rtol=1e-5)
    without = AdtNet(Architecture(), STATISTICS)
    assert weighed(boxes, score, without) is boxes


def test_confidences_that_are_0_or_1_and_separable_examples_stay_finite():
    score = np.full((30, 60), -9.0, np.float32)
    label = np.zeros((30, 60), np.uint8)
    label[5:15, 5:15], score[5:15, 5:15] = 1, 3.0
    boxes = Boxes(np.array([[5, 5, 15, 15], [40, 10, 50, 20]]), np.array([1.0, 0.0]))
    found = fit([(score, label, boxes)] * 5, net_with([0.0, 1.0, 0.0, 0.0]))
    assert np.isfinite(found).all()
    extreme = weighed(boxes, score * np.float32(1e6), net_with([0.0, 1.0, 5.0, 1.0])).scores
    np.testing.assert_allclose(extreme, [1, 0], atol=1e-6)
    first, second = weighed(boxes, score, net_with(found.tolist())).scores
    assert first > 0.9
    assert second < 0.1


def test_training_fits_stores_and_uses_the_weights(make_set, tmp_path):
    plan = replace(PLAN, architecture=WEIGHING, auto_box_score=True)
    model = train_adt(make_set(images=16), plan, tmp_path / "adt", seed=1)
    assert not np.allclose(model.net.box_weights.numpy(), [0, 1, 0, 0])
    stored = load_adt(tmp_path / "adt")
    assert torch.equal(stored.net.box_weights, model.net.box_weights)
    score, _, boxes = draw_scene(np.random.default_rng(9), (64, 96))
    rule = FusionRule(box_score=0.0)
    fused = fuse(score, boxes, stored, rule)
    expected = weighed(boxes.clipped(score.shape), score, stored.net)
    np.testing.assert_array_equal(fused.boxes.scores, expected.scores)
    assert expected.scores[0] > expected.scores[1]  # the first box lies on an object
    strict = FusionRule(box_score=float(expected.scores.mean()))
    assert len(fuse(score, boxes, stored, strict).boxes) == 1


def test_the_same_seed_gives_the_same_weights(make_set, tmp_path):
    plan = replace(PLAN, architecture=WEIGHING, epochs=1)
    files = make_set()
    for name in ("a", "b"):
        train_adt(files, plan, tmp_path / name, seed=4)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_the_frame_reaches_the_last_column_of_a_wide_image():
    score = np.zeros((20, 60), np.float32)
    score[:, 50:] = 7.0
    net = net_with([0, 1, 0, 0], ScoreStatistics(0.0, 1.0))
    around = features(Boxes(np.array([[40, 4, 50, 16]]), np.array([0.5])), score, net)[0, 2]
    frame = np.zeros(score.shape, bool)
    frame[:, 35:55] = (
        True  # a quarter and three pixels: 5 at the sides, 6 above and below, cut off at the border
    )
    frame[4:16, 40:50] = False
    assert around == pytest.approx(score[frame].mean(), rel=1e-6)


def test_a_box_teaches_unless_more_than_half_of_it_is_void():
    net = net_with([0, 1, 0, 0])
    found = {}
    for void in (0, 4, 6):  # tenths of the box at the left
        given = []
        for score, label, boxes in examples(8):
            label[40:60, 40 : 40 + 4 * void] = 255
            label[40:60, 40 + 4 * void : 80] = 0
            extra = Boxes(np.array([[40, 40, 80, 60]]), np.array([0.9]))
            both = Boxes(
                np.concatenate([boxes.xyxy, extra.xyxy]), np.concatenate([boxes.scores, extra.scores])
            )
            given.append((score, label, boxes, both))
        alone, more = (fit([(s, y, g[k]) for g in given for s, y in [g[:2]]], net) for k in (2, 3))
        found[void] = np.abs(alone - more).max()
    assert found[0] > 1e-3
    assert found[4] > 1e-3
    assert found[6] == 0
