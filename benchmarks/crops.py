"""Training crops per second and core, against the same crops made plainly.

Usage: python benchmarks/crops.py INLIER OUTLIERS [--crop 352 480] [--scale 0.4 1.3] [--crops 200]

INLIER holds images and labels, OUTLIERS images and masks. The plain version decodes the files for every crop and
resizes the whole image before it cuts; both make the same kind of crop, one after the other in one process, and CPU
time is counted, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from anomdino.config.rpl import AugmentConfig, CoroclConfig, ResidualConfig
from anomdino.data.mixing import paste_objects
from anomdino.io.images import read_image, read_label
from anomdino.scorer.augment import change_colours
from anomdino.scorer.batches import SampleId
from anomdino.scorer.dataset import ClosedSetCrops, ImagePairs, OutlierCrops


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inlier", type=Path)
    parser.add_argument("outliers", type=Path)
    parser.add_argument("--crop", type=int, nargs=2, default=(352, 480))
    parser.add_argument("--scale", type=float, nargs=2, default=(0.4, 1.3))
    parser.add_argument("--crops", type=int, default=200)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    scenes = ImagePairs(arguments.inlier, "labels", cache_mb=2048)
    outliers = ImagePairs(arguments.outliers, "masks", cache_mb=2048)
    augment = AugmentConfig(crop=tuple(arguments.crop), scale=tuple(arguments.scale))
    config = ResidualConfig(rule="objects", augment=augment, corocl=CoroclConfig(enabled=False))
    closed = ClosedSetCrops(scenes, augment, seed=0)
    mixed = OutlierCrops(scenes, outliers, range(len(outliers)), config, seed=0)

    def plain_closed(number: int) -> None:
        plain_crop(scenes, number % len(scenes), np.random.default_rng(number), augment)

    def plain_mixed(number: int) -> None:
        source = np.random.default_rng(number)
        image, label = plain_crop(scenes, number % len(scenes), source, augment)
        objects = []
        for index in source.integers(len(outliers), size=int(source.integers(1, 4))):
            _, photo, mask = outliers.files[index]
            objects.append((read_image(photo), read_label(mask) > 0))
        paste_objects(image, label, objects, source, mixed.rules)

    rows = (
        ("closed set", lambda n: closed[SampleId(n, n % len(scenes))], plain_closed),
        ("with outliers", lambda n: mixed[SampleId(n, n % len(scenes))], plain_mixed),
    )
    for name, ours, plain in rows:
        fast, slow = rate(ours, arguments.crops), rate(plain, max(10, arguments.crops // 4))
        print(f"{name}: {fast:.0f} crops/s a core, plain {slow:.0f}, ratio {fast / slow:.1f}")


def plain_crop(
    scenes: ImagePairs, index: int, source: np.random.Generator, augment: AugmentConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Decode, resize the whole image, pad, cut, change colours."""
    _, image_path, label_path = scenes.files[index]
    image, label = read_image(image_path), read_label(label_path)
    scale = augment.scale[0] * (augment.scale[1] / augment.scale[0]) ** source.random()
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    short = [max(want - have, 0) for have, want in zip(label.shape, augment.crop, strict=True)]
    image = np.pad(image, ((0, short[0]), (0, short[1]), (0, 0)))
    label = np.pad(label, ((0, short[0]), (0, short[1])), constant_values=255)
    row, column = (
        int(source.integers(have - want + 1)) for have, want in zip(label.shape, augment.crop, strict=True)
    )
    window = (slice(row, row + augment.crop[0]), slice(column, column + augment.crop[1]))
    return change_colours(np.ascontiguousarray(image[window]), source, augment), label[window].copy()


def rate(make: Callable[[int], object], count: int) -> float:
    """Crops per second of CPU time."""
    make(0)
    started = time.process_time()
    for number in range(count):
        make(number)
    return count / (time.process_time() - started)


if __name__ == "__main__":
    main()
