"""Boxes of detected anomalous objects, and their files (COCO results and parquet)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError
from anomdino.io.atomic import atomic_path, atomic_write_json

CATEGORY_ID = 1
CATEGORY_NAME = "ood-object"
BOX_FORM = 'every box is {"image_id": ..., "bbox": [x, y, width, height] in pixels, "score": in [0, 1]}'


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one image.

    Attributes:
        xyxy: float32 (N, 4), pixels of the original image, half-open: x0 <= x < x1.
        scores: float32 (N,), confidence in [0, 1].
        details: Further numbers of every box by name, float32 (N,) each; they go into the parquet table.
    """

    xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    details: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "xyxy", np.asarray(self.xyxy, np.float32).reshape(-1, 4))
        object.__setattr__(self, "scores", np.asarray(self.scores, np.float32).reshape(-1))
        if len(self.xyxy) != len(self.scores):
            raise ValueError(f"{len(self.xyxy)} boxes but {len(self.scores)} scores")
        details = {name: np.asarray(values, np.float32) for name, values in self.details.items()}
        object.__setattr__(self, "details", details)
        odd = {name: values.shape for name, values in details.items() if values.shape != self.scores.shape}
        if odd:
            raise ValueError(f"{len(self.scores)} boxes but details of shape {odd}")

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty() -> Boxes:
        """No box at all: shapes (0, 4) and (0,)."""
        return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    def subset(self, index: npt.NDArray[Any] | slice) -> Boxes:
        """The boxes that an index or a mask chooses, with their details."""
        details = {name: values[index] for name, values in self.details.items()}
        return Boxes(self.xyxy[index], self.scores[index], details)

    def kept(self, threshold: float) -> Boxes:
        """The boxes with a score of at least ``threshold``."""
        return self.subset(self.scores >= threshold)

    def clipped(self, size: tuple[int, int]) -> Boxes:
        """The boxes cut to an image of ``size`` (H, W); those that end up without area are dropped.

        Raises:
            DataError: A coordinate or a score is NaN or infinite.
        """
        if not (np.isfinite(self.xyxy).all() and np.isfinite(self.scores).all()):
            raise DataError("boxes", "hold NaN or infinite numbers", "the detector diverged: train it again")
        height, width = size
        limit = np.array([width, height, width, height], np.float32)
        cut = np.clip(self.xyxy, 0, limit)
        keep = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
        return Boxes(cut, self.scores, self.details).subset(keep)

    def on_pixels(self) -> Boxes:
        """The boxes that cover a pixel, that is, its centre; one between two rows of centres covers none."""
        low, high = np.ceil(self.xyxy[:, :2] - 0.5), np.ceil(self.xyxy[:, 2:] - 0.5)
        return self.subset((high > low).all(axis=1))

    def as_written(self, size: tuple[int, int]) -> Boxes:
        """The boxes as a file of results holds them, and :func:`read_box_results` gives them back.

        They are cut to an image of ``size`` (H, W), corners rounded to hundredths of a pixel, scores to millionths; those
        that end up without area are dropped.

        Raises:
            DataError: A coordinate or a score is NaN or infinite.
        """
        cut = self.clipped(size)
        corners = np.round(cut.xyxy.astype(np.float64), 2).astype(np.float32)
        scores = np.round(cut.scores.astype(np.float64), 6).astype(np.float32)
        keep = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        return Boxes(corners, scores, cut.details).subset(keep)

    def mask(self, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """The union of the boxes as a mask, bool (H, W); a pixel is inside when its centre is."""
        return self.coverage(size) > 0

    def coverage(self, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """The highest confidence of the boxes that cover a pixel, 0 outside: float32 (H, W)."""
        height, width = size
        canvas = np.zeros((height, width), np.float32)
        for index in np.argsort(self.scores, kind="stable"):
            x0, y0, x1, y1 = np.clip(
                np.ceil(self.xyxy[index] - 0.5), 0, [width, height, width, height]
            ).astype(int)
            canvas[y0:y1, x0:x1] = self.scores[index]
        return canvas


def image_id(key: str) -> int:
    """The stable number of an image: 52 bits of the SHA-256 of its key, Unicode or not, safe in JSON and JavaScript."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 12


def write_box_results(
    path: Path | str,
    boxes: Mapping[str, Boxes],
    sizes: Mapping[str, tuple[int, int]],
) -> None:
    """Write COCO results (``path``) and, beside it, a parquet table with one row an image, of the same boxes.

    Boxes are written as :meth:`Boxes.as_written` gives them: x + width and y + height are the rounded corner. The JSON
    is the flat list that pycocotools' ``loadRes`` reads. The table has the columns image, image_id, height, width and
    the lists x0, y0, x1, y1, score, and one list for each of the boxes' details; an image without boxes has empty lists.

    Args:
        path: Final ``.json`` file.
        boxes: Boxes of every image by key, also of those without any.
        sizes: (H, W) of every image by key.

    Raises:
        DataError: A coordinate or a score is NaN or infinite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    boxes = {key: found.as_written(sizes[key]) for key, found in boxes.items()}
    results = [
        {
            "image_id": image_id(key),
            "category_id": CATEGORY_ID,
            "bbox": [x0 / 100, y0 / 100, (x1 - x0) / 100, (y1 - y0) / 100],
            "score": round(float(score), 6),
        }
        for key in sorted(boxes)
        for (x0, y0, x1, y1), score in zip(_hundredths(boxes[key]), boxes[key].scores, strict=True)
    ]
    details = sorted({name for found in boxes.values() for name in found.details})
    rows = [
        {
            "image": key.encode("utf-8", "backslashreplace").decode(),  # a name may be no Unicode
            "image_id": image_id(key),
            "height": sizes[key][0],
            "width": sizes[key][1],
            **{name: boxes[key].xyxy[:, i].tolist() for i, name in enumerate(("x0", "y0", "x1", "y1"))},
            "score": boxes[key].scores.tolist(),
            **{
                name: boxes[key].details[name].tolist() if name in boxes[key].details else []
                for name in details
            },
        }
        for key in sorted(boxes)
    ]
    columns = pa.schema(
        [("image", pa.string()), ("image_id", pa.int64()), ("height", pa.int32()), ("width", pa.int32())]
        + [(name, pa.list_(pa.float32())) for name in ("x0", "y0", "x1", "y1", "score", *details)]
    )
    with atomic_path(path.with_suffix(".parquet")) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=columns), temporary)
    atomic_write_json(path, results, indent=None)


