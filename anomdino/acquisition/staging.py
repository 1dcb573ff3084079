"""Folders that appear whole or not at all, and files placed in them."""

from __future__ import annotations

import filecmp
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anomdino.errors import DataError


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside ``target`` that takes its place when the block ends well.

    When the block raises, the folder is removed and whatever stood at ``target`` is untouched. A run that was
    killed leaves a hidden folder ``.<name>.<hex>.staging``, which the next run for the same target removes.

    Args:
        target: The final folder. An existing one is replaced as a whole.

    Yields:
        The folder to fill; it is on the same file system as ``target``.

    Raises:
        DataError: ``target`` is a file.
    """
    _refuse_file(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    staging = target.with_name(f".{target.name}.{secrets.token_hex(6)}.staging")
    staging.mkdir()
    try:
        yield staging
        _swap(staging, target)
    finally:
        remove_tree(staging)


@contextmanager
def staged_parts(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """Give a folder with empty sub-folders ``names``; each replaces ``root/<name>`` when the block ends well.

    Yields:
        The folder that holds the sub-folders to fill.

    Raises:
        DataError: A ``root/<name>`` is a file.
    """
    names = tuple(names)
    for name in names:
        _refuse_file(root / name)
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root / "parts")
    staging = root / f".parts.{secrets.token_hex(6)}.staging"
    try:
        for name in names:
            (staging / name).mkdir(parents=True)
        yield staging
        for name in names:
            remove_leftovers(root / name)
            _swap(staging / name, root / name)
    finally:
        remove_tree(staging)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder for intermediate files that is removed when the block ends."""
    remove_tree(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove_tree(folder)


def merge_tree(source: Path, target: Path) -> None:
    """Move all files below ``source`` to the same places below ``target``.

    Raises:
        DataError: ``target`` holds another file at a place, or where a folder is needed; then nothing was moved.
    """
    files = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    taken = [one for one in files if (target / one).exists()]
    other = [one for one in taken if not filecmp.cmp(source / one, target / one, shallow=False)]
    other += sorted({part for one in files for part in one.parents if (target / part).is_file()})
    if other:
        listed = ", ".join(str(one) for one in other[:5])
        raise DataError(
            target, f"holds {len(other)} other files under the same names: {listed}", "choose another folder"
        )
    for one in files:
        (target / one).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / one, target / one)


def remove_leftovers(target: Path) -> None:
    """Remove staging folders of ``target`` that a killed run left; call it while holding the run's lock."""
    for leftover in target.parent.glob(f".{target.name}.*.staging"):
        remove_tree(leftover)


def remove_tree(folder: Path) -> None:
    """Remove a folder with everything in it, read-only files (links into the DVC cache) included.

    Of a linked folder the link alone is removed.
    """

    def make_writable_and_retry(function: object, path: str, _: object) -> None:
        parent = Path(path).parent
        parent.chmod(parent.stat().st_mode | 0o700)
        Path(path).unlink(missing_ok=True) if not Path(path).is_dir() else Path(path).rmdir()

    if folder.is_symlink():
        folder.unlink()
    elif folder.is_dir():
        shutil.rmtree(folder, onerror=make_writable_and_retry)


def place(source: Path, target: Path, link: bool = False) -> None:
    """Put a file at ``target``: a hard link where ``link`` is set and the file system allows it, else a copy.

    Link only files that this project owns, never the user's: DVC makes linked files read-only.

    Raises:
        DataError: There is a file at ``target`` already: two items give the same one.
    """
    if target.exists():
        raise DataError(target, "is given by two items", "choose one of them in data.registry.items")
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copyfile(source, target)


def _refuse_file(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise DataError(target, "is a file where a folder is needed", "move it away")


def _swap(staging: Path, target: Path) -> None:
    if not (target.exists() or target.is_symlink()):
        staging.rename(target)
        return
    old = target.with_name(f".{target.name}.{secrets.token_hex(6)}.staging")
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    remove_tree(old)
