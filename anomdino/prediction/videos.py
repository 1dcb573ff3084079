"""The cascade over videos, frame by frame, with a memory that does not grow with their length."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.cascade import Cascade, Prediction
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_path
from anomdino.io.footage import Footage
from anomdino.io.video import ALL, Frame, Selection, VideoWriter, writing_video
from anomdino.prediction.objects import ObjectLog, logging_objects, remove_objects, told_of
from anomdino.prediction.photos import Done, named, skip
from anomdino.prediction.writing import PredictionWriter, SteadyRange, description
from anomdino.progress import track
from anomdino.tracking.motion import thumbnail
from anomdino.tracking.objects import objects_of
from anomdino.tracking.tracker import Tracker
from anomdino.viz.overlay import draw_overlay

log = logging.getLogger(__name__)

INTERRUPTED = "interrupted"


def predict_videos(
    cascade: Cascade,
    videos: Mapping[str, Footage],
    writer: PredictionWriter,
    *,
    selection: Selection = ALL,
    maps: bool = False,
    max_pixels: int,
    strict: bool = False,
    done: Done | None = None,
) -> Done:
    """Predict video by video, each into ``frames/KEY.jsonl``, ``overlay/KEY.mp4`` and ``objects/KEY.jsonl``.

    Args:
        cascade: The loaded networks.
        videos: By key (:func:`anomdino.prediction.inputs.collect`).
        writer: Where results go.
        selection: Which frames.
        maps: Write score map and mask of every frame too, as ``KEY/NUMBER``.
        max_pixels: Videos with larger frames are refused.
        strict: Stop at the first video that cannot be used or ends early, and at a frame that cannot be scored; else
            these are listed with the reason.
        done: What is filled while they are predicted, so that it is known after an error too.

    Raises:
        AnomdinoError: With ``strict``, what is wrong with a video; always, when the disk is full or PyAV is missing.
    """
    started, done = time.perf_counter(), done or Done()
    for key, footage in videos.items():
        path = footage.path
        try:
            run = _VideoRun(cascade, writer, key, footage, maps, strict)
            line = run.run(selection, max_pixels)
            done.lines.append(line)
            done.interrupted = line["ended"] == INTERRUPTED
        except DataError as error:
            if strict:
                raise named(error, path) from error
            writer.remove_video(key, path)
            remove_objects(writer.folder, key)
            skip(done, "video", key, path, error)
        except KeyboardInterrupt:  # before its first frame was done
            done.interrupted = True
        if done.interrupted:
            break
    done.seconds = time.perf_counter() - started
    return done


class Stretches:
    """The stretches of consecutive frames with an anomaly.

    Attributes:
        found: First and last time of each, in seconds.
    """

    def __init__(self) -> None:
        self.found: list[list[float]] = []
        self._inside = False

    def add(self, seconds: float, anomalous: bool) -> None:
        """Add a frame; frames come in the order of their times."""
        if anomalous and self._inside:
            self.found[-1][1] = round(seconds, 3)
        elif anomalous:
            self.found.append([round(seconds, 3), round(seconds, 3)])
        self._inside = anomalous


class _VideoRun:
    """One video on its way."""

    def __init__(
        self, cascade: Cascade, writer: PredictionWriter, key: str, footage: Footage, maps: bool, strict: bool
    ) -> None:
        self.cascade, self.writer, self.key, self.footage = cascade, writer, key, footage
        self.path = footage.path
        self.maps, self.strict = maps, strict
        self.stretches = Stretches()
        self.frames = self.with_anomaly = self.skipped = 0
        self.range = SteadyRange(writer)
        self.begin: float | None = None
        self.tracker = Tracker()

    def run(self, selection: Selection, max_pixels: int) -> dict[str, Any]:
        """Predict the frames, write the files, and give the video's line of the summary.

        Raises:
            DataError: The video cannot be read, or no frame of it can be used.
        """
        started, folder, ended = time.perf_counter(), self.writer.folder, ""
        info = self.footage.info(max_pixels)
        if self.maps:
            self.writer.remove_frames(self.key)
        with ExitStack() as files:
            lines = files.enter_context(atomic_path(folder / "frames" / f"{self.key}.jsonl"))
            table = files.enter_context(lines.open("w", encoding="utf-8"))
            objects = files.enter_context(
                logging_objects(folder, self.key, self.footage.name, pictures=self.writer.overlay)
            )
            film = None
            if self.writer.overlay:
                target = folder / "overlay" / f"{self.key}.mp4"
                film = files.enter_context(writing_video(target, info.rate / selection.every))
            frames = self.footage.frames(selection, max_pixels, self.pass_over, self.strict)
            try:
                for frame in track(frames, self.footage.name, selection.count(info), unit="frame"):
                    line = self.predict(frame, film, objects)
                    table.write(json.dumps(line, allow_nan=False) + "\n")
                    self.count(frame, line)
            except KeyboardInterrupt:
                if not self.frames:
                    raise
                ended = INTERRUPTED
            except DataError as error:  # the stream breaks, or changes its size
                if self.strict or not self.frames:
                    raise
                log.warning("%s", error)
                ended = error.cause
            if not self.frames:
                raise DataError(self.path, f"has no frame {_seconds(selection)}", "ask for other seconds")
            if self.skipped == self.frames:
                raise DataError(self.path, f"has no frame that can be scored ({line['skipped']})", "")
        if not self.maps:
            self.writer.remove_frames(self.key)
        if not self.writer.overlay:
            self.writer.remove_film(self.key, self.path)
        seconds = time.perf_counter() - started
        return {
            "video": self.key,
            "path": str(self.path),
            "height": info.height,
            "width": info.width,
            "rate": round(info.rate, 3),
            "every": selection.every,
            "frames": self.frames,
            "with_anomaly": self.with_anomaly,
            "stretches": self.stretches.found,
            "objects": objects.objects,
            "seen_again": objects.again,
            "skipped": self.skipped,
            "ended": ended,
            "frames_per_second": round(self.frames / max(1e-9, seconds), 3),
        }

    def pass_over(self, image: npt.NDArray[np.uint8]) -> None:
        """Follow what was found through a frame in which nothing is looked for."""
        self.tracker.follow(thumbnail(image))

    def predict(self, frame: Frame, film: VideoWriter | None, objects: ObjectLog) -> dict[str, Any]:
        """Predict a frame, write its pictures, and give its line; one that cannot be scored is listed with the reason."""
        line: dict[str, Any] = {"frame": frame.index, "time": round(frame.time, 4)}
        if frame.name:
            line["photo"] = frame.name
        try:
            found = self.cascade.predict(frame.image, f"{self.path}, frame {frame.index}")
        except DataError as error:
            if self.strict:
                raise
            if not self.skipped:
                log.warning("skipped: %s", error)
            self.pass_over(frame.image)
            return line | {"skipped": error.cause}
        inside = objects_of(found.mask, found.score, found.boxes)
        told = told_of(inside, self.tracker.look(frame.image, inside.xyxy))
        if self.maps:
            self.writer.write_maps(f"{self.key}/{frame.index:06d}", found)
        if film is not None:
            self.begin = frame.time if self.begin is None else self.begin
            film.write(self.picture(frame, found, told), frame.time - self.begin)
        objects.add(frame, found.mask, told)
        objects.close(self.tracker.tracks)
        return line | description(found) | {"objects": told}

    def count(self, frame: Frame, line: Mapping[str, Any]) -> None:
        """Count a frame whose line is written: one at which the user stops is in none of the numbers."""
        self.frames += 1
        if "skipped" in line:
            self.skipped += 1
            return
        anomalous = bool(line["anomaly_share"])
        self.with_anomaly += anomalous
        self.stretches.add(frame.time, anomalous)

    def picture(
        self, frame: Frame, found: Prediction, objects: Sequence[Mapping[str, Any]]
    ) -> npt.NDArray[np.uint8]:
        """Draw a frame."""
        return draw_overlay(
            frame.image,
            found.score,
            self.range.follow(found),
            boxes=self.writer.drawn(found),
            mask=found.mask,
            numbers=[(one["id"], one["xyxy"]) for one in objects],
            title=f"{frame.name or self.footage.name}  {frame.time:.2f} s",
        )


def _seconds(selection: Selection) -> str:
    after = f"from second {selection.start:g} on"
    return after if selection.end is None else f"{after} and before {selection.end:g}"
