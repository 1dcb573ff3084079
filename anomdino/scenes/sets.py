"""Writing the synthetic data sets to disk, the same bytes for any number of processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.config.data import SyntheticConfig
from anomdino.io.atomic import atomic_write_bytes
from anomdino.io.images import write_png
from anomdino.progress import track
from anomdino.protocol import mark_evaluation_only
from anomdino.seeding import rng
from anomdino.scenes.objects import TRAINING, TRAINING_PATTERNS, draw_object
from anomdino.scenes.scene import SceneOptions, draw_scene

ROAD, TRACK = "synthetic_road", "synthetic_track"
_CLEAN_EVERY = 8


def write_synthetic(config: SyntheticConfig, out: Path) -> dict[str, int]:
    """Render all synthetic sets below ``out``.

    Written are ``inlier/{train,val}/{images,labels}``, ``outliers/{images,masks}`` and two evaluation sets that use object
    families and patterns which training never sees: ``val/synthetic_road`` (RoadAnomaly's layout) and
    ``val/synthetic_track`` (AnomalyTrack's layout). Frame i of a set depends on the seed, the set's name and i alone.

    Args:
        config: Sizes, counts and seed.
        out: Root of the pipeline's data.

    Returns:
        Number of files by set.
    """
    jobs: list[Callable[[], None]] = []
    for split, count in (("train", config.train), ("val", config.val)):
        jobs += [partial(_inlier, config, out / "inlier" / split, split, index) for index in range(count)]
    jobs += [partial(_outlier, config, out / "outliers", index) for index in range(config.outliers)]
    jobs += [partial(_road, config, out / "val" / ROAD, index) for index in range(config.benchmark)]
    jobs += [partial(_track, config, out / "val" / TRACK, index) for index in range(config.benchmark)]
    workers = min(config.workers or os.cpu_count() or 1, len(jobs))
    if workers == 1:
        for job in track(jobs, "synthetic scenes"):
            job()
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            for _ in track(pool.map(_run, jobs, chunksize=8), "synthetic scenes", total=len(jobs)):
                pass
    for name in (ROAD, TRACK):
        mark_evaluation_only(out / "val" / name)
    counts = {"inlier_train": config.train, "inlier_val": config.val, "outliers": config.outliers}
    return counts | {ROAD: config.benchmark, TRACK: config.benchmark}


def _run(job: Callable[[], None]) -> None:
    job()


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _write_photo(path: Path, image: npt.NDArray[np.uint8]) -> None:
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 96])
    atomic_write_bytes(path, encoded.tobytes())


def _size(config: SyntheticConfig) -> tuple[int, int]:
    return config.height, config.width


def _inlier(config: SyntheticConfig, folder: Path, split: str, index: int) -> None:
    generator = rng(config.seed, "inlier", split, index)
    scene = draw_scene(generator, _size(config), SceneOptions(hard_inliers=0.15))
    name = f"{split}_{index:04d}.png"
    write_png(folder / "images" / name, scene.image)
    write_png(folder / "labels" / name, scene.label)


def _outlier(config: SyntheticConfig, folder: Path, index: int) -> None:
    generator = rng(config.seed, "outlier", index)
    name = sorted(TRAINING)[index % len(TRAINING)]
    family = TRAINING[name]
    high = int(generator.integers(48, 129))
    colour, alpha = draw_object(generator, family, TRAINING_PATTERNS, high, float(generator.uniform(*family.aspect)))
    image = np.full((alpha.shape[0] + 8, alpha.shape[1] + 8, 3), 0.5, np.float32)
    mask = np.zeros(image.shape[:2], np.uint8)
    image[4:-4, 4:-4] = colour
    mask[4:-4, 4:-4] = (alpha >= 0.5) * np.uint8(255)
    write_png(folder / "images" / f"{name}_{index:04d}.png", (image * 255 + 0.5).astype(np.uint8))
    write_png(folder / "masks" / f"{name}_{index:04d}.png", mask)


def _road(config: SyntheticConfig, folder: Path, index: int) -> None:
    generator = rng(config.seed, ROAD, index)
    count = 0 if index % _CLEAN_EVERY == _CLEAN_EVERY - 1 else int(generator.integers(1, 4))
    options = SceneOptions(anomalies=count, near_share=0.3, hard_inliers=0.45)
    scene = draw_scene(generator, _size(config), options)
    _write_photo(folder / "original" / f"scene_{index:04d}.jpg", scene.image)
    write_png(folder / "labels" / f"scene_{index:04d}.png", scene.anomaly)


def _track(config: SyntheticConfig, folder: Path, index: int) -> None:
    generator = rng(config.seed, TRACK, index)
    count = 0 if index % _CLEAN_EVERY == _CLEAN_EVERY - 1 else int(generator.integers(1, 3))
    border = int(generator.integers(3, 8)) * config.height // 256
    options = SceneOptions(anomalies=count, near_share=0.6, hard_inliers=0.45, void_border=max(1, border))
    scene = draw_scene(generator, _size(config), options)
    inner = folder / "dataset_AnomalyTrack"
    _write_photo(inner / "images" / f"validation{index:04d}.jpg", scene.image)
    write_png(inner / "labels_masks" / f"validation{index:04d}_labels_semantic.png", scene.anomaly)
