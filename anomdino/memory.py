"""Keep the memory that a training step, or an image, frees for the next one."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt(3)."""
GROWTH = 1 << 28
"""Bytes by which the heap grows at a time."""


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory in the process and to serve large arrays from it.

    By default every array of more than some megabytes is mapped from the operating system and given back when it
    is freed: a network on a CPU, which makes and drops the same large arrays with every step or image, then waits for
    pages to be cleared. Results do not change; the process holds its peak of memory until it ends.

    Returns:
        Whether the C library took it; other libraries than glibc are left as they are.
    """
    if not sys.platform.startswith("linux") or "glibc" not in _library():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = {MMAP_MAX: 0, TRIM_THRESHOLD: -1, TOP_PAD: GROWTH}
    return all(mallopt(parameter, value) for parameter, value in wanted.items())


def _library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""
