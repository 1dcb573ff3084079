"""OUAFS: orthogonal uncertainty-aware fusion of uncertainty maps into the image pyramid (docs/method.md 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAP_ORDER = ("semantic", "entropy", "distance")
ORTH_EPS = 1e-3
SCORE_RANGE = (-5.0, 10.0)
Orth = Literal["cosine", "hadamard", "none"]


class Fused(NamedTuple):
    """Result of the fusion: the levels, float (B, C, h, w) each, and the weighted orthogonality loss, a scalar."""

    features: list[Tensor]
    loss_orth: Tensor


class MaskedGroupNorm(nn.GroupNorm):
    """GroupNorm whose statistics leave out padded positions, so that padding a batch changes no result."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise ``x`` (B, C, h, w) with the statistics of the positions where ``valid`` (B, 1, h, w) is 1."""
        if valid is None:
            return super().forward(x)
        batch, channels, height, width = x.shape
        grouped = x.float().view(batch, self.num_groups, channels // self.num_groups, height, width)
        weight = valid.float().unsqueeze(1)
        count = weight.sum((2, 3, 4), keepdim=True) * (channels // self.num_groups)
        mean = (grouped * weight).sum((2, 3, 4), keepdim=True) / count
        variance = ((grouped - mean).square() * weight).sum((2, 3, 4), keepdim=True) / count
        normalised = ((grouped - mean) * (variance + self.eps).rsqrt()).view_as(x)
        scaled: Tensor = normalised * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return scaled.to(x.dtype)


class MapStem(nn.Module):
    """The stem of one map: 1x1 convolution, GroupNorm, GELU, 3x3 convolution."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, dims, 1)
        self.norm = MaskedGroupNorm(_groups(dims), dims)
        self.mix = nn.Conv2d(dims, dims, 3, padding=1)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Map (B, channels, h, w) to (B, dims, h, w); positions where ``valid`` is 0 count as zero padding."""
        hidden = F.gelu(self.norm(self.project(x), valid))
        if valid is None:
            mixed: Tensor = self.mix(hidden)
        else:
            mixed = self.mix(hidden * valid.to(hidden.dtype)) * valid.to(hidden.dtype)
        return mixed


class DistanceAttention(nn.Module):
    """Cross-attention from a level's features to the embedded distance map, one module for all levels.

    A learned level embedding is added to the keys. Uses torch's ``scaled_dot_product_attention``.
    """

    def __init__(self, dims: int, heads: int, dropout: float, levels: int) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(dims, dims)
        self.key = nn.Linear(dims, dims)
        self.value = nn.Linear(dims, dims)
        self.out = nn.Linear(dims, dims)
        self.level_embedding = nn.Parameter(torch.randn(levels, dims) * 0.02)

    def forward(self, features: Tensor, embedded: Tensor, level: int, valid: Tensor | None) -> Tensor:
        """Attend.

        Args:
            features: F2 of the level, (B, C, h, w).
            embedded: e_D as keys and values, (B, C, kh, kw).
            level: Number of the level, for its embedding.
            valid: (B, 1, kh, kw), 0 at padded keys; ``None`` when there are none.

        Returns:
            (B, C, h, w).
        """
        batch, dims, height, width = features.shape
        source = embedded.flatten(2).transpose(1, 2)  # (B, keys, C)
        q = self._split(self.query(features.flatten(2).transpose(1, 2)))
        k = self._split(self.key(source + self.level_embedding[level]))
        v = self._split(self.value(source))
        mask = None if valid is None else (valid.flatten(2) > 0).unsqueeze(2)  # (B, 1, 1, keys)
        mixed = F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=self.dropout if self.training else 0.0
        )
        merged: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (B, h w, C)
        return merged.transpose(1, 2).reshape(batch, dims, height, width)

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, C / heads)


