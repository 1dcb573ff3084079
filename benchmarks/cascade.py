"""Time of the whole cascade on photos, part by part, against the score alone as `anomdino predict --no-boxes` makes it.

Usage: python benchmarks/cascade.py PHOTOS [--models released] [--photos 8] [--rounds 2]

The first photos of the folder are read before; every one goes through the score alone, then through score with maps,
boxes, and fusion with outlines, so many rounds after a warm-up of one photo. Medians over photos and rounds, their
ratios to the median of the score alone, and a checksum of the results are printed: another version of the code on the
same machine that prints the same checksum computes the same, to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np

from anomdino.adt.fusion import fuse
from anomdino.cascade import Cascade, find_models
from anomdino.config.params import load_params
from anomdino.device import resolve_device
from anomdino.io.images import read_image
from anomdino.io.listing import list_images
from anomdino.memory import keep_freed_memory

PARTS = ("score alone", "score with maps", "boxes", "fusion")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=Path, default=Path("released"))
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    keep_freed_memory()
    models, file = find_models(arguments.models, None)
    params = load_params(file)
    cascade = Cascade.load(models, params, resolve_device(params.device))
    photos = [read_image(path) for path in list(list_images(arguments.folder).values())[: arguments.photos]]
    cascade.predict(photos[0])
    digest = hashlib.sha256()
    times = [timed(cascade, photo, digest) for _ in range(arguments.rounds) for photo in photos]
    medians = np.median(times, axis=0)
    print(
        f"{len(photos)} photos, {photos[0].shape[1]} x {photos[0].shape[0]} the first, "
        f"{arguments.rounds} rounds, checksum {digest.hexdigest()[:12]}"
    )
    for part, seconds in [*zip(PARTS, medians, strict=True), ("score, boxes and fusion", medians[1:].sum())]:
        print(f"{part:24} {seconds:7.3f} s   ratio {seconds / medians[0]:5.2f}")


def timed(cascade: Cascade, photo: np.ndarray, digest: hashlib._Hash) -> list[float]:
    """Take a photo through all parts and give their seconds."""
    assert cascade.detector is not None
    ends = [time.perf_counter()]
    cascade.engine.score_alone(photo, "photo")
    ends.append(time.perf_counter())
    scored = cascade.engine.score(photo, "photo")
    ends.append(time.perf_counter())
    boxes = cascade.detector.detect(photo, scored.maps)
    ends.append(time.perf_counter())
    fused = fuse(scored.score, boxes, cascade.adt, image=photo)
    ends.append(time.perf_counter())
    for part in (boxes.xyxy, boxes.scores, fused.score, fused.mask):
        digest.update(part.tobytes())
    return np.diff(ends).tolist()


if __name__ == "__main__":
    main()
