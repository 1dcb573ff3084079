"""Files of tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

from safetensors.torch import save_file
from torch import Tensor

from anomdino.io.atomic import atomic_path

DAMAGED_CHECKPOINT = (
    *(OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError),
    *(AttributeError, AssertionError, MemoryError, struct.error, BadZipFile),
)
"""What torch's weights-only reader raises on a file that is damaged, beside errors of unpickling."""
READABLE = 0o644
"""Mode of the files; the library leaves them to their owner alone."""


def write_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous tensors by name as safetensors, whole or not at all, for everyone to read.

    Args:
        path: The file.
        tensors: On any device; none shares memory with another.
        metadata: Texts that the file should carry. Several are written in any order.

    Raises:
        DiskError: See :func:`anomdino.io.atomic.atomic_path`.
    """
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, None if metadata is None else dict(metadata))
        temporary.chmod(READABLE)
