import pytest
import torch

from anomdino.scorer.base import ScorerSpec, build_scorer
from anomdino.scorer.schedule import PolySchedule, closed_set_groups, residual_groups

OPTIONS = {
    "channels": [4, 6, 8, 8],
    "deep_channels": 8,
    "context_channels": 6,
    "skip_channels": 4,
    "head_channels": 8,
    "dilations": [1],
}


def test_published_schedule_by_hand():
    schedule = PolySchedule(14840)
    assert schedule.rate(0, 7.5e-5) == 7.5e-5
    assert schedule.rate(1, 7.5e-5) == 7.5e-5
    assert schedule.rate(2, 7.5e-5) == pytest.approx(7.5e-5 * (14839 / 14840) ** 0.9, rel=1e-12)
    assert schedule.rate(7421, 7.5e-5) == pytest.approx(7.5e-5 * 0.5**0.9, rel=1e-12)
    assert schedule.rate(14840, 7.5e-5) == pytest.approx(7.5e-5 * (1 / 14840) ** 0.9, rel=1e-9)
    assert schedule.rate(20000, 7.5e-5) == 1e-8


def test_textbook_schedule_and_warm_up():
    assert PolySchedule(100, lag=0).rate(50, 1.0) == pytest.approx(0.5**0.9)
    schedule = PolySchedule(100, power=0.0, warmup=4)
    assert [schedule.rate(step, 1.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_residual_groups_are_the_published_ones():
    scorer = build_scorer(ScorerSpec("small", 5, OPTIONS))
    groups = residual_groups(scorer, 7.5e-5)
    names = {id(p): name for name, p in scorer.residual_block.named_parameters()}
    found = [sorted(names[id(p)] for p in group["params"]) for group in groups]
    assert found[0] == ["atten_aspp_final.weight"]
    assert found[1] == []
    assert all(name.startswith("atten_aspp.") and "weight" in name for name in found[2])
    assert all(".1." in name for name in found[3])
    assert len(found[2]) == 3
    assert len(found[3]) == 6
    assert found[4:] == [
        ["bot_atten_aspp.weight"],
        [],
        ["proj_head.proj.0.weight"],
        ["proj_head.proj.0.bias"],
    ]
    assert [group["lr"] for group in groups] == pytest.approx([7.5e-4] * 2 + [7.5e-5] * 6)
    assert {group["weight_decay"] for group in groups} == {0.0}
    assert sum(len(group["params"]) for group in groups) == len(scorer.residual_parameters())


def test_schedule_reaches_every_group_by_its_factor():
    scorer = build_scorer(ScorerSpec("small", 5, OPTIONS))
    optimiser = torch.optim.Adam(residual_groups(scorer, 1e-3))
    lr = PolySchedule(10, lag=0).apply(optimiser, 5)
    assert lr == pytest.approx(1e-2 * 0.5**0.9)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([lr, lr] + [lr / 10] * 6)


def test_closed_set_groups_split_encoder_and_decay():
    scorer = build_scorer(ScorerSpec("small", 5, OPTIONS))
    groups = closed_set_groups(scorer, 1e-3, 1e-4, 0.01)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-4, 0.01), (1e-4, 0.0), (1e-3, 0.01), (1e-3, 0.0),
    ]  # fmt: skip
    encoder = {id(p) for p in scorer.encoder.parameters()}
    assert {id(p) for group in groups[:2] for p in group["params"]} == encoder
    assert all(p.ndim > 1 for group in (groups[0], groups[2]) for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(scorer.closed_set_parameters())
