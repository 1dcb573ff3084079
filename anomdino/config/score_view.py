"""Parameters of the stage ``score_view``."""

from __future__ import annotations

from pydantic import Field, model_validator

from anomdino.config.base import Block


class ScoreViewConfig(Block):
    """How scores become pictures: fixed percentiles of the whole set, so that pictures compare."""

    low_percentile: float = Field(default=2.0, ge=0, lt=100)
    """Score percentile, over the whole set, that is drawn as the lower end of the colour bar."""
    high_percentile: float = Field(default=99.8, gt=0, le=100)
    """Score percentile, over the whole set, that is drawn as the upper end of the colour bar."""
    colormap: str = "inferno"
    """Name of a matplotlib colour map; perceptually uniform ones read best."""
    blend: float = Field(default=0.55, ge=0, le=1)
    """Share of the heat colour over the photo at the upper end."""
    max_side: int = Field(default=960, ge=64)
    """Longer side of a picture in pixels; larger photos are shrunk."""

    @model_validator(mode="after")
    def _rises(self) -> ScoreViewConfig:
        if self.low_percentile >= self.high_percentile:
            raise ValueError(f"low_percentile {self.low_percentile} is not below high_percentile")
        return self
