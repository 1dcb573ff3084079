"""CUDA graphs: a function of tensors is recorded once and replayed without launching its operations one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Tensors = TypeVar("Tensors", bound=tuple[Any, ...])


def record(function: Callable[..., Tensors], *inputs: Tensor) -> Callable[..., Tensors]:
    """Record a function for inputs of these shapes and give a function that replays it.

    Weights are read where they lie, so that changing them in place is fine. Other threads may use CUDA meanwhile.

    Args:
        function: Maps CUDA tensors to a named tuple of CUDA tensors; it must not wait for the device.
        inputs: CUDA tensors; those of a replay need the same shapes and types.

    Returns:
        A function of as many tensors whose results lie in memory of their own.

    Raises:
        RuntimeError: The function waits for the device, or memory does not suffice.
    """
    still = tuple(tensor.clone() for tensor in inputs)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            function(*still)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function(*still)

    def replay(*new: Tensor) -> Tensors:
        for kept, tensor in zip(still, new, strict=True):
            kept.copy_(tensor)
        graph.replay()
        return type(result)(*(part.clone() for part in result))

    return replay
