"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anomdino.errors import ConfigError, DataError, DiskError

_DISK_ERRORS = {
    errno.ENOSPC: ("the disk is full", "free some space and run again: finished files were kept"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run again: finished files were kept"),
    errno.EROFS: ("the file system is read-only", "choose another output folder"),
    errno.EACCES: (
        "no permission to write",
        "make the folder writable; for outputs linked from the DVC cache run `dvc unprotect` on them",
    ),
}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that is renamed to it when the block ends well.

    The temporary name keeps the suffix of ``path``, so that writers which choose a format by suffix work. When the
    block raises, the temporary file is removed and whatever stood at ``path`` is untouched.

    Args:
        path: The final file. Its parent folders are created.

    Yields:
        A path in the same folder that the block writes to.

    Raises:
        DataError: The name is too long for the disk.
        DiskError: The disk is full, or the place is not writable, or it is a folder, or no folder can be made there.
    """
    path = Path(path)
    stem = os.fsdecode(os.fsencode(path.stem)[:100])  # names are limited in bytes
    temporary = path.with_name(f".{stem}.{secrets.token_hex(6)}.tmp{path.suffix}")
    with disk_errors(path, temporary):
        _make_folder(path)
        if path.is_dir():
            raise DiskError(path, "is a folder, and a file is to be written", "name a file")
        try:
            yield temporary
            if temporary.exists():
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn the system's errors of writing to a place into errors that say what to do.

    Args:
        path: What is written to.
        temporary: Another name under which it is written.

    Raises:
        DataError: The name is too long for the disk.
        DiskError: The disk is full or not writable, or another file that the error names may not be used.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(path, "has a name that is too long for the disk", "shorten it") from error
        if error.errno not in _DISK_ERRORS:
            raise
        if error.errno == errno.EACCES and not _is_about(error, path, temporary or path):
            cause, cure = "permission denied", "check the permissions of the file and of its folder"
            raise DiskError(os.fsdecode(error.filename), cause, cure) from error
        cause, cure = _DISK_ERRORS[error.errno]
        raise DiskError(path, cause, cure) from error


def _is_about(error: OSError, path: Path, temporary: Path) -> bool:
    """Whether an error is about what is written, by the file that it names; FFmpeg writes ``file:`` before the name."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return True
    named = Path(os.fsdecode(error.filename).removeprefix("file:"))
    return named in {path, temporary} or named in path.parents


def make_parent(path: Path) -> None:
    """Make the folder of a file.

    Raises:
        DiskError: The disk is full, or the place is not writable, or no folder can be made there.
    """
    with disk_errors(path):
        _make_folder(path)


def require_folder(folder: Path) -> None:
    """Refuse an output folder, ``--out``, that is a file or would lie below one, before any work.

    Raises:
        ConfigError: It is.
    """
    for part in (folder, *folder.parents):
        if os.path.isfile(part):  # noqa: PTH113 - a part that may not be looked at is told when it is written to
            raise ConfigError("--out", f"{part} is a file", "name a folder")


def remove_file(path: Path) -> None:
    """Remove a file where there is one.

    Raises:
        DiskError: It may not be removed.
    """
    with disk_errors(path):
        path.unlink(missing_ok=True)


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        cause = "cannot be made: a part of its path is a file and no folder"
        raise DiskError(path, cause, "choose another output folder") from error
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise
        cause = f"cannot be made: {(error.strerror or 'the system refuses').lower()}"
        raise DiskError(path, cause, "choose another output folder") from error


def atomic_write_bytes(path: Path | str, content: bytes) -> None:
    """Write bytes to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(path: Path | str, content: str) -> None:
    """Write UTF-8 text to ``path``, whole or not at all."""
    atomic_write_bytes(path, content.encode("utf-8"))


def atomic_write_json(path: Path | str, content: Any, indent: int | None = 2) -> None:
    """Write ``content`` as JSON with a closing newline.

    Raises:
        ValueError: A number in ``content`` is NaN or infinite; write ``None`` and a reason instead.
    """
    refuse_non_finite(content)
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    # file names that are no Unicode hold lone surrogates, which JSON can only write as escapes
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))


def refuse_non_finite(content: Any, where: str = "$") -> None:
    """Raise ``ValueError`` that names the place of the first NaN or infinity in nested lists and dicts."""
    if isinstance(content, float) and not math.isfinite(content):
        raise ValueError(f"{where} is {content}: JSON has no such number, write null with a reason")
    if isinstance(content, dict):
        for key, value in content.items():
            refuse_non_finite(value, f"{where}.{key}")
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            refuse_non_finite(value, f"{where}[{index}]")
