"""Removing small components from a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

BoolMap = npt.NDArray[np.bool_]


def remove_small_components(mask: BoolMap, min_component: int) -> BoolMap:
    """Remove 8-connected components with fewer than ``min_component`` pixels from a bool (H, W) mask.

    Components are followed along their outlines, which costs a fraction of a label for every pixel.
    """
    if min_component <= 1 or not mask.any():
        return mask
    outlines, hierarchy = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parents = hierarchy[0, :, 3]
    owners = np.where(
        parents < 0, np.arange(len(parents)), parents
    )  # an outline's component, by its outer outline
    pixels = np.bincount(owners, weights=_pixels_within(outlines, parents >= 0), minlength=len(owners))
    small = [
        outline for outline, owner in zip(outlines, owners, strict=True) if pixels[owner] < min_component
    ]
    if not small:
        return mask
    cleaned = mask.copy()
    cv2.fillPoly(cleaned.view(np.uint8), small, 0)
    return cleaned


def _pixels_within(outlines: Sequence[npt.NDArray[Any]], is_hole: BoolMap) -> npt.NDArray[np.float64]:
    """Count what each outline adds to its component's pixels, by Pick's theorem: float64 (N,).

    An outline runs through the centres of pixels, ``steps`` of them. An outer one with the area A encloses
    A + steps / 2 + 1 pixels, its own included; that of a hole runs on the component and encloses A - steps / 2 + 1
    others.
    """
    areas = np.array([cv2.contourArea(outline) for outline in outlines])
    steps = np.array([len(outline) if len(outline) > 1 else 0 for outline in outlines])
    return np.where(is_hole, steps / 2 - areas - 1, areas + steps / 2 + 1)
