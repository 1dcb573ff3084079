"""The uncertainty maps of the closed-set prediction, which OUAFS reads (docs/method.md 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError
from anomdino.io.atomic import atomic_path
from anomdino.io.npz import DAMAGED, open_npz, write_npz

if TYPE_CHECKING:
    import torch

SemanticKind = Literal["probabilities", "onehot"]
DistanceKind = Literal["margin1", "one_minus_p1", "margin"]


class MapTensors(NamedTuple):
    """Uncertainty maps of a batch: semantic (B, C, H, W), entropy (B, H, W), distance (B, H, W), float32 in [0, 1]."""

    semantic: torch.Tensor
    entropy: torch.Tensor
    distance: torch.Tensor


def uncertainty_maps(
    logits: torch.Tensor, semantic: SemanticKind = "probabilities", distance: DistanceKind = "margin1"
) -> MapTensors:
    """Compute the three uncertainty maps of closed-set logits.

    With P = softmax(Z) and p1 >= p2 the two largest of a pixel: U_S = P (or its one-hot argmax),
    U_E = -sum p log p / log C, U_D = 1 - (p1 - p2) (or 1 - p1, or the raw margin p1 - p2).

    Args:
        logits: Z of the frozen closed-set head, float (B, C, H, W).
        semantic: ``probabilities`` or ``onehot``.
        distance: ``margin1`` = 1 - (p1 - p2), ``one_minus_p1`` = 1 - p1, ``margin`` = p1 - p2.
    """
    import torch

    log_p = torch.log_softmax(logits.float(), dim=1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(dim=1) / math.log(logits.shape[1])
    first, second = two_largest(p)
    distances = {"margin1": 1 - (first - second), "one_minus_p1": 1 - first, "margin": first - second}
    if semantic == "onehot":
        p = torch.zeros_like(p).scatter_(1, p.argmax(dim=1, keepdim=True), 1.0)
    return MapTensors(p, entropy.clamp(0, 1), distances[distance].clamp(0, 1))


def two_largest(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the two largest values along axis 1: (B, C, H, W), C >= 2, to twice (B, H, W).

    On CUDA by passes that a compiler fuses, elsewhere class by class; topk sorts, and takes ten times as long.
    """
    if p.is_cuda:
        return _two_largest_by_passes(p)
    import torch

    first, second = torch.maximum(p[:, 0], p[:, 1]), torch.minimum(p[:, 0], p[:, 1])
    for values in p[:, 2:].unbind(1):
        second = torch.maximum(second, torch.minimum(first, values))
        first = torch.maximum(first, values)
    return first, second


def _two_largest_by_passes(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    classes = torch.arange(p.shape[1], device=p.device)[:, None, None]
    largest = classes == p.argmax(dim=1, keepdim=True)
    return p.amax(dim=1), p.masked_fill(largest, -math.inf).amax(dim=1)


@dataclass(frozen=True, eq=False)
class UncertaintyMaps:
    """What the detector reads of the scorer for one image, area-pooled to (h, w).

    Attributes:
        semantic: float16 (C, h, w), class probabilities of the closed-set head.
        entropy: float16 (h, w) in [0, 1].
        distance: float16 (h, w) in [0, 1].
        score: float32 (h, w), the residual anomaly score S.
        image_size: (H, W) of the image in pixels.
    """

    semantic: npt.NDArray[np.float16]
    entropy: npt.NDArray[np.float16]
    distance: npt.NDArray[np.float16]
    score: npt.NDArray[np.float32]
    image_size: tuple[int, int]

    def save(self, path: Path | str) -> None:
        """Write the maps as npz, whole or not at all; uncompressed, for probabilities in float16 hardly shrink."""
        with atomic_path(path) as temporary:
            write_npz(
                temporary,
                {
                    "semantic": self.semantic.astype(np.float16),
                    "entropy": self.entropy.astype(np.float16),
                    "distance": self.distance.astype(np.float16),
                    "score": self.score.astype(np.float32),
                    "image_size": np.array(self.image_size, np.int64),
                },
            )

    @staticmethod
    def load(path: Path | str) -> UncertaintyMaps:
        """Read maps written by :meth:`save`.

        Raises:
            DataError: The file is missing, damaged or lacks a map, the maps differ in size, or one is not finite.
        """
        cure = "remove it, run the score stage"
        try:
            with open_npz(path) as stored:
                height, width = stored["image_size"].tolist()
                found = {name: stored[name] for name in ("semantic", "entropy", "distance", "score")}
        except FileNotFoundError as error:
            raise DataError(path, "does not exist", "run the score stage first: `dvc repro score`") from error
        except DAMAGED as error:
            raise DataError(path, f"holds no uncertainty maps or is damaged ({error})", cure) from error
        shapes = {name: values.shape for name, values in found.items()}
        if found["semantic"].ndim != 3 or len({shape[-2:] for shape in shapes.values()}) > 1:
            raise DataError(path, f"holds maps of unequal shapes: {shapes}", cure)
        odd = {name: int((~np.isfinite(values)).sum()) for name, values in found.items()}
        if any(odd.values()):
            counts = ", ".join(f"{count} of {name}" for name, count in odd.items() if count)
            raise DataError(path, f"holds NaN or infinite numbers: {counts}", cure)
        return UncertaintyMaps(**found, image_size=(height, width))
