"""``anomdino predict``: score map, mask, boxes and overlay for any photos."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)


class OutputRule(StrEnum):
    """How the final score is made (method.md 3)."""

    RAW = "raw"
    HARD = "hard"
    SOFT = "soft"
    BOOST = "boost"
    FUSED = "fused"


def predict(
    inputs: Annotated[
        list[str], typer.Argument(help="Photos: files, folders (their tree is kept) or quoted globs.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")],
    models: Annotated[
        Path | None,
        typer.Option(help="Folder of trained models, or `released`; default: data/models, else released."),
    ] = None,
    params: Annotated[Path | None, typer.Option(help="Parameter file of the models.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:<number> or mps.")] = "auto",
    output: Annotated[
        OutputRule | None, typer.Option(help="Rule of the final score; default: the model's.")
    ] = None,
    boxes: Annotated[
        bool, typer.Option(help="Run the detector; without it the score's order is kept.")
    ] = True,
    overlay: Annotated[bool, typer.Option(help="Write pictures.")] = True,
    thresholds: Annotated[
        bool, typer.Option(help="Write threshold/ too: ADT-Net's threshold of each pixel, map and picture.")
    ] = False,
    min_component: Annotated[
        int | None,
        typer.Option(min=0, help="Remove mask components with fewer pixels; default: the model's."),
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option(
            min=16,
            help="Score at this width, not at the model's; again for several, joined by a network that the model has for "
            "them, else by their mean. Fewer are faster.",
        ),
    ] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 64_000_000,
    strict: Annotated[bool, typer.Option(help="Stop at the first photo that cannot be read.")] = False,
) -> None:
    """Find anomalies in photos: writes score/, mask/, boxes/ and overlay/ with one file a photo, and summary.json."""
    from anomdino.cascade import Cascade, find_models
    from anomdino.config.params import load_params
    from anomdino.device import resolve_device
    from anomdino.prediction import PredictionWriter, collect, predict_all
    from anomdino.scorer.width_fusion import fusion_file

    photos = collect(inputs)
    folder, params_file = find_models(models, params)
    chosen, settings = resolve_device(device), load_params(params_file, only=("score", "detect", "data"))
    if models is None and folder == Path("data/models") and settings.data.source == "synthetic":
        log.warning("%s learned drawn scenes; for photos use `--models released`", folder)
    if width:
        ordered = sorted(set(width))
        learned = settings.score.fusion == "learned" and fusion_file(folder / "rpl", ordered).is_file()
        fusion = "learned" if learned else "mean"
        score = settings.score.model_copy(update={"widths": ordered, "fusion": fusion})
        settings = settings.model_copy(update={"score": score})
    cascade = Cascade.load(folder, settings, chosen, boxes=boxes)
    cascade = cascade.with_rule(output.value if output else None, min_component)
    writer = PredictionWriter(out, cascade.adt.rule, overlay=overlay, thresholds=thresholds)
    summary = predict_all(cascade, photos, writer, max_pixels=max_pixels, strict=strict)
    print(
        f"predict: {summary.done} photos, {summary.with_anomaly} with an anomaly, "
        f"{summary.skipped} skipped, {summary.rate:.2f} photos/s on {chosen} -> {out}"
    )
    if summary.skipped and not summary.done:
        raise typer.Exit(2)
