"""Writing the report: images stream in one by one, the page is closed at the end."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.io.atomic import atomic_write_text
from anomdino.io.boxes import Boxes
from anomdino.progress import track
from anomdino.report.published import PublishedTable
from anomdino.viz.overlay import ScoreRange, shrunk

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
EMBEDDED_LIMIT = 80


@dataclass(frozen=True)
class Column:
    """A column of a metrics table.

    Attributes:
        key: Name of the value in a row.
        name: Heading.
        better: ``high``, ``low`` or ``none``; decides which value is set in bold.
        scale: Factor before printing, 100 for shares that are printed as percent.
        digits: Digits after the point.
        hint: Shown when the pointer rests on the heading.
    """

    key: str
    name: str
    better: str = "high"
    scale: float = 100.0
    digits: int = 2
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """A metrics table: rows by name, each a mapping from column key to value, ``None`` where there is none.

    Attributes:
        title: For example the benchmark's name.
        columns: In the order of printing.
        rows: ``{row name: {column key: value}}``.
        subtitle: For example protocol and image count.
        row_name: Heading of the first column.
        intervals: 95 % intervals, ``{row name: {column key: (low, high)}}``.
        reasons: Why a value is missing, ``{row name: {column key: text}}``.
        published: Published results, shown in a column of their own beside the table.
    """

    title: str
    columns: Sequence[Column]
    rows: Mapping[str, Mapping[str, float | None]]
    subtitle: str = ""
    row_name: str = "output"
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    reasons: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    published: Sequence[PublishedTable] = ()


@dataclass(frozen=True, eq=False)
class ImageEntry:
    """One image of the gallery.

    Attributes:
        benchmark: Name of its set.
        key: Its key.
        image: uint8 (H, W, 3), RGB.
        score: float32 (H, W), the final score.
        mask: bool (H, W), the final mask.
        truth: uint8 (H, W), 0 / 1 / 255, or ``None`` without labels.
        boxes: Boxes in pixels of ``image``.
        span: The range of the threshold slider, one for the whole page.
        ap: Average precision of this image alone, or ``None``.
        missed: Missed components at sIoU 0.25, or ``None``.
        false: False components at 0.25, or ``None``.
        components: Ground-truth components, or ``None``.
    """

    benchmark: str
    key: str
    image: npt.NDArray[np.uint8]
    score: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    truth: npt.NDArray[np.uint8] | None
    boxes: Boxes
    span: ScoreRange
    ap: float | None = None
    missed: int | None = None
    false: int | None = None
    components: int | None = None


class ReportWriter:
    """Writes ``index.html`` and, for many images, their pictures beside it; holds an image a worker at a time.

    Args:
        folder: Output folder, replaced.
        images: Number of images to come; up to 80 are embedded in the page, more are written beside it.
        max_side: Longer side of a picture in the page.
    """

    def __init__(self, folder: Path | str, images: int, max_side: int = 720) -> None:
        self.folder, self.max_side = Path(folder), max_side
        self.embedded = images <= EMBEDDED_LIMIT
        self._entries: list[dict[str, Any]] = []
        self._scripts: list[str] = []
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def add(self, entry: ImageEntry) -> None:
        """Add an image to the gallery; its arrays are not kept."""
        self._append(*_record(entry, self.max_side))

    def add_all(
        self, loaders: Sequence[Callable[[], ImageEntry]], what: str = "report", workers: int = 2
    ) -> None:
        """Load and add images in the order given, several at a time.

        Args:
            loaders: Each gives an image when it is called.
            what: Name on the progress bar.
            workers: Threads.
        """
        with ThreadPoolExecutor(workers) as pool:
            prepared = pool.map(lambda load: _record(load(), self.max_side), loaders)
            for record, pictures in track(prepared, what, total=len(loaders)):
                self._append(record, pictures)

    def _append(self, record: dict[str, Any], pictures: dict[str, str]) -> None:
        number = len(self._entries)
        identity = f"i{number}"
        record |= {"id": identity, "order": number, "pictures": pictures if self.embedded else {}}
        if not self.embedded:
            name = f"images/{identity}.js"
            content = f"window.ANOMDINO_DATA[{json.dumps(identity)}] = {json.dumps(pictures)};\n"
            atomic_write_text(self.folder / name, content)
            self._scripts.append(name)
        self._entries.append(record)

    def finish(
        self,
        title: str,
        facts: Mapping[str, object],
        tables: Sequence[Table],
        plots: Sequence[str],
        summary_note: str = "",
        mask_name: str = "ADT-Net",
        boxes_name: str = "boxes",
        gallery_note: str = "",
    ) -> Path:
        """Write the page and return its path.

        Args:
            title: Heading of the page.
            facts: Short facts under the heading, such as seed and number of images.
            tables: Metrics, best values are set in bold.
            plots: SVG elements (:func:`anomdino.report.curves.curve_svg`).
            summary_note: One sentence on protocol above the tables.
            mask_name: What made the masks.
            boxes_name: What the boxes are.
            gallery_note: Why no image is shown, in place of the controls.
        """
        page = (
            environment()
            .get_template("report.html.j2")
            .render(
                title=title,
                facts=facts,
                tables=[_rendered(table) for table in tables],
                plots=plots,
                sets=sorted({str(entry["set"]) for entry in self._entries}),
                summary_note=summary_note,
                mask_name=mask_name,
                boxes_name=boxes_name,
                gallery_note=gallery_note,
                scripts=self._scripts,
                css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
                javascript=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
                entries_json=json.dumps(self._entries, allow_nan=False).replace("<", "\\u003c"),
            )
        )
        path = self.folder / "index.html"
        atomic_write_text(path, page)
        return path


def environment() -> Environment:
    """Give what renders the templates: every value is escaped, one that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)


