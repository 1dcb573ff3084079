"""Boxes round what stands out of the score map, for objects that the detector does not propose.

At each of 40 levels the score map is cut into regions, the 8-connected components of the cells that reach the level; the
bounding box of each is a candidate. What counts is its contrast c: the mean score inside the box less that in a frame
around it, half as wide as the box and 4 cells, in standard deviations of the detector's score statistics. A region's
confidence is

    weight * sigmoid(SLOPE c - OFFSET)

SLOPE and OFFSET were fitted on composed images of the light profile, to boxes that overlap an object with an IoU above
0.3; ``weight`` says what a sure region is worth beside the detector's own confidences.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.detector.suppression import non_maximum_suppression
from anomdino.io.boxes import Boxes
from anomdino.uncertainty import UncertaintyMaps

LEVELS = 40
RAREST, COMMONEST = 1e-5, 0.5
"""Shares of the map that reach the highest and the lowest level."""
LEAST_CELLS = 4
LARGEST = 0.25
"""Share of the map that a box may fill."""
FRAME_SHARE, FRAME_CELLS = 0.5, 4
SLOPE, OFFSET = 4.5, 7.4
CANDIDATES, KEPT = 600, 30
OVERLAP, COVER = 0.3, 0.6

IntBoxes = npt.NDArray[np.int64]


def score_regions(maps: UncertaintyMaps, std: float, weight: float) -> Boxes:
    """Box the regions of an image's score map, best first, at most 30.

    Args:
        maps: Their ``score`` is read.
        std: Standard deviation of scores that a contrast is measured in, above 0.
        weight: Confidence of the surest region, in [0, 1].

    Returns:
        Boxes in pixels of the image; none where the map has one value alone.
    """
    cells = region_boxes(maps.score)
    if not len(cells):
        return Boxes.empty()
    contrast = contrasts(maps.score, cells) / std
    best = np.argsort(-contrast, kind="stable")[:CANDIDATES]
    confidence = weight / (1 + np.exp((OFFSET - SLOPE * contrast[best]).clip(-50, 50)))
    height, width = maps.score.shape
    stride = np.array([maps.image_size[1] / width, maps.image_size[0] / height] * 2)
    regions = Boxes((cells[best] * stride).astype(np.float32), confidence.astype(np.float32))
    return non_maximum_suppression(regions, OVERLAP, COVER).subset(slice(KEPT))


def region_boxes(score: npt.NDArray[np.float32]) -> IntBoxes:
    """Give the bounding boxes of the regions at all levels, each once: int64 (N, 4) xyxy in cells, half-open.

    Args:
        score: float32 (h, w), higher = more anomalous.
    """
    levels = np.unique(np.quantile(score, 1 - np.geomspace(RAREST, COMMONEST, LEVELS)))
    found = []
    for level in levels:
        reached = (score >= level).view(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(reached, connectivity=8)
        x, y, width, height, cells = stats[1:].astype(np.int64).T
        fits = (cells >= LEAST_CELLS) & (width * height <= LARGEST * score.size)
        found.append(np.column_stack([x, y, x + width, y + height])[fits])
    return np.unique(np.concatenate(found), axis=0)


def contrasts(score: npt.NDArray[np.float32], boxes: IntBoxes) -> npt.NDArray[np.float64]:
    """Give the mean of a score map (h, w) in each box less that in the frame around it: float64 (N,).

    Frames are cut off at the border; a box that leaves no frame has the contrast 0.
    """
    height, width = score.shape
    low, high = boxes[:, :2], boxes[:, 2:]
    frame = (FRAME_SHARE * (high - low)).astype(np.int64) + FRAME_CELLS
    outer = np.concatenate([np.maximum(low - frame, 0), np.minimum(high + frame, [width, height])], axis=1)
    total = np.asarray(cv2.integral(score.astype(np.float64)), np.float64)
    inside, whole = _sums(total, boxes), _sums(total, outer)
    area = (high - low).prod(axis=1)
    rest = (outer[:, 2:] - outer[:, :2]).prod(axis=1) - area
    around = np.where(rest > 0, (whole - inside) / np.maximum(rest, 1), inside / area)
    return np.asarray(inside / area - around, np.float64)


def _sums(integral: npt.NDArray[np.float64], boxes: IntBoxes) -> npt.NDArray[np.float64]:
    x0, y0, x1, y1 = boxes.T
    return np.asarray(integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0])
