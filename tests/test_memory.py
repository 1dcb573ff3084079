"""Freed memory stays in the process where glibc was asked to keep it."""

import os
import subprocess
import sys

import pytest

from anomdino import memory
from anomdino.memory import keep_freed_memory

PROGRAM = """
import sys
from anomdino.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
block = bytearray(b"x") * (200 << 20)  # touched, so that it is resident
del block
pages = int(open("/proc/self/statm").read().split()[1])
print(pages * 4096 >> 20)
"""


def resident_after(mode):
    """Megabytes that a process holds after it made and dropped 200 MB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    return int(done.stdout)


@pytest.mark.skipif("glibc" not in memory._library(), reason="needs glibc")
def test_freed_arrays_stay_with_the_process():
    assert resident_after("as it is") < 150
    assert resident_after("keep") > 200


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_library", lambda: "musl 1.2")
    assert not keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