def _record(entry: ImageEntry, max_side: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Give what the page says of an image, and its pictures."""
    pictures, size = _pictures(entry, max_side)
    height, width = entry.image.shape[:2]
    record: dict[str, Any] = {
        "set": entry.benchmark,
        "key": entry.key,
        "aspect": f"{size[1]} / {size[0]}",
        "range": [entry.span.low, entry.span.high],
        "boxes": [
            [
                *(round(float(v), 4) for v in (x0 / width, y0 / height, x1 / width, y1 / height)),
                round(float(c), 3),
            ]
            for (x0, y0, x1, y1), c in zip(entry.boxes.xyxy, entry.boxes.scores, strict=True)
        ],
        "facts": _facts(entry),
    }
    return record, pictures


def _facts(entry: ImageEntry) -> dict[str, Any]:
    valid = np.ones(entry.mask.shape, bool) if entry.truth is None else entry.truth != 255
    anomaly = np.zeros(entry.mask.shape, bool) if entry.truth is None else entry.truth == 1
    false_pixels = int((entry.mask & valid & ~anomaly).sum())
    return {
        "ap": None if entry.ap is None else round(float(entry.ap), 5),
        "ap_reason": _why_no_ap(entry.truth),
        "missed": entry.missed,
        "false": entry.false,
        "components": entry.components,
        "clean": entry.truth is not None and not bool(anomaly.any()),
        "false_area": round(false_pixels / max(1, int(valid.sum())), 6),
    }


def _why_no_ap(truth: npt.NDArray[np.uint8] | None) -> str:
    if truth is None:
        return "no labels"
    return "no in-distribution pixel" if (truth == 1).any() else "no anomaly"


def _pictures(entry: ImageEntry, max_side: int) -> tuple[dict[str, str], tuple[int, int]]:
    scale = min(1.0, max_side / max(entry.image.shape[:2]))
    size = (max(1, round(entry.image.shape[1] * scale)), max(1, round(entry.image.shape[0] * scale)))
    photo = cv2.resize(entry.image, size, interpolation=cv2.INTER_AREA)
    score = cv2.resize(entry.score.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    levels = (entry.span.unit(np.asarray(score, np.float32)) * 255).round().astype(np.uint8)
    marks = shrunk(entry.mask, size).astype(np.uint8)
    if entry.truth is not None:
        anomaly, labels = (
            shrunk(entry.truth == 1, size),
            cv2.resize(entry.truth, size, interpolation=cv2.INTER_NEAREST),
        )
        void = (labels == 255) & ~anomaly
        marks |= (anomaly.astype(np.uint8) << 1) | (void.astype(np.uint8) << 2)
    encoded = {
        "photo": _data_uri(".jpg", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82]),
        "score": _data_uri(".png", levels, [cv2.IMWRITE_PNG_COMPRESSION, 6]),
        "marks": _data_uri(".png", marks, [cv2.IMWRITE_PNG_COMPRESSION, 6]),
    }
    return encoded, (size[1], size[0])


def _data_uri(suffix: str, pixels: npt.NDArray[Any], options: list[int]) -> str:
    good, content = cv2.imencode(suffix, pixels, options)
    if not good:
        raise ValueError(f"cannot encode {pixels.shape} as {suffix}")
    kind = "jpeg" if suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content.tobytes()).decode()}"


def _rendered(table: Table) -> dict[str, Any]:
    best = {column.key: _printed(_best(column, table.rows), column) for column in table.columns}
    arrows = {"high": " ↑", "low": " ↓", "none": ""}
    rows = []
    for name, values in table.rows.items():
        cells = []
        for column in table.columns:
            value = values.get(column.key)
            interval = table.intervals.get(name, {}).get(column.key)
            cells.append(
                {
                    "text": _printed(value, column),
                    "best": value is not None and _printed(value, column) == best[column.key],
                    "interval": ""
                    if interval is None
                    else " .. ".join(_printed(v, column) for v in interval),
                    "reason": table.reasons.get(name, {}).get(column.key, ""),
                }
            )
        rows.append({"name": name, "cells": cells})
    columns = [{"name": c.name, "hint": c.hint, "arrow": arrows[c.better]} for c in table.columns]
    return {
        "title": table.title,
        "subtitle": table.subtitle,
        "row_name": table.row_name,
        "columns": columns,
        "rows": rows,
        "published": table.published,
        "lead": bool(table.intervals),
    }


def _best(column: Column, rows: Mapping[str, Mapping[str, float | None]]) -> float | None:
    """Give the value that is set in bold with all that are printed as it is, where there is a worse one as printed."""
    values = [value for row in rows.values() if (value := row.get(column.key)) is not None]
    if column.better == "none" or len({_printed(value, column) for value in values}) < 2:
        return None
    return max(values) if column.better == "high" else min(values)


def _printed(value: float | None, column: Column) -> str:
    return "-" if value is None else f"{value * column.scale:.{column.digits}f}"
