"""Published numbers to stand beside ours: other training data, other images (docs/method.md 5)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """One published result, in percent; ``None`` where the source gives no number."""

    method: str
    ap: float
    fpr95: float
    siou: float | None = None
    ppv: float | None = None
    f1_star: float | None = None


@dataclass(frozen=True)
class PublishedTable:
    """Published results on one data set.

    Attributes:
        title: Data set and split.
        source: Where the numbers come from.
        layouts: Layouts of :mod:`anomdino.benchmarks` beside which the table is shown.
        rows: The results.
    """

    title: str
    source: str
    layouts: tuple[str, ...]
    rows: tuple[PublishedRow, ...]


_LEADERBOARD = "SMIYC hidden test, official leaderboard of 2026-04-08"

PUBLISHED: tuple[PublishedTable, ...] = (
    PublishedTable(
        "AnomalyTrack (hidden test)",
        _LEADERBOARD,
        ("smiyc_anomaly_track",),
        (
            PublishedRow("RPL+CoroCL", 83.49, 11.68, 49.77, 29.96, 30.16),
            PublishedRow("OodDINO+RPL", 87.33, 7.83, 48.06, 52.41, 56.09),
            PublishedRow("AnomDINO+RPL", 94.75, 8.10, 58.96, 77.72, 72.48),
            PublishedRow("AnomDINO+RbA", 93.11, 5.59, 55.99, 74.04, 68.95),
            PublishedRow("UNO", 96.33, 1.98, 68.51, 55.77, 62.61),
        ),
    ),
    PublishedTable(
        "ObstacleTrack (hidden test)",
        _LEADERBOARD,
        ("smiyc_obstacle_track",),
        (
            PublishedRow("RPL+CoroCL", 85.93, 0.58, 52.62, 56.65, 56.69),
            PublishedRow("OodDINO+RPL", 94.05, 0.06, 67.72, 81.36, 86.53),
            PublishedRow("AnomDINO+RPL", 96.28, 0.02, 76.80, 91.35, 92.98),
            PublishedRow("AnomDINO+RbA", 97.14, 0.03, 76.73, 93.88, 92.79),
        ),
    ),
    PublishedTable(
        "RoadAnomaly (60 images)",
        "RPL and DetSeg-R papers",
        ("road_anomaly",),
        (
            PublishedRow("RPL+CoroCL", 71.61, 17.74),
            PublishedRow("DetSeg-R on RPL", 79.58, 10.16),
            PublishedRow("DetSeg-R on UNO", 93.89, 1.94),
        ),
    ),
)


def published_for(layouts: set[str]) -> list[PublishedTable]:
    """The tables that stand beside benchmarks of these layouts."""
    return [table for table in PUBLISHED if layouts & set(table.layouts)]
