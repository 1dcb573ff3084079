"""From a score map and boxes to the final score and the mask (docs/method.md 3, "Final score" and "Mask")."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anomdino.adt.components import remove_small_components
from anomdino.adt.evidence import weighed
from anomdino.adt.model import AdtNet, ramp_probability, soft_probability
from anomdino.adt.outline import Known, Outlines, draw_outlines, first_guess
from anomdino.adt.outline_net import OutlineNet, draw
from anomdino.adt.surfaces import SurfaceReplay, SurfaceTensors, surface_tensors
from anomdino.adt.thresholds import Threshold
from anomdino.errors import ConfigError, DataError
from anomdino.io.boxes import Boxes

Output = Literal["raw", "hard", "soft", "boost", "fused"]
OUTPUTS: tuple[Output, ...] = get_args(Output)

CROWDED = 0.9999
"""From this S~ on, 9.2 standard deviations, float32 begins to lose scores: it has 1,700 numbers up to 1."""

FloatMap = npt.NDArray[np.float32]
BoolMap = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FusionRule:
    """How the final score of an image is made; stored with the model.

    Args:
        output: ``raw`` is the score itself; ``hard`` keeps S~ inside boxes and floors the rest; ``soft`` is
            S~ (k + (1 - k) P~); ``boost`` is S~ + b inside boxes; ``fused`` is soft + b * confidence of the
            box.
        k: Share of S~ that does not depend on the threshold, in [0, 1].
        b: What boxes add, not negative.
        box_score: Boxes with at least this confidence are kept, in [0, 1].
        min_component: Mask components with fewer pixels are removed (8-connected).
        mask_floor: Least S~ that a threshold stands for, in [0, 1): no threshold lies below S_n of that score. ADT-Net's
            thresholds are relative to what lies inside the boxes, so that a box around nothing fills; 0 leaves them as
            they are.
        outline: Where the photo is given, objects of the kept boxes are outlined by its colours
            (:mod:`anomdino.adt.outline`) and, where the model has a network for it, by that too
            (:mod:`anomdino.adt.outline_net`): with the outline o in [0, 1], the mean of both, 0 elsewhere, P~ becomes
            max(P~, o), the mask takes in where o >= 0.5, and ``fused`` adds b * confidence * o.
    """

    output: Output = "fused"
    k: float = 0.6
    b: float = 0.1
    box_score: float = 0.3
    min_component: int = 0
    mask_floor: float = 0.0
    outline: bool = False

    def __post_init__(self) -> None:
        """Refuse rules that are not defined."""
        if self.output not in OUTPUTS:
            raise ConfigError("output", f"is '{self.output}'", f"use one of {', '.join(OUTPUTS)}")
        if not (0 <= self.k <= 1 and self.b >= 0):
            raise ConfigError("k, b", f"are {self.k}, {self.b}", "k lies in [0, 1] and b is not negative")
        if not 0 <= self.box_score <= 1:
            raise ConfigError("box_score", f"is {self.box_score}", "it lies in [0, 1]")
        if not 0 <= self.mask_floor < 1:
            raise ConfigError("mask_floor", f"is {self.mask_floor}", "it lies in [0, 1)")


@dataclass(frozen=True, eq=False)
class AdtModel:
    """A network with what is needed to use it.

    Attributes:
        net: The network.
        rule: The rule of the final score that was chosen for it.
        threshold: A threshold on the final score that takes the place of the network's own in the mask.
        provenance: Where it comes from: parameters, seed, SHA-256 of the inputs, held-out measures.
        outliner: The network that outlines objects besides; None leaves it to colours.
    """

    net: AdtNet
    rule: FusionRule = field(default_factory=FusionRule)
    threshold: Threshold | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    outliner: OutlineNet | None = None

    @cached_property
    def replay(self) -> SurfaceReplay:
        """The network's surfaces as CUDA graphs, recorded as sizes come."""
        return SurfaceReplay(self.net)


