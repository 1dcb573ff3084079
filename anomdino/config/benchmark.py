"""Parameters of the stage ``evaluate``: which benchmarks, by which protocol."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from anomdino.config.base import Block

Protocol = Literal["pooled", "rpl", "fishyscapes", "smiyc"]
Output = Literal["raw", "hard", "soft", "boost", "fused"]
OUTPUTS: tuple[Output, ...] = ("raw", "hard", "soft", "boost", "fused")


class BenchmarkSet(Block):
    """One evaluation set: where it lies and how it is read."""

    root: Path
    """Folder that holds the set."""
    layout: str | None = None
    """Layout on disk; the entry's by default, else `folder`."""
    entry: str | None = None
    """Published set that this is (checks the number of frames), such as RoadAnomaly or AnomalyTrack."""
    split: str | None = None
    """Split of the layout."""
    expected_count: int | None = Field(default=None, ge=1)
    """Number of frames that there must be."""
    min_predicted: int | None = Field(default=None, ge=0)
    """Predicted components with fewer pixels are removed; the track's by default."""
    min_gt: int | None = Field(default=None, ge=0)
    """Ground-truth components with fewer pixels become void; the track's by default."""
    protocol: Protocol | None = None
    """Pixel protocol of AP, FPR95 and AUROC; the layout's by default."""
    labels: dict[int, int] = Field(default_factory=dict)
    """Meaning of raw label values, `{raw: 0 | 1 | 255}`; the layout's by default."""
    other_labels: int | None = None
    """What raw values that are not declared mean (0, 1 or 255); refused by default."""
    roi: Path | None = None
    """Image whose non-zero pixels are the region of interest."""

    @model_validator(mode="after")
    def _has_layout(self) -> BenchmarkSet:
        wrong = {raw: meaning for raw, meaning in self.labels.items() if meaning not in {0, 1, 255}}
        if wrong:
            raise ValueError(f"labels maps to {wrong}; meanings are 0, 1 and 255")
        if self.other_labels not in {None, 0, 1, 255}:
            raise ValueError("other_labels is 0, 1 or 255")
        return self


class BenchmarkConfig(Block):
    """Stage evaluate."""

    sets: dict[str, BenchmarkSet] = Field(
        default_factory=lambda: {
            "synthetic_road": BenchmarkSet(
                root=Path("data/val/synthetic_road"), layout="road_anomaly", min_predicted=40, min_gt=10
            ),
            "synthetic_track": BenchmarkSet(
                root=Path("data/val/synthetic_track"),
                layout="smiyc_anomaly_track",
                min_predicted=40,
                min_gt=10,
            ),
        }
    )
    """Evaluation sets by name; results are filed under the name. Letters, digits, `_` and `-`."""
    outputs: list[Output] = Field(default_factory=lambda: list(OUTPUTS), min_length=1)
    """Outputs that are evaluated side by side."""
    bootstrap: int = Field(default=1000, ge=0)
    """Resamplings of the images for the 95 % intervals; 0 leaves intervals out."""
    curve_points: int = Field(default=256, ge=16, le=4096)
    """Points that a curve keeps in the plot files."""
    histogram_bins: int = Field(default=1024, ge=64, le=65536)
    """Score bins an image keeps for intervals and paired comparison."""
    capacity: int = Field(default=1 << 19, ge=1 << 10)
    """Distinct scores up to which pooled metrics are exact; beyond it the error bound is reported."""
    save_predictions: bool = True
    """Write the fused score maps and masks to data/predictions."""

    @field_validator("sets")
    @classmethod
    def _names_are_file_names(cls, sets: dict[str, BenchmarkSet]) -> dict[str, BenchmarkSet]:
        taken = {"train", "seed", "closed_set"}
        wrong = [name for name in sets if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in taken]
        if wrong:
            raise ValueError(f"names {wrong} cannot be used: letters, digits, _ and -; not {sorted(taken)}")
        return sets
