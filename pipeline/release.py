"""Train the released light model again: every stage of the pipeline on real data, by one command.

Usage: python -m pipeline.release [--inlier FOLDER --outliers FOLDER] [--benchmark NAME=FOLDER ...]

Runs the stages in a folder of its own (`--work`), those that do not need each other at the same time, and
lays out the model that the package carries (`anomdino/release/light`), which `anomdino predict` uses where no
pipeline was trained. Without folders the data come as the profile says. The parts of the model are written as
soon as they are trained; `--since` goes on from what lies in `--work`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from anomdino.config.params import Params, check_params, profile_params, render_params
from anomdino.errors import ConfigError
from anomdino.io.atomic import atomic_write_text
from pipeline._release import TARGET, AllObjects, AllScenes, Released, command
from pipeline._steps import Step, assign, check_work, named, run_together

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


def waves(benchmarks: list[str]) -> list[list[Step]]:
    """Give the stages in order; those of one inner list do not need each other."""

    def each(module: str) -> list[Step]:
        return [Step(module, ("benchmark", name)) for name in benchmarks]

    rest = [[Step("train_adt")], [Step("evaluate")]] if benchmarks else [[Step("train_adt")]]
    return [
        [Step("download")],
        [Step("train_rpl"), Step("compose")],
        [Step("score", ("train",)), *each("score")],
        [Step("train_detector")],
        [Step("detect", ("train",)), *each("detect")],
        *rest,
    ]


def waves_between(since: str, through: str, benchmarks: list[str]) -> list[list[Step]]:
    """Give the waves from that of one stage to that of another.

    Raises:
        ConfigError: There is no such stage, or the last comes before the first.
    """
    order = waves(benchmarks)
    first = _place(order, "--since", since)
    to_the_end = through == "evaluate" and not benchmarks  # without benchmarks nothing is evaluated
    last = len(order) - 1 if to_the_end else _place(order, "--through", through)
    if last < first:
        raise ConfigError("--through", f"'{through}' comes before '{since}'", "name a later stage")
    return order[first : last + 1]


def _place(order: list[list[Step]], option: str, stage: str) -> int:
    for place, wave in enumerate(order):
        if stage in {step.module for step in wave}:
            return place
    names = dict.fromkeys(step.module for wave in order for step in wave)
    raise ConfigError(option, f"is '{stage}'", f"use one of {', '.join(names)}")


@app.command()
def main(
    inlier: AllScenes = None,
    outliers: AllObjects = None,
    benchmark: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of a set of the profile.")] = None,
    work: Annotated[Path, typer.Option(help="Where the stages run.")] = Path("out/release"),
    to: Released = TARGET,
    profile: Annotated[str, typer.Option(help="Parameters.")] = "light",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE that differs from the profile.")
    ] = None,
    through: Annotated[
        str, typer.Option(help="Last stage: train_rpl, train_detector, train_adt or evaluate.")
    ] = "evaluate",
    since: Annotated[
        str, typer.Option(help="First stage; the results of those before it lie in --work already.")
    ] = "download",
) -> None:
    """Train everything and write the released model."""
    with command("release"):
        params = parameters(profile, inlier, outliers, named(benchmark or []), set_ or [])
        chosen = waves_between(since, through, list(params.benchmark.sets))
        check_work(work)
        atomic_write_text(work / "params.yaml", render_params(params))
        started = time.perf_counter()
        released = parameters(profile, None, None, {}, set_ or [])
        for wave in chosen:
            run_together(wave, work)
            if {step.module for step in wave} & {"train_rpl", "train_detector", "train_adt"}:
                _report(work, released, to)
        typer.echo(f"release: {time.perf_counter() - started:.0f} s in all, model in {to}")


def parameters(
    profile: str, inlier: Path | None, outliers: Path | None, benchmarks: dict[str, Path], changes: list[str]
) -> Params:
    """Give the profile's parameters with the user's folders and changes.

    Raises:
        ConfigError: The result is not valid, a folder lacks the other, or the profile has no such benchmark.
    """
    content = profile_params(profile).model_dump(mode="json")
    if (inlier is None) != (outliers is None):
        raise ConfigError("--inlier", "and --outliers belong together", "give both, or none")
    if inlier is None and benchmarks:
        raise ConfigError("--benchmark", "is for data in folders", "give --inlier and --outliers too")
    if unknown := sorted(benchmarks.keys() - content["benchmark"]["sets"].keys()):
        known = ", ".join(content["benchmark"]["sets"])
        raise ConfigError(
            "--benchmark", f"{', '.join(unknown)}: no set of the profile", f"use {known or 'none'}"
        )
    if inlier is not None and outliers is not None:
        content["data"]["source"] = "folder"
        content["data"]["folder"] = {
            "inlier": str(inlier.resolve()),
            "outliers": str(outliers.resolve()),
            "benchmarks": {name: str(folder.resolve()) for name, folder in benchmarks.items()},
            "weights": "",
        }
        sets = content["benchmark"]["sets"]
        content["benchmark"]["sets"] = {name: one for name, one in sets.items() if name in benchmarks}
    for change in changes:
        assign(content, change)
    return check_params(content, f"profile {profile}")


def _report(work: Path, params: Params, to: Path) -> None:
    from anomdino.release.build import build_release, half_agrees

    models = work / "data" / "models"
    sizes = build_release(models, params, to, {"trained by": "python -m pipeline.release"})
    parts = ", ".join(f"{part} {size / 1e6:.2f} MB" for part, size in sizes.items())
    typer.echo(
        f"release: {parts}; half precision changes the residual logits by {half_agrees(models, to):.1e}"
    )


if __name__ == "__main__":
    app()
