"""How likely a box holds an object, by the detector's confidence and by the scores inside and around it.

A detector's confidence alone says little of that on images unlike its training's; the highest scores inside say much.
A logistic regression with four weights joins them:

    confidence' = sigmoid(w0 + w1 logit(confidence) + w2 h + w3 a)

h is the 98th percentile of the standardised scores inside the box, a their mean in a frame around it, a quarter of the
box wide and 3 pixels. (0, 1, 0, 0) keeps the confidence.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.adt.model import AdtNet
from anomdino.io.boxes import Boxes

PERCENTILE = 98
FRAME_SHARE, FRAME_PIXELS = 0.25, 3
SAMPLES = 128
LEAST_OVERLAP = 0.1
PENALTY = 1.0
NEWTON_STEPS = 50
TINY = 1e-4

FloatMap = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]
Examples = Iterable[tuple[FloatMap, npt.NDArray[np.uint8], Boxes]]


def weighed(boxes: Boxes, score: FloatMap, net: AdtNet) -> Boxes:
    """Give the boxes with the confidence of the module's formula; as they are where the network has no weights for it.

    Args:
        boxes: Boxes with area inside the image (:meth:`Boxes.clipped`).
        score: float32 (H, W), the score map S that the network's statistics describe.
        net: Holds weights and statistics.
    """
    if net.box_weights is None or not len(boxes):
        return boxes
    weights = net.box_weights.double().cpu().numpy()
    logits = weights[0] + features(boxes, score, net) @ weights[1:]
    return Boxes(boxes.xyxy, _sigmoid(logits).astype(np.float32), boxes.details)


def features(boxes: Boxes, score: FloatMap, net: AdtNet) -> Matrix:
    """Measure logit(confidence), h and a of every box, float64 (N, 3).

    Of a large box at most about 128 x 128 evenly spaced pixels are read.
    """
    statistics = net.statistics
    rows = [_inside_and_around(box, score, statistics.sign) for box in boxes.xyxy]
    levels = (np.array(rows, np.float64).reshape(-1, 2) - statistics.mean) / statistics.std
    confidence = boxes.scores.astype(np.float64).clip(TINY, 1 - TINY)
    return np.column_stack([np.log(confidence / (1 - confidence)), levels])


def fit(examples: Examples, net: AdtNet) -> Matrix | None:
    """Fit the four weights on honest boxes: logistic regression with the penalty |w1..w3|^2 / 2.

    A box holds an object when it overlaps the bounding box of one with an IoU of 0.1 or more: loose boxes count. Boxes of
    which more than half is void (255) teach nothing.

    Args:
        examples: Score map, label (0, 1, 255), both (H, W), and boxes of each image, from detectors that did not train
            on it.
        net: Its statistics standardise the scores.

    Returns:
        float64 (4,), or None where the boxes do not tell: all of them hold an object, or none.
    """
    measured, holding = [], []
    for score, label, found in examples:
        boxes = found.clipped((label.shape[0], label.shape[1]))
        boxes = boxes.subset(np.array([_share_of_void(box, label) <= 0.5 for box in boxes.xyxy], bool))
        measured.append(features(boxes, score, net))
        holding.append(holds_object(boxes, label))
    held = np.concatenate([np.zeros(0, bool), *holding])
    if held.all() or not held.any():
        return None
    return _logistic_regression(np.concatenate(measured), held)


def holds_object(boxes: Boxes, label: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Tell for every box whether it overlaps the bounding box of an 8-connected component of label 1: bool (N,)."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((label == 1).view(np.uint8), connectivity=8)
    low = stats[1:, :2].astype(np.float64)
    high = low + stats[1:, 2:4]
    first, last = boxes.xyxy[:, None, :2], boxes.xyxy[:, None, 2:]
    shared = (np.minimum(last, high) - np.maximum(first, low)).clip(0).prod(-1)
    union = (last - first).prod(-1) + (high - low).prod(-1) - shared
    return np.asarray((shared / union >= LEAST_OVERLAP).any(axis=1))


def _inside_and_around(box: npt.NDArray[np.float32], score: FloatMap, sign: int) -> tuple[float, float]:
    """Give the 98th percentile inside a box and the mean of the frame around it, of ``sign * S``."""
    height, width = score.shape
    low, high = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    frame = (FRAME_SHARE * (high - low)).astype(int) + FRAME_PIXELS
    x0, y0 = np.maximum(low - frame, 0)
    x1, y1 = np.minimum(high + frame, [width, height])
    step = max(1, int(np.sqrt((high - low).prod()) / SAMPLES))
    inside = sign * score[low[1] : high[1] : step, low[0] : high[0] : step]
    bands = (
        score[y0 : low[1] : step, x0:x1:step],
        score[high[1] : y1 : step, x0:x1:step],
        score[low[1] : high[1] : step, x0 : low[0] : step],
        score[low[1] : high[1] : step, high[0] : x1 : step],
    )
    around = sign * np.concatenate([band.ravel() for band in bands])
    level = float(np.percentile(inside, PERCENTILE))
    return level, float(around.mean()) if around.size else level


def _share_of_void(box: npt.NDArray[np.float32], label: npt.NDArray[np.uint8]) -> float:
    low, high = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    return float((label[low[1] : high[1], low[0] : high[0]] == 255).mean())


def _logistic_regression(inputs: Matrix, held: npt.NDArray[np.bool_]) -> Matrix:
    """Minimise the sum of cross-entropies plus the penalty by Newton's method: float64 (4,), the intercept first."""
    design = np.column_stack([np.ones(len(inputs)), inputs])
    penalty = PENALTY * np.diag([0.0, 1.0, 1.0, 1.0])
    weights = np.zeros(4)
    for _ in range(NEWTON_STEPS):
        probability = _sigmoid(design @ weights)
        gradient = design.T @ (probability - held) + penalty @ weights
        curvature = (design.T * (probability * (1 - probability))) @ design + penalty
        step = np.linalg.solve(curvature + 1e-9 * np.eye(4), gradient)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    return weights


def _sigmoid(logits: Matrix) -> Matrix:
    return np.asarray(1 / (1 + np.exp(-logits.clip(-50, 50))))
