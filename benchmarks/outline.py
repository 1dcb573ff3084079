"""Time of outlining the objects in boxes, against GrabCut on every box's whole window at full size.

Usage: python benchmarks/outline.py [--size 720 1280] [--boxes 5] [--rounds 5]

A photo with blobs in colours of their own, a score that knows their middles, and a box around each. Outlines are drawn as
`anomdino.adt.outline` does, in windows of at most 256 pixels, with windows as large as they are, and by the network of
`anomdino.adt.outline_net` (random weights: its time does not depend on them); all run in turn in this process. The
medians, their ratios, and how far the first two agree are printed.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import cv2
import numpy as np
import torch

from anomdino.adt import outline, outline_net
from anomdino.adt.outline_net import OutlineNet
from anomdino.io.boxes import Boxes


def main() -> None:
    arguments = _arguments()
    image, score, boxes = _street(*arguments.size, arguments.boxes)
    mask = score > -5

    def ours() -> np.ndarray:
        return outline.draw_outlines(image, score, boxes, mask).shape

    def whole() -> np.ndarray:
        with mock.patch.object(outline, "SIDE", max(arguments.size)):
            return ours()

    network = OutlineNet().eval()
    standardised = (score + 6) / 2

    def learned() -> np.ndarray:
        return outline_net.draw(network, image, standardised, boxes).shape

    times: dict[str, list[float]] = {"shrunk": [], "whole": [], "network": []}
    found = {}
    for _ in range(arguments.rounds):
        for name, draw in (("shrunk", ours), ("whole", whole), ("network", learned)):
            start = time.perf_counter()
            found[name] = draw() >= 0.5
            times[name].append((time.perf_counter() - start) * 1000)
    height, width = arguments.size
    shrunk, full, net = (float(np.median(part)) for part in times.values())
    overlap = (found["shrunk"] & found["whole"]).sum() / max(1, (found["shrunk"] | found["whole"]).sum())
    print(f"{width} x {height}, {len(boxes)} boxes, OpenCV {cv2.__version__}, {cv2.getNumThreads()} threads")
    print(f"shrunk {shrunk:8.1f} ms median of {arguments.rounds}")
    print(f"whole  {full:8.1f} ms median of {arguments.rounds}")
    print(
        f"network{net:8.1f} ms median of {arguments.rounds}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(f"ratio  {full / net:8.2f} (whole / network)")
    print(f"ratio  {full / shrunk:8.2f} (whole / shrunk); the outlines overlap with an IoU of {overlap:.3f}")


def _street(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray, Boxes]:
    """Draw a grey noisy photo with blobs, a score that is high in their middles, and boxes around them."""
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), 110, np.float64)
    score = np.full((height, width), -9.0)
    rows, columns = np.indices((height, width))
    boxes = []
    for _ in range(count):
        y, x, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(height / 40, height / 4)
        distance = np.hypot(rows - y, columns - x)
        image[distance <= r] = rng.uniform(0, 255, 3)
        score = np.maximum(score, -2 - 9 * distance / r)
        boxes.append([x - r, y - r, x + r, y + r])
    photo = (image + rng.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8)
    found = Boxes(np.array(boxes, np.float32), rng.uniform(0.3, 0.9, count)).clipped((height, width))
    return photo, score.astype(np.float32), found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), metavar=("H", "W"))
    parser.add_argument("--boxes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
