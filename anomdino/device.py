"""One switch for where the networks run."""

from __future__ import annotations

import logging
import os
import shutil
from functools import cache
from typing import TYPE_CHECKING

from anomdino.errors import BackendMissing, ConfigError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def resolve_device(name: str = "auto") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:i`` or ``mps`` into a device that is there.

    ``auto`` takes CUDA, then CPU, and says so: by a warning where the machine has a GPU that torch cannot use, which is
    seldom meant, else as an information. A device that is named but not there is an error, never a silent fallback.

    Raises:
        ConfigError: The name is none of those.
        BackendMissing: The named device is not available; the message says what is.
    """
    import torch

    settle_vector_maths()
    kind, _, index = name.partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (index and not (kind == "cuda" and index.isdigit())):
        raise ConfigError("device", f"unknown device '{name}'", "use auto, cpu, cuda, cuda:<number> or mps")
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        _tell_of_cpu()
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= count:
        have = f"cuda:0 .. cuda:{count - 1}" if count else "only the CPU"
        raise BackendMissing(name, f"is not available here: there is {have}", "use device: auto or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise BackendMissing(name, "is not available here", "use device: auto or cpu")
    return torch.device(name)


@cache
def settle_vector_maths() -> None:
    """Let one thread alone call MKL's vector functions first: results of a process then never depend on timing.

    The first call of exp or log of float tensors on the CPU finds out the kind of processor, without a lock: of two
    threads that make it at the same time one may read a number that is not yet final, and takes kernels of half the
    digits, once (MKL 2024.2, `mkl_vml_serv_cpu_detect`; a few processes of a hundred). One number is computed by one
    thread; builds without MKL lose nothing.
    """
    import torch

    torch.zeros(1).exp()


@cache
def _tell_of_cpu() -> None:
    """Say, once a process, that ``auto`` means the CPU."""
    import torch

    if not _has_nvidia():
        log.info("device auto: there is no CUDA device, networks run on the CPU")
        return
    reason = (
        "cannot use it (driver too old, or another program holds it?)"
        if torch.version.cuda
        else "is built for the CPU alone"
    )
    log.warning(
        "device auto: networks run on the CPU, for torch %s %s; this machine has an NVIDIA driver. "
        "`nvidia-smi` shows its state, `device: cpu` says that the CPU is meant",
        torch.__version__,
        reason,
    )


def _has_nvidia() -> bool:
    """Tell whether the machine has an NVIDIA driver whose devices are not hidden from this process."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in {"", "-1"}
    return not hidden and shutil.which("nvidia-smi") is not None


def cpu_has_bfloat16() -> bool:
    """Tell whether the processor computes in bfloat16 (AVX512-BF16, and AMX, which comes with it)."""
    import torch

    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked()) if asked is not None else False
