"""Random numbers that are the same on every run."""

from __future__ import annotations

import hashlib
import os
import random

import numpy as np


def derive_seed(seed: int, *stream: object) -> int:
    """Give a 63-bit seed for a named stream, independent of the other streams of ``seed``.

    ``derive_seed(7, "compose", 12)`` is the same on every machine and in every process (SHA-256 of the text).
    """
    text = "/".join(str(part) for part in (seed, *stream))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *stream: object) -> np.random.Generator:
    """Give numpy's generator for a named stream (see :func:`derive_seed`)."""
    return np.random.default_rng(derive_seed(seed, *stream))


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed Python, numpy and torch, whose vector functions are settled too (:func:`anomdino.device.settle_vector_maths`).

    Args:
        seed: Any non-negative integer.
        deterministic: Ask torch for deterministic algorithms (a warning, not an error, where there is none).
    """
    import torch

    from anomdino.device import settle_vector_maths

    settle_vector_maths()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - seeds what libraries draw from the legacy generator
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
