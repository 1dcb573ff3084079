"""Evaluating every output on a benchmark in two passes over the images, one image in memory at a time.

The first pass pools pixel scores and finds each output's best-F1 threshold by SMIYC's protocol. The second
takes the masks at these thresholds apart into components and fills the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.benchmarks import Benchmark, Sample
from anomdino.errors import DataError
from anomdino.evaluation.bootstrap import ImageCounts, ImageHistograms, intervals
from anomdino.evaluation.groups import distance_band, size_group
from anomdino.evaluation.sources import OutputSource, Prediction
from anomdino.metrics.components import (
    ComponentMetrics,
    ComponentState,
    FrameComponents,
    frame_components,
    predicted_mask,
)
from anomdino.metrics.curve import Curve, positive_curve, rank_auroc
from anomdino.metrics.results import NO_ANOMALY, NO_INLIER, PixelMetrics
from anomdino.metrics.smiyc import SmiycPixels
from anomdino.metrics.sorting import SortedScores, sort_scores
from anomdino.metrics.streaming import StreamingPixels
from anomdino.progress import track
from anomdino.seeding import rng

LabelImage = npt.NDArray[np.uint8]
BoolImage = npt.NDArray[np.bool_]
OWN_MASK = "mask"
LEVELS = {"25": 0, "50": 5, "75": 10}


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation is made.

    Attributes:
        seed: Root of the random numbers of the intervals.
        bootstrap: Resamplings of the images; 0 leaves intervals out.
        histogram_bins: Bins that an image keeps for intervals and comparison.
        curve_points: Points that a curve keeps.
        capacity: Distinct scores up to which pooled metrics are exact.
        own_mask: Name under which a method's own mask is reported.
        box_score: Boxes with at least this confidence count in the shares inside boxes.
    """

    seed: int = 0
    bootstrap: int = 1000
    histogram_bins: int = 1024
    curve_points: int = 256
    capacity: int = 1 << 20
    own_mask: str = OWN_MASK
    box_score: float = 0.3


@dataclass(eq=False)
class BenchmarkResult:
    """Everything that was measured on a benchmark; :mod:`anomdino.evaluation.tables` documents the rows.

    Attributes:
        benchmark: What was evaluated.
        pixel: Pixel metrics by output and protocol (pooled, rpl, fishyscapes, smiyc).
        curves: SMIYC's curve and the pooled one by output and name, thinned.
        thresholds: Best-F1 threshold of SMIYC's curve by output; masks are score > threshold.
        components: Component metrics by output, and by the method's own mask.
        intervals: 95 % intervals over images, by output and metric.
        image_rows: Rows of the image table.
        component_rows: Rows of the component table.
        histograms: Scores of every image on common bins, by output.
        left_out: Images that could not be scored, key to reason.
        false_positive_classes: False-positive pixels by closed-set class id, by output.
        detector: Quality of the boxes, or None without a detector.
        detector_curve: Its shares by score threshold.
    """

    benchmark: Benchmark
    pixel: dict[str, dict[str, PixelMetrics]] = field(default_factory=dict)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    components: dict[str, ComponentMetrics] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    image_rows: list[dict[str, Any]] = field(default_factory=list)
    component_rows: list[dict[str, Any]] = field(default_factory=list)
    histograms: dict[str, ImageHistograms] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    false_positive_classes: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    detector: dict[str, float | None] | None = None
    detector_curve: list[dict[str, float | None]] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """Keys of the images that were scored, in order."""
        return [sample.key for sample in self.benchmark if sample.key not in self.left_out]

    def rows_of(self, output: str) -> list[dict[str, Any]]:
        """Rows of the image table of one output, in order of the images."""
        return [row for row in self.image_rows if row["output"] == output]

    def headline(self, output: str) -> PixelMetrics | None:
        """Pixel metrics of an output by the benchmark's own protocol."""
        return self.pixel[output][self.benchmark.protocol] if output in self.pixel else None


Save = Callable[[Sample, Mapping[str, Prediction]], None]


