"""``anomdino watch``: the newest frame of a camera or network stream, again and again."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from anomdino.cli.cascade_options import (
    Device,
    MinComponent,
    Models,
    Output,
    ParamsFile,
    ScorerPrecision,
    Threshold,
    Widths,
    Window,
    WithBoxes,
    load_cascade,
)

log = logging.getLogger(__name__)


def watch(
    source: Annotated[
        str,
        typer.Argument(
            help="A camera or stream: rtsp://HOST/PATH, http://HOST/video.mjpg ..., or /dev/video0."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for pictures of the frames with an anomaly."),
    ] = None,
    keep: Annotated[
        int,
        typer.Option(min=1, help="Of these pictures, keep as many of the latest; older ones are removed."),
    ] = 1000,
    gap: Annotated[
        float,
        typer.Option(min=0, help="Seconds from one such picture to the next at least; 0 takes every frame."),
    ] = 0.0,
    at_look: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Such a picture not of every frame, but when an object is seen for the N-th time: one an object; with "
            "2, what shows up in one look alone gives none.",
        ),
    ] = None,
    models: Models = None,
    params: ParamsFile = None,
    device: Device = "auto",
    output: Output = None,
    threshold: Threshold = None,
    boxes: WithBoxes = True,
    min_component: MinComponent = None,
    width: Widths = None,
    precision: ScorerPrecision = None,
    window: Window = 0.0,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after as many frames.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after as many seconds.")] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Try a lost source again for as many seconds, then give it up.")
    ] = 300.0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse sources with larger frames.")] = 64_000_000,
) -> None:
    """Watch a camera or stream for anomalies.

    Looks at the newest frame whenever the one before is done, and prints a line of JSON for each.
    With --out, a frame with an anomaly gives overlay/TIME.jpg and photo/TIME.jpg.
    Ctrl-C ends it.
    """
    from anomdino.io.atomic import require_folder
    from anomdino.io.locking import one_run_in
    from anomdino.io.stream import LiveSource
    from anomdino.prediction.watching import Sightings, Watched
    from anomdino.prediction.watching import watch as watch_source
    from anomdino.prediction.writing import PredictionWriter
    from anomdino.tracking.motion import thumbnail

    if out is not None:
        require_folder(out)
    seen = Watched()
    try:
        with (
            nullcontext() if out is None else one_run_in(out),
            LiveSource(source, patience=patience, max_pixels=max_pixels, passed=thumbnail) as live,
        ):
            cascade = load_cascade(
                models,
                params,
                device,
                output=output,
                threshold=threshold,
                boxes=boxes,
                min_component=min_component,
                width=width,
                precision=precision,
                window=window,
            )
            log.info("%s: watching on %s", live.name, cascade.engine.device)
            sightings = None
            if out is not None:
                writer = PredictionWriter(out, cascade.adt.rule, boxes=boxes)
                sightings = Sightings(writer, live.name, keep, gap, at_look)
            watch_source(
                cascade, live, _print, sightings=sightings, frames=frames, seconds=seconds, watched=seen
            )
    except KeyboardInterrupt:
        log.info("stopped")
    except BrokenPipeError:  # who reads the lines has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        if seen.looked:
            rate = seen.looked / max(1e-9, seen.seconds)
            log.info(
                "watch: %d frames of %d in %.0f s (%.2f a second), %d with an anomaly, %d skipped",
                seen.looked, live.frames, seen.seconds, rate, seen.with_anomaly, seen.skipped,
            )  # fmt: skip


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line, allow_nan=False), flush=True)
