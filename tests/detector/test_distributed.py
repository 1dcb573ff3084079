"""Training in two processes, and what is said when they were not started."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from anomdino.detector.records import split_folds
from anomdino.detector.training import train_detector
from anomdino.errors import ConfigError
from tests.detector.conftest import read_set, small_config

SCRIPT = """
import hashlib, json, sys, torch
from pathlib import Path
from anomdino.config.detector import DetectorConfig
from anomdino.detector import runner as rooms
from anomdino.detector.records import read_records, split_folds
from anomdino.detector.training import train_detector
torch.set_num_threads(1)
data, out = Path(sys.argv[1]), Path(sys.argv[2])
records = read_records(data / "ood.json", *(data / f"offline_dataset{n}" for n in ("", "_maps", "_label")))
(fold,) = split_folds(records, 1, 0.4, 0)
wrapped, digests = [], []
original, step = rooms.SafeRunner.wrap_model, rooms.History.after_train_iter
def wrap(self, *arguments):
    wrapped.append(original(self, *arguments))
    return wrapped[-1]
def digest(self, runner, *arguments, **keywords):
    step(self, runner, *arguments, **keywords)
    state = b"".join(p.detach().numpy().tobytes() for p in runner.model.parameters())
    digests.append(hashlib.sha256(state).hexdigest())
rooms.SafeRunner.wrap_model, rooms.History.after_train_iter = wrap, digest
for index, text in enumerate(sys.argv[3:]):
    config = DetectorConfig.model_validate_json(text)
    train_detector(config, fold, out / f"detector{index}", out / "work", 5, torch.device("cpu"))
rank = torch.distributed.get_rank()
facts = {
    "kinds": [type(network).__name__ for network in wrapped],
    "search": [network.find_unused_parameters for network in wrapped],
    "weights": digests,
}
(out / f"rank{rank}.json").write_text(json.dumps(facts))
torch.distributed.destroy_process_group()
"""


def launch(data, out, configs, world=2):
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, "-c", SCRIPT, str(data), str(out), *(c.model_dump_json() for c in configs)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.slow
def test_two_processes_train_one_network_without_unused_parameters(composed, tmp_path):
    """A parameter without gradient stops DDP at the second step; the weights must be the same in both processes."""
    settings = {"launcher": "pytorch", "steps": 3, "val_interval": 3, "batch_size": 1}
    configs = [
        small_config(**settings, amp=True, dense_loss=1.0),
        small_config(**settings, checkpointing=True, backbone="none"),
    ]
    first, second = launch(composed, tmp_path / "two", configs)
    assert first["kinds"] == ["MMDistributedDataParallel"] * 2
    assert first["search"] == [False] * 2
    assert len(set(first["weights"])) == 6
    assert first["weights"] == second["weights"]
    for index in range(2):
        assert {path.name for path in (tmp_path / "two" / f"detector{index}").iterdir()} == {
            "model.safetensors", "config.json", "split.json", "history.json",
        }  # fmt: skip
    assert not list((tmp_path / "two" / "work").iterdir())


def test_a_launcher_without_processes_is_explained(composed, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    (fold,) = split_folds(read_set(composed), 1, 0.4, 0)
    config = small_config(launcher="pytorch")
    with pytest.raises(ConfigError, match="RANK is not set") as caught:
        train_detector(config, fold, tmp_path / "detector", tmp_path / "work", 5, torch.device("cpu"))
    assert "torchrun" in caught.value.cure
