"""Quality of a scorer on real photos: every score, single widths and their mean, pooled over each set.

Usage:
    python benchmarks/light.py SCORER_FOLDER --set NAME=LAYOUT:FOLDER [--set ...] [--widths 512 800 1280 1600]
        [--closed-set FOLDER] [--device auto] [--json FILE]

AP, FPR95 (at the first recall of at least 95 %) and AUROC in percent, all labelled pixels of a set pooled.
Scores are computed at the resized image and resized back to the label's size, as the score stage does. With
``--closed-set``, a folder with images/ and labels/ in train ids, the IoU of every class is measured too. The
pixels of a set are held in memory, 4 bytes a pixel and setting.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from anomdino.benchmarks import Benchmark, open_benchmark
from anomdino.device import resolve_device
from anomdino.io.atomic import atomic_write_json
from anomdino.io.images import read_image
from anomdino.scorer.base import (
    LogitsKind,
    ScoreKind,
    Scorer,
    ScorerOutput,
    anomaly_score,
    load_scorer,
    normalise,
)

WIDTHS = (512, 800, 1280, 1600)
Figures = dict[str, float]
Setting = tuple[LogitsKind, ScoreKind, str]


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    device = resolve_device(arguments.device)
    scorer = load_scorer(arguments.scorer, device)
    results: dict[str, dict[str, Figures]] = {}
    for name, layout, folder in arguments.sets:
        started = time.perf_counter()
        results[name] = measure(scorer, open_benchmark(layout, folder), tuple(arguments.widths), device)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    print(table(results))
    report: dict[str, object] = {
        "scorer": str(arguments.scorer),
        "device": _device_name(device),
        "sets": results,
    }
    if arguments.closed_set:
        report["closed_set"] = closed_set(scorer, arguments.closed_set, device)
        print(json.dumps(report["closed_set"], indent=1))
    if arguments.json:
        atomic_write_json(arguments.json, report)


def measure(
    scorer: Scorer, benchmark: Benchmark, widths: tuple[int, ...], device: torch.device
) -> dict[str, Figures]:
    """Measure every score at every width, and at the mean of all widths, over a whole set.

    Returns:
        ``"residual energy 512+800"`` -> ``{"AP", "FPR95", "AUROC"}`` in percent.
    """
    pools: dict[Setting, list[Tensor]] = {}
    truths = []
    for sample in benchmark.samples:
        image = torch.from_numpy(read_image(sample.image))[None].to(device)
        label = torch.from_numpy(benchmark.read_label(sample)).to(device)
        known = label < 2
        truths.append(label[known] == 1)
        sums: dict[tuple[LogitsKind, ScoreKind], Tensor] = {}
        for width in widths:
            for (logits, kind), score in scores_at(scorer, image, width, label.shape):
                values = score[known]
                pools.setdefault((logits, kind, str(width)), []).append(values)
                total = sums.get((logits, kind))
                sums[logits, kind] = values if total is None else total + values
        for (logits, kind), total in sums.items() if len(widths) > 1 else ():
            name = "+".join(map(str, widths))
            pools.setdefault((logits, kind, name), []).append(total / len(widths))
    truth = torch.cat(truths)
    order = sorted(pools, key=lambda setting: (setting[0] != "residual", setting[1]))
    return {" ".join(setting): pooled_figures(torch.cat(pools.pop(setting)), truth) for setting in order}


@torch.inference_mode()
def scores_at(
    scorer: Scorer, image: Tensor, width: int, size: torch.Size
) -> Iterator[tuple[tuple[LogitsKind, ScoreKind], Tensor]]:
    """Score an image, uint8 (1, H, W, 3), at a width; give every score at ``size``, float32 (h, w)."""
    inputs = normalise(image)
    height = max(1, round(inputs.shape[-2] * width / inputs.shape[-1]))
    if width != inputs.shape[-1]:
        inputs = F.interpolate(inputs, size=(height, width), mode="bilinear", antialias=True)
    with torch.autocast(image.device.type, torch.float16, enabled=image.device.type == "cuda"):
        output = scorer(inputs)
    output = ScorerOutput(output.logits.float(), output.residual_logits.float())
    for logits in get_args(LogitsKind):
        for kind in get_args(ScoreKind):
            score = anomaly_score(output, kind, logits)[:, None]
            resized = F.interpolate(score, size=tuple(size), mode="bilinear", antialias=True)
            yield (logits, kind), resized[0, 0]


def pooled_figures(scores: Tensor, truth: Tensor) -> Figures:
    """Compute AP, FPR95 and AUROC of pooled pixels exactly; equal scores are one operating point.

    Args:
        scores: float (N,), higher = more anomalous.
        truth: bool (N,).

    Returns:
        Percentages.
    """
    ordered, order = scores.sort(descending=True)
    hits = truth[order].double().cumsum(0)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    ends = last.nonzero()[:, 0]
    true_positives = hits[ends]
    false_positives = (ends + 1).double() - true_positives
    positives, negatives = true_positives[-1], false_positives[-1]
    zero = true_positives.new_zeros(1)
    gains = torch.diff(true_positives, prepend=zero)
    precision = true_positives / (true_positives + false_positives)
    reached = torch.searchsorted(true_positives, 0.95 * positives)
    steps = torch.diff(false_positives, prepend=zero)
    area = (steps * (true_positives - gains / 2)).sum() / (positives * negatives)
    return {
        "AP": 100 * float((gains * precision).sum() / positives),
        "FPR95": 100 * float(false_positives[reached] / negatives),
        "AUROC": 100 * float(area),
    }


def closed_set(scorer: Scorer, folder: Path, device: torch.device) -> dict[str, object]:
    """Measure the IoU of every class on labelled images."""
    from anomdino.scorer.dataset import ImagePairs
    from anomdino.scorer.residual import DecoderScorer
    from anomdino.scorer.validation import closed_set_quality

    assert isinstance(scorer, DecoderScorer)
    report = closed_set_quality(scorer, ImagePairs(folder, "labels"), device).report()
    return {"miou": report["miou"], "iou": {k: v for k, v in report["iou"].items() if report["pixels"][k]}}


def table(results: dict[str, dict[str, Figures]]) -> str:
    """Lay out the figures as a Markdown table, one row a setting, AP / FPR95 / AUROC of each set."""
    names = list(results)
    lines = [f"| score | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for setting in results[names[0]]:
        cells = ["{AP:.1f} / {FPR95:.2f} / {AUROC:.1f}".format(**results[name][setting]) for name in names]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )


def _benchmark(text: str) -> tuple[str, str, Path]:
    name, _, rest = text.partition("=")
    layout, _, folder = rest.partition(":")
    if not (name and layout and folder):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=LAYOUT:FOLDER")
    return name, layout, Path(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scorer", type=Path, help="folder with model.safetensors and config.json")
    parser.add_argument("--set", dest="sets", type=_benchmark, action="append", required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--closed-set", type=Path, help="folder with images/ and labels/")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
