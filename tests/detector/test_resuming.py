import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from anomdino.detector import runner as runner_module
from anomdino.detector.records import split_folds
from anomdino.detector.resuming import random_states, set_random_states
from anomdino.detector.training import _fingerprint, train_detector
from anomdino.detector.weights import read_checkpoint
from anomdino.errors import CheckpointError, TrainingError
from anomdino.uncertainty import UncertaintyMaps
from tests.detector.conftest import read_set, small_config
from tests.forked import launch

# Steps, evaluations and log lines share no factor: sums of losses are half full when the checkpoint is written.
UNEVEN = {"steps": 7, "val_interval": 3, "log_interval": 2, "mosaic": 0.5, "map_noise": 0.3}


def start(composed, tmp_path, name, **changes):
    (fold,) = split_folds(read_set(composed), 1, 0.4, 0)
    config = small_config(**{**UNEVEN, **changes})
    train_detector(config, fold, tmp_path / name, tmp_path / f"work_{name}", 5, torch.device("cpu"))


def train(composed, tmp_path, name, **changes):
    start(composed, tmp_path, name, **changes)
    return {file: (tmp_path / name / file).read_bytes() for file in ("model.safetensors", "history.json")}


def kill(monkeypatch, hook, step):
    """Make a hook of the history raise at a step, as if the process were killed there."""
    original = getattr(runner_module.History, hook)

    def dying(self, runner, *args, **kwargs):
        if runner.iter == step:
            raise KeyboardInterrupt
        return original(self, runner, *args, **kwargs)

    monkeypatch.setattr(runner_module.History, hook, dying)


def interrupted(composed, tmp_path, monkeypatch, name, kills, **changes):
    for hook, step in kills:
        with monkeypatch.context() as patch:
            kill(patch, hook, step)
            with pytest.raises(KeyboardInterrupt):
                train(composed, tmp_path, name, **changes)
    return train(composed, tmp_path, name, **changes)


@pytest.fixture
def last_weights(monkeypatch):
    """Keep the weights of the last evaluation, whichever is best: all steps count."""
    monkeypatch.setattr(runner_module.History, "best", lambda self: -1.0)


@pytest.mark.slow
def test_a_resumed_training_is_the_unbroken_one(composed, tmp_path, monkeypatch, last_weights):
    unbroken = train(composed, tmp_path, "unbroken")
    for name, kills in {
        "in_a_step": [("after_train_iter", 4)],
        "in_an_evaluation": [("before_val", 3)],
        "often": [("after_val_epoch", 3), ("after_train_iter", 5), ("after_val_epoch", 7)],
    }.items():
        assert interrupted(composed, tmp_path, monkeypatch, name, kills) == unbroken, name


@pytest.mark.slow
def test_so_it_is_where_processes_load_the_images(composed, tmp_path, monkeypatch, last_weights):
    short = {"workers": 1, "steps": 3, "val_interval": 2}
    unbroken = train(composed, tmp_path, "unbroken", **short)
    kills = [("after_train_iter", 2)]
    assert interrupted(composed, tmp_path, monkeypatch, "cut", kills, **short) == unbroken


