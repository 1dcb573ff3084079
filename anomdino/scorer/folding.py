"""Linear layers that follow one another made one, for inference: batch normalisations, 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module) -> int:
    """Fold every batch normalisation that directly follows a convolution.

    That is so in a ``Sequential``, and where a module says so by ``NORM_PAIRS``, pairs of names of its
    children.

    ``Sequential`` modules nested in one another count as one chain. The network is changed in place
    and must be in evaluation mode; its outputs stay the same up to rounding.

    Args:
        network: Any module.

    Returns:
        The number of normalisations folded away.

    Raises:
        ValueError: The network is in training mode.
    """
    if network.training:
        raise ValueError("batch normalisation can only be folded in evaluation mode: call .eval() first")
    folded = sum(_fold_pairs(module) for module in network.modules())
    for chain in _chains(network):
        previous: tuple[nn.Module, str] | None = None
        for parent, name in _leaves(chain):
            leaf = parent.get_submodule(name)
            if isinstance(leaf, nn.BatchNorm2d) and previous is not None:
                _fold(*previous, parent, name)
                folded += 1
            previous = (parent, name) if isinstance(leaf, nn.Conv2d) else None
    return folded


def _fold_pairs(module: nn.Module) -> int:
    pairs = [
        pair
        for pair in getattr(module, "NORM_PAIRS", ())
        if isinstance(getattr(module, pair[0], None), nn.Conv2d)
        and isinstance(getattr(module, pair[1], None), nn.BatchNorm2d)
    ]
    for convolution, norm in pairs:
        _fold(module, convolution, module, norm)
    return len(pairs)


def _fold(holder: nn.Module, convolution_name: str, parent: nn.Module, norm_name: str) -> None:
    convolution, norm = holder.get_submodule(convolution_name), parent.get_submodule(norm_name)
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    setattr(holder, convolution_name, fuse_conv_bn_eval(convolution, norm))
    setattr(parent, norm_name, nn.Identity())


def _chains(network: nn.Module) -> Iterator[nn.Sequential]:
    if isinstance(network, nn.Sequential):
        yield network
        inner = [parent.get_submodule(name) for parent, name in _leaves(network)]
    else:
        inner = list(network.children())
    for child in inner:
        yield from _chains(child)


def _leaves(chain: nn.Sequential) -> Iterator[tuple[nn.Module, str]]:
    for name, child in list(chain.named_children()):
        if isinstance(child, nn.Sequential):
            yield from _leaves(child)
        else:
            yield chain, name


def composed(outer: nn.Module, inner: nn.Conv2d) -> nn.Conv2d:
    """Give ``outer(inner(x))`` without outer's bias, for a 1x1 ``inner`` without bias."""
    assert isinstance(outer, nn.Conv2d)
    joined = nn.Conv2d(inner.in_channels, outer.out_channels, 3, padding=1, bias=False, device="meta")
    weight = torch.einsum("okyx,ki->oiyx", outer.weight.double(), inner.weight[..., 0, 0].double())
    joined.weight = nn.Parameter(weight.to(outer.weight.dtype), requires_grad=False)
    return joined
