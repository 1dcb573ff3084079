"""The running average of weights, against its recursion written out, and through training, resume and validation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anomdino.scorer.averaging import WeightAverage


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def disturb(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator))
        else:
            value.add_(1)


def test_follows_its_recursion() -> None:
    module = network()
    average = WeightAverage(module, 0.9)
    wanted = {k: v.double() for k, v in module.state_dict().items()}
    for update in range(1, 40):
        disturb(module, update)
        average.update()
        decay = min(0.9, (1 + update) / (10 + update))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                wanted[name] = decay * wanted[name] + (1 - decay) * value.double()
            else:
                wanted[name] = value.double()
    live = {k: v.clone() for k, v in module.state_dict().items()}
    with average.in_place():
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value.double(), wanted[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dict(module.state_dict()), live, rtol=0, atol=0)
    average.apply()
    assert not torch.equal(module.state_dict()["0.weight"], live["0.weight"])


def test_network_is_put_back_when_validation_fails() -> None:
    module = network()
    average = WeightAverage(module, 0.5)
    disturb(module, 1)
    live = module.state_dict()["0.weight"].clone()
    with pytest.raises(ValueError, match="validation"), average.in_place():
        raise ValueError("validation")
    assert torch.equal(module.state_dict()["0.weight"], live)


def test_decay_of_zero_changes_nothing() -> None:
    module = network()
    average = WeightAverage(module, 0.0)
    disturb(module, 2)
    live = {k: v.clone() for k, v in module.state_dict().items()}
    average.update()
    average.apply()
    torch.testing.assert_close(dict(module.state_dict()), live, rtol=0, atol=0)
    assert average.state()["values"] == {}


def test_state_goes_on_where_it_stopped() -> None:
    whole, halves = network(), network()
    one, two = WeightAverage(whole, 0.9), WeightAverage(halves, 0.9)
    for update in range(6):
        disturb(whole, update)
        one.update()
    for update in range(6):
        if update == 3:
            resumed = WeightAverage(halves, 0.9)
            resumed.load_state(
                {"updates": two.updates, "values": {k: v.clone() for k, v in two.values.items()}}
            )
            two = resumed
        disturb(halves, update)
        two.update()
    torch.testing.assert_close(one.values, two.values, rtol=0, atol=0)
