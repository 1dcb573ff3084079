"""How much is said: the level of the log, and bars that inform on a terminal and are silent elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from anomdino.errors import ConfigError

Item = TypeVar("Item")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def log_level() -> str:
    """Give the level of the log that the environment asks for, ``ANOMDINO_LOG``; ``INFO`` where it does not.

    Raises:
        ConfigError: It asks for none of the levels.
    """
    asked = os.environ.get("ANOMDINO_LOG") or "INFO"
    if asked.upper() not in LEVELS:
        raise ConfigError(
            "ANOMDINO_LOG", f"is '{asked}'", f"set it to one of {', '.join(LEVELS)}, or not at all"
        )
    return asked.upper()


def track(items: Iterable[Item], what: str, total: int | None = None, unit: str = "img") -> Iterator[Item]:
    """Iterate over ``items`` with a bar that shows count, rate and time left, unless the log is told to be quiet.

    Args:
        items: What is iterated over.
        what: The name before the bar, for example ``score synthetic_road``.
        total: Number of items where ``items`` has no length.
        unit: Name of one item in the rate.
    """
    shown = sys.stderr.isatty() and logging.getLogger(__name__).isEnabledFor(logging.INFO)
    return iter(tqdm(items, desc=what, total=total, unit=unit, disable=not shown, leave=False))
