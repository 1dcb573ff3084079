from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import ndimage

from anomdino.adt.fusion import FusionRule, fuse
from anomdino.adt.thresholds import Threshold, ThresholdCalibration, ThresholdKind, component_scores
from anomdino.errors import ConfigError, DataError

BITS = 14


def draw_image(rng):
    """An image of its own difficulty: scores of background and of a few components shift together."""
    label = np.zeros((20, 40), np.uint8)
    for column in range(int(rng.integers(1, 4))):
        label[4:9, 3 + 12 * column : 9 + 12 * column] = 1
    label[:2] = 255
    score = rng.normal(size=label.shape) + rng.normal() + (label == 1) * rng.normal(2.5, 1)
    return np.exp(0.3 * score).astype(np.float32), label


def missed_share(mask, label):
    components, count = ndimage.label(label == 1, np.ones((3, 3)))
    found = ndimage.mean(mask, components, range(1, count + 1))
    return np.mean(found < 0.25)


def false_positive_share(mask, label):
    return np.mean(mask[label == 0])


@pytest.mark.parametrize(
    ("kind", "loss", "rate", "min_component"),
    [
        ("conformal", false_positive_share, 0.05, 0),
        ("conformal", false_positive_share, 0.2, 0),
        ("conformal_miss", missed_share, 0.1, 0),
        ("conformal_miss", missed_share, 0.1, 24),
    ],
)
def test_conformal_guarantee_by_simulation(kind, loss, rate, min_component):
    """Over many calibration sets, the loss of a new exchangeable image's mask is at most the rate on average.

    A rule that removes components below 24 pixels breaks no promise: the objects have 30, a quarter of which finds one.
    """
    rng = np.random.default_rng(2)
    losses = []
    for _ in range(250):
        calibration = ThresholdCalibration(BITS)
        for _ in range(30):
            calibration.add(*draw_image(rng))
        threshold = calibration.threshold(ThresholdKind(kind, rate), {"output": "fused"}, "simulated")
        images = [draw_image(rng) for _ in range(4)]
        losses.append([loss(threshold.mask(score, min_component), label) for score, label in images])
    means = np.mean(losses, axis=1)
    error = means.std() / np.sqrt(len(means))
    assert means.mean() <= rate + 2 * error
    assert means.mean() >= rate / 3, "not merely by predicting nothing or everything"


def test_the_pooled_rate_alone_gives_no_such_guarantee_on_few_images():
    rng = np.random.default_rng(0)
    losses = {"fpr": [], "conformal": []}
    for _ in range(300):
        calibration = ThresholdCalibration(BITS)
        for _ in range(20):
            calibration.add(*draw_image(rng))
        new = draw_image(rng)
        for kind, values in losses.items():
            threshold = calibration.threshold(ThresholdKind(kind, 0.06), {"output": "fused"}, "simulated")
            values.append(false_positive_share(threshold.mask(new[0], 0), new[1]))
    assert np.mean(losses["fpr"]) > np.mean(losses["conformal"])


def test_f1_and_fpr_and_what_is_stored():
    rng = np.random.default_rng(1)
    calibration = ThresholdCalibration(20)
    images = [draw_image(rng) for _ in range(3)]
    for image in images:
        calibration.add(*image)
    found = calibration.threshold(ThresholdKind.parse("fpr:0.1"), {"output": "soft"}, "mine")
    normal = np.concatenate([score[label == 0] for score, label in images])
    assert 0.09 <= np.mean(normal >= np.float32(found.value)) <= 0.1
    assert found.as_dict() == {
        "value": found.value,
        "kind": "fpr:0.1",
        "output": "soft",
        "rule": {"output": "soft"},
        "boxes": None,
        "calibration": {
            "set": "mine",
            "images": 3,
            "in_distribution_pixels": normal.size,
            "anomalous_pixels": sum(int((label == 1).sum()) for _, label in images),
        },
    }
    assert calibration.threshold(ThresholdKind.parse("fixed:0.25"), {"output": "soft"}, "mine").value == 0.25


