"""One run at a time in a folder; the other one learns who holds the lock."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from anomdino.errors import DataError, DiskError
from anomdino.io.atomic import make_parent

WAIT = 5.0


@contextmanager
def exclusive(lock: Path, wait: float | None = None) -> Iterator[None]:
    """Hold ``lock`` while the block runs.

    The lock is the kernel's (``flock``), so that a killed holder leaves none behind. Its process id, host and
    starting time stand beside it in ``<lock>.holder`` for the message.

    Args:
        lock: The lock file; its parent folders are created.
        wait: Seconds to wait for another holder; ``None`` for a few.

    Raises:
        DataError: Another process holds the lock; the message names it.
        DiskError: The lock file cannot be made.
    """
    holder = lock.with_name(f"{lock.name}.holder")
    guard = FileLock(lock)
    try:
        make_parent(lock)
        guard.acquire(timeout=WAIT if wait is None else wait)
    except Timeout as error:
        if not lock.exists():  # where it may not be made, the lock is tried again until the time is over
            raise DiskError(lock, "cannot be made", "choose another folder, or make it writable") from error
        raise DataError(
            lock,
            f"is held by {_describe(holder)}",
            "wait until that run has ended, or stop it; then run again",
        ) from error
    except OSError as error:
        cause = f"cannot be made: {(error.strerror or str(error)).lower()}"
        raise DiskError(lock, cause, "choose another folder, or make it writable") from error
    try:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        holder.write_text(json.dumps(who), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        guard.release()


def one_run_in(folder: Path) -> AbstractContextManager[None]:
    """Hold an output folder, which is made, while the block runs: two runs would mix their results.

    Raises:
        DataError: Another run holds it; the message names its process.
        DiskError: The folder or the lock in it, a hidden file, cannot be made.
    """
    return exclusive(folder / ".anomdino.lock", wait=0)


def _describe(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
