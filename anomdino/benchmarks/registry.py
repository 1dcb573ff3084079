"""The field's evaluation sets: layouts (how files lie) and entries (which set, how many frames)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from anomdino.benchmarks import layouts
from anomdino.benchmarks.labels import BINARY_WITH_VOID, LabelMap
from anomdino.benchmarks.model import ComponentLimits, Sample

Discover = Callable[[Path, str], list[Sample]]

ANOMALY_LIMITS = ComponentLimits(min_predicted=500, min_gt=100)
OBSTACLE_LIMITS = ComponentLimits(min_predicted=50, min_gt=10)

_WHOLE_IMAGE = "the whole image; void pixels (255) left out"
_ROAD = "the drivable area; everything else is void (255)"


@dataclass(frozen=True)
class Layout:
    """One way in which an evaluation set lies on disk.

    Attributes:
        discover: Function from (root, split) to samples.
        splits: Splits it knows, the default first. Empty: any name, a sub-folder where there is one.
        label_map: Meaning of its raw label values.
        limits: Component limits used with it.
        protocol: Pixel protocol of its published numbers.
    """

    discover: Discover
    splits: tuple[str, ...]
    label_map: LabelMap = BINARY_WITH_VOID
    limits: ComponentLimits = ANOMALY_LIMITS
    protocol: str = "pooled"


@dataclass(frozen=True)
class Entry:
    """A published evaluation set.

    Attributes:
        layout: Name of its layout.
        split: Default split.
        counts: Frames that a split must have.
        roi: What counts as region of interest.
        resolution: Image sizes, width x height.
        licence: Terms of use as its home page states them.
        home: Home page.
    """

    layout: str
    split: str
    counts: Mapping[str, int]
    roi: str
    resolution: str
    licence: str
    home: str


LAYOUTS: dict[str, Layout] = {
    "road_anomaly": Layout(layouts.road_anomaly, ("all",)),
    "road_anomaly_frames": Layout(
        layouts.road_anomaly_frames, ("all",), LabelMap.of(inlier=[0, 1], anomaly=[2], rest=0)
    ),
    "smiyc_anomaly_track": Layout(
        layouts.smiyc_anomaly_track, ("all", "validation", "test"), protocol="smiyc"
    ),
    "smiyc_obstacle_track": Layout(
        layouts.smiyc_obstacle_track,
        ("all", "validation", "test", "noNight", "night", "snowstorm"),
        limits=OBSTACLE_LIMITS,
        protocol="smiyc",
    ),
    "lost_and_found": Layout(
        layouts.lost_and_found,
        ("test", "train", "testValid", "trainValid", "testNoKnown"),
        LabelMap.of(inlier=[1], anomaly=range(2, 201), void=[0, *range(201, 256)]),
        OBSTACLE_LIMITS,
        "smiyc",
    ),
    "lost_and_found_train_ids": Layout(
        layouts.lost_and_found_train_ids,
        ("test", "train", "testValid", "trainValid", "testNoKnown"),
        LabelMap.of(inlier=[1], anomaly=[2], void=[0, 255]),
        OBSTACLE_LIMITS,
        "rpl",
    ),
    "fishyscapes": Layout(
        layouts.fishyscapes, ("Static", "LostAndFound"), limits=OBSTACLE_LIMITS, protocol="fishyscapes"
    ),
    "fishyscapes_laf": Layout(
        layouts.fishyscapes_laf, ("val",), limits=OBSTACLE_LIMITS, protocol="fishyscapes"
    ),
    "street_hazards": Layout(
        layouts.street_hazards, ("test",), LabelMap.of(inlier=range(1, 14), anomaly=[14], void=[0, 255])
    ),
    "folder": Layout(layouts.folder, ()),
}

_SMIYC = "https://segmentmeifyoucan.com"
_FISHYSCAPES = "https://fishyscapes.com"
_LAF = "http://www.6d-vision.com/lostandfounddataset"

REGISTRY: dict[str, Entry] = {
    "RoadAnomaly": Entry(
        "road_anomaly",
        "all",
        {"all": 60},
        _WHOLE_IMAGE,
        "1280x720",
        "photos under their authors' terms, listed with the set",
        "https://www.epfl.ch/labs/cvlab/data/road-anomaly/",
    ),
    "RoadAnomaly-frames": Entry(
        "road_anomaly_frames",
        "all",
        {"all": 60},
        _WHOLE_IMAGE,
        "1280x720",
        "photos under their authors' terms, listed with the set",
        "https://www.epfl.ch/labs/cvlab/data/road-anomaly/",
    ),
    "AnomalyTrack": Entry(
        "smiyc_anomaly_track",
        "validation",
        {"all": 110, "validation": 10, "test": 100},
        _WHOLE_IMAGE,
        "2048x1024 and 1280x720",
        "photos under their authors' terms, listed with the set",
        _SMIYC,
    ),
    "ObstacleTrack": Entry(
        "smiyc_obstacle_track",
        "validation",
        {"validation": 30, "test": 327, "noNight": 382, "night": 30, "snowstorm": 55},
        _ROAD,
        "1920x1080",
        "research use, see the home page",
        _SMIYC,
    ),
    "LostAndFound": Entry(
        "lost_and_found",
        "testNoKnown",
        {"train": 1036, "test": 1203, "trainValid": 1030, "testValid": 1186, "testNoKnown": 1043},
        _ROAD,
        "2048x1024",
        "non-commercial research, see the home page",
        _LAF,
    ),
    "LostAndFound-trainIds": Entry(
        "lost_and_found_train_ids",
        "test",
        {"train": 1036, "test": 1203, "trainValid": 1030, "testValid": 1186, "testNoKnown": 1043},
        _ROAD,
        "2048x1024",
        "non-commercial research, see the home page",
        _LAF,
    ),
    "Fishyscapes-Static": Entry(
        "fishyscapes",
        "Static",
        {"Static": 30},
        _WHOLE_IMAGE,
        "2048x1024",
        "see the home page",
        _FISHYSCAPES,
    ),
    "Fishyscapes-LostAndFound": Entry(
        "fishyscapes",
        "LostAndFound",
        {"LostAndFound": 100},
        _WHOLE_IMAGE,
        "2048x1024",
        "see the home page",
        _FISHYSCAPES,
    ),
    "FishyLAFAnomaly": Entry(
        "fishyscapes_laf",
        "val",
        {"val": 100},
        _WHOLE_IMAGE,
        "2048x1024",
        "see the home page",
        _FISHYSCAPES,
    ),
    "StreetHazards": Entry(
        "street_hazards",
        "test",
        {"test": 1500},
        "the whole image, unlabelled pixels included",
        "1280x720",
        "see the home page",
        "https://github.com/hendrycks/anomaly-seg",
    ),
}
