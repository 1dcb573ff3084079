"""How good boxes are: average recall and AP50 by the COCO protocol, and how much of the anomalies they cover."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.io.boxes import Boxes

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(20))
COVERED = 0.5
ANOMALY = 1


@dataclass(frozen=True)
class BoxMetrics:
    """COCO metrics of boxes in [0, 1]; ``None`` where there is no ground-truth box.

    Attributes:
        ar: Average recall over IoU 0.5:0.95 with at most 1, 10 and 100 boxes an image.
        ap50: Average precision at IoU 0.5.
    """

    ar: dict[int, float | None]
    ap50: float | None


def coco_metrics(
    predicted: Mapping[str, Boxes],
    truth: Mapping[str, npt.NDArray[np.float32]],
    limits: Sequence[int] = (1, 10, 100),
) -> BoxMetrics:
    """Evaluate boxes by pycocotools.

    Args:
        predicted: Boxes of every image by key.
        truth: float32 (N, 4) xyxy of the objects of every image by key; the images are those of ``truth``.
        limits: The numbers of boxes an image for average recall.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    keys = sorted(truth)
    images: list[dict[str, Any]] = [{"id": index} for index in range(len(keys))]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for index, key in enumerate(keys):
        for x0, y0, x1, y1 in truth[key].tolist():
            area = (x1 - x0) * (y1 - y0)
            entry = {
                "image_id": index,
                "category_id": 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": area,
                "iscrowd": 0,
            }
            annotations.append({**entry, "id": len(annotations) + 1})
        boxes = predicted.get(key, Boxes.empty())
        for (x0, y0, x1, y1), score in zip(boxes.xyxy.tolist(), boxes.scores.tolist(), strict=True):
            results.append(
                {"image_id": index, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
            )
    if not annotations:
        return BoxMetrics(dict.fromkeys(limits), None)
    if not results:
        return BoxMetrics(dict.fromkeys(limits, 0.0), 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "ood-object"}],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.maxDets = sorted(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0, 0, :]  # (IoU thresholds, limits)
    precision = evaluation.eval["precision"][0, :, 0, 0, -1]  # IoU 0.5, all areas, the largest limit
    return BoxMetrics(
        {limit: float(recall[:, index].mean()) for index, limit in enumerate(sorted(limits))},
        float(precision.mean()),
    )


@dataclass
class Coverage:
    """What boxes cover, as a function of the score threshold; add images one by one, merge shards with ``+``.

    Attributes:
        thresholds: Those of :meth:`curve`.
        pixels: Anomalous pixels.
        inside: How many of them have a box of a score as the best one over them.
        components: Anomaly components (8-connected).
        needed: For every component the highest score threshold at which more than half of its pixels are still inside
            kept boxes, 0 for never.
        images: Images.
        scores: How many of their boxes have a score.
        clean_images: Images without an anomalous pixel.
        clean_scores: The same for the boxes on them.
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    pixels: int = 0
    inside: Counter[float] = field(default_factory=Counter)
    components: int = 0
    needed: list[float] = field(default_factory=list)
    images: int = 0
    scores: Counter[float] = field(default_factory=Counter)
    clean_images: int = 0
    clean_scores: Counter[float] = field(default_factory=Counter)

    @classmethod
    def over(cls, thresholds: Sequence[float]) -> Coverage:
        """Start counting for a curve over other thresholds than the usual ones, rising."""
        return cls(tuple(thresholds))

    def add(self, boxes: Boxes, label: npt.NDArray[np.uint8]) -> None:
        """Add an image.

        Args:
            boxes: Its boxes.
            label: uint8 (H, W), 0 normal, 1 anomaly, 255 void.
        """
        anomaly = label == ANOMALY
        self.images += 1
        self.scores.update(boxes.scores.tolist())
        if not anomaly.any():
            self.clean_images += 1
            self.clean_scores.update(boxes.scores.tolist())
            return
        confidence = boxes.coverage((label.shape[0], label.shape[1]))
        levels = np.unique(boxes.scores[boxes.scores > 0])
        covered = confidence[anomaly & (confidence > 0)]
        counts = np.bincount(np.searchsorted(levels, covered), minlength=len(levels))
        self.inside.update(dict(zip(levels.tolist(), counts.tolist(), strict=True)))
        self.pixels += int(anomaly.sum())
        count, numbers = cv2.connectedComponents(anomaly.astype(np.uint8), connectivity=8)
        for number in range(1, count):
            values = np.sort(confidence[numbers == number])[::-1]
            self.needed.append(float(values[int(COVERED * len(values))]))
            self.components += 1

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            self.thresholds,
            self.pixels + other.pixels,
            self.inside + other.inside,
            self.components + other.components,
            self.needed + other.needed,
            self.images + other.images,
            self.scores + other.scores,
            self.clean_images + other.clean_images,
            self.clean_scores + other.clean_scores,
        )

    def curve(self) -> list[dict[str, float | None]]:
        """Give one row, as :meth:`at` does, for each of ``thresholds``."""
        return [self.at(threshold) for threshold in self.thresholds]

    def at(self, threshold: float) -> dict[str, float | None]:
        """Give what boxes with a score of at least ``threshold`` come to.

        Returns:
            ``threshold``, shares of pixels and components covered, boxes an image and a clean image. A box of score 0
            covers nothing. The threshold is compared in float32, as :meth:`anomdino.io.boxes.Boxes.kept` does.
        """
        level = np.float32(threshold)
        least = max(level, np.nextafter(np.float32(0), np.float32(1)))
        pixels = sum(count for score, count in self.inside.items() if score >= least)
        components = sum(score >= least for score in self.needed)
        return {
            "threshold": threshold,
            "pixels_inside": _share(pixels, self.pixels),
            "components_inside": _share(int(components), self.components),
            "boxes_per_image": _share(_kept(self.scores, level), self.images),
            "boxes_per_clean_image": _share(_kept(self.clean_scores, level), self.clean_images),
        }

    def suggest_threshold(self, target: float) -> float | None:
        """Give the highest score threshold that still covers a share ``target`` of the components, rounded down.

        When even all boxes cover fewer, it is the lowest score at which one is covered: keep every useful box.

        Returns:
            A score in [0, 1] of six decimals, or ``None`` when no component is covered by any box.
        """
        scores = sorted((value for value in self.needed if value > 0), reverse=True)
        if not scores:
            return None
        wanted = int(np.ceil(target * self.components - 1e-9))
        return rounded_down(scores[min(wanted, len(scores)) - 1], 6)


def rounded_down(threshold: float, digits: int) -> float:
    """Cut a threshold after so many decimals: what reaches it reaches the result, too."""
    steps: int = 10**digits
    return math.floor(threshold * steps) / steps


def _kept(scores: Mapping[float, int], level: np.float32) -> int:
    return sum(count for score, count in scores.items() if score >= level)


def threshold_at_budget(boxes: Iterable[Boxes], per_image: float) -> float:
    """Give the lowest score threshold at which no more than ``per_image`` boxes an image are kept, in the mean.

    Args:
        boxes: The boxes of every image, also of those without any.
        per_image: Boxes an image.
    """
    scores = [found.scores for found in boxes]
    falling = np.unique(np.concatenate(scores))[::-1] if scores else np.zeros(0, np.float32)
    kept = np.array([sum(int((part >= value).sum()) for part in scores) for value in falling])
    allowed = np.flatnonzero(kept <= per_image * len(scores))
    if not len(falling) or len(allowed) == len(falling):
        return 0.0
    return float(falling[allowed[-1]]) if len(allowed) else float(np.nextafter(falling[0], np.float32(2)))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
