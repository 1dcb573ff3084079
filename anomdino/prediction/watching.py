"""The cascade over a live source: whenever it is free, it looks at the newest frame."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from anomdino.cascade import Cascade, Prediction
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_write_bytes
from anomdino.io.stream import LiveFrame, LiveSource
from anomdino.prediction.objects import told_of
from anomdino.prediction.writing import PredictionWriter, SteadyRange, description, encode_jpeg
from anomdino.tracking.motion import thumbnail
from anomdino.tracking.objects import objects_of
from anomdino.tracking.tracker import Tracker
from anomdino.viz.overlay import draw_overlay

log = logging.getLogger(__name__)

FOLDERS = ("overlay", "photo")
STAMP = "%Y%m%dT%H%M%S"
OWN = re.compile(r"\d{8}T\d{6}\.\d{3}Z")
"""Names of sightings; other pictures of the folder, those of photos, stay."""


class Sightings:
    """Pictures of the frames with an anomaly, or of each object once, the latest alone, so that the disk does not fill.

    A sighting is two files, ``overlay/TIME.jpg``, the drawn one, and ``photo/TIME.jpg``, the frame itself.

    Args:
        writer: Its folder, and the range of the heat.
        name: What stands in the pictures.
        keep: Number of sightings that stay; when there are more the oldest go, those of runs before among them.
        gap: Seconds from a sighting to the next one at least: what stays in view would push out all others.
        at_look: A sighting is a frame in which an object is seen for this time; ``None`` takes all with an anomaly.
    """

    def __init__(
        self, writer: PredictionWriter, name: str, keep: int, gap: float = 0.0, at_look: int | None = None
    ) -> None:
        self._at_look = at_look
        self._writer, self._name, self._keep, self._gap = writer, name, keep, timedelta(seconds=gap)
        self._last: datetime | None = None
        self._range = SteadyRange(writer)
        stems = (file.stem for file in (writer.folder / "overlay").glob("*.jpg"))
        self._there = deque(sorted(filter(OWN.fullmatch, stems)))

    def look(self, prediction: Prediction) -> None:
        """Let the range of the heat follow a frame, so that colours of pictures far apart in time compare."""
        self._range.follow(prediction)

    def write(
        self, frame: LiveFrame, prediction: Prediction, objects: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """Write a sighting, let the oldest go, and give its name, ``20261130T225959.123Z``.

        Args:
            frame: A frame with an anomaly.
            prediction: What was found in it.
            objects: Its objects (:func:`anomdino.prediction.objects.told_of`).

        Returns:
            The name; ``None`` within the gap, and where no object is seen for the time that is asked for.

        Raises:
            DiskError: The disk is full or not writable.
        """
        if self._at_look is not None and all(one["look"] != self._at_look for one in objects):
            return None
        if self._last is not None and frame.arrived - self._last < self._gap:
            return None
        self._last, name = frame.arrived, stamp(frame.arrived)
        title = f"{self._name}  {frame.arrived:%Y-%m-%d %H:%M:%S} UTC"
        drawn = draw_overlay(
            frame.image,
            prediction.score,
            self._range.span,
            boxes=self._writer.drawn(prediction),
            mask=prediction.mask,
            numbers=[(one["id"], one["xyxy"]) for one in objects],
            title=title,
        )
        for kind, picture in zip(FOLDERS, (drawn, frame.image), strict=True):
            atomic_write_bytes(self._writer.folder / kind / f"{name}.jpg", encode_jpeg(picture, name))
        if name not in self._there:
            self._there.append(name)
        while len(self._there) > self._keep:
            oldest = self._there.popleft()
            for kind in FOLDERS:
                (self._writer.folder / kind / f"{oldest}.jpg").unlink(missing_ok=True)
        return name


def stamp(moment: datetime) -> str:
    """Give a moment as the name of a file whose order is that of time, ``20261130T225959.123Z``."""
    utc = moment.astimezone(UTC)
    return f"{utc:{STAMP}}.{utc.microsecond // 1000:03d}Z"


@dataclass
class Watched:
    """What was seen.

    Attributes:
        looked: Frames that were looked at.
        with_anomaly: Of these, with an anomaly.
        skipped: Frames that could not be scored.
        seconds: How long it went on.
    """

    looked: int = 0
    with_anomaly: int = 0
    skipped: int = 0
    seconds: float = 0.0


def watch(
    cascade: Cascade,
    source: LiveSource,
    report: Callable[[dict[str, Any]], None],
    *,
    sightings: Sightings | None = None,
    frames: int | None = None,
    seconds: float | None = None,
    watched: Watched | None = None,
) -> Watched:
    """Look at the newest frame of a source again and again, until it ends, the time is over or the user stops it.

    Args:
        cascade: The loaded networks.
        source: The camera or stream, entered; what it keeps of frames that it passes over are thumbnails
            (:func:`~anomdino.tracking.motion.thumbnail`), through which objects are followed.
        report: Gets the line of every frame: its number, the time it arrived (UTC, ISO 8601), the seconds from there
            until now, share of the mask, range of the score, boxes, objects
            (:func:`~anomdino.prediction.objects.told_of`), and the name of its sighting.
        sightings: Where pictures of frames with an anomaly go.
        frames: Number of frames to look at.
        seconds: How long to look.
        watched: What is filled while it goes on, so that it is known after an error too.

    Raises:
        DataError: The source was lost and given up.
        DiskError: The disk is full or not writable.
    """
    watched, tracker, started = watched or Watched(), Tracker(), time.monotonic()
    try:
        while frames is None or watched.looked < frames:
            left = None if seconds is None else seconds - (time.monotonic() - started)
            if left is not None and left <= 0:
                break
            frame = source.take(left)
            if frame is None:
                break
            line = _look(cascade, source, frame, tracker, sightings, watched)
            watched.looked += 1
            report(line)
    finally:
        watched.seconds = time.monotonic() - started
    return watched


def _look(
    cascade: Cascade,
    source: LiveSource,
    frame: LiveFrame,
    tracker: Tracker,
    sightings: Sightings | None,
    watched: Watched,
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "frame": frame.index,
        "time": frame.arrived.isoformat(timespec="milliseconds"),
    }
    for picture in frame.passed:
        tracker.follow(picture)
    try:
        found = cascade.predict(frame.image, f"{source.name}, frame {frame.index}")
    except DataError as error:
        if not watched.skipped:
            log.warning("skipped: %s", error)
        watched.skipped += 1
        tracker.follow(thumbnail(frame.image))
        return line | {"skipped": error.cause}
    inside = objects_of(found.mask, found.score, found.boxes)
    objects = told_of(inside, tracker.look(frame.image, inside.xyxy))
    sighting = None
    if sightings is not None:
        sightings.look(found)
    if found.mask.any():
        watched.with_anomaly += 1
        sighting = sightings.write(frame, found, objects) if sightings is not None else None
    line["delay"] = round((datetime.now(UTC) - frame.arrived).total_seconds(), 3)
    return line | description(found) | {"objects": objects, "sighting": sighting}
