"""The line between training and evaluation data, held by code (docs/method.md 4: honest protocol)."""

from __future__ import annotations

from pathlib import Path

from anomdino.errors import ProtocolError
from anomdino.io.atomic import atomic_write_text
from anomdino.io.listing import walk

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
        ProtocolError: A path, one of its parents, or (for a folder) something below it, links followed, carries the
            marker or lies in a folder that does.
    """
    marked: dict[Path, Path | None] = {}
    for path in map(Path, paths):
        below = walk(path) if path.is_dir() else ()
        linked = (entry for entry in below if entry.is_symlink() or entry.name == MARKER)
        for place in (path, *linked):
            real = place.resolve()
            holder = _holder(real if real.is_dir() else real.parent, marked)
            if holder is not None:
                raise ProtocolError(
                    path,
                    f"is evaluation data ({holder} is marked {MARKER}): training must never read it",
                    "train on composed images or on your own training folder",
                )


def _holder(folder: Path, known: dict[Path, Path | None]) -> Path | None:
    """Give the marked folder among a folder and its parents."""
    if folder not in known:
        if (folder / MARKER).is_file():
            known[folder] = folder
        else:
            known[folder] = None if folder.parent == folder else _holder(folder.parent, known)
    return known[folder]
