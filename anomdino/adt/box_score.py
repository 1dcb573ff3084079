"""Which confidence a box needs: chosen for recall on the training images, for detectors differ in their scale."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from anomdino.adt.evidence import holds_object
from anomdino.io.boxes import Boxes

STEPS = 100
BETA = 2.0


def choose_box_score(images: Iterable[tuple[Boxes, npt.NDArray[np.uint8]]], fallback: float = 0.3) -> float:
    """Find the confidence whose boxes cover the anomalous pixels best by F2, recall counting twice.

    Precision and recall are those of the union of the boxes as a mask, pooled over all images.

    Args:
        images: Boxes of detectors that did not train on the image, and the label (H, W) with 0, 1, 255.
        fallback: Given where no box covers any anomalous pixel.

    Returns:
        A multiple of 0.01 in [0.01, 0.99]; the lowest among equals.
    """
    covered = np.zeros((2, STEPS + 1))
    for boxes, label in images:
        coverage = boxes.clipped((label.shape[0], label.shape[1])).coverage(label.shape)
        level = np.floor(coverage * STEPS + 1e-4).astype(np.int64)
        for kind in (0, 1):
            covered[kind] += np.bincount(level[label == kind], minlength=STEPS + 1)
    return _best_f2(covered, fallback)


def choose_for_objects(images: Iterable[tuple[Boxes, npt.NDArray[np.uint8]]], fallback: float = 0.3) -> float:
    """Find the confidence whose boxes are best by F2 when every box counts once, and not its pixels.

    For weighed confidences (`anomdino.adt.evidence`), which tell a box on a far object from one around nothing: there a
    small object counts as much as a large one.

    Args:
        images: Boxes with weighed confidences, inside the image, and the label (H, W) with 0, 1, 255.
        fallback: Given where no box holds an object.

    Returns:
        A multiple of 0.01 in [0.01, 0.99]; the lowest among equals.
    """
    counts = np.zeros((2, STEPS + 1))
    for boxes, label in images:
        level = np.floor(boxes.scores * STEPS + 1e-4).astype(np.int64)
        held = holds_object(boxes, label)
        for kind in (0, 1):
            counts[kind] += np.bincount(level[held == kind], minlength=STEPS + 1)
    return _best_f2(counts, fallback)


def _best_f2(counts: npt.NDArray[np.float64], fallback: float) -> float:
    """Give the level of best F2 from the numbers of wrong and right ones (2, STEPS + 1) at each level."""
    alarms, hits = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    weight = BETA**2
    found, kept = hits[1:STEPS], hits[1:STEPS] + alarms[1:STEPS]
    score = (1 + weight) * found / np.maximum(kept + weight * hits[0], 1)
    return (1 + int(np.argmax(score))) / STEPS if score.max() > 0 else fallback