@dataclass(frozen=True, eq=False)
class Fused:
    """The final result for one image.

    Attributes:
        score: float32 (H, W), higher = more anomalous. In (0, 1 + b], or some steps of float32 above where many scores
            are too high to be told apart otherwise; except ``raw``: the score itself.
        mask: bool (H, W), P >= 0.5 or inside an outline, see :class:`FusionRule` (or score >= the model's threshold),
            without small components.
        surfaces: What both were made of.
    """

    score: FloatMap
    mask: BoolMap
    surfaces: Surfaces

    @cached_property
    def threshold(self) -> FloatMap:
        """The threshold of each pixel on the decision surface, the floor included, float32 (H, W) in (0.3, 0.8)."""
        return self.surfaces.threshold.cpu().numpy()

    @cached_property
    def decision(self) -> FloatMap:
        """S_n, float32 (H, W) in (0.3, 0.8)."""
        return self.surfaces.decision.cpu().numpy()

    @property
    def boxes(self) -> Boxes:
        """The boxes that were kept, clipped to the image."""
        return self.surfaces.boxes


@dataclass(frozen=True, eq=False)
class Surfaces:
    """What every output rule is made of, for one image: (H, W) float32 tensors on the model's device."""

    raw: Tensor  # sign * S
    unit: Tensor  # S~ in (0, 1)
    decision: Tensor  # S_n
    threshold: Tensor  # T_r
    soft_probability: Tensor  # P~ in (0, 1)
    coverage: Tensor  # confidence of the best box that covers the pixel, 0 outside; outlined, the best confidence * o
    inside: Tensor  # bool
    means: Tensor  # (2,) of the standardised score, inside boxes and outside
    boxes: Boxes
    outline: Tensor | None = None  # o in [0, 1], where objects were outlined

    @cached_property
    def order(self) -> ScoreOrder:
        """The pixels by score, sorted once for all output rules."""
        return score_order(self.raw.cpu().numpy())


def fuse(
    score: FloatMap,
    boxes: Boxes,
    model: AdtModel,
    rule: FusionRule | None = None,
    *,
    image: npt.NDArray[np.uint8] | None = None,
    image_size: tuple[int, int] | None = None,
) -> Fused:
    """Turn a score map and boxes into final score, mask and thresholds.

    Args:
        score: float32 (H, W) in the scale and sign that the model's statistics describe.
        boxes: Boxes in pixels of the same image; none at all is fine, the order of the scores is then kept
            exactly. A box that covers no pixel's centre is none.
        model: A trained ADT-Net (:func:`anomdino.adt.store.load_adt`).
        rule: How the final score is made; the model's own rule if absent.
        image: uint8 (H, W, 3), RGB; a rule with ``outline`` outlines objects by it, and without it does not.
        image_size: (H, W) of the image, checked against the map.

    Raises:
        DataError: The map is not (H, W), not of the image's size, holds NaN or is constant, or a box is not
            finite.
        ConfigError: The model has a threshold that was calibrated for another rule.
    """
    rule = rule or model.rule
    if model.threshold is not None:
        outlines = rule.outline and (image is not None or not len(boxes))
        model.threshold.require(asdict(replace(rule, outline=outlines)))
    replay = model.replay if model.net.mean.is_cuda else None
    surfaces = compute_surfaces(
        score,
        boxes,
        model.net,
        rule.box_score,
        rule.mask_floor,
        image=image if rule.outline else None,
        outliner=model.outliner,
        image_size=image_size,
        replay=replay,
    )
    if model.threshold is not None:
        final = final_score(surfaces, rule)
        return Fused(final, model.threshold.mask(final, rule.min_component), surfaces)
    mask = _decided(surfaces, model.net.architecture.ramp)
    arriving = _start_score(surfaces, rule)  # from a GPU it comes while components are counted
    mask = remove_small_components(mask, rule.min_component)
    return Fused(_finish_score(arriving, surfaces, rule), mask, surfaces)


