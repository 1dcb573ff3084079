"""Files of networks that lie beside a scorer's weights and belong to these alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from anomdino.errors import CheckpointError
from anomdino.io.digest import file_sha256
from anomdino.io.tensors import write_tensors
from anomdino.scorer.base import WEIGHTS_FILE


def save_beside(
    path: Path, network: nn.Module, file_format: str, details: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write a network beside the weights of the scorer that it was trained for, whole or not at all.

    Args:
        path: The safetensors file, in the scorer's folder.
        network: The network.
        file_format: Name of the format, which :func:`load_beside` asks for.
        details: What else the file's metadata should say; JSON values.
        half: Store weights in half precision; single numbers stay as they are.
    """
    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() and tensor.dim() else tensor)
        .detach()
        .cpu()
        .contiguous()
        for name, tensor in network.state_dict().items()
    }
    content = {"scorer": file_sha256(path.parent / WEIGHTS_FILE), **details}
    write_tensors(path, tensors, {"format": file_format, "content": json.dumps(content)})


def load_beside(
    path: Path, file_format: str, what: str, asked: str, cure: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file of :func:`save_beside`. No code of the file is executed.

    Args:
        path: The file.
        file_format: Name of its format.
        what: What it holds, for messages.
        asked: Which parameter asks for it.
        cure: What helps.

    Returns:
        What its metadata says, and the weights.

    Raises:
        CheckpointError: It does not exist, is damaged, is of another format, or belongs to another scorer.
    """
    if not path.is_file():
        raise CheckpointError(path, f"does not exist, and {asked}", cure)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = dict(json.loads(metadata["content"]))
        digest = content["scorer"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"is damaged, or no {what} ({error})", cure) from error
    if metadata.get("format") != file_format:
        raise CheckpointError(path, f"is of the format {metadata.get('format')}, not {file_format}", cure)
    if digest != file_sha256(path.parent / WEIGHTS_FILE):
        raise CheckpointError(path, "was trained for another scorer than the one beside it", cure)
    return content, tensors
