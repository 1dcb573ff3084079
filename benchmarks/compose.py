"""Images a second that `compose` writes, beside a plain formulation of the same rule in the same run.

Usage: python benchmarks/compose.py [--count 600] [--workers 2] [--uses 1 6]

Scenes of 1024 x 2048 (Cityscapes' size, smoothed to its 2.2 MB a file) and object photos of 480 x 640 (COCO's size)
are rendered into a temporary folder; composed images are 700 x 700. There is a photo for every image and a scene for
every `--uses` images: with 1, as in profile `paper`, each image decodes a whole scene and a whole photo of its own.
The reference pastes one hard-edged object an image in one process with Pillow alone, its default PNG compression
included. The target is at least 25 images a second on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from anomdino.config.compose import ComposeConfig
from anomdino.data.compose import compose
from anomdino.io.images import write_png
from anomdino.synthetic import outlier, scene

SIZE = 700
RENDERED = 24
SMOOTHING = 0.6


def render(root: Path) -> None:
    """Render `RENDERED` scenes and photos."""
    for index in range(RENDERED):
        frame = scene("train", index, size=(1024, 2048))
        smooth = np.asarray(cv2.GaussianBlur(frame.image, (0, 0), SMOOTHING), np.uint8)
        write_png(root / "inlier" / "images" / f"{index:03d}.png", smooth, 6)
        write_png(root / "inlier" / "labels" / f"{index:03d}.png", frame.label, 6)
        image, mask = outlier(index)
        (root / "outliers" / "images").mkdir(parents=True, exist_ok=True)
        resized = cv2.resize(image, (640, 480))
        Image.fromarray(resized).save(root / "outliers" / "images" / f"{index:03d}.jpg", quality=90)
        resized = cv2.resize(mask, (640, 480), interpolation=cv2.INTER_NEAREST)
        write_png(root / "outliers" / "masks" / f"{index:03d}.png", resized)


def link(rendered: Path, root: Path, scenes: int, objects: int) -> None:
    """Link the rendered files under as many names as there shall be scenes and photos."""
    for path in sorted(rendered.glob("*/*/*")):
        part = root / path.parent.relative_to(rendered)
        part.mkdir(parents=True, exist_ok=True)
        for index in range(int(path.stem), scenes if "inlier" in part.parts else objects, RENDERED):
            os.link(path, part / f"{index:03d}{path.suffix}")


def processor_seconds() -> float:
    """Processor time of this process and its ended children; on a busy machine steadier than the clock."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def plain(root: Path, out: Path, count: int) -> None:
    """One rigid object an image, Pillow alone, one process."""
    out.mkdir()
    scenes, objects = (
        sorted((root / "inlier" / "images").iterdir()),
        sorted((root / "outliers" / "images").iterdir()),
    )
    generator = np.random.default_rng(0)
    for index in range(count):
        path = scenes[index % len(scenes)]
        image, label = Image.open(path).convert("RGB"), Image.open(root / "inlier" / "labels" / path.name)
        left, top = (int(generator.integers(side - SIZE)) for side in image.size)
        box = (left, top, left + SIZE, top + SIZE)
        image, label = image.crop(box), np.array(label.crop(box))
        photo = objects[int(generator.integers(len(objects)))]
        thing = Image.open(photo).convert("RGB").resize((320, 240))
        mask = Image.open(root / "outliers" / "masks" / f"{photo.stem}.png").resize(
            (320, 240), Image.Resampling.NEAREST
        )
        place = (int(generator.integers(SIZE - 320)), int(generator.integers(SIZE - 240)))
        image.paste(thing, place, mask)
        truth = np.where(label == 255, 255, 0).astype(np.uint8)
        truth[place[1] : place[1] + 240, place[0] : place[0] + 320][np.array(mask) > 0] = 1
        image.save(out / f"{index}.png")
        Image.fromarray(truth).save(out / f"{index}_label.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--uses", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder) / "rendered")
        for uses in arguments.uses:
            root = Path(folder) / f"uses{uses}"
            link(Path(folder) / "rendered", root, max(arguments.count // uses, 1), arguments.count)
            print(json.dumps(measure(root, uses, arguments.count, arguments.workers), indent=2), flush=True)


def measure(root: Path, uses: int, count: int, workers: int) -> dict[str, object]:
    """Compose by both rules and by the reference."""
    rates, processor = {}, {}
    for rule in ("improved", "rpl"):
        config = ComposeConfig(rule=rule, count=count, size=SIZE, workers=workers)
        start, used = time.perf_counter(), processor_seconds()
        compose(config, 0, root / "inlier", root / "outliers", root / rule)
        rates[rule] = count / (time.perf_counter() - start)
        processor[rule] = 1000 * (processor_seconds() - used) / count
    few = max(count // 30, 8)
    start, used = time.perf_counter(), processor_seconds()
    plain(root, root / "plain", few)
    rates["plain_one_process"] = few / (time.perf_counter() - start)
    processor["plain_one_process"] = 1000 * (processor_seconds() - used) / few
    return {
        "uses_of_a_scene": uses,
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "processor_ms_per_image": {name: round(value, 1) for name, value in processor.items()},
        "ratio": round(rates["improved"] / rates["plain_one_process"], 2),
        "ratio_of_processor_time": round(processor["plain_one_process"] / processor["improved"], 2),
    }


if __name__ == "__main__":
    main()
