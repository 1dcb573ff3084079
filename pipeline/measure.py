"""Measure a trained cascade, or the released one, on labelled evaluation sets: score, detect and evaluate by one command.

Usage: python -m pipeline.measure --benchmark NAME=FOLDER [--benchmark NAME=FOLDER ...] [--models FOLDER]

NAME is a set of the model's parameters or a published set (`AnomalyTrack`, `ObstacleTrack`, ...); any other name is
a folder with `images/` and `labels/` (0, 1, 255), whose reading `--set benchmark.sets.NAME.KEY=VALUE` changes.
Everything is written below `--work`: metrics.json, eval/, plots/, data/predictions/ and report/index.html. Nothing is
trained, and the project's own data and results are not touched.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from anomdino.benchmarks import REGISTRY, open_set
from anomdino.config.params import Params, check_params, load_params, render_params
from anomdino.errors import ConfigError
from anomdino.io.atomic import atomic_write_text
from pipeline import _stage
from pipeline._release import command
from pipeline._steps import Step, assign, check_work, named, run_together

COPIED = ".copied_by_measure"
"""Marks a folder of models as a copy that the next run may replace."""

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    benchmark: Annotated[list[str], typer.Option(help="NAME=FOLDER, in the set's native layout.")],
    models: Annotated[
        Path | None, typer.Option(help="Trained models; default: data/models, else the released model.")
    ] = None,
    params: Annotated[Path | None, typer.Option(help="Parameter file of the models.")] = None,
    work: Annotated[Path, typer.Option(help="Where the stages run and write.")] = Path("out/measure"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE that differs from the models' parameters.")
    ] = None,
) -> None:
    """Score, detect and evaluate; the report shows every image."""
    from anomdino.cascade import find_models

    with command("measure"):
        folder, file = find_models(models, params)
        sets = named(benchmark)
        chosen = parameters(load_params(file), sets, set_ or [])
        check_work(work)
        check_labels(chosen, sets)
        copy_models(folder, work / _stage.MODELS)
        atomic_write_text(work / "params.yaml", render_params(chosen))
        for step in steps(list(chosen.benchmark.sets)):
            run_together([step], work)
    typer.echo(f"measure: {work / 'metrics.json'}, {work / 'report' / 'index.html'}")


def copy_models(folder: Path, target: Path) -> None:
    """Copy models so that ``target`` holds these alone; a network that an earlier copy left would be measured with them.

    Args:
        folder: Models to copy; ``target`` itself is allowed.
        target: Takes the place of an earlier copy.

    Raises:
        ConfigError: ``target`` holds something that this function did not copy there.
    """
    if folder.resolve() == target.resolve():
        return
    if target.exists() and not (target / COPIED).is_file() and any(target.iterdir()):
        cause = f"{target} holds models that measure did not copy there"
        raise ConfigError("--work", cause, "remove that folder, or name another one with --work")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part)
    (part / COPIED).write_text(f"copied from {folder.resolve()}\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def check_labels(params: Params, folders: dict[str, Path]) -> None:
    """Read every label before anything is scored.

    Raises:
        DataError: A set has no labels, or unusable ones.
    """
    for name, folder in folders.items():
        open_set(name, params.benchmark.sets[name].model_copy(update={"root": folder})).check()


def steps(benchmarks: list[str]) -> list[Step]:
    """Give the stages in order."""
    each = [Step(stage, ("benchmark", name)) for name in benchmarks for stage in ("score", "detect")]
    return [Step("download"), *each, Step("evaluate")]


def parameters(base: Params, benchmarks: dict[str, Path], changes: list[str]) -> Params:
    """Give the models' parameters with these evaluation sets in place of their own.

    Raises:
        ConfigError: A folder is missing, or the result is not valid.
    """
    missing = [f"{name}={folder}" for name, folder in benchmarks.items() if not folder.is_dir()]
    if missing:
        raise ConfigError("--benchmark", f"{', '.join(missing)} is no folder", "write NAME=FOLDER")
    content = base.model_dump(mode="json")
    content["data"]["source"] = "folder"
    folders = {name: str(folder.resolve()) for name, folder in benchmarks.items()}
    content["data"]["folder"] = {"inlier": "", "outliers": "", "weights": "", "benchmarks": folders}
    known = content["benchmark"]["sets"]
    content["benchmark"]["sets"] = {
        name: known.get(name, {"entry": name} if name in REGISTRY else {"layout": "folder"})
        | {"root": str(_stage.BENCHMARKS / name)}
        for name in benchmarks
    }
    for change in changes:
        assign(content, change)
    return check_params(content, "--set")


if __name__ == "__main__":
    app()
