"""Parameters of the stage ``train_detector``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from anomdino.config.base import Block

Backbone = Literal["tiny", "resnet18", "resnet50", "swin_t", "swin_b", "swin_l", "scorer", "none"]
MapName = Literal["semantic", "entropy", "distance"]


class FusionConfig(Block):
    """OUAFS, the orthogonal uncertainty-aware fusion (docs/method.md 2)."""

    maps: list[MapName] = Field(default=["semantic", "entropy", "distance"])
    """Uncertainty maps that are fused, always in this order; fewer for an ablation, none switches the fusion off."""
    score_map: bool = True
    """Fuse the residual anomaly score as a further map."""
    orth: Literal["cosine", "hadamard", "none"] = "cosine"
    """Form of the orthogonality loss between the increments of the fusion stages."""
    orth_l1: float = Field(default=0.1, ge=0)
    """Weight of the absolute part of the orthogonality loss."""
    orth_l2: float = Field(default=0.1, ge=0)
    """Weight of the squared part of the orthogonality loss."""
    gate_init: float = 1.0
    """Start of the gates: 0 leaves a pretrained detector as it is, 1 suits networks from scratch."""
    heads: int = Field(default=4, ge=1)
    """Heads of the cross-attention of the distance stage."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of that attention, and of the attention between image and text."""
    key_pool: int = Field(default=4, ge=1)
    """Keys and values of the finest level are average-pooled by this factor a side."""
    map_stride: Literal[4, 8] = 8
    """Stride, in pixels of the detector's input, at which the maps enter their stems."""


class DetectorConfig(Block):
    """The detector: its network, its training, and what it is chosen by."""

    backbone: Backbone = "tiny"
    """Image features: a tiny convnet, ResNet, Swin, the scorer's own frozen encoder (architecture efficientnet_lite0; it
    runs once more, for the detector sees the photo at a size of its own), or none (maps alone)."""
    pretrained_backbone: str = ""
    """Local file with backbone weights; empty for none."""
    freeze_backbone: bool = False
    """Keep the backbone's weights as they are."""
    text_encoder: str = "tiny"
    """`tiny`: the packaged vocabulary and a small random BERT; or a local folder with config.json, vocab.txt, weights."""
    prompt: str = Field(default="ood-object", min_length=1)
    """The text of the one class that is looked for."""
    init_checkpoint: str = ""
    """Local checkpoint to start from, a published (MM-)Grounding-DINO (.pth) or a detector's own model.safetensors;
    empty starts from scratch."""
    embed_dims: int = Field(default=64, ge=32, multiple_of=32)
    """Width of the transformer."""
    queries: int = Field(default=30, ge=1)
    """Object queries, which is also the most boxes an image can have."""
    levels: int = Field(default=3, ge=2, le=5)
    """Pyramid levels, from stride 8 upwards by factors of two; five of a Swin backbone start at stride 4."""
    encoder_layers: int = Field(default=1, ge=1)
    """Encoder layers."""
    decoder_layers: int = Field(default=2, ge=1)
    """Decoder layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of the transformer."""
    points: int = Field(default=2, ge=1)
    """Sampling points a head and level of deformable attention."""
    feedforward: int = Field(default=128, ge=32)
    """Hidden width of the feed-forward blocks."""
    fusion_dims: int = Field(default=64, ge=32, multiple_of=4)
    """Width of the attention between image and text."""
    fusion: FusionConfig = Field(default_factory=FusionConfig)
    """The uncertainty fusion."""
    image_dropout: float = Field(default=0.3, ge=0, le=1)
    """Share of training samples whose image features are dropped, so that the detector learns to trust the maps."""
    short_sides: list[int] = Field(default=[176, 192], min_length=1)
    """Training sizes: shorter sides in pixels, one drawn for each image; a single one spares padding, and time."""
    long_side: int = Field(default=512, ge=64)
    """Upper limit of the longer side, in training and testing."""
    test_short_side: int = Field(default=192, ge=32)
    """Shorter side in testing."""
    crop: bool = False
    """Half of the training images go through DETR's resize-crop-resize branch."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip in training."""
    mosaic: float = Field(default=0.0, ge=0, le=1)
    """Share of training samples that are mosaics of two by two images: objects of half the relative size."""
    map_noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the random offset, and half that of the random log gain, of the score map in training."""
    steps: int = Field(default=500, ge=1)
    """Training steps of each detector."""
    batch_size: int = Field(default=4, ge=1)
    """Images a step and process."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    backbone_lr_factor: float = Field(default=1.0, ge=0)
    """Factor on the learning rate of the backbone."""
    fusion_lr_factor: float = Field(default=1.0, gt=0)
    """Factor on the learning rate of OUAFS."""
    schedule: Literal["cosine", "step"] = "cosine"
    """Decay of the learning rate: cosine to zero, or a tenth after 80 % of the steps."""
    warmup: int = Field(default=30, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay of AdamW."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    denoising_queries: int = Field(default=20, ge=1)
    """Queries of the denoising task in training."""
    dense_loss: float = Field(default=1.0, ge=0)
    """Weight of a dense loss on the proposals, for detectors from scratch; 0: GroundingDINO's losses alone."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    amp: bool = False
    """Mixed precision in training, bfloat16 on CUDA; on the CPU it is always off."""
    workers: int = Field(default=0, ge=0)
    """Processes that load training images; 0 loads them in the training process."""
    cache_mb: int = Field(default=256, ge=0)
    """Memory, in MB and for every such process, for images and maps that stay decoded."""
    val_interval: int = Field(default=250, ge=1)
    """Steps between evaluations on the held-out part, by which the best weights are chosen (AR at 100 boxes)."""
    val_images: int = Field(default=64, ge=1)
    """At most this many held-out images are used for that choice."""
    log_interval: int = Field(default=25, ge=1)
    """Steps between log lines."""
    resume: bool = True
    """Continue an interrupted training of the same parameters and data; on a CPU it ends as if it had never been
    interrupted, whatever `workers` is, and with as many processes as before."""
    launcher: Literal["none", "pytorch", "slurm"] = "none"
    """How several processes are started: none, torchrun (pytorch) or slurm."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> DetectorConfig:
        if self.embed_dims % self.heads:
            raise ValueError(f"embed_dims = {self.embed_dims} is no multiple of heads = {self.heads}")
        if self.embed_dims % self.fusion.heads:
            raise ValueError(
                f"embed_dims = {self.embed_dims} is no multiple of fusion.heads = {self.fusion.heads}"
            )
        if self.backbone == "none" and not (self.fusion.maps or self.fusion.score_map):
            raise ValueError("backbone 'none' needs at least one map in fusion.maps, or fusion.score_map")
        if self.backbone not in {"none", "scorer"} and self.levels < 3:
            raise ValueError(
                f"levels = {self.levels}: backbone '{self.backbone}' has 3 levels, use at least as many"
            )
        if self.backbone.startswith("swin") and self.levels == 5 and self.fusion.map_stride != 4:
            raise ValueError("levels = 5 of a Swin backbone start at stride 4: set fusion.map_stride to 4")
        if min(self.short_sides) < 32:
            raise ValueError(f"short_sides = {self.short_sides}: the smallest allowed is 32")
        return self


__all__ = ["Backbone", "DetectorConfig", "FusionConfig", "MapName"]
