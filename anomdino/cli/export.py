"""``anomdino export``: the scorer and ADT-Net's mask for other runtimes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from anomdino.cli.cascade_options import Window
from anomdino.errors import ConfigError


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.")],
    size: Annotated[str, typer.Option(help="Size of the photos that it is for, WIDTHxHEIGHT: 1280x720.")],
    models: Annotated[
        Path | None,
        typer.Option(help="Folder of trained models, or `released`; default: data/models, else released."),
    ] = None,
    params: Annotated[Path | None, typer.Option(help="Parameter file of the models.")] = None,
    width: Annotated[
        list[int] | None,
        typer.Option(min=16, help="Score at this width, not at the model's; again for several."),
    ] = None,
    window: Window = 0.0,
) -> None:
    """Write score and mask as one ONNX file, for one size of photo, and check it with ONNX Runtime.

    Input `image`: uint8 (H, W, 3), RGB.
    Outputs `score`: float32 (H, W), higher is more anomalous; `mask`: bool (H, W).
    They are those of `anomdino predict --no-boxes --output raw`, but small components stay in the mask.
    The detector cannot be exported.
    """
    from anomdino.adt.store import load_adt
    from anomdino.cascade import at_widths, find_models, warn_of_drawn_scenes, with_window
    from anomdino.config.params import load_params
    from anomdino.export import export_onnx
    from anomdino.scorer.setup import engine_from

    shape = parsed(size)
    folder, file = find_models(models, params)
    settings = load_params(file, only=("score", "data"))
    if models is None:
        warn_of_drawn_scenes(folder, settings)
    if width:
        settings = at_widths(settings, width, folder)
    if window:
        settings = with_window(settings, window)
    if settings.score.source == "maps":
        raise ConfigError("score.source", "is maps, which no network makes", "export a model with a scorer")
    engine, digest = engine_from(settings.score, folder / "rpl", "cpu", portable=True)
    checked = export_onnx(engine, load_adt(folder / "adt"), shape, out, {"scorer": digest})
    seen = "" if checked.in_mask else ", and none of its pixels is in the mask"
    typer.echo(
        f"export: {out}, {out.stat().st_size / 1e6:.1f} MB, photos of {shape[1]} x {shape[0]}; scores of a drawn scene "
        f"differ by {checked.difference:.1g} at most from the networks' own, its mask is the same{seen}"
    )


def parsed(size: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT as H, W.

    Raises:
        ConfigError: It is something else.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})[xX*]([1-9]\d{0,4})", size.strip())
    if not found:
        raise ConfigError("--size", f"is '{size}'", "write WIDTHxHEIGHT in pixels, as in 1280x720")
    return int(found[2]), int(found[1])
