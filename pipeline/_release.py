"""What the commands for the released model share: where it lies, their options, and how they begin and fail."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from anomdino.errors import AnomdinoError
from anomdino.memory import keep_freed_memory
from anomdino.progress import log_level
from anomdino.protocol import refuse_evaluation_data
from pipeline._steps import ROOT

TARGET = ROOT / "anomdino" / "release" / "light"
Scenes = Annotated[Path, typer.Option(help="Folder with images/ and labels/ (train ids).")]
Objects = Annotated[Path, typer.Option(help="Folder with images/ and masks/.")]
Released = Annotated[Path, typer.Option(help="The released model.")]
AllScenes = Annotated[
    Path | None, typer.Option(help="Folder with train/ and val/, each images/ and labels/ (train ids).")
]
AllObjects = Annotated[Path | None, typer.Option(help="Folder with images/ and masks/.")]
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