def test_a_component_is_found_at_the_score_that_a_quarter_reaches():
    label = np.zeros((4, 9), np.uint8)
    label[0, :8] = 1
    label[2:, 2:4] = 1
    score = np.arange(36, dtype=np.float32).reshape(4, 9)
    found = component_scores(score, label)
    assert sorted(found) == [6.0, 30.0]
    assert (score[0, :8] >= 6).sum() == 2
    diagonal = np.eye(6, dtype=np.uint8)  # six pixels that touch by their corners: a quarter is two of them
    assert component_scores(np.arange(36, dtype=np.float32).reshape(6, 6), diagonal).tolist() == [28.0]


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("conformal:0.05", 19),
        ("conformal_miss:0.1", 9),
        ("conformal:0.3333333333", 3),
        ("conformal_miss:0.3333333333", 3),  # a third would be content with two
    ],
)
def test_too_few_images_are_refused_with_the_number_needed(kind, needed):
    rng = np.random.default_rng(0)
    calibration = ThresholdCalibration(BITS)
    for _ in range(needed - 1):
        calibration.add(*draw_image(rng))
    with pytest.raises(DataError, match=f"at least {needed}"):
        calibration.threshold(ThresholdKind.parse(kind), {"output": "fused"}, "small")
    calibration.add(*draw_image(rng))
    assert np.isfinite(calibration.threshold(ThresholdKind.parse(kind), {"output": "fused"}, "enough").value)


@pytest.mark.parametrize(
    "text", ["otsu", "f1:0.5", "fpr", "fpr:x", "fpr:1.5", "fpr:nan", "conformal:0", "fixed:inf", ""]
)
def test_unknown_kinds_are_refused(text):
    with pytest.raises(ConfigError, match="threshold"):
        ThresholdKind.parse(text)


@pytest.mark.parametrize("text", ["f1", "fpr:0.05", "conformal:0.05", "conformal_miss:0.1", "fixed:-3.5"])
def test_kinds_print_as_they_are_written(text):
    assert str(ThresholdKind.parse(text)) == text


@pytest.mark.parametrize("kind", ["fpr:0.05", "conformal:0.2"])
def test_without_a_normal_pixel_there_is_no_false_positive_rate(kind):
    calibration = ThresholdCalibration(BITS)
    for _ in range(30):
        calibration.add(np.ones((4, 4), np.float32), np.full((4, 4), 1, np.uint8))
    with pytest.raises(DataError, match="in-distribution"):
        calibration.threshold(ThresholdKind.parse(kind), {"output": "fused"}, "all anomalous")


def test_a_rate_that_everything_meets_predicts_everything():
    rng = np.random.default_rng(0)
    calibration = ThresholdCalibration(BITS)
    for _ in range(3):
        calibration.add(*draw_image(rng))
    found = calibration.threshold(ThresholdKind("conformal", 1 - 1e-13), {"output": "fused"}, "x")
    assert found.mask(np.array([[-3e38, 0]], np.float32), 0).all()
    with pytest.raises(ConfigError, match="nan"):
        replace(found, value=float("nan"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"k": 0.1}, "k"),
        ({"b": 3.0}, "b"),
        ({"box_score": 0.0}, "box_score"),
        ({"mask_floor": 0.5}, "mask_floor"),
        ({"output": "soft"}, "output"),
        ({"min_component": 50}, None),
    ],
)
def test_a_threshold_belongs_to_the_rule_that_it_was_calibrated_for(model, scene, change, field):
    score, _, boxes = scene
    rule = FusionRule(k=0.6, b=0.1)
    stored = Threshold(0.5, "fpr:0.05", "fused", {}, asdict(rule), boxes=True)
    calibrated = replace(model, rule=rule, threshold=stored)
    fused = fuse(score, boxes, calibrated)
    np.testing.assert_array_equal(fused.mask, fused.score >= np.float32(0.5))
    if field is None:
        fuse(score, boxes, calibrated, replace(rule, **change))
        return
    with pytest.raises(ConfigError, match=rf"^{field}.*fpr:0.05"):
        fuse(score, boxes, calibrated, replace(rule, **change))
    with pytest.raises(ConfigError, match="with boxes, and is to be used without"):
        stored.require(asdict(rule), boxes=False)
    alone = replace(stored, boxes=False)
    alone.require(asdict(rule) | {"b": 3.0, "outline": True}, boxes=False)


def test_a_score_at_the_threshold_is_predicted_and_one_step_below_is_not():
    value = np.float32(0.3)
    score = np.array([[np.nextafter(value, np.float32(0)), value, np.nextafter(value, np.float32(1))]])
    threshold = Threshold(float(value), "fixed:0.3", "fused", {})
    assert threshold.mask(score, 0).tolist() == [[False, True, True]]
