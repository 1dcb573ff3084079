"""GroundingDINO's attention between image and text, with its products re-associated for short prompts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anomdino.detector.mmdet_parts import BiMultiHeadAttention

_LIMIT = 50000.0


class LeanBiAttention(BiMultiHeadAttention):  # type: ignore[misc]
    """The same function as mmdet's ``BiMultiHeadAttention``, cheaper when the text has few tokens.

    (V W_q) K^T = V (W_q K^T), A_v (L W_v) W_o = A_v (L W_v W_o) and A_l (V W_v) W_o = (A_l V) W_v W_o: with T tokens
    and h heads, the image's N tokens meet matrices of width h T instead of ``embed_dim``. For text where h T is no
    smaller, mmdet's order of products is used.
    """

    @classmethod
    def like(cls, other: BiMultiHeadAttention) -> LeanBiAttention:
        """Build one with the shape of ``other``."""
        return cls(other.v_dim, other.l_dim, other.embed_dim, other.num_heads, other.dropout)

    def forward(
        self,
        vision: Tensor,
        lang: Tensor,
        attention_mask_v: Tensor | None = None,
        attention_mask_l: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend both ways.

        Args:
            vision: float (B, N, v_dim).
            lang: float (B, T, l_dim).
            attention_mask_v: bool (B, N), True at padded image tokens.
            attention_mask_l: bool (B, T); as in mmdet it shifts all weights alike and so changes nothing.

        Returns:
            The updates, (B, N, v_dim) and (B, T, l_dim).
        """
        tokens = lang.shape[1]
        if self.num_heads * tokens >= self.embed_dim:
            updates: tuple[Tensor, Tensor] = super().forward(vision, lang, attention_mask_v, attention_mask_l)
            return updates
        heads = self.num_heads
        keys = torch.unflatten(self.l_proj(lang), -1, (heads, -1))  # (B, T, h, d)
        query_weight = torch.unflatten(self.v_proj.weight, 0, (heads, -1))  # (h, d, v_dim)
        by_token = torch.einsum("bthd,hdv->bvht", keys, query_weight).flatten(2) * self.scale
        shift = (
            torch.einsum("bthd,hd->bht", keys, torch.unflatten(self.v_proj.bias, 0, (heads, -1))).flatten(1)
            * self.scale
        )
        scores = torch.baddbmm(shift.unsqueeze(1), vision, by_token).clamp(-_LIMIT, _LIMIT)  # (B, N, h T)

        to_image = F.dropout(
            torch.unflatten(scores, -1, (heads, tokens)).softmax(-1), self.dropout, self.training
        ).flatten(2)
        values = torch.unflatten(self.values_l_proj(lang), -1, (heads, -1))
        out_weight = torch.unflatten(self.out_v_proj.weight, -1, (heads, -1))  # (v_dim, h, d)
        per_token = torch.einsum("bthd,vhd->bhtv", values, out_weight).flatten(1, 2)
        image_update = torch.bmm(to_image.to(per_token.dtype), per_token) + self.out_v_proj.bias

        flipped = scores.transpose(1, 2)  # (B, h T, N)
        flipped = (flipped - flipped.amax(-1, keepdim=True)).clamp(min=-_LIMIT)
        if attention_mask_v is not None:
            flipped = flipped.masked_fill(attention_mask_v.unsqueeze(1), float("-inf"))
        to_text = F.dropout(flipped.softmax(-1), self.dropout, self.training)
        kept = torch.unflatten(to_text.sum(-1), 1, (heads, tokens))  # 1 but for dropout
        gathered = torch.unflatten(
            torch.bmm(to_text.to(vision.dtype), vision), 1, (heads, tokens)
        )  # (B, h, T, v)
        value_weight = torch.unflatten(self.values_v_proj.weight, 0, (heads, -1))
        mixed = torch.einsum("bhtv,hdv->bthd", gathered, value_weight.to(gathered.dtype))
        mixed = mixed + kept.permute(0, 2, 1).unsqueeze(-1) * torch.unflatten(
            self.values_v_proj.bias, 0, (heads, -1)
        )
        return image_update, self.out_l_proj(mixed.flatten(2).to(self.out_l_proj.weight.dtype))
