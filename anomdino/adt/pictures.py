"""Pictures of what ADT-Net decides on one image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.adt.fusion import AdtModel, fuse
from anomdino.adt.model import LOW, SPAN
from anomdino.io.boxes import Boxes
from anomdino.io.images import write_png


def draw_decision(
    path: Path,
    score: npt.NDArray[np.float32],
    label: npt.NDArray[np.uint8],
    boxes: Boxes,
    model: AdtModel,
    image: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Write four panels side by side: final score, S_n, thresholds, and the mask with boxes.

    The score is drawn from 0 (dark) to 1 + b, a raw one from its lowest to its highest value, S_n and thresholds from
    0.3 to 0.8. In the mask panel hits are green, false positives red, misses blue, void grey.

    Args:
        path: The PNG file.
        score: float32 (H, W), higher = more anomalous.
        label: uint8 (H, W), 0 / 1 / 255.
        boxes: Boxes in pixels of the map.
        model: ADT-Net with its rule.
        image: uint8 (H, W, 3), RGB; a model that outlines objects needs it.
    """
    fused = fuse(score, boxes, model, image=image)
    raw = model.rule.output == "raw"
    low, high = (float(fused.score.min()), float(fused.score.max())) if raw else (0.0, 1 + model.rule.b)
    surfaces = (
        (fused.score - low) / (high - low),
        (fused.decision - LOW) / SPAN,
        (fused.threshold - LOW) / SPAN,
    )
    decided = np.zeros((*label.shape, 3), np.uint8)
    decided[label == 255] = (90, 90, 90)
    for wanted, got, colour in ((1, True, (0, 200, 0)), (0, True, (220, 0, 0)), (1, False, (40, 80, 255))):
        decided[(label == wanted) & (fused.mask == got)] = colour
    for x0, y0, x1, y1 in fused.boxes.xyxy.round().astype(int):
        cv2.rectangle(decided, (int(x0), int(y0)), (int(x1) - 1, int(y1) - 1), (255, 220, 0), 1)
    write_png(path, np.hstack([*map(_heat, surfaces), decided]))


def _heat(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    grey = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[..., ::-1].astype(np.uint8)
