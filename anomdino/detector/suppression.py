"""Leaving out boxes that better ones make needless."""

from __future__ import annotations

import numpy as np

from anomdino.config.detect import NegativesConfig
from anomdino.io.boxes import Boxes


def non_maximum_suppression(boxes: Boxes, iou: float, cover: float = 1.0) -> Boxes:
    """Drop every box that a better one makes needless; order by falling score.

    Args:
        boxes: Boxes with scores.
        iou: Largest intersection over union with a better box that stays.
        cover: Largest share of its own area inside a better box with which a box stays; 1 keeps boxes within boxes.
    """
    order = np.argsort(-boxes.scores, kind="stable")
    sorted_boxes = boxes.subset(order)
    x, y = sorted_boxes.xyxy[:, :2], sorted_boxes.xyxy[:, 2:]
    lower = np.maximum(x[:, None], x[None])
    upper = np.minimum(y[:, None], y[None])
    shared = np.clip(upper - lower, 0, None).prod(-1)
    area = np.clip(y - x, 0, None).prod(-1)
    overlap = shared / np.maximum(area[:, None] + area[None] - shared, 1e-9)
    inside = shared / np.maximum(area[None], 1e-9)
    needless = (overlap > iou) | (inside > cover)
    keep = np.ones(len(order), bool)
    for index in range(len(order)):
        if keep[index]:
            keep[index + 1 :] &= ~needless[index, index + 1 :]
    return sorted_boxes.subset(keep)


def suppress_covered(objects: Boxes, known: Boxes, config: NegativesConfig) -> Boxes:
    """Drop object boxes that a box of a known class covers with a clearly higher score.

    Args:
        objects: Boxes of anomalous objects.
        known: Boxes of the class names in ``config.names``.
        config: The rule's thresholds.
    """
    known = known.kept(config.score)
    if not (len(objects) and len(known)):
        return objects
    lower = np.maximum(objects.xyxy[:, None, :2], known.xyxy[None, :, :2])
    upper = np.minimum(objects.xyxy[:, None, 2:], known.xyxy[None, :, 2:])
    shared = np.clip(upper - lower, 0, None).prod(-1)
    area = (objects.xyxy[:, 2:] - objects.xyxy[:, :2]).prod(-1)
    covers = shared >= config.cover * area[:, None]
    better = known.scores[None] >= objects.scores[:, None] + config.margin
    return objects.subset(~(covers & better).any(1))
