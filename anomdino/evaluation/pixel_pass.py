"""First pass: pooled pixel metrics, each image's own, and the threshold of each output's mask."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError
from anomdino.evaluation.frames import LoadedFrame, loaded_frames
from anomdino.evaluation.groups import band_rows
from anomdino.evaluation.histograms import ScoreSketch, common_histograms, sketch, summed_histogram
from anomdino.evaluation.result import BenchmarkResult, EvaluationSettings, Save
from anomdino.evaluation.sources import FloatMap, OutputSource
from anomdino.io.scores import check_score
from anomdino.metrics.curve import positive_curve, rank_auroc
from anomdino.metrics.s2m import S2mState
from anomdino.metrics.smiyc import SmiycPixels
from anomdino.metrics.sorting import SortedScores, sort_scores
from anomdino.metrics.streaming import StreamingPixels


@dataclass(eq=False)
class _Output:
    """What is gathered of one output, image by image; in its ``turn`` it may take much memory."""

    name: str
    pooled: StreamingPixels
    turn: Lock
    smiyc: SmiycPixels = field(default_factory=SmiycPixels)
    sketches: list[ScoreSketch] = field(default_factory=list)
    bands: dict[str, list[ScoreSketch]] = field(default_factory=dict)
    s2m: S2mState | None = field(default_factory=S2mState)

    def add(self, frame: LoadedFrame) -> dict[str, Any]:
        """Add an image and return its row of pixel metrics.

        Raises:
            DataError: The output is not of the label's size, or not finite; void counts too.
        """
        prediction = frame.predictions[self.name]
        check_score(f"{frame.sample.image}, output '{self.name}'", prediction.score, frame.label.shape)
        scores = self._sorted(prediction.score, frame)
        self.smiyc.update_sorted(scores)
        self.sketches.append(sketch(scores))
        self._add_s2m(prediction.score, frame.label, scores)
        row = {"key": frame.sample.key, "output": self.name} | _image_metrics(scores)
        row |= {"score_min": float(prediction.score.min()), "score_max": float(prediction.score.max())}
        with self.turn:
            self.pooled.update_sorted(scores)
        return row

    def _sorted(self, score: FloatMap, frame: LoadedFrame) -> SortedScores:
        """Sort the scores band by band, keep a sketch of each band, and merge them."""
        parts = []
        for band, rows in band_rows(len(score)).items():
            part = sort_scores(score[rows], frame.label[rows])
            if not part.empty:
                parts.append(part)
                self.bands.setdefault(band, []).append(sketch(part, coarse=True))
        return SortedScores.merged(parts)

    def _add_s2m(self, score: FloatMap, label: npt.NDArray[np.uint8], scores: SortedScores) -> None:
        """S2M's thresholds lie in [0, 1]; an output that leaves this range has no S2M metrics."""
        if self.s2m is not None and score.min() >= 0 and score.max() <= 1:
            self.s2m.update_sorted(scores, np.sort(score[label > 1]))
        else:
            self.s2m = None


def pool_pixels(
    result: BenchmarkResult, source: OutputSource, settings: EvaluationSettings, save: Save | None
) -> None:
    """Fill ``pixel``, ``curves``, ``thresholds``, ``histograms``, ``bands`` and the pixel columns of ``image_rows``.

    Raises:
        DataError: An output cannot be used, or every pixel is void.
    """
    turn = Lock()
    outputs = [
        _Output(name, StreamingPixels(settings.capacity, buffer=1 << 20), turn) for name in source.names
    ]
    with ThreadPoolExecutor(settings.workers) as pool:
        saving: Future[None] | None = None
        for frame in loaded_frames(result, source, "pixels", settings.workers):
            if saving is not None:
                saving.result()
            saving = pool.submit(save, frame.sample, frame.predictions) if save is not None else None
            if (frame.label == 255).all():
                result.left_out[frame.sample.key] = "every pixel is void"
                continue
            rows = pool.map(lambda output, frame=frame: output.add(frame), outputs)
            result.image_rows += list(rows)
        if saving is not None:
            saving.result()
    if not result.keys:
        raise DataError(result.benchmark.name, "every pixel of every image is void", "check the label map")
    while outputs:  # what was gathered of an output is no longer needed then
        _read_off(result, outputs.pop(0), settings)
    for row in result.image_rows:
        row["threshold"] = result.thresholds.get(row["output"])


def _read_off(result: BenchmarkResult, output: _Output, settings: EvaluationSettings) -> None:
    first, closest, name = output.pooled.compute("first"), output.pooled.compute("closest"), output.name
    curve, pooled = output.smiyc.curve(), output.pooled.curve()
    metrics = curve.metrics()
    result.pixel[name] = {"pooled": first, "rpl": closest, "fishyscapes": first, "smiyc": metrics}
    threshold = metrics.best_f1_threshold if settings.threshold is None else settings.threshold
    if threshold is not None:
        result.thresholds[name] = threshold
    if output.s2m is not None:
        result.s2m[name] = output.s2m
    if not first.reasons:
        points = settings.curve_points
        result.curves[name] = {"smiyc": curve.thinned(points), "pooled": pooled.thinned(points)}
    bins = pooled.thinned(settings.histogram_bins).thresholds
    result.histograms[name] = common_histograms(output.sketches, bins)
    result.bands[name] = {band: summed_histogram(parts, bins) for band, parts in output.bands.items()}


def _image_metrics(scores: SortedScores) -> dict[str, Any]:
    measured = positive_curve(scores).metrics()
    return {
        "ap": measured.ap,
        "auroc": None if measured.reasons else rank_auroc(scores),
        "fpr95": measured.fpr95,
        "best_f1": measured.best_f1,
    }
