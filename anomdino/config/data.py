"""The `data` block: where the pipeline's images come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from anomdino.config.acquisition import RegistryConfig
from anomdino.config.base import Block


class SyntheticConfig(Block):
    """Procedural road scenes (`data.source: synthetic`)."""

    height: int = Field(256, ge=96, le=2048)
    """Height of every scene in pixels."""
    width: int = Field(512, ge=128, le=4096)
    """Width of every scene in pixels."""
    train: int = Field(240, ge=1)
    """Scenes with closed-set labels for training."""
    val: int = Field(40, ge=1)
    """Scenes with closed-set labels, held out."""
    outliers: int = Field(120, ge=1)
    """Object cut-outs for outlier exposure."""
    benchmark: int = Field(32, ge=1)
    """Frames in each of the two benchmarks."""
    seed: int = Field(0, ge=0)
    """Seed of the scenes; another one gives another world of the same kind."""
    workers: int = Field(0, ge=0)
    """Processes that render; 0 takes one a core. The result is the same for any number."""


class FolderConfig(Block):
    """The user's own images (`data.source: folder`)."""

    inlier: str = ""
    """Folder with `{train,val}/{images,labels}`; labels in Cityscapes train ids."""
    outliers: str = ""
    """Folder with `images` and `masks` (0 / 255) of foreign objects."""
    benchmarks: dict[str, str] = Field(default_factory=dict)
    """Evaluation sets: name of the benchmark to its folder, in its native layout."""
    weights: str = ""
    """Folder with weight files; copied to `data/weights`."""

    @field_validator("benchmarks")
    @classmethod
    def _names_are_folder_names(cls, benchmarks: dict[str, str]) -> dict[str, str]:
        wrong = [name for name in benchmarks if not name or name[0] == "." or set(name) & {"/", "\\", "\0"}]
        if wrong:
            raise ValueError(
                f"names {wrong} cannot be used: each is a folder below data/val, and no hidden one"
            )
        return benchmarks


class DataConfig(Block):
    """The `data` block of `params.yaml`."""

    source: Literal["synthetic", "folder", "registry"] = "synthetic"
    """synthetic: procedural scenes; folder: own images; registry: download the published data sets."""
    synthetic: SyntheticConfig = Field(default_factory=SyntheticConfig)
    """Used when source is synthetic."""
    folder: FolderConfig = Field(default_factory=FolderConfig)
    """Used when source is folder."""
    registry: RegistryConfig = Field(default_factory=RegistryConfig)
    """Used when source is registry."""
