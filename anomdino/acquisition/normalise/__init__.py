"""From each data set's published form to the one that this project's readers expect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from anomdino.acquisition.normalise import benchmarks, inlier, outliers, s2m, weights
from anomdino.acquisition.tree import Tree

Normaliser = Callable[[Tree, Path], dict[str, int]]
"""Writes a tree's files below a folder (``inlier/``, ``val/<benchmark>/``, ...); gives their number."""

NORMALISERS: Mapping[str, Normaliser] = {
    "cityscapes": inlier.cityscapes,
    "camvid": inlier.camvid,
    "coco_outliers": outliers.coco,
    "road_anomaly": benchmarks.road_anomaly,
    "smiyc_anomaly_track": benchmarks.smiyc_anomaly_track,
    "smiyc_obstacle_track": benchmarks.smiyc_obstacle_track,
    "lost_and_found": benchmarks.lost_and_found,
    "fishyscapes_laf": benchmarks.fishyscapes_laf,
    "s2m_val": s2m.validation,
    "s2m_train": s2m.training,
    "weight_files": weights.files,
    "seed_weights": weights.seed,
    "bert": weights.bert,
}

__all__ = ["NORMALISERS", "Normaliser"]