def _hundredths(boxes: Boxes) -> list[list[int]]:
    corners: list[list[int]] = np.rint(boxes.xyxy.astype(np.float64) * 100).astype(np.int64).tolist()
    return corners


def read_box_results(path: Path | str, keys: Iterable[str]) -> dict[str, Boxes]:
    """Read COCO results for the images ``keys``.

    Args:
        path: A JSON list of COCO results, or a COCO data set whose annotations carry scores and whose images carry
            file names.
        keys: Keys of the images; those without boxes get empty ones.

    Raises:
        DataError: The file is missing or damaged, a box belongs to none of ``keys``, has no confidence in [0, 1], or is
            not four finite numbers, of which width and height are not negative.
    """
    path, keys = Path(path), list(keys)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(path, "does not exist", "run the detect stage first: `dvc repro detect`") from error
    except (ValueError, OSError) as error:
        raise DataError(path, f"is no JSON ({error})", BOX_FORM) from error
    by_id: dict[Any, str] = {image_id(key): key for key in keys}
    names: dict[Any, str] = {}
    results = content
    if isinstance(content, dict):
        if not isinstance(content.get("images"), list) or not isinstance(content.get("annotations"), list):
            raise DataError(path, "is no COCO data set: it lacks the list images or annotations", BOX_FORM)
        names = dict(map(_named(path), content["images"]))
        by_id = _keys_of(path, names, keys)
        results = content["annotations"]
    if not isinstance(results, list):
        raise DataError(path, "is neither a list of COCO results nor a COCO data set", BOX_FORM)
    grouped: dict[str, list[tuple[float, ...]]] = {key: [] for key in keys}
    for number, result in enumerate(results):
        image, box = _checked(path, number, result)
        if image not in by_id:
            which = f"'{names[image]}'" if image in names else f"the unknown image_id {image}"
            raise DataError(
                path,
                f"has a box for {which}, of which there is no map or image here",
                f"were images renamed, or is one missing? Known: {', '.join(keys[:5])}{' ...' if keys[5:] else ''}",
            )
        grouped[by_id[image]].append(box)
    return {key: _from_xywh(items) for key, items in grouped.items()}


def _keys_of(path: Path, names: Mapping[Any, str], keys: Iterable[str]) -> dict[Any, str]:
    """Give the key of every named image that has one: the name itself, or the one key that ends in it.

    Raises:
        DataError: A name without a folder fits several keys.
    """
    by_name: dict[str, list[str]] = {}
    for key in keys:
        by_name.setdefault(Path(key).name, []).append(key)
        if "/" in key:
            by_name[key] = [key]
    found: dict[Any, str] = {}
    for number, name in names.items():
        fitting = by_name.get(name, [])
        exact = [key for key in fitting if key == name] or fitting
        if len(exact) > 1:
            raise DataError(
                path,
                f"names an image '{name}', which may be {' or '.join(exact[:5])}",
                "give names with their folders",
            )
        if exact:
            found[number] = exact[0]
    return found


def _named(path: Path) -> Callable[[Any], tuple[Any, str]]:
    def name(image: Any) -> tuple[Any, str]:
        try:
            return image["id"], str(Path(image["file_name"]).with_suffix(""))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(path, f"has an image without id and file_name: {image}", BOX_FORM) from error

    return name


def _checked(path: Path, number: int, result: Any) -> tuple[Any, tuple[float, ...]]:
    """Give image id, and x, y, width, height and score of one result."""
    try:
        image, score = result["image_id"], float(result["score"])
        x, y, width, height = (float(value) for value in result["bbox"])
        hash(image)
    except (KeyError, TypeError, ValueError) as error:
        lacks = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise DataError(path, f"box {number} {lacks}: {str(result)[:120]}", BOX_FORM) from error
    if not all(map(math.isfinite, (x, y, width, height, score))):
        raise DataError(path, f"box {number} holds NaN or infinite numbers", BOX_FORM)
    if not 0 <= score <= 1:
        raise DataError(path, f"box {number} has the score {score:g}", "confidences are shares, in [0, 1]")
    if width < 0 or height < 0:
        raise DataError(path, f"box {number} is {width:g} wide and {height:g} high", BOX_FORM)
    return image, (x, y, width, height, score)


def _from_xywh(items: list[tuple[float, ...]]) -> Boxes:
    if not items:
        return Boxes.empty()
    rows = np.array(items, np.float64)
    corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
    return Boxes(corners.astype(np.float32), rows[:, 4].astype(np.float32))
