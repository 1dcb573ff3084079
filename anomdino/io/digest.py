"""What tells one content of a file, or of parameters, from another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def file_sha256(path: Path | str) -> str:
    """Compute the SHA-256 of a file, which is read in parts, in hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_sha256(content: Any) -> str:
    """Compute the SHA-256 of values, as JSON with its keys in order, in hexadecimal digits.

    Args:
        content: JSON values; any other one counts by its text.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
