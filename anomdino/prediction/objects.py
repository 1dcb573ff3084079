"""The objects of a video: a line and a picture for each, and a page of them all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from anomdino.io.atomic import atomic_path, atomic_write_bytes, disk_errors, make_parent
from anomdino.io.video import Frame
from anomdino.prediction.writing import encode_jpeg
from anomdino.report.objects import write_objects_page
from anomdino.tracking.objects import FrameObjects
from anomdino.tracking.tracker import Track
from anomdino.viz.views import object_view
from anomdino.words import counted

FOLDER = "objects"
AGAIN = 2
"""Looks from which on an object was seen again."""
ABOUT = ("xyxy", "score", "pixels")
"""What is told of an object in a frame, and kept of its best look."""


def told_of(objects: FrameObjects, tracks: Sequence[Track]) -> list[dict[str, Any]]:
    """Give what a line of JSON says of the objects of a frame.

    Returns:
        ``id``, the number by which an object is followed; ``xyxy``, whole pixels; ``score``, the mean of the final score
        inside; ``pixels``; ``look``, in how many looks it was seen until now, this one included.
    """
    return [
        {
            "id": track.number,
            "xyxy": [int(v) for v in objects.xyxy[index]],
            "score": round(float(objects.scores[index]), 4),
            "pixels": int(objects.pixels[index]),
            "look": track.looks,
        }
        for index, track in enumerate(tracks)
    ]


@dataclass
class _Seen:
    """What is known of an object that may be seen again."""

    first: tuple[int, float]
    last: tuple[int, float]
    looks: int
    rank: tuple[bool, int]
    best: dict[str, Any]
    picture: bytes


class ObjectLog:
    """Writes each object of a video when it is gone, so that those in view alone are in memory.

    Args:
        lines: Gets a line of JSON for each object.
        pictures: Folder for their pictures; ``None`` writes none.
        address: Of that folder, from where the lines are.

    Attributes:
        looks: Number of frames that were looked at.
        objects: Number of objects that were written.
        again: How many of them were seen in more than one look.
        begin: Seconds of the first frame, at which the film begins.
    """

    def __init__(self, lines: IO[str], pictures: Path | None, address: str) -> None:
        self._lines, self._pictures, self._address = lines, pictures, address
        self._open: dict[int, _Seen] = {}
        self.looks = self.objects = self.again = 0
        self.begin = 0.0

    def add(
        self,
        frame: Frame,
        mask: npt.NDArray[np.bool_],
        told: Sequence[Mapping[str, Any]],
    ) -> None:
        """Take the objects of a frame.

        Args:
            frame: The frame.
            mask: bool (H, W), what is anomalous in it.
            told: What is told of each object (:func:`told_of`).
        """
        if not self.looks:
            self.begin = frame.time
        self.looks += 1
        for about in told:
            self._add(frame, mask, about)

    def close(self, still: Sequence[Track] = ()) -> None:
        """Write the objects that are gone.

        Args:
            still: Tracks that may be seen again.
        """
        kept = {track.number for track in still}
        for number in [number for number in self._open if number not in kept]:
            self._write(number, self._open.pop(number))

    def _add(self, frame: Frame, mask: npt.NDArray[np.bool_], about: Mapping[str, Any]) -> None:
        now = (frame.index, round(frame.time, 4))
        seen = self._open.get(about["id"])
        rank = (_is_whole(about["xyxy"], frame.image), about["pixels"])
        if seen is None or rank > seen.rank:
            picture = b""
            if self._pictures is not None:
                view = object_view(frame.image, mask, about["xyxy"])
                picture = encode_jpeg(view, f"object {about['id']}")
            best = {"frame": now[0], "time": now[1]} | {name: about[name] for name in ABOUT}
            first = seen.first if seen else now
            self._open[about["id"]] = _Seen(first, now, about["look"], rank, best, picture)
        else:
            seen.last, seen.looks = now, about["look"]

    def _write(self, number: int, seen: _Seen) -> None:
        name = _picture_name(number)
        if self._pictures is not None:
            atomic_write_bytes(self._pictures / name, seen.picture)
        line = {
            "id": number,
            "first": seen.first[1],
            "last": seen.last[1],
            "frames": [seen.first[0], seen.last[0]],
            "looks": seen.looks,
            "best": seen.best,
            "picture": None if self._pictures is None else f"{self._address}/{name}",
        }
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self.objects += 1
        self.again += seen.looks >= AGAIN


@contextmanager
def logging_objects(folder: Path, key: str, title: str, *, pictures: bool) -> Iterator[ObjectLog]:
    """Log the objects of a video: ``objects/KEY.jsonl`` and, with pictures, ``objects/KEY/`` and ``objects/KEY.html``.

    They appear when the block ends well; else those of a run before stay.

    Args:
        folder: Output folder of all; the film of the video lies there as ``overlay/KEY.mp4`` if there are pictures.
        key: Of the video.
        title: Heading of the page.
        pictures: Write the pictures and the page.

    Raises:
        DiskError: The disk is full or not writable.
    """
    place = folder / FOLDER
    target, shown = place / f"{key}.jsonl", place / key
    temporary = place / f".{secrets.token_hex(6)}.tmp"
    try:
        with atomic_path(target) as written:
            with written.open("w", encoding="utf-8", errors="backslashreplace") as lines:
                log = ObjectLog(lines, temporary if pictures else None, Path(key).name)
                yield log
                log.close()
            remove_objects(folder, key)
            if temporary.is_dir():
                for picture in temporary.iterdir():
                    make_parent(shown / picture.name)
                    with disk_errors(shown / picture.name):
                        os.replace(picture, shown / picture.name)
            if pictures:
                _write_page(place, key, title, written, log)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_objects(folder: Path, key: str) -> None:
    """Remove what a run before wrote of a video's objects: what its lines name, and these; other files stay."""
    lines, page = (folder / FOLDER / f"{key}{suffix}" for suffix in (".jsonl", ".html"))
    for number in _numbers(lines):
        (folder / FOLDER / key / _picture_name(number)).unlink(missing_ok=True)
    for file in (lines, page):
        file.unlink(missing_ok=True)


