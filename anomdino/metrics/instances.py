"""Instance metrics in the manner of OoDIS: class-agnostic mask AP over IoU 0.5 to 0.95, void left out.

A prediction that matches no instance and lies on void or on instances too small to count by more than the IoU
threshold is ignored, neither right nor wrong, as COCO's ``iscrowd`` regions work.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.errors import BackendMissing
from anomdino.metrics.results import NO_ANOMALY

BoolImage = npt.NDArray[np.bool_]
_MAX_PREDICTIONS = 100


@dataclass(frozen=True)
class InstanceMetrics:
    """Mask AP of instances in [0, 1], None where there is no instance.

    Attributes:
        ap: Mean of AP over the IoU thresholds 0.50, 0.55 .. 0.95.
        ap50: AP at IoU 0.5.
        instances: Ground-truth instances that count.
        predictions: Predicted instances.
        reasons: Why a value is None.
    """

    ap: float | None
    ap50: float | None
    instances: int
    predictions: int
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass
class InstanceState:
    """Mergeable collection of run-length encoded masks.

    Attributes:
        min_gt: Ground-truth instances with fewer pixels are ignored.
    """

    min_gt: int = 0
    _truth: list[list[dict[str, Any]]] = field(default_factory=list, repr=False)
    _found: list[list[dict[str, Any]]] = field(default_factory=list, repr=False)

    def update(
        self,
        instances: npt.NDArray[np.integer],
        void: BoolImage,
        predicted: npt.NDArray[np.integer],
        confidence: npt.NDArray[np.floating],
    ) -> None:
        """Add an image.

        Args:
            instances: (H, W) ids of ground-truth instances, 0 = none.
            void: bool (H, W), pixels outside the region of interest.
            predicted: (H, W) ids 1..K of predicted instances, 0 = none.
            confidence: (K,) confidence of each, higher = surer.
        """
        ids, counts = np.unique(instances[~void & (instances > 0)], return_counts=True)
        kept, small = ids[counts >= self.min_gt], ids[counts < self.min_gt]
        ignored = void | np.isin(instances, small)
        truth = [_encoded((instances == number) & ~void) | {"iscrowd": 0} for number in kept]
        if ignored.any():
            truth.append(_encoded(ignored) | {"iscrowd": 1})
        self._truth.append(truth)
        found = [
            _encoded(predicted == index + 1) | {"score": float(score)}
            for index, score in enumerate(confidence)
        ]
        self._found.append([one for one in found if one["area"] > 0])

    def merge(self, other: InstanceState) -> None:
        """Add the images of another state."""
        self._truth += other._truth
        self._found += other._found

    def compute(self) -> InstanceMetrics:
        """AP by pycocotools, at most 100 predictions an image.

        Raises:
            BackendMissing: pycocotools is not installed.
        """
        instances = sum(not one["iscrowd"] for image in self._truth for one in image)
        predictions = sum(map(len, self._found))
        if not instances:
            return InstanceMetrics(None, None, 0, predictions, dict.fromkeys(("ap", "ap50"), NO_ANOMALY))
        if not predictions:
            return InstanceMetrics(0.0, 0.0, instances, 0)
        precision = _precision(self._truth, self._found)
        return InstanceMetrics(float(precision.mean()), float(precision[0].mean()), instances, predictions)


def components_as_instances(
    mask: BoolImage, score: npt.NDArray[np.floating], min_pixels: int = 0
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Take the 8-connected components of a mask as instances, with the mean score inside as confidence.

    Args:
        mask: bool (H, W).
        score: float (H, W).
        min_pixels: Components with fewer pixels are left out.

    Returns:
        Ids, int32 (H, W), 0 = none, and the confidence of ids 1..K.
    """
    count, ids = cv2.connectedComponents(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
    where = np.flatnonzero(mask)
    members = ids.ravel()[where]
    area = np.bincount(members, minlength=count)
    kept = np.flatnonzero(area[1:] >= max(min_pixels, 1)) + 1
    ranks = np.zeros(count, np.int32)
    ranks[kept] = np.arange(1, len(kept) + 1)
    total = np.bincount(members, weights=score.ravel()[where], minlength=count)
    return ranks[ids], total[kept] / area[kept]


def _encoded(mask: BoolImage) -> dict[str, Any]:
    encode = _coco_mask()
    return {"segmentation": encode(np.asfortranarray(mask, np.uint8)), "area": int(np.count_nonzero(mask))}


def _coco_mask() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        cause, cure = "is needed for instance metrics", "pip install pycocotools"
        raise BackendMissing("pycocotools", cause, cure) from error
    return mask.encode


def _precision(
    truth: list[list[dict[str, Any]]], found: list[list[dict[str, Any]]]
) -> npt.NDArray[np.float64]:
    """Interpolated precision, (10 IoU thresholds, 101 recall levels)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    box = [0.0, 0.0, 1.0, 1.0]
    annotations = [
        one | {"image_id": image, "category_id": 1, "bbox": box}
        for image, all_ in enumerate(truth)
        for one in all_
    ]
    content = {
        "images": [{"id": image, "height": 0, "width": 0} for image in range(len(truth))],
        "categories": [{"id": 1, "name": "anomaly"}],
        "annotations": [one | {"id": number + 1} for number, one in enumerate(annotations)],
    }
    results = [
        one | {"image_id": image, "category_id": 1} for image, all_ in enumerate(found) for one in all_
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.params.maxDets = [_MAX_PREDICTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: npt.NDArray[np.float64] = evaluation.eval["precision"][:, :, 0, 0, 0]
    return precision
