"""Taking up an interrupted training so that it becomes the training that was never interrupted."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.runner import IterBasedTrainLoop
from torch import nn


class ResumableLoop(IterBasedTrainLoop):  # type: ignore[misc]
    """mmengine's loop over steps, which on resuming restores random states and makes up for a lost evaluation.

    A checkpoint is written before the evaluation of its step, so that a run killed while it evaluates would resume
    behind that evaluation. The data loader, if a step is left, is brought to its place by reading again what was read;
    only then, and before the first step, random numbers are set.

    The Runner's ``history`` knows the evaluations and the random states of the interrupted run
    (:class:`anomdino.detector.runner.History`).
    """

    def run(self) -> nn.Module:
        """Train from the step of the checkpoint, or the first, to the last."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        try:
            if self._iter:
                self._take_up()
            while self._iter < self._max_iters:
                self.runner.model.train()
                self.run_iter(next(self.dataloader_iterator))
                if self._to_evaluate():
                    self.runner.val_loop.run()
        finally:
            del (
                self.dataloader_iterator
            )  # ends its processes; those of a forgotten one take five seconds each
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        model: nn.Module = self.runner.model
        return model

    def _take_up(self) -> None:
        for _ in range(self._iter if self._iter < self._max_iters else 0):
            next(self.dataloader_iterator)
        self.runner.history.restore_random_states(self._iter)
        if self._to_evaluate() and not self.runner.history.evaluated(self._iter):
            self.runner.val_loop.run()

    def _to_evaluate(self) -> bool:
        return bool(self._iter % self.val_interval == 0 or self._iter == self._max_iters)


def random_states() -> dict[str, Any]:
    """Give the states of Python's, numpy's and torch's random numbers: tensors and plain values."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - what mmdet draws from
    return {
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "rest": (int(position), int(has_gauss), float(gauss)),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set Python's, numpy's and torch's random numbers to what :func:`random_states` gave.

    Those of CUDA devices stay as they are where there are now more or fewer devices.
    """
    random.setstate(states["python"])
    keys = states["numpy"]["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, *states["numpy"]["rest"]))  # noqa: NPY002 - what mmdet draws from
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


__all__ = ["ResumableLoop", "random_states", "set_random_states"]
