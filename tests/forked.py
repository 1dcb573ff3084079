"""Processes that are forked, where a test needs several: they import nothing again, which takes most of their time.

They are forked from a server that has imported what is slow and does nothing else: pytest itself has threads, and a
fork that waits for what one of them held waits for ever.
"""

import faulthandler
import gc
import os
import random
import runpy
import socket
import sys
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch

FORK = get_context("forkserver")
FORK.set_forkserver_preload(["anomdino.detector.runner", "anomdino.scorer.recipe", "anomdino.adt.training"])


def launch(work, arguments, patience=120):
    """Run a function in a process for each tuple of arguments, as torchrun starts them, and give the exit codes.

    What a process says, its traceback too, pytest shows where the test fails; one that hangs says where before it is
    killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world["WORLD_SIZE"] = str(len(arguments))
    processes = []
    for rank, given in enumerate(arguments):
        place = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(FORK.Process(target=_rank, args=(work, given, Path.cwd(), place, patience)))
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(patience)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


class ModuleProcess:
    """In place of the `subprocess.Popen` of `python -m <module> <arguments>`."""

    def __init__(self, command, cwd, env):
        _, option, module, *arguments = command
        assert option == "-m"
        self._process = FORK.Process(target=_module, args=(module, arguments, cwd, env))
        self._process.start()

    def poll(self):
        return self._process.exitcode

    def terminate(self):
        self._process.terminate()

    def wait(self):
        self._process.join()


def _rank(work, given, cwd, env, patience):
    _as_a_process_of_its_own(cwd, env)
    faulthandler.dump_traceback_later(0.9 * patience)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(int(env["RANK"]))  # forked processes would draw the same where processes of their own do not
    work(*given)


def _module(module, arguments, cwd, env):
    _as_a_process_of_its_own(cwd, env)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _as_a_process_of_its_own(cwd, env):
    gc.freeze()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)  # other threads are not forked
    cv2.setNumThreads(0)
