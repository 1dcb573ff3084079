"""``anomdino weights``: published checkpoints made ready for the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Convert published checkpoints.", no_args_is_help=True)


@app.callback()
def weights() -> None:
    """Convert published checkpoints."""


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="Published file: rev3.pth (RPL) or cityscapes_best.pth (NVIDIA).")
    ],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the layers that a closed-set file does not have.")] = 0,
) -> None:
    """Convert a WideResNet-38 checkpoint to safetensors with RPL's names, without running code in it."""
    from anomdino.scorer.convert import convert_checkpoint

    metadata = convert_checkpoint(source, target, seed)
    typer.echo(f"{target}: {metadata['origin']} weights of {source.name}, sha256 {metadata['source_sha256']}")
