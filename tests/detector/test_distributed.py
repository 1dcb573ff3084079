"""Training in two processes, and what is said when they were not started."""

import hashlib
import json

import pytest
import torch

from anomdino.detector.records import split_folds
from anomdino.detector.runner import History, SafeRunner
from anomdino.detector.training import train_detector
from anomdino.errors import ConfigError
from tests.detector.conftest import read_set, small_config
from tests.forked import launch

CPU = torch.device("cpu")


def train_all(data, out, configs):
    """Train by each configuration in turn; write how mmengine wrapped the networks, and the weights after every step."""
    (fold,) = split_folds(read_set(data), 1, 0.4, 0)
    wrapped, digests = [], []
    wrap_model, after_step = SafeRunner.wrap_model, History.after_train_iter

    def wrap(self, *arguments):
        wrapped.append(wrap_model(self, *arguments))
        return wrapped[-1]

    def digest(self, runner, *arguments, **keywords):
        after_step(self, runner, *arguments, **keywords)
        state = b"".join(p.detach().numpy().tobytes() for p in runner.model.parameters())
        digests.append(hashlib.sha256(state).hexdigest())

    SafeRunner.wrap_model, History.after_train_iter = wrap, digest
    for index, config in enumerate(configs):
        train_detector(config, fold, out / f"detector{index}", out / "work", 5, CPU)
    facts = {
        "kinds": [type(network).__name__ for network in wrapped],
        "search": [network.find_unused_parameters for network in wrapped],
        "weights": digests,
    }
    (out / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_one_network_without_unused_parameters(composed, tmp_path):
    """A parameter without gradient stops DDP at the second step; the weights must be the same in both processes."""
    settings = {"launcher": "pytorch", "steps": 3, "val_interval": 3, "batch_size": 1}
    configs = [
        small_config(**settings, amp=True, dense_loss=1.0),
        small_config(**settings, checkpointing=True, backbone="none"),
    ]
    out = tmp_path / "two"
    out.mkdir()
    assert launch(train_all, [(composed, out, configs)] * 2) == [0, 0]
    first, second = (json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["kinds"] == ["MMDistributedDataParallel"] * 2
    assert first["search"] == [False] * 2
    assert len(set(first["weights"])) == 6
    assert first["weights"] == second["weights"]
    for index in range(2):
        assert {path.name for path in (out / f"detector{index}").iterdir()} == {
            "model.safetensors", "config.json", "split.json", "history.json",
        }  # fmt: skip
    assert not list((out / "work").iterdir())


def train_on_one_size(data, out, config):
    """Train on images of one size that all have objects; write a number that each process draws after it."""
    records = [record for record in read_set(data) if len(record.boxes) and record.size == (64, 96)]
    (fold,) = split_folds(records, 1, 0.4, 0)
    train_detector(config, fold, out / "detector", out / "work", 5, CPU)
    if torch.distributed.is_initialized():
        (out / f"drawn{torch.distributed.get_rank()}").write_text(str(torch.rand(1)))
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(composed, tmp_path):
    """At equal images a step; flips and dropped features aside, which every process draws for itself."""
    settings = {"steps": 1, "val_interval": 1, "log_interval": 1, "flip": 0.0, "image_dropout": 0.0}
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    train_on_one_size(composed, one, small_config(batch_size=2, **settings))
    config = small_config(batch_size=1, launcher="pytorch", **settings)
    assert launch(train_on_one_size, [(composed, two, config)] * 2) == [0, 0]
    first, second = (
        json.loads((out / "detector" / "history.json").read_text())["losses"][0] for out in (one, two)
    )
    same = {"loss_cls", "loss_bbox", "loss_iou", "loss_orth"}  # denoising queries, in the total, are drawn
    assert same < first.keys() == second.keys()
    assert {name: second[name] for name in same} == pytest.approx(
        {name: first[name] for name in same}, abs=1e-5
    )
    assert (two / "drawn0").read_text() != (two / "drawn1").read_text()


def test_a_launcher_without_processes_is_explained(composed, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    (fold,) = split_folds(read_set(composed), 1, 0.4, 0)
    config = small_config(launcher="pytorch")
    with pytest.raises(ConfigError, match="RANK is not set") as caught:
        train_detector(config, fold, tmp_path / "detector", tmp_path / "work", 5, CPU)
    assert "torchrun" in caught.value.cure