@torch.inference_mode()
def compute_surfaces(
    score: FloatMap,
    boxes: Boxes,
    net: AdtNet,
    box_score: float,
    mask_floor: float = 0.0,
    *,
    image: npt.NDArray[np.uint8] | None = None,
    outliner: OutlineNet | None = None,
    image_size: tuple[int, int] | None = None,
    replay: SurfaceReplay | None = None,
) -> Surfaces:
    """Run the network once; every output rule is then cheap (see :func:`final_score`).

    Args:
        score: See :func:`fuse`, as ``boxes`` and ``image_size``.
        boxes: Boxes of any confidence.
        net: ADT-Net in evaluation mode.
        box_score: Boxes with at least this confidence are kept; that of :func:`anomdino.adt.evidence.weighed`, where the
            network weighs it.
        mask_floor: See :class:`FusionRule`.
        image: uint8 (H, W, 3), RGB; objects are outlined by it (:func:`with_outlines`). None outlines nothing.
        outliner: The network that outlines them besides; None leaves it to colours.
        image_size: (H, W) of the image.
        replay: Replays the network as a CUDA graph; ``None`` runs it step by step.
    """
    score = check_shape(score, image_size)
    if replay is None:
        check_values(score, float(score.min()), float(score.max()))
    if net.box_weights is not None:
        check_values(score, float(score.min()), float(score.max()))
    kept = weighed(boxes.clipped((score.shape[0], score.shape[1])), score, net).kept(box_score).on_pixels()
    device = net.mean.device
    scores = torch.from_numpy(score).to(device)
    coverage = _coverage(kept, score.shape, device)
    tensors = surface_tensors(net, scores, coverage) if replay is None else replay(scores, coverage)
    if replay is not None:
        check_values(score, *tensors.span.tolist())
    surfaces = with_floor(surfaces_of(tensors, kept), net, mask_floor)
    if image is None:
        return surfaces
    learned = None if outliner is None else outlined_by(outliner, surfaces, image)
    return with_outlines(surfaces, image, net.architecture.ramp, learned)


def surfaces_of(tensors: SurfaceTensors, boxes: Boxes) -> Surfaces:
    """Put the network's result and the boxes that it was given together."""
    named = tensors._asdict()
    del named["span"]
    return Surfaces(**named, boxes=boxes)


@torch.inference_mode()
def with_floor(surfaces: Surfaces, net: AdtNet, floor: float) -> Surfaces:
    """Raise the thresholds that lie below S_n of the score whose S~ is ``floor``, and P~ with them; 0 changes nothing.

    A mask then has no pixel with a lower S~.
    """
    if not floor:
        return surfaces
    inside, outside = net.floor_thresholds(surfaces.means, floor)
    threshold = torch.maximum(surfaces.threshold, torch.where(surfaces.inside, inside, outside))
    probability = soft_probability(surfaces.decision, threshold, net.architecture.ramp)
    return replace(surfaces, threshold=threshold, soft_probability=probability)


def outlined_by(outliner: OutlineNet, surfaces: Surfaces, image: npt.NDArray[np.uint8]) -> Outlines:
    """Outline the objects of the boxes by the network; thresholds and their floor do not matter to it.

    Args:
        outliner: The network.
        surfaces: Those of the image.
        image: uint8 (H, W, 3), RGB.

    Raises:
        DataError: The image is not RGB of the score's size.
    """
    standardised = torch.logit(surfaces.unit.double(), eps=1e-9).float()
    return draw(outliner, image, standardised.cpu().numpy(), surfaces.boxes)


def with_outlines(
    surfaces: Surfaces,
    image: npt.NDArray[np.uint8],
    ramp: float,
    learned: Outlines | None = None,
    known: Known | None = None,
) -> Surfaces:
    """Outline the objects of the boxes: see :class:`FusionRule`. Without boxes nothing changes.

    Args:
        surfaces: As they are without outlines.
        image: uint8 (H, W, 3), RGB.
        ramp: Width of the ramp around the threshold; by colours an outline starts from the mask P >= 0.5
            and, in likely boxes without it, from what stands out (:func:`anomdino.adt.outline.first_guess`).
        learned: What a network outlined (:func:`outlined_by`).
        known: Outlines of this image by colours with other thresholds, which save time where the mask is the same.

    Raises:
        DataError: The image is not RGB of the score's size.
    """
    if not len(surfaces.boxes):
        return surfaces
    score = surfaces.raw.cpu().numpy()
    guess = first_guess(score, surfaces.boxes, _decided(surfaces, ramp))
    drawn = draw_outlines(image, score, surfaces.boxes, guess, known)
    if learned is not None:
        drawn = Outlines(
            *(np.float32(0.5) * (one + other) for one, other in zip(drawn, learned, strict=True))
        )
    shape, confidence = (torch.from_numpy(part).to(surfaces.raw.device) for part in drawn)
    probability = torch.maximum(surfaces.soft_probability, shape)
    return replace(surfaces, soft_probability=probability, coverage=confidence, outline=shape)


