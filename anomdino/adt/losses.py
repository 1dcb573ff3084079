"""The training objective of ADT-Net: cross-entropy and overlap, inside boxes, outside and over all.

Pixels are counted at their natural balance. A class-balanced cross-entropy makes thresholds so lenient that
masks fill with false components (docs/method.md 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anomdino.adt.model import AdtOutput, surrogate_logits

Regulariser = Literal["gap", "ordering", "none"]

VOID = 255


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the objective.

    Args:
        inside: l1, weight of the term inside boxes.
        outside: l2, weight of the term outside boxes.
        false_positive: Tversky alpha, the weight of false positives; misses weigh 1 - alpha; 0.5 is Dice.
        regulariser: ``gap`` is the mean of (T_fg - T_bg)^2, ``ordering`` the mean of relu(margin + T_fg -
            T_bg).
        regulariser_weight: g.
        margin: By how much ``ordering`` wants T_bg above T_fg.
    """

    inside: float = 1.0
    outside: float = 1.0
    false_positive: float = 0.7
    regulariser: Regulariser = "gap"
    regulariser_weight: float = 0.1
    margin: float = 0.05


class LossParts(NamedTuple):
    """The objective and its parts, scalars. ``total`` already holds the weights, the others do not."""

    total: Tensor
    inside: Tensor
    outside: Tensor
    overall: Tensor
    regulariser: Tensor


def adt_loss(
    output: AdtOutput, labels: Tensor, inside: Tensor, ramp: float, weights: LossWeights
) -> LossParts:
    """Compute the objective of a batch over its valid pixels.

    Args:
        output: What the network gave.
        labels: (B, 1, H, W) uint8: 0 in-distribution, 1 anomaly, 255 void.
        inside: (B, 1, H, W) bool, the union of the boxes.
        ramp: Width of the ramp; the surrogate's temperature is a quarter of it.
        weights: How the parts are weighed.

    Returns:
        The parts; a region without a valid pixel costs 0.
    """
    logits = surrogate_logits(output.decision, output.threshold, ramp)
    regulariser = threshold_regulariser(output.threshold_fg, output.threshold_bg, labels != VOID, weights)
    parts = mask_loss(logits, labels, inside, weights)
    total = parts.total + weights.regulariser_weight * regulariser
    return parts._replace(total=total, regulariser=regulariser)


def mask_loss(logits: Tensor, labels: Tensor, inside: Tensor, weights: LossWeights) -> LossParts:
    """Compute the objective of a mask alone, l1 R(inside) + l2 R(outside) + R(all), without the regulariser.

    Args:
        logits: (B, 1, H, W) logits of the mask, float32.
        labels: As for :func:`adt_loss`.
        inside: As for :func:`adt_loss`.
        weights: As for :func:`adt_loss`.
    """
    valid, target = labels != VOID, (labels == 1).float()
    in_term = region_loss(logits, target, valid & inside, weights.false_positive)
    out_term = region_loss(logits, target, valid & ~inside, weights.false_positive)
    overall = region_loss(logits, target, valid, weights.false_positive)
    total = weights.inside * in_term + weights.outside * out_term + overall
    return LossParts(total, in_term, out_term, overall, torch.zeros_like(total))


def region_loss(logits: Tensor, target: Tensor, where: Tensor, false_positive: float) -> Tensor:
    """Compute R = binary cross-entropy + 1 - Tversky index over the pixels ``where``, of the whole batch.

    The index TP / (TP + alpha FP + (1 - alpha) FN) of soft counts (Salehi et al., 2017) is smoothed by one
    pixel, so that a region without anomaly and without prediction costs nothing.

    Args:
        logits: Logits of the probabilities, float32.
        target: 0 or 1, float32, same shape.
        where: bool, same shape.
        false_positive: alpha.
    """
    weight = where.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
    cross_entropy = cross_entropy / weight.sum().clamp_min(1)
    probability = torch.sigmoid(logits) * weight
    hits = (probability * target).sum()
    false_alarms = probability.sum() - hits
    misses = (target * weight).sum() - hits
    index = (hits + 1) / (hits + false_positive * false_alarms + (1 - false_positive) * misses + 1)
    return cross_entropy + 1 - index


def threshold_regulariser(
    threshold_fg: Tensor, threshold_bg: Tensor, valid: Tensor, weights: LossWeights
) -> Tensor:
    """Give the regulariser of the two thresholds, averaged over valid pixels."""
    gap = threshold_fg - threshold_bg
    if weights.regulariser == "none":
        return gap.sum() * 0
    cost = gap.square() if weights.regulariser == "gap" else F.relu(weights.margin + gap)
    return (cost * valid).sum() / valid.sum().clamp_min(1)
