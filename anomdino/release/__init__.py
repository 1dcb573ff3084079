"""The released model that is used where no pipeline has been trained."""

from __future__ import annotations

from pathlib import Path


def released_folder() -> Path | None:
    """Find the released model of this installation: a folder with ``params.yaml`` and ``models/``.

    Returns:
        The folder, or ``None`` when this installation carries no complete one.
    """
    folder = Path(__file__).parent / "light"
    parts = [folder / "models" / part / "config.json" for part in ("rpl", "adt")]
    return folder if all(part.is_file() for part in parts) else None
