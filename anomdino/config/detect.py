"""Parameters of the stage ``detect``."""

from __future__ import annotations

from pydantic import Field, field_validator

from anomdino.config.base import Block


class NegativesConfig(Block):
    """Class names as further prompts whose boxes suppress object boxes that they cover."""

    names: list[str] = Field(default=[])
    """Prompts such as the Cityscapes class names `car`, `person`; empty switches this off."""
    score: float = Field(default=0.35, ge=0, le=1)
    """A box of a class name counts from this score on."""
    cover: float = Field(default=0.8, gt=0, le=1)
    """An object box is suppressed where this share of its area lies inside such a box ..."""
    margin: float = Field(default=0.1, ge=0, le=1)
    """... whose score is higher than its own by at least this."""


class DetectConfig(Block):
    """How boxes are predicted, and for which training images."""

    folds: int = Field(default=2, ge=1, le=10)
    """The training set is split by source image into this many folds, and each fold's boxes come from a detector that
    did not learn from it; 1 trains on the part `train` of ood.json and predicts the part `val` alone."""
    holdout: float = Field(default=0.4, gt=0, lt=1)
    """With folds = 1 and no split in ood.json: the share of source images held out of the detector's training."""
    short_side: int = Field(default=0, ge=0, le=8192)
    """Shorter side, in pixels, to which images are brought for detection; 0 takes `detector.test_short_side`. More than
    the detector learned from finds smaller objects; the time grows with the square."""
    min_score: float = Field(default=0.05, ge=0, lt=1)
    """Boxes below this score are not written."""
    max_boxes: int = Field(default=50, ge=1)
    """Boxes an image at most, the best first."""
    nms_iou: float = Field(default=0.7, gt=0, le=1)
    """Of two boxes that overlap by more than this IoU only the better one stays; 1 keeps all."""
    nms_cover: float = Field(default=1.0, gt=0, le=1)
    """A box goes, too, when more than this share of it lies inside a better one: parts of an object that is boxed as a
    whole; 1 keeps all."""
    regions: float = Field(default=0.0, ge=0, le=1)
    """Boxes round what stands out of the score map join the detector's, for objects that it does not propose; a sure one
    has this confidence. 0 leaves them out."""
    fast: bool = False
    """On CUDA: half precision and recorded graphs, one for each size of image; worth it for many images of few sizes."""
    negatives: NegativesConfig = Field(default_factory=NegativesConfig)
    """Suppression by class names."""
    target_recall: float = Field(default=0.95, gt=0, le=1)
    """The suggested threshold keeps this share of the anomaly components of held-out training images."""

    @field_validator("short_side")
    @classmethod
    def _large_enough(cls, value: int) -> int:
        if 0 < value < 32:
            raise ValueError(f"is {value}; use 0, or at least 32 pixels")
        return value
