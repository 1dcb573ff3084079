"""ADT-Net: two thresholds, one inside and one outside the boxes, predicted from the score map (docs/method.md 3).

Shapes: B images, H x W pixels, h x w = H/resolution x W/resolution cells.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.errors import ConfigError

Thresholds = Literal["dense", "scalar"]

LOW, SPAN = 0.3, 0.5
NORM_GROUPS = 8


@dataclass(frozen=True)
class Architecture:
    """What is fixed when an ADT-Net is built; stored with its weights.

    Args:
        thresholds: ``dense`` gives each pixel its own threshold, ``scalar`` one threshold a region and image.
        resolution: The predictors run at 1/resolution of the image.
        slope_fg: First value of k_fg, the slope of the region normalisation inside boxes.
        slope_bg: First value of k_bg, the slope outside.
        learn_slopes: Train the slopes, or keep them.
        ramp: Width delta of the ramp that turns the distance to the threshold into a probability.
        box_evidence: The network weighs the detector's confidences by the scores in and around the boxes
            (`anomdino.adt.evidence`), with four weights fitted before training.
    """

    thresholds: Thresholds = "dense"
    resolution: int = 8
    slope_fg: float = 5.0
    slope_bg: float = 3.0
    learn_slopes: bool = True
    ramp: float = 0.1
    box_evidence: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no network can be built from."""
        if self.thresholds not in get_args(Thresholds):
            raise ConfigError("adt.thresholds", f"is '{self.thresholds}'", "use dense or scalar")
        for name in ("resolution", "slope_fg", "slope_bg", "ramp"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"adt.{name}", f"is {getattr(self, name)}", "use a positive number")

    def as_dict(self) -> dict[str, Any]:
        """Give the fields as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ScoreStatistics:
    """Fixed statistics of the scores that a model was trained or calibrated on.

    Args:
        mean: Mean of the scores, in units of the score.
        std: Standard deviation of the scores, positive.
        sign: 1 where higher scores are more anomalous, -1 for a method whose higher scores are more normal.
            ``mean`` and ``std`` describe ``sign * score``.
    """

    mean: float
    std: float
    sign: Literal[1, -1] = 1

    def __post_init__(self) -> None:
        """Refuse statistics that cannot standardise anything."""
        if not (abs(self.mean) < float("inf") and 0 < self.std < float("inf")):
            raise ConfigError(
                "score statistics",
                f"mean {self.mean}, standard deviation {self.std}",
                "the scores must be finite and not all equal",
            )


class Regions(NamedTuple):
    """Which pixels lie in a box, and the means of the standardised score in both regions."""

    inside: Tensor  # (B, 1, H, W) bool
    mean_fg: Tensor  # (B, 1, 1, 1)
    mean_bg: Tensor  # (B, 1, 1, 1)
    has_boxes: Tensor  # (B, 1, 1, 1) bool


class AdtOutput(NamedTuple):
    """What ADT-Net computes for a batch, all (B, 1, H, W) float32."""

    decision: Tensor  # S_n in (0.3, 0.8): to be compared with the threshold, never ranked by
    threshold: Tensor  # T_r of the region that the pixel lies in
    threshold_fg: Tensor  # T_fg, everywhere
    threshold_bg: Tensor  # T_bg, everywhere


class _Trunk(nn.Module):
    """What both predictors share: 2 -> 64 -> context -> 32 -> 16 by 3x3 convolutions, then 1x1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_norm_relu(2, 64)
        self.head = nn.Sequential(_conv_norm_relu(64, 32), _conv_norm_relu(32, 16), nn.Conv2d(16, 1, 1))

    def context(self, features: Tensor, region: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, decision: Tensor, region: Tensor) -> Tensor:
        """Predict thresholds in (0.3, 0.8), (B, 1, h, w), from S_n and the region's share of each cell."""
        features = self.stem(torch.cat([decision, region], dim=1))  # (B, 64, h, w)
        return LOW + SPAN * torch.sigmoid(self.head(self.context(features, region)).float())


