"""Curves and sample overlays for DVCLive, where it is installed and asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)


class Live:
    """Writes curves to ``folder`` as DVCLive does, one plot per phase and value.

    Args:
        folder: Where the plots go.

    Raises:
        ImportError: DVCLive is not installed.
    """

    def __init__(self, folder: Path) -> None:
        import dvclive

        self._live = dvclive.Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)

    def record(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of a history record at its step."""
        self._live.step = int(record["step"])
        for name, value in record.items():
            if name not in {"phase", "step"}:
                self._live.log_metric(f"{record['phase']}/{name}", float(value), plot=True)

    def image(self, name: str, picture: npt.NDArray[np.uint8]) -> None:
        """Log an overlay, uint8 (H, W, 3) RGB."""
        self._live.log_image(f"{name}.png", picture)

    def close(self) -> None:
        """Finish the files."""
        self._live.end()


def open_live(folder: Path, wanted: bool) -> Live | None:
    """Open the log, or say in one line why there is none."""
    if not wanted:
        return None
    try:
        return Live(folder)
    except ImportError:
        log.info("curves go to history.json alone: dvclive is not installed (`pip install dvclive`)")
        return None
