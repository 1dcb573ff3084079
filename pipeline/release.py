"""Train the released light model again: every stage of the pipeline on real data, by one command.

Usage: python -m pipeline.release [--inlier FOLDER --outliers FOLDER] [--benchmark NAME=FOLDER ...]

Runs the stages in a folder of its own (`--work`), those that do not need each other at the same time, and
lays out the model that the package carries (`anomdino/release/light`), which `anomdino predict` uses where no
pipeline was trained. Without folders the data come as the profile says. The parts of the model are written as
soon as they are trained.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from anomdino.config.params import Params, check_params, profile_params, render_params
from anomdino.errors import AnomdinoError, TrainingError
from anomdino.io.atomic import atomic_write_text

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
ROOT = Path(__file__).parents[1]
TARGET = ROOT / "anomdino" / "release" / "light"


@dataclass(frozen=True)
class Step:
    """One stage: `python -m pipeline.<module> <arguments>`."""

    module: str
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Give the stage's name as people write it."""
        return " ".join((self.module, *self.arguments))


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


@app.command()
def main(
    inlier: Annotated[
        Path | None, typer.Option(help="Folder with train/ and val/, each images/ and labels/.")
    ] = None,
    outliers: Annotated[Path | None, typer.Option(help="Folder with images/ and masks/.")] = None,
    benchmark: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of a set of the profile.")] = None,
    work: Annotated[Path, typer.Option(help="Where the stages run.")] = Path("out/release"),
    to: Annotated[Path, typer.Option(help="The released model.")] = TARGET,
    profile: Annotated[str, typer.Option(help="Parameters.")] = "light",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE that differs from the profile.")
    ] = None,
    through: Annotated[
        str, typer.Option(help="Last stage: train_rpl, train_detector, train_adt or evaluate.")
    ] = "evaluate",
) -> None:
    """Train everything and write the released model."""
    try:
        params = parameters(profile, inlier, outliers, named(benchmark or []), set_ or [])
        work.mkdir(parents=True, exist_ok=True)
        atomic_write_text(work / "params.yaml", render_params(params))
        started = time.perf_counter()
        released = parameters(profile, None, None, {}, set_ or [])
        for wave in waves(list(params.benchmark.sets)):
            run_together(wave, work)
            if {step.module for step in wave} & {"train_rpl", "train_detector", "train_adt"}:
                _report(work, released, to)
            if through in {step.module for step in wave}:
                break
        typer.echo(f"release: {time.perf_counter() - started:.0f} s in all, model in {to}")
    except AnomdinoError as error:
        typer.echo(f"release failed. {error}", err=True)
        raise typer.Exit(error.exit_code) from error


def parameters(
    profile: str, inlier: Path | None, outliers: Path | None, benchmarks: dict[str, Path], changes: list[str]
) -> Params:
    """Give the profile's parameters with the user's folders and changes.

    Raises:
        ConfigError: The result is not valid.
    """
    content = profile_params(profile).model_dump(mode="json")
    if inlier is not None or outliers is not None:
        content["data"]["source"] = "folder"
        content["data"]["folder"] = {
            "inlier": str(inlier.resolve()) if inlier else "",
            "outliers": str(outliers.resolve()) if outliers else "",
            "benchmarks": {name: str(folder.resolve()) for name, folder in benchmarks.items()},
            "weights": "",
        }
        sets = content["benchmark"]["sets"]
        content["benchmark"]["sets"] = {name: one for name, one in sets.items() if name in benchmarks}
    for change in changes:
        assign(content, change)
    return check_params(content, f"profile {profile}")


def run_together(steps: list[Step], work: Path) -> None:
    """Run stages at the same time and wait for all.

    Raises:
        TrainingError: One failed; the others are stopped.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    running = {
        step: subprocess.Popen(
            [sys.executable, "-m", f"pipeline.{step.module}", *step.arguments], cwd=work, env=environment
        )
        for step in steps
    }
    try:
        while running:
            for step, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                if code:
                    raise TrainingError(step.name, f"ended with exit code {code}", "its message is above")
                typer.echo(f"release: {step.name} took {time.perf_counter() - started:.0f} s")
                del running[step]
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def _report(work: Path, params: Params, to: Path) -> None:
    from anomdino.release.build import build_release, half_agrees

    models = work / "data" / "models"
    sizes = build_release(models, params, to, {"trained by": "python -m pipeline.release"})
    parts = ", ".join(f"{part} {size / 1e6:.2f} MB" for part, size in sizes.items())
    typer.echo(
        f"release: {parts}; half precision changes the residual logits by {half_agrees(models, to):.1e}"
    )


def named(texts: list[str]) -> dict[str, Path]:
    """Read ``NAME=FOLDER`` texts."""
    return {name: Path(folder) for name, _, folder in (text.partition("=") for text in texts)}


def assign(content: dict[str, Any], change: str) -> None:
    """Set what ``KEY=VALUE`` says, the key dotted and the value YAML."""
    key, _, value = change.partition("=")
    *path, last = key.split(".")
    for part in path:
        content = content.setdefault(part, {})
    content[last] = YAML(typ="safe", pure=True).load(value)


if __name__ == "__main__":
    app()
