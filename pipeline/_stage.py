"""What every stage shares: the door where parameters are checked, the log, and the closing line."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anomdino.config.params import Params, load_params
from anomdino.errors import AnomdinoError, ConfigError
from anomdino.progress import log_level

if TYPE_CHECKING:
    import torch

    from anomdino.benchmarks import Benchmark

DATA = Path("data")
INLIER = DATA / "inlier"
OUTLIERS = DATA / "outliers"
BENCHMARKS = DATA / "val"
TRAIN_SET = DATA / "train_dataset"
TRAIN_IMAGES = TRAIN_SET / "offline_dataset"
TRAIN_LABELS = TRAIN_SET / "offline_dataset_label"
TRAIN_SCORES = TRAIN_SET / "offline_dataset_score"
TRAIN_MAPS = TRAIN_SET / "offline_dataset_maps"
TRAIN_VIEWS = TRAIN_SET / "offline_dataset_score_view"
OOD_JSON = TRAIN_SET / "ood.json"
SCORES = DATA / "scores"
VIEWS = DATA / "score_views"
BOXES = DATA / "boxes"
PREDICTIONS = DATA / "predictions"
MODELS = DATA / "models"
RPL, DETECTOR, ADT = MODELS / "rpl", MODELS / "detector", MODELS / "adt"

log = logging.getLogger("anomdino")


@contextmanager
def stage(name: str, *blocks: str, params: Path = Path("params.yaml")) -> Iterator[Params]:
    """Run a stage: check its parameters, set up the log, turn errors into one clear message and an exit code.

    Args:
        name: Name of the stage for the log.
        blocks: Blocks of ``params.yaml`` that the stage reads.
        params: The parameter file.

    Yields:
        The checked parameters; blocks not named keep the schema's defaults.
    """
    started = time.perf_counter()
    try:
        logging.basicConfig(level=log_level(), format="%(message)s", stream=sys.stderr, force=True)
        checked = load_params(params, only=(*blocks, "seed", "device"))
        yield checked
    except AnomdinoError as error:
        log.error("%s failed. %s", name, error)
        sys.exit(error.exit_code)
    log.info("%s took %.1f s", name, time.perf_counter() - started)


def open_benchmark(params: Params, name: str) -> Benchmark:
    """Open a benchmark of ``benchmark.sets``.

    Raises:
        ConfigError: ``params.yaml`` has no such benchmark.
        DataError: Its files are missing or do not pair.
    """
    from anomdino.benchmarks import open_set

    sets = params.benchmark.sets
    if name not in sets:
        raise ConfigError(
            f"benchmark.sets.{name}", "is not in params.yaml", f"known: {', '.join(sets) or 'none'}"
        )
    return open_set(name, sets[name])


def device_of(params: Params) -> torch.device:
    """Give the device; on the CPU memory is kept from image to image, or step to step."""
    from anomdino.device import resolve_device
    from anomdino.memory import keep_freed_memory

    device = resolve_device(params.device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def done(name: str, **counts: object) -> None:
    """Print the closing line of a stage: its name and what it counted."""
    print(
        f"{name}: " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in counts.items()),
        flush=True,
    )
