"""Known classes as anomalies: what a scorer would have said of a class that it had not learned.

Objects that are pasted into a scene give themselves away by their looks. Cars and people belong to theirs, and a scorer
knows what the energy of a pixel would be without one of its classes: leaving class c out of -log sum exp(z) raises it by
-log(1 - p_c). Nothing else of the scene changes, and the score has the outlines that a network's score has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anomdino.errors import DataError
from anomdino.scorer.base import gaussian_blur, normalise
from anomdino.scorer.guided import refine
from anomdino.scorer.scored import Scored, pooled
from anomdino.uncertainty import UncertaintyMaps

MOST = 5.0
"""The rise of the energy, -log(1 - p), from which on a pixel counts as wholly of the class: p = 0.993."""
LEAST_PROBABILITY = 1e-4

FloatMap = npt.NDArray[np.float32]


def energy_rise(probability: FloatMap) -> FloatMap:
    """Give how much the energy rises without a class, in units of the most that counts: float32 (H, W) in [0, 1].

    Args:
        probability: float (H, W), of the class, in [0, 1].
    """
    certain = 1 - np.exp(-MOST)
    rise = -np.log1p(-np.clip(np.asarray(probability, np.float32), 0, certain)) / MOST
    return np.asarray(rise, np.float32)


def unlearn(
    scored: Scored,
    image: npt.NDArray[np.uint8],
    number: int,
    strength: float,
    radii: Sequence[int] = (),
    stride: int = 1,
) -> Scored:
    """Make an anomaly of a class.

    Args:
        scored: What the scorer says of the image, its maps at the size of the image (``score.map_stride: 1``).
        image: uint8 (H, W, 3), RGB.
        number: The class.
        strength: How much the score of a pixel rises that is wholly of the class, in the score's units.
        radii: Radii with which the score is refined by the photo (``score.refine``).
        stride: Factor by which the maps are pooled.

    Returns:
        The score with the rise, blurred and refined as a score is, and the maps of the other classes alone: their
        probabilities, the entropy and the distance ``margin1`` of these.

    Raises:
        DataError: The maps are not of the size of the image, or have no such class.
    """
    classes, *size = scored.maps.semantic.shape
    if tuple(size) != scored.score.shape or not 0 <= number < classes:
        raise DataError(
            "uncertainty maps",
            f"are {size} for {classes} classes, the image is {scored.score.shape}, the class {number}",
            "score with score.map_stride: 1",
        )
    rise = gaussian_blur(
        torch.from_numpy(energy_rise(scored.maps.semantic[number]) * np.float32(strength))[None]
    )
    refined = refine(rise, normalise(torch.from_numpy(image)[None]), radii)[0].numpy()
    maps = replace(scored.maps, score=scored.maps.score + rise[0].numpy())
    return Scored(np.asarray(scored.score + refined, np.float32), without_class(maps, number, stride))


def without_class(maps: UncertaintyMaps, number: int, stride: int = 1) -> UncertaintyMaps:
    """Give the maps of a scorer that lacks a class, pooled by ``stride``; the score stays, pooled too."""
    others = torch.from_numpy(maps.semantic).float() + LEAST_PROBABILITY
    others[number] = 0
    others /= others.sum(0)
    entropy = torch.special.entr(others).sum(0) / np.log(len(others))
    first, second = others.topk(2, dim=0).values

    def small(values: Tensor) -> npt.NDArray[np.float32]:
        return np.asarray(pooled(values[None], stride)[0].numpy(), np.float32)

    return replace(
        maps,
        semantic=small(others).astype(np.float16),
        entropy=small(entropy[None])[0].astype(np.float16),
        distance=small((1 - first + second)[None])[0].astype(np.float16),
        score=small(torch.from_numpy(maps.score)[None])[0],
    )
