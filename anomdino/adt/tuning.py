"""Fit a trained ADT-Net's rule to held-out images: weights of boxes, the thresholds' floor, k and b; and store it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from anomdino.adt.box_score import choose_for_objects
from anomdino.adt.dataset import Item, TrainingFiles, hold_out, list_items, read_item
from anomdino.adt.evidence import fit, weighed
from anomdino.adt.floor_search import Floors, search_floor
from anomdino.adt.fusion import AdtModel
from anomdino.adt.model import AdtNet
from anomdino.adt.rule_search import TOLERANCE, Objective, Tuning, search, search_kinds
from anomdino.adt.store import save_adt
from anomdino.adt.training import TrainingPlan
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.boxes import Boxes


def fit_evidence(items: Sequence[Item], model: AdtModel) -> AdtModel:
    """Give the model with weights of its boxes' confidences fitted on these images, and the box score that suits them.

    What its training does with ``adt.box_evidence``, for a model that was trained without; a calibrated threshold is
    dropped.

    Args:
        items: Images with labels and boxes of detectors that did not train on them.
        model: The model; network and statistics stay.

    Raises:
        DataError: All boxes hold an object, or none.
    """
    old = model.net
    net = AdtNet(replace(old.architecture, box_evidence=True), old.statistics).to(old.mean.device).eval()
    net.load_state_dict(old.state_dict(), strict=False)
    weights = fit(((*read_item(item), item.boxes) for item in items), net)
    if weights is None:
        raise DataError(
            "boxes", "hold an object all of them, or none", "give images with and without objects"
        )
    assert net.box_weights is not None
    net.box_weights.copy_(torch.from_numpy(weights))
    box_score = choose_for_objects(_with_weighed_boxes(item, net) for item in items)
    made = {"box_evidence": {"images": len(items), "weights": weights.tolist()}}
    rule = replace(model.rule, box_score=box_score)
    return replace(model, net=net, rule=rule, threshold=None, provenance=model.provenance | made)


def _with_weighed_boxes(item: Item, net: AdtNet) -> tuple[Boxes, npt.NDArray[np.uint8]]:
    score, label = read_item(item)
    return weighed(item.boxes.clipped((label.shape[0], label.shape[1])), score, net), label


def apply_floor(model: AdtModel, floors: Floors) -> AdtModel:
    """Give the model with the chosen floor in its rule, and choice and curve in its provenance.

    Where the floor changes, a threshold that was calibrated with the one before is dropped.
    """
    made = model.provenance | {"mask_floor": [asdict(point) for point in floors.curve]}
    rule = replace(model.rule, mask_floor=floors.choice.floor)
    threshold = model.threshold if rule == model.rule else None
    return replace(model, rule=rule, threshold=threshold, provenance=made)


def tune_trained(
    model: AdtModel,
    files: TrainingFiles,
    plan: TrainingPlan,
    out: Path,
    *,
    seed: int = 0,
    objective: Objective = "overall",
    tolerance: float = TOLERANCE,
    floor: bool = False,
) -> AdtModel:
    """Search with ``floor`` the thresholds' floor, then k and b, on the images that training held out; store the choice,
    and the curve of k and b beside it.
    """
    _, held_out = hold_out(list_items(files), plan.holdout, seed)
    if floor:
        model = apply_floor(model, search_floor(held_out, model, tolerance=tolerance))
    tuning = search(held_out, model, objective=objective, tolerance=tolerance, seed=seed)
    tuned = apply_choice(model, tuning)
    save_adt(tuned, out)
    write_tuning(tuning, out / "tuning.json")
    return tuned


@dataclass(frozen=True)
class Tuned:
    """What :func:`tune_rule` gives.

    Attributes:
        model: The model with its new rule.
        tunings: By kind, what the search for k and b measured.
        floors: What the search for the floor measured; None where it was not asked for.
    """

    model: AdtModel
    tunings: Mapping[str, Tuning]
    floors: Floors | None


def tune_rule(
    kinds: Mapping[str, Sequence[Item]],
    model: AdtModel,
    *,
    evidence: bool = False,
    floor: bool = False,
    objective: Objective = "overall",
    tolerance: float = TOLERANCE,
) -> Tuned:
    """Fit a trained model's rule to labelled images: weights of boxes, the thresholds' floor, then k and b.

    Args:
        kinds: Images of the training domain by kind; all of one kind under any name.
        model: The model; its network stays.
        evidence: Whether :func:`fit_evidence` weighs the boxes anew, on the images of all kinds.
        floor: Whether :func:`search_floor` chooses the floor, on the images of all kinds.
        objective: Of :func:`search_kinds`.
        tolerance: Of both searches.

    Raises:
        DataError: All boxes hold an object, or none; or a kind has no anomalous pixel, or no other.
        ConfigError: The objective is unknown.
    """
    items = [item for found in kinds.values() for item in found]
    if evidence:
        model = fit_evidence(items, model)
    floors = search_floor(items, model, tolerance=tolerance) if floor else None
    if floors is not None:
        model = apply_floor(model, floors)
    tunings = search_kinds(kinds, model, objective=objective, tolerance=tolerance)
    return Tuned(
        apply_choice(model, tunings if len(kinds) > 1 else next(iter(tunings.values()))), tunings, floors
    )


def apply_choice(model: AdtModel, tuning: Tuning | Mapping[str, Tuning]) -> AdtModel:
    """Give the model with the chosen k and b in its rule, and the choice (of every kind) in its provenance."""
    one = tuning if isinstance(tuning, Tuning) else next(iter(tuning.values()))
    rule = replace(model.rule, k=one.choice.k, b=one.choice.b)
    threshold = model.threshold if rule == model.rule else None  # it belongs to the final score of before
    made = model.provenance | {"tuning": _summary(tuning)}
    return replace(model, rule=rule, threshold=threshold, provenance=made)


def write_tuning(tuning: Tuning | Mapping[str, Tuning], path: Path) -> None:
    """Write choice and curve as JSON; of several kinds, one such object each under ``kinds``."""
    atomic_write_json(path, _with_curve(tuning))


def _with_curve(tuning: Tuning | Mapping[str, Tuning]) -> dict[str, object]:
    if isinstance(tuning, Tuning):
        return _summary(tuning) | {"curve": [asdict(point) for point in tuning.curve]}
    return {"kinds": {kind: _with_curve(one) for kind, one in tuning.items()}}


def _summary(tuning: Tuning | Mapping[str, Tuning]) -> dict[str, object]:
    if not isinstance(tuning, Tuning):
        return {"kinds": {kind: _summary(one) for kind, one in tuning.items()}}
    return {
        "objective": tuning.objective,
        "tolerance": tuning.tolerance,
        "images": tuning.images,
        "choice": asdict(tuning.choice),
        "raw": asdict(tuning.raw),
    }