class ForegroundPredictor(_Trunk):
    """Thresholds inside boxes from local context: a residual 3x3 convolution with dilation 2."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Conv2d(64, 64, 3, padding=2, dilation=2)

    def context(self, features: Tensor, region: Tensor) -> Tensor:
        """Add what a 5 x 5 neighbourhood says to each cell."""
        near: Tensor = self.local(features)
        return features + near


class BackgroundPredictor(_Trunk):
    """Thresholds outside boxes from global context: channels gated by their mean over the background."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 64)

    def context(self, features: Tensor, region: Tensor) -> Tensor:
        """Gate each channel by what the whole background looks like."""
        pooled = masked_mean(features, region).flatten(1)  # (B, 64)
        return features * torch.sigmoid(self.gate(pooled))[:, :, None, None]


class AdtNet(nn.Module):
    """The two threshold predictors with the region normalisation before them (about 90,000 parameters).

    Args:
        architecture: What was decided for this network.
        statistics: Fixed statistics of the training scores; stored as buffers, never recomputed per image.
    """

    mean: Tensor
    std: Tensor
    box_weights: Tensor | None

    def __init__(self, architecture: Architecture, statistics: ScoreStatistics) -> None:
        super().__init__()
        self.architecture = architecture
        self.sign = statistics.sign
        self.register_buffer("mean", torch.tensor(statistics.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(statistics.std, dtype=torch.float32))
        keeps = torch.tensor([0.0, 1.0, 0.0, 0.0]) if architecture.box_evidence else None
        self.register_buffer("box_weights", keeps)
        raw_slopes = _inverse_softplus(torch.tensor([architecture.slope_fg, architecture.slope_bg]))
        self.raw_slopes = nn.Parameter(raw_slopes, requires_grad=architecture.learn_slopes)
        self.foreground = ForegroundPredictor()
        self.background = BackgroundPredictor()

    @property
    def statistics(self) -> ScoreStatistics:
        """The statistics that scores are standardised with."""
        return ScoreStatistics(float(self.mean), float(self.std), self.sign)

    @statistics.setter
    def statistics(self, statistics: ScoreStatistics) -> None:
        self.sign = statistics.sign
        self.mean.fill_(statistics.mean)
        self.std.fill_(statistics.std)

    @property
    def slopes(self) -> Tensor:
        """The slopes (k_fg, k_bg) of the region normalisation, positive."""
        return F.softplus(self.raw_slopes)

    def standardise(self, scores: Tensor) -> Tensor:
        """Turn scores into (sign * S - mean) / std with the stored statistics."""
        return ((scores if self.sign > 0 else -scores) - self.mean) / self.std

    def unit_score(self, standardised: Tensor) -> Tensor:
        """Map standardised scores to (0, 1) by the logistic function: S~, the same map for every image."""
        return torch.sigmoid(standardised)

    def floor_thresholds(self, means: Tensor, floor: float) -> Tensor:
        """Give S_n of the score whose S~ is ``floor``, inside boxes and outside: (2,).

        Args:
            means: (2,) mean_fg and mean_bg of the image.
            floor: In (0, 1).
        """
        level = math.log(floor / (1 - floor))
        return LOW + SPAN * torch.sigmoid(self.slopes * (level - means))

    def regions(self, standardised: Tensor, inside: Tensor) -> Regions:
        """Measure both regions of whole images.

        Args:
            standardised: (B, 1, H, W) standardised scores.
            inside: (B, 1, H, W) bool, the union of the kept boxes.

        Returns:
            The regions; an empty one has the mean of the whole image.
        """
        return Regions(
            inside=inside,
            mean_fg=masked_mean(standardised, inside),
            mean_bg=masked_mean(standardised, ~inside),
            has_boxes=inside.flatten(1).any(dim=1)[:, None, None, None],
        )

    def decision_surface(self, standardised: Tensor, regions: Regions) -> Tensor:
        """Normalise per region: S_n = 0.3 + 0.5 sigmoid(k_r (S - mu_r)); a region's mean goes to 0.55."""
        slope_fg, slope_bg = self.slopes
        slope = torch.where(regions.inside, slope_fg, slope_bg)
        mean = torch.where(regions.inside, regions.mean_fg, regions.mean_bg)
        return LOW + SPAN * torch.sigmoid(slope * (standardised - mean))

    def thresholds(self, decision: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
        """Predict T_fg and T_bg, both (B, 1, H, W); an image without boxes has one T_bg, its mean."""
        size = decision.shape[-2:]
        factor = self.architecture.resolution
        cells = (-(-size[0] // factor), -(-size[1] // factor))
        small = _pool(decision, cells)  # (B, 1, h, w)
        share = _pool(regions.inside.to(decision.dtype), cells)
        threshold_fg = self.foreground(small, share)
        threshold_bg = self.background(small, 1 - share)
        whole = torch.ones_like(share)
        if self.architecture.thresholds == "scalar":
            threshold_fg = masked_mean(threshold_fg, share).expand_as(share)
            threshold_bg = masked_mean(threshold_bg, 1 - share).expand_as(share)
        threshold_bg = torch.where(regions.has_boxes, threshold_bg, masked_mean(threshold_bg, whole))
        both = _enlarge(torch.cat([threshold_fg, threshold_bg], dim=1), size)
        return both[:, :1], torch.where(regions.has_boxes, both[:, 1:], threshold_bg[:, :, :1, :1])

    def forward(self, scores: Tensor, inside: Tensor, regions: Regions | None = None) -> AdtOutput:
        """Compute decision surface and thresholds.

        Args:
            scores: (B, 1, H, W) float32 scores as the scorer gives them.
            inside: (B, 1, H, W) bool, the union of the kept boxes.
            regions: Regions measured on the whole image where ``scores`` is a crop; measured here if absent.
        """
        standardised = self.standardise(scores)
        regions = self.regions(standardised, inside) if regions is None else regions
        decision = self.decision_surface(standardised, regions)
        threshold_fg, threshold_bg = self.thresholds(decision, regions)
        threshold = torch.where(regions.inside, threshold_fg, threshold_bg)
        return AdtOutput(decision, threshold, threshold_fg, threshold_bg)


def ramp_probability(decision: Tensor, threshold: Tensor, ramp: float) -> Tensor:
    """Give P = clip((S_n - T) / ramp + 0.5, 0, 1): at least 0.5 exactly where S_n >= T."""
    return ((decision - threshold) / ramp + 0.5).clamp(0, 1)


def soft_probability(decision: Tensor, threshold: Tensor, ramp: float) -> Tensor:
    """Give P~ = sigmoid((S_n - T) / (ramp / 2)), strictly increasing in S_n: nothing is tied."""
    return torch.sigmoid((decision - threshold) * (2 / ramp))


def surrogate_logits(decision: Tensor, threshold: Tensor, ramp: float) -> Tensor:
    """Give the logits of the smooth training surrogate, (S_n - T) / (ramp / 4): no gradient dies."""
    return (decision - threshold) / (ramp / 4)


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Average over the pixels of each image and channel, weighted; unweighted where all weights are 0.

    Args:
        values: (B, C, H, W).
        weights: (B, 1, H, W), bool or in [0, 1].

    Returns:
        (B, C, 1, 1).
    """
    weights = weights.to(values.dtype)
    total = weights.sum(dim=(2, 3), keepdim=True)
    weighted = (values * weights).sum(dim=(2, 3), keepdim=True)
    empty = total <= 0
    return torch.where(empty, values.mean(dim=(2, 3), keepdim=True), weighted / torch.where(empty, 1, total))


def _conv_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(NORM_GROUPS, outputs), nn.ReLU(inplace=True)
    )


def _inverse_softplus(values: Tensor) -> Tensor:
    return values + torch.log(-torch.expm1(-values))


def _pool(values: Tensor, cells: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(values, cells)


def _enlarge(values: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)
