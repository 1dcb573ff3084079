"""Reading published checkpoints without running their code, under RPL's names."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from anomdino.errors import CheckpointError
from anomdino.io.digest import file_sha256
from anomdino.io.tensors import DAMAGED_CHECKPOINT, write_tensors
from anomdino.scorer.base import load_strictly

WRAPPERS = ("model", "model_state", "state_dict")
CLOSED_SET_EXTRA = "criterion.nll_loss.weight"
COUNTER = "num_batches_tracked"
CLOSED_SET, TRAINED = "closed-set", "trained"

_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    _NUMPY_SCALAR,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]
"""Constructors of plain numbers that published checkpoints hold beside their tensors (epoch, best mIoU)."""


def read_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint; no code in the file is run.

    Dictionaries under ``model``, ``model_state`` and ``state_dict`` are unwrapped in turn, and the prefix
    ``module.`` that data-parallel training leaves is removed.

    Args:
        path: A safetensors file, or one written by ``torch.save`` (zip or old format).

    Returns:
        Tensors on the CPU by parameter name.

    Raises:
        CheckpointError: The file is missing or damaged, holds something else than tensors, or needs code to
            be unpickled (the message names the global).
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(path, "does not exist", "check the path, or run `dvc repro download`")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = unwrap(content)
    if not state:
        raise CheckpointError(path, "holds no tensors by name", "expected a state_dict, wrapped or not")
    return state


def unwrap(content: Any) -> dict[str, Tensor]:
    """Take the state_dict out of its wrappers; anything that is no tensor is left out."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        return {}
    return {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def with_counters(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Add the step counters of batch normalisation that files older than PyTorch 0.4.1 lack."""
    counters = {name: value for name, value in network.state_dict().items() if name.endswith(COUNTER)}
    return {**{name: torch.zeros_like(value) for name, value in counters.items()}, **state}


def is_closed_set(state: Mapping[str, Tensor]) -> bool:
    """Tell a plain DeepLabV3+ WideResNet-38 (NVIDIA's ``cityscapes_best.pth``) from a trained RPL network."""
    return "mod1.conv1.weight" in state and not any("residual_block" in name for name in state)


def closed_set_to_rpl(state: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Give the weights from which RPL's training starts, as its published code takes NVIDIA's.

    Every tensor moves below ``branch1.``; those of the ASPP and its reduction are also the residual block's
    first weights. ``atten_aspp_final`` and ``proj_head`` are drawn by Kaiming's normal rule; the bias of the
    latter is zero.

    Args:
        state: Tensors of the closed-set network, without ``module.``.
        seed: Seed of the two layers that are drawn.

    Returns:
        Tensors by RPL's names, for a strict load.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == CLOSED_SET_EXTRA:
            continue
        converted[f"branch1.{name}"] = value
        if name.startswith("aspp."):
            converted[f"branch1.residual_block.atten_{name}"] = value.clone()
        elif name.startswith("bot_aspp."):
            converted[f"branch1.residual_block.{name.replace('bot_aspp', 'bot_atten_aspp', 1)}"] = (
                value.clone()
            )
    if "bot_aspp.weight" in state and "final.0.weight" in state:
        reduced, decoder = state["bot_aspp.weight"].shape[0], state["final.0.weight"].shape[1]
        generator = torch.Generator().manual_seed(seed)
        block = "branch1.residual_block."
        for name in ("atten_aspp_final.weight", "proj_head.proj.0.weight"):
            weight = torch.empty(decoder, reduced, 1, 1)
            converted[block + name] = nn.init.kaiming_normal_(weight, generator=generator)
        converted[block + "proj_head.proj.0.bias"] = torch.zeros(decoder)
    return converted


def rpl_state(path: Path | str, seed: int = 0) -> tuple[dict[str, Tensor], str]:
    """Read a checkpoint as RPL's network: trained (``rev3.pth``) or closed-set (``cityscapes_best.pth``).

    Returns:
        Tensors by RPL's names, and ``trained`` or ``closed-set``. A file that :func:`convert_checkpoint` made of a
        closed-set one stays ``closed-set``: it has a residual block by name, but one that was drawn.
    """
    state = read_checkpoint(path)
    if is_closed_set(state):
        return closed_set_to_rpl(state, seed), CLOSED_SET
    return state, _metadata(Path(path)).get("origin", TRAINED)


def convert_checkpoint(source: Path | str, target: Path | str, seed: int = 0) -> dict[str, str]:
    """Convert a published RPL or DeepLabV3+ WideResNet-38 checkpoint to safetensors with RPL's names.

    Args:
        source: The published file.
        target: The ``.safetensors`` file to write, whole or not at all.
        seed: Seed of the layers that a closed-set file does not have.

    Returns:
        The metadata that was stored: format, architecture, origin (``trained`` or ``closed-set``), source
        (file name), source_sha256.

    Raises:
        CheckpointError: The source cannot be read safely or does not fit the network.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise CheckpointError(target, "is no name for a safetensors file", "end it in .safetensors")
    state, origin = rpl_state(source, seed)
    from anomdino.scorer.wide_resnet38 import WideResNet38Scorer

    with torch.device("meta"):
        empty = WideResNet38Scorer()
    network = empty.to_empty(device="cpu")
    load_strictly(network, with_counters(state, network), source)
    metadata = {
        "format": "pt",
        "architecture": "wide_resnet38",
        "origin": origin,
        "source": source.name,
        "source_sha256": file_sha256(source),
    }
    tensors = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    write_tensors(target, tensors, metadata)
    return metadata


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            path, f"is damaged or no safetensors file ({error})", "fetch it again"
        ) from error


def _metadata(path: Path) -> dict[str, str]:
    """Give the texts that a safetensors file carries; of another file nothing."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(str(path), "pt") as stored:
        return dict(stored.metadata() or {})


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global:?|type)\s+(?:GLOBAL\s+)?([A-Za-z_][\w.]*\.[\w.]+)", str(error))
        if found is None:
            raise CheckpointError(path, "is damaged or no PyTorch checkpoint", "fetch it again") from error
        raise CheckpointError(
            path,
            f"holds pickled code: '{found.group(1)}' would have to be imported to read it, which is refused",
            "if you trust its origin, load it once on a machine without secrets with "
            "torch.load(path, weights_only=False), keep the tensors alone, "
            "torch.save({k: v for k, v in state.items()}, new_path), and convert the new file",
        ) from error
    except DAMAGED_CHECKPOINT as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            path, f"is damaged or no PyTorch checkpoint ({reason})", "fetch it again"
        ) from error
