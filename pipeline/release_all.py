"""Train the whole released light model again, every network of it, by one command: `make release`.

Usage: python -m pipeline.release_all [--inlier FOLDER --outliers FOLDER] [--work FOLDER] [--to FOLDER]

FOLDERs as for `pipeline.release`, which trains scorer, detector and ADT-Net first; without them the data come as the
profile `light` says. Then, one after the other, what those parts became the released ones by: the scorer is distilled,
networks join its widths (the model's own, and 384 + 1216), detector and ADT-Net are fitted to its scores, the detector
is trained on, the networks that outline objects and that lower the score are trained, and the rule is searched on
held-out images. Each part is a command of its own, whose arguments `--with "PART: ARGUMENTS"` adds to, and makes its
model from that of the part before; all of them stay in `--work`. The last one takes the place of the model in `--to`. A
killed call goes on with the part that it was in; where the arguments of a part changed, it and all that follow are done
again.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from anomdino.errors import ConfigError
from anomdino.io.atomic import atomic_write_json, atomic_write_text, make_parent
from anomdino.io.locking import exclusive
from anomdino.release.build import put_folder
from pipeline._release import TARGET, AllObjects, AllScenes, Released, command

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
FIRST = "release"
MODELS, SHARED, DONE, LOCK = "models", "shared", "done.json", ".release_all.lock"


@dataclass(frozen=True)
class Part:
    """One part: `python -m pipeline.<command>`, what it learns from, and arguments of its own.

    Attributes:
        name: What it is called here.
        command: Its module.
        scenes: Which scenes it reads, `train` or `val`.
        arguments: Further arguments.
        shared: Whether it works in the folder of all such parts, which then score the same images once.
    """

    name: str
    command: str
    scenes: str = "train"
    arguments: tuple[str, ...] = ()
    shared: bool = False


@dataclass(frozen=True)
class Call:
    """A part as it is called, and the folder of the model that it makes."""

    name: str
    command: str
    arguments: list[str]
    model: Path


PARTS = (
    Part("distil", "release_distil"),
    Part("fusion", "release_fusion"),
    Part("fusion_beside", "release_fusion", arguments=("--width", "384", "--width", "1216", "--beside")),
    Part("recalibrate", "recalibrate"),
    Part("detector", "release_detector", shared=True),
    Part("outline", "release_outline", shared=True),
    Part("refinement", "release_refinement", shared=True),
    Part("tune", "release_tune", scenes="val"),
)
"""What follows :data:`FIRST`, in order."""


@app.command()
def main(
    inlier: AllScenes = None,
    outliers: AllObjects = None,
    work: Annotated[Path, typer.Option(help="Where everything is made.")] = Path("out/release_all"),
    to: Released = TARGET,
    with_: Annotated[
        list[str] | None, typer.Option("--with", help='"PART: ARGUMENTS" that a part is called with besides.')
    ] = None,
) -> None:
    """Train all parts and put the model in its place."""
    with command("release_all", *filter(None, (inlier, outliers))):
        further = arguments_of(with_ or [])
        started = time.perf_counter()
        make_parent(work / LOCK)
        with exclusive(work / LOCK, wait=0):
            put(run_parts(calls(inlier, outliers, work, further), work), to)
    typer.echo(f"release_all: {time.perf_counter() - started:.0f} s in all, model in {to}")


def run_parts(parts: list[Call], work: Path) -> Path:
    """Run what is not done yet, each part on a copy of the model before it; give the last one's model."""
    first = count_done(parts, read_done(work / DONE))
    for part in parts[:first]:
        typer.echo(f"part {part.name}: done before")
    for number, part in enumerate(parts[first:], first):
        started = time.perf_counter()
        done = {one.name: one.arguments for one in parts[:number]}
        atomic_write_json(work / DONE, done)
        if number:
            shutil.rmtree(part.model, ignore_errors=True)
            shutil.copytree(parts[number - 1].model, part.model)
        run(part)
        atomic_write_json(work / DONE, done | {part.name: part.arguments})
        typer.echo(f"part {part.name}: {time.perf_counter() - started:.0f} s")
    return parts[-1].model


def count_done(parts: list[Call], done: dict[str, list[str]]) -> int:
    """Count the parts that need not be done again: up to the last whose model, which the next one begins with, is there.

    Args:
        parts: All parts in order.
        done: The arguments of those that were done.
    """
    same = [done.get(part.name) == part.arguments for part in parts]
    count = same.index(False) if False in same else len(parts)
    while count and not (parts[count - 1].model / "params.yaml").is_file():
        count -= 1
    return count


def arguments_of(texts: list[str]) -> dict[str, list[str]]:
    """Read ``PART: ARGUMENTS`` texts.

    Raises:
        ConfigError: One has another form or an open quotation, or there is no such part.
    """
    names = [FIRST, *(part.name for part in PARTS)]
    further: dict[str, list[str]] = {}
    for text in texts:
        name, colon, rest = text.partition(":")
        if not colon or name.strip() not in names:
            raise ConfigError(
                "--with", f"is '{text}'", f'write "PART: ARGUMENTS", PART one of {", ".join(names)}'
            )
        try:
            further.setdefault(name.strip(), []).extend(shlex.split(rest))
        except ValueError as error:
            raise ConfigError(
                "--with", f"is '{text}' ({error})", "close what a quotation mark opens"
            ) from error
    return further


def calls(
    inlier: Path | None, outliers: Path | None, work: Path, further: dict[str, list[str]]
) -> list[Call]:
    """Give the calls of all parts in order; the same ones for the same folders, however these are written."""
    work = work.resolve()
    models, data = work / MODELS, work / FIRST / "data"
    folders = [("--inlier", inlier), ("--outliers", outliers)]
    given = [text for option, folder in folders if folder for text in (option, str(folder.resolve()))]
    found = []
    for part in (Part(FIRST, "release"), *PARTS):
        model, arguments = models / part.name, given
        if part.name != FIRST:
            scenes = data / "inlier" / part.scenes
            arguments = ["--inlier", str(scenes), "--outliers", str(data / "outliers"), *part.arguments]
        if part.command == "recalibrate":
            arguments = [*arguments, "--before", str(models / FIRST / "models" / "rpl")]
        folder = work / (SHARED if part.shared else part.name)
        places = ["--work", str(folder), "--to", str(model)]
        found.append(Call(part.name, part.command, [*arguments, *places, *further.get(part.name, [])], model))
    return found


def run(part: Call) -> None:
    """Run a part in this process.

    Raises:
        typer.Exit: It failed, or the arguments are not its own; it has said why.
    """
    module = f"pipeline.{part.command}"
    try:
        typer.main.get_command(import_module(module).app)(part.arguments, prog_name=module)
    except SystemExit as end:
        if end.code:
            raise typer.Exit(end.code if isinstance(end.code, int) else 1) from end


def read_done(file: Path) -> dict[str, list[str]]:
    """Read the arguments of the parts that are done, in order; none where the file is missing or broken."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def put(model: Path, to: Path) -> None:
    """Put a model in the place of another; what else lies there, a model card say, stays."""
    put_folder(model / "models", to / "models")
    atomic_write_text(to / "params.yaml", (model / "params.yaml").read_text(encoding="utf-8"))


if __name__ == "__main__":
    app()
