"""What an evaluation measured, and how it was asked to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.benchmarks import Benchmark, Sample
from anomdino.errors import ConfigError
from anomdino.evaluation.bootstrap import ImageCounts, ImageHistograms
from anomdino.evaluation.sources import Prediction
from anomdino.metrics.components import ComponentMetrics
from anomdino.metrics.curve import Curve
from anomdino.metrics.instances import InstanceState
from anomdino.metrics.results import PixelMetrics
from anomdino.metrics.s2m import S2mState

OWN_MASK, FINAL = "mask", "fused"


def final_output(names: Iterable[str]) -> str:
    """Name the output that stands for the method, of which scores and pictures are kept: ``fused``, else the last."""
    listed = list(names)
    return FINAL if FINAL in listed else listed[-1]


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
        threshold: Threshold of the masks of all outputs, in place of each one's best F1 on the evaluated labels.
        workers: Threads that outputs are divided among, 1 or more; results do not depend on it.

    Raises:
        ConfigError: There are no workers.
    """

    seed: int = 0
    bootstrap: int = 1000
    histogram_bins: int = 1024
    curve_points: int = 256
    capacity: int = 1 << 19
    own_mask: str = OWN_MASK
    box_score: float = 0.3
    threshold: float | None = None
    workers: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))

    def __post_init__(self) -> None:
        """Refuse settings that are not defined."""
        if self.workers < 1:
            raise ConfigError("workers", f"is {self.workers}", "give 1 or more")


@dataclass(eq=False)
class BenchmarkResult:
    """Everything that was measured on a benchmark; :mod:`anomdino.evaluation.tables` documents the rows.

    Attributes:
        benchmark: What was evaluated.
        pixel: Pixel metrics by output and protocol (pooled, rpl, fishyscapes, smiyc).
        curves: SMIYC's curve and the pooled one by output and name, thinned.
        thresholds: Threshold of the masks by output, the best F1 of SMIYC's curve; masks are score > threshold.
            An output has none where a class is missing in the whole set and none was given.
        components: Component metrics by output, and by the method's own mask; None for an output without masks.
        bands: Scores of the set on common bins by output and distance band, of all images together.
        intervals: 95 % intervals over images, by output and metric.
        image_rows: Rows of the image table.
        component_rows: Rows of the component table.
        histograms: Scores of every image on common bins, by output.
        left_out: Images that could not be scored, key to reason.
        false_positive_classes: False-positive pixels by closed-set class id, by output.
        s2m: S2M's IoU and F1 over thresholds, for outputs whose scores lie in [0, 1].
        instances: Masks of predicted and true instances by output, where the data set has instances.
        detector: Quality of the boxes, or None without a detector.
        detector_curve: Its shares by score threshold.
    """

    benchmark: Benchmark
    pixel: dict[str, dict[str, PixelMetrics]] = field(default_factory=dict)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    components: dict[str, ComponentMetrics | None] = field(default_factory=dict)
    bands: dict[str, dict[str, ImageHistograms]] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    image_rows: list[dict[str, Any]] = field(default_factory=list)
    component_rows: list[dict[str, Any]] = field(default_factory=list)
    histograms: dict[str, ImageHistograms] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    false_positive_classes: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    s2m: dict[str, S2mState] = field(default_factory=dict)
    instances: dict[str, InstanceState] = field(default_factory=dict)
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


def image_counts(rows: list[dict[str, Any]]) -> ImageCounts | None:
    """Gather the component counts of image rows of one output; None where the output has no masks."""
    if any(row.get("counts") is None for row in rows):
        return None
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
    if components is None:
        return values | dict.fromkeys(("sIoU", "PPV", "F1*"))
    return values | {"sIoU": components.siou, "PPV": components.ppv, "F1*": components.f1}
