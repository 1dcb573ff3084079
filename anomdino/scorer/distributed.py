"""Several training processes under torchrun that compute what one would: shared counts, shared batch
statistics.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """The processes of a training: ``rank`` of this one, ``size`` of all, and the device of this one."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and validates."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()

    def share(self, value: float) -> float:
        """Give every process the value of the first."""
        if self.size == 1:
            return value
        holder = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(holder, 0)
        return float(holder)

    def share_content(self, content: Any) -> Any:
        """Give every process what the first one has: plain values or bytes; what the others give is not looked at."""
        if self.size == 1:
            return content
        holder = [content if self.leads else None]
        dist.broadcast_object_list(holder, 0)
        return holder[0]

    def average(self, value: Tensor) -> Tensor:
        """Average a detached tensor over processes."""
        return value.detach() if self.size == 1 else sum_over_processes(value.detach()) / self.size

    def minimum(self, value: int) -> int:
        """Give every process the smallest of their values."""
        if self.size == 1:
            return value
        holder = torch.tensor(value, device=self.device)
        dist.all_reduce(holder, dist.ReduceOp.MIN)
        return int(holder)

    def count(self, count: Tensor) -> Tensor:
        """Turn a pixel count into a divisor; sums over it average, over processes, to the global mean."""
        if self.size == 1:
            return count.clamp(min=1)
        return sum_over_processes(count.detach()).clamp(min=1) / self.size

    def parallel(self, objective: nn.Module) -> nn.Module:
        """Wrap an objective so that gradients are averaged over processes."""
        if self.size == 1:
            return objective
        synchronise_batch_norm(objective)
        return DistributedDataParallel(objective, find_unused_parameters=True, broadcast_buffers=False)


PATIENCE = timedelta(minutes=30)


@contextmanager
def joined_processes(device: torch.device, patience: timedelta = PATIENCE) -> Iterator[World]:
    """Join the processes that torchrun started (gloo on a CPU, nccl on GPUs); alone without torchrun.

    Args:
        device: Where each process trains.
        patience: How long a process waits for the others before it gives up.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over processes; gradients flow back to every one."""
    total: Tensor = _SumOverProcesses.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def gather_from_processes(tensor: Tensor) -> Tensor:
    """Give the tensors of all processes, which have the same shape, stacked by rank; no gradient flows back."""
    every = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(every, tensor)
    return torch.stack(every)


class _NormOfAllProcesses(torch.autograd.Function):
    """Batch normalisation by the statistics of all processes, by torch's own kernels for one.

    They are told the statistics in place of their own; what that leaves out of the gradient is a multiple of the maps
    and an offset in every channel.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        mean, variance = torch.batch_norm_update_stats(
            maps, None, None, 0.0
        )  # a quarter of the time of var_mean
        own = maps.new_tensor([maps.numel() // maps.shape[1]])
        every = gather_from_processes(torch.cat([own, mean, variance]))
        channels = len(mean)
        counts, means, variances = every[:, :1], every[:, 1 : 1 + channels], every[:, 1 + channels :]
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        ctx.save_for_backward(maps, weight, mean, torch.rsqrt(variance + eps), own, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)
        normalised = nn.functional.batch_norm(maps, mean, variance, weight, bias, False, 0.0, eps)
        return normalised, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        maps, weight, mean, scale, own, total = ctx.saved_tensors
        of_maps, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], maps, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        local = torch.stack([of_weight, of_bias])
        slope, offset = weight * scale * (local / own - sum_over_processes(local) / total)
        of_maps += (offset - slope * scale * mean)[:, None, None]
        of_maps.addcmul_(maps, (slope * scale)[:, None, None])
        return of_maps, of_weight, of_bias, None


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes; torch's own version is for GPUs alone."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.training:
            return super().forward(maps)
        normalised, mean, variance, total = _NormOfAllProcesses.apply(
            maps.float(), self.weight, self.bias, self.eps
        )  # type: ignore[no-untyped-call]
        self._update(mean, variance * total / (total - 1).clamp(min=1))
        result: Tensor = normalised.to(maps.dtype)
        return result

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def synchronise_batch_norm(module: nn.Module) -> None:
    """Turn every batch normalisation below a module into the synchronised one, in place, weights and names
    kept.
    """
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SynchronisedBatchNorm2d
