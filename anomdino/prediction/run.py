"""The cascade over all that a user names, and the summary of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from anomdino.cascade import Cascade
from anomdino.errors import AnomdinoError, DataError, DiskError
from anomdino.io.atomic import atomic_write_json, remove_file
from anomdino.io.locking import one_run_in
from anomdino.io.video import ALL, Selection, require_pyav
from anomdino.prediction.coco import COCO, coco_of
from anomdino.prediction.inputs import SUMMARY, Inputs
from anomdino.prediction.instances import INSTANCES
from anomdino.prediction.photos import Done, predict_photos
from anomdino.prediction.videos import predict_videos
from anomdino.prediction.writing import PredictionWriter
from anomdino.tracking.tracker import require_scipy


def predict_all(
    cascade: Cascade,
    inputs: Inputs,
    writer: PredictionWriter,
    *,
    max_pixels: int,
    strict: bool = False,
    selection: Selection = ALL,
    frame_maps: bool = False,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Done, Done]:
    """Predict photos, then videos, and write ``summary.json``, also when the user or an error ends it (``ended``).

    Beside it lie ``coco.json``, the boxes of the photos that were done, and, where the writer collects them,
    ``instances.json``, their outlines.

    Args:
        cascade: The loaded networks.
        inputs: Photos and videos (:func:`anomdino.prediction.inputs.collect`).
        writer: Where results go.
        max_pixels: Larger photos, and videos with larger frames, are refused.
        strict: Stop at the first input that cannot be used; else it is listed with the reason.
        selection: Which frames of the videos.
        frame_maps: Write score map and mask of every frame.
        about: What else the summary says, of the model, for instance.

    Returns:
        What was made of the photos and of the videos.

    Raises:
        AnomdinoError: With ``strict``, what is wrong with an input; always, when the disk is full, there are videos and
            PyAV or SciPy is missing, a photo and a frame would have one name, or another run writes to the folder.
        KeyboardInterrupt: The user stopped it; what was finished is there.
    """
    if inputs.footage:
        require_pyav()  # before hours of photos, not after
        require_scipy()
    if frame_maps:
        _refuse_shared_names(inputs)
    with one_run_in(writer.folder):
        for name in (SUMMARY, COCO, INSTANCES):  # of a run before: files change from now on
            remove_file(writer.folder / name)
        photos, videos, ended = Done(), Done(), ""
        try:
            predict_photos(cascade, inputs.photos, writer, max_pixels=max_pixels, strict=strict, done=photos)
            if not photos.interrupted:
                predict_videos(
                    cascade,
                    inputs.footage,
                    writer,
                    selection=selection,
                    maps=frame_maps,
                    max_pixels=max_pixels,
                    strict=strict,
                    done=videos,
                )
        except Exception as error:  # a graphics card without memory, say: what was done is done
            ended = f"{type(error).__name__}: {error}"
            if isinstance(error, AnomdinoError):
                ended = f"{error.what}: {error.cause}"
            with suppress(DiskError):  # the disk that was full may be so still
                _write_summary(writer, about, inputs, photos, videos, ended)
            raise
        ended = "interrupted" if photos.interrupted or videos.interrupted else ""
        _write_summary(writer, about, inputs, photos, videos, ended)
        if ended:
            raise KeyboardInterrupt
        return photos, videos


def _write_summary(
    writer: PredictionWriter,
    about: Mapping[str, Any],
    inputs: Inputs,
    photos: Done,
    videos: Done,
    ended: str,
) -> None:
    rule = writer.rule
    if photos.lines:
        atomic_write_json(writer.folder / COCO, coco_of(photos.lines, inputs.photos))
    if writer.instances is not None:
        writer.instances.write()
    atomic_write_json(
        writer.folder / SUMMARY,
        {
            "output": rule.output,
            "score_range": None if rule.output == "raw" else [writer.span.low, writer.span.high],
            "rule": asdict(rule),
            **about,
            "ended": ended,
            "images": photos.lines,
            "videos": videos.lines,
            "skipped": photos.skipped + videos.skipped,
        },
    )


def _refuse_shared_names(inputs: Inputs) -> None:
    for key, path in inputs.photos.items():
        for video in inputs.videos:
            if key.startswith(f"{video}/") and key.rpartition("/")[2].isdecimal():
                cause = f"may be written under the name of a frame of {inputs.videos[video]}"
                raise DataError(path, cause, "predict them into two output folders")
