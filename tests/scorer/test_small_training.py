"""What the small trainings share: turns of kinds, images kept, groups of weights, and resume points of other data."""

from collections import Counter
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomdino.errors import DataError
from anomdino.scorer import small_training
from anomdino.scorer.batches import SampleId
from anomdino.scorer.distributed import World
from anomdino.scorer.objectives import Objective
from anomdino.scorer.schedule import PolySchedule
from anomdino.scorer.small_training import (
    FineTuningPlan,
    InTurns,
    Share,
    SmallPlan,
    StoredItem,
    adamw,
    split,
    train,
)

ALONE = World(0, 1, torch.device("cpu"))
PLAN = SmallPlan(steps=6, batch=2, warmup=1, lr=0.05, checkpoint_every=2)


class Numbers(InTurns[float, Share[float]]):
    """Items that are numbers themselves, each a little off."""

    def __getitem__(self, sample):
        source, _, number = self.turn(sample)
        return number + float(source.normal(0, 0.01))


class Batch(NamedTuple):
    values: torch.Tensor
    keys: list[str]


def join(samples):
    return Batch(torch.tensor(samples), ["a", "b"])


class Nearest(Objective):
    """One weight that is to come near the numbers."""

    def start_step(self):
        self.scorer.train()

    def optimiser(self):
        return adamw(self.scorer, PLAN)

    def forward(self, batch, **hints):
        return {"loss": F.mse_loss(self.scorer(torch.ones(1, 1))[0, 0].expand(2), batch.values.float())}


def sample(number):
    return SampleId(number, 0, True)


def test_kinds_take_turns_as_often_as_they_are_drawn_from():
    numbers = Numbers([Share([0.0, 1.0], 3), Share([10.0])], seed=1, name="numbers")
    kinds = Counter("second" if numbers[sample(index)] > 5 else "first" for index in range(40))
    assert kinds == {"first": 30, "second": 10}
    assert numbers.images == 3


def test_a_sample_depends_on_seed_name_and_number_alone():
    shares = [Share([0.0, 1.0, 2.0])]
    one, again = (Numbers(shares, seed=1, name="numbers") for _ in range(2))
    drawn = [one[sample(index)] for index in range(5)]
    assert [again[sample(index)] for index in reversed(range(5))] == drawn[::-1]
    for other in (Numbers(shares, seed=2, name="numbers"), Numbers(shares, seed=1, name="others")):
        assert [other[sample(index)] for index in range(5)] != drawn


def test_images_of_every_kind_are_kept_and_none_is_in_both():
    shares = [Share(list(range(10)), 2), Share(list(range(100, 104)))]
    learned, kept = split(shares, 4)
    assert [share.draws for share in learned] == [share.draws for share in kept] == [2, 1]
    for whole, part, rest in zip(shares, learned, kept, strict=True):
        assert rest.items
        assert sorted([*part.items, *rest.items]) == list(whole.items)
    with pytest.raises(DataError, match="fewer than two"):
        split([Share([1])], 4)


def test_an_encoder_has_its_own_rate_and_every_weight_one_group():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    plan = FineTuningPlan(lr=0.5, encoder_lr=0.1, weight_decay=0.3)
    groups = adamw(network, plan, network[0]).param_groups
    assert [group["base_lr"] for group in groups] == [0.5, 0.1]
    assert {group["weight_decay"] for group in groups} == {0.3}
    assert [list(map(id, group["params"])) for group in groups] == [
        list(map(id, part.parameters())) for part in (network[1], network[0])
    ]
    (group,) = adamw(network, plan).param_groups
    assert len(group["params"]) == 4


def trained(state, items, depends=0):
    torch.manual_seed(0)
    objective = Nearest(nn.Linear(1, 1), ALONE)
    dataset = Numbers([Share(items)], seed=0, name="numbers")
    history = train(
        objective,
        dataset,
        join,
        PLAN,
        state,
        measure=dict,
        depends={"data": depends},
        world=ALONE,
    )
    return objective.scorer(torch.ones(1, 1)).item(), history


def test_a_training_keeps_to_its_plan(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr(small_training, "fit", lambda *given, **more: plans.append(given[3]) or [])
    trained(tmp_path, [3.0])
    (plan,) = plans
    assert plan.schedule == PolySchedule(PLAN.steps, warmup=PLAN.warmup)
    assert (plan.clip, plan.checkpoint_every, plan.name) == (PLAN.clip, PLAN.checkpoint_every, "numbers")


def test_training_goes_on_from_a_resume_point_of_the_same_data_alone(tmp_path):
    near, history = trained(tmp_path / "a", [3.0])
    start, _ = trained(tmp_path / "b", [0.0])
    assert near > start + 0.1
    assert history
    resumed, _ = trained(
        tmp_path / "a", [-50.0]
    )  # said to be the same data: only the last steps are done again
    anew, _ = trained(tmp_path / "a", [-50.0], depends=1)
    assert anew + 0.1 < resumed < near


def test_a_stored_item_s_content_is_that_of_its_file(tmp_path):
    items = []
    for index, text in enumerate((b"a", b"a", b"b")):
        (tmp_path / f"{index}.npz").write_bytes(text)
        items.append(StoredItem(str(index), tmp_path / f"{index}.npz").content())
    assert items[0] == items[1] != items[2]
