"""Stage evaluate: metrics, plots, predictions and tables over all benchmarks.

Usage: python -m pipeline.evaluate
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline import _stage

if TYPE_CHECKING:
    from anomdino.adt.fusion import AdtModel
    from anomdino.config.benchmark import BenchmarkConfig
    from anomdino.config.params import Params
    from anomdino.evaluation import BenchmarkResult, EvaluationSettings
    from anomdino.io.boxes import Boxes

log = logging.getLogger(__name__)
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)

METRICS, METRIC_TABLES, PLOTS = Path("metrics.json"), Path("eval"), Path("plots")
REPORT = Path("report")
UNFINISHED = _stage.PREDICTIONS.with_name(".predictions.part")
CLOSED_SET = _stage.RPL / "closed_set_miou.json"


@app.command()
def evaluate() -> None:
    """Evaluate every output on every benchmark."""
    from anomdino.adt.store import load_adt
    from anomdino.evaluation import EvaluationSettings, write_metric_tables, write_metrics, write_plots
    from anomdino.evaluation.console import print_summary
    from anomdino.evaluation.memory import share_one_heap
    from anomdino.seeding import seed_everything

    with _stage.stage("evaluate", "benchmark") as params:
        share_one_heap()
        seed_everything(params.seed, deterministic=False)  # torch's deterministic mode takes 2 s to import
        config, model = params.benchmark, load_adt(_stage.ADT)
        settings = EvaluationSettings(
            seed=params.seed,
            bootstrap=config.bootstrap,
            histogram_bins=config.histogram_bins,
            curve_points=config.curve_points,
            capacity=config.capacity,
            box_score=model.rule.box_score,
        )
        warn_of_unwatched(config)
        shutil.rmtree(UNFINISHED, ignore_errors=True)
        evaluated = [evaluate_one(params, name, model, settings, UNFINISHED / name) for name in config.sets]
        results = [result for result, _ in evaluated]
        for folder in (_stage.PREDICTIONS, METRIC_TABLES, PLOTS, REPORT):
            shutil.rmtree(folder, ignore_errors=True)
        UNFINISHED.rename(_stage.PREDICTIONS)
        write_plots(PLOTS, results)
        metrics = write_metrics(METRICS, results, params.seed, closed_set_quality())
        write_metric_tables(METRIC_TABLES, metrics)
        boxes = {result.benchmark.name: found for result, found in evaluated}
        write_report(results, boxes, params.seed, settings.box_score, pictures=config.save_predictions)
        print_summary(metrics)
        _stage.done("evaluate", benchmarks=len(results), images=sum(len(result.keys) for result in results))


def warn_of_unwatched(config: BenchmarkConfig) -> None:
    """Name the benchmarks whose labels may change without this stage being run again."""
    watched = (_stage.DATA / "val").resolve()
    for name, one in config.sets.items():
        for path in (one.root, one.roi):
            if path is not None and not path.resolve().is_relative_to(watched):
                log.warning(
                    "benchmark.sets.%s: %s lies outside of %s, so that DVC does not see when its labels change; "
                    "run `dvc repro -fs evaluate` then",
                    name,
                    path,
                    _stage.DATA / "val",
                )


def evaluate_one(
    params: Params, name: str, model: AdtModel, settings: EvaluationSettings, folder: Path
) -> tuple[BenchmarkResult, dict[str, Boxes]]:
    """Evaluate one benchmark; its tables and predictions go to ``folder``. Gives the boxes that the cascade used too."""
    from anomdino.evaluation import (
        CascadeOutputs,
        Prediction,
        evaluate_benchmark,
        write_prediction,
        write_results,
    )
    from anomdino.evaluation.result import final_output
    from anomdino.io.boxes import read_box_results

    benchmark = _stage.open_benchmark(params, name)
    scores = _stage.SCORES / name
    source = CascadeOutputs(
        scores=scores / "score",
        box_results=read_box_results(_stage.BOXES / f"{name}.json", [sample.key for sample in benchmark]),
        model=model,
        names=tuple(params.benchmark.outputs),
        min_component=benchmark.limits.min_predicted,
        maps=scores / "maps",
    )
    final = final_output(source.names)

    def save(sample: Any, predictions: Any) -> None:
        if params.benchmark.save_predictions:
            masks = (one.mask for one in predictions.values() if one.mask is not None)
            write_prediction(folder, sample, Prediction(predictions[final].score, next(masks, None)))

    result = evaluate_benchmark(benchmark, source, settings, save)
    write_results(folder, result)
    kept = (sample for sample in benchmark if sample.key not in result.left_out)
    return result, {sample.key: source.boxes(sample) for sample in kept}


def write_report(
    results: list[BenchmarkResult],
    boxes: dict[str, dict[str, Boxes]],
    seed: int,
    box_score: float,
    *,
    pictures: bool,
) -> None:
    """Write the page that shows every image and the boxes that ADT-Net used; without pictures tables and curves alone."""
    from anomdino.report.build import build_report

    facts = {"seed": seed, "images": sum(len(result.keys) for result in results)}
    page = build_report(REPORT, results, _stage.PREDICTIONS, boxes, facts, box_score, pictures=pictures)
    _stage.log.info("report: %s (%.1f MB)", page, page.stat().st_size / 1e6)


def closed_set_quality() -> dict[str, Any] | None:
    """Closed-set mIoU that the scorer's training measured on held-out images, where there is one."""
    if not CLOSED_SET.is_file():
        return None
    stored = json.loads(CLOSED_SET.read_text(encoding="utf-8"))
    return {"mIoU": stored["miou"], "classes": stored.get("classes_that_occur")}


if __name__ == "__main__":
    app()
