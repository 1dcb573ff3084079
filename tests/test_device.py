"""Where networks run, and what is said about it."""

import logging

import pytest
import torch

from anomdino import device
from anomdino.device import resolve_device
from anomdino.errors import BackendMissing, ConfigError


@pytest.fixture(autouse=True)
def fresh():
    device._tell_of_cpu.cache_clear()
    yield
    device._tell_of_cpu.cache_clear()


@pytest.fixture
def gpus(monkeypatch):
    """Let torch see so many GPUs."""

    def set_to(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return set_to


def records(caplog):
    return [record for record in caplog.records if record.name == "anomdino.device"]


@pytest.mark.parametrize("count", [0, 2])
def test_auto_takes_cuda_then_the_cpu(gpus, count):
    gpus(count)
    assert resolve_device("auto") == resolve_device() == torch.device("cuda" if count else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("tool", "visible", "built", "level", "said"),
    [
        ("/usr/bin/nvidia-smi", None, "12.8", logging.WARNING, "cannot use it"),
        ("/usr/bin/nvidia-smi", "0,1", None, logging.WARNING, "built for the CPU alone"),
        ("/usr/bin/nvidia-smi", "", "12.8", logging.INFO, "no CUDA device"),
        (None, None, "12.8", logging.INFO, "no CUDA device"),
    ],
)
def test_auto_without_cuda_says_so_once_and_warns_where_there_is_a_gpu(
    gpus, monkeypatch, caplog, tool, visible, built, level, said
):
    gpus(0)
    monkeypatch.setattr(device.shutil, "which", lambda name: tool)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with caplog.at_level(logging.INFO, logger="anomdino"):
        for _ in range(3):
            assert resolve_device("auto") == torch.device("cpu")
    assert [record.levelno for record in records(caplog)] == [level]
    assert said in caplog.text


def test_a_device_that_was_named_is_never_replaced(gpus, caplog):
    gpus(0)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(BackendMissing, match="only the CPU"):
            resolve_device(name)
    gpus(2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(BackendMissing, match=r"cuda:0 \.\. cuda:1"):
        resolve_device("cuda:2")
    assert records(caplog) == []


def test_mps_has_to_be_there(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BackendMissing, match="mps"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == torch.device("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", "", "mps:1", "cuda:-1"])
def test_names_of_no_device_are_refused(name):
    with pytest.raises(ConfigError, match="unknown device"):
        resolve_device(name)


STARTS = {
    "a device": "from anomdino.device import resolve_device; resolve_device('cpu')",
    "a training": "from anomdino.seeding import seed_everything; seed_everything(0, deterministic=False)",
    "an engine": """
from anomdino.scorer.base import ScorerSpec, build_scorer
from anomdino.scorer.inference import ScoringEngine
ScoringEngine(build_scorer(ScorerSpec()))
""",
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_one_thread_calls_the_vector_functions_before_several_do(start, monkeypatch):
    """MKL finds out the processor in its first exp, which two threads must not make at once."""
    sizes, exp = [], torch.Tensor.exp
    monkeypatch.setattr(torch.Tensor, "exp", lambda values: sizes.append(values.numel()) or exp(values))
    device.settle_vector_maths.cache_clear()
    exec(start, {})
    assert sizes[:1] == [1]
    assert device.settle_vector_maths.cache_info().currsize == 1
