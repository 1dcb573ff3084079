"""The order of crops over steps, epochs and processes, and images that are held back."""

from itertools import chain
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomdino.errors import ConfigError, DataError
from anomdino.scorer.batches import StepSampler, held_back, on_device, stacked


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 3), st.integers(1, 15), st.booleans())
@settings(max_examples=60, deadline=None)
def test_processes_share_each_step_and_a_resume_continues(count, local, world, steps, shuffle):
    batch = local * world
    whole = list(StepSampler(count, batch, steps, 5, shuffle=shuffle))
    parts = [
        list(StepSampler(count, batch, steps, 5, shuffle=shuffle, rank=r, world=world)) for r in range(world)
    ]
    assert [list(chain.from_iterable(step)) for step in zip(*parts, strict=True)] == whole
    assert list(StepSampler(count, batch, steps, 5, shuffle=shuffle, start=steps // 2)) == whole[steps // 2 :]
    assert [s.number for step in whole for s in step] == list(range(batch * steps))


def test_processes_that_cannot_share_a_batch_equally_are_refused():
    with pytest.raises(ConfigError, match="4 does not divide by 3 processes"):
        StepSampler(10, 4, 6, 0, rank=1, world=3)


def test_an_epoch_visits_each_scene_at_most_once_and_drops_the_rest():
    steps = list(StepSampler(10, 4, 6, 0))
    for epoch in range(3):
        visited = [s.scene for step in steps[2 * epoch : 2 * epoch + 2] for s in step]
        assert len(set(visited)) == 8
    assert steps[0] != steps[2]


def test_file_order_is_the_published_one():
    steps = list(StepSampler(7, 3, 4, 0, shuffle=False))
    assert [[s.scene for s in step] for step in steps] == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]


def test_share_of_batches_with_outliers():
    sampler = StepSampler(2975, 8, 2 * 371, 1, outlier_probability=0.3)
    steps = list(sampler)
    for epoch in (steps[:371], steps[371:]):
        assert sum(step[0].with_outliers for step in epoch) == int(0.3 * 371)
    assert all(len({s.with_outliers for s in step}) == 1 for step in steps)


@given(st.lists(st.integers(), min_size=2, max_size=30, unique=True), st.integers(2, 25))
def test_every_so_many_th_image_is_held_back_and_none_is_lost(items, every):
    learned, kept = held_back(items, every)
    assert kept == [items[index] for index in range(0, len(items), every)]
    assert sorted(learned + kept) == sorted(items)
    assert learned == [item for item in items if item not in kept]  # in order


@pytest.mark.parametrize(("items", "every"), [([], 20), (["a"], 20), (["a", "b"], 1)])
def test_nothing_left_to_learn_from_is_refused(items, every):
    with pytest.raises(DataError, match="fewer than two"):
        held_back(items, every)


class Pair(NamedTuple):
    """A sample and, field by field, a batch."""

    image: torch.Tensor
    label: np.ndarray
    weight: float
    key: str
    mask: np.ndarray | None = None


def test_fields_of_samples_become_those_of_a_batch():
    samples = [Pair(torch.full((2, 3), n), np.full(4, n, np.uint8), n / 2, f"i{n}") for n in range(3)]
    batch = stacked(Pair, samples)
    assert isinstance(batch, Pair)
    assert torch.equal(batch.image, torch.arange(3)[:, None, None].expand(3, 2, 3))
    assert (batch.label.dtype, batch.label.tolist()) == (torch.uint8, [[0] * 4, [1] * 4, [2] * 4])
    assert batch.weight.tolist() == [0, 0.5, 1]
    assert batch.weight.dtype == torch.float32
    assert (batch.key, batch.mask) == (["i0", "i1", "i2"], None)
    with pytest.raises(RuntimeError, match="equal size"):
        stacked(Pair, [samples[0], samples[1]._replace(image=torch.zeros(3, 3))])


def test_all_tensors_of_a_batch_move_and_the_rest_stays():
    moved = on_device(Pair(torch.zeros(2), torch.zeros(3), torch.zeros(1), ["a"]), torch.device("meta"))
    assert isinstance(moved, Pair)
    assert [part.device.type for part in moved[:3]] == ["meta"] * 3
    assert moved[3:] == (["a"], None)
