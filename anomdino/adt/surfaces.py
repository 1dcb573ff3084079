"""The maps that every output rule is made of, as one function of tensors, and its replay as a CUDA graph."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from anomdino.adt.model import AdtNet, soft_probability
from anomdino.cuda_graphs import record

SIZES_KEPT = 4


class SurfaceTensors(NamedTuple):
    """(H, W) on the model's device, float32 where nothing else is said.

    Attributes:
        raw: sign * S.
        unit: S~ in (0, 1).
        decision: S_n in (0.3, 0.8).
        threshold: T_r of the region that the pixel lies in.
        soft_probability: P~ in (0, 1).
        coverage: Confidence of the best box that covers the pixel, 0 outside.
        inside: bool, whether a box covers the pixel.
        means: (2,), means of the standardised score inside and outside boxes.
        span: (2,), lowest and highest score; NaN where the map holds one.
    """

    raw: Tensor
    unit: Tensor
    decision: Tensor
    threshold: Tensor
    soft_probability: Tensor
    coverage: Tensor
    inside: Tensor
    means: Tensor
    span: Tensor


def surface_tensors(net: AdtNet, scores: Tensor, coverage: Tensor) -> SurfaceTensors:
    """Run the network.

    Args:
        net: ADT-Net in evaluation mode.
        scores: float32 (H, W), the score map S.
        coverage: float32 (H, W), confidence of the best box that covers the pixel, -1 where there is none:
            a box of confidence 0 still covers, for with box_score 0 the union of the boxes counts.
    """
    inside = coverage > -1
    maps = scores[None, None]
    regions = net.regions(net.standardise(maps), inside[None, None])
    output = net(maps, regions.inside, regions)
    return SurfaceTensors(
        raw=scores if net.sign > 0 else -scores,
        unit=net.unit_score(net.standardise(maps))[0, 0],
        decision=output.decision[0, 0],
        threshold=output.threshold[0, 0],
        soft_probability=soft_probability(output.decision, output.threshold, net.architecture.ramp)[0, 0],
        coverage=coverage.clamp_min(0),
        inside=inside,
        means=torch.cat([regions.mean_fg, regions.mean_bg]).flatten(),
        span=torch.stack(scores.aminmax()),
    )


class SurfaceReplay:
    """:func:`surface_tensors` on CUDA, recorded once for every size of map: launching it step by step takes longer.

    The recording reads the network's weights and statistics where they lie, so that changing them in place
    is fine. The last four sizes are kept. Calls from several threads wait for each other.

    Args:
        net: ADT-Net in evaluation mode, on a CUDA device.
    """

    def __init__(self, net: AdtNet) -> None:
        self.net = net
        self._recorded: OrderedDict[tuple[int, ...], Callable[[Tensor, Tensor], SurfaceTensors]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, scores: Tensor, coverage: Tensor) -> SurfaceTensors:
        """Give what :func:`surface_tensors` gives, in memory of its own."""
        with self._lock:
            key = (*scores.shape, self.net.sign)
            if key not in self._recorded:
                while len(self._recorded) >= SIZES_KEPT:
                    self._recorded.popitem(last=False)
                self._recorded[key] = record(partial(surface_tensors, self.net), scores, coverage)
            self._recorded.move_to_end(key)
            return self._recorded[key](scores, coverage)
