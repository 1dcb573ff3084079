"""The `rpl` block: the scorer's network and its training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from anomdino.config.base import Block


class AugmentConfig(Block):
    """What a training image goes through before it is a crop."""

    crop: tuple[int, int] = (192, 384)
    """Height and width of the crop in pixels."""
    scale: tuple[float, float] = (0.5, 1.5)
    """Range of the random scale, log-uniform; smaller images are padded (label 255)."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    jitter: float = Field(0.3, ge=0, lt=1)
    """Largest relative change of brightness, contrast and saturation; a third of it for each channel's
    gain."""
    blur: float = Field(0.0, ge=0, le=1)
    """Probability of a Gaussian blur (sigma 0.3 to 1.5 pixels)."""
    noise: float = Field(0.0, ge=0)
    """Largest standard deviation of Gaussian noise, in grey levels."""
    gamma: float = Field(0.0, ge=0, le=2)
    """Largest absolute logarithm of a random gamma."""
    style: float = Field(0.0, ge=0, le=1)
    """Probability that mean and spread of every channel move towards random ones: another camera, another
    light."""
    grey: float = Field(0.0, ge=0, le=1)
    """Probability that all colour goes."""

    @model_validator(mode="after")
    def _possible(self) -> AugmentConfig:
        if min(self.crop) < 16:
            raise ValueError(f"crop {list(self.crop)} is smaller than 16 pixels")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} is no range of positive factors")
        return self


class ScheduleConfig(Block):
    """Length of a training and its poly learning-rate schedule."""

    steps: int = Field(0, ge=0)
    """Optimiser steps; 0 takes `epochs`."""
    epochs: float = Field(0.0, ge=0)
    """Passes over the training images, used where `steps` is 0."""
    power: float = Field(0.9, ge=0)
    """Exponent of the poly schedule (published: 0.9)."""
    minimum: float = Field(1e-8, ge=0)
    """Lowest learning rate (published: 1e-8)."""
    lag: int = Field(1, ge=0, le=1)
    """1, as published: the rate is set after a step from that step's index, so the first two steps share one
    rate. 0: textbook."""
    warmup: int = Field(0, ge=0)
    """Steps of a linear rise of the learning rate (published: none)."""

    @model_validator(mode="after")
    def _has_a_length(self) -> ScheduleConfig:
        if self.steps == 0 and self.epochs == 0:
            raise ValueError("steps and epochs are both 0: give one of them")
        return self


class ClosedSetConfig(Block):
    """Closed-set training: cross-entropy on the inlier scenes."""

    source: Literal["train", "checkpoint"] = "train"
    """train: from the encoder's weights or from random; checkpoint: closed-set weights from a file."""
    checkpoint: str = ""
    """A scorer's folder, or a published closed-set checkpoint (wide_resnet38), used when source is
    checkpoint."""
    pretrained: bool = False
    """Start from the encoder's published weights (efficientnet_lite0 has them)."""
    schedule: ScheduleConfig = ScheduleConfig(steps=600)
    """Length and learning-rate schedule."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation."""
    batch: int = Field(16, ge=2)
    """Crops a step, over all processes together."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of all but the encoder."""
    encoder_lr: float = Field(1e-3, gt=0)
    """Learning rate of the encoder; smaller where it is pretrained."""
    encoder_norms: Literal["train", "keep"] = "train"
    """Statistics of the encoder's batch normalisations: learned from the crops, or kept as they came with its
    weights. Those of a few hundred scenes from one town make features that know that town alone."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decay of convolution weights; biases and normalisations have none."""
    class_balance: float = Field(0.5, ge=0, le=1)
    """Exponent of median-frequency class weights: 0 none, 1 full."""
    loss_at: Literal["decoder", "input"] = "decoder"
    """Resolution of the loss: the decoder's own (faster) or the input's."""
    clip: float = Field(0.0, ge=0)
    """Largest gradient norm; 0 does not clip."""
    validate_every: int = Field(0, ge=0)
    """Steps between validations; 0 validates at the end alone."""
    keep: Literal["best", "last"] = "best"
    """Which weights go on: those with the lowest validation loss, or the last ones."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay of a running average of the weights, which is validated and goes on in their place; 0: none."""


class PasteConfig(Block):
    """How outlier objects are pasted into crops (rule `objects`)."""

    objects: tuple[int, int] = (1, 3)
    """Fewest and most objects in a crop."""
    scale: Literal["ground_row", "log_uniform", "mixed"] = "log_uniform"
    """log_uniform: any size, anywhere; ground_row: sized by the ground an object stands on; mixed: a coin
    decides."""
    height: tuple[float, float] = (0.05, 0.75)
    """Range of object heights for log_uniform, shares of the crop's height."""
    edges: Literal["soft", "hard", "mixed"] = "mixed"
    """Edges of pasted objects: blended, cut, or a coin decides."""
    swaps: tuple[int, int] = (0, 0)
    """Fewest and most regions filled from another scene first: seams without an anomaly."""
    rules: dict[str, Any] = Field(default_factory=dict)
    """Other fields of the paste rules (anomdino.data.mixing.PasteRules) that differ from their defaults."""

    @model_validator(mode="after")
    def _ordered(self) -> PasteConfig:
        for name in ("objects", "swaps"):
            fewest, most = getattr(self, name)
            if not 0 <= fewest <= most:
                raise ValueError(
                    f"{name} {[fewest, most]} is no range: give the fewest, 0 or more, then the most"
                )
        if not 0 < self.height[0] <= self.height[1]:
            raise ValueError(
                f"height {list(self.height)} is no range of positive shares: the smaller one comes first"
            )
        return self


