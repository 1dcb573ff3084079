"""Results of scoring: score and uncertainty maps of an image, and those still on their way from the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from anomdino.io.scores import check_score
from anomdino.uncertainty import UncertaintyMaps

NOT_FINITE = "check the scorer's weights; in half precision try score.precision: fp32"


@dataclass(frozen=True, eq=False)
class Scored:
    """Result for one image.

    Attributes:
        score: S, float32 (H, W), higher = more anomalous.
        maps: Uncertainty maps of the closed-set prediction.
    """

    score: npt.NDArray[np.float32]
    maps: UncertaintyMaps

    def with_score(self, score: npt.NDArray[np.float32], stride: int) -> Scored:
        """Put another method's score map (H, W) in place of the scorer's."""
        small = pooled(torch.from_numpy(score)[None, None], stride)[0, 0].numpy()
        return Scored(score, replace(self.maps, score=small))


class Part(NamedTuple):
    """Results of one batch on their way to the CPU: score (B, H, W), maps (B, C + 2, h, w) or none, pooled (B, h, w)."""

    score: Tensor
    maps: Tensor | None
    pooled: Tensor
    size: tuple[int, int]
    names: tuple[object, ...]
    arrived: torch.cuda.Event | None


@dataclass(frozen=True)
class PendingScores:
    """Scores that were launched.

    Attributes:
        parts: Batches in order.
    """

    parts: list[Part]

    def results(self) -> list[Scored]:
        """Wait for the results, launched with maps.

        Raises:
            DataError: A score is NaN or infinite; the message names the image.
        """
        return [scored for part in self.parts for scored in _collected(part)]

    def scores(self) -> list[npt.NDArray[np.float32]]:
        """Wait for the scores alone, float32 (H, W) each.

        Raises:
            DataError: A score is NaN or infinite; the message names the image.
        """
        return [score for part in self.parts for score in _arrived(part)]


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps, float (B, C, h, w), to ``size`` (H, W), bilinearly and without aliasing."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)


def pooled(maps: Tensor, stride: int) -> Tensor:
    """Average (B, C, H, W) over blocks of stride x stride; blocks at the end may be partial."""
    if stride == 1:
        return maps
    return F.avg_pool2d(maps, stride, ceil_mode=True, count_include_pad=False)


def _arrived(part: Part) -> npt.NDArray[np.float32]:
    """Wait for the scores of a part, (B, H, W), and check them."""
    if part.arrived is not None:
        part.arrived.synchronize()
    scores: npt.NDArray[np.float32] = part.score.numpy()
    for name, score in zip(part.names, scores, strict=True):
        check_score(name, score, cure=NOT_FINITE)
    return scores


def _collected(part: Part) -> list[Scored]:
    scores = _arrived(part)
    assert part.maps is not None
    maps, small = part.maps.numpy(), part.pooled.numpy()
    return [
        Scored(
            scores[index],
            UncertaintyMaps(
                semantic=maps[index, :-2],
                entropy=maps[index, -2],
                distance=maps[index, -1],
                score=small[index],
                image_size=part.size,
            ),
        )
        for index in range(len(scores))
    ]
