"""How many anomalies lie inside boxes, as a function of the score threshold and of the boxes an image.

Usage: python benchmarks/detector_recall.py [--benchmarks NAME ...] [--budgets 1 2 3 5 8] [--weighed ADT]

Run it in a project folder after `dvc repro detect`: it reads the benchmarks of params.yaml and data/boxes. Percent of the
anomalous pixels inside kept boxes, and of the anomaly components (8-connected, every size) more than half inside their
union. The first table keeps a mean number of boxes an image by one threshold for the whole set; the second lists
thresholds. "best" keeps all boxes: the ceiling. With `--weighed data/models/adt` the
boxes are ranked as ADT-Net ranks them, by confidences that the scores in and around them weigh (`adt.box_evidence`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from anomdino.adt.evidence import weighed
from anomdino.adt.store import load_adt
from anomdino.benchmarks import Benchmark
from anomdino.config.params import load_params
from anomdino.detector.quality import THRESHOLDS, Coverage, threshold_at_budget
from anomdino.evaluation.opening import find_benchmark
from anomdino.io.boxes import Boxes, read_box_results
from anomdino.io.scores import read_score

DATA = Path("data")
BOXES = DATA / "boxes"


def main() -> None:
    """Print both tables of every benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--benchmarks", nargs="+")
    parser.add_argument("--budgets", nargs="+", type=float, default=[1, 2, 3, 5, 8])
    parser.add_argument("--weighed", type=Path, metavar="ADT", help="folder of a trained ADT-Net")
    arguments = parser.parse_args()
    for name in arguments.benchmarks or load_params(Path("params.yaml")).benchmark.sets:
        benchmark = find_benchmark(name)
        boxes = read_box_results(BOXES / f"{name}.json", [sample.key for sample in benchmark.samples])
        if arguments.weighed:
            boxes = weighed_boxes(benchmark, boxes, arguments.weighed)
        budgets = {budget: threshold_at_budget(boxes.values(), budget) for budget in arguments.budgets}
        thresholds = sorted({*budgets.values(), *THRESHOLDS})
        coverage = cover(benchmark, boxes, thresholds)
        rows = dict(zip(thresholds, coverage.curve(), strict=True))
        print(f"{name}: {coverage.images} images, {coverage.components} components\n")
        print("| boxes an image, at most | threshold | components | pixels |\n|---|---|---|---|")
        for budget, threshold in [*budgets.items(), ("best", 0.0)]:
            row = rows[threshold]
            shares = f"{_percent(row, 'components_inside')} | {_percent(row, 'pixels_inside')}"
            print(f"| {budget} | {threshold:.3f} | {shares} |")
        print("\n| threshold | components | pixels | boxes an image |\n|---|---|---|---|")
        for threshold in THRESHOLDS:
            row = rows[threshold]
            shares = f"{_percent(row, 'components_inside')} | {_percent(row, 'pixels_inside')}"
            print(f"| {threshold:.2f} | {shares} | {row['boxes_per_image']:.1f} |")
        print()


def cover(benchmark: Benchmark, boxes: Mapping[str, Boxes], thresholds: list[float]) -> Coverage:
    """Count what the boxes cover over all frames of a benchmark."""
    coverage = Coverage.over(thresholds)
    for sample in benchmark.samples:
        coverage.add(boxes[sample.key], benchmark.read_label(sample))
    return coverage


def weighed_boxes(benchmark: Benchmark, boxes: Mapping[str, Boxes], adt: Path) -> dict[str, Boxes]:
    """Weigh the confidences by the scores, as ADT-Net does with the detector's boxes."""
    net = load_adt(adt).net
    found = {}
    for sample in benchmark.samples:
        score = read_score(DATA / "scores" / benchmark.name / "score" / f"{sample.key}.npz")
        height, width = score.shape
        found[sample.key] = weighed(boxes[sample.key].clipped((height, width)), score, net)
    return found


def _percent(row: Mapping[str, float | None], name: str) -> str:
    value = row[name]
    return "-" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
