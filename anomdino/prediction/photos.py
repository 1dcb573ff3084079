"""The cascade over photos."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomdino.cascade import Cascade
from anomdino.errors import AnomdinoError, DiskError
from anomdino.io.images import read_image
from anomdino.prediction.writing import PredictionWriter
from anomdino.progress import track

log = logging.getLogger(__name__)


@dataclass
class Done:
    """What was made of photos, or of videos.

    Attributes:
        lines: One for each that has results, as ``summary.json`` has them.
        skipped: Those that could not be used, with the reason.
        seconds: Time it took, reading and writing included.
        interrupted: The user stopped it.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False


def predict_photos(
    cascade: Cascade,
    photos: Mapping[str, Path],
    writer: PredictionWriter,
    *,
    max_pixels: int,
    strict: bool = False,
    done: Done | None = None,
) -> Done:
    """Predict photo by photo; memory does not grow with their number.

    Args:
        cascade: The loaded networks.
        photos: Paths by key (:func:`anomdino.prediction.inputs.collect`).
        writer: Where results go.
        max_pixels: Larger photos are refused.
        strict: Stop at the first photo that cannot be used; else it is listed with the reason.
        done: What is filled while they are predicted, so that it is known after an error too.

    Raises:
        AnomdinoError: With ``strict``, what is wrong with a photo; always, when the disk is full.
    """
    started, done = time.perf_counter(), done or Done()
    try:
        for key, path in track(photos.items(), "predict", total=len(photos)):
            try:
                image = read_image(path, max_pixels)
                done.lines.append(writer.write(key, image, cascade.predict(image, path), path))
            except DiskError:
                raise
            except AnomdinoError as error:
                if strict:
                    raise named(error, path) from error
                writer.remove(key, path)
                skip(done, "image", key, path, error)
    except KeyboardInterrupt:
        done.interrupted = True
    done.seconds = time.perf_counter() - started
    return done


def skip(done: Done, kind: str, key: str, path: Path, error: AnomdinoError) -> None:
    """List an input that cannot be used, and say so."""
    log.warning("skipped: %s", named(error, path))
    done.skipped.append({kind: key, "path": str(path), "reason": named(error, path).cause})


def named(error: AnomdinoError, path: Path) -> AnomdinoError:
    """Give an error that names the file."""
    if error.what == str(path):
        return error
    return type(error)(path, f"{error.what} {error.cause}", error.cure)
