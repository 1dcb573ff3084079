"""The embedded data set: inlier scenes, outlier cut-outs and two benchmarks, in the layouts of the real ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.config.data import SyntheticConfig
from anomdino.io.atomic import atomic_path
from anomdino.io.images import write_png
from anomdino.progress import track
from anomdino.protocol import mark_evaluation_only
from anomdino.seeding import rng as named_rng
from anomdino.synthetic.light import draw_light
from anomdino.synthetic.noise import fractal
from anomdino.synthetic.objects import EVALUATION, TRAINING, draw_look, render
from anomdino.synthetic.pixels import put, take
from anomdino.synthetic.scene import Frame, Style, draw_scene, render_scene

UInt8Array = npt.NDArray[np.uint8]

_ROAD_FAMILIES = ("boulder", "antelope", "elephant", "tent", "boat", "dinosaur", "machine")
_TRACK_FAMILIES = tuple(EVALUATION)
STYLES: dict[str, Style] = {
    "train": Style(),
    "val": Style(),
    "road": Style(
        clutter=1.1,
        odd=0.12,
        families=_ROAD_FAMILIES,
        objects=(1, 3),
        clean_every=10,
        near=(5.0, 28.0),
        border=4,
    ),
    "track": Style(
        clutter=1.3,
        odd=0.15,
        families=_TRACK_FAMILIES,
        objects=(1, 4),
        clean_every=8,
        near=(5.5, 45.0),
        border=6,
    ),
}


@dataclass(frozen=True)
class _Job:
    kind: Literal["scene", "outlier"]
    split: str
    index: int
    config: SyntheticConfig
    root: Path


def scene(split: str, index: int, seed: int = 0, size: tuple[int, int] = (256, 512)) -> Frame:
    """Render one frame; the same arguments give the same bytes.

    Args:
        split: `train` and `val` hold known things alone; `road` and `track` are the two benchmarks.
        index: number of the frame in its split.
        seed: `data.synthetic.seed`.
        size: (H, W).
    """
    style = STYLES[split]
    if style.clean_every and index % style.clean_every == style.clean_every - 1:
        style = replace(style, families=())
    rng = named_rng(seed, "synthetic", split, index)
    return render_scene(draw_scene(rng, size, style))


def outlier(index: int, seed: int = 0) -> tuple[UInt8Array, UInt8Array]:
    """Render one object photo for outlier exposure.

    Returns:
        Image (h, w, 3) uint8 RGB, the object before a blurred ground, and mask (h, w) uint8 0 / 255.
    """
    rng = named_rng(seed, "synthetic", "outlier", index)
    family = tuple(TRAINING)[index % len(TRAINING)]
    light = draw_light(rng)
    rgb, inside = render(draw_look(rng, family, evaluation=False), int(rng.integers(220, 360)), light)
    margin = int(rng.integers(6, 40))
    shape = (inside.shape[0] + 2 * margin, inside.shape[1] + 2 * margin)
    backdrop = fractal(2, 6, int(rng.integers(4)))
    ground = cv2.resize(backdrop[:160, :160], (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)[..., None]
    image = rng.uniform(60, 190, 3) + 12 * ground + rng.normal(0, 2, (*shape, 3))
    mask = np.zeros(shape, dtype=np.uint8)
    window = (slice(margin, margin + inside.shape[0]), slice(margin, margin + inside.shape[1]))
    put(image[window], inside, take(rgb, inside))
    mask[window][inside] = 255
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 0.7)
    half = (shape[1] // 2, shape[0] // 2)
    small = cv2.resize(smooth, half, interpolation=cv2.INTER_AREA)
    small_mask = cv2.resize(mask, half, interpolation=cv2.INTER_AREA)
    return np.clip(small, 0, 255).astype(np.uint8), np.where(small_mask > 127, 255, 0).astype(np.uint8)


def write_synthetic(config: SyntheticConfig, root: Path) -> dict[str, int]:
    """Render all sets below `root`.

    Writes `inlier/{train,val}/{images,labels}/<key>.png`, `outliers/{images,masks}/<key>.png`, `val/synthetic_road` in
    RoadAnomaly's layout and `val/synthetic_track` in the layout of SMIYC's AnomalyTrack, both
    marked as evaluation data. The files are the same for any number of workers.

    Args:
        config: sizes, counts, seed, workers.
        root: the project's `data` folder.

    Returns:
        Number of files of each part: inlier, outliers, val.
    """
    jobs = [_Job("scene", split, i, config, root) for split, count in _counts(config) for i in range(count)]
    jobs += [_Job("outlier", "outliers", i, config, root) for i in range(config.outliers)]
    mark_evaluation_only(root / "val" / "synthetic_road")
    mark_evaluation_only(root / "val" / "synthetic_track")
    workers = config.workers or os.cpu_count() or 1
    with _mapper(workers) as run:
        for _ in track(run(_write, jobs), "synthetic scenes", total=len(jobs)):
            pass
    return {
        "inlier": 2 * (config.train + config.val),
        "outliers": 2 * config.outliers,
        "val": 2 * 2 * config.benchmark,
    }


def _counts(config: SyntheticConfig) -> list[tuple[str, int]]:
    return [
        ("train", config.train),
        ("val", config.val),
        ("road", config.benchmark),
        ("track", config.benchmark),
    ]


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterator[None]]]:
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield lambda function, items: pool.map(function, items, chunksize=4)


def _write(job: _Job) -> None:
    cv2.setNumThreads(1)
    if job.kind == "outlier":
        image, mask = outlier(job.index, job.config.seed)
        name = f"{tuple(TRAINING)[job.index % len(TRAINING)]}_{job.index:04d}.png"
        write_png(job.root / "outliers" / "images" / name, image)
        write_png(job.root / "outliers" / "masks" / name, mask)
        return
    size = (job.config.height, job.config.width)
    frame = scene(job.split, job.index, job.config.seed, size)
    if job.split in ("train", "val"):
        folder, name = job.root / "inlier" / job.split, f"scene_{job.index:04d}.png"
        write_png(folder / "images" / name, frame.image)
        write_png(folder / "labels" / name, frame.label)
    elif job.split == "road":
        folder = job.root / "val" / "synthetic_road"
        _write_jpeg(folder / "original" / f"road{job.index:04d}.jpg", frame.image)
        write_png(folder / "labels" / f"road{job.index:04d}.png", frame.anomaly)
    else:
        folder = job.root / "val" / "synthetic_track" / "dataset_AnomalyTrack"
        _write_jpeg(folder / "images" / f"validation{job.index:04d}.jpg", frame.image)
        write_png(folder / "labels_masks" / f"validation{job.index:04d}_labels_semantic.png", frame.anomaly)


def _write_jpeg(path: Path, image: UInt8Array) -> None:
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
