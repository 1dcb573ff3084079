"""RPL's three losses and CoroCL.

Source: Liu et al., "Residual Pattern Learning for Pixel-wise Out-of-Distribution Detection in Semantic
Segmentation", ICCV 2023, sections 3.2 and 3.3, in the form of the published code.
Labels: train ids 0..18, 254 = pasted outlier, 255 = void.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

OUTLIER = 254
VOID = 255
PROBABILITY_FLOOR = 1e-7

Count = Callable[[Tensor], Tensor]


def local_count(count: Tensor) -> Tensor:
    """Divide a sum by the count of this process alone; an empty selection gives a mean of zero."""
    return count.clamp(min=1)


class RplLosses(NamedTuple):
    """Scalars of RPL.

    Attributes:
        entropy: Cross-entropy of Zr against the closed-set prediction, over inlier pixels.
        regularisation: Squared difference of the entropies of Zr and Z, over inlier pixels.
        energy: max(0, logsumexp(Zr)) over outlier pixels; 0 where there are none.
        preservation: Squared difference of logsumexp(Zr) and logsumexp(Z), over inlier pixels. Not published:
            the other inlier terms see probabilities alone and let the energy of the whole image drift.
    """

    entropy: Tensor
    regularisation: Tensor
    energy: Tensor
    preservation: Tensor

    def total(self, energy_weight: float = 0.05, preservation_weight: float = 0.0) -> Tensor:
        """Sum up; the energy part weighs 0.05 as published, the preservation nothing as published."""
        published = self.entropy + self.regularisation + energy_weight * self.energy
        return published + preservation_weight * self.preservation if preservation_weight else published


def rpl_losses(
    residual_logits: Tensor, closed_logits: Tensor, target: Tensor, count: Count = local_count
) -> RplLosses:
    """Compute RPL's losses.

    Equal to the published values wherever those are finite: log-sum-exp is computed in its stable form, and a
    batch without inlier pixels gives 0 where the published mean over nothing is NaN.

    Args:
        residual_logits: Zr, (B, C, H, W).
        closed_logits: Z of the frozen path, (B, C, H, W); its argmax is the pseudo label (no ground truth).
        target: int64 (B, H, W).
        count: Maps the number of pixels to what their sum is divided by (several processes share one).
    """
    residual = residual_logits.float()
    closed = closed_logits.detach().float()
    inlier = (target != OUTLIER) & (target != VOID)
    outlier = target == OUTLIER
    log_p = residual.log_softmax(dim=1)
    pseudo = closed.argmax(dim=1, keepdim=True)
    cross_entropy = -log_p.gather(1, pseudo)[:, 0]
    difference = _entropy(log_p) - _entropy(closed.log_softmax(dim=1))
    log_sum = residual.logsumexp(dim=1)
    drift = log_sum - closed.logsumexp(dim=1)
    return RplLosses(
        masked_mean(cross_entropy, inlier, count),
        masked_mean(difference.square(), inlier, count),
        masked_mean(log_sum.clamp(min=0), outlier, count),
        masked_mean(drift.square(), inlier, count),
    )


def closed_set_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, count: Count = local_count
) -> Tensor:
    """Cross-entropy over pixels that carry a class, weighted by class.

    Args:
        logits: (B, C, H, W).
        target: int64 (B, H, W); values of C and above (254, 255) are ignored.
        weight: (C,) class weights; the mean is over weights, as torch does it.
        count: See :func:`rpl_losses`.
    """
    known = target < logits.shape[1]
    log_p = logits.float().log_softmax(dim=1)
    labels = target.clamp(max=logits.shape[1] - 1)
    values = -log_p.gather(1, labels[:, None])[:, 0]
    if weight is None:
        return masked_mean(values, known, count)
    weights = weight.to(values)[labels] * known
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, count(total), torch.ones_like(total))


def masked_mean(values: Tensor, mask: Tensor, count: Count = local_count) -> Tensor:
    """Average values where the mask is true; 0 where it is true nowhere."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() / count(mask.sum().to(values.dtype))


