"""Search for the two weights of the fused score, k and b, on held-out images of the training domain.

Never on evaluation images: :func:`anomdino.adt.dataset.list_items` refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from anomdino.adt.dataset import Item, TrainingFiles, hold_out, list_items, read_item
from anomdino.adt.fusion import AdtModel, FusionRule, compute_surfaces, final_score
from anomdino.adt.histogram import ScoreHistogram
from anomdino.adt.store import save_adt
from anomdino.adt.training import TrainingPlan
from anomdino.errors import ConfigError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.boxes import Boxes
from anomdino.progress import track
from anomdino.seeding import rng

Objective = Literal["ap", "fpr95", "both"]

K_GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
B_GRID = (0.0, 0.03, 0.05, 0.1, 0.2, 0.4, 1.0)
PIXELS_PER_IMAGE = 20_000


@dataclass(frozen=True)
class Point:
    """Pixel measures of one output rule over all held-out images."""

    output: str
    k: float
    b: float
    ap: float
    fpr95: float
    f1: float

    def value(self, objective: Objective) -> float:
        """What the search maximises: AP, -FPR95, or ``both``: AP - FPR95."""
        return {"ap": self.ap, "fpr95": -self.fpr95, "both": self.ap - self.fpr95}[objective]


@dataclass(frozen=True)
class Tuning:
    """The choice, the plain score beside it, and the whole curve."""

    choice: Point
    raw: Point
    curve: tuple[Point, ...]
    objective: Objective
    images: int


def search(
    items: Sequence[Item],
    model: AdtModel,
    *,
    objective: Objective = "both",
    ks: Sequence[float] = K_GRID,
    bs: Sequence[float] = B_GRID,
    seed: int = 0,
) -> Tuning:
    """Measure ``fused`` for every k and b over the same random pixels of each image, 20,000 an image.

    Args:
        items: Held-out images with labels and the detector's boxes.
        model: The model whose rule is searched; its ``box_score`` is kept.
        objective: What is maximised (:meth:`Point.value`). Among equals the first in the grid wins.
        ks: Values of k.
        bs: Values of b.
        seed: Seed of the choice of pixels.
    """
    if objective not in get_args(Objective):
        raise ConfigError("objective", f"is '{objective}'", f"use one of {', '.join(get_args(Objective))}")
    raw = replace(model.rule, output="raw")
    rules = [raw, *(replace(model.rule, output="fused", k=k, b=b) for k, b in product(ks, bs))]
    histograms = [ScoreHistogram(bits=17) for _ in rules]
    for item in track(items, "tune"):
        score, label = read_item(item)
        chosen = _some_pixels(label, rng(seed, "adt", "tune", item.key))
        scores = _scores_by_rule(score, item.boxes, model, rules)
        for histogram, values in zip(histograms, scores, strict=True):
            histogram.add(values.ravel()[chosen], label.ravel()[chosen])
    points = [_point(rule, histogram) for rule, histogram in zip(rules, histograms, strict=True)]
    choice = max(points[1:], key=lambda point: point.value(objective))
    return Tuning(choice, points[0], tuple(points[1:]), objective, len(items))


def tune_trained(
    model: AdtModel,
    files: TrainingFiles,
    plan: TrainingPlan,
    out: Path,
    *,
    seed: int = 0,
    objective: Objective = "both",
) -> AdtModel:
    """Search k and b on the images that training held out; store the choice, and the curve beside it."""
    _, held_out = hold_out(list_items(files), plan.holdout, seed)
    tuning = search(held_out, model, objective=objective, seed=seed)
    tuned = apply_choice(model, tuning)
    save_adt(tuned, out)
    write_tuning(tuning, out / "tuning.json")
    return tuned


def apply_choice(model: AdtModel, tuning: Tuning) -> AdtModel:
    """Give the model with the chosen k and b in its rule, and the choice in its provenance."""
    rule = replace(model.rule, k=tuning.choice.k, b=tuning.choice.b)
    return replace(model, rule=rule, provenance=model.provenance | {"tuning": _summary(tuning)})


def write_tuning(tuning: Tuning, path: Path) -> None:
    """Write choice and curve as JSON."""
    atomic_write_json(path, _summary(tuning) | {"curve": [vars(point) for point in tuning.curve]})


def _summary(tuning: Tuning) -> dict[str, object]:
    return {
        "objective": tuning.objective,
        "images": tuning.images,
        "choice": vars(tuning.choice),
        "raw": vars(tuning.raw),
    }


def _scores_by_rule(
    score: npt.NDArray[np.float32], boxes: Boxes, model: AdtModel, rules: Iterable[FusionRule]
) -> Iterable[npt.NDArray[np.float32]]:
    surfaces = compute_surfaces(score, boxes, model.net, model.rule.box_score)
    return (final_score(surfaces, rule) for rule in rules)


def _some_pixels(label: npt.NDArray[np.uint8], draw: np.random.Generator) -> npt.NDArray[np.intp]:
    if label.size <= PIXELS_PER_IMAGE:
        return np.arange(label.size)
    return draw.integers(0, label.size, PIXELS_PER_IMAGE)


def _point(rule: FusionRule, histogram: ScoreHistogram) -> Point:
    return Point(
        output=rule.output,
        k=rule.k,
        b=rule.b,
        ap=histogram.average_precision(),
        fpr95=histogram.fpr_at_recall(0.95),
        f1=histogram.best_f1()[0],
    )
