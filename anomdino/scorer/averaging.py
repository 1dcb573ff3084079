"""A running average of a network's weights: less noise at the end of a training, at no cost in inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential running average of all weights and statistics of a network; with a decay of 0, nothing.

    After n updates the decay is ``min(decay, (1 + n) / (10 + n))``, so that the start is forgotten soon.

    Args:
        network: What is averaged; its present weights are the first value.
        decay: Share of the old average that an update keeps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        self.values = {name: value.clone() for name, value in self._live().items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's weights of now."""
        if not self.values:
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = self._live()
        moving = [name for name, value in live.items() if value.is_floating_point()]
        averages, current = [self.values[name] for name in moving], [live[name] for name in moving]
        torch._foreach_lerp_(averages, current, 1 - decay)
        for name in live.keys() - set(moving):
            self.values[name].copy_(live[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the network for a while."""
        kept = {name: value.clone() for name, value in self._live().items()} if self.values else {}
        self.apply()
        try:
            yield
        finally:
            self._load(kept)

    def apply(self) -> None:
        """Put the average into the network for good."""
        self._load(self.values)

    def state(self) -> dict[str, Any]:
        """Give what a resume point needs."""
        return {"updates": self.updates, "values": self.values}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a resume point."""
        self.updates = int(state["updates"])
        for name, value in state["values"].items():
            self.values[name].copy_(value)

    def _live(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.network.state_dict().items()}

    @torch.no_grad()
    def _load(self, values: Mapping[str, Tensor]) -> None:
        live = self._live()
        for name, value in values.items():
            live[name].copy_(value)