def final_score(surfaces: Surfaces, rule: FusionRule) -> FloatMap:
    """Give the final score of an image by one of the output rules.

    Returns:
        float32 (H, W). ``hard`` is tied outside the boxes by definition. Without boxes, and where k = 1 and b = 0,
        ``soft``, ``boost`` and ``fused`` rank the pixels exactly as the score does, distinct values staying distinct.
        Else pixels whose S~ float32 cannot tell from 1 (:data:`CROWDED`) and that the rule treats alike stay in the order
        of their scores.
    """
    return _finish_score(_start_score(surfaces, rule), surfaces, rule)


def _start_score(surfaces: Surfaces, rule: FusionRule) -> Tensor:
    """Start to bring the blended score to the CPU."""
    return blended(surfaces, rule).to("cpu", non_blocking=True)


def _finish_score(arriving: Tensor, surfaces: Surfaces, rule: FusionRule) -> FloatMap:
    """Wait for the score and, where nothing changes its order, restore that order exactly."""
    if surfaces.raw.is_cuda:
        torch.cuda.current_stream(surfaces.raw.device).synchronize()
    score: FloatMap = arriving.numpy()
    if rule.output == "raw":
        return score
    if _keeps_order(surfaces, rule):
        return ordered(surfaces.order, score)
    return _told_apart(score, surfaces, rule)


def _keeps_order(surfaces: Surfaces, rule: FusionRule) -> bool:
    lowers = rule.output in {"soft", "fused"} and rule.k < 1
    adds = rule.output in {"boost", "fused"} and rule.b > 0
    return rule.output != "hard" and (not len(surfaces.boxes) or not (lowers or adds))


def _told_apart(score: FloatMap, surfaces: Surfaces, rule: FusionRule) -> FloatMap:
    """Order pixels of equal values whose S~ crowds below 1 by their scores."""
    if float(surfaces.unit.amax()) < CROWDED:
        return score
    crowded = surfaces.unit >= CROWDED
    if rule.output == "hard":
        crowded = crowded & surfaces.inside
    places = np.flatnonzero(crowded.cpu().numpy())
    if not len(places):
        return score
    values, raw = score.ravel()[places], surfaces.raw.cpu().numpy().ravel()[places]
    index = np.lexsort((raw, values))
    rank = np.zeros(len(index), np.int32)
    differ = (np.diff(values[index]) > 0) | (np.diff(raw[index]) > 0)
    np.cumsum(differ, out=rank[1:])
    result = score.copy()
    result.ravel()[places] = ordered(ScoreOrder(index, rank), values)
    return result


def final_mask(surfaces: Surfaces, ramp: float, min_component: int) -> BoolMap:
    """Give the mask (see :class:`FusionRule`), bool (H, W), without components below ``min_component`` pixels."""
    return remove_small_components(_decided(surfaces, ramp), min_component)


def _decided(surfaces: Surfaces, ramp: float) -> BoolMap:
    decided = ramp_probability(surfaces.decision, surfaces.threshold, ramp) >= 0.5
    if surfaces.outline is not None:
        decided = decided | (surfaces.outline >= 0.5)
    mask: BoolMap = decided.cpu().numpy()
    return mask


@dataclass(frozen=True, eq=False)
class ScoreOrder:
    """The pixels of a map by ascending score.

    Attributes:
        index: (N,) flat positions of the pixels.
        rank: int32 (N,) rank of each of them, from 0, without gaps; equal scores share one.
    """

    index: npt.NDArray[np.intp]
    rank: npt.NDArray[np.int32]


