"""A dense loss on the encoder's proposals, so that a detector from scratch learns in hundreds of steps.

GroundingDINO trains its proposals through one matched token an object. From scratch that is slow. Here every object
also trains the few tokens that fit it best in place and size (one-to-many assignment, as Co-DETR, arXiv 2211.12860,
adds for the same reason). It replaces the one-to-one loss of the proposals; the decoder's losses stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOKENS_PER_OBJECT = 6
SIZE_WEIGHT = 0.5


def assign_tokens(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Assign objects to tokens.

    The cost of a token for an object is max(|dx| / w, |dy| / h) + 0.5 |log2(size ratio)|, with (dx, dy) from the
    object's centre to the token's and the ratio of the geometric mean of the object's sides to that of the token's
    anchor. An object takes its best token and those of its six best whose centre lies inside it; a token that
    several objects want goes to the cheapest.

    Args:
        anchors: float (N, 4), (cx, cy, w, h) of the tokens' anchors in shares of the image; not finite where a token
            has none.
        boxes: float (G, 4), (cx, cy, w, h) of the objects in shares of the image.

    Returns:
        int64 (N,): the index of the object, -1 for none.
    """
    chosen = torch.full((len(anchors),), -1, dtype=torch.long, device=anchors.device)
    if not len(boxes):
        return chosen
    usable = torch.isfinite(anchors).all(-1)
    anchors = torch.where(usable.unsqueeze(-1), anchors, torch.full_like(anchors, 1e3))
    sides = boxes[:, None, 2:].clamp(min=1e-4)
    distance = ((anchors[None, :, :2] - boxes[:, None, :2]).abs() / sides).amax(-1)  # (G, N)
    ratio = (sides.prod(-1) / anchors[None, :, 2:].prod(-1)).sqrt()
    cost = distance + SIZE_WEIGHT * ratio.log2().abs()
    best = cost.topk(min(TOKENS_PER_OBJECT, len(anchors)), dim=1, largest=False)
    wanted = torch.zeros_like(cost, dtype=torch.bool).scatter_(1, best.indices, True) & (distance < 0.5)
    wanted[torch.arange(len(boxes), device=wanted.device), best.indices[:, 0]] = True
    price, owner = cost.masked_fill(~wanted, float("inf")).min(0)
    return torch.where(torch.isfinite(price), owner, chosen)


def dense_losses(
    head: Any,
    logits: Tensor,
    boxes: Tensor,
    anchors: Tensor,
    text_mask: Tensor,
    samples: Sequence[Any],
) -> dict[str, Tensor]:
    """Compute the dense classification, L1 and GIoU losses of the proposals with the head's own loss functions.

    Args:
        head: The detector's head.
        logits: float (B, N, text), of every token for every text token, -inf at padded text.
        boxes: float (B, N, 4), predicted (cx, cy, w, h) in shares of the image.
        anchors: float (B, N, 4), the tokens' anchors, see :func:`assign_tokens`.
        text_mask: bool (B, T), True at real text tokens.
        samples: The batch's samples with ``gt_instances``.

    Returns:
        ``dense_loss_cls``, ``dense_loss_bbox``, ``dense_loss_iou``.
    """
    predicted, wanted, classes, targets, factors = [], [], [], [], []
    for index, sample in enumerate(samples):
        height, width = sample.img_shape
        factor = boxes.new_tensor([width, height, width, height])
        corners = sample.gt_instances.bboxes / factor
        truth = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        owner = assign_tokens(anchors[index], truth)
        usable = torch.isfinite(anchors[index]).all(-1)
        positive = owner >= 0
        columns = text_mask[index].nonzero().flatten()
        goal = logits.new_zeros(logits.shape[1], len(columns))
        if positive.any():
            goal[positive] = sample.gt_instances.positive_maps[owner[positive]][:, columns].to(goal.dtype)
        classes.append(logits[index][usable][:, columns].reshape(-1, 1))
        targets.append(goal[usable].reshape(-1, 1))
        predicted.append(boxes[index][positive])
        wanted.append(truth[owner[positive]])
        factors.append(factor.expand(int(positive.sum()), 4))
    found, truths, scale = torch.cat(predicted), torch.cat(wanted), torch.cat(factors)
    count = max(len(found), 1)
    goals = torch.cat(targets)
    cls = head.loss_cls(torch.cat(classes), goals, torch.ones_like(goals), avg_factor=count)
    return {
        "dense_loss_cls": cls,
        "dense_loss_bbox": head.loss_bbox(found, truths, avg_factor=count),
        "dense_loss_iou": head.loss_iou(_corners(found) * scale, _corners(truths) * scale, avg_factor=count),
    }


def _corners(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