class Ouafs(nn.Module):
    """Fuse uncertainty maps into every pyramid level, in the order semantic, entropy, distance (docs/method.md 2).

    With F0 the neck's feature and e_* the embedded maps, area-pooled to the level:

        D_S = g_S * Conv1x1([F0 ; e_S])                     F1 = F0 + D_S
        D_E = g_E * (w_E * e_E)                             F2 = F1 + D_E
        D_D = g_D * CrossAttention(q = F2, k = v = e_D)     F3 = F2 + D_D

    and, with ``score_map``, a last stage F4 = F3 + g_R * e_R for the residual anomaly score, standardised with the
    statistics of the training set and cut to [-5, 10]. All g are per-channel gates of a level.

    Args:
        dims: Channels C of the levels.
        classes: Channels of the semantic map.
        levels: Number of pyramid levels, each half the size of the one before.
        maps: The uncertainty maps that are fused.
        score_map: Fuse the residual score, too.
        orth: Form of the orthogonality loss.
        orth_l1: Weight of its absolute part.
        orth_l2: Weight of its squared part.
        gate_init: Start of the gates; 0 makes the whole module the identity.
        heads: Heads of the cross-attention.
        dropout: Dropout of the cross-attention.
        key_pool: Keys and values of the finest level are pooled by this factor a side.
    """

    score_mean: Tensor
    score_std: Tensor

    def __init__(
        self,
        dims: int,
        classes: int,
        levels: int,
        maps: Sequence[str] = MAP_ORDER,
        score_map: bool = False,
        orth: Orth = "cosine",
        orth_l1: float = 0.1,
        orth_l2: float = 0.1,
        gate_init: float = 0.0,
        heads: int = 8,
        dropout: float = 0.1,
        key_pool: int = 4,
    ) -> None:
        super().__init__()
        self.classes, self.levels, self.key_pool = classes, levels, key_pool
        self.orth, self.orth_l1, self.orth_l2 = orth, orth_l1, orth_l2
        self.stages = [name for name in MAP_ORDER if name in maps] + (["score"] if score_map else [])
        self.stems = nn.ModuleDict(
            {name: MapStem(classes if name == "semantic" else 1, dims) for name in self.stages}
        )
        self.gates = nn.ParameterDict(
            {name: nn.Parameter(torch.full((levels, dims), float(gate_init))) for name in self.stages}
        )
        if "semantic" in self.stages:
            self.join = nn.ModuleList(nn.Conv2d(2 * dims, dims, 1) for _ in range(levels))
        if "entropy" in self.stages:
            self.entropy_weight = nn.Parameter(torch.full((levels,), 0.5))
        if "distance" in self.stages:
            self.attention = DistanceAttention(dims, heads, dropout, levels)
        self.register_buffer("score_mean", torch.zeros(()))
        self.register_buffer("score_std", torch.ones(()))

    def forward(
        self, features: Sequence[Tensor], maps: Tensor, valid: Tensor | None = None, *, with_loss: bool = True
    ) -> Fused:
        """Fuse.

        Args:
            features: The neck's levels, finest first, float (B, C, h_i, w_i) with h_(i+1) = ceil(h_i / 2).
            maps: Semantic, entropy, distance and score maps stacked, float (B, classes + 3, h, w), on the finest
                level's grid or one twice or four times as fine.
            valid: Float or bool (B, 1, h, w), 0 where a smaller image of the batch was padded.
            with_loss: Compute the orthogonality loss, which predictions do not need; it is 0 otherwise.
        """
        if not self.stages:
            return Fused(list(features), maps.new_zeros(()))
        mask = None if valid is None else valid.to(maps.dtype)
        embedded = {name: self.stems[name](self._select(maps, name), mask) for name in self.stages}
        fused: list[Tensor] = []
        losses: list[Tensor] = []
        for level, feature in enumerate(features):
            embedded, mask = self._pooled_to(embedded, mask, (feature.shape[2], feature.shape[3]))
            total, increments = self._fuse_level(level, feature, embedded, mask)
            fused.append(total)
            if with_loss:
                losses += self._orthogonality(increments, mask)
        loss = torch.stack(losses).mean() if losses else maps.new_zeros(())
        return Fused(fused, loss)

    def _select(self, maps: Tensor, name: str) -> Tensor:
        first = {
            "semantic": 0,
            "entropy": self.classes,
            "distance": self.classes + 1,
            "score": self.classes + 2,
        }[name]
        part = maps[:, first : first + (self.classes if name == "semantic" else 1)]
        if name == "score":
            part = ((part - self.score_mean) / self.score_std).clamp(*SCORE_RANGE)
        return part

    def _pooled_to(
        self, embedded: dict[str, Tensor], mask: Tensor | None, size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        current = next(iter(embedded.values()))
        while current.shape[2] > size[0] or current.shape[3] > size[1]:
            embedded = {name: area_halved(value, mask) for name, value in embedded.items()}
            mask = None if mask is None else (area_halved(mask, None) > 0).to(mask.dtype)
            current = next(iter(embedded.values()))
        if tuple(current.shape[2:]) != size:
            raise ValueError(
                f"maps of {tuple(current.shape[2:])} do not fit a level of {size}: wrong strides?"
            )
        return embedded, mask

    def _fuse_level(
        self, level: int, feature: Tensor, embedded: dict[str, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total = feature
        increments: dict[str, Tensor] = {}
        for name in self.stages:
            e = embedded[name]
            if name == "semantic":
                change = self.join[level](torch.cat([feature, e.to(feature.dtype)], dim=1))
            elif name == "entropy":
                change = self.entropy_weight[level] * e
            elif name == "distance":
                keys, key_mask = self._keys(level, e, mask)
                change = self.attention(total, keys, level, key_mask)
            else:
                change = e
            increments[name] = self.gates[name][level].view(1, -1, 1, 1) * change
            total = total + increments[name]
        return total, increments

    def _keys(self, level: int, e: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if level or self.key_pool == 1:
            return e, mask
        pool = self.key_pool
        if mask is None:
            return F.avg_pool2d(e, pool, ceil_mode=True, count_include_pad=False), None
        share = F.avg_pool2d(mask, pool, ceil_mode=True, count_include_pad=False)
        summed = F.avg_pool2d(e * mask, pool, ceil_mode=True, count_include_pad=False)
        return summed / share.clamp(min=1e-6), share

    def _orthogonality(self, increments: dict[str, Tensor], mask: Tensor | None) -> list[Tensor]:
        names = [name for name in MAP_ORDER if name in increments]
        pairs = [(names[i], names[j]) for i in range(len(names)) for j in range(i + 1, len(names))]
        if self.orth == "none":
            return []
        return [
            orthogonality_loss(increments[a], increments[b], self.orth, self.orth_l1, self.orth_l2, mask)
            for a, b in pairs
        ]


def orthogonality_loss(
    a: Tensor, b: Tensor, form: Orth, l1: float = 0.1, l2: float = 0.1, mask: Tensor | None = None
) -> Tensor:
    """The penalty on two increments of one level (docs/method.md 2, L_orth).

    ``cosine``: l1 * mean|cos(a, b)| + l2 * mean cos^2(a, b), the cosine over channels at each location. It is
    smoothed, <a, b> / sqrt((|a|^2 + eps)(|b|^2 + eps)) with eps = 1e-3, so that gates at zero get finite gradients.
    ``hadamard``: l1 * mean|a b| + l2 * mean (a b)^2, element by element.

    Args:
        a: Increment, float (B, C, h, w).
        b: Increment of the same shape.
        form: ``cosine`` or ``hadamard``.
        l1: Weight of the absolute part.
        l2: Weight of the squared part.
        mask: (B, 1, h, w), 0 at padded locations, which do not count.
    """
    a, b = a.float(), b.float()
    if form == "hadamard":
        product = a * b
    else:
        norm = (
            (a.square().sum(1, keepdim=True) + ORTH_EPS) * (b.square().sum(1, keepdim=True) + ORTH_EPS)
        ).sqrt()
        product = (a * b).sum(1, keepdim=True) / norm
    if mask is None:
        return l1 * product.abs().mean() + l2 * product.square().mean()
    weight = mask.float().expand_as(product)
    count = weight.sum().clamp(min=1)
    return (l1 * (product.abs() * weight).sum() + l2 * (product.square() * weight).sum()) / count


def area_halved(x: Tensor, mask: Tensor | None) -> Tensor:
    """Average blocks of 2 x 2 (those of an odd last row or column are smaller), over valid positions only.

    Args:
        x: (B, C, h, w), zero where ``mask`` is 0.
        mask: (B, 1, h, w) of 0 and 1, or ``None``.

    Returns:
        (B, C, ceil(h / 2), ceil(w / 2)).
    """
    pooled = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    if mask is None:
        return pooled
    share = F.avg_pool2d(mask.to(x.dtype), 2, ceil_mode=True, count_include_pad=False)
    return torch.where(share > 0, pooled / share.clamp(min=1e-6), torch.zeros_like(pooled))


def _groups(dims: int) -> int:
    return next(groups for groups in (32, 16, 8, 4, 2, 1) if dims % groups == 0 and dims // groups >= 4)
