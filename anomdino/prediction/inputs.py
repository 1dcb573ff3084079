"""Listing the photos and videos that a user names."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomdino.errors import DataError
from anomdino.io.footage import Footage, PhotoSequence, VideoFile, in_order
from anomdino.io.listing import IMAGE_SUFFIXES, image_key, walk_files
from anomdino.io.stream import is_live, without_password
from anomdino.io.video import VIDEO_SUFFIXES

log = logging.getLogger(__name__)

_Named = tuple[str, Path]

SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
SUMMARY = "summary.json"
RESULTS = frozenset({"score", "mask", "boxes", "overlay", "threshold", "frames", "objects"})
"""The folders that :class:`~anomdino.prediction.writing.PredictionWriter` and videos write below ``out``."""


@dataclass(frozen=True)
class Inputs:
    """What a user named.

    Attributes:
        photos: Photos by key, sorted.
        videos: Videos by key, sorted.
        sequences: Folders of photos that are frames of a drive, by key, sorted.
    """

    photos: dict[str, Path] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)
    sequences: dict[str, PhotoSequence] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.photos) + len(self.footage)

    @property
    def footage(self) -> dict[str, Footage]:
        """Videos, then sequences, by key."""
        return {**{key: VideoFile(path) for key, path in self.videos.items()}, **self.sequences}


def collect(inputs: Sequence[str], out: Path | None = None, sequence: float | None = None) -> Inputs:
    """List the photos and videos that a user names, by key.

    A folder gives those in it with their tree; files and what matches quoted globs, folders among them, give keys
    relative to the folder that all of them share. A file is a video by its suffix, else a photo. What is named twice
    counts once, by its first name.
    A key has no suffix, unless files of one folder differ in it alone: ``a.jpg`` beside ``a.png`` keep theirs.

    Args:
        inputs: Paths and patterns.
        out: Where results go; what a run before wrote there is not taken from folders and globs.
        sequence: Photos of a folder are frames of a drive, in the order of their names, so many a second. Its key is
            that of its photos up to the last ``/``, and the folder's name where they have none.

    Raises:
        ConfigError: ``sequence`` is not above 0.
        DataError: An input matches nothing, or nothing but results of a run before; a folder holds neither photo nor
            video; or files of two folders, or two drives, have the same key.
    """
    named: list[_Named] = []
    files: list[Path] = []
    folders: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            named += _named_folder(path, out)
        elif path.is_file():
            files.append(path)
            folders.append(path.parent)
        else:
            found = map(Path, sorted(glob.glob(text, recursive=True)))  # noqa: PTH207 - absolute patterns
            matches = [
                match for match in found if match.is_file() or match.is_dir()
            ]  # no link to nothing, no pipe
            if not matches and is_live(text):
                raise DataError(
                    without_password(text), "is a stream or a camera", "look at it by `anomdino watch`"
                )
            if not matches:
                raise DataError(
                    text, "is no file, no folder, and matches nothing", "check the path or quote the pattern"
                )
            for match in matches:
                below = [match] if match.is_file() else walk_files(match, SUFFIXES)
                files += [file for file in below if not _is_result(file, out)]
                folders.append(match.parent if match.is_file() else match)
    if files:
        root = Path(os.path.commonpath([_plain(folder) for folder in folders]))
        named += [(image_key(_plain(file), root), file) for file in files]
    if not named:
        raise DataError(
            inputs[0], f"matches nothing but what lies in the results, {out}", "choose another -o"
        )
    return _keyed(named, sequence)


def _named_folder(folder: Path, out: Path | None) -> list[_Named]:
    everything = [(image_key(file, folder), file) for file in walk_files(folder, SUFFIXES)]
    listed = [(key, file) for key, file in everything if not _is_result(file, out)]
    if everything and not listed:
        raise DataError(folder, f"holds nothing but what lies in the results, {out}", "choose another -o")
    if not listed:
        raise DataError(
            folder,
            "holds no image and no video",
            "images are png, jpg, webp, bmp, tiff or ppm; videos mp4, mov, 3gp, avi, mkv, webm, mpg, mts or wmv",
        )
    left_out = len(everything) - len(listed)
    if left_out and out is not None and not (out / SUMMARY).is_file():
        are = "file is" if left_out == 1 else "files are"
        log.warning("%s: %d %s left out, for results of %s go to their folders", folder, left_out, are, out)
    return listed


def _plain(path: Path) -> Path:
    """Give the absolute path without ``..``, by which paths of all kinds compare."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links


def _is_result(path: Path, out: Path | None) -> bool:
    """Whether a file lies where results go; photos that lie beside these folders, ``-o .``, are none."""
    if out is None or not path.resolve().is_relative_to(out.resolve()):
        return False
    return path.resolve().relative_to(out.resolve()).parts[0] in RESULTS


def _keyed(named: Iterable[_Named], sequence: float | None) -> Inputs:
    """Sort out photos and videos by key, every file once."""
    seen: set[Path] = set()
    photos: dict[str, list[Path]] = {}
    videos: dict[str, list[Path]] = {}
    folders: dict[Path, tuple[str, list[Path]]] = {}
    for key, path in named:
        if path.resolve() not in seen:  # a pattern may match a folder and what is in it
            seen.add(path.resolve())
            if path.suffix.lower() in VIDEO_SUFFIXES:
                videos.setdefault(key, []).append(path)
            elif sequence is None:
                photos.setdefault(key, []).append(path)
            else:
                own = key.rpartition("/")[0] or path.parent.resolve().name
                folders.setdefault(path.parent, (own, []))[1].append(path)
    films = _distinct(videos)
    return Inputs(_distinct(photos), films, {} if sequence is None else _drives(folders, films, sequence))


def _drives(
    folders: Mapping[Path, tuple[str, list[Path]]], films: Mapping[str, Path], rate: float
) -> dict[str, PhotoSequence]:
    """Make a sequence of the photos of each folder."""
    found: dict[str, PhotoSequence] = {}
    for folder, (key, photos) in folders.items():
        other = films.get(key) or (found[key].path if key in found else None)
        if other is not None:
            cause, cure = (
                f"would be written under the name '{key}', as {other}",
                "predict them into two output folders",
            )
            raise DataError(folder, cause, cure)
        found[key] = PhotoSequence(folder, in_order(photos), rate)
    return dict(sorted(found.items()))


def _distinct(named: Mapping[str, list[Path]]) -> dict[str, Path]:
    """Give one file a key: those of one folder that differ in their suffixes alone keep them."""
    found: dict[str, Path] = {}
    for key, paths in named.items():
        first = paths[0]
        for path in paths:
            own = key if len(paths) == 1 else key + path.suffix
            if path.parent != first.parent or own in found:
                other = found.get(own, first)
                raise DataError(
                    path,
                    f"would be written under the name '{own if own in found else key}', as {other}",
                    "predict them into two output folders, or by one quoted pattern that matches both",
                )
            found[own] = path
    return dict(sorted(found.items()))
