"""Second pass: masks at the thresholds of the first, taken apart into components; and boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.benchmarks import Sample
from anomdino.evaluation.frames import loaded_frames
from anomdino.evaluation.groups import distance_band, size_group
from anomdino.evaluation.result import BenchmarkResult, EvaluationSettings
from anomdino.evaluation.sources import OutputSource, Prediction
from anomdino.metrics.components import ComponentState, FrameComponents, frame_components, predicted_mask
from anomdino.metrics.instances import InstanceState, components_as_instances
from anomdino.progress import track

LabelImage = npt.NDArray[np.uint8]
BoolImage = npt.NDArray[np.bool_]
LEVELS = {"25": 0, "50": 5, "75": 10}


def compare_components(result: BenchmarkResult, source: OutputSource, settings: EvaluationSettings) -> None:
    """Fill ``components``, ``component_rows`` and the component columns of ``image_rows`` of a result."""
    states: dict[str, ComponentState] = {}
    pixel_rows = {(row["key"], row["output"]): row for row in result.image_rows}
    result.image_rows = []
    for frame_ in loaded_frames(result, source, "components", settings.workers):
        frame = _Frame(frame_.sample, frame_.label, source)
        frame.instances = result.benchmark.read_instances(frame.sample)
        masks = {}
        for name, prediction in frame_.predictions.items():
            if name in result.thresholds:
                masks[name] = predicted_mask(prediction.score, result.thresholds[name])
            else:
                result.image_rows.append(
                    _shared(result, name) | frame.row() | pixel_rows[frame.sample.key, name]
                )
            if prediction.mask is not None:
                masks[settings.own_mask] = prediction.mask
        for name, mask in masks.items():
            _add_mask(result, frame, name, mask, states)
            _add_instances(result, frame, name, mask, frame_.predictions)
            result.image_rows[-1] |= pixel_rows.get((frame.sample.key, name), {})
    own = [settings.own_mask] if settings.own_mask in states else []
    result.components = {
        name: states[name].compute() if name in states else None for name in (*source.names, *own)
    }


def measure_boxes(result: BenchmarkResult, source: OutputSource, settings: EvaluationSettings) -> None:
    """Fill ``detector`` and ``detector_curve`` of a result, where the source has boxes."""
    boxes = {
        sample.key: source.boxes(sample) for sample in result.benchmark if sample.key not in result.left_out
    }
    known = {key: found for key, found in boxes.items() if found is not None}
    if len(known) < len(boxes):
        return
    from anomdino.detector.quality import Coverage, coco_metrics

    coverage = Coverage()
    for sample in track(result.benchmark.samples, f"{result.benchmark.name}: boxes"):
        if sample.key in known:
            coverage.add(known[sample.key], result.benchmark.read_label(sample))
    output = result.component_rows[0]["output"] if result.component_rows else ""
    truth: dict[str, list[list[int]]] = {key: [] for key in known}
    for row in result.component_rows:
        if row["kind"] == "gt" and row["output"] == output:
            truth[row["key"]].append([row[side] for side in ("x0", "y0", "x1", "y1")])
    objects = {key: np.array(found, np.float32).reshape(-1, 4) for key, found in truth.items()}
    quality, kept = coco_metrics(known, objects), coverage.at(settings.box_score)
    result.detector = {
        **{f"AR{limit}": value for limit, value in quality.ar.items()},
        "AP50": quality.ap50,
        "pixels_in_boxes": kept["pixels_inside"],
        "objects_in_boxes": kept["components_inside"],
        "boxes_per_image": kept["boxes_per_image"],
        "boxes_per_clean_image": kept["boxes_per_clean_image"],
    }
    result.detector_curve = [
        {
            "threshold": row["threshold"],
            "pixels_in_boxes": row["pixels_inside"],
            "objects_in_boxes": row["components_inside"],
            "boxes_per_image": row["boxes_per_image"],
            "boxes_per_clean_image": row["boxes_per_clean_image"],
        }
        for row in coverage.curve()
    ]


class _Frame:
    """What all outputs of an image share in the second pass."""

    def __init__(self, sample: Sample, label: LabelImage, source: OutputSource) -> None:
        self.sample, self.label = sample, label
        self.height, self.width = label.shape
        boxes = source.boxes(sample)
        self.boxes = None if boxes is None else len(boxes)
        self.classes = source.classes(sample)
        self.instances: npt.NDArray[np.int32] | None = None
        self.anomaly_pixels = int(np.count_nonzero(label == 1))
        self.roi_pixels = int(np.count_nonzero(label != 255))

    def row(self) -> dict[str, Any]:
        return {
            "key": self.sample.key,
            "tags": ",".join(self.sample.tags),
            "height": self.height,
            "width": self.width,
            "roi_pixels": self.roi_pixels,
            "anomaly_pixels": self.anomaly_pixels,
            "clean": self.anomaly_pixels == 0,
            "boxes": self.boxes,
        }


def _shared(result: BenchmarkResult, name: str) -> dict[str, Any]:
    return {"benchmark": result.benchmark.name, "output": name}


def _add_mask(
    result: BenchmarkResult, frame: _Frame, name: str, mask: BoolImage, states: dict[str, ComponentState]
) -> None:
    limits, label = result.benchmark.limits, frame.label
    found = frame_components(mask, label, limits.min_predicted, limits.min_gt)
    states.setdefault(name, ComponentState()).update(found)
    false = mask & (label == 0)
    true_pixels, false_pixels = int(np.count_nonzero(mask & (label == 1))), int(np.count_nonzero(false))
    union = frame.anomaly_pixels + false_pixels
    shared = _shared(result, name)
    result.image_rows.append(
        shared
        | frame.row()
        | _component_row(found)
        | {
            "true_positive_pixels": true_pixels,
            "false_positive_pixels": false_pixels,
            "iou": true_pixels / union if union else None,
            "verdict_clean": len(found.predicted) == 0,
        }
    )
    result.component_rows += [shared | row for row in _component_rows(frame, found)]
    if frame.classes is not None:
        counts = np.bincount(frame.classes[false], minlength=256).astype(np.int64)
        result.false_positive_classes[name] = result.false_positive_classes.get(name, 0) + counts


def _add_instances(
    result: BenchmarkResult,
    frame: _Frame,
    name: str,
    mask: BoolImage,
    predictions: Mapping[str, Prediction],
) -> None:
    """Score the mask's components as instances, where the data set has instances; confidence is the mean score."""
    if frame.instances is None:
        return
    score = next((prediction.score for key, prediction in predictions.items() if key == name), None)
    if score is None:
        score = next(prediction.score for prediction in predictions.values() if prediction.mask is not None)
    limits, void = result.benchmark.limits, frame.label == 255
    state = result.instances.setdefault(name, InstanceState(limits.min_gt))
    state.update(frame.instances, void, *components_as_instances(mask & ~void, score, limits.min_predicted))


def _component_row(found: FrameComponents) -> dict[str, Any]:
    state = ComponentState()
    state.update(found)
    measured = state.compute()
    return {
        "gt_components": len(found.gt),
        "predicted_components": len(found.predicted),
        "siou": measured.siou,
        "ppv": measured.ppv,
        "counts": [*state.tp.tolist(), *state.fn.tolist(), *state.fp.tolist()],
        **{f"missed_{level}": measured.missed[level] for level in LEVELS},
        **{f"false_{level}": measured.false[level] for level in LEVELS},
    }


def _component_rows(frame: _Frame, found: FrameComponents) -> list[dict[str, Any]]:
    area = frame.height * frame.width
    return [
        {
            "key": frame.sample.key,
            "kind": kind,
            "index": index,
            "size": int(components.size[index]),
            **dict(zip(("x0", "y0", "x1", "y1"), components.boxes[index].tolist(), strict=True)),
            "siou": float(components.siou[index]),
            "covered": float(components.covered[index]),
            "size_group": size_group(int(components.size[index]), area),
            "distance_band": distance_band(int(components.boxes[index, 3]), frame.height),
        }
        for kind, components in (("gt", found.gt), ("predicted", found.predicted))
        for index in range(len(components))
    ]
