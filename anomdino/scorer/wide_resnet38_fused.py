"""RPL's network rearranged for inference: the same function with less arithmetic and less memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.scorer.aspp import ASPP
from anomdino.scorer.base import ScorerOutput, resize
from anomdino.scorer.wide_resnet38 import WideResNet38Scorer


class TwinASPP(nn.Module):
    """Two ASPPs on the same input as one: every convolution has the output channels of both.

    Args:
        first: An ASPP whose batch normalisations were folded.
        second: Its twin.
    """

    def __init__(self, first: ASPP, second: ASPP) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            _side_by_side(a, b) for a, b in zip(first.features, second.features, strict=True)
        )
        self.img_conv = _side_by_side(first.img_conv, second.img_conv)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, h, w) to the outputs of both ASPPs."""
        pooled = F.relu_(self.img_conv(maps.mean(dim=(2, 3), keepdim=True)))
        branches = [resize(pooled, maps.shape[-2:]), *(F.relu_(branch(maps)) for branch in self.features)]
        halves = [branch.chunk(2, dim=1) for branch in branches]
        return torch.cat([half[0] for half in halves], dim=1), torch.cat([half[1] for half in halves], dim=1)


class FusedWideResNet38(nn.Module):
    """A :class:`WideResNet38Scorer` for inference.

    The twin ASPPs share their passes over z. The head's first convolution is linear: its output for d + r is
    that for d plus that for r, and with ``atten_aspp_final`` it is one convolution of q, so r is never made.
    The rest of the head runs on both paths as a batch on CUDA, and on one after the other, for memory,
    elsewhere.

    Args:
        scorer: A network in evaluation mode whose batch normalisations were folded; its layers are taken
        over.
    """

    def __init__(self, scorer: WideResNet38Scorer) -> None:
        super().__init__()
        branch = scorer.branch1
        block = scorer.residual_module()
        self.branch = branch
        self.twin = TwinASPP(branch.aspp, _as_aspp(block.atten_aspp))
        self.bot_atten_aspp = block.bot_atten_aspp
        self.residual_head = _composed(branch.final[0], block.atten_aspp_final)
        self.head = branch.final[3:]
        del branch.aspp
        del branch.residual_block

    def forward(self, images: Tensor) -> ScorerOutput:
        """Compute both sets of logits at the size of the images (see :meth:`Scorer.forward`)."""
        low_level, deep = self.branch.trunk(images)
        size = low_level.shape[-2:]
        context, attention = self.twin(deep)
        del deep
        context = self.branch.bot_aspp(context)
        attention = resize(self.bot_atten_aspp(attention), size)
        decoder = torch.cat([self.branch.bot_fine(low_level), resize(context, size)], dim=1)
        del low_level, context
        closed = self.branch.final[0](decoder)
        del decoder
        residual = self.residual_head(attention).add_(closed)
        del attention
        paths = [closed, residual]
        del closed, residual
        if images.is_cuda:
            paths = [torch.cat(paths)]
        logits = torch.cat([self.head(F.relu_(paths.pop(0))) for _ in range(len(paths))])
        return ScorerOutput(*resize(logits, images.shape[-2:]).chunk(2))


def _side_by_side(first: nn.Module, second: nn.Module) -> nn.Conv2d:
    a, b = _convolution(first), _convolution(second)
    joined = nn.Conv2d(
        a.in_channels,
        a.out_channels + b.out_channels,
        a.kernel_size,  # type: ignore[arg-type]
        padding=a.padding,  # type: ignore[arg-type]
        dilation=a.dilation,  # type: ignore[arg-type]
        device="meta",
    )
    assert a.bias is not None
    assert b.bias is not None
    joined.weight = nn.Parameter(torch.cat([a.weight, b.weight]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([a.bias, b.bias]), requires_grad=False)
    return joined


def _composed(outer: nn.Module, inner: nn.Conv2d) -> nn.Conv2d:
    """Give ``outer(inner(x))`` without outer's bias, for a 1x1 ``inner`` without bias."""
    assert isinstance(outer, nn.Conv2d)
    joined = nn.Conv2d(inner.in_channels, outer.out_channels, 3, padding=1, bias=False, device="meta")
    weight = torch.einsum("okyx,ki->oiyx", outer.weight.double(), inner.weight[..., 0, 0].double())
    joined.weight = nn.Parameter(weight.to(outer.weight.dtype), requires_grad=False)
    return joined


def _convolution(branch: nn.Module) -> nn.Conv2d:
    assert isinstance(branch, nn.Sequential)
    convolution = branch[0]
    assert isinstance(convolution, nn.Conv2d)
    return convolution


def _as_aspp(module: nn.Module) -> ASPP:
    assert isinstance(module, ASPP)
    return module
