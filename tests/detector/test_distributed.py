"""Training in two processes, and what is said when they were not started."""

import hashlib
import json
import os
from contextlib import nullcontext

import pytest
import torch

from anomdino.config.detector import DetectorConfig
from anomdino.detector import processes
from anomdino.detector.records import split_folds
from anomdino.detector.runner import History, SafeRunner
from anomdino.detector.training import train_detector
from anomdino.errors import ConfigError, TrainingError
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


def test_a_launcher_without_processes_is_explained(composed, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    (fold,) = split_folds(read_set(composed), 1, 0.4, 0)
    config = small_config(launcher="pytorch")
    with pytest.raises(ConfigError, match="RANK is not set") as caught:
        train_detector(config, fold, tmp_path / "detector", tmp_path / "work", 5, CPU)
    assert "torchrun" in caught.value.cure


def train(data, out, **settings):
    """Train on images of one size that all have objects, and give what ``history.json`` says."""
    records = [record for record in read_set(data) if len(record.boxes) and record.size == (64, 96)]
    (fold,) = split_folds(records, 1, 0.4, 0)
    train_detector(small_config(**settings), fold, out / "detector", out / "work", 5, CPU)
    return json.loads((out / "detector" / "history.json").read_text())


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(composed, tmp_path, forks, monkeypatch):
    """At equal images a step; flips and dropped features aside, which every process draws for itself."""
    drawn, after_step = tmp_path / "drawn", History.after_train_iter
    drawn.mkdir()

    def draw(self, *arguments, **keywords):
        after_step(self, *arguments, **keywords)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else "alone"
        (drawn / str(rank)).write_text(str(torch.rand(3)))

    monkeypatch.setattr(History, "after_train_iter", draw)
    settings = {"steps": 1, "val_interval": 1, "log_interval": 1, "flip": 0.0, "image_dropout": 0.0}
    one = train(composed, tmp_path / "one", **settings)
    two = train(composed, tmp_path / "two", cpu_processes=2, **settings)
    (first,), (second,) = one["losses"], two["losses"]
    same = {"loss_cls", "loss_bbox", "loss_iou", "loss_orth"}  # denoising queries, in the total, are drawn
    assert same < first.keys() == second.keys()
    assert {name: second[name] for name in same} == pytest.approx(
        {name: first[name] for name in same}, abs=1e-5
    )
    assert len({file.read_text() for file in drawn.iterdir()}) == len(list(drawn.iterdir())) == 3
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["error", "killed"])
def test_the_end_of_another_process_is_told(composed, tmp_path, forks, monkeypatch, way):
    def end(self, runner, *arguments, **keywords):
        if runner.rank == 1:
            if way == "killed":
                os.kill(os.getpid(), 9)
            raise MemoryError("no room left")

    monkeypatch.setattr(History, "after_train_iter", end)
    cause = {"error": "MemoryError: no room left", "killed": "signal SIGKILL"}[way]
    with pytest.raises(TrainingError, match=f"another process of the training ended: .*{cause}") as caught:
        train(composed, tmp_path, cpu_processes=2)
    assert "cpu_processes: 1" in caught.value.cure
    assert not torch.distributed.is_initialized()


def test_threads_are_shared_out_and_given_back(monkeypatch, forks):
    seen = []

    class NoProcesses:
        processes = ()

        def join(self):
            return True

    monkeypatch.setattr(
        processes,
        "start_processes",
        lambda _, arguments, *__, **___: seen.append(arguments[1]) or NoProcesses(),
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(processes, "_joined", lambda *_: nullcontext())
    assert processes.run_in_processes(3, int, "4", imports="json") == 4
    assert seen == [2, 2, 7]


def test_processes_share_images_in_equal_parts():
    assert DetectorConfig(batch_size=6, cpu_processes=3).cpu_processes == 3
    with pytest.raises(ValueError, match=r"batch_size = 4 cannot be shared by cpu_processes = 3"):
        DetectorConfig(batch_size=4, cpu_processes=3)
