"""Keeping the memory of a process close to what it uses at a time."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from pathlib import Path

_M_ARENA_MAX = -8
_GROWTH = 64 << 20


def share_one_heap() -> bool:
    """Have all threads of the process take memory from one heap.

    The GNU C library gives each thread a heap of its own, and what a thread frees stays there for this thread: with
    frames in several threads the peak grows by several frames a thread. The setting holds for the whole process, so
    that it belongs to the start of a program; threads that have a heap keep it.

    Returns:
        Whether the C library could be told; another one is left as it is.
    """
    library = _c_library()
    return library is not None and bool(library.mallopt(_M_ARENA_MAX, 1))


class FreedMemory:
    """Gives freed memory back to the system whenever the process has grown, where the C library can do that.

    Args:
        growth: Bytes by which the process may grow before freed memory is given back.
    """

    def __init__(self, growth: int = _GROWTH) -> None:
        self._growth = growth
        self._floor = _resident()

    def give_back(self) -> None:
        """Call it between two images."""
        library = _c_library()
        if library is None or _resident() < self._floor + self._growth:
            return
        library.malloc_trim(0)
        self._floor = _resident()


def _resident() -> int:
    """Bytes of the process that are in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return 0


@cache
def _c_library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
    except (OSError, TypeError):
        return None
