"""Two processes under torchrun's environment compute what one computes."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from anomdino.config.rpl import RplConfig
from anomdino.scorer.distributed import SynchronisedBatchNorm2d, World, synchronise_batch_norm
from anomdino.scorer.objectives import ResidualObjective
from anomdino.scorer.recipe import train_scorer
from anomdino.scorer.training import Keeper
from tests.forked import launch


def train(data, out, settings):
    return train_scorer(RplConfig.model_validate(settings), data / "inlier", data / "outliers", out, seed=0)


SETTINGS = {
    "options": {
        "channels": [4, 6, 8, 8],
        "deep_channels": 8,
        "context_channels": 6,
        "skip_channels": 4,
        "head_channels": 8,
        "dilations": [1],
    },
    "num_classes": 4,
    "log_every": 1,
    "closed_set": {"schedule": {"steps": 5}, "batch": 4, "augment": {"crop": (32, 48)}, "keep": "last"},
    "residual": {
        "schedule": {"steps": 5},
        "batch": 4,
        "lr": 1e-3,
        "augment": {"crop": (32, 48)},
        "rule": "objects",
        "corocl": {"enabled": False},
        "keep": "last",
        "validation_images": 4,
    },
}


def run(data, out, world, settings):
    assert launch(train, [(data, out, settings)] * world) == [0] * world
    return json.loads((out / "history.json").read_text())


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tiny_data, tmp_path):
    one = run(tiny_data, tmp_path / "one", 1, SETTINGS)
    two = run(tiny_data, tmp_path / "two", 2, SETTINGS)
    assert len(one) == len(two) == 12
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert (
                value == b[name] if isinstance(value, str) else value == pytest.approx(b[name], abs=1e-5)
            ), name
    losses = [record["loss"] for record in one if "loss" in record]
    assert len(set(losses)) == 10


@pytest.mark.slow
def test_corocl_runs_on_two_processes(tiny_data, tmp_path):
    settings = SETTINGS | {
        "closed_set": SETTINGS["closed_set"] | {"schedule": {"steps": 1}},
        "residual": SETTINGS["residual"] | {"schedule": {"steps": 2}, "corocl": {"enabled": True}},
    }
    history = run(tiny_data, tmp_path / "two", 2, settings)
    assert all(record["corocl"] > 0 for record in history if "corocl" in record)


def digest(scorer):
    parts = (name.encode() + t.numpy().tobytes() for name, t in sorted(scorer.state_dict().items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def train_until(data, out, settings, killed):
    """Train, exit at step ``killed``, and write digests of the weights after step 2 and at the end, and the steps."""
    steps = []
    keep, draw_hints = Keeper.keep_if_best, ResidualObjective.hints

    def keep_if_best(self, record, progress):
        if self.plan.name == "residual":
            record["ap"] = {1: 0.2, 2: 0.9, 3: 0.1, 4: 0.3}[record["step"]]
            if record["step"] == 2:
                Path(f"{out}.step2").write_text(digest(self.scorer))
        keep(self, record, progress)

    def hints(self, batch, step):
        steps.append(step)
        if step == killed:
            sys.exit(9)
        return draw_hints(self, batch, step)

    Keeper.keep_if_best, ResidualObjective.hints = keep_if_best, hints
    trained = train(data, out, settings)
    Path(f"{out}.end").write_text(json.dumps([digest(trained.scorer), steps]))


@pytest.mark.slow
def test_machines_without_a_common_disk_resume_together_and_end_with_the_best_weights(tiny_data, tmp_path):
    settings = SETTINGS | {
        "checkpoint_every": 2,
        "closed_set": SETTINGS["closed_set"] | {"schedule": {"steps": 1}},
        "residual": SETTINGS["residual"]
        | {"schedule": {"steps": 4}, "validate_every": 1, "validation_images": 2, "keep": "best"},
    }
    outs = [tmp_path / machine / "rpl" for machine in ("a", "b")]
    for out in outs:
        out.parent.mkdir()
    assert launch(train_until, [(tiny_data, out, settings, 3) for out in outs]) == [9, 9]
    assert not (tmp_path / "b" / ".rpl.training").exists()
    assert launch(train_until, [(tiny_data, out, settings, None) for out in outs]) == [0, 0]
    best = (tmp_path / "a" / "rpl.step2").read_text()
    for machine in (
        "a",
        "b",
    ):  # neither trains the closed set again, nor the two steps before the resume point
        assert json.loads((tmp_path / machine / "rpl.end").read_text()) == [best, [2, 3]]
    assert (tmp_path / "a" / "rpl" / "model.safetensors").is_file()
    assert not (tmp_path / "b" / "rpl").exists()


def test_alone_everything_is_local():
    world = World(0, 1, torch.device("cpu"))
    module = nn.Conv2d(1, 1, 1)
    assert world.leads
    assert world.parallel(module) is module
    assert world.minimum(3) == 3
    assert world.share(2.5) == 2.5
    assert world.share_content(b"all") == b"all"
    assert world.count(torch.tensor(0.0)) == 1
    assert world.average(torch.tensor(7.0)) == 7


def test_synchronised_norm_of_one_process_is_torchs(monkeypatch):
    monkeypatch.setattr("anomdino.scorer.distributed.sum_over_processes", lambda tensor: tensor)
    monkeypatch.setattr("anomdino.scorer.distributed.gather_from_processes", lambda tensor: tensor[None])
    torch.manual_seed(0)
    plain, ours = nn.BatchNorm2d(5), nn.Sequential(nn.BatchNorm2d(5))
    synchronise_batch_norm(ours)
    assert type(ours[0]) is SynchronisedBatchNorm2d
    with torch.no_grad():
        for module in (plain, ours[0]):
            module.weight.copy_(torch.linspace(0.5, 2, 5))
            module.bias.copy_(torch.linspace(-1, 1, 5))
    for _ in range(3):
        maps = torch.randn(4, 5, 3, 6) * 3 + 1
        first, second = maps.clone().requires_grad_(), maps.clone().requires_grad_()
        out, mine = plain(first), ours(second)
        assert torch.allclose(out, mine, atol=1e-5)
        weights = torch.randn_like(out)
        (out * weights).sum().backward()
        (mine * weights).sum().backward()
        assert torch.allclose(first.grad, second.grad, atol=1e-5)
    assert torch.allclose(plain.running_var, ours[0].running_var, rtol=1e-5)
    assert torch.allclose(plain.running_mean, ours[0].running_mean, rtol=1e-5)
    assert plain.num_batches_tracked == ours[0].num_batches_tracked
    assert torch.allclose(plain.eval()(maps), ours.eval()(maps), atol=1e-5)


def normalise_a_share(rank, size, out, form):
    """Normalise images of very different statistics in two processes: one image in the first, three in the second."""
    torch.distributed.init_process_group("gloo")
    maps, weights, norm = share_of_norm()
    if form == "channels_last":
        maps, weights = (tensor.to(memory_format=torch.channels_last) for tensor in (maps, weights))
    norm = nn.Sequential(norm)
    synchronise_batch_norm(norm)
    own = slice(0, 1) if rank == 0 else slice(1, 4)
    mine = maps[own].requires_grad_()
    normalised = norm(mine)
    (normalised * weights[own]).sum().backward()
    content = {
        "out": normalised.detach(),
        "maps": mine.grad,
        **{f"of_{k}": p.grad for k, p in norm[0].named_parameters()},
    }
    torch.save(content | norm[0].state_dict(), out / f"{form}{rank}.pt")
    torch.distributed.destroy_process_group()


def share_of_norm():
    torch.manual_seed(0)
    maps = torch.randn(4, 5, 3, 6) * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None, None, None]
    maps += torch.tensor([0.0, 40.0, -3.0, 7.0])[:, None, None, None]
    norm = nn.BatchNorm2d(5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    return maps, torch.randn(4, 5, 3, 6), norm


@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
def test_synchronised_norm_of_two_processes_is_torchs_of_all_images(tmp_path, form):
    assert launch(normalise_a_share, [(rank, 2, tmp_path, form) for rank in range(2)]) == [0, 0]
    first, second = (torch.load(tmp_path / f"{form}{rank}.pt", weights_only=True) for rank in range(2))
    maps, weights, norm = share_of_norm()
    maps.requires_grad_()
    out = norm(maps)
    (out * weights).sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert torch.allclose(torch.cat([first["out"], second["out"]]), out, **close)
    assert torch.allclose(torch.cat([first["maps"], second["maps"]]), maps.grad, **close)
    for name, parameter in norm.named_parameters():  # of a share each; DistributedDataParallel joins them
        assert torch.allclose(first[f"of_{name}"] + second[f"of_{name}"], parameter.grad, **close)
    for share in (first, second):
        assert torch.allclose(share["running_mean"], norm.running_mean, **close)
        assert torch.allclose(share["running_var"], norm.running_var, **close)
