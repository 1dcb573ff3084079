"""Processes that share the steps of a training on the CPU, started by the training itself.

A small detector is thousands of short operations: two threads of one process mostly wait for each other, two processes
of a thread each need not.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from anomdino.errors import AnomdinoError, TrainingError

ENDED = (ProcessRaisedException, ProcessExitedException)
CURE = "start it again, it resumes; with detector.cpu_processes: 1 all stays in one process"


def run_in_processes(count: int, work: Callable[..., Any], *arguments: Any, imports: str) -> Any:
    """Call a function in this process and in ``count - 1`` new ones, all of one gloo group, and give what it gave here.

    This process is rank 0. The threads of this process are shared out; it has them back in the end.

    Args:
        count: Processes, at least 2.
        work: The function; it and its arguments are pickled.
        *arguments: Its arguments.
        imports: Module that all processes import before they meet: at once, where one after the other takes longer.

    Raises:
        TrainingError: Another process ended early.
        AnomdinoError: What ``work`` raised here.
    """
    threads = torch.get_num_threads()
    share = max(1, threads // count)
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        others = start_processes(  # type: ignore[no-untyped-call]
            _other,
            (count, share, meeting, imports, work, arguments),
            count - 1,
            join=False,
            start_method="spawn",
        )
        try:
            importlib.import_module(imports)
            torch.set_num_threads(share)
            with _joined(0, count, meeting, others):
                given = work(*arguments)
            while not others.join():
                pass
        except AnomdinoError:
            raise
        except Exception as error:
            end = _end_of_another(others, error)
            if end is None:
                raise
            raise end from error
        finally:
            torch.set_num_threads(threads)
            for process in others.processes:
                process.kill()
                process.join()
    return given


def _other(
    index: int, count: int, threads: int, meeting: Path, imports: str, work: Any, arguments: Any
) -> None:
    logging.getLogger("anomdino").setLevel(logging.ERROR)  # the first process says it all
    torch.set_num_threads(threads)
    importlib.import_module(imports)
    with _joined(index + 1, count, meeting):
        work(*arguments)


@contextmanager
def _joined(rank: int, count: int, meeting: Path, others: Any = None) -> Iterator[None]:
    """Join the group; the first process waits for the others as long as they live."""
    store = dist.FileStore(str(meeting), count)  # type: ignore[attr-defined]
    if rank:
        store.set(f"here/{rank}", "1")
    else:
        while not all(store.check([f"here/{other}"]) for other in range(1, count)):
            others.join(timeout=0)
            time.sleep(0.02)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _end_of_another(others: Any, error: Exception) -> TrainingError | None:
    """Tell what another process ended of, if that is why this one cannot go on."""
    try:
        if not isinstance(error, ENDED):
            others.join(timeout=5)
            return None
    except ENDED as end:
        error = end
    last = str(error).strip().splitlines()[-1]
    return TrainingError("detector", f"another process of the training ended: {last}", CURE)


__all__ = ["run_in_processes"]
