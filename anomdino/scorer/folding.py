"""Batch normalisation folded into the convolution before it, for inference."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module) -> int:
    """Fold every batch normalisation that directly follows a convolution in a ``Sequential``.

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
    folded = 0
    for chain in _chains(network):
        previous: tuple[nn.Module, str] | None = None
        for parent, name in _leaves(chain):
            leaf = parent.get_submodule(name)
            if isinstance(leaf, nn.BatchNorm2d) and previous is not None:
                holder, convolution_name = previous
                convolution = holder.get_submodule(convolution_name)
                assert isinstance(convolution, nn.Conv2d)
                setattr(holder, convolution_name, fuse_conv_bn_eval(convolution, leaf))
                setattr(parent, name, nn.Identity())
                folded += 1
            previous = (parent, name) if isinstance(leaf, nn.Conv2d) else None
    return folded


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
