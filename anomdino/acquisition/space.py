"""Is there room for what is about to be written?"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomdino.errors import DiskError

RESERVE = 256 << 20
"""Bytes that stay free."""


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check before writing that the file system of ``folder`` has ``needed`` bytes and a reserve.

    Args:
        folder: A folder on the file system; it need not exist yet.
        needed: Bytes to be written.
        what: What is to be written, for the message.

    Raises:
        DiskError: There is too little; nothing was written.
    """
    place = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed + RESERVE > free:
        raise DiskError(
            folder,
            f"{what} needs {in_words(needed)} and {in_words(RESERVE)} in reserve; free are {in_words(free)}",
            "free some space, or set data.registry.downloads to another disk",
        )


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn the system's errors of a full or read-only disk into :class:`DiskError`.

    Args:
        place: Named in the message where the system names no file.

    Raises:
        DiskError: The disk is full, a quota is used up, or the place may not be written to, or a file not be read.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            cure = "free some space and run again: parts of downloads and finished files are kept"
            raise DiskError(error.filename or place, "the disk is full", cure) from error
        if error.errno == errno.EROFS:
            raise DiskError(
                error.filename or place, "the file system is read-only", "choose another folder"
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            cure = "check the permissions of it and of its folder (`dvc unprotect` where DVC linked it from its cache)"
            raise DiskError(error.filename or place, "permission denied", cure) from error
        raise


def in_words(size: int | None) -> str:
    """Write a number of bytes for a person: ``19.3 GB``; ``unknown`` for ``None``."""
    if size is None:
        return "unknown"
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit in {"B", "kB", "MB"} else f"{value:.1f} {unit}"