def share(composed, tmp_path, name, hook="", step=0):
    """Train in one of two processes, to the end or to where a hook is killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module.History, "best", lambda self: -1.0)
        if hook:
            kill(patch, hook, step)
        start(composed, tmp_path, name, launcher="pytorch", batch_size=1, steps=5)


@pytest.mark.slow
def test_so_it_is_where_two_processes_share_the_steps(composed, tmp_path):
    for kills in (("after_train_iter", 4), ("after_val_epoch", 5)):
        assert 0 not in launch(share, [(composed, tmp_path, "cut", *kills)] * 2)
    for name in ("cut", "unbroken"):
        assert launch(share, [(composed, tmp_path, name)] * 2) == [0, 0]
    for file in ("model.safetensors", "history.json"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "unbroken" / file).read_bytes()


@pytest.mark.slow
def test_the_only_evaluation_is_made_up_for(composed, tmp_path, monkeypatch):
    """Killed in it, the training resumes at its last step: nothing is left to train, the evaluation is not lost."""
    rare = {"steps": 2, "val_interval": 100}
    unbroken = train(composed, tmp_path, "unbroken", **rare)
    kills = [("after_val_epoch", 2)] * 2
    assert interrupted(composed, tmp_path, monkeypatch, "cut", kills, **rare) == unbroken


@pytest.mark.slow
def test_other_maps_start_a_training_anew(composed, tmp_path, monkeypatch):
    """What the interrupted run had learned of other scores, and their statistics in its weights, would stay."""
    with monkeypatch.context() as patch:
        kill(patch, "after_train_iter", 4)
        with pytest.raises(KeyboardInterrupt):
            train(composed, tmp_path, "cut")
    for path in (composed / "offline_dataset_maps").rglob("*.npz"):
        maps = UncertaintyMaps.load(path)
        replace(maps, score=maps.score * 10 + 100).save(path)
    assert train(composed, tmp_path, "cut") == train(composed, tmp_path, "fresh")


def test_weights_that_a_training_starts_from_are_among_what_it_depends_on(composed, tmp_path):
    (fold,) = split_folds(read_set(composed), 1, 0.4, 0)
    seen = set()
    for name in ("init_checkpoint", "pretrained_backbone", "scorer"):
        file = tmp_path / name / "model.safetensors"
        file.parent.mkdir()
        config = small_config(**({"backbone": "scorer"} if name == "scorer" else {name: str(file)}))
        for content in (b"a", b"b"):
            file.write_bytes(content)
            seen.add(_fingerprint(config, fold, 5, (5, 0.0, 1.0), tmp_path / "scorer"))
    assert len(seen) == 6


def test_no_checkpoint_is_written_at_a_step_whose_loss_is_not_finite(composed, tmp_path, monkeypatch):
    original = runner_module.History.after_train_iter

    def broken(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = torch.tensor(float("nan" if runner.iter == 1 else 1))
        original(self, runner, batch_idx, data_batch, {"loss": loss})

    monkeypatch.setattr(runner_module.History, "after_train_iter", broken)
    with pytest.raises(TrainingError, match="not finite at step 2"):
        train(composed, tmp_path, "diverged", val_interval=1, log_interval=1)
    assert [file.name for file in (tmp_path / "work_diverged").rglob("iter_*.pth")] == ["iter_1.pth"]


def test_only_a_checkpoint_that_is_there_is_resumed_from_and_only_if_asked_for(tmp_path):
    config, checkpoint = small_config(), tmp_path / "iter_2.pth"
    assert runner_module.resumable(tmp_path, config) is None
    (tmp_path / "last_checkpoint").write_text(str(checkpoint))
    assert runner_module.resumable(tmp_path, config) is None
    checkpoint.write_bytes(b"half of it")
    assert runner_module.resumable(tmp_path, config) == checkpoint
    assert runner_module.resumable(tmp_path, config.model_copy(update={"resume": False})) is None
    with pytest.raises(CheckpointError, match=r"iter_2\.pth") as caught:
        runner_module.SafeRunner.load_checkpoint(None, str(checkpoint))
    assert str(tmp_path) in caught.value.cure


def test_random_states_survive_a_file_that_holds_no_code(tmp_path):
    np.random.seed(1)  # noqa: NPY002 - the generator that mmdet draws from
    np.random.normal()  # noqa: NPY002 - leaves a second normal number in store
    torch.save({"state_dict": random_states()}, tmp_path / "random.pth")

    def draw():
        return random.random(), np.random.normal(size=3).tolist(), torch.rand(3).tolist()  # noqa: NPY002

    expected = draw()
    assert draw() != expected
    set_random_states(read_checkpoint(tmp_path / "random.pth")["state_dict"])
    assert draw() == expected
