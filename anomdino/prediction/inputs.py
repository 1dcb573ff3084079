"""Listing the photos and videos that a user names."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomdino.errors import DataError
from anomdino.io.listing import IMAGE_SUFFIXES, image_key, list_files
from anomdino.io.video import VIDEO_SUFFIXES

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

    def __bool__(self) -> bool:
        return bool(self.photos or self.videos)


def collect(inputs: Sequence[str], out: Path | None = None) -> Inputs:
    """List the photos and videos that a user names, by key.

    A folder gives those in it with their tree; files and quoted globs give keys relative to the folder that all of
    them share. A file is a video by its suffix, else a photo.

    Args:
        inputs: Paths and patterns.
        out: Where results go; what a run before wrote there is not taken from folders and globs.

    Raises:
        DataError: An input matches nothing, or nothing but results of a run before; a folder holds neither photo nor
            video; or two have the same key.
    """
    found = Inputs()
    files: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            listed = _in_folder(path, out)
            if not listed:
                raise DataError(
                    path,
                    "holds no image and no video",
                    "images are png, jpg, webp, bmp, tiff or ppm; videos mp4, mov, 3gp, avi, mkv, webm, mpg, mts or wmv",
                )
            _merge(found, listed)
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
                    _merge(found, _in_folder(match, out))
    if files:
        root = Path(os.path.commonpath([file.parent for file in files]))
        for file in files:
            _merge(found, _sorted_out([(image_key(file, root), file)]))
    if not found:
        raise DataError(
            inputs[0], f"matches nothing but what lies in the results, {out}", "choose another -o"
        )
    return Inputs(dict(sorted(found.photos.items())), dict(sorted(found.videos.items())))


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
