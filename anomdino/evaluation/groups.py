"""Results by object size, by distance (image row) and by tag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

Row = Mapping[str, Any]

SIZES = (("tiny", 0.0005), ("small", 0.005), ("medium", 0.05), ("large", float("inf")))
BANDS = (("far", 0.45), ("middle", 0.6), ("near", 0.8), ("close", float("inf")))


def size_group(pixels: int, image_pixels: int) -> str:
    """Name the size of a component by its share of the image: tiny, small, medium or large."""
    return next(name for name, limit in SIZES if pixels / image_pixels < limit)


def distance_band(bottom: int, height: int) -> str:
    """Name how far away a component stands by the row of its bottom edge: far, middle, near or close."""
    return next(name for name, limit in BANDS if bottom / height < limit)


@lru_cache(maxsize=64)
def band_rows(height: int) -> dict[str, slice]:
    """Divide the rows of an image among the bands: a row belongs where a component that ends on it does."""
    names = [distance_band(row + 1, height) for row in range(height)]
    starts = {name: names.index(name) for name in dict.fromkeys(names)}
    return {name: slice(start, start + names.count(name)) for name, start in starts.items()}


def component_groups(rows: Iterable[Row], column: str, order: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Summarise component rows of one output by a column.

    Args:
        rows: Rows of the component table.
        column: ``size_group`` or ``distance_band``.
        order: Values of the column in the order wanted.

    Returns:
        By value: ``gt`` components, ``missed`` at sIoU 0.25, mean ``sIoU``, ``predicted`` components and
        ``false`` ones at PPV 0.25; a mean over nothing is None.
    """
    listed = list(rows)
    return {name: _summary([row for row in listed if row[column] == name]) for name in order}


def tag_groups(
    tags: Mapping[str, Iterable[str]], summarise: Callable[[list[str]], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Summarise images by tag.

    Args:
        tags: The tags of each image, by key.
        summarise: Function from the keys of the images with a tag to its results.
    """
    keys: dict[str, list[str]] = {}
    for key, named in tags.items():
        for tag in named:
            keys.setdefault(tag, []).append(key)
    return {tag: summarise(keys[tag]) for tag in sorted(keys)}


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    gt = [row["siou"] for row in rows if row["kind"] == "gt"]
    predicted = [row["covered"] for row in rows if row["kind"] == "predicted"]
    return {
        "gt": len(gt),
        "missed": sum(siou < 0.25 for siou in gt),
        "sIoU": sum(gt) / len(gt) if gt else None,
        "predicted": len(predicted),
        "false": sum(ppv < 0.25 for ppv in predicted),
    }
