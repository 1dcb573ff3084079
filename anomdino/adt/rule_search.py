"""Search for the two weights of the fused score, k and b, on held-out images of the training domain.

Never on evaluation images: :func:`anomdino.adt.dataset.list_items` refuses them.

``overall``, the default, weighs pixels and whole objects, AP - FPR95 + F1* of components, and asks that nothing gets
worse:

1. A pair (k, b) is *admissible* when AP, FPR95 and the share of missed components are no worse than those of the
   raw score, within ``tolerance``; k = 1, b = 0, which keeps the order of the raw score, always is.
2. Among the admissible pairs whose value lies within ``tolerance`` of the best one, the pair that changes the score
   least, the nearest to k = 1, b = 0, is taken: on few held-out images the best value is partly luck, and images of
   another kind than the training's are better served by the plain score than by a change that gained nothing.

Where images are of several *kinds*, composed ones and photos, say, each kind is measured for itself: AP and FPR95 must be
no worse in any of them, the components missed no more in all together, and the value is the mean over kinds. Pooled, the
kind with the hardest background decides alone, and what it gains the others may lose.

Components are measured as SegmentMeIfYouCan does, each rule at its threshold of best pixel F1; components count
from the share of the image on that AnomalyTrack counts them from (500 and 100 of 1280 x 720 pixels).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from anomdino.adt.dataset import Item, read_item, read_photo
from anomdino.adt.fusion import AdtModel, FusionRule, Output, Surfaces, compute_surfaces, final_score
from anomdino.errors import ConfigError, DataError
from anomdino.metrics.components import ComponentState, frame_components
from anomdino.metrics.results import PixelMetrics
from anomdino.metrics.streaming import StreamingPixels
from anomdino.progress import track
from anomdino.seeding import rng

Objective = Literal["overall", "both", "ap", "fpr95"]

K_GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
B_GRID = (0.0, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 1.0)
TOLERANCE = 0.01
PIXELS_PER_IMAGE = 20_000
CAPACITY, BUFFER = 1 << 16, 1 << 17
LEAST_PREDICTED, LEAST_TRUE = 500 / (1280 * 720), 100 / (1280 * 720)


@dataclass(frozen=True)
class Point:
    """Measures of one output rule over all held-out images; those of components where they were asked for.

    Attributes:
        output: The rule.
        k: Its k.
        b: Its b.
        ap: Average precision of the pixels.
        fpr95: False-positive rate of the pixels at 95 % recall.
        f1: Best F1 of the pixels.
        threshold: Where that is; a pixel is predicted from it on.
        component_f1: SMIYC's F1* at that threshold.
        missed: Components with an sIoU below 0.25.
        false: Predicted components with a PPV below 0.25.
        components: Components that there are.
    """

    output: Output
    k: float
    b: float
    ap: float
    fpr95: float
    f1: float
    threshold: float
    component_f1: float | None = None
    missed: int | None = None
    false: int | None = None
    components: int | None = None

    def value(self, objective: Objective) -> float:
        """What the search maximises: AP; -FPR95; ``both``: AP - FPR95; ``overall``: AP - FPR95 + component F1*."""
        if objective == "ap":
            return self.ap
        pixels = -self.fpr95 if objective == "fpr95" else self.ap - self.fpr95
        return pixels + (self.component_f1 or 0.0) if objective == "overall" else pixels

    def ranks_as_well(self, raw: Point, tolerance: float) -> bool:
        """Whether AP and FPR95 are no worse than those of the raw score, up to ``tolerance``."""
        return self.ap >= raw.ap - tolerance and self.fpr95 <= raw.fpr95 + tolerance


@dataclass(frozen=True)
class Tuning:
    """The choice, the plain score beside it, and the whole curve."""

    choice: Point
    raw: Point
    curve: tuple[Point, ...]
    objective: Objective
    tolerance: float
    images: int


def search(
    items: Sequence[Item],
    model: AdtModel,
    *,
    objective: Objective = "overall",
    tolerance: float = TOLERANCE,
    ks: Sequence[float] = K_GRID,
    bs: Sequence[float] = B_GRID,
    seed: int = 0,
) -> Tuning:
    """Measure ``fused`` for every k and b, pixels on the same 20,000 random ones of each image, and choose.

    Args:
        items: Held-out images with labels and the detector's boxes.
        model: The model whose rule is searched; its ``box_score`` is kept.
        objective: What is maximised (:meth:`Point.value`).
        tolerance: Differences up to this size count as none (:func:`choose`).
        ks: Values of k.
        bs: Values of b.
        seed: Seed of the choice of pixels.
    """
    kinds = {"": items}
    return search_kinds(kinds, model, objective=objective, tolerance=tolerance, ks=ks, bs=bs, seed=seed)[""]


def search_kinds(
    kinds: Mapping[str, Sequence[Item]],
    model: AdtModel,
    *,
    objective: Objective = "overall",
    tolerance: float = TOLERANCE,
    ks: Sequence[float] = K_GRID,
    bs: Sequence[float] = B_GRID,
    seed: int = 0,
) -> dict[str, Tuning]:
    """As :func:`search`, for images of several kinds: one pair is chosen for all, measured in each kind for itself.

    Args:
        kinds: Held-out images by kind.
        model: As there, like all the rest.
        objective: Its mean over kinds is maximised.
        tolerance: As there.
        ks: As there.
        bs: As there.
        seed: As there.

    Returns:
        By kind, what was measured; k and b of every choice are the same.

    Raises:
        DataError: The images of a kind have no anomalous pixel, or no other.
    """
    if objective not in get_args(Objective):
        raise ConfigError("objective", f"is '{objective}'", f"use one of {', '.join(get_args(Objective))}")
    raw_rule = replace(model.rule, output="raw")
    rules = [raw_rule, *(replace(model.rule, output="fused", k=k, b=b) for k, b in product(ks, bs))]
    points = {}
    for kind, items in kinds.items():
        try:
            points[kind] = _pixel_points(items, model, rules, seed)
        except DataError as error:
            where = f"images in {kind}" if kind else error.what
            raise DataError(where, error.cause, error.cure) from error
    if objective == "overall":
        asked = [0, *(i for i in range(1, len(rules)) if _admissible(points.values(), i, tolerance))]
        for kind, measured in points.items():
            found = _with_components(kinds[kind], model, [measured[index] for index in asked])
            for index, point in zip(asked, found, strict=True):
                measured[index] = point
    raws, curves = ([p[0] for p in points.values()], [p[1:] for p in points.values()])
    chosen = choose_for_kinds(raws, curves, objective, tolerance)
    return {
        kind: Tuning(curve[chosen], raw, tuple(curve), objective, tolerance, len(items))
        for (kind, items), raw, curve in zip(kinds.items(), raws, curves, strict=True)
    }


def _admissible(kinds: Iterable[Sequence[Point]], index: int, tolerance: float) -> bool:
    """Whether a pair ranks as well as the plain score, which comes first, in every kind, and misses no more in all.

    Up to ``tolerance``, of the components too: at a threshold that every pair has for itself, one of hundreds is luck.
    """
    pairs = [(points[0], points[index]) for points in kinds]
    if all((one.k, one.b) == (1.0, 0.0) for _, one in pairs):
        return True
    more = sum((one.missed or 0) - (raw.missed or 0) for raw, one in pairs if one.missed is not None)
    some = tolerance * sum(raw.components or 0 for raw, _ in pairs)
    return more <= some and all(one.ranks_as_well(raw, tolerance) for raw, one in pairs)


def choose(raw: Point, curve: Sequence[Point], objective: Objective, tolerance: float) -> Point:
    """Choose a point of the curve: near the best by the objective, and of these the one that changes least.

    Args:
        raw: Measures of the plain score.
        curve: Measures of every k and b.
        objective: What is maximised. ``overall`` looks among the points that are no worse than ``raw``; where
            there is none, ``both`` decides among all.
        tolerance: How far below the best a point may lie. Of all that lie so near, the one with the smallest
            |1 - k| + |b| is taken.
    """
    return curve[choose_for_kinds([raw], [curve], objective, tolerance)]


def choose_for_kinds(
    raws: Sequence[Point], curves: Sequence[Sequence[Point]], objective: Objective, tolerance: float
) -> int:
    """As :func:`choose`, over several kinds of images: the place in the curves of the pair that suits all.

    Args:
        raws: Measures of the plain score, one a kind.
        curves: Measures of every k and b, the same pairs in the same order for every kind.
        objective: Its mean over kinds is maximised, among pairs that are admissible in every kind.
        tolerance: As there.
    """
    pairs = list(zip(*curves, strict=True))
    candidates = list(range(len(pairs)))

    def value(index: int) -> float:
        return float(np.mean([point.value(objective) for point in pairs[index]]))

    if objective == "overall":
        kinds = [[raw, *curve] for raw, curve in zip(raws, curves, strict=True)]
        measured = [i for i in candidates if all(point.component_f1 is not None for point in pairs[i])]
        candidates = [i for i in measured if _admissible(kinds, i + 1, tolerance)]
        if not candidates:
            candidates, objective = list(range(len(pairs))), "both"
    best = max(value(index) for index in candidates)
    near = [index for index in candidates if value(index) >= best - tolerance]
    return min(near, key=lambda i: (round(1 - pairs[i][0].k + pairs[i][0].b, 9), -value(i)))


def _pixel_points(
    items: Sequence[Item], model: AdtModel, rules: Sequence[FusionRule], seed: int
) -> list[Point]:
    states = [StreamingPixels(CAPACITY, BUFFER) for _ in rules]
    for item in track(items, "tune, pixels"):
        score, label = read_item(item)
        chosen = _some_pixels(label, rng(seed, "adt", "tune", item.key))
        surfaces = _surfaces(item, score, model)
        for state, rule in zip(states, rules, strict=True):
            state.update(final_score(surfaces, rule).ravel()[chosen], label.ravel()[chosen])
    return [_point(rule, state.compute()) for rule, state in zip(rules, states, strict=True)]


def _with_components(items: Sequence[Item], model: AdtModel, points: Sequence[Point]) -> list[Point]:
    states = [ComponentState() for _ in points]
    for item in track(items, "tune, components"):
        score, label = read_item(item)
        surfaces = _surfaces(item, score, model)
        limits = (round(LEAST_PREDICTED * label.size), round(LEAST_TRUE * label.size))
        for state, point in zip(states, points, strict=True):
            rule = replace(model.rule, output=point.output, k=point.k, b=point.b)
            state.update(frame_components(final_score(surfaces, rule) >= point.threshold, label, *limits))
    found = [state.compute() for state in states]
    return [
        replace(
            p,
            component_f1=one.f1,
            missed=one.missed["25"],
            false=one.false["25"],
            components=one.gt_components,
        )
        for p, one in zip(points, found, strict=True)
    ]


def _surfaces(item: Item, score: npt.NDArray[np.float32], model: AdtModel) -> Surfaces:
    rule = model.rule
    photo = read_photo(item, score.shape) if rule.outline else None
    return compute_surfaces(
        score,
        item.boxes,
        model.net,
        rule.box_score,
        rule.mask_floor,
        image=photo,
        outliner=model.outliner,
    )


def _some_pixels(label: npt.NDArray[np.uint8], draw: np.random.Generator) -> npt.NDArray[np.intp]:
    if label.size <= PIXELS_PER_IMAGE:
        return np.arange(label.size)
    return draw.integers(0, label.size, PIXELS_PER_IMAGE)


def _point(rule: FusionRule, measured: PixelMetrics) -> Point:
    values = (measured.ap, measured.fpr95, measured.best_f1, measured.best_f1_threshold)
    if None in values:
        lacking = "in-distribution" if measured.positives else "anomalous"
        raise DataError("pixel measures", f"there is no {lacking} pixel", "add images that have some")
    ap, fpr95, f1, threshold = (float(value or 0.0) for value in values)
    return Point(rule.output, rule.k, rule.b, ap, fpr95, f1, threshold)
