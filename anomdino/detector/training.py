"""Training of the detector by mmengine's Runner."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anomdino.config.detector import DetectorConfig
from anomdino.detector.records import Fold, Record
from anomdino.detector.weights import (
    WEIGHTS_FILE,
    load_pretrained,
    other_shapes,
    read_checkpoint,
    save_detector,
)
from anomdino.errors import CheckpointError, DataError, TrainingError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.digest import file_sha256, json_sha256
from anomdino.uncertainty import UncertaintyMaps

log = logging.getLogger(__name__)

STATISTICS_IMAGES = 200
STATE_FORMAT = 3
"""Of what a resume point holds; one of another version is left alone, and training starts anew."""


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        folder: The detector's folder.
        steps: Training steps.
        best_ar100: AR with at most 100 boxes on the held-out part, of the weights that were kept.
        images_per_second: Training speed, without evaluations.
    """

    folder: Path
    steps: int
    best_ar100: float
    images_per_second: float


def train_detector(
    config: DetectorConfig,
    fold: Fold,
    folder: Path | str,
    work: Path | str,
    seed: int,
    device: torch.device,
    scorer_folder: Path | str | None = None,
    keep_state: bool = False,
) -> Trained:
    """Train one detector and write it to ``folder``.

    ``model.safetensors`` holds the weights with the best AR at 100 boxes on ``fold.val``, ``split.json`` the keys that
    it learned from, was chosen by and may predict, ``history.json`` losses and evaluations.

    Args:
        config: The detector's parameters.
        fold: What it learns from, is chosen by, and predicts.
        folder: Where the trained detector goes.
        work: Folder of the Runner's own files (checkpoints to resume from, logs), each training's in its own.
        seed: Seed of all random numbers.
        device: Where to train.
        scorer_folder: The trained scorer, for ``backbone: scorer``.
        keep_state: Leave this training's files in ``work``: asked for again, it is written again without a step.

    Raises:
        DataError: Maps are missing, or differ in their number of classes.
        TrainingError: The loss is not finite.
    """
    from mmengine.dist import barrier

    from anomdino.detector.runner import BEST_WEIGHTS, build_runner, resumable
    from anomdino.seeding import derive_seed, seed_everything

    classes, mean, std = map_statistics(fold.train)
    number = derive_seed(seed, "detector", fold.name) % 2**31
    seed_everything(number)
    detector = new_detector(config, classes, mean, std, scorer_folder)
    work = Path(work) / _fingerprint(config, fold, seed, (classes, mean, std), scorer_folder)
    started = time.perf_counter()
    runner, history = build_runner(detector, config, fold, work, number, device, std, resumable(work, config))
    _run(runner)
    best = max(float(row["ar100"]) for row in history.evaluations)
    barrier()
    detector.load_state_dict(read_checkpoint(work / BEST_WEIGHTS)["state_dict"])
    barrier()
    if runner.rank == 0:
        extra = {
            "fold": fold.name,
            "seed": number,
            "score": {"mean": mean, "std": std},
            "selected": {"ar100": best, "images": min(len(fold.val), config.val_images)},
        }
        save_detector(detector, config, classes, folder, extra)
        atomic_write_json(Path(folder) / "split.json", split_of(fold))
        atomic_write_json(
            Path(folder) / "history.json", {"losses": history.losses, "evaluations": history.evaluations}
        )
        if not keep_state:
            shutil.rmtree(work)
    log.info(
        "detector %s: %d steps in %.0f s (%.1f images/s), AR@100 %.3f on %d held-out images",
        fold.name,
        config.steps,
        time.perf_counter() - started,
        history.images_per_second,
        best,
        min(len(fold.val), config.val_images),
    )
    return Trained(Path(folder), config.steps, best, history.images_per_second)


def _run(runner: Any) -> None:
    try:
        runner.train()
    except ValueError as error:
        if "invalid numeric entries" not in str(error):
            raise
        cause = f"the network's outputs are not finite at step {runner.iter}"
        raise TrainingError("detector", cause, "lower detector.lr or detector.clip") from error


