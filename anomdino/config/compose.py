"""The `compose` block: how the training set with pasted objects is made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from anomdino.config.base import Block


class ComposeConfig(Block):
    """The `compose` block of `params.yaml`."""

    rule: Literal["improved", "rpl"] = "improved"
    """improved: several objects, sized by the ground, blended; rpl: the published rule (one rigid group)."""
    count: int = Field(240, ge=1)
    """Composed images in all; inlier images are used in turn."""
    size: int = Field(0, ge=0)
    """Side of the square crop of the inlier image; 0 keeps the whole image. The published size is 700."""
    enlarge: float = Field(1.0, ge=1, le=8)
    """Factor on the size of the inlier images before anything is pasted: small ones have no pixels for far obstacles."""
    objects_min: int = Field(1, ge=0, le=50)
    """Fewest objects in an image that has any."""
    objects_max: int = Field(4, ge=1, le=50)
    """Most objects in an image."""
    empty: float = Field(0.1, ge=0, le=1)
    """Share of composed images without any object."""
    val_fraction: float = Field(0.5, gt=0, lt=1)
    """Share of the inlier images whose composed images are marked `val` in ood.json (held out)."""
    split_objects: bool = True
    """Whether held-out images show other outlier objects than the images that the detector learns from."""
    scale: Literal["ground_row", "log_uniform", "mixed"] = "mixed"
    """ground_row: objects stand on the ground, sized by distance; log_uniform: any size, anywhere; mixed: a coin."""
    height_min: float = Field(0.05, gt=0, le=1)
    """Smallest object height for log_uniform, as a share of the image height."""
    height_max: float = Field(0.6, gt=0, le=1)
    """Largest object height for log_uniform, as a share of the image height."""
    ground_height_min: float = Field(0.12, gt=0)
    """Smallest object height for ground_row, in camera heights above the road."""
    ground_height_max: float = Field(1.4, gt=0)
    """Largest object height for ground_row, in camera heights above the road."""
    edges: Literal["soft", "hard", "mixed"] = "mixed"
    """Edges of pasted objects: blended, cut, or a coin decides."""
    match: float = Field(0.6, ge=0, le=1)
    """Largest strength with which an object takes over the light of the place it is pasted to."""
    jitter: float = Field(0.25, ge=0, lt=1)
    """Largest relative change of brightness, contrast, saturation and colour."""
    shadow: float = Field(0.5, ge=0, le=1)
    """Probability of a contact shadow under an object that stands on the ground."""
    png_compression: int = Field(1, ge=0, le=9)
    """zlib level of the written images: 1 is fast, 9 is small."""
    workers: int = Field(0, ge=0)
    """Processes that compose; 0 takes one a core. The result is the same for any number."""

    @model_validator(mode="after")
    def _ordered(self) -> ComposeConfig:
        for name in ("objects", "height", "ground_height"):
            low, high = f"{name}_min", f"{name}_max"
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} ({getattr(self, low)}) is above {high} ({getattr(self, high)})")
        return self
