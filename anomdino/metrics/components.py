"""Component metrics of SegmentMeIfYouCan: sIoU, PPV and F1*."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

BoolImage = npt.NDArray[np.bool_]
LabelImage = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SIOU_THRESHOLDS: Float64 = np.linspace(0.25, 0.75, 11)
_REPORTED = {"25": 0, "50": 5, "75": 10}

NO_GT = "no ground-truth component"
NO_PREDICTION = "no predicted component"
NO_COMPONENT = "neither a ground-truth nor a predicted component"


@dataclass(frozen=True, eq=False)
class Components:
    """The components of one kind (ground truth or predicted) that count in a frame.

    Attributes:
        size: int64 (K,) pixels inside the region of interest.
        boxes: int64 (K, 4) x0, y0, x1, y1 of the whole component, half-open.
        siou: float64 (K,) sIoU in [0, 1] with the other kind.
        covered: float64 (K,) share of its pixels on the other kind; for predicted ones, the PPV.
    """

    size: Int64
    boxes: Int64
    siou: Float64
    covered: Float64

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True, eq=False)
class FrameComponents:
    """Components of one frame.

    Attributes:
        gt: Ground-truth components.
        predicted: Predicted components.
    """

    gt: Components
    predicted: Components


def predicted_mask(score: npt.NDArray[np.floating], threshold: float) -> BoolImage:
    """Pixels whose score is strictly above the threshold, as SMIYC's instancer takes them."""
    return np.asarray(score > float(threshold))


def frame_components(
    mask: BoolImage, label: LabelImage, min_predicted: int = 500, min_gt: int = 100
) -> FrameComponents:
    """Find and compare the components of one frame.

    Components are 8-connected. Predictions on void are cut away first, then predicted components with fewer
    than ``min_predicted`` pixels. Ground-truth components with fewer than ``min_gt`` pixels leave the region
    of interest together with the predictions on them; the rest is neither relabelled nor filtered again.

    Args:
        mask: bool (H, W), the predicted pixels.
        label: uint8 (H, W): 0 in-distribution, 1 anomaly, 255 void.
        min_predicted: Pixels that a predicted component must have.
        min_gt: Pixels that a ground-truth component must have.

    Raises:
        ValueError: Shapes differ.
    """
    if mask.shape != label.shape:
        raise ValueError(f"mask has shape {mask.shape}, label {label.shape}")
    gt, predicted = _Labelled(label == 1), _Labelled(mask & (label != 255))
    gt_ids = np.flatnonzero(gt.area[1:] >= min_gt) + 1
    predicted_ids = np.flatnonzero(predicted.area[1:] >= min_predicted) + 1
    background_counts = label.size - len(gt.where) >= min_gt

    overlap, outside = _contingency(gt, predicted, gt_ids, predicted_ids)
    gt_size = gt.area[gt_ids]
    predicted_size = overlap.sum(axis=0) + (outside if background_counts else 0)
    left = np.flatnonzero(predicted_size > 0)
    overlap, predicted_size, predicted_ids = overlap[:, left], predicted_size[left], predicted_ids[left]
    return FrameComponents(
        gt=_compared(overlap, gt_size, predicted_size, gt.boxes(gt_ids)),
        predicted=_compared(overlap.T, predicted_size, gt_size, predicted.boxes(predicted_ids)),
    )