def score_order(scores: FloatMap) -> ScoreOrder:
    """Sort the pixels of a map, float32 (H, W), by score."""
    index = np.argsort(scores, axis=None)
    ordered = scores.ravel()[index]
    rank = np.zeros(len(ordered), np.int32)
    np.cumsum(ordered[1:] > ordered[:-1], out=rank[1:])
    return ScoreOrder(index, rank)


def ordered(order: ScoreOrder, values: FloatMap) -> FloatMap:
    """Nudge ``values`` by the fewest steps of float32 so that they are ordered exactly as the scores.

    A strictly increasing function of float32 scores can tie or swap neighbours when it is evaluated in
    float32. Here equal scores get equal values and larger scores larger values; what is ordered already does
    not change.

    Args:
        order: The scores' order (:func:`score_order`).
        values: float32 (H, W), not negative, an increasing function of the scores up to rounding.
    """
    strict = np.maximum(values, 0).ravel()[order.index]
    strict += np.float32(0)  # -0.0 has the bits of a negative number
    steps = strict.view(np.int32)
    steps -= order.rank
    np.maximum.accumulate(steps, out=steps)
    steps += order.rank
    last = np.flatnonzero(np.diff(order.rank, append=order.rank[-1] + 1))
    result = np.empty(values.size, np.float32)
    result[order.index] = strict[last][order.rank]
    return result.reshape(values.shape)


def check_map(score: FloatMap, image_size: tuple[int, int] | None = None) -> FloatMap:
    """Check that a score map can be fused and give it as contiguous float32.

    Raises:
        DataError: It is not (H, W), not of the image's size, holds NaN or infinity, or is constant.
    """
    score = check_shape(score, image_size)
    check_values(score, float(score.min()), float(score.max()))
    return score


def check_shape(score: FloatMap, image_size: tuple[int, int] | None = None) -> FloatMap:
    """Check the shape of a score map as :func:`check_map` does and give it as contiguous float32."""
    score = np.ascontiguousarray(score, dtype=np.float32)
    if score.ndim != 2 or not score.size:
        raise DataError("score map", f"has shape {score.shape}", "give one (H, W) map for each image")
    if image_size is not None and score.shape != tuple(image_size):
        raise DataError(
            "score map",
            f"is {score.shape[0]} x {score.shape[1]}, the image is {image_size[0]} x {image_size[1]} (H x W)",
            "write the scores at the size of the image",
        )
    return score


def check_values(score: FloatMap, low: float, high: float) -> None:
    """Refuse a score map, float32 (H, W), by its lowest and highest value (NaN where it holds one)."""
    if not np.isfinite(low + high):
        bad = int((~np.isfinite(score)).sum())
        raise DataError("score map", f"holds {bad} NaN or infinite pixels", "fix the method that made it")
    if low == high:
        raise DataError("score map", f"is constant ({low:g})", "a map without contrast ranks nothing")


def blended(surfaces: Surfaces, rule: FusionRule) -> Tensor:
    """Give the final score of a rule, float32 (H, W), in which rounding may tie pixels (see :func:`final_score`)."""
    if rule.output == "raw":
        return surfaces.raw
    if rule.output == "hard":
        return surfaces.unit * surfaces.inside
    if rule.output == "boost":
        return surfaces.unit + rule.b * surfaces.inside
    soft = surfaces.unit * (rule.k + (1 - rule.k) * surfaces.soft_probability)
    return soft if rule.output == "soft" else soft + rule.b * surfaces.coverage


def _coverage(boxes: Boxes, size: tuple[int, ...], device: torch.device) -> Tensor:
    canvas = torch.full(size, -1.0, device=device)
    limit = [size[1], size[0], size[1], size[0]]
    for index in np.argsort(boxes.scores, kind="stable"):
        x0, y0, x1, y1 = np.clip(np.ceil(boxes.xyxy[index] - 0.5), 0, limit).astype(int)
        canvas[y0:y1, x0:x1] = float(boxes.scores[index])
    return canvas