def evaluate_benchmark(
    benchmark: Benchmark,
    source: OutputSource,
    settings: EvaluationSettings | None = None,
    save: Save | None = None,
) -> BenchmarkResult:
    """Evaluate all outputs of a source on a benchmark.

    Args:
        benchmark: A split with labels.
        source: Gives the outputs of an image.
        settings: How.
        save: Called once an image with its outputs, for example to write them.

    Raises:
        DataError: The split has no labels, a label or an output cannot be used, or one class is missing.
    """
    settings = settings or EvaluationSettings()
    benchmark.require_labels()
    result = BenchmarkResult(benchmark)
    _pool_pixels(result, source, settings, save)
    _compare_components(result, source, settings)
    _measure_boxes(result, source, settings)
    _add_intervals(result, settings)
    return result


def _pool_pixels(
    result: BenchmarkResult, source: OutputSource, settings: EvaluationSettings, save: Save | None
) -> None:
    benchmark = result.benchmark
    smiyc = {name: SmiycPixels() for name in source.names}
    pooled = {name: StreamingPixels(settings.capacity, buffer=1 << 20) for name in source.names}
    for sample in track(benchmark.samples, f"{benchmark.name}: pixels"):
        label = benchmark.read_label(sample)
        predictions = source.predictions(sample)
        if save is not None:
            save(sample, predictions)
        if (label == 255).all():
            result.left_out[sample.key] = "every pixel is void"
            continue
        for name in source.names:
            scores = _sorted(sample, name, predictions[name], label)
            smiyc[name].update_sorted(scores)
            pooled[name].update_sorted(scores)
    if not result.keys:
        raise DataError(benchmark.name, "every pixel of every image is void", "check the label map")
    for name in source.names:
        _read_off(result, name, smiyc.pop(name).curve(), pooled.pop(name), settings)


def _read_off(
    result: BenchmarkResult, name: str, curve: Curve, pooled: StreamingPixels, settings: EvaluationSettings
) -> None:
    first = pooled.compute("first")
    if not (first.positives and first.negatives):
        reason = NO_INLIER if first.positives else NO_ANOMALY
        raise DataError(
            result.benchmark.name, f"cannot be scored: {reason} in any image", "check the label map"
        )
    metrics = curve.metrics()
    assert metrics.best_f1_threshold is not None
    result.pixel[name] = {
        "pooled": first,
        "rpl": pooled.compute("closest"),
        "fishyscapes": first,
        "smiyc": metrics,
    }
    result.thresholds[name] = metrics.best_f1_threshold
    exact = pooled.curve()
    result.curves[name] = {
        "smiyc": curve.thinned(settings.curve_points),
        "pooled": exact.thinned(settings.curve_points),
    }
    bins = exact.thinned(settings.histogram_bins).thresholds
    result.histograms[name] = ImageHistograms(bins, *(np.zeros((0, len(bins)), np.int64) for _ in range(2)))


def _compare_components(result: BenchmarkResult, source: OutputSource, settings: EvaluationSettings) -> None:
    benchmark = result.benchmark
    states: dict[str, ComponentState] = {}
    binned: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in source.names}
    for sample in track(benchmark.samples, f"{benchmark.name}: components"):
        if sample.key in result.left_out:
            continue
        label = benchmark.read_label(sample)
        frame = _Frame(sample, label, source)
        for name, prediction in source.predictions(sample).items():
            scores = _sorted(sample, name, prediction, label)
            binned[name].append(_binned(scores, result.histograms[name].thresholds))
            mask = predicted_mask(prediction.score, result.thresholds[name])
            _add_mask(result, frame, name, mask, states)
            result.image_rows[-1] |= _pixel_row(prediction, scores) | {"threshold": result.thresholds[name]}
            if prediction.mask is not None:
                _add_mask(result, frame, settings.own_mask, prediction.mask, states)
    result.components = {name: state.compute() for name, state in states.items()}
    for name, parts in binned.items():
        stacked = np.stack(parts)
        result.histograms[name] = ImageHistograms(
            result.histograms[name].thresholds, stacked[:, 0], stacked[:, 1]
        )


