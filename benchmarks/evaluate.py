"""Time and peak memory of a whole evaluation: five outputs and the mask, tables, intervals and files.

    python benchmarks/evaluate.py --images 30 --size 1080 1920

Writes a benchmark with scores, maps and boxes to a temporary folder, then evaluates it in a process of its own.
The ADT-Net has random weights, which cost the same as trained ones. CPU seconds are those of all threads.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def write_set(root: Path, images: int, size: tuple[int, int]) -> None:
    """Write frames whose scores find most, not all, of a few objects."""
    import cv2

    from anomdino.io.boxes import Boxes, write_box_results
    from anomdino.io.images import write_png
    from anomdino.io.scores import write_score

    height, width = size
    boxes, sizes = {}, {}
    for index in range(images):
        rng, key = np.random.default_rng(index), f"frame{index:03d}"
        label = np.zeros(size, np.uint8)
        label[: height // 3] = 255
        score = cv2.GaussianBlur(rng.normal(-10, 6, size).astype(np.float32), (0, 0), 5)
        found = []
        for _ in range(4):
            side = int(rng.integers(12, height // 5))
            y, x = int(rng.integers(height // 3, height - side)), int(rng.integers(0, width - side))
            label[y : y + side, x : x + side] = 1
            score[y : y + side, x : x + side] += rng.choice([0.3, 2.5])
            found.append([x, y, x + side, y + side])
        for folder, content in (("original", np.zeros((*size, 3), np.uint8)), ("labels", label)):
            write_png(root / "set" / folder / f"{key}.png", content)
        write_score(root / "scores" / f"{key}.npz", score)
        semantic = rng.random((19, height // 4, width // 4)).astype(np.float16)
        (root / "maps").mkdir(exist_ok=True)
        np.savez(root / "maps" / f"{key}.npz", semantic=semantic, image_size=np.array(size))
        boxes[key], sizes[key] = Boxes(np.array(found), np.full(len(found), 0.8)), size
    write_box_results(root / "boxes.json", boxes, sizes)


def evaluate(root: Path) -> None:
    """Evaluate what :func:`write_set` wrote."""
    import torch

    from anomdino.adt.fusion import AdtModel
    from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
    from anomdino.benchmarks import open_benchmark
    from anomdino.evaluation import (
        CascadeOutputs,
        evaluate_benchmark,
        write_metrics,
        write_plots,
        write_prediction,
        write_results,
    )
    from anomdino.io.boxes import read_box_results

    torch.manual_seed(0)
    started = time.perf_counter()
    benchmark = open_benchmark("road_anomaly", root / "set", name="timed")
    found = read_box_results(root / "boxes.json", [sample.key for sample in benchmark])
    net = AdtNet(Architecture(), ScoreStatistics(-10.0, 1.0)).eval()
    source = CascadeOutputs(root / "scores", found, AdtModel(net), min_component=50, maps=root / "maps")
    result = evaluate_benchmark(
        benchmark,
        source,
        save=lambda sample, outputs: write_prediction(root / "out", sample, outputs["fused"]),
    )
    write_results(root / "out", result)
    write_plots(root / "plots", [result])
    write_metrics(root / "metrics.json", [result], seed=0)
    spent = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    busy, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    print(f"{len(benchmark)} images: {spent:.1f} s, {busy:.1f} CPU s, peak {peak:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--size", type=int, nargs=2, default=(1080, 1920), metavar=("H", "W"))
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.root is not None:
        evaluate(options.root)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder), options.images, tuple(options.size))
        subprocess.run([sys.executable, __file__, "--root", folder], check=True)


if __name__ == "__main__":
    main()
