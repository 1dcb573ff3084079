"""The cascade over all that a user names, and the summary of it."""

from __future__ import annotations

from dataclasses import asdict

from anomdino.cascade import Cascade
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.video import ALL, Selection, require_pyav
from anomdino.prediction.inputs import SUMMARY, Inputs
from anomdino.prediction.photos import Done, predict_photos
from anomdino.prediction.videos import predict_videos
from anomdino.prediction.writing import PredictionWriter


def predict_all(
    cascade: Cascade,
    inputs: Inputs,
    writer: PredictionWriter,
    *,
    max_pixels: int,
    strict: bool = False,
    selection: Selection = ALL,
    frame_maps: bool = False,
) -> tuple[Done, Done]:
    """Predict photos, then videos, and write ``summary.json``, also when the user stops it.

    Args:
        cascade: The loaded networks.
        inputs: Photos and videos (:func:`anomdino.prediction.inputs.collect`).
        writer: Where results go.
        max_pixels: Larger photos, and videos with larger frames, are refused.
        strict: Stop at the first input that cannot be used; else it is listed with the reason.
        selection: Which frames of the videos.
        frame_maps: Write score map and mask of every frame.

    Returns:
        What was made of the photos and of the videos.

    Raises:
        AnomdinoError: With ``strict``, what is wrong with an input; always, when the disk is full, PyAV is missing and
            there are videos, or a photo and a frame would have one name.
        KeyboardInterrupt: The user stopped it; what was finished is there.
    """
    if inputs.videos:
        require_pyav()  # before hours of photos, not after
    if frame_maps:
        _refuse_shared_names(inputs)
    photos = predict_photos(cascade, inputs.photos, writer, max_pixels=max_pixels, strict=strict)
    videos = Done()
    if not photos.interrupted:
        videos = predict_videos(
            cascade,
            inputs.videos,
            writer,
            selection=selection,
            maps=frame_maps,
            max_pixels=max_pixels,
            strict=strict,
        )
    threshold = cascade.adt.threshold
    atomic_write_json(
        writer.folder / SUMMARY,
        {
            "output": writer.rule.output,
            "score_range": None if writer.rule.output == "raw" else [writer.span.low, writer.span.high],
            "rule": asdict(writer.rule),
            "threshold": threshold.as_dict() if threshold else {"kind": "adt"},
            "statistics": asdict(cascade.adt.net.statistics),
            "images": photos.lines,
            "videos": videos.lines,
            "skipped": photos.skipped + videos.skipped,
        },
    )
    if photos.interrupted or videos.interrupted:
        raise KeyboardInterrupt
    return photos, videos


def _refuse_shared_names(inputs: Inputs) -> None:
    for key, path in inputs.photos.items():
        for video in inputs.videos:
            if key.startswith(f"{video}/") and key.rpartition("/")[2].isdecimal():
                cause = f"may be written under the name of a frame of {inputs.videos[video]}"
                raise DataError(path, cause, "predict them into two output folders")