class CoroclConfig(Block):
    """Context-robust contrastive learning."""

    enabled: bool = True
    """Add CoroCL's loss; it doubles the images of a step."""
    weight: float = Field(1.0, ge=0)
    """Weight of the loss (published: 1)."""
    samples: int = Field(512, ge=2)
    """Most pixels in each of the four pools (published: 512)."""
    temperature: float = Field(0.1, gt=0)
    """Temperature (published: 0.1)."""
    min_images: int = Field(2, ge=1)
    """Scenes with an outlier that every process must have; with fewer the loss is skipped (published: 2)."""


class ResidualConfig(Block):
    """Training of the residual block with everything else frozen: RPL, and CoroCL."""

    schedule: ScheduleConfig = ScheduleConfig(epochs=40)
    """Length and learning-rate schedule (published: 40 epochs)."""
    batch: int = Field(8, ge=2)
    """Scenes a step, over all processes together (published: 8)."""
    lr: float = Field(7.5e-5, gt=0)
    """Adam's learning rate: 7.5e-5 as in the published config; the published docs say 7.5e-6."""
    final_factor: float = Field(10.0, gt=0)
    """Factor on the learning rate of the block's last convolution (published: 10)."""
    weight_decay: float = Field(0.0, ge=0)
    """Adam's weight decay; the published config has 1e-4 but never applies it."""
    energy_weight: float = Field(0.05, ge=0)
    """Weight of the energy part (published: 0.05)."""
    preservation_weight: float = Field(0.0, ge=0)
    """Weight of the squared change of the inliers' energy (published: not there). The published losses see
    the
    inliers' probabilities alone, so that a short training may raise the energy of the whole image."""
    copy_context: bool = True
    """Start the block's context module from the closed-set one, as published; else from Kaiming's rule."""
    start: Literal["fresh", "checkpoint"] = "fresh"
    """fresh: the block is drawn anew (copy_context); checkpoint: the block of closed_set.checkpoint, a trained
    scorer's folder, is trained on. Keep the seed then: it decides which objects validation holds out."""
    rule: Literal["rpl", "objects"] = "rpl"
    """rpl: the published mixing (one rigid group, square crop of the inlier scene, no scaling); objects:
    several blended objects."""
    rpl_size: int = Field(700, ge=16)
    """Side of the square crop of rule rpl (published: 700)."""
    rpl_scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.25, 0.5, 0.5, 0.75, 0.1, 0.125), min_length=1
    )
    """Factors of the outlier photo in rule rpl (published: 0.5 occurs twice)."""
    rpl_flip: float = Field(0.8, ge=0, le=1)
    """Probability of flipping the scene in rule rpl: 0.8, as the published code does."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of rule objects; rule rpl flips with probability rpl_flip and does nothing else."""
    paste: PasteConfig = PasteConfig()
    """Placement of rule objects."""
    whole_photos: float = Field(0.0, ge=0, le=1)
    """Share of the crops of rule objects that are outlier photos in whole, with nothing pasted: an object in
    the scene that it was photographed in, whose ground and light the labelled scenes do not have
    (published: 0)."""
    outlier_probability: float = Field(1.0, ge=0, le=1)
    """Share of the batches that carry outliers (published: 1)."""
    without_outliers: Literal["zeros", "scene"] = "zeros"
    """What the other batches hold. zeros, as published: an all-zero image whose label is class 0; scene: the
    plain scene."""
    order: Literal["files", "shuffled"] = "files"
    """Order of the scenes in an epoch. files, as published: the file order; shuffled: a new permutation every
    epoch."""
    outlier_holdout: float = Field(0.1, ge=0, lt=1)
    """Share of the outlier objects kept for the composed validation images."""
    loss_at: Literal["decoder", "input"] = "input"
    """Resolution of the loss: the input's as published, or the decoder's own (faster)."""
    corocl: CoroclConfig = CoroclConfig()
    """The contrastive loss."""
    clip: float = Field(0.0, ge=0)
    """Largest gradient norm; 0 does not clip (published)."""
    validate_every: int = Field(0, ge=0)
    """Steps between validations on composed images; 0 validates at the end alone."""
    validation_images: int = Field(32, ge=1)
    """Composed images (held-out scenes and outliers of the training domain) of a validation."""
    keep: Literal["best", "last"] = "best"
    """Which weights are the result: those with the highest AP on the composed validation images, or the last
    ones."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay of a running average of the weights, which is validated and kept in their place; 0 (published):
    none."""

    @model_validator(mode="after")
    def _photos_suit_the_rule(self) -> ResidualConfig:
        if self.whole_photos and self.rule != "objects":
            raise ValueError(
                f"whole_photos is {self.whole_photos}, but rule {self.rule} pastes every object: "
                "set rule: objects or whole_photos: 0"
            )
        return self


