"""``anomdino predict``: score map, mask, boxes and overlay for any photos and videos."""

from __future__ import annotations

from collections.abc import Mapping
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
from anomdino.words import counted

SHOWN = 5


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Photos and videos: files, folders (their tree is kept) or quoted globs."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")],
    models: Models = None,
    params: ParamsFile = None,
    device: Device = "auto",
    output: Output = None,
    threshold: Threshold = None,
    boxes: WithBoxes = True,
    overlay: Annotated[bool, typer.Option(help="Write pictures.")] = True,
    thresholds: Annotated[
        bool, typer.Option(help="Write threshold/ too: ADT-Net's threshold of each pixel, map and picture.")
    ] = False,
    instances: Annotated[
        bool,
        typer.Option(
            help="Write instances.json too: what was found in photos as a COCO file, an annotation with outline and "
            "score for each connected part of the mask."
        ),
    ] = False,
    min_component: MinComponent = None,
    width: Widths = None,
    precision: ScorerPrecision = None,
    window: Window = 0.0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 64_000_000,
    strict: Annotated[
        bool, typer.Option(help="Stop at the first photo, video or frame that cannot be used.")
    ] = False,
    every: Annotated[int, typer.Option(min=1, help="Of a video, look at every N-th frame; 1 is all.")] = 1,
    start: Annotated[float, typer.Option(min=0, help="Of a video, begin at this second.")] = 0.0,
    end: Annotated[float | None, typer.Option(min=0, help="Of a video, end before this second.")] = None,
    sequence: Annotated[
        float | None,
        typer.Option(
            help="The photos of a folder are frames of a drive, in the order of their names, so many a second."
        ),
    ] = None,
    frames: Annotated[
        bool, typer.Option(help="Of a video, write score map and mask of every frame too: many large files.")
    ] = False,
) -> None:
    """Find anomalies in photos and videos.

    A photo gives a file in score/, mask/, boxes/ and overlay/ each.
    A video gives overlay/NAME.mp4, frames/NAME.jsonl, a line a frame, and objects/NAME.html, a picture an object.
    summary.json lists all.
    """
    from anomdino.io.atomic import require_folder
    from anomdino.io.video import Selection
    from anomdino.prediction.inputs import collect
    from anomdino.prediction.instances import INSTANCES, InstanceFile
    from anomdino.prediction.run import predict_all
    from anomdino.prediction.writing import PredictionWriter

    require_folder(out)
    given, selection = collect(inputs, out, sequence), Selection(every, start, end)
    found = InstanceFile(out / INSTANCES) if instances else None  # a package may be missing: said at once
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
    writer = PredictionWriter(out, cascade.adt.rule, overlay, thresholds, found, boxes=boxes)
    photos, videos = predict_all(
        cascade,
        given,
        writer,
        max_pixels=max_pixels,
        strict=strict,
        selection=selection,
        frame_maps=frames,
        about=cascade.description(),
    )
    skipped = len(photos.skipped) + len(videos.skipped)
    if given.photos:
        with_anomaly = sum(1 for line in photos.lines if line["anomaly_share"])
        rate = len(photos.lines) / max(1e-9, photos.seconds)
        print(
            f"predict: {counted(len(photos.lines), 'photo')}, {with_anomaly} with an anomaly, "
            f"{len(photos.skipped)} skipped, {rate:.2f} photos/s on {cascade.engine.device} -> {out}"
        )
    for line in videos.lines:
        print(f"predict: {video_line(line)} on {cascade.engine.device} -> {out}")
    if skipped and not photos.lines and not videos.lines:
        raise typer.Exit(2)


def video_line(line: Mapping[str, Any]) -> str:
    """Say in a line what was found in a video, with the first stretches of time."""
    stretches = [
        f"{first:g}-{last:g}" if last > first else f"{first:g}" for first, last in line["stretches"][:SHOWN]
    ]
    more = " ..." if len(line["stretches"]) > SHOWN else ""
    when = f" (seconds {', '.join(stretches)}{more})" if stretches else ""
    ended = f", {line['ended']}" if line["ended"] else ""
    ended += f", {line['skipped']} skipped" if line["skipped"] else ""
    name = line["video"].encode("utf-8", "backslashreplace").decode()  # a name may be no Unicode
    return (
        f"{name}: {counted(line['frames'], 'frame')} of {line['width']} x {line['height']}{ended}, "
        f"{line['with_anomaly']} with an anomaly{when}, {counted(line['objects'], 'object')} "
        f"({line['seen_again']} seen again), {line['frames_per_second']:.2f} frames/s"
    )
