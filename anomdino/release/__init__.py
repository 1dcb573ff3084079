"""The released model that is used where no pipeline has been trained."""

from __future__ import annotations

from pathlib import Path


def released_folder(name: str = "light") -> Path | None:
    """Find a released model of this installation: a folder with ``params.yaml`` and ``models/``.

    Returns:
        The folder, or ``None`` when this installation carries no complete model of that name.
    """
    folder = Path(__file__).parent / name
    parts = [folder / "models" / part / "config.json" for part in ("rpl", "adt")]
    return folder if all(part.is_file() for part in parts) else None