class PhotoPhaseConfig(Block):
    """A third phase: the trained residual block learns from outlier photos in whole. What is not named here is as in
    `residual`.
    """

    steps: int = Field(0, ge=0)
    """Optimiser steps after those of `residual`, with a schedule of their own; 0: no third phase (published)."""
    share: float = Field(0.25, gt=0, le=1)
    """Share of the crops that are outlier photos in whole (`residual.whole_photos` of this phase)."""
    batch: int = Field(8, ge=2)
    """Crops a step, over all processes together."""
    loss_at: Literal["decoder", "input"] = "decoder"
    """Resolution of the loss: the decoder's own (faster) or the input's."""
    corocl: bool = False
    """Add CoroCL's loss in this phase, also where `residual.corocl`, which has its parameters, is not enabled."""


class RplConfig(Block):
    """The `rpl` block of `params.yaml`. Defaults of the residual training are what RPL's published code
    does.
    """

    source: Literal["train", "checkpoint"] = "train"
    """train: closed-set and residual training; checkpoint: a trained scorer is taken as it is."""
    checkpoint: str = ""
    """A scorer's folder or a published RPL checkpoint (such as rev3.pth), used when source is checkpoint."""
    architecture: Literal["small", "efficientnet_lite0", "wide_resnet38"] = "small"
    """The network."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the network's builder that differ from its defaults."""
    num_classes: int = Field(19, ge=2, le=254)
    """Closed-set classes: Cityscapes train ids 0 .. num_classes - 1."""
    closed_set: ClosedSetConfig = ClosedSetConfig()
    """Closed-set training."""
    residual: ResidualConfig = ResidualConfig()
    """Residual training."""
    outlier_photos: PhotoPhaseConfig = PhotoPhaseConfig()
    """Training on with outlier photos in whole."""
    workers: int = Field(-1, ge=-1)
    """Processes that load and augment images; -1 takes one a core on a GPU machine and none on a CPU."""
    cache_mb: int = Field(2048, ge=0)
    """Memory for decoded images, in MB; what does not fit is decoded again every time."""
    precision: Literal["float32", "auto", "bf16", "fp16"] = "float32"
    """Arithmetic of the forward pass in training. bf16, fp16: on a GPU (a CPU then computes in float32).
    auto:
    bf16 where the device computes in it natively (GPU of capability 8.0, CPU with AVX512-BF16), else
    float32."""
    channels_last: bool = True
    """Memory format of images and weights."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between resume points: a killed training goes on from the last one."""
    log_every: int = Field(20, ge=1)
    """Steps between points of the curves."""
    live: bool = False
    """Log curves and sample overlays with DVCLive where it is installed."""

    def residual_phases(self) -> dict[str, ResidualConfig]:
        """Give the trainings of the residual block by name, in order: `residual`, and `outlier_photos` where it has
        steps.
        """
        phases = {"residual": self.residual}
        photos = self.outlier_photos
        if photos.steps:
            contrast = photos.corocl or self.residual.corocl.enabled
            update = {
                "schedule": self.residual.schedule.model_copy(update={"steps": photos.steps}),
                "whole_photos": photos.share,
                "batch": photos.batch,
                "loss_at": photos.loss_at,
                "corocl": self.residual.corocl.model_copy(update={"enabled": contrast}),
                "start": "checkpoint",
            }
            phases["outlier_photos"] = self.residual.model_copy(update=update)
        return phases

    @model_validator(mode="after")
    def _checkpoints_are_named(self) -> RplConfig:
        if self.source == "checkpoint" and not self.checkpoint:
            raise ValueError("source is checkpoint but checkpoint names no file")
        if self.closed_set.source == "checkpoint" and not self.closed_set.checkpoint:
            raise ValueError("closed_set.source is checkpoint but closed_set.checkpoint names no file")
        if self.outlier_photos.steps and self.residual.rule != "objects":
            raise ValueError(
                f"outlier_photos.steps is {self.outlier_photos.steps}, but rule {self.residual.rule} pastes every "
                "object: set residual.rule: objects or outlier_photos.steps: 0"
            )
        if self.residual.start == "checkpoint" and self.closed_set.source != "checkpoint":
            raise ValueError(
                "residual.start is checkpoint, but closed_set.source is train: a block fits the network that it was "
                "trained with; set closed_set.source: checkpoint"
            )
        return self
