"""From measurements to ``metrics.json``, ``details.json`` and the points of plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.evaluation.bootstrap import ImageCounts, ImageHistograms, pixel_values
from anomdino.evaluation.groups import BANDS, SIZES, component_groups, tag_groups
from anomdino.evaluation.result import BenchmarkResult, headline_values, image_counts
from anomdino.metrics.components import ComponentState
from anomdino.metrics.curve import Curve
from anomdino.metrics.results import NO_ANOMALY, NO_INLIER

DIGITS = 6
RESERVED = frozenset({"protocol", "images", "clean_images", "left_out", "detector", "seed", "closed_set"})
"""Keys of ``metrics.json`` that no output can be called by."""
NO_THRESHOLD = "no mask: without both classes there is no threshold of best F1, and none was given"
CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip


def benchmark_metrics(result: BenchmarkResult) -> dict[str, Any]:
    """Give the block of a benchmark in ``metrics.json``: protocol, counts, then one row of numbers an output.

    Returns:
        AP, FPR95, AUROC (by the benchmark's protocol), sIoU, PPV, F1* as fractions; ``missed`` and ``false``
        components at 0.25 as counts. A missing value is None, its reason is in ``reasons`` of the output.
    """
    block: dict[str, Any] = {
        "protocol": result.benchmark.protocol,
        "images": len(result.keys),
        "clean_images": sum(row["clean"] for row in result.rows_of(next(iter(result.components)))),
        "left_out": len(result.left_out),
    }
    if result.detector is not None:
        block["detector"] = rounded(result.detector)
    for name in result.components:
        block[name] = _output_metrics(result, name)
    return block


def benchmark_details(result: BenchmarkResult) -> dict[str, Any]:
    """Give everything that was measured on a benchmark, for ``details.json``."""
    benchmark = result.benchmark
    outputs = {name: output_details(result, name) for name in result.components}
    return {
        "benchmark": benchmark.name,
        "layout": benchmark.layout,
        "split": benchmark.split,
        "protocol": benchmark.protocol,
        "images": len(result.keys),
        "left_out": result.left_out,
        "component_limits": vars(benchmark.limits),
        "outputs": outputs,
    }


def per_image_protocol(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over images of AP, FPR95 and AUROC; images that lack a class are left out, counted by reason."""
    kept = [row for row in rows if row["ap"] is not None]
    lacking = [row for row in rows if row["ap"] is None]
    without = sum(row["anomaly_pixels"] == 0 for row in lacking)
    left_out = {NO_ANOMALY: without, NO_INLIER: len(lacking) - without}
    means = {
        name: float(np.mean([row[column] for row in kept])) if kept else None
        for name, column in (("AP", "ap"), ("FPR95", "fpr95"), ("AUROC", "auroc"))
    }
    return {
        **means,
        "images": len(kept),
        "left_out": {why: count for why, count in left_out.items() if count},
    }


def clean_road(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How a mask behaves on images without any anomaly, and how often the verdict "clean road" is right.

    Returns:
        ``images`` without anomaly; ``fpr``, the share of their in-distribution pixels inside the mask;
        ``called_clean``, the share of them without a predicted component; ``anomalous_images`` and
        ``alarmed``, the share of those with a predicted component. None where there is no such image.
    """
    clean, other = [row for row in rows if row["clean"]], [row for row in rows if not row["clean"]]
    if any(row.get("verdict_clean") is None for row in rows):
        missing = dict.fromkeys(("fpr", "called_clean", "alarmed"))
        return {"images": len(clean), "anomalous_images": len(other), **missing, "reason": NO_THRESHOLD}
    pixels = sum(row["roi_pixels"] for row in clean)
    return {
        "images": len(clean),
        "fpr": sum(row["false_positive_pixels"] for row in clean) / pixels if pixels else None,
        "called_clean": float(np.mean([row["verdict_clean"] for row in clean])) if clean else None,
        "anomalous_images": len(other),
        "alarmed": float(np.mean([not row["verdict_clean"] for row in other])) if other else None,
    }


def distance_groups(result: BenchmarkResult, name: str) -> dict[str, dict[str, Any]]:
    """Summarise an output by distance band: components by their bottom edge, pixels by their row.

    Returns:
        By band what :func:`component_groups` gives, ``anomaly_pixels`` and ``inlier_pixels``, and for a score
        AP, FPR95 and AUROC over the band's pixels of all images, from histograms; None without both classes.
    """
    components = [row for row in result.component_rows if row["output"] == name]
    groups = component_groups(components, "distance_band", [band for band, _ in BANDS])
    for band, histograms in result.bands.get(name, {}).items():
        groups[band] |= _pooled_pixels(histograms, np.ones((1, len(histograms.tp))))
        groups[band] |= {
            "anomaly_pixels": round(float(histograms.tp.sum())),
            "inlier_pixels": round(float(histograms.fp.sum())),
        }
    return groups


def _pooled_pixels(histograms: ImageHistograms, weights: npt.NDArray[np.float64]) -> dict[str, Any]:
    """AP, FPR95 and AUROC of weighted images, (1, N); None with a ``reason`` where a class is missing."""
    values = {key: float(value[0]) for key, value in pixel_values(histograms, weights).items()}
    if all(np.isfinite(value) for value in values.values()):
        return dict(values)
    reason = NO_INLIER if (weights @ histograms.tp).sum() > 0 else NO_ANOMALY
    return {**dict.fromkeys(values), "reason": reason}


def curve_points(results: Sequence[BenchmarkResult]) -> dict[str, list[dict[str, Any]]]:
    """Give the rows of the plot files: ``roc``, ``pr``, ``f1``, ``detector`` and ``false_positives``.

    Every row has ``series``, the benchmark and the output, so that one plot overlays them all.
    """
    names = ("roc", "pr", "f1", "detector", "false_positives")
    plots: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for result in results:
        which = "smiyc" if result.benchmark.protocol == "smiyc" else "pooled"
        for output, curves in result.curves.items():
            label = {
                "series": f"{result.benchmark.name} {output}",
                "benchmark": result.benchmark.name,
                "output": output,
            }
            curve = curves[which]
            plots["roc"] += _points(label, curve, fpr=curve.fpr, tpr=curve.recall)
            plots["pr"] += _points(label, curve, recall=curve.recall, precision=curve.precision)
            share = (curve.tp + curve.fp) / (curve.positives + curve.negatives)
            points = _points(label, curve, predicted_share=share, f1=curve.f1)
            plots["f1"] += [point for point in points if point["predicted_share"] > 0]
        for output in result.false_positive_classes:
            plots["false_positives"] += _false_positive_points(result, output)
        for row in result.detector_curve:
            named = {"series": result.benchmark.name, "benchmark": result.benchmark.name}
            plots["detector"].append(named | rounded(row))
    return plots


def rounded(value: Any) -> Any:
    """Round floats to six digits, so that files stay readable; NaN and infinity are refused.

    A threshold keeps all digits: it is of the scores' own scale, and another float32 number gives another mask.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    if isinstance(value, Mapping):
        return {
            str(key): _exact(inner) if str(key).endswith("threshold") else rounded(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return round(_exact(value), DIGITS)
    return value.item() if isinstance(value, np.generic) else value


def _exact(value: Any) -> Any:
    """Give a number as it is; NaN and infinity are refused, anything else is rounded inside."""
    if not isinstance(value, float | np.floating):
        return rounded(value)
    if not np.isfinite(value):
        raise ValueError("a metric is NaN or infinite")
    return float(value)


def _output_metrics(result: BenchmarkResult, name: str) -> dict[str, Any]:
    components, pixel = result.components[name], result.headline(name)
    values: dict[str, Any] = rounded(headline_values(result, name))
    values |= {
        "missed": None if components is None else components.missed["25"],
        "false": None if components is None else components.false["25"],
    }
    reasons: dict[str, str] = {}
    if pixel is not None and pixel.reasons:
        reasons |= {
            "AP": pixel.reasons["ap"],
            "FPR95": pixel.reasons["fpr95"],
            "AUROC": pixel.reasons["auroc"],
        }
    if components is None:
        reasons |= dict.fromkeys(("sIoU", "PPV", "F1*", "missed", "false"), NO_THRESHOLD)
        return values | {"reasons": reasons}
    shown = {"siou": "sIoU", "ppv": "PPV", "f1": "F1*"}
    reasons |= {shown[key]: reason for key, reason in components.reasons.items() if key in shown}
    return values | ({"reasons": reasons} if reasons else {})


def output_details(result: BenchmarkResult, name: str) -> dict[str, Any]:
    """Give everything that was measured of one output, rounded."""
    rows = result.rows_of(name)
    components = [row for row in result.component_rows if row["output"] == name]
    measured_components = result.components[name]
    tags = {s.key: s.tags for s in result.benchmark if s.key not in result.left_out}
    details: dict[str, Any] = {
        "components": None if measured_components is None else measured_components.as_dict(),
        "intervals_95": result.intervals.get(name, {}),
        "clean_road": clean_road(rows),
        "by_size": component_groups(components, "size_group", [size for size, _ in SIZES]),
        "by_distance": distance_groups(result, name),
        "by_tag": tag_groups(tags, lambda keys: _tagged(result, name, rows, keys)),
    }
    if name in result.pixel:
        details["threshold"] = result.thresholds.get(name)
        details["pixel"] = {key: value.as_dict() for key, value in result.pixel[name].items()}
        details["pixel"]["per_image"] = per_image_protocol(rows)
    if name in result.s2m:
        measured = result.s2m[name].compute()
        details["s2m"] = {
            "AuIoU": measured["area"],
            "mean_F1": measured["mean_f1"],
            "best_mIoU": measured["Best_miou"],
            "best_threshold": measured["Best_threshold"],
        }
    if name in result.instances:
        details["instances"] = vars(result.instances[name].compute())
    if name in result.false_positive_classes:
        details["false_positive_classes"] = false_positive_shares(result, name)
    return dict(rounded(details))


def false_positive_shares(result: BenchmarkResult, name: str) -> dict[str, int]:
    """False-positive pixels of an output by the closed-set class they fall on, the most frequent first."""
    counts = result.false_positive_classes[name]
    order = np.argsort(-counts, kind="stable")
    named = {int(i): CITYSCAPES[i] if i < len(CITYSCAPES) else str(i) for i in order if counts[i]}
    return {text: int(counts[index]) for index, text in named.items()}


def _tagged(
    result: BenchmarkResult, name: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> dict[str, Any]:
    chosen = set(keys)
    counts = image_counts([dict(row) for row in rows if row["key"] in chosen])
    values: dict[str, Any] = {"images": len(keys)} | _pooled_components(counts)
    if name not in result.histograms:
        return values
    weights = np.array([[float(key in chosen) for key in result.keys]])
    return _pooled_pixels(result.histograms[name], weights) | values


def _pooled_components(counts: ImageCounts | None) -> dict[str, Any]:
    if counts is None:
        return dict.fromkeys(("sIoU", "PPV", "F1*", "missed", "false"))
    state = ComponentState()
    state.tp, state.fn, state.fp = (part.sum(axis=0) for part in (counts.tp, counts.fn, counts.fp))
    state.gt_count, state.siou_sum = int((counts.tp + counts.fn)[:, 0].sum()), float(counts.siou_sum.sum())
    state.predicted_count, state.ppv_sum = int(counts.predicted.sum()), float(counts.ppv_sum.sum())
    measured = state.compute()
    return {
        "sIoU": measured.siou,
        "PPV": measured.ppv,
        "F1*": measured.f1,
        "missed": measured.missed["25"],
        "false": measured.false["25"],
    }


def _false_positive_points(result: BenchmarkResult, output: str) -> list[dict[str, Any]]:
    counts = false_positive_shares(result, output)
    total = sum(counts.values())
    return [
        {
            "series": f"{result.benchmark.name} {output}",
            "benchmark": result.benchmark.name,
            "output": output,
            "class": name,
            "pixels": pixels,
            "share": rounded(pixels / total),
        }
        for name, pixels in counts.items()
    ]


def _points(label: Mapping[str, str], curve: Curve, **columns: Any) -> list[dict[str, Any]]:
    names = list(columns)
    rows = zip(curve.thresholds.tolist(), *(columns[name].tolist() for name in names), strict=True)
    return [
        {**label, "threshold": _exact(row[0]), **dict(zip(names, rounded(row[1:]), strict=True))}
        for row in rows
    ]
