"""Time from score map and boxes to final score and mask, against the same method written plainly.

Usage: python benchmarks/adt.py [--size 720 1280] [--device cpu] [--threads 2] [--rounds 20]

The plain version runs the same network but works on pixels the obvious way: numpy with boolean indexing in
float64, both thresholds enlarged apart, and scipy's labelling with a loop over components. Both run in turn
in this process; the medians and their ratio are printed, and the results are compared.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from anomdino.adt.fusion import AdtModel, FusionRule, fuse
from anomdino.adt.model import LOW, SPAN, AdtNet, Architecture, ScoreStatistics
from anomdino.io.boxes import Boxes

BLOCK = 5


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    score, boxes = _street(*arguments.size)
    net = (
        AdtNet(Architecture(slope_fg=0.7, slope_bg=0.7), ScoreStatistics(-8.0, 1.5))
        .eval()
        .to(arguments.device)
    )
    with torch.no_grad():
        for predictor in (net.foreground, net.background):
            predictor.head[-1].bias.fill_(1.0)
    model = AdtModel(net, FusionRule(min_component=50))

    def ours() -> tuple[np.ndarray, np.ndarray]:
        fused = fuse(score, boxes, model)
        return fused.score, fused.mask

    def plain() -> tuple[np.ndarray, np.ndarray]:
        return plain_fuse(score, boxes, model)

    difference = np.abs(ours()[0] - plain()[0]).max()
    disagreeing = np.mean(ours()[1] != plain()[1])
    times = _times([ours, plain], arguments.rounds)
    (ours_ms, plain_ms), (ours_best, plain_best) = np.median(times, axis=0), times.min(axis=0)
    height, width = arguments.size
    where = f"{arguments.device}, {arguments.threads} threads, torch {torch.__version__}"
    print(f"{width} x {height}, {len(boxes)} boxes, {where}")
    print(f"fuse   {ours_ms:8.2f} ms median of {arguments.rounds}, {ours_best:8.2f} ms fastest")
    print(f"plain  {plain_ms:8.2f} ms median of {arguments.rounds}, {plain_best:8.2f} ms fastest")
    print(
        f"ratio  {plain_ms / ours_ms:8.2f} of the medians, {plain_best / ours_best:8.2f} of the fastest (plain / fuse)"
    )
    print(
        f"largest difference of the scores {difference:.1e}, masks differ in {disagreeing:.1e} of the pixels"
    )


@torch.inference_mode()
def plain_fuse(score: np.ndarray, boxes: Boxes, model: AdtModel) -> tuple[np.ndarray, np.ndarray]:
    """Write the method down as docs/method.md 3 states it, with no thought of speed."""
    net, rule = model.net, model.rule
    device = net.mean.device
    kept = boxes.kept(rule.box_score)
    coverage, inside = kept.coverage(score.shape), kept.mask(score.shape)
    z = (score.astype(np.float64) - float(net.mean)) / float(net.std)
    surface = np.zeros_like(z)
    for where, slope in ((inside, net.slopes[0]), (~inside, net.slopes[1])):
        surface[where] = LOW + SPAN / (1 + np.exp(-float(slope) * (z[where] - z[where].mean())))
    cells = tuple(-(-side // net.architecture.resolution) for side in score.shape)
    tensors = [torch.from_numpy(a.astype(np.float32)).to(device)[None, None] for a in (surface, inside)]
    small, share = (F.adaptive_avg_pool2d(tensor, cells) for tensor in tensors)
    both = (net.foreground(small, share), net.background(small, 1 - share))
    large = [F.interpolate(t, size=score.shape, mode="bilinear")[0, 0].double().cpu().numpy() for t in both]
    threshold = np.where(inside, *large)
    soft = 1 / (1 + np.exp(-(surface - threshold) / (net.architecture.ramp / 2)))
    final = (1 / (1 + np.exp(-z)) * (rule.k + (1 - rule.k) * soft) + rule.b * coverage).astype(np.float32)
    probability = np.clip((surface - threshold) / net.architecture.ramp + 0.5, 0, 1)
    labels, count = ndimage.label(probability >= 0.5, np.ones((3, 3)))
    mask = np.zeros(score.shape, bool)
    for component in range(1, count + 1):
        pixels = labels == component
        if pixels.sum() >= rule.min_component:
            mask |= pixels
    return final, mask


def _street(height: int, width: int) -> tuple[np.ndarray, Boxes]:
    """Draw a score map with smooth background, some high blobs, and boxes around these."""
    rng = np.random.default_rng(0)
    score = ndimage.gaussian_filter(rng.normal(size=(height, width)), 6) * 12 - 8
    rows, columns = np.mgrid[:height, :width]
    boxes = []
    for _ in range(12):
        y, x, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, height / 8)
        score += 5 * np.exp(-((((rows - y) ** 2 + (columns - x) ** 2) / r**2) ** 2))
        boxes.append([x - r, y - r, x + r, y + r])
    kept = Boxes(np.array(boxes), rng.uniform(0.3, 0.9, 12)).clipped((height, width))
    return score.astype(np.float32), kept


def _times(functions: list, rounds: int) -> np.ndarray:
    times = np.zeros((rounds, len(functions)))
    for first in range(0, rounds, BLOCK):
        for column, function in enumerate(functions):
            function()
            for index in range(first, min(first + BLOCK, rounds)):
                _wait()
                start = time.perf_counter()
                function()
                _wait()
                times[index, column] = time.perf_counter() - start
    return times * 1000


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), metavar=("H", "W"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()
