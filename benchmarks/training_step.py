"""Seconds of a training step of the residual block on a CPU: freed memory kept against given back, and with
CoroCL, logits of the scenes alone against logits of all images.

Usage: python benchmarks/training_step.py [--profile light] [--batch 8] [--steps 6]

Each variant runs in a process of its own, one after the other, on random crops and random weights of the profile's
network, with the profile's losses in bfloat16 where the CPU computes in it; the first step does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from anomdino.config.params import profile_params
from anomdino.memory import keep_freed_memory
from anomdino.scorer.base import ScorerOutput, ScorerSpec, build_scorer
from anomdino.scorer.batches import Batch
from anomdino.scorer.distributed import World
from anomdino.scorer.losses import OUTLIER
from anomdino.scorer.objectives import ResidualObjective
from anomdino.scorer.residual import DecoderScorer
from anomdino.scorer.training import low_precision

VARIANTS = ["given back", "kept", "CoroCL, all logits", "CoroCL"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="light")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.profile, arguments.batch, arguments.steps, arguments.variant)))
        return
    results = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[variant] = json.loads(output.splitlines()[-1])
        print(f"{variant}: " + ", ".join(f"{key} {value:.2f}" for key, value in results[variant].items()))
    for reference, ours in zip(VARIANTS[::2], VARIANTS[1::2], strict=True):
        ratio = results[ours]["seconds a step"] / results[reference]["seconds a step"]
        print(
            f"{ours} / {reference}: {ratio:.3f}, profile {arguments.profile}, {torch.get_num_threads()} threads"
        )


def measure(profile: str, batch: int, steps: int, variant: str) -> dict[str, float]:
    """Time the steps of one variant in this process."""
    if variant != "given back" and not keep_freed_memory():
        raise SystemExit("this C library has no mallopt")
    config = profile_params(profile).rpl
    corocl = config.residual.corocl.model_copy(update={"enabled": variant.startswith("CoroCL")})
    residual = config.residual.model_copy(update={"corocl": corocl})
    torch.manual_seed(0)
    scorer = build_scorer(ScorerSpec(config.architecture, config.num_classes, dict(config.options)))
    scorer.to(memory_format=torch.channels_last)
    if variant == "CoroCL, all logits":
        with_all_logits(scorer)
    objective = ResidualObjective(scorer, World(0, 1, torch.device("cpu")), residual, 0)
    optimiser = objective.optimiser()
    crops = random_crops(batch, residual.augment.crop)
    half = low_precision("auto", torch.device("cpu")) is not None
    seconds = []
    for step in range(steps + 1):
        started = time.perf_counter()
        objective.start_step()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective(crops, **objective.hints(crops, step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - started)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds a step": statistics.median(seconds[1:]),
        "user seconds": usage.ru_utime,
        "system seconds": usage.ru_stime,
        "peak GB": usage.ru_maxrss / 1e6,
    }


def random_crops(batch: int, size: tuple[int, int]) -> Batch:
    """Noise with labels in tiles of 8 pixels, a corner of each crop an outlier."""
    height, width = size
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
    labels = torch.randint(0, 10, (batch, height // 8, width // 8), dtype=torch.uint8)
    labels = labels.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    labels[:, : height // 4, : width // 4] = OUTLIER
    return Batch(images, labels, [""] * batch, images.flip(0), labels)


def with_all_logits(scorer: DecoderScorer) -> None:
    """Compute the logits of CoroCL's photos too, to no use."""
    decode = scorer.decode

    def everything(images: torch.Tensor, with_logits: int | None = None) -> ScorerOutput:
        output = decode(images)
        return output._replace(
            logits=output.logits[:with_logits], residual_logits=output.residual_logits[:with_logits]
        )

    scorer.decode = everything  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
