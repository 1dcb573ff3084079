"""The `adt` block: ADT-Net, its training, and the final score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from anomdino.config.base import Block


class AdtConfig(Block):
    """The `adt` block of `params.yaml`."""

    box_score: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Boxes with at least this confidence are kept. auto: the best F2 on the training images, of the pixels of the boxes'
    union, for detectors differ in their scale, or, with box_evidence, of the boxes. The public code uses 0.9, which loses
    recall."""
    box_evidence: bool = False
    """Weigh the detector's confidences by the scores in and around the boxes, with four weights fitted on the training
    images, before box_score applies: they become probabilities that a box holds an object."""
    thresholds: Literal["dense", "scalar"] = "dense"
    """dense: a threshold for each pixel; scalar: one for each region of an image."""
    resolution: int = Field(8, ge=1, le=64)
    """The threshold predictors run at 1/resolution of the image."""
    slope_fg: float = Field(5.0, gt=0)
    """First slope of the region normalisation inside boxes."""
    slope_bg: float = Field(3.0, gt=0)
    """First slope of the region normalisation outside boxes."""
    slopes: Literal["learned", "fixed"] = "learned"
    """Whether training changes the slopes."""
    ramp: float = Field(0.1, gt=0, le=1)
    """Width of the ramp around the threshold."""
    inside: float = Field(1.0, ge=0)
    """Weight of the loss inside boxes."""
    outside: float = Field(1.0, ge=0)
    """Weight of the loss outside boxes."""
    false_positive: float = Field(0.7, gt=0, lt=1)
    """Tversky alpha: weight of false positives against misses; 0.5 is Dice."""
    regulariser: Literal["gap", "ordering", "none"] = "gap"
    """gap: squared difference of the two thresholds; ordering: hinge that wants T_bg above T_fg; none."""
    regulariser_weight: float = Field(0.1, ge=0)
    """Weight of the regulariser (g)."""
    margin: float = Field(0.05, ge=0)
    """Margin of the ordering hinge."""

    lr: float = Field(3e-3, gt=0, le=1)
    """Peak learning rate of AdamW. Published: 1e-5, which needs about a hundred times the steps."""
    slope_lr: float = Field(100.0, gt=0)
    """The slopes learn at this multiple of lr."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of AdamW."""
    epochs: int = Field(12, ge=1)
    """Passes over the training images. Published: 100."""
    samples_per_epoch: int = Field(0, ge=0)
    """Crops drawn in an epoch; 0 takes one from each training image."""
    batch: int = Field(8, ge=1)
    """Crops in a step, on each process."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises."""
    clip: float = Field(5.0, gt=0)
    """Largest norm of the gradient."""
    amp: bool = True
    """Mixed precision on a GPU; on the CPU it is always off."""
    workers: int = Field(0, ge=0)
    """Processes that read crops; the result is the same for any number."""

    crop: int = Field(256, ge=16)
    """Side of the square training crops in pixels."""
    object_crops: float = Field(0.5, ge=0, le=1)
    """Share of crops that are placed to hold a whole object, each object equally likely."""
    scale_min: float = Field(0.5, gt=0, le=1)
    """Training maps are shrunk by up to this factor, so that objects get as small as in real frames; 1 is
    off."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    box_jitter: float = Field(0.1, ge=0, lt=1)
    """Largest shift of each side of a box, as a share of the box."""
    box_drop_min: float = Field(0.1, ge=0, lt=1)
    """Least share of boxes that is dropped."""
    box_drop_max: float = Field(0.3, ge=0, lt=1)
    """Largest share of boxes that is dropped."""
    box_drop_all: float = Field(0.15, ge=0, lt=1)
    """Probability that an image loses all its boxes."""
    holdout: float = Field(0.2, gt=0, lt=1)
    """Share of the images, whole source images, that validates and tunes and is never trained on."""

    select: Literal["ap", "f1", "loss"] = "f1"
    """What picks the epoch on held-out images: AP of the final score, pixel F1 of the mask, or the loss."""
    patience: int = Field(6, ge=1)
    """Epochs without improvement after which training stops."""
    pictures_every: int = Field(0, ge=0)
    """Epochs between pictures of held-out images; 0 draws none."""
    dvclive: bool = False
    """Log curves with DVCLive beside the history."""

    output: Literal["raw", "hard", "soft", "boost", "fused"] = "fused"
    """Rule of the final score."""
    k: float = Field(0.6, ge=0, le=1)
    """Share of the score that does not depend on the threshold."""
    b: float = Field(0.1, ge=0)
    """What a box of confidence 1 adds."""
    tune: bool = True
    """Search k and b on the held-out images after training; they take the place of k and b above."""
    tune_objective: Literal["overall", "both", "ap", "fpr95"] = "overall"
    """overall: AP - FPR95 + component F1*, with AP, FPR95 and missed components no worse than raw's; both: AP - FPR95."""
    tune_tolerance: float = Field(0.01, ge=0, lt=1)
    """Differences up to this size count as none; of the pairs near the best, that which changes least is taken."""
    mask_floor: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """Least standardised score S~ that a threshold stands for, so that a box around nothing stays empty; auto chooses it
    before k and b (`tune`) by the component F1* of the held-out images' masks; 0 leaves the thresholds alone."""
    outline: bool = False
    """Outline objects of kept boxes in the photo, by colours (GrabCut) and, where pipeline.release_outline trained it,
    by a network: outlines join the mask, and b counts in them instead of the rectangles. Tenths of a second an image."""
    min_component: int = Field(0, ge=0)
    """Mask components with fewer pixels are removed; a benchmark's own limit comes first."""

    @model_validator(mode="after")
    def _ordered(self) -> AdtConfig:
        if self.box_drop_min > self.box_drop_max:
            raise ValueError(f"box_drop_min {self.box_drop_min} is above box_drop_max {self.box_drop_max}")
        return self