class _Labelled:
    """8-connected components of a mask; all work after labelling is on the mask's own pixels."""

    def __init__(self, mask: BoolImage) -> None:
        pixels = np.ascontiguousarray(mask)
        count, ids = cv2.connectedComponents(pixels.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        self.map = np.asarray(ids, np.int32).ravel()
        self.width = mask.shape[1]
        self.where = np.flatnonzero(pixels)
        self.ids = self.map[self.where]
        self.area = np.bincount(self.ids, minlength=count).astype(np.int64)

    def boxes(self, wanted: npt.NDArray[np.intp]) -> Int64:
        """Boxes x0, y0, x1, y1, half-open, of some components."""
        y, x = np.divmod(self.where, self.width)
        sides = np.empty((4, len(self.area)), np.int64)
        sides[:2], sides[2:] = np.iinfo(np.int64).max, -1
        np.minimum.at(sides[0], self.ids, x)
        np.minimum.at(sides[1], self.ids, y)
        np.maximum.at(sides[2], self.ids, x + 1)
        np.maximum.at(sides[3], self.ids, y + 1)
        return sides[:, wanted].T


def _contingency(
    gt: _Labelled,
    predicted: _Labelled,
    gt_ids: npt.NDArray[np.intp],
    predicted_ids: npt.NDArray[np.intp],
) -> tuple[Int64, Int64]:
    """Count pixels for each pair of kept components, (G, P), and of predicted ones on no anomaly, (P,)."""
    shape = (len(gt_ids) + 2, len(predicted_ids) + 2)
    rows = _ranks(gt_ids, len(gt.area))[gt.map[predicted.where]]
    columns = _ranks(predicted_ids, len(predicted.area))[predicted.ids]
    table = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
    counts = table.astype(np.int64).reshape(shape)
    return counts[1:-1, 1:-1], counts[0, 1:-1]


def _ranks(kept: npt.NDArray[np.intp], count: int) -> Int64:
    """Renumber component ids: 0 for none, 1..K for those kept, K + 1 for those removed."""
    ranks = np.full(count, len(kept) + 1, np.int64)
    ranks[0] = 0
    ranks[kept] = np.arange(1, len(kept) + 1)
    return ranks


def _compared(overlap: Int64, size: Int64, other_size: Int64, boxes: Int64) -> Components:
    """SIoU and coverage of the components in the rows of ``overlap`` (K, L) with those in its columns.

    With T the other components that touch k: sIoU(k) = I / (|T| + |k| - I - A), where A counts pixels of T on
    components of k's kind other than k; I + A is what all components of k's kind cover of T.
    """
    touching = overlap > 0
    intersection = overlap.sum(axis=1)
    union = touching @ (other_size - overlap.sum(axis=0)) + size
    return Components(
        size=size,
        boxes=boxes,
        siou=intersection / np.maximum(union, 1),
        covered=intersection / np.maximum(size, 1),
    )


@dataclass
class ComponentState:
    """Mergeable sums over frames, of fixed size.

    Attributes:
        thresholds: (T,) sIoU thresholds at which components are counted.
    """

    thresholds: Float64 = field(default_factory=SIOU_THRESHOLDS.copy)
    tp: Int64 = field(init=False)
    fn: Int64 = field(init=False)
    fp: Int64 = field(init=False)
    gt_count: int = 0
    predicted_count: int = 0
    siou_sum: float = 0.0
    siou_predicted_sum: float = 0.0
    ppv_sum: float = 0.0

    def __post_init__(self) -> None:
        self.tp, self.fn, self.fp = (np.zeros(len(self.thresholds), np.int64) for _ in range(3))

    def update(self, frame: FrameComponents) -> None:
        """Add a frame."""
        siou, ppv = frame.gt.siou[:, None], frame.predicted.covered[:, None]
        self.tp += (siou >= self.thresholds).sum(axis=0)
        self.fn += (siou < self.thresholds).sum(axis=0)
        self.fp += (ppv < self.thresholds).sum(axis=0)
        self.gt_count += len(frame.gt)
        self.predicted_count += len(frame.predicted)
        self.siou_sum += float(frame.gt.siou.sum())
        self.siou_predicted_sum += float(frame.predicted.siou.sum())
        self.ppv_sum += float(frame.predicted.covered.sum())

    def merge(self, other: ComponentState) -> None:
        """Add the frames of another state with the same thresholds."""
        for name in ("tp", "fn", "fp"):
            getattr(self, name).__iadd__(getattr(other, name))
        for name in ("gt_count", "predicted_count", "siou_sum", "siou_predicted_sum", "ppv_sum"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def compute(self) -> ComponentMetrics:
        """The benchmark's component metrics; null with a reason where there is nothing to average."""
        reasons: dict[str, str] = {}
        if not self.gt_count:
            reasons["siou"] = NO_GT
        if not self.predicted_count:
            reasons |= dict.fromkeys(("siou_predicted", "ppv"), NO_PREDICTION)
        if not (self.gt_count or self.predicted_count):
            reasons["f1"] = NO_COMPONENT
        f1 = np.divide(2 * self.tp, np.maximum(2 * self.tp + self.fn + self.fp, 1))
        return ComponentMetrics(
            siou=None if "siou" in reasons else self.siou_sum / self.gt_count,
            siou_predicted=None if "ppv" in reasons else self.siou_predicted_sum / self.predicted_count,
            ppv=None if "ppv" in reasons else self.ppv_sum / self.predicted_count,
            f1=None if "f1" in reasons else float(f1.mean()),
            f1_at={} if "f1" in reasons else {name: float(f1[index]) for name, index in _REPORTED.items()},
            missed={name: int(self.fn[index]) for name, index in _REPORTED.items()},
            false={name: int(self.fp[index]) for name, index in _REPORTED.items()},
            gt_components=self.gt_count,
            predicted_components=self.predicted_count,
            reasons=reasons,
        )


@dataclass(frozen=True)
class ComponentMetrics:
    """Component metrics of a data set; fractions in [0, 1].

    Attributes:
        siou: Mean sIoU of all ground-truth components (``sIoU_gt``).
        siou_predicted: Mean sIoU of all predicted components, informational.
        ppv: Mean PPV of all predicted components (``prec_pred``).
        f1: F1*, the mean of F1 over the 11 sIoU thresholds (``f1_mean``).
        f1_at: F1 at 0.25, 0.50, 0.75.
        missed: Ground-truth components with a smaller sIoU, at 0.25, 0.50, 0.75 (``fn``).
        false: Predicted components with a smaller PPV, at 0.25, 0.50, 0.75 (``fp``).
        gt_components: Ground-truth components that count.
        predicted_components: Predicted components that count.
        reasons: Why a value is None.
    """

    siou: float | None
    siou_predicted: float | None
    ppv: float | None
    f1: float | None
    f1_at: dict[str, float]
    missed: dict[str, int]
    false: dict[str, int]
    gt_components: int
    predicted_components: int
    reasons: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(self.__dict__)