class _Frame:
    """What all outputs of an image share in the second pass."""

    def __init__(self, sample: Sample, label: LabelImage, source: OutputSource) -> None:
        self.sample, self.label = sample, label
        self.height, self.width = label.shape
        boxes = source.boxes(sample)
        self.boxes = None if boxes is None else len(boxes)
        self.classes = source.classes(sample)
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


def _add_mask(
    result: BenchmarkResult, frame: _Frame, name: str, mask: BoolImage, states: dict[str, ComponentState]
) -> None:
    limits, label = result.benchmark.limits, frame.label
    found = frame_components(mask, label, limits.min_predicted, limits.min_gt)
    states.setdefault(name, ComponentState()).update(found)
    false = mask & (label == 0)
    true_pixels, false_pixels = int(np.count_nonzero(mask & (label == 1))), int(np.count_nonzero(false))
    union = frame.anomaly_pixels + false_pixels
    shared = {"benchmark": result.benchmark.name, "output": name}
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


def _pixel_row(prediction: Prediction, scores: SortedScores) -> dict[str, Any]:
    measured = positive_curve(scores).metrics()
    both = bool(scores.positives.size and scores.negatives.size)
    return {
        "ap": measured.ap,
        "auroc": rank_auroc(scores) if both else None,
        "fpr95": measured.fpr95,
        "best_f1": measured.best_f1,
        "score_min": float(prediction.score.min()),
        "score_max": float(prediction.score.max()),
    }


def _binned(scores: SortedScores, thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Histogram of an image, int64 (2, B): anomalous and in-distribution pixels, the highest bin first."""
    edges = thresholds.astype(np.float32)
    counts = []
    for values in (scores.positives, scores.negatives):
        above = values.size - np.searchsorted(values, edges, side="left")
        above[-1] = values.size
        counts.append(np.diff(above, prepend=0))
    return np.stack(counts).astype(np.int64)


def _sorted(sample: Sample, name: str, prediction: Prediction, label: LabelImage) -> SortedScores:
    try:
        return sort_scores(prediction.score, label)
    except ValueError as error:
        raise DataError(sample.image, f"output '{name}': {error}", "fix the method that made it") from error


def _measure_boxes(result: BenchmarkResult, source: OutputSource, settings: EvaluationSettings) -> None:
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
        "AR100": quality.ar[100],
        "AP50": quality.ap50,
        "pixels_in_boxes": kept["pixels_inside"],
        "objects_in_boxes": kept["components_inside"],
        "boxes_per_image": kept["boxes_per_image"],
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


def _add_intervals(result: BenchmarkResult, settings: EvaluationSettings) -> None:
    by_output: dict[str, list[dict[str, Any]]] = {}
    for row in result.image_rows:
        by_output.setdefault(row["output"], []).append(row)
    for name, rows in by_output.items():
        generator = rng(settings.seed, "evaluate", result.benchmark.name, "bootstrap")
        measured = headline_values(result, name)
        result.intervals[name] = intervals(
            result.histograms.get(name), image_counts(rows), settings.bootstrap, generator, measured
        )


def image_counts(rows: list[dict[str, Any]]) -> ImageCounts:
    """Gather the component counts of image rows of one output."""
    counts = np.array([row["counts"] for row in rows], np.int64).reshape(len(rows), 3, -1)
    gt = np.array([row["gt_components"] for row in rows], np.float64)
    predicted = np.array([row["predicted_components"] for row in rows], np.int64)
    siou = np.array([row["siou"] or 0.0 for row in rows], np.float64)
    ppv = np.array([row["ppv"] or 0.0 for row in rows], np.float64)
    return ImageCounts(counts[:, 0], counts[:, 1], counts[:, 2], siou * gt, ppv * predicted, predicted)


def headline_values(result: BenchmarkResult, name: str) -> dict[str, float | None]:
    """The main numbers of an output by the names that tables show; a bare mask has no pixel metrics."""
    pixel, components = result.headline(name), result.components[name]
    values: dict[str, float | None] = {}
    if pixel is not None:
        values |= {"AP": pixel.ap, "FPR95": pixel.fpr95, "AUROC": pixel.auroc}
    return values | {"sIoU": components.siou, "PPV": components.ppv, "F1*": components.f1}
