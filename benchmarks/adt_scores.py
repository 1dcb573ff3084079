"""ADT-Net with the score maps of other methods: raw against fused for three score types, calibrated and trained.

Usage: python benchmarks/adt_scores.py [--kinds residual:energy closed:max_softmax closed:max_logit]
           [--training FOLDER] [--out table.md]

Run it in a project folder after `dvc repro`: the scorer of data/models/rpl scores the composed images that have boxes
and the benchmarks of params.yaml once for each kind (`LOGITS:KIND`), into a temporary folder. The boxes are the
pipeline's in all rows. *Calibrated* is what a user of another method does: the pipeline's ADT-Net, its
standardisation refitted (`anomdino calibrate`), the confidences of its boxes weighed anew where it weighs them, and
k and b searched, on the images that training held out (`anomdino tune`). *Trained* is an ADT-Net trained on the maps
themselves, with the parameters of params.yaml. Run it in the folder of `pipeline.measure` with `--training`, the
folder of `pipeline.release_adt`, for the released model and photos. All numbers are percent. F1* is at each score's
own best threshold on the benchmark, missed and false components at 0.25; the mask is ADT-Net's own.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from training_set import DATA, HELP, training_files

from anomdino.adt.dataset import TrainingFiles, hold_out, list_items
from anomdino.adt.fusion import AdtModel
from anomdino.adt.outline_net import load_outline_net
from anomdino.adt.plugin import refit
from anomdino.adt.store import load_adt
from anomdino.adt.training import plan_from, train_adt
from anomdino.adt.tuning import tune_rule, tune_trained
from anomdino.benchmarks import Benchmark
from anomdino.config.params import Params, load_params
from anomdino.device import resolve_device
from anomdino.evaluation import CascadeOutputs, EvaluationSettings, evaluate_benchmark
from anomdino.evaluation.opening import find_benchmark
from anomdino.io.boxes import read_box_results
from anomdino.io.listing import list_images
from anomdino.io.maps import list_maps
from anomdino.scorer.run import Outputs, SetScorer
from anomdino.scorer.setup import engine_from, run_options

KINDS = ("residual:energy", "closed:max_softmax", "closed:max_logit")
COLUMNS = ("AP", "FPR95", "F1*", "missed", "false")


def main() -> None:
    arguments = _arguments()
    params = load_params("params.yaml")
    benchmarks = [find_benchmark(name) for name in params.benchmark.sets]
    rows: dict[str, list[str]] = {benchmark.name: [] for benchmark in benchmarks}
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            files = score_all(params, kind, benchmarks, training_files(arguments.training), work)
            models = {
                "calibrated": calibrated(params, files),
                "trained": trained(params, files, work / "adt"),
            }
            for benchmark in benchmarks:
                for how, model in models.items():
                    rows[benchmark.name] += measure(kind, how, model, benchmark, work)
    head = f"| score | ADT-Net | output | {' | '.join(COLUMNS)} |\n{'|---' * (len(COLUMNS) + 3)}|"
    text = "\n\n".join(f"### {name}\n\n{head}\n" + "\n".join(lines) for name, lines in rows.items())
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def score_all(
    params: Params, kind: str, benchmarks: list[Benchmark], files: TrainingFiles, work: Path
) -> TrainingFiles:
    """Write the score maps of one kind, a folder a benchmark; give the training files with those of ``train``."""
    logits, _, name = kind.partition(":")
    config = params.score.model_copy(
        update={"logits": logits, "kind": name, "fusion": "mean", "refine": [], "refine_net": False}
    )
    engine, digest = engine_from(config, DATA / "models" / "rpl", resolve_device(params.device))
    sets = {b.name: {sample.key: sample.image for sample in b} for b in benchmarks}
    sets["train"] = list_images(files.images)
    for folder, images in sets.items():
        outputs = Outputs(work / folder, work / "maps" / folder)
        SetScorer(engine, outputs, digest, run_options(config), what=f"{kind} {folder}").run(images)
    return replace(files, scores=work / "train")


def calibrated(params: Params, files: TrainingFiles) -> AdtModel:
    """Refit the pipeline's model to the maps of the composed images; search its rule on the held-out ones."""
    model = load_adt(DATA / "models" / "adt")
    _, held_out = hold_out(list_items(files), params.adt.holdout, params.seed)
    refitted = refit(model, list_maps(files.scores).values())
    return tune_rule(
        {"": held_out},
        refitted,
        evidence=params.adt.box_evidence,
        objective=params.adt.tune_objective,
        tolerance=params.adt.tune_tolerance,
    ).model


def trained(params: Params, files: TrainingFiles, out: Path) -> AdtModel:
    """Train on the maps."""
    model = train_adt(files, plan_from(params.adt), out, seed=params.seed)
    outliner = load_outline_net(DATA / "models" / "adt") if params.adt.outline else None
    return tune_trained(
        replace(model, outliner=outliner),
        files,
        plan_from(params.adt),
        out,
        seed=params.seed,
        objective=params.adt.tune_objective,
        tolerance=params.adt.tune_tolerance,
        floor=params.adt.mask_floor == "auto",
    )


def measure(kind: str, how: str, model: AdtModel, benchmark: Benchmark, work: Path) -> list[str]:
    """Give the rows of one model: the plain score (once), the fused one and the mask."""
    source = CascadeOutputs(
        scores=work / benchmark.name,
        box_results=read_box_results(DATA / "boxes" / f"{benchmark.name}.json", [s.key for s in benchmark]),
        model=model,
        names=("raw", "fused"),
        min_component=benchmark.limits.min_predicted,
    )
    result = evaluate_benchmark(benchmark, source, EvaluationSettings(bootstrap=0))
    rows = []
    for output in ("raw", "fused", "mask") if how == "calibrated" else ("fused", "mask"):
        found = result.components[output]
        pixel = None if output == "mask" else result.headline(output)
        pixels = ["-", "-"] if pixel is None else [percent(pixel.ap), percent(pixel.fpr95)]
        label = f"{output} (k {model.rule.k:g}, b {model.rule.b:g})" if output == "fused" else output
        model_name = "-" if output == "raw" else how
        cells = [*pixels, percent(found.f1), str(found.missed["25"]), str(found.false["25"])]
        rows.append(f"| {kind} | {model_name} | {label} | {' | '.join(cells)} |")
    return rows


def percent(value: float | None) -> str:
    """Write a fraction as percent."""
    return "-" if value is None else f"{100 * value:.1f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=KINDS, metavar="LOGITS:KIND")
    parser.add_argument("--training", type=Path, help=HELP)
    parser.add_argument("--out", type=Path, help="also write the tables here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
