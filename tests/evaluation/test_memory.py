"""Freed memory goes back to the system, measured in a process of its own."""

import subprocess
import sys

import pytest

from anomdino.evaluation.memory import FreedMemory, _c_library, _resident, share_one_heap

MEASURE = """
from anomdino.evaluation.memory import FreedMemory, _resident, share_one_heap
assert share_one_heap()
freed = FreedMemory(growth=16 << 20)
blocks = [bytes(100_000) + b"x" for _ in range(2000)]
blocks = blocks[-1:]  # the last one keeps the heap from shrinking by itself
before = _resident()
freed.give_back()
print(before - _resident())
"""


@pytest.mark.skipif(_c_library() is None or not _resident(), reason="not the GNU C library on Linux")
def test_freed_memory_is_given_back():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150e6


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("anomdino.evaluation.memory._c_library", lambda: None)
    assert not share_one_heap()
    FreedMemory(growth=-1).give_back()
