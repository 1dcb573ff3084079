"""What uncertainty brings to the detector: the ablation of OUAFS, over seeds.

Usage: python benchmarks/detector_ablation.py [--variants none all ...] [--seeds 0 1 2] [--work FOLDER]
           [-S KEY=VALUE ...] [--out table.md]

Run it in a project folder after `dvc repro score score_train`: it reads the composed training set and the maps, trains
the detector of params.yaml once a variant and seed, and measures it on the held-out composed images and on every
benchmark. Only the maps that OUAFS fuses and the orthogonality loss differ between variants; without any map the image
features are never dropped, for nothing else would be left. The seed is that of training; the composed set and its
split stay the same. Finished runs are kept in FOLDER and not repeated.

AR@1/10/100 and AP50 are COCO's, percent. "pixels@5" and "components@5" are the shares of anomalous pixels inside boxes
and of components more than half inside boxes, at the threshold that keeps five boxes an image. Mean over seeds,
+- standard deviation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from anomdino.benchmarks import open_set
from anomdino.config.detector import DetectorConfig
from anomdino.config.params import Params, load_params
from anomdino.detector.infer import Detector
from anomdino.detector.quality import Coverage, coco_metrics, threshold_at_budget
from anomdino.detector.records import Fold, read_records, split_folds
from anomdino.detector.run import detect_one
from anomdino.detector.training import train_detector
from anomdino.device import resolve_device
from anomdino.io.atomic import atomic_write_json
from anomdino.io.boxes import Boxes
from anomdino.io.images import read_label

DATA = Path("data")
TRAIN = DATA / "train_dataset"
SCORER = DATA / "models" / "rpl"
HELD_OUT = "held-out composed"
MAPS = ["semantic", "entropy", "distance"]
BUDGETS = (2, 5)
COLUMNS = (
    "AR@1",
    "AR@10",
    "AR@100",
    "AP50",
    *(f"{what}@{n}" for n in BUDGETS for what in ("pixels", "components")),
)


def _fusion(count: int, orth: str = "none", score: bool = False) -> dict[str, Any]:
    return {"maps": MAPS[:count], "orth": orth, "score_map": score}


VARIANTS: dict[str, dict[str, Any]] = {
    "none": _fusion(0),
    "+semantic": _fusion(1),
    "+entropy": _fusion(2),
    "+distance": _fusion(3),
    "+orthogonality": _fusion(3, "cosine"),
    "all": _fusion(3, "cosine", True),
    "all, orth none": _fusion(3, "none", True),
    "score alone": _fusion(0, "none", True),
}
ADDS = {"all": "+score map"}


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """An image to measure on: its files, its label 0/1/255 and its objects, float32 (N, 4) xyxy."""

    key: str
    image: Path
    maps: Path
    label: np.ndarray
    objects: np.ndarray


def main() -> None:
    """Train and measure what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=DATA / "state" / "detector_ablation")
    parser.add_argument("-S", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    params = load_params(Path("params.yaml"))
    base = changed(params.detector, arguments.changes)
    (fold,) = split_folds(_records(), 1, params.detect.holdout, params.seed)
    for seed in arguments.seeds:
        for name in arguments.variants:
            _run(params, base, fold, name, seed, arguments.work)
    table = render(arguments.work, arguments.variants, arguments.seeds)
    print(table)
    if arguments.out:
        arguments.out.write_text(table + "\n", encoding="utf-8")


def changed(config: DetectorConfig, changes: Iterable[str]) -> DetectorConfig:
    """Give the parameters with ``KEY=VALUE`` changes, keys dotted as in params.yaml below ``detector``."""
    content = config.model_dump(mode="json")
    for change in changes:
        key, value = change.split("=", 1)
        *parents, last = key.removeprefix("detector.").split(".")
        block = content
        for parent in parents:
            block = block[parent]
        block[last] = yaml.safe_load(value)
    return DetectorConfig.model_validate(content)


def variant_of(config: DetectorConfig, name: str) -> DetectorConfig:
    """Give the parameters of a variant."""
    content = config.model_dump(mode="json")
    content["fusion"] |= VARIANTS[name]
    if not (content["fusion"]["maps"] or content["fusion"]["score_map"]):
        content["image_dropout"] = 0.0
    return DetectorConfig.model_validate(content)


def _run(params: Params, base: DetectorConfig, fold: Fold, name: str, seed: int, work: Path) -> None:
    row = work / f"{name}-{seed}.json"
    if row.exists():
        return
    device = resolve_device(params.device)
    started = time.perf_counter()
    folder = work / f"{name}-{seed}"
    trained = train_detector(variant_of(base, name), fold, folder, work / "state", seed, device, SCORER)
    seconds = time.perf_counter() - started
    detector = Detector.load(folder, device, params.detect, SCORER)
    sets = {HELD_OUT: measure(detector, held_out(fold))}
    for benchmark in params.benchmark.sets:
        sets[benchmark] = measure(detector, benchmark_items(params, benchmark))
    facts = {"variant": name, "seed": seed, "seconds": round(seconds), "selected_ar100": trained.best_ar100}
    atomic_write_json(row, {**facts, "sets": sets})
    print(json.dumps({**facts, **{key: _brief(value) for key, value in sets.items()}}), flush=True)


def held_out(fold: Fold) -> Iterator[Item]:
    """Give the composed images that the detector did not train on."""
    for record in fold.predict:
        yield Item(record.key, record.image, record.maps, read_label(record.label), record.boxes)


def benchmark_items(params: Params, name: str) -> Iterator[Item]:
    """Give the images of a benchmark with the boxes of the components that its protocol counts."""
    benchmark = open_set(name, params.benchmark.sets[name])
    for sample in benchmark.samples:
        label = benchmark.read_label(sample)
        maps = DATA / "scores" / name / "maps" / f"{sample.key}.npz"
        objects = component_boxes(label, params.benchmark.sets[name].min_gt or 1)
        yield Item(sample.key, sample.image, maps, label, objects)


def component_boxes(label: np.ndarray, least: int) -> np.ndarray:
    """Give the boxes, float32 (N, 4) xyxy half-open, of the anomaly components with at least ``least`` pixels."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((label == 1).astype(np.uint8), connectivity=8)
    kept = [row for row in stats[1:] if row[cv2.CC_STAT_AREA] >= least]
    boxes = [[x, y, x + width, y + height] for x, y, width, height, _ in kept]
    return np.array(boxes, np.float32).reshape(-1, 4)


def measure(detector: Detector, items: Iterable[Item]) -> dict[str, float | None]:
    """Detect in all images and give the table's numbers, shares in [0, 1]."""
    boxes: dict[str, Boxes] = {}
    labels: dict[str, np.ndarray] = {}
    objects: dict[str, np.ndarray] = {}
    for item in items:
        boxes[item.key], _ = detect_one(detector, item.image, item.maps)
        labels[item.key], objects[item.key] = item.label, item.objects
    quality = coco_metrics(boxes, objects)
    numbers = {**{f"AR@{limit}": value for limit, value in quality.ar.items()}, "AP50": quality.ap50}
    for budget in BUDGETS:
        threshold = threshold_at_budget(boxes.values(), budget)
        coverage = Coverage.over([threshold])
        for key, found in boxes.items():
            coverage.add(found, labels[key])
        row = coverage.curve()[0]
        numbers |= {
            f"pixels@{budget}": row["pixels_inside"],
            f"components@{budget}": row["components_inside"],
            f"threshold@{budget}": threshold,
        }
    return numbers


def render(work: Path, variants: Iterable[str], seeds: Iterable[int]) -> str:
    """Render the table of the finished runs: one part a set, one row a variant, percent."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for name in variants:
        files = [work / f"{name}-{seed}.json" for seed in seeds]
        rows[name] = [json.loads(file.read_text()) for file in files if file.exists()]
    rows = {name: found for name, found in rows.items() if found}
    sets = next(iter(rows.values()))[0]["sets"]
    lines = []
    for part in sets:
        lines += [f"| {part} | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
        for name, found in rows.items():
            cells = [_cell([run["sets"][part][column] for run in found]) for column in COLUMNS]
            shown = f"{ADDS[name]} (all)" if name in ADDS else name
            lines.append(f"| {shown} | {len(found)} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(values: list[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" +- {np.std(known, ddof=1):.1f}" if len(known) > 1 else ""
    return f"{np.mean(known):.1f}{spread}"


def _brief(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def _records() -> list[Any]:
    folders = (TRAIN / name for name in ("offline_dataset", "offline_dataset_maps", "offline_dataset_label"))
    return read_records(TRAIN / "ood.json", *folders)


if __name__ == "__main__":
    main()