def _numbers(lines: Path) -> Iterator[int]:
    """Give the numbers of the objects that a run before wrote; from a damaged line on, none."""
    try:
        with lines.open(encoding="utf-8") as file:
            for text in file:
                yield int(json.loads(text)["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return


def _picture_name(number: int) -> str:
    return f"{number:04d}.jpg"


def _write_page(place: Path, key: str, title: str, lines: Path, log: ObjectLog) -> None:
    up = "../" * (1 + key.count("/"))
    write_objects_page(
        place / f"{key}.html",
        title,
        {"frames": log.looks, "objects": log.objects, "seen again": log.again},
        again=_cards(lines, log.begin, again=True),
        once=_cards(lines, log.begin, again=False),
        film=quote(f"{up}overlay/{key}.mp4", errors="surrogateescape"),
    )


def _cards(lines: Path, begin: float, *, again: bool) -> Iterator[dict[str, Any]]:
    with lines.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if (line["looks"] >= AGAIN) == again:
                yield {
                    "id": line["id"],
                    "picture": quote(line["picture"], errors="surrogateescape"),
                    "moment": round(line["best"]["time"] - begin, 3),
                    "when": _span(line["first"], line["last"]),
                    "looks": counted(line["looks"], "look"),
                    "score": f"{line['best']['score']:.2f}",
                    "pixels": line["best"]["pixels"],
                }


def _span(first: float, last: float) -> str:
    return f"{_clock(first)} - {_clock(last)}" if last > first else _clock(first)


def _clock(seconds: float) -> str:
    """Give seconds as people read them, ``1:02:03.4``."""
    minutes, rest = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{rest / 10:04.1f}"


def _is_whole(box: Sequence[int], image: npt.NDArray[np.uint8]) -> bool:
    return box[0] > 0 and box[1] > 0 and box[2] < image.shape[1] and box[3] < image.shape[0]
