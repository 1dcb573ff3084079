"""What thresholds, boxes and the output rule each bring: ADT-Net's ablation table on the benchmarks of
params.yaml.

Usage: python benchmarks/adt_ablation.py [--seeds 0 1 2] [--benchmarks NAME ...] [--training FOLDER] [--model FOLDER]

Run it in a project folder after `dvc repro detect`: it reads the composed training set, the scores and the
boxes, trains ADT-Net with dense and with scalar thresholds (once a seed) in a temporary folder, and evaluates
by SMIYC's protocol. In the folder of `pipeline.measure` it does so with the scores and boxes of the benchmarks
measured there; `--training` names the folder of `pipeline.release_adt`, whose composed images then train.
`--model` adds rows of a trained ADT-Net, as it is; has it a network that outlines objects, that joins the others'
outlines. `--jobs` processes measure rows side by side. All numbers are percent, mean over the seeds, +- standard
deviation. F1* is at each score's own best threshold on the benchmark; "mask F1*" is of the mask that the method
decides on without a label of the benchmark. Components are missed or false at sIoU / PPV 0.25. Rows marked (*)
use ground-truth boxes: an upper bound, not a method.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from training_set import DATA, HELP, training_files

from anomdino.adt.dataset import TrainingFiles, hold_out, list_items, read_item
from anomdino.adt.fusion import AdtModel, FusionRule, fuse
from anomdino.adt.histogram import ScoreHistogram
from anomdino.adt.outline_net import load_outline_net
from anomdino.adt.plugin import boxes_as_given
from anomdino.adt.store import load_adt
from anomdino.adt.thresholds import Threshold
from anomdino.adt.training import TrainingPlan, plan_from, train_adt
from anomdino.adt.tuning import tune_trained
from anomdino.benchmarks import Sample
from anomdino.config.params import load_params
from anomdino.evaluation import EvaluationSettings, Prediction, evaluate_benchmark
from anomdino.evaluation.opening import find_benchmark
from anomdino.io.boxes import Boxes, read_box_results
from anomdino.io.images import read_image
from anomdino.io.scores import read_score

COLUMNS = ("AP", "FPR95", "F1*", "missed", "false", "mask F1*", "mask missed", "mask false")

BoxesOf = Callable[[Sample], Boxes]


@dataclass(frozen=True, eq=False)
class Variant:
    """One row of the table: a model with its rule, and where its boxes come from."""

    name: str
    model: AdtModel
    boxes: str  # none, detector or truth


@dataclass(frozen=True, eq=False)
class VariantOutputs:
    """The output of one variant, as the evaluation asks for it."""

    variant: Variant
    scores: Path
    boxes_of: BoxesOf
    min_component: int
    names: tuple[str, ...] = ("output",)

    def predictions(self, sample: Sample) -> Mapping[str, Prediction]:
        """Fuse the image's score map with the boxes of the variant."""
        model = self.variant.model
        rule = replace(model.rule, min_component=self.min_component)
        score = read_score(self.scores / f"{sample.key}.npz")
        fused = fuse(score, self.boxes_of(sample), model, rule, image=read_image(sample.image))
        return {"output": Prediction(fused.score, fused.mask)}

    def boxes(self, sample: Sample) -> Boxes | None:
        """None: the quality of boxes is not measured here."""
        return None

    def classes(self, sample: Sample) -> None:
        """None: false positives are not counted by class here."""


def main() -> None:
    arguments = _arguments()
    params = load_params("params.yaml")
    plan = plan_from(params.adt)
    plan = replace(plan, rule=replace(plan.rule, outline=False))  # that is a row of its own
    names = arguments.benchmarks or list(params.benchmark.sets)
    files = training_files(arguments.training)
    trained = [train_variants(files, plan, arguments.model, seed) for seed in arguments.seeds]
    variants = [*itertools.chain(*trained), *(variants_of(arguments.model) if arguments.model else [])]
    pairs = list(itertools.product(names, variants))
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        measured = list(pool.map(measure, *zip(*pairs, strict=True)))
    rows: dict[str, dict[str, list[list[float]]]] = {name: {} for name in names}
    for (name, variant), values in zip(pairs, measured, strict=True):
        rows[name].setdefault(variant.name, []).append(values)
    text = "\n\n".join(f"### {name}\n\n{table(rows[name])}" for name in names)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def train_variants(
    files: TrainingFiles, plan: TrainingPlan, outliner: Path | None, seed: int
) -> list[Variant]:
    """Train what the table needs, from composed images alone; ``outliner`` holds the network that outlines, if any."""
    with tempfile.TemporaryDirectory() as folder:
        dense, scalar = (
            tune_trained(
                train_adt(files, changed, Path(folder), seed=seed), files, changed, Path(folder), seed=seed
            )
            for changed in (
                plan,
                replace(plan, architecture=replace(plan.architecture, thresholds="scalar")),
            )
        )
        outlined = replace(dense, rule=replace(dense.rule, outline=True))
        outlined = replace(outlined, outliner=load_outline_net(outliner) if outliner else None)
        outlined = tune_trained(outlined, files, plan, Path(folder), seed=seed)
    raw = replace(
        dense, rule=replace(dense.rule, output="raw"), threshold=best_f1_threshold(files, plan, seed)
    )
    outputs = {
        name: replace(dense, rule=replace(dense.rule, output=name)) for name in ("hard", "soft", "boost")
    }
    published = replace(dense, rule=FusionRule("boost", b=1.0))
    return [
        Variant("raw, one threshold by F1 on composed images", raw, "none"),
        Variant("scalar thresholds, fused", scalar, "detector"),
        Variant("dense thresholds, fused", dense, "detector"),
        Variant("dense, fused, objects outlined in the boxes", outlined, "detector"),
        Variant("dense, fused, no boxes", dense, "none"),
        Variant("dense, fused, ground-truth boxes (*)", dense, "truth"),
        Variant("dense, fused, objects outlined in ground-truth boxes (*)", outlined, "truth"),
        *(Variant(f"dense, {name}", model, "detector") for name, model in outputs.items()),
        Variant("boost with b = 1, as the closest rival", published, "detector"),
    ]


