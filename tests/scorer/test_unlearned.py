"""Known classes as anomalies: the rise is the energy's without a class, and the maps are those of the other classes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomdino.errors import DataError
from anomdino.scorer.scored import Scored
from anomdino.scorer.unlearned import LEAST_PROBABILITY, MOST, energy_rise, unlearn, without_class
from anomdino.uncertainty import UncertaintyMaps, uncertainty_maps


def maps_of(logits):
    semantic, entropy, distance = uncertainty_maps(torch.from_numpy(logits)[None])
    size = logits.shape[1:]
    score = -torch.logsumexp(torch.from_numpy(logits), 0).numpy()
    return UncertaintyMaps(
        semantic[0].half().numpy(), entropy[0].half().numpy(), distance[0].half().numpy(), score, size
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**20), number=st.integers(0, 4))
def test_the_rise_is_that_of_the_energy_without_the_class(seed, number):
    logits = np.random.default_rng(seed).normal(0, 1.2, (5, 6, 7))
    energy = -np.log(np.exp(logits).sum(0))
    without = -np.log(np.exp(np.delete(logits, number, 0)).sum(0))
    probability = np.exp(logits[number]) / np.exp(logits).sum(0)
    expected = np.minimum(without - energy, MOST)
    np.testing.assert_allclose(MOST * energy_rise(probability), expected, atol=1e-4)


def test_the_rise_is_bounded_and_grows_with_the_probability():
    rise = energy_rise(np.linspace(0, 1, 101)[None])
    assert rise.dtype == np.float32
    assert rise[0, 0] == 0
    assert rise[0, -1] == pytest.approx(1)
    assert (np.diff(rise[0, :99]) > 0).all()


def test_maps_without_a_class_are_those_of_the_other_logits():
    logits = np.random.default_rng(1).normal(0, 2, (6, 8, 9)).astype(np.float32)
    found = without_class(maps_of(logits), 2)
    expected = maps_of(np.delete(logits, 2, 0))
    others = np.delete(np.asarray(found.semantic, np.float32), 2, 0)
    near = 6 * LEAST_PROBABILITY + 2e-3  # of half precision, where few is left of the class
    certain = np.exp(logits[2]) / np.exp(logits).sum(0) < 0.9
    for mine, theirs in ((others, expected.semantic), (found.distance, expected.distance)):
        assert np.abs(mine - np.asarray(theirs, np.float32))[..., certain].max() < 10 * near
    np.testing.assert_array_equal(found.semantic[2], 0)
    scale = np.log(6) / np.log(5)  # a scorer of six classes says log 6
    assert np.abs(found.entropy * scale - np.asarray(expected.entropy, np.float32))[certain].max() < 10 * near


def test_a_class_becomes_the_anomaly_and_the_rest_of_the_scene_stays():
    logits = np.zeros((4, 64, 96), np.float32)
    logits[0] = 6
    logits[:, 20:44, 30:60] = [[[0]], [[0]], [[9]], [[0]]]
    maps = maps_of(logits)
    image = np.full((64, 96, 3), 120, np.uint8)
    scored = Scored(maps.score.copy(), maps)
    changed = unlearn(scored, image, 2, strength=7.0, stride=4)
    rise = changed.score - scored.score
    assert rise[28:36, 40:50] == pytest.approx(7.0, rel=0.02)
    assert np.abs(rise[:12]).max() < 0.05
    assert changed.maps.semantic.shape == (4, 16, 24)
    assert changed.maps.score[8, 11] == pytest.approx(-9 + 7.0, abs=0.2)
    assert changed.maps.entropy[8, 11] == pytest.approx(np.log(3) / np.log(4), abs=0.01)
    np.testing.assert_array_equal(scored.score, maps.score)
    refined = unlearn(scored, image, 2, 7.0, radii=[12], stride=4)
    np.testing.assert_array_equal(refined.maps.score, changed.maps.score)
    assert not np.array_equal(refined.score, changed.score)


@pytest.mark.parametrize(("stride", "number"), [(2, 0), (1, 4), (1, -1)])
def test_pooled_maps_and_classes_that_are_not_there_are_refused(stride, number):
    maps = maps_of(np.zeros((4, 16 // stride, 24 // stride), np.float32))
    scored = Scored(np.zeros((16, 24), np.float32), maps)
    with pytest.raises(DataError, match=r"uncertainty maps(.|\n)*map_stride: 1"):
        unlearn(scored, np.zeros((16, 24, 3), np.uint8), number, 5.0)
