"""How images are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anomdino.scorer.base import LogitsKind, ScoreKind
from anomdino.uncertainty import DistanceKind, SemanticKind

CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass(frozen=True)
class ScoringOptions:
    """How images are scored; all but batch and compilation may change more than the last digits of a result.

    Attributes:
        kind: Which score (see :func:`anomdino.scorer.base.anomaly_score`).
        logits: Logits that are scored.
        blur: Smooth by RPL's Gaussian; ``None``: for energy and entropy alone, as RPL does.
        widths: Widths in pixels at which an image is scored. Empty: its own width.
        fusion: How the scores of the widths are joined: by their mean, or by a trained network
            (:mod:`anomdino.scorer.width_fusion`).
        refine: Radii in pixels of an image 1280 wide at which the joined score is filtered with the image as guidance
            (:mod:`anomdino.scorer.guided`); the pooled score among the uncertainty maps stays as it is. Empty: not
            at all.
        refine_net: Lower the score by a trained network that sees the image (:mod:`anomdino.scorer.refinement`), after
            ``refine``; the pooled score stays as it is.
        window: Sides of the middle part that is looked at a second time, at all widths, in sides of the image
            (:mod:`anomdino.scorer.window`). 0: none.
        semantic: Kind of U_S.
        distance: Kind of U_D.
        map_stride: Uncertainty maps are area-pooled by this factor.
        max_pixels: Inputs with more pixels are cut into tiles.
        tile_overlap: Pixels that neighbouring tiles share.
        precision: ``fp32``, ``fp16``, ``bf16``, or ``auto``: fp16 on CUDA, fp32 elsewhere.
        compile: Compile network and scores together.
        compile_mode: How hard the compiler tries.
        batch: Images of one size that go through the network together.
    """

    kind: ScoreKind = "energy"
    logits: LogitsKind = "residual"
    blur: bool | None = None
    widths: tuple[int, ...] = ()
    fusion: Literal["mean", "learned"] = "mean"
    refine: tuple[int, ...] = ()
    refine_net: bool = False
    window: float = 0.0
    semantic: SemanticKind = "probabilities"
    distance: DistanceKind = "margin1"
    map_stride: int = 4
    max_pixels: int = 4_000_000
    tile_overlap: int = 256
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    compile: bool = False
    compile_mode: CompileMode = "default"
    batch: int = 1

    @property
    def blurs(self) -> bool:
        """Whether scores are smoothed."""
        return self.kind in {"energy", "entropy"} if self.blur is None else self.blur
