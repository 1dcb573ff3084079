"""The poly learning-rate schedule and the optimiser's groups of RPL's published code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn, optim

from anomdino.scorer.residual import DecoderScorer


@dataclass(frozen=True)
class PolySchedule:
    """``lr = clip(base * (1 - it / total) ^ power, minimum, base)``.

    Attributes:
        total: Steps of the whole training.
        power: Published: 0.9.
        minimum: Lower limit of the rate before a group's factor (published: 1e-8).
        lag: The published code sets the rate *after* a step from that step's index, so that step i runs at
            the rate of i - 1 and steps 0 and 1 both at the base rate: lag 1. Lag 0 is the textbook schedule.
        warmup: Steps of a linear rise from 0, multiplied on top (published: none).
    """

    total: int
    power: float = 0.9
    minimum: float = 1e-8
    lag: int = 1
    warmup: int = 0

    def rate(self, step: int, base: float) -> float:
        """Give the learning rate of step 0, 1, ... for a base rate."""
        iteration = min(max(step - self.lag, 0), self.total)
        decayed = base * float((1 - iteration / self.total) ** self.power)
        ramp = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return min(max(decayed, self.minimum), base) * ramp

    def apply(self, optimiser: optim.Optimizer, step: int) -> float:
        """Set the rate of every group to its ``factor`` times the rate of ``base_lr``; give the first
        group's.
        """
        for group in optimiser.param_groups:
            group["lr"] = group["factor"] * self.rate(step, group["base_lr"])
        return float(optimiser.param_groups[0]["lr"])


def residual_groups(
    scorer: DecoderScorer, lr: float, final_factor: float = 10.0, decay: float = 0.0
) -> list[dict[str, Any]]:
    """Group the residual block's parameters in the published order.

    The final 1x1 convolution and an empty group at ``final_factor * lr``; then, for context, reduction and
    projection, a group of convolution weights and one of biases and normalisations, at ``lr``. Weight decay,
    which the published training does not apply, is for convolution weights.
    """
    block = scorer.residual_module()
    groups = []
    for name in ("atten_aspp_final", "atten_aspp", "bot_atten_aspp", "proj_head"):
        factor = final_factor if name == "atten_aspp_final" else 1.0
        weights, others = _split(block.get_submodule(name))
        groups += [_group(weights, lr, factor, decay), _group(others, lr, factor)]
    return groups


def closed_set_groups(
    scorer: DecoderScorer, lr: float, encoder_lr: float, decay: float
) -> list[dict[str, Any]]:
    """Group the closed-set parameters: encoder and rest, each with and without weight decay."""
    encoder = {id(parameter) for parameter in scorer.encoder_parameters()}
    parameters = scorer.closed_set_parameters()
    groups = []
    for rate, inside in ((encoder_lr, True), (lr, False)):
        chosen = [parameter for parameter in parameters if (id(parameter) in encoder) is inside]
        matrices = [parameter for parameter in chosen if parameter.ndim > 1]
        vectors = [parameter for parameter in chosen if parameter.ndim <= 1]
        groups += [_group(matrices, rate, 1.0, decay), _group(vectors, rate, 1.0)]
    return [group for group in groups if group["params"]]


def distillation_groups(
    scorer: DecoderScorer, lr: float, rest_factor: float, decay: float
) -> list[dict[str, Any]]:
    """Group all parameters: the residual block at ``lr``, the rest at ``rest_factor * lr``; decay is for matrices."""
    groups = []
    for factor, chosen in (
        (1.0, scorer.residual_parameters()),
        (rest_factor, scorer.closed_set_parameters()),
    ):
        groups += [
            _group([parameter for parameter in chosen if parameter.ndim > 1], lr, factor, decay),
            _group([parameter for parameter in chosen if parameter.ndim <= 1], lr, factor),
        ]
    return [group for group in groups if group["params"]]


def _group(parameters: list[nn.Parameter], lr: float, factor: float, decay: float = 0.0) -> dict[str, Any]:
    return {
        "params": parameters,
        "lr": lr * factor,
        "base_lr": lr,
        "factor": factor,
        "weight_decay": decay,
    }


def _split(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split a module's parameters into convolution weights, and biases with normalisations."""
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            is_weight = isinstance(part, nn.Conv2d | nn.Linear) and name == "weight"
            (weights if is_weight else others).append(parameter)
    return weights, others
