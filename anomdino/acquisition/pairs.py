"""Copying image and label pairs into the project's own layout, checked on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomdino.acquisition.staging import place
from anomdino.errors import DataError
from anomdino.io.images import read_image, read_label, write_png
from anomdino.io.labels import check_train_ids
from anomdino.progress import track

Pair = tuple[str, Path, Path]
LabelReader = Callable[[Path], npt.NDArray[np.uint8]]


def copy_closed_set(
    pairs: Iterable[Pair], target: Path, what: str, read: LabelReader = read_label, link: bool = False
) -> int:
    """Write closed-set pairs to ``target/images/<key>.<ext>`` and ``target/labels/<key>.png``.

    Images are copied as they are after a full decode, so that a damaged one is found here. Labels become
    single-channel PNG.

    Args:
        pairs: ``(key, image, label)``.
        target: The folder that gets ``images/`` and ``labels/``.
        what: Name in the progress bar and in messages.
        read: Gives the uint8 (H, W) Cityscapes train ids (0..18, 255 void) of a label file.
        link: Hard-link images instead of copying (only for files that this project owns).

    Returns:
        Number of pairs written.

    Raises:
        DataError: Files are damaged, sizes differ, or a label has other values; all of them are listed.
    """

    def copy(pair: Pair) -> None:
        key, image, label = pair
        values = read(label)
        check_train_ids(label, values)
        _check_size(image, label, values)
        place(image, target / "images" / f"{key}{image.suffix.lower()}", link)
        write_png(target / "labels" / f"{key}.png", values)

    return _copy_all(list(pairs), copy, target, what)


def copy_outliers(pairs: Iterable[Pair], target: Path, what: str, link: bool = False) -> int:
    """Write object photos to ``target/images/<key>.<ext>`` and 0/255 masks to ``target/masks/<key>.png``.

    A mask may be stored as 0/1, 0/254 or 0/255, or as booleans.

    Returns:
        Number of pairs written.

    Raises:
        DataError: Files are damaged, sizes differ, a mask is empty or has several values; all of them are
            listed.
    """

    def copy(pair: Pair) -> None:
        key, image, mask = pair
        values = _object_mask(mask)
        _check_size(image, mask, values)
        place(image, target / "images" / f"{key}{image.suffix.lower()}", link)
        write_png(target / "masks" / f"{key}.png", values)

    return _copy_all(list(pairs), copy, target, what)


def _copy_all(pairs: list[Pair], copy: Callable[[Pair], None], target: Path, what: str) -> int:
    """Copy every pair, one thread a core (decoding releases Python's lock), and report all faults at once."""

    def tried(pair: Pair) -> str:
        try:
            copy(pair)
        except DataError as error:
            return f"{error.what}: {error.cause}"
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = [fault for fault in track(pool.map(tried, pairs), what, len(pairs)) if fault]
    if faults:
        more = f"\n  ... and {len(faults) - 10} more" if len(faults) > 10 else ""
        listing = "\n  ".join(faults[:10])
        raise DataError(
            target.name,
            f"{len(faults)} files cannot be used:\n  {listing}{more}",
            "repair or remove them; nothing was written",
        )
    return len(pairs)


def _object_mask(path: Path) -> npt.NDArray[np.uint8]:
    values = read_label(path)
    present = np.unique(values)
    if not set(present.tolist()) <= {0, present[-1]} or present[-1] == 0:
        counts = {int(value): int((values == value).sum()) for value in present[:8]}
        raise DataError(
            path, f"is no object mask: values and pixel counts {counts}", "a mask is 0 and one other value"
        )
    return np.where(values > 0, np.uint8(255), np.uint8(0))


def _check_size(image: Path, label: Path, values: npt.NDArray[np.uint8]) -> None:
    size = read_image(image).shape[:2]
    if size != values.shape:
        raise DataError(label, f"is {values.shape} (H, W) but its image {image.name} is {size}", "")
