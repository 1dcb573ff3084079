"""What was found in photos as one COCO file, which annotation tools and pycocotools read."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from anomdino.errors import BackendMissing
from anomdino.io.atomic import atomic_path, disk_errors
from anomdino.io.boxes import CATEGORY_ID, CATEGORY_NAME, image_id
from anomdino.metrics.instances import components_as_instances
from anomdino.prediction.coco import file_name

INSTANCES = "instances.json"
_IN_MEMORY = 2**23


class InstanceFile:
    """Collects the instances of photo after photo on disk and writes them as one file; memory does not grow.

    The file is a COCO data set: ``images`` (photos without an anomaly too), one category, and an annotation for each
    8-connected component of the mask, with ``bbox`` [x, y, width, height] and ``area`` in pixels, ``segmentation`` as
    COCO's compressed run lengths, and, as COCO's results have it, ``score``: the mean of the final score inside.
    Images are numbered by :func:`anomdino.io.boxes.image_id`.

    Args:
        path: The final file.

    Raises:
        BackendMissing: pycocotools is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            from pycocotools import mask
        except ImportError as error:
            cause, cure = "is not installed; COCO's masks need it", "pip install 'anomdino[detector]'"
            raise BackendMissing("pycocotools", cause, cure) from error
        self.path, self._encode = path, mask.frPyObjects
        self._images, self._annotations = _spool(), _spool()
        self._found = 0

    def add(self, key: str, photo: Path, mask: npt.NDArray[np.bool_], score: npt.NDArray[np.float32]) -> None:
        """Add a photo.

        Args:
            key: Its key; see :func:`anomdino.prediction.inputs.collect`.
            photo: Its file.
            mask: bool (H, W).
            score: The final score, float32 (H, W).

        Raises:
            DiskError: There is no room for it in the folder of temporary files.
        """
        number = image_id(key)
        height, width = mask.shape
        lines: list[str] = []
        image = {"id": number, "file_name": file_name(key, photo), "height": height, "width": width}
        ids, scores = components_as_instances(mask, score)
        for places, confidence in zip(_places(ids, len(scores)), scores.tolist(), strict=True):
            self._found += 1
            (x0, y0), (x1, y1) = places.min(axis=0).tolist(), (places.max(axis=0) + 1).tolist()
            counts = run_lengths(places[:, 0] * height + places[:, 1], mask.size)
            runs = self._encode({"size": [height, width], "counts": counts}, height, width)
            annotation = {
                "id": self._found,
                "image_id": number,
                "category_id": CATEGORY_ID,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": len(places),
                "segmentation": {"size": [height, width], "counts": runs["counts"].decode("ascii")},
                "iscrowd": 0,
                "score": round(confidence, 6),
            }
            lines.append(json.dumps(annotation) + "\n")
        with disk_errors(Path(tempfile.gettempdir())):
            self._images.write(json.dumps(image) + "\n")
            self._annotations.writelines(lines)

    def write(self) -> None:
        """Write the file.

        Raises:
            DiskError: The disk is full, or the place is not writable.
        """
        categories = json.dumps([{"id": CATEGORY_ID, "name": CATEGORY_NAME}])
        with atomic_path(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(f'{{"categories": {categories},\n"images": [')
            _copy(self._images, file)
            file.write('],\n"annotations": [')
            _copy(self._annotations, file)
            file.write("]}\n")


def _spool() -> IO[str]:
    return tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8")


def _copy(lines: IO[str], file: IO[str]) -> None:
    lines.seek(0)
    for number, line in enumerate(lines):
        file.write((",\n" if number else "\n") + line.rstrip("\n"))


def run_lengths(pixels: npt.NDArray[np.int64], size: int) -> list[int]:
    """Give COCO's run lengths of a mask: of pixels outside, inside, outside and so on.

    Args:
        pixels: int64 (N,), N > 0, ascending numbers of the mask's pixels, counted down the columns.
        size: Pixels of the image.
    """
    gaps = np.flatnonzero(np.diff(pixels) > 1)
    starts, ends = pixels[np.r_[0, gaps + 1]], pixels[np.r_[gaps, -1]] + 1
    edges = np.r_[0, np.stack([starts, ends], axis=1).ravel(), size]
    return [int(length) for length in np.diff(edges)]


def _places(ids: npt.NDArray[np.int32], count: int) -> list[npt.NDArray[np.int64]]:
    """Give int64 (N, 2), column and row, of the pixels of the ids 1 .. ``count``, down one column after the other."""
    columns, rows = np.nonzero(ids.T)
    owners = ids[rows, columns]
    order = np.argsort(owners, kind="stable")
    places = np.stack([columns, rows], axis=1)[order]
    return np.split(places, np.searchsorted(owners[order], np.arange(2, count + 1))) if count else []
