"""From measured benchmarks and their predictions to the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from anomdino.benchmarks import Benchmark, Sample
from anomdino.evaluation.bootstrap import PIXEL_NAMES
from anomdino.evaluation.groups import BANDS, SIZES
from anomdino.evaluation.memory import FreedMemory
from anomdino.evaluation.result import OWN_MASK, BenchmarkResult, final_output
from anomdino.evaluation.summary import (
    benchmark_metrics,
    clean_road,
    curve_points,
    false_positive_shares,
    output_details,
)
from anomdino.io.boxes import Boxes
from anomdino.io.images import read_image, read_label
from anomdino.io.scores import read_score
from anomdino.metrics.components import predicted_mask
from anomdino.report.curves import Curve, curve_svg
from anomdino.report.page import Column, ImageEntry, ReportWriter, Table
from anomdino.report.published import published_for
from anomdino.viz.overlay import ScoreRange
from anomdino.words import counted

COLUMNS = (
    Column("AP", "AP", hint="area under the precision-recall curve, percent"),
    Column("FPR95", "FPR95", "low", hint="false-positive rate at 95 % recall, percent"),
    Column("AUROC", "AUROC", hint="area under the ROC curve, percent"),
    Column("sIoU", "sIoU", hint="mean adjusted IoU of ground-truth components, percent"),
    Column("PPV", "PPV", hint="mean precision of predicted components, percent"),
    Column("F1*", "F1*", hint="component F1, mean over sIoU thresholds 0.25 to 0.75, percent"),
    Column("missed", "missed", "low", 1, 0, "ground-truth components with sIoU below 0.25"),
    Column("false", "false", "low", 1, 0, "predicted components with PPV below 0.25"),
)
GROUP_COLUMNS = (
    Column("gt", "objects", "none", 1, 0, "ground-truth components"),
    Column("missed", "missed", "none", 1, 0, "ground-truth components with sIoU below 0.25"),
    Column("sIoU", "sIoU", "none", hint="mean adjusted IoU of ground-truth components, percent"),
    Column("predicted", "predicted", "none", 1, 0, "predicted components"),
    Column("false", "false", "none", 1, 0, "predicted components with PPV below 0.25"),
)
PIXEL_COLUMNS = tuple(
    Column(name, name, "none", hint="percent, over the group's pixels") for name in PIXEL_NAMES
)
CLEAN_COLUMNS = (
    Column("images", "clean images", "none", 1, 0, "images without any anomaly"),
    Column(
        "fpr", "false-positive rate", "low", hint="share of their in-distribution pixels in the mask, percent"
    ),
    Column("called_clean", "called clean", hint="share of them without a predicted component, percent"),
    Column("anomalous_images", "other images", "none", 1, 0, "images with an anomaly"),
    Column("alarmed", "alarmed", hint="share of those with a predicted component, percent"),
)
PLOTS = {
    "roc": ("ROC", "fpr", "tpr", "FPR", "TPR", True),
    "pr": ("precision and recall", "recall", "precision", "recall", "precision", False),
    "f1": ("F1 against the threshold", "predicted_share", "f1", "share of pixels predicted", "F1", True),
}


def build_report(
    folder: Path,
    results: Sequence[BenchmarkResult],
    predictions: Path,
    boxes: Mapping[str, Mapping[str, Boxes]],
    facts: Mapping[str, object],
    box_score: float = 0.0,
    *,
    pictures: bool = True,
) -> Path:
    """Write the report of an evaluation; two images are in memory at a time.

    Args:
        folder: Output folder, replaced.
        results: One a benchmark.
        predictions: Folder with ``<benchmark>/{score,mask}/`` (:func:`anomdino.evaluation.write_prediction`); where the
            method has no mask of its own, that of the final score's threshold is shown.
        boxes: Boxes by benchmark and key; a benchmark or key may be missing.
        facts: Short facts under the heading.
        box_score: Boxes with at least this confidence are drawn.
        pictures: Show every image; without, ``predictions`` is not read.

    Returns:
        The page.
    """
    writer = ReportWriter(folder, sum(len(result.keys) for result in results))
    span, own = _span(results), all(OWN_MASK in result.components for result in results)
    for result in results if pictures else ():
        found = boxes.get(result.benchmark.name, {})
        kept = {key: one.kept(box_score) for key, one in found.items()}
        writer.add_all(_loaders(result, predictions, kept, span), f"{result.benchmark.name}: report")
    return writer.finish(
        "AnomDINO: where it finds anomalies, and where it fails",
        facts,
        [table for result in results for table in _tables(result)],
        _plots(results),
        summary_note="Percent; below a value its approximate 95 % interval over images (for ten images it holds the "
        "truth in 85 to 98 % of simulated sets). Component numbers of the score outputs are taken at the threshold of "
        f"best pixel F1 on the evaluated labels, as SMIYC does; {OWN_MASK} is the mask at ADT-Net's own thresholds, "
        "which no evaluation label has touched.",
        mask_name="ADT-Net" if own else "the best F1",
        boxes_name=f"boxes with a confidence of at least {box_score:g}",
        gallery_note=""
        if pictures
        else "No pictures: predictions were not saved (benchmark.save_predictions is false).",
    )


def _span(results: Sequence[BenchmarkResult]) -> ScoreRange:
    """Range of the final score over all images."""
    rows = [row for result in results for row in result.rows_of(_own_and_scored(result)[1])]
    low, high = min(row["score_min"] for row in rows), max(row["score_max"] for row in rows)
    return ScoreRange(low, high, "final score")


def _own_and_scored(result: BenchmarkResult) -> tuple[str, str]:
    """Name what gives the final mask (ADT-Net's own where there is one) and the final score."""
    scored = final_output(result.pixel)
    return OWN_MASK if OWN_MASK in result.components else scored, scored


def _group_tables(result: BenchmarkResult) -> Iterator[Table]:
    """Where the final mask and the final score fail: by size, distance and tag, and on clean roads."""
    own, scored = _own_and_scored(result)
    name, details = result.benchmark.name, output_details(result, own)
    pixels = output_details(result, scored)
    about = f"components of '{own}', pixels of '{scored}'"
    sizes = ", ".join(f"{size} under {100 * limit:g} %" for size, limit in SIZES[:-1])
    yield Table(
        f"{name}: by object size",
        GROUP_COLUMNS,
        details["by_size"],
        f"components of '{own}'; {sizes} of the image's pixels",
        row_name="size",
    )
    bands = {band: pixels["by_distance"][band] | row for band, row in details["by_distance"].items()}
    rows = ", ".join(f"{band} above {100 * limit:g} %" for band, limit in BANDS[:-1])
    yield Table(
        f"{name}: by distance",
        (*GROUP_COLUMNS, *PIXEL_COLUMNS),
        bands,
        f"{about}; {rows} of the image's height",
        row_name="image row",
    )
    if details["by_tag"]:
        tags = {tag: pixels["by_tag"][tag] | row for tag, row in details["by_tag"].items()}
        columns = (
            Column("images", "images", "none", 1, 0),
            *GROUP_COLUMNS[1:3],
            GROUP_COLUMNS[-1],
            *PIXEL_COLUMNS,
        )
        yield Table(f"{name}: by tag", columns, tags, about, row_name="tag")
    verdicts = {output: clean_road(result.rows_of(output)) for output in result.components}
    if verdicts[own]["images"]:
        reasons = {o: dict.fromkeys(v, v["reason"]) for o, v in verdicts.items() if "reason" in v}
        yield Table(
            f"{name}: clean roads", CLEAN_COLUMNS, verdicts, "images without anomaly", reasons=reasons
        )


def _loaders(
    result: BenchmarkResult, predictions: Path, boxes: Mapping[str, Boxes], span: ScoreRange
) -> list[Callable[[], ImageEntry]]:
    benchmark: Benchmark = result.benchmark
    own, scored = _own_and_scored(result)
    components = {row["key"]: row for row in result.rows_of(own)}
    pixels = {row["key"]: row for row in result.rows_of(scored)}
    where, freed = predictions / benchmark.name, FreedMemory()

    def load(sample: Sample) -> ImageEntry:
        freed.give_back()
        row, score = components[sample.key], read_score(where / "score" / f"{sample.key}.npz")
        if own == OWN_MASK:
            mask = read_label(where / "mask" / f"{sample.key}.png") > 0
        else:
            mask = predicted_mask(score, result.thresholds.get(own, np.inf))
        return ImageEntry(
            benchmark=benchmark.name,
            key=sample.key,
            image=read_image(sample.image),
            score=score,
            mask=mask,
            truth=benchmark.read_label(sample),
            boxes=boxes.get(sample.key, Boxes.empty()),
            span=span,
            ap=pixels[sample.key]["ap"],
            missed=row.get("missed_25"),
            false=row.get("false_25"),
            components=row.get("gt_components"),
        )

    return [partial(load, sample) for sample in benchmark.samples if sample.key in components]


def _tables(result: BenchmarkResult) -> Iterator[Table]:
    metrics = benchmark_metrics(result)
    name = result.benchmark.name
    outputs = {output: metrics[output] for output in result.components}
    yield Table(
        title=name,
        subtitle=f"{counted(metrics['images'], 'image')}, {metrics['clean_images']} without anomaly, "
        f"protocol {metrics['protocol']}",
        columns=COLUMNS,
        rows=outputs,
        intervals=result.intervals,
        reasons={output: row.get("reasons", {}) for output, row in outputs.items()},
        published=published_for({result.benchmark.layout}),
    )
    yield from _group_tables(result)
    if result.detector is not None:
        keys = [key for key, value in result.detector.items() if value is not None]
        columns = [_detector_column(key) for key in keys]
        yield Table(f"{name}: detector", columns, {"boxes": result.detector}, row_name="")
    if result.false_positive_classes:
        yield _false_positive_table(result)


def _detector_column(key: str) -> Column:
    """A column of the detector's table: numbers of boxes as they are, all else shares in percent."""
    return Column(key, key.replace("_", " "), "none", 1 if key.startswith("boxes_per") else 100)


def _false_positive_table(result: BenchmarkResult) -> Table:
    """Shares of the false-positive pixels by the closed-set class that they fall on."""
    rows: dict[str, dict[str, float | None]] = {}
    for output in result.false_positive_classes:
        counts = false_positive_shares(result, output)
        total = sum(counts.values())
        rows[output] = {klass: count / total for klass, count in counts.items()} if total else {}
    classes = sorted(
        {klass for row in rows.values() for klass in row},
        key=lambda k: (-max(r.get(k, 0) or 0 for r in rows.values()), k),
    )
    columns = [Column(klass, klass, "none", digits=1) for klass in classes[:8]]
    subtitle = (
        "share of the false-positive pixels, percent, by the class that the closed-set network predicts there"
    )
    return Table(f"{result.benchmark.name}: false positives", columns, rows, subtitle)


def _plots(results: Sequence[BenchmarkResult]) -> list[str]:
    points = curve_points(results)
    drawn = []
    for result in results:
        for kind, (title, x, y, x_label, y_label, log) in PLOTS.items():
            curves = {
                output: Curve(
                    *zip(
                        *[
                            (p[x], p[y])
                            for p in points[kind]
                            if p["benchmark"] == result.benchmark.name and p["output"] == output
                        ],
                        strict=True,
                    )
                )
                for output in result.curves
            }
            drawn.append(curve_svg(f"{result.benchmark.name}: {title}", curves, x_label, y_label, x_log=log))
    if points["detector"]:
        names = [result.benchmark.name for result in results if result.detector_curve]
        recall = {
            name: Curve(
                [row["threshold"] for row in points["detector"] if row["benchmark"] == name],
                [row["objects_in_boxes"] for row in points["detector"] if row["benchmark"] == name],
            )
            for name in names
        }
        drawn.append(
            curve_svg("anomalies more than half inside boxes", recall, "least confidence of a box", "share")
        )
    return drawn
