"""Parameters of the stage ``score``: which score, at which sizes, how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from anomdino.config.base import Block


class ScoreConfig(Block):
    """Stage score: anomaly scores and the uncertainty maps that the detector reads."""

    source: Literal["scorer", "transformers", "maps"] = "scorer"
    """scorer: the network of train_rpl; transformers: a published segmentation network; maps: another method's
    score maps take the place of the score (the uncertainty maps still come from the network of train_rpl)."""
    transformers: str = ""
    """With source transformers: a local folder or a hub name; closed-set scores alone."""
    maps: dict[str, Path] = Field(default_factory=dict)
    """With source maps: the folder of score maps of `train` and of every benchmark, by name."""
    kind: Literal["energy", "entropy", "max_softmax", "max_logit"] = "energy"
    """The score: energy is RPL's."""
    logits: Literal["residual", "closed"] = "residual"
    """Logits that are scored: residual is RPL, closed the baseline of the closed-set network."""
    blur: Literal["auto", "on", "off"] = "auto"
    """RPL's 7 x 7 Gaussian; auto: for energy and entropy, as RPL does."""
    widths: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Widths in pixels at which every image is scored; `fusion` joins the scores. Empty: its own width alone."""
    fusion: Literal["mean", "learned"] = "mean"
    """How the scores of the widths are joined; learned: by the network for these widths beside the scorer, which
    `python -m pipeline.release_fusion` trains."""
    refine: list[Annotated[int, Field(ge=1, le=640)]] = Field(default_factory=list)
    """Radii, in pixels of an image 1280 wide, at which the score is filtered with the image as guidance, so that it ends
    where objects end (12 and 36, say). Empty: not at all."""
    refine_net: bool = False
    """Lower the score, after `refine`, where the network beside the scorer sees in the image that there is no object.
    `python -m pipeline.release_refinement` trains it, for the residual energy."""
    window: float = Field(default=0.0, ge=0, lt=1)
    """Look a second time, at all widths, at the middle of the image, so much of each side (0.5, say), for small objects
    far away: twice the time. 0: not."""
    semantic: Literal["probabilities", "onehot"] = "probabilities"
    """The semantic map U_S."""
    distance: Literal["margin1", "one_minus_p1", "margin"] = "margin1"
    """The distance map U_D: 1 - (p1 - p2), 1 - p1, or p1 - p2."""
    map_stride: int = Field(default=4, ge=1, le=32)
    """Uncertainty maps are stored area-pooled by this factor."""
    max_pixels: int = Field(default=4_000_000, ge=65_536)
    """Larger inputs of the network are cut into tiles that overlap; below it nothing is cut."""
    tile_overlap: int = Field(default=256, ge=0, le=1024)
    """Pixels by which neighbouring tiles overlap; scores are blended across them."""
    batch: int = Field(default=1, ge=1, le=64)
    """Images of one size that go through the network together."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: fp16 on CUDA, fp32 elsewhere. bf16 is twice as fast on processors that have it (AVX512-BF16, AMX); scores
    change by some hundredths."""
    compile: bool = False
    """Compile the network (CUDA): worth it for many images of few sizes."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    """How hard the compiler tries; the slower modes take minutes for every size of image."""
    workers: int = Field(default=4, ge=1, le=64)
    """Threads that read images, and as many that write results, beside the network."""
    max_image_pixels: int = Field(default=64_000_000, ge=1)
    """Images with more pixels are refused before they are decoded."""
    on_bad_input: Literal["fail", "skip"] = "fail"
    """An unreadable image stops the stage, or is listed in skipped.json."""
    max_bad: int = Field(default=0, ge=0)
    """With skip: more bad images than this still stop the stage."""
