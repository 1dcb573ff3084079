"""The line between training and evaluation data, held by code (docs/method.md 4: honest protocol)."""

from __future__ import annotations

from pathlib import Path

from anomdino.errors import ProtocolError
from anomdino.io.atomic import atomic_write_text

MARKER = "EVALUATION_ONLY"


def mark_evaluation_only(folder: Path | str) -> None:
    """Mark a folder, with everything below it, as data that no training stage may read."""
    atomic_write_text(
        Path(folder) / MARKER,
        "Images below this folder are for evaluation only. Training stages refuse to read them.\n",
    )


def refuse_evaluation_data(*paths: Path | str) -> None:
    """Check, before training reads them, that none of ``paths`` is evaluation data.

    Raises:
        ProtocolError: A path, one of its parents, or (for a folder) a folder below it carries the marker.
    """
    for path in map(Path, paths):
        resolved = path.resolve()
        holder = next(
            (folder for folder in (resolved, *resolved.parents) if (folder / MARKER).is_file()), None
        )
        if holder is None and resolved.is_dir():
            holder = next((marker.parent for marker in resolved.rglob(MARKER)), None)
        if holder is not None:
            raise ProtocolError(
                path,
                f"is evaluation data ({holder} is marked {MARKER}): training must never read it",
                "train on composed images or on your own training folder",
            )
