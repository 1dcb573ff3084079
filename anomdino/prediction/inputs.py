"""Listing the photos and videos that a user names."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomdino.errors import DataError
from anomdino.io.listing import IMAGE_SUFFIXES, image_key, list_files
from anomdino.io.video import VIDEO_SUFFIXES

log = logging.getLogger(__name__)

SUMMARY = "summary.json"
RESULTS = frozenset({"score", "mask", "boxes", "overlay", "threshold", "frames"})
"""The folders that :class:`~anomdino.prediction.writing.PredictionWriter` and videos write below ``out``."""


@dataclass(frozen=True)
class Inputs:
    """What a user named.

    Attributes:
        photos: Photos by key, sorted.
        videos: Videos by key, sorted.
    """

    photos: dict[str, Path] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.photos) + len(self.videos)


def collect(inputs: Sequence[str], out: Path | None = None) -> Inputs:
    """List the photos and videos that a user names, by key.

    A folder gives those in it with their tree; files and quoted globs give keys relative to the folder that all of
    them share. A file is a video by its suffix, else a photo. What is named twice counts once, by its first name.

    Args:
        inputs: Paths and patterns.
        out: Where results go; what a run before wrote there is not taken from folders and globs.

    Raises:
        DataError: An input matches nothing, or nothing but results of a run before; a folder holds neither photo nor
            video; or two have the same key.
    """
    found = Inputs()
    files: list[Path] = []
    seen: set[Path] = set()
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            _merge(found, _fresh(_named_folder(path, out), seen))
        elif path.is_file():
            files.append(path)
        else:
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - absolute patterns
            if not matches:
                raise DataError(
                    text, "is no file, no folder, and matches nothing", "check the path or quote the pattern"
                )
            files += [match for match in matches if match.is_file() and not _is_result(match, out)]
            for match in matches:
                if match.is_dir():
                    _merge(found, _fresh(_in_folder(match, out), seen))
    if files:
        root = Path(os.path.commonpath([file.parent for file in files]))
        for file in files:
            _merge(found, _fresh(_sorted_out([(image_key(file, root), file)]), seen))
    if not found:
        raise DataError(
            inputs[0], f"matches nothing but what lies in the results, {out}", "choose another -o"
        )
    return Inputs(dict(sorted(found.photos.items())), dict(sorted(found.videos.items())))


def _named_folder(folder: Path, out: Path | None) -> Inputs:
    listed, everything = _in_folder(folder, out), _in_folder(folder, None)
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
        log.warning("%s: %d files are left out, for results of %s go to their folders", folder, left_out, out)
    return listed


def _in_folder(folder: Path, out: Path | None) -> Inputs:
    photos, videos = (list_files(folder, kind) for kind in (IMAGE_SUFFIXES, VIDEO_SUFFIXES))
    return Inputs(
        {key: path for key, path in photos.items() if not _is_result(path, out)},
        {key: path for key, path in videos.items() if not _is_result(path, out)},
    )


def _is_result(path: Path, out: Path | None) -> bool:
    """Whether a file lies where results go; photos that lie beside these folders, ``-o .``, are none."""
    if out is None or not path.resolve().is_relative_to(out.resolve()):
        return False
    return path.resolve().relative_to(out.resolve()).parts[0] in RESULTS


def _fresh(listed: Inputs, seen: set[Path]) -> Inputs:
    """Give what was not seen before, under whatever key: a pattern may match a folder and what is in it."""
    fresh = Inputs()
    for kept, kind in ((fresh.photos, listed.photos), (fresh.videos, listed.videos)):
        for key, path in kind.items():
            if path.resolve() not in seen:
                seen.add(path.resolve())
                kept[key] = path
    return fresh


def _sorted_out(files: Iterable[tuple[str, Path]]) -> Inputs:
    sorted_out = Inputs()
    for key, path in files:
        kind = sorted_out.videos if path.suffix.lower() in VIDEO_SUFFIXES else sorted_out.photos
        kind[key] = path
    return sorted_out


def _merge(found: Inputs, more: Inputs) -> None:
    _merge_kind(found.photos, more.photos)
    _merge_kind(found.videos, more.videos)


def _merge_kind(found: dict[str, Path], more: Mapping[str, Path]) -> None:
    for key, path in more.items():
        if key in found and found[key] != path:
            raise DataError(
                path,
                f"would be written under the name '{key}', as {found[key]}",
                "predict them into two output folders",
            )
        found[key] = path
