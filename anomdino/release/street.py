"""Scenes in which a known class is the anomaly (:mod:`anomdino.scorer.unlearned`), for trainings of the released model.

Such objects stand where they stood when the photo was taken: nothing about their looks tells that they are meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.adt.model import ScoreStatistics
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.scored import Scored
from anomdino.scorer.unlearned import unlearn

OBJECTS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
"""Classes that are objects, train ids of Cityscapes: lights and signs, people, vehicles."""
CLASSES = 2
"""Classes of a scene that are the anomaly, one after the other."""
LEAST = 60
"""Fewest pixels of such a class."""
LEVEL, SPREAD = 3.2, 0.35
"""How much the standardised score of an anomaly rises: median and deviation of its logarithm, from scene to scene."""
STANDS_OUT = 1.0
"""Least median standardised score of an object that counts; what the scorer does not see is not to be outlined."""
MAP_STRIDE = 4
VOID = 255


class Case(NamedTuple):
    """A scene in which a class is the anomaly.

    Attributes:
        number: The class.
        scored: Score and maps.
        label: uint8 (H, W): 1 where the class stands out, 255 where it does not and where the scene is void, 0 elsewhere.
    """

    number: int
    scored: Scored
    label: npt.NDArray[np.uint8]


def cases(
    engine: ScoringEngine,
    image: npt.NDArray[np.uint8],
    label: npt.NDArray[np.uint8],
    statistics: ScoreStatistics,
    source: np.random.Generator,
) -> Iterator[Case]:
    """Make anomalies of classes of a scene; a class of which nothing stands out is left out.

    Args:
        engine: The scorer, with ``map_stride`` 1.
        image: uint8 (H, W, 3), RGB.
        label: uint8 (H, W), train ids, 255 is void.
        statistics: What the ADT-Net standardises scores with.
        source: Random numbers; the same state gives the same cases.
    """
    present = [number for number in OBJECTS if (label == number).sum() >= LEAST]
    chosen = source.permutation(present)[:CLASSES]
    if not len(chosen):
        return
    scored = engine.score(image)
    for number in map(int, chosen):
        strength = float(np.exp(source.normal(np.log(LEVEL), SPREAD))) * statistics.std
        one = unlearn(scored, image, number, strength, engine.options.refine, MAP_STRIDE)
        standardised = (statistics.sign * one.score - statistics.mean) / statistics.std
        anomalous = visible(label == number, standardised)
        if anomalous.any():
            yield Case(number, one, case_label(label, number, anomalous))


def visible(objects: npt.NDArray[np.bool_], standardised: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Give the 8-connected parts of a mask, (H, W), whose median standardised score stands out."""
    count, parts = cv2.connectedComponents(objects.astype(np.uint8), connectivity=8)
    stays = [part for part in range(1, count) if np.median(standardised[parts == part]) >= STANDS_OUT]
    return np.isin(parts, stays)


def case_label(
    label: npt.NDArray[np.uint8], number: int, anomalous: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """Write a case's label from the scene's, uint8 (H, W)."""
    void = (label == VOID) | (label == number)
    return np.where(anomalous, 1, np.where(void, VOID, 0)).astype(np.uint8)