def new_detector(
    config: DetectorConfig, classes: int, mean: float, std: float, scorer_folder: Path | str | None = None
) -> nn.Module:
    """Build the detector that training starts from: fresh, or on published weights, with the score's statistics.

    Raises:
        CheckpointError: A file of weights is missing, damaged or does not fit; with no ``init_checkpoint`` to bring
            them, the text encoder's are among them.
    """
    from anomdino.detector.architecture import build_detector
    from anomdino.detector.model import freeze
    from anomdino.detector.text import require_weights

    if not config.init_checkpoint:
        require_weights(config.text_encoder)
    detector = build_detector(config, classes, scorer_folder)
    if config.pretrained_backbone:
        load_backbone(detector, config.pretrained_backbone)
    if config.init_checkpoint:
        load_pretrained(detector, config.init_checkpoint)
    detector.ouafs.score_mean.fill_(mean)  # type: ignore[union-attr,operator]
    detector.ouafs.score_std.fill_(std)  # type: ignore[union-attr,operator]
    if config.freeze_backbone:
        freeze(detector.backbone)  # type: ignore[arg-type]
    return detector


def load_backbone(detector: nn.Module, path: Path | str) -> None:
    """Load backbone weights; the classifier's keys of an ImageNet checkpoint are left out.

    Raises:
        CheckpointError: The file is unsafe or damaged, or lacks weights of the backbone, or has them in another shape.
    """
    state = {
        name.removeprefix("backbone."): value for name, value in read_checkpoint(path)["state_dict"].items()
    }
    own = detector.backbone.state_dict()  # type: ignore[union-attr]
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    shapes = other_shapes(state, own)
    if missing or shapes:
        cause = f"lacks {len(missing)} weights of the backbone: {', '.join(missing[:10])}"
        if not missing:
            cause = f"has {len(shapes)} weights of another shape: {', '.join(shapes[:10])}"
        raise CheckpointError(
            path, cause, "choose weights of detector.backbone, with the names that mmdet gives them"
        )
    detector.backbone.load_state_dict({name: state.get(name, own[name]) for name in own})  # type: ignore[union-attr]


def map_statistics(records: Sequence[Record]) -> tuple[int, float, float]:
    """Give the number of classes of the maps, and mean and standard deviation of their scores.

    At most 200 images, evenly spread over ``records``, are read.

    Raises:
        DataError: Maps are missing, or differ in their number of classes.
    """
    step = max(1, -(-len(records) // STATISTICS_IMAGES))
    classes, count, total, squares = 0, 0, 0.0, 0.0
    for record in records[::step]:
        maps = UncertaintyMaps.load(record.maps)
        if classes and len(maps.semantic) != classes:
            raise DataError(
                record.maps, f"has {len(maps.semantic)} classes, others have {classes}", "score all again"
            )
        classes = len(maps.semantic)
        score = maps.score.astype(np.float64)
        count, total, squares = count + score.size, total + score.sum(), squares + np.square(score).sum()
    mean = total / count
    return classes, float(mean), float(max(squares / count - mean**2, 1e-12) ** 0.5)


def split_of(fold: Fold) -> dict[str, Any]:
    """Give the keys of a fold's three parts, and the number of folds, for ``split.json``."""
    return {
        "fold": fold.name,
        "folds": fold.folds,
        "train": [record.key for record in fold.train],
        "val": [record.key for record in fold.val],
        "predict": [record.key for record in fold.predict],
    }


def _fingerprint(
    config: DetectorConfig,
    fold: Fold,
    seed: int,
    statistics: tuple[int, float, float],
    scorer_folder: Path | str | None,
) -> str:
    """Digest all that a training depends on, so that one of other parameters, images, maps or weights starts anew."""
    from anomdino.detector.text import weights_file

    weights: list[Path | str | None] = [config.init_checkpoint, config.pretrained_backbone]
    weights.append(weights_file(config.text_encoder) if config.text_encoder != "tiny" else None)
    if config.backbone == "scorer" and scorer_folder is not None:
        weights.append(Path(scorer_folder) / WEIGHTS_FILE)
    facts = {
        "format": STATE_FORMAT,
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "fold": split_of(fold),
        "files": [[record.key, record.image.stat().st_size, record.boxes.tolist()] for record in fold.train],
        "maps": statistics,
        "weights": [file_sha256(file) for file in weights if file],
    }
    return json_sha256(facts)[:16]


__all__ = ["Trained", "map_statistics", "new_detector", "split_of", "train_detector"]
