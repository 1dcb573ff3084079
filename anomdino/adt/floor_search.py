"""Search for the floor of the mask's thresholds on held-out images of the training domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anomdino.adt.dataset import Item, read_item, read_photo
from anomdino.adt.fusion import AdtModel, compute_surfaces, final_mask, outlined_by, with_floor, with_outlines
from anomdino.adt.outline import Known
from anomdino.adt.rule_search import LEAST_PREDICTED, LEAST_TRUE, TOLERANCE
from anomdino.metrics.components import ComponentState, frame_components
from anomdino.progress import track

FLOOR_GRID = (0.0, 0.5, 0.7, 0.8, 0.83, 0.86, 0.88, 0.9, 0.95)


@dataclass(frozen=True)
class FloorPoint:
    """Components of the masks of all held-out images for one floor; see :class:`anomdino.adt.rule_search.Point`."""

    floor: float
    component_f1: float
    missed: int
    false: int


@dataclass(frozen=True)
class Floors:
    """The chosen floor of the mask and the whole curve, which begins without one."""

    choice: FloorPoint
    curve: tuple[FloorPoint, ...]


def search_floor(
    items: Sequence[Item],
    model: AdtModel,
    *,
    tolerance: float = TOLERANCE,
    floors: Sequence[float] = FLOOR_GRID,
) -> Floors:
    """Measure the masks of held-out images for every floor and choose the lowest within ``tolerance`` of the best F1*.

    The lowest, because a floor can only take pixels away: it misses least.

    Args:
        items: Held-out images with labels and the detector's boxes.
        model: The model; its ``box_score`` is kept.
        tolerance: How far below the best F1* the choice may lie.
        floors: Floors in ascending order, beginning with 0.
    """
    states = [ComponentState() for _ in floors]
    for item in track(items, "tune, floor"):
        score, label = read_item(item)
        surfaces = compute_surfaces(score, item.boxes, model.net, model.rule.box_score)
        photo, known = read_photo(item, label.shape) if model.rule.outline else None, Known()
        outliner, learned = model.outliner, None
        if photo is not None and outliner is not None:
            learned = outlined_by(outliner, surfaces, photo)
        ramp = model.net.architecture.ramp
        limits = (round(LEAST_PREDICTED * label.size), round(LEAST_TRUE * label.size))
        for state, floor in zip(states, floors, strict=True):
            raised = with_floor(surfaces, model.net, floor)
            if photo is not None:
                raised = with_outlines(raised, photo, ramp, learned, known)
            mask = final_mask(raised, ramp, limits[0])
            state.update(frame_components(mask, label, *limits))
    found = [state.compute() for state in states]
    curve = tuple(
        FloorPoint(floor, one.f1 or 0.0, one.missed["25"], one.false["25"])
        for floor, one in zip(floors, found, strict=True)
    )
    best = max(point.component_f1 for point in curve)
    choice = next(point for point in curve if point.component_f1 >= best - tolerance)
    return Floors(choice, curve)
