"""Time and peak memory of the stage evaluate: five outputs and the mask, tables, intervals, predictions and the report.

    python benchmarks/evaluate.py --images 30 --size 1080 1920

Writes a project with a benchmark, its scores, maps and boxes to a temporary folder and runs the stage there in a
process of its own, as `dvc repro` does. The ADT-Net has random weights, which cost the same as trained ones. CPU
seconds are those of all threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NAME = "timed"
PARAMS = f"""
benchmark:
  sets: {{{NAME}: {{root: data/val/{NAME}, layout: folder, protocol: smiyc, min_predicted: 50, min_gt: 10}}}}
"""


def write_project(root: Path, images: int, size: tuple[int, int]) -> None:
    """Write a project whose scores find most, not all, of a few objects."""
    import cv2
    import torch

    from anomdino.adt.fusion import AdtModel
    from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
    from anomdino.adt.store import save_adt
    from anomdino.io.boxes import Boxes, write_box_results
    from anomdino.io.images import write_png
    from anomdino.io.scores import write_score

    height, width = size
    data, boxes, sizes = root / "data", {}, {}
    maps = data / "scores" / NAME / "maps"
    maps.mkdir(parents=True)
    for index in range(images):
        rng, key = np.random.default_rng(index), f"frame{index:03d}"
        label = np.zeros(size, np.uint8)
        label[: height // 3] = 255
        score = cv2.GaussianBlur(rng.normal(-10, 6, size).astype(np.float32), (0, 0), 5)
        photo = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), dtype=np.uint8), (0, 0), 3)
        found = []
        for _ in range(4):
            side = int(rng.integers(12, height // 5))
            y, x = int(rng.integers(height // 3, height - side)), int(rng.integers(0, width - side))
            label[y : y + side, x : x + side] = 1
            score[y : y + side, x : x + side] += rng.choice([0.3, 2.5])
            found.append([x, y, x + side, y + side])
        for folder, content in (("images", photo), ("labels", label)):
            write_png(data / "val" / NAME / folder / f"{key}.png", content)
        write_score(data / "scores" / NAME / "score" / f"{key}.npz", score)
        semantic = rng.random((19, height // 4, width // 4)).astype(np.float16)
        np.savez(maps / f"{key}.npz", semantic=semantic, image_size=np.array(size))
        boxes[key], sizes[key] = Boxes(np.array(found), np.full(len(found), 0.8)), size
    write_box_results(data / "boxes" / f"{NAME}.json", boxes, sizes)
    torch.manual_seed(0)
    save_adt(AdtModel(AdtNet(Architecture(), ScoreStatistics(-10.0, 1.0))), data / "models" / "adt")
    (root / "params.yaml").write_text(PARAMS, encoding="utf-8")


def evaluate(root: Path) -> None:
    """Run the stage in a project."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipeline.evaluate"], cwd=root, env=environment, check=True)
    spent = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    print(f"evaluate: {spent:.1f} s, {busy:.1f} CPU s, peak {peak:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--size", type=int, nargs=2, default=(1080, 1920), metavar=("H", "W"))
    parser.add_argument("--project", type=Path, help="Measure the stage in this project instead.")
    options = parser.parse_args()
    if options.project is not None:
        evaluate(options.project)
        return
    with tempfile.TemporaryDirectory() as folder:
        writer = multiprocessing.get_context("spawn").Process(
            target=write_project, args=(Path(folder), options.images, tuple(options.size))
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit(f"writing the project ended with {writer.exitcode}")
        evaluate(Path(folder))


if __name__ == "__main__":
    main()
