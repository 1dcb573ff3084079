"""Two processes under torchrun's environment compute what one computes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from anomdino.scorer.distributed import SynchronisedBatchNorm2d, World, synchronise_batch_norm

SCRIPT = """
import json, sys, torch
from pathlib import Path
from anomdino.config.rpl import RplConfig
from anomdino.scorer.recipe import train_scorer
torch.set_num_threads(1)
data, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
train_scorer(RplConfig.model_validate(settings), data / "inlier", data / "outliers", out, seed=0)
"""

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


def launch(outs, data, settings, script=SCRIPT, patience=240):
    """Run a script with an output folder for each process, and give exit codes and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, out in enumerate(outs):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if len(outs) > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(outs)),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        command = [sys.executable, "-c", script, str(data), str(out), json.dumps(settings)]
        processes.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, cwd=os.getcwd(), text=True)  # noqa: PTH109
        )
    try:
        errors = [process.communicate(timeout=patience)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def run(data, out, world, settings):
    codes, errors = launch([out] * world, data, settings)
    assert codes == [0] * world, errors
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


MACHINE = """
import hashlib, json, sys, torch
from pathlib import Path
from anomdino.config.rpl import RplConfig
from anomdino.scorer import recipe
from anomdino.scorer.objectives import ResidualObjective
from anomdino.scorer.training import Keeper
torch.set_num_threads(1)
data, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
killed, steps = settings.pop("kill_at"), []

def digest(scorer):
    parts = (name.encode() + t.numpy().tobytes() for name, t in sorted(scorer.state_dict().items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()

def keep_if_best(self, record, progress, keep=Keeper.keep_if_best):
    if self.plan.name == "residual":
        record["ap"] = {1: 0.2, 2: 0.9, 3: 0.1, 4: 0.3}[record["step"]]
        if record["step"] == 2:
            Path(f"{out}.step2").write_text(digest(self.scorer))
    keep(self, record, progress)

def hints(self, batch, step, original=ResidualObjective.hints):
    steps.append(step)
    if step == killed:
        sys.exit(9)
    return original(self, batch, step)

Keeper.keep_if_best, ResidualObjective.hints = keep_if_best, hints
arguments = RplConfig.model_validate(settings), data / "inlier", data / "outliers", out
trained = recipe.train_scorer(*arguments, seed=0)
Path(f"{out}.end").write_text(json.dumps([digest(trained.scorer), steps]))
"""


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
    codes, errors = launch(outs, tiny_data, settings | {"kill_at": 3}, MACHINE, patience=60)
    assert codes == [9, 9], errors
    assert not (tmp_path / "b" / ".rpl.training").exists()
    codes, errors = launch(outs, tiny_data, settings | {"kill_at": None}, MACHINE, patience=60)
    assert codes == [0, 0], errors
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
