"""The cascade's wiring, with a scorer and a detector that only say what they are told to."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomdino.adt.fusion import AdtModel, FusionRule, fuse
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.cascade import Cascade, at_widths
from anomdino.config.params import Params
from anomdino.io.boxes import Boxes

SIZE = (48, 72)
MAPS = object()


class Engine:
    """Scores a photo as its own red, noise added, and remembers how it was asked."""

    def __init__(self):
        self.seen = []

    def score(self, image, name):
        self.seen.append(("score", name))
        noise = np.random.default_rng(0).normal(0, 0.2, image.shape[:2])
        return SimpleNamespace(score=(image[..., 0] / 40.0 + noise - 5).astype(np.float32), maps=MAPS)

    def score_alone(self, image, name):
        found = self.score(image, name).score
        self.seen[-1] = ("alone", name)
        return found


class Detector:
    """Finds a sure box and an unlikely one, in a photo that is RGB."""

    def detect(self, image, maps):
        assert maps is MAPS
        assert tuple(image[20, 30]) == (200, 40, 30)
        return Boxes(np.array([[22, 12, 45, 33], [0, 0, 9, 9]]), np.array([0.9, 0.1]))


@pytest.fixture
def photo():
    image = np.full((*SIZE, 3), 90, np.uint8)
    image[14:30, 24:42] = (200, 40, 30)
    return image


@pytest.fixture
def adt():
    torch.manual_seed(0)
    net = AdtNet(Architecture(), ScoreStatistics(mean=-2.5, std=0.6)).eval()
    return AdtModel(net, FusionRule(outline=True, min_component=3))


def test_a_prediction_is_the_fusion_of_what_scorer_and_detector_say(photo, adt, monkeypatch):
    engine, detector, given = Engine(), Detector(), []
    monkeypatch.setattr("anomdino.cascade.fuse", lambda *a, **k: given.append(k["image"]) or fuse(*a, **k))
    found = Cascade(engine, detector, adt).predict(photo, "photo.png")
    assert engine.seen == [("score", "photo.png")]
    score = engine.score(photo, "").score
    boxes = detector.detect(photo, MAPS)
    expected = fuse(score, boxes, adt, image=photo)
    np.testing.assert_array_equal(found.raw, score)
    np.testing.assert_array_equal(found.score, expected.score)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.threshold, expected.threshold)
    np.testing.assert_array_equal(found.boxes.xyxy, boxes.xyxy[:1])  # the unlikely one is none
    assert (fuse(score, boxes, adt).score != expected.score).any()  # outlines are drawn
    np.testing.assert_array_equal(given[0], photo)  # in RGB: GrabCut tells two colours apart in any order


def test_without_a_detector_nothing_but_the_score_is_computed(photo, adt):
    engine = Engine()
    found = Cascade(engine, None, adt).predict(photo, "photo.png")
    assert engine.seen == [("alone", "photo.png")]
    assert len(found.boxes) == 0
    ranked = np.argsort(found.raw, axis=None, kind="stable")
    np.testing.assert_array_equal(ranked, np.argsort(found.score, axis=None, kind="stable"))


@pytest.mark.parametrize("least", [0, 3, 12])
def test_the_component_limit_that_is_asked_for_counts(photo, adt, least):
    cascade = Cascade(Engine(), None, replace(adt, rule=replace(adt.rule, min_component=7)))
    whole = cascade.with_rule(min_component=0).predict(photo).mask
    parts, _ = ndimage.label(whole, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    assert min(sizes[1:]) < 3 < max(sizes[1:])
    found = cascade.with_rule(min_component=least).predict(photo).mask
    np.testing.assert_array_equal(found, whole & (sizes[parts] >= least))
    own = cascade.with_rule().predict(photo).mask
    np.testing.assert_array_equal(own, whole & (sizes[parts] >= 7))


def test_widths_are_in_order_and_each_counts_once():
    asked = at_widths(Params(), [640, 320, 416, 640], Path("none"))
    assert (asked.score.widths, asked.score.fusion) == ([320, 416, 640], "mean")
