"""Options of the commands that run the cascade, and how they load it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from anomdino.cascade import Cascade


class OutputRule(StrEnum):
    """How the final score is made (docs/method.md 3)."""

    RAW = "raw"
    HARD = "hard"
    SOFT = "soft"
    BOOST = "boost"
    FUSED = "fused"


class Precision(StrEnum):
    """What the scorer computes in."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


Models = Annotated[
    Path | None,
    typer.Option(help="Folder of trained models, or `released`; default: data/models, else released."),
]
ParamsFile = Annotated[Path | None, typer.Option(help="Parameter file of the models.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:<number> or mps.")]
Output = Annotated[OutputRule | None, typer.Option(help="Rule of the final score; default: the model's.")]
Threshold = Annotated[
    str | None,
    typer.Option(help="Of the mask: adt, fixed:X, or what `calibrate` stored (the default, else adt)."),
]
WithBoxes = Annotated[bool, typer.Option(help="Run the detector; without it the score's order is kept.")]
MinComponent = Annotated[
    int | None,
    typer.Option(min=0, help="Remove mask components with fewer pixels; default: the model's."),
]
Widths = Annotated[
    list[int] | None,
    typer.Option(
        min=16,
        help="Score at this width, not at the model's; again for several, joined by a network that the model has for "
        "them, else by their mean. Fewer are faster.",
    ),
]
Window = Annotated[
    float,
    typer.Option(
        min=0,
        help="Look a second time at the middle of the photo, so much of each side (0.5, say; below 1), for small "
        "objects far away: twice the scorer's time.",
    ),
]
ScorerPrecision = Annotated[
    Precision | None,
    typer.Option(
        help="What the scorer computes in; default: the model's. bf16 halves its time on processors that have it."
    ),
]


def load_cascade(
    models: Path | None,
    params: Path | None,
    device: str,
    *,
    output: OutputRule | None,
    threshold: str | None,
    boxes: bool,
    min_component: int | None,
    width: list[int] | None,
    precision: Precision | None,
    window: float = 0.0,
) -> Cascade:
    """Load the cascade that the options ask for.

    Raises:
        AnomdinoError: A model, a parameter, a package or the device is not there, or they do not go together.
    """
    from anomdino.cascade import Cascade, at_widths, find_models, warn_of_drawn_scenes, with_window
    from anomdino.config.params import load_params, with_changes
    from anomdino.device import resolve_device
    from anomdino.memory import keep_freed_memory

    folder, params_file = find_models(models, params)
    chosen, settings = resolve_device(device), load_params(params_file, only=("score", "detect", "data"))
    if models is None:
        warn_of_drawn_scenes(folder, settings)
    if precision:
        settings = with_changes(settings, "score", precision=precision.value)
    if width:
        settings = at_widths(settings, width, folder)
    if window:
        settings = with_window(settings, window)
    if chosen.type == "cpu":
        keep_freed_memory()  # the same large arrays come and go with every image
    cascade = Cascade.load(folder, settings, chosen, boxes=boxes)
    return cascade.with_rule(output.value if output else None, min_component, threshold)
