"""Fit the rule of a released model's ADT-Net to its scores and boxes, on held-out images; its networks stay as they are.

Usage: python -m pipeline.release_tune --inlier SCENES --outliers OBJECTS [--tolerance 0.02] [--to FOLDER]

SCENES (`images/`, `labels/`) are ones that trained nothing, CamVid's *val*; of OBJECTS (`images/`, `masks/`) those are
taken that the scorer's training held out: composed into the scenes, every image a second time as another camera sees it,
and as the photos they were cut from. The model scores them and finds boxes in them. From these it is fitted how boxes
are weighed, then searched, one after the other, from what confidence boxes are kept, the floor of the thresholds, and k
and b of the final score, by which neither kind of image may get worse than its raw score. That is what
`anomdino tune --all --box-evidence --by-folder --floor` does with images of one's own.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomdino.config.params import Params
from pipeline import _release
from pipeline._material import (
    LABELS,
    LIST,
    PHOTOS,
    compose_twice,
    detect_images,
    held_out_objects,
    link_photos,
    score_kind,
    written_labels,
)

if TYPE_CHECKING:
    from anomdino.adt.dataset import Item

COMPOSED = "composed"
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    inlier: _release.Scenes,
    outliers: _release.Objects,
    work: Annotated[Path, typer.Option(help="Where images, scores and boxes lie.")] = Path(
        "out/release_tune"
    ),
    to: _release.Released = _release.TARGET,
    count: _release.Doubled = 40,
    photos: Annotated[int, typer.Option(min=2, help="Photos of objects.")] = 46,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Differences of the search's objective up to this size count as none."),
    ] = 0.02,
) -> None:
    """Gather images, score them, find boxes in them, fit and search, and write ADT-Net with its rule."""
    from anomdino.adt.store import load_adt, save_adt
    from anomdino.adt.tuning import tune_rule, write_tuning

    with _release.training_command("release_tune", to, inlier, outliers) as params:
        objects = held_out_objects(params, outliers, work / "objects")
        compose_twice(params, count, inlier, objects, work / COMPOSED)
        link_photos(objects / "images", work / PHOTOS, photos)
        kinds = {kind: gather_items(params, to / "models", work, kind) for kind in (COMPOSED, PHOTOS)}
        tuned = tune_rule(
            kinds,
            load_adt(to / "models" / "adt"),
            evidence=params.adt.box_evidence,
            floor=params.adt.mask_floor == "auto",
            objective=params.adt.tune_objective,
            tolerance=tolerance,
        )
        save_adt(tuned.model, to / "models" / "adt")
        write_tuning(tuned.tunings, work / "tuning.json")
    rule = tuned.model.rule
    typer.echo(
        f"release_tune: box score {rule.box_score:g}, floor {rule.mask_floor:g}, k {rule.k:g}, b {rule.b:g}; "
        f"{work / 'tuning.json'}, {to / 'models' / 'adt'}"
    )


def gather_items(params: Params, models: Path, work: Path, kind: str) -> list[Item]:
    """Score the images of a kind, find boxes in them, and list them with their labels."""
    from anomdino.adt.dataset import TrainingFiles, list_items
    from anomdino.io.listing import list_images

    images, seen = score_kind(params, models, work, kind)
    detect_images(params, models, images, seen)
    composed = kind == COMPOSED
    labels = work / kind / LABELS if composed else seen / LABELS
    if not composed:
        shutil.rmtree(labels, ignore_errors=True)
        written_labels(list_images(images), work, kind)
    index = work / kind / LIST if composed else None
    return list_items(TrainingFiles(seen / "scores", labels, seen / "boxes.json", index, images))


if __name__ == "__main__":
    app()