def corocl_loss(
    scene_projection: Tensor,
    scene_target: Tensor,
    outlier_projection: Tensor,
    outlier_target: Tensor,
    *,
    max_samples: int = 512,
    temperature: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute the contrastive loss between outlier and inlier pixels in and out of context (specification
    b.2).

    Four pools of L2-normalised projections - outlier and inlier pixels of the mixed scenes, outlier and
    inlier pixels of the outlier photos - are permuted in this order and cut to S = min(max_samples, the four
    sizes). Anchors are the scene's pools; contrast samples are all four; an anchor is never its own positive.

    Args:
        scene_projection: (B, K, h, w), of scenes that each have a pixel of 254.
        scene_target: (B, H, W).
        outlier_projection: (B', K, h, w), of outlier photos.
        outlier_target: (B', H, W), 0 / 254 / 255.
        max_samples: Upper limit of S (published: 512).
        temperature: Published: 0.1.
        generator: Source of the permutations, on the CPU; default: torch's own.

    Returns:
        Scalar; 0 when a pool is empty.
    """
    pools = [
        *_pools(scene_projection, scene_target),
        *_pools(outlier_projection, outlier_target),
    ]
    size = min(max_samples, *(len(pool) for pool in pools))
    if size == 0:
        return scene_projection.sum() * 0
    drawn = [pool[torch.randperm(len(pool), generator=generator)[:size].to(pool.device)] for pool in pools]
    contrast = torch.cat(drawn)  # (4S, K)
    anchors = contrast[: 2 * size]  # (2S, K)
    labels = torch.tensor([1, 0, 1, 0], device=contrast.device).repeat_interleave(size)  # (4S)
    return contrast_loss(anchors, labels[: 2 * size], contrast, labels, temperature)


def contrast_loss(
    anchors: Tensor, anchor_labels: Tensor, contrast: Tensor, contrast_labels: Tensor, temperature: float
) -> Tensor:
    """Average, over anchors, of the mean log-probability of their positives against all negatives.

    ``log p_ij = L_ij - log(exp(L_ij) + sum of exp(L_ik) over negatives k)`` with L = A C^T / temperature.

    Args:
        anchors: A, (M, K), the first M rows of ``contrast``.
        anchor_labels: (M,).
        contrast: C, (N, K).
        contrast_labels: (N,).
        temperature: Positive.
    """
    similarity = anchors @ contrast.T / temperature  # (M, N)
    similarity = similarity - similarity.detach().amax(dim=1, keepdim=True)
    same = (anchor_labels[:, None] == contrast_labels[None]).to(similarity.dtype)
    negatives = (similarity.exp() * (1 - same)).sum(dim=1, keepdim=True)
    log_p = similarity - (similarity.exp() + negatives).log()
    positive = same.clone()
    positive.fill_diagonal_(0)
    return -((positive * log_p).sum(dim=1) / positive.sum(dim=1)).mean()


def _pools(projection: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    labels = nearest_labels(target, projection.shape[-2:])
    features = F.normalize(projection.float(), dim=1).permute(0, 2, 3, 1)  # (B, h, w, K)
    outlier = labels == OUTLIER
    return features[outlier], features[~outlier & (labels != VOID)]


def nearest_labels(target: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize labels (B, H, W) to (B, h, w) by nearest neighbour, as the published code does."""
    return F.interpolate(target[:, None].float(), size=tuple(size), mode="nearest")[:, 0].long()


def aligned_labels(target: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Read labels (B, H, W) where logits of ``size`` lie when corners are aligned: (B, h, w)."""
    rows, columns = (
        torch.linspace(0, full - 1, small, device=target.device).round().long()
        for full, small in zip(target.shape[-2:], size, strict=True)
    )
    return target[:, rows][:, :, columns]


def _entropy(log_p: Tensor) -> Tensor:
    """Entropy of probabilities floored at 1e-7, (B, H, W)."""
    p = log_p.exp().clamp(min=PROBABILITY_FLOOR)
    return -(p * p.log()).sum(dim=1)
