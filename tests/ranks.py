"""Processes of one training as torchrun starts them, forked: they import nothing again, which takes most of their time."""

import os
import random
import socket
from multiprocessing import get_context

import cv2
import numpy as np
import torch


def launch(work, arguments, patience=120):
    """Run a function in one process for each tuple of arguments, and give the exit codes.

    What a process says, its traceback too, pytest shows where the test fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world["WORLD_SIZE"] = str(len(arguments))
    context = get_context("fork")
    processes = [
        context.Process(
            target=_rank, args=(work, given, world | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        )
        for rank, given in enumerate(arguments)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(patience)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def _rank(work, given, world):
    os.environ.update(world)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(int(world["RANK"]))  # forked processes would draw the same where processes of their own do not
    work(*given)
