"""The light scorer rearranged for inference: the same function with less arithmetic."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.scorer.base import ScorerOutput, enlarged, resize
from anomdino.scorer.efficientnet_lite import LightScorer
from anomdino.scorer.folding import composed


class FusedLightScorer(nn.Module):
    """A :class:`LightScorer` for inference.

    The head's first convolution is linear: its output for d + r is that for d plus that for r, and with
    ``atten_aspp_final`` it is one convolution of q, so r is never made (as in
    :class:`~anomdino.scorer.wide_resnet38_fused.FusedWideResNet38`).

    Args:
        scorer: A network in evaluation mode whose batch normalisations were folded; its layers are taken over.
    """

    def __init__(self, scorer: LightScorer) -> None:
        super().__init__()
        block = scorer.residual_block
        self.scorer = scorer
        self.atten_aspp, self.bot_atten_aspp = block.atten_aspp, block.bot_atten_aspp
        self.residual_head = composed(scorer.final[0], block.atten_aspp_final)
        self.first, self.rest = scorer.final[0], scorer.final[3:]
        del scorer.residual_block
        del scorer.final

    def forward(self, images: Tensor) -> ScorerOutput:
        """Compute both sets of logits at the size of the images (see :meth:`Scorer.forward`)."""
        logits, residual_logits = (self._finished(path, images) for path in self._paths(images))
        return ScorerOutput(logits, residual_logits)

    def residual_logits(self, images: Tensor) -> Tensor:
        """Compute the residual logits of :meth:`forward` alone, (B, C, H, W)."""
        _, residual = self._paths(images)
        return self._finished(residual, images)

    def _paths(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both paths up to the head's first convolution, at stride 4."""
        deep, decoder = self.scorer.closed_set_features(images)
        attention = resize(self.bot_atten_aspp(self.atten_aspp(deep)), decoder.shape[-2:])
        closed = self.first(decoder)
        return closed, self.residual_head(attention).add_(closed)

    def _finished(self, path: Tensor, images: Tensor) -> Tensor:
        return enlarged(self.rest(F.relu_(path)), images.shape[-2:])
