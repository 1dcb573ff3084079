"""Speed and memory of the metrics against named references, as ratios measured in one run.

    python benchmarks/metrics.py                     # pixels and components
    python benchmarks/metrics.py pixels --frames 30  # 100 frames need about 13 GB for scikit-learn

Pixels: AP, AUROC and FPR95 pooled over frames of 2048 x 1024, by the streaming state and by scikit-learn's
functions on everything at once. Components: SMIYC's component metrics, by contingency table and by a loop
over components. Every method runs in a process of its own, so that its peak memory is its own. What is counted
is CPU time, which other work on the machine does not lengthen; making the frames is not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

HEIGHT, WIDTH = 1024, 2048


def frames(count: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Energies near -10 with about 1 % anomalous and 4 % void pixels."""
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        score = rng.standard_normal((HEIGHT, WIDTH), np.float32) - np.float32(10)
        label = np.zeros((HEIGHT, WIDTH), np.uint8)
        for _ in range(6):
            y, x = rng.integers(300, 900), rng.integers(0, 1900)
            label[y : y + 60, x : x + 60] = 1
        label[-40:] = 255
        score += np.float32(2) * (label == 1)
        yield score, label


def blobs(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Masks with some 40 predicted and 25 true components, as an anomaly score at its best F1 gives."""
    import cv2

    for index in range(count):
        rng = np.random.default_rng([1, index])
        base = cv2.GaussianBlur(rng.standard_normal((HEIGHT, WIDTH), np.float32), (0, 0), 24)
        other = cv2.GaussianBlur(rng.standard_normal((HEIGHT, WIDTH), np.float32), (0, 0), 24)
        label = (base > np.quantile(base[::8, ::8], 0.97)).astype(np.uint8)
        mixed = base + 0.5 * other
        label[-40:] = 255
        yield mixed > np.quantile(mixed[::8, ::8], 0.96), label


def streaming(count: int) -> dict[str, float]:
    from anomdino.metrics import StreamingPixels

    state, spent = StreamingPixels(), 0.0
    for score, label in frames(count):
        start = time.process_time()
        state.update(score, label)
        spent += time.process_time() - start
    start = time.process_time()
    result = state.compute()
    spent += time.process_time() - start
    return {"seconds": spent, "AP": result.ap, "FPR95": result.fpr95, "AUROC": result.auroc,
            "AP bound": result.ap_error, "FPR95 bound": result.fpr95_error}  # fmt: skip


def scikit_learn(count: int) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    scores, labels, spent = [], [], 0.0
    for score, label in frames(count):
        start = time.process_time()
        roi = label != 255
        scores.append(score[roi])
        labels.append(label[roi])
        spent += time.process_time() - start
    start = time.process_time()
    pooled, truth = np.concatenate(scores), np.concatenate(labels)
    del scores, labels
    ap, auroc = average_precision_score(truth, pooled), roc_auc_score(truth, pooled)
    fpr, tpr, _ = roc_curve(truth, pooled, drop_intermediate=False)
    spent += time.process_time() - start
    fpr95 = float(fpr[np.searchsorted(tpr, 0.95)])
    return {"seconds": spent, "AP": ap, "FPR95": fpr95, "AUROC": auroc}


def contingency(count: int) -> dict[str, float]:
    from anomdino.metrics import ComponentState, frame_components

    state, spent = ComponentState(), 0.0
    for mask, label in blobs(count):
        start = time.process_time()
        state.update(frame_components(mask, label))
        spent += time.process_time() - start
    result = state.compute()
    return {"seconds": spent, "sIoU": result.siou, "PPV": result.ppv, "components": result.gt_components}


def component_loop(count: int) -> dict[str, float]:
    spent, siou, ppv = 0.0, [], []
    for mask, label in blobs(count):
        start = time.process_time()
        found = _loop(mask, label)
        spent += time.process_time() - start
        siou, ppv = siou + found[0], ppv + found[1]
    return {"seconds": spent, "sIoU": np.mean(siou), "PPV": np.mean(ppv), "components": len(siou)}


def _loop(mask: np.ndarray, label: np.ndarray) -> tuple[list[float], list[float]]:
    """One component at a time, as the specification is worded."""
    from scipy import ndimage

    label, eight = label.copy(), np.ones((3, 3))
    gt, n_gt = ndimage.label(label == 1, eight)
    predicted, n_predicted = ndimage.label(mask & (label != 255), eight)
    for j in range(n_predicted + 1):
        if (predicted == j).sum() < 500:
            predicted[predicted == j] = 0
    for k in range(n_gt + 1):
        if (gt == k).sum() < 100:
            label[gt == k] = 255
    gt, predicted = gt[label < 255], predicted[label < 255]
    siou, ppv = [], []
    for k in np.unique(gt[gt > 0]):
        touching = np.unique(predicted[gt == k])
        union = np.isin(predicted, touching[touching > 0])
        inside = (union & (gt == k)).sum()
        shared = (union & (gt != k) & (gt != 0)).sum()
        siou.append(inside / (union.sum() + (gt == k).sum() - inside - shared))
    for j in np.unique(predicted[predicted > 0]):
        alone = predicted == j
        ppv.append((alone & (gt > 0)).sum() / alone.sum())
    return siou, ppv


METHODS: dict[str, Callable[[int], dict[str, float]]] = {
    "streaming": streaming,
    "scikit-learn": scikit_learn,
    "contingency": contingency,
    "loop": component_loop,
}


def measured(method: str, count: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "one", method, "--frames", str(count)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def report(title: str, ours: str, reference: str, count: int) -> None:
    results = {method: measured(method, count) for method in (ours, reference)}
    print(f"\n{title}: {count} frames {WIDTH} x {HEIGHT}")
    for method, result in results.items():
        rest = "  ".join(
            f"{name} {value:.9g}" for name, value in result.items() if name not in {"seconds", "MB"}
        )
        print(f"  {method:14}{result['seconds']:8.2f} CPU s {result['MB']:8.0f} MB   {rest}")
    ratio = results[reference]["seconds"] / results[ours]["seconds"]
    print(f"  {ours} is {ratio:.1f} x as fast as {reference}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["all", "pixels", "components", "one"], default="all")
    parser.add_argument("method", nargs="?", choices=METHODS)
    parser.add_argument("--frames", type=int)
    options = parser.parse_args()
    if options.what == "one":
        result = METHODS[options.method](options.frames)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({name: float(value) for name, value in (result | {"MB": peak}).items()}))
        return
    if options.what in {"all", "pixels"}:
        report("Pixel metrics", "streaming", "scikit-learn", options.frames or 100)
    if options.what in {"all", "components"}:
        report("Component metrics", "contingency", "loop", options.frames or 10)


if __name__ == "__main__":
    main()
