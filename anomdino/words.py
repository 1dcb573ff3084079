"""Words of messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Give a number with its noun: ``1 photo``, ``2 photos``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
