"""Scenes in which a known class is the anomaly: what counts as one, and what its label says."""

import numpy as np
import pytest

from anomdino.adt.model import ScoreStatistics
from anomdino.release.street import LEAST, VOID, cases, visible
from anomdino.scorer.scored import Scored
from anomdino.uncertainty import UncertaintyMaps

CAR, PERSON, ROAD = 13, 11, 0
STATISTICS = ScoreStatistics(-8.0, 2.0, 1)


class Options:
    refine = ()


class Engine:
    """Says of every pixel what its label is, so surely; of persons it is not sure."""

    options = Options()

    def __init__(self, label, certain):
        self.label, self.certain, self.calls = label, certain, 0

    def score(self, image):
        self.calls += 1
        height, width = self.label.shape
        semantic = np.full((19, height, width), 0.001, np.float32)
        for number, probability in self.certain.items():
            semantic[number][self.label == number] = probability
        flat = np.zeros((height, width), np.float32)
        score = np.full((height, width), -8.2, np.float32)
        return Scored(score, UncertaintyMaps(semantic, flat, flat, score, (height, width)))


def scene():
    label = np.full((60, 90), ROAD, np.uint8)
    label[10:30, 10:40] = CAR
    label[10:30, 60:80] = PERSON
    label[50:] = VOID
    return label


def made(certain, label=None, seed=0):
    label = scene() if label is None else label
    engine = Engine(label, certain)
    image = np.zeros((*label.shape, 3), np.uint8)
    return list(cases(engine, image, label, STATISTICS, np.random.default_rng(seed))), engine


def test_each_class_is_the_anomaly_once_and_the_scene_is_scored_once():
    found, engine = made({CAR: 0.999, PERSON: 0.999, ROAD: 0.999})
    assert sorted(case.number for case in found) == [PERSON, CAR]
    assert engine.calls == 1
    for case in found:
        mine = scene() == case.number
        np.testing.assert_array_equal(case.label == 1, mine)
        np.testing.assert_array_equal(case.label == VOID, scene() == VOID)
        inside, outside = case.scored.score[mine], case.scored.score[scene() == ROAD]
        assert np.median(inside) > np.median(outside) + 3
        assert case.scored.maps.score.shape == (15, 23)


def test_a_class_that_the_scorer_does_not_see_is_void_and_no_case_of_its_own():
    found, _ = made({CAR: 0.999, PERSON: 0.2, ROAD: 0.999})
    assert [case.number for case in found] == [CAR]
    label = scene()
    label[35:45, 60:80] = CAR  # a second one, which stands out no more than the road
    engine = Engine(label, {CAR: 0.999, PERSON: 0.2, ROAD: 0.999})
    whole = engine.score(None)
    whole.maps.semantic[CAR, 35:45, 60:80] = 0.1
    engine.score = lambda image: whole
    (case,) = list(
        cases(engine, np.zeros((60, 90, 3), np.uint8), label, STATISTICS, np.random.default_rng(0))
    )
    assert (case.label[35:45, 60:80] == VOID).all()
    assert (case.label[10:30, 10:40] == 1).all()


@pytest.mark.parametrize("pixels", [LEAST - 1, LEAST])
def test_a_scene_needs_enough_of_a_class(pixels):
    label = np.full((60, 90), ROAD, np.uint8)
    label[20, :pixels] = CAR
    found, engine = made({CAR: 0.999, ROAD: 0.999}, label)
    assert engine.calls == (pixels == LEAST)
    assert len(found) <= engine.calls


def test_the_same_state_gives_the_same_cases():
    certain = {CAR: 0.999, PERSON: 0.9, ROAD: 0.99}
    (one, _), (other, _), (else_, _) = (made(certain, seed=seed) for seed in (3, 3, 4))
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine.scored.score, theirs.scored.score)
    assert any(not np.array_equal(a.scored.score, b.scored.score) for a, b in zip(one, else_, strict=False))


def test_only_parts_that_stand_out_are_visible():
    objects = np.zeros((20, 40), bool)
    objects[5:10, 5:10] = objects[5:10, 20:25] = True
    score = np.zeros((20, 40))
    score[5:10, 5:10] = 2
    expected = objects & (np.arange(40) < 15)
    np.testing.assert_array_equal(visible(objects, score), expected)
