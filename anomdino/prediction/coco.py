"""The boxes of photos as a COCO data set, which programs for labels and detectors read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anomdino.io.boxes import CATEGORY_ID, CATEGORY_NAME, image_id

COCO = "coco.json"


def coco_of(lines: Iterable[Mapping[str, Any]], photos: Mapping[str, Path]) -> dict[str, Any]:
    """Give photos and their boxes as COCO detection JSON, an annotation a box.

    Args:
        lines: The photos that have results, as ``summary.json`` has them.
        photos: Paths by key, from which the suffixes come.

    Returns:
        ``images`` with the number of their key (:func:`anomdino.io.boxes.image_id`), which does not hang on other photos,
        and their path below the folder that was named; ``annotations`` with ``bbox`` as x, y, width, height in pixels,
        ``area`` and ``score`` in [0, 1]; ``categories``.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for line in lines:
        key, number = line["image"], image_id(line["image"])
        size = {"height": line["height"], "width": line["width"]}
        images.append({"id": number, "file_name": file_name(key, photos[key]), **size})
        for box in line["boxes"]:
            x0, y0, x1, y1 = box["xyxy"]
            wide, high = round(x1 - x0, 2), round(y1 - y0, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": CATEGORY_ID,
                    "bbox": [x0, y0, wide, high],
                    "area": round(wide * high, 2),
                    "iscrowd": 0,
                    "score": box["score"],
                }
            )
    categories = [{"id": CATEGORY_ID, "name": CATEGORY_NAME}]
    return {"images": images, "annotations": annotations, "categories": categories}


def file_name(key: str, photo: Path) -> str:
    """Give a photo's path below the folder that was named: its key, with the suffix that most keys leave out."""
    return key if key.endswith(photo.suffix) else key + photo.suffix
