"""Listing folders of images so that every output finds its image again."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from anomdino.errors import DataError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})


def image_key(path: Path, root: Path) -> str:
    """Give the key of an image: its path below ``root`` without suffix, with ``/`` and in Unicode form NFC."""
    return unicodedata.normalize("NFC", path.relative_to(root).with_suffix("").as_posix())


def walk_files(root: Path | str, suffixes: Iterable[str] | None = None) -> Iterator[Path]:
    """Give the files below ``root``, in the order of their names; linked folders are entered, but no circle of them.

    Hidden files and folders are left out, and so, with a warning, are folders that may not be read.

    Args:
        root: Folder that is searched with all its sub-folders.
        suffixes: Suffixes in lower case, with the dot, that are taken; None takes all.

    Raises:
        DataError: ``root`` is no folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            root, "is not a folder", "check the path; `dvc repro` makes the pipeline's own folders"
        )
    wanted = None if suffixes is None else frozenset(suffixes)
    for path in walk(root):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not hidden and (wanted is None or path.suffix.lower() in wanted) and path.is_file():
            yield path


def walk(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Give all that lies below a folder, folders too, hidden or not, in the order of names.

    Linked folders are entered, but no circle of them; folders that may not be read are left out, with a warning.

    Args:
        folder: Where to begin.
        above: Real paths of the folders that it was reached through.
    """
    itself = os.path.realpath(folder)
    if itself in above:
        return
    try:
        entries = sorted(folder.iterdir())
    except PermissionError as error:
        log.warning("%s: left out, %s", folder, error.strerror)
        return
    for path in entries:
        yield path
        if path.is_dir():
            yield from walk(path, above | {itself})


def list_files(root: Path | str, suffixes: Iterable[str]) -> dict[str, Path]:
    """List the files below ``root`` by key, sorted by key (see :func:`walk_files`).

    Args:
        root: Folder that is searched with all its sub-folders, linked ones too.
        suffixes: Suffixes in lower case, with the dot, that are taken.

    Raises:
        DataError: ``root`` is no folder, or two files have the same key (``a.png`` beside ``a.jpg``).
    """
    root = Path(root)
    found: dict[str, Path] = {}
    for path in walk_files(root, suffixes):
        key = image_key(path, root)
        if key in found:
            raise DataError(
                path,
                f"has the same key '{key}' as {found[key].name}",
                "rename one of the two: outputs are named by the path without suffix",
            )
        found[key] = path
    return dict(sorted(found.items()))


def list_images(root: Path | str) -> dict[str, Path]:
    """List the images below ``root`` by key (see :func:`list_files`)."""
    return list_files(root, IMAGE_SUFFIXES)


def pair_by_key(
    first: Mapping[str, Path], second: Mapping[str, Path], names: tuple[str, str] = ("image", "label")
) -> list[tuple[str, Path, Path]]:
    """Pair two listings by key.

    Returns:
        ``(key, first path, second path)`` sorted by key.

    Raises:
        DataError: A key has no partner; the message lists the first ten of each side.
    """
    only_first, only_second = sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())
    if only_first or only_second:
        parts = [
            f"{len(keys)} {have} without {lack}: {', '.join(keys[:10])}{' ...' if len(keys) > 10 else ''}"
            for keys, have, lack in ((only_first, *names), (only_second, *reversed(names)))
            if keys
        ]
        sample = next(iter((*first.values(), *second.values())))
        raise DataError(sample.parent, "; ".join(parts), "add the missing partners or remove the lone files")
    return [(key, first[key], second[key]) for key in sorted(first)]
