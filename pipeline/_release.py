"""What the commands for the released model share: where it lies, their options, and how they begin and fail."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from anomdino.config.params import Params, load_params
from anomdino.errors import AnomdinoError
from anomdino.memory import keep_freed_memory
from anomdino.progress import log_level
from anomdino.protocol import refuse_evaluation_data
from anomdino.seeding import seed_everything
from pipeline._steps import ROOT

TARGET = ROOT / "anomdino" / "release" / "light"
Scenes = Annotated[Path, typer.Option(help="Folder with images/ and labels/ (train ids).")]
Objects = Annotated[Path, typer.Option(help="Folder with images/ and masks/.")]
Released = Annotated[Path, typer.Option(help="The released model.")]
AllScenes = Annotated[
    Path | None, typer.Option(help="Folder with train/ and val/, each images/ and labels/ (train ids).")
]
AllObjects = Annotated[Path | None, typer.Option(help="Folder with images/ and masks/.")]
Work = Annotated[Path, typer.Option(help="Where images, scores and resume points lie.")]
ComposedWork = Annotated[Path, typer.Option(help="Where composed images and scores lie.")]
Doubled = Annotated[int, typer.Option(min=2, help="Composed images before they are doubled.")]
LargeImages = Annotated[
    int, typer.Option(min=8, help="Images with large objects; three quarters as many have small ones.")
]
Photos = Annotated[int, typer.Option(min=2, help="Photos of objects.")]
StreetScenes = Annotated[int, typer.Option(min=2, help="Scenes in which known classes are anomalies.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the training.")]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of the training alone; default: the model's, as the images' is."),
]


@contextmanager
def command(name: str, *training: Path) -> Iterator[None]:
    """Run a command: set up log and memory (:func:`keep_freed_memory`), turn errors into one message and an exit code.

    Args:
        name: Of the command, for the message.
        training: Folders that it learns from; evaluation data is refused.
    """
    try:
        logging.basicConfig(level=log_level(), format="%(message)s", stream=sys.stderr)
        keep_freed_memory()
        refuse_evaluation_data(*training)
        yield
    except AnomdinoError as error:
        typer.echo(f"{name} failed. {error}", err=True)
        raise typer.Exit(error.exit_code) from error


@contextmanager
def training_command(name: str, model: Path, *training: Path) -> Iterator[Params]:
    """Run a command that trains or fits a part of a model (:func:`command`), seeded as the model's parameters say.

    Args:
        name: Of the command, for the message.
        model: Folder with ``params.yaml``.
        training: Folders that it learns from; evaluation data is refused.

    Yields:
        The model's parameters.
    """
    with command(name, *training):
        params = load_params(model / "params.yaml")
        seed_everything(params.seed)
        yield params


def changes(kinds: Iterable[str], before: Iterable[float], after: Iterable[float]) -> str:
    """Say how a figure of each kind of image changed."""
    return ", ".join(
        f"{kind} {old:.4f} -> {new:.4f}" for kind, old, new in zip(kinds, before, after, strict=True)
    )