def variants_of(folder: Path) -> list[Variant]:
    """Give the rows of a trained ADT-Net as it is: its boxes, none, and ground-truth boxes."""
    model = load_adt(folder)
    return [
        Variant("trained before, fused", model, "detector"),
        Variant("trained before, fused, no boxes", model, "none"),
        Variant("trained before, fused, ground-truth boxes (*)", model, "truth"),
    ]


def best_f1_threshold(files: TrainingFiles, plan: TrainingPlan, seed: int) -> Threshold:
    """Find the raw score's best pixel F1 on the composed images that training held out."""
    histogram = ScoreHistogram(bits=22)
    for item in hold_out(list_items(files), plan.holdout, seed)[1]:
        histogram.add(*read_item(item))
    return Threshold(histogram.best_f1()[1], "f1", "raw", {})


def measure(name: str, variant: Variant) -> list[float]:
    """Evaluate a variant on a benchmark of params.yaml."""
    benchmark = find_benchmark(name)
    detected = read_box_results(DATA / "boxes" / f"{benchmark.name}.json", [s.key for s in benchmark])
    sources: dict[str, BoxesOf] = {
        "none": lambda sample: Boxes.empty(),
        "detector": lambda sample: detected[sample.key],
        "truth": lambda sample: truth(benchmark.read_label(sample)),
    }
    scores = DATA / "scores" / benchmark.name / "score"
    if variant.boxes == "truth":
        variant = replace(variant, model=boxes_as_given(variant.model))
    source = VariantOutputs(variant, scores, sources[variant.boxes], benchmark.limits.min_predicted)
    result = evaluate_benchmark(benchmark, source, EvaluationSettings(bootstrap=0, own_mask="mask"))
    pixel = result.headline("output")
    own, best = result.components["mask"], result.components["output"]
    assert pixel is not None
    values = (pixel.ap, pixel.fpr95, best.f1, best.missed["25"], best.false["25"])
    values = (*values, own.f1, own.missed["25"], own.false["25"])
    return [np.nan if value is None else float(value) for value in values]


def truth(label: np.ndarray) -> Boxes:
    """Give the tight box of every anomalous component, with confidence 1."""
    count, _, statistics, _ = cv2.connectedComponentsWithStats((label == 1).astype(np.uint8), connectivity=8)
    left, top, width, height = statistics[1:count, :4].T
    return Boxes(np.stack([left, top, left + width, top + height], axis=1), np.ones(count - 1))


def table(rows: dict[str, list[list[float]]]) -> str:
    """Write the rows as Markdown: means over the seeds, +- the deviation by n - 1; a dash where a run has no value."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, runs in rows.items():
        cells = []
        for column, values in zip(COLUMNS, np.array(runs).T, strict=True):
            counts = column.split()[-1] in {"missed", "false"}
            scale, digits = (1, 0 if len(values) == 1 else 1) if counts else (100, 1)
            spread = f" +- {values.std(ddof=1) * scale:.{digits}f}" if len(values) > 1 else ""
            cells.append("-" if np.isnan(values).any() else f"{values.mean() * scale:.{digits}f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--benchmarks", nargs="+", help="names in params.yaml; all if absent")
    parser.add_argument("--training", type=Path, help=HELP)
    parser.add_argument(
        "--model", type=Path, help="a trained ADT-Net: rows of its own, its outlining network in others"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that measure")
    parser.add_argument("--out", type=Path, help="also write the table here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
