"""Per-image, per-component and histogram results as parquet tables whose columns document themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anomdino.errors import DataError
from anomdino.evaluation.bootstrap import Float64, ImageHistograms
from anomdino.io.atomic import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Columns = Mapping[str, tuple[str, str]]
Row = Mapping[str, Any]
_PART = 64

IMAGES: Columns = {
    "benchmark": ("string", "name of the benchmark"),
    "key": ("string", "key of the image"),
    "output": ("string", "output, or `mask` for the mask that the method itself decides on"),
    "tags": ("string", "tags of the image, joined by commas"),
    "height": ("int32", "image height in pixels"),
    "width": ("int32", "image width in pixels"),
    "roi_pixels": ("int64", "pixels that are not void"),
    "anomaly_pixels": ("int64", "anomalous pixels"),
    "ap": ("float64", "average precision of this image alone; null without both classes"),
    "auroc": ("float64", "AUROC of this image alone"),
    "fpr95": ("float64", "FPR at the first recall >= 0.95 of this image alone"),
    "best_f1": ("float64", "largest F1 of this image alone"),
    "threshold": (
        "float64",
        "threshold of the mask, predicted where score > threshold; null for a method's own mask",
    ),
    "true_positive_pixels": ("int64", "anomalous pixels inside the mask"),
    "false_positive_pixels": ("int64", "in-distribution pixels inside the mask"),
    "iou": ("float64", "pixel IoU of the mask inside the region of interest; null when both are empty"),
    "gt_components": ("int32", "ground-truth components that count"),
    "predicted_components": ("int32", "predicted components that count"),
    "missed_25": ("int32", "ground-truth components with sIoU < 0.25"),
    "missed_50": ("int32", "ground-truth components with sIoU < 0.50"),
    "missed_75": ("int32", "ground-truth components with sIoU < 0.75"),
    "false_25": ("int32", "predicted components with PPV < 0.25"),
    "false_50": ("int32", "predicted components with PPV < 0.50"),
    "false_75": ("int32", "predicted components with PPV < 0.75"),
    "siou": ("float64", "mean sIoU of the ground-truth components"),
    "ppv": ("float64", "mean PPV of the predicted components"),
    "counts": ("list<int32>", "found, missed and false components at the 11 sIoU thresholds, 33 numbers"),
    "clean": ("bool", "whether the image holds no anomalous pixel"),
    "verdict_clean": ("bool", "whether no predicted component is left: the image is called clean"),
    "score_min": ("float32", "smallest score of the image"),
    "score_max": ("float32", "largest score of the image"),
    "boxes": ("int32", "boxes of the detector; null without a detector"),
}

COMPONENTS: Columns = {
    "benchmark": ("string", "name of the benchmark"),
    "key": ("string", "key of the image"),
    "output": ("string", "output, or `mask` for the mask that the method itself decides on"),
    "kind": ("string", "gt or predicted"),
    "index": ("int32", "number of the component in its image and kind"),
    "size": ("int64", "pixels inside the region of interest"),
    "x0": ("int32", "box of the component, left, inclusive"),
    "y0": ("int32", "top, inclusive"),
    "x1": ("int32", "right, exclusive"),
    "y1": ("int32", "bottom, exclusive"),
    "siou": ("float64", "sIoU with the components of the other kind"),
    "covered": ("float64", "share of its pixels on the other kind; the PPV of a predicted component"),
    "size_group": ("string", "tiny, small, medium or large: under 0.05, 0.5, 5 % of the image, or more"),
    "distance_band": (
        "string",
        "far, middle, near or close: bottom edge above 45, 60, 80 % of the image height, or below",
    ),
}

HISTOGRAMS: Columns = {
    "key": ("string", "key of the image"),
    "output": ("string", "output"),
    "threshold": (
        "list<float64>",
        "descending lower edges of the bins, the same for all images of an output",
    ),
    "tp": ("list<float64>", "anomalous pixels in each bin, interpolated between the image's own scores"),
    "fp": ("list<float64>", "in-distribution pixels in each bin, likewise"),
}


def write_table(path: Path, rows: Sequence[Row], columns: Columns) -> None:
    """Write rows as parquet, whole or not at all; each column's field carries its description.

    Args:
        path: Final file.
        rows: One mapping a row; missing values are None.
        columns: Type and description by name.
    """
    import pyarrow as pa

    content = {name: [row.get(name) for row in rows] for name in columns}
    write_parts(path, [pa.Table.from_pydict(content, schema=_schema(columns))], columns)


def write_parts(path: Path, parts: Iterable[pa.Table], columns: Columns) -> None:
    """Write a table part by part, one row group each; see :func:`write_table`."""
    import pyarrow.parquet as pq

    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, _schema(columns), compression="zstd") as writer,
    ):
        for part in parts:
            writer.write_table(part)


def histogram_parts(keys: Sequence[str], histograms: Mapping[str, ImageHistograms]) -> Iterator[pa.Table]:
    """Give the rows of ``HISTOGRAMS``, a row an image and output, 64 images at a time.

    Args:
        keys: Keys of the images, in the order of the histograms.
        histograms: Histograms of the images by output.
    """
    import pyarrow as pa

    def lists(values: Float64) -> Any:
        return pa.ListArray.from_arrays(
            np.arange(len(values) + 1, dtype=np.int32) * values.shape[1], values.ravel()
        )

    for output, run in histograms.items():
        for start in range(0, len(keys), _PART):
            some = keys[start : start + _PART]
            thresholds = np.broadcast_to(run.thresholds, (len(some), len(run.thresholds)))
            columns = {
                "key": pa.array(some),
                "output": pa.array([output] * len(some)),
                "threshold": lists(thresholds),
                "tp": lists(run.tp[start : start + _PART]),
                "fp": lists(run.fp[start : start + _PART]),
            }
            yield pa.table(columns, schema=_schema(HISTOGRAMS))


def _schema(columns: Columns) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field(name, _arrow_type(kind), metadata={"description": text})
            for name, (kind, text) in columns.items()
        ]
    )


def read_table(path: Path | str) -> pd.DataFrame:
    """Read a table written by :func:`write_table`.

    Raises:
        DataError: The file is missing or damaged.
    """
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path)
    except FileNotFoundError as error:
        raise DataError(path, "does not exist", "run the evaluate stage, or `anomdino evaluate`") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(path, f"is no parquet table ({error})", "remove it and evaluate again") from error


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    if kind.startswith("list<"):
        return pa.list_(_arrow_type(kind[5:-1]))
    return pa.bool_() if kind == "bool" else getattr(pa, kind)()
