"""Train the network that outlines objects in boxes for the released light model: its other parts stay as they are.

Usage: python -m pipeline.release_outline --inlier SCENES --outliers OBJECTS [--to FOLDER]

SCENES (`images/`, `labels/`) and OBJECTS (`images/`, `masks/`) are those of training. Images with large and with small
objects are composed as for `pipeline.release_distil`, and the objects' own photos join them, from objects alone that the
scorer's training did not hold out. Scenes in which a known class is the anomaly (`anomdino/release/street.py`) show
objects that nobody pasted. The released scorer and detector score them all and find boxes in them; the network
learns to outline what the boxes hold, from ImageNet's weights (`anomdino/adt/outline_training.py`), and is written beside
the released ADT-Net, whose rule then says `outline`. `anomdino tune` fits box score, floor, k and b to it. A killed
training goes on where it stopped when called again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomdino.config.params import Params, render_params, with_changes
from anomdino.io.atomic import atomic_write_text
from anomdino.io.listing import list_images
from pipeline import _release
from pipeline._material import (
    PHOTOS,
    SHOWN,
    STREET,
    detect_images,
    gather_street,
    gathered,
    score_kind,
    written_labels,
)

if TYPE_CHECKING:
    from anomdino.adt.outline_training import OutlineShare

DRAWS = {PHOTOS: 5, "small": 2, "large": 2, STREET: 3}
"""How often images of each kind are drawn from."""
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    inlier: _release.Scenes,
    outliers: _release.Objects,
    work: Annotated[Path, typer.Option(help="Where images, scores, boxes and resume points lie.")] = Path(
        "out/release_outline"
    ),
    to: _release.Released = _release.TARGET,
    count: _release.LargeImages = 160,
    photos: _release.Photos = 900,
    scenes: _release.StreetScenes = 184,
    steps: _release.Steps = 2400,
) -> None:
    """Gather images, score them, find boxes in them, train, and write the network."""
    from anomdino.adt.outline_training import OutlinePlan, train_outlines
    from anomdino.adt.store import load_adt, save_adt
    from anomdino.device import resolve_device
    from anomdino.scorer.distributed import World

    with _release.training_command("release_outline", to, inlier, outliers) as params:
        world = World(0, 1, resolve_device(params.device))
        gathered(params, inlier, outliers, work, count, photos, world)
        model = load_adt(to / "models" / "adt")
        gather_street(params, to / "models", inlier, work, scenes, model.net.statistics)
        shares = [gather_share(params, to / "models", work, kind) for kind in DRAWS]
        plan = OutlinePlan(steps=steps)
        done = train_outlines(
            shares, model.net.statistics, plan, work / "state", seed=params.seed, world=world
        )
        overlap = dict(zip(DRAWS, (round(value, 4) for value in done.overlap), strict=True))
        done.network.details = {
            "trained by": "python -m pipeline.release_outline",
            "steps": steps,
            "images": {kind: len(share.items) for kind, share in zip(DRAWS, shares, strict=True)},
            "overlap of kept images": {kind: str(value) for kind, value in overlap.items()},
        }
        rule = replace(model.rule, outline=True)
        save_adt(replace(model, rule=rule, threshold=None, outliner=done.network), to / "models" / "adt")
        atomic_write_text(to / "params.yaml", render_params(with_changes(params, "adt", outline=True)))
    typer.echo(f"release_outline: overlap (IoU) of kept images {overlap}; {to}")


def gather_share(params: Params, models: Path, work: Path, kind: str) -> OutlineShare:
    """Score the images of a kind, find boxes in them, and list them with their labels."""
    from anomdino.adt.outline_training import OutlineItem, OutlineShare
    from anomdino.io.boxes import read_box_results

    images, seen = score_kind(params, models, work, kind)
    detect_images(params, models, images, seen)
    found = list_images(images)
    boxes = read_box_results(seen / "boxes.json", list(found))
    labels = written_labels(found, work, kind)
    items = [
        OutlineItem(key, path, seen / "scores" / f"{key}.npz", labels[key], boxes[key])
        for key, path in found.items()
    ]
    return OutlineShare(items, DRAWS[kind], SHOWN[kind])


if __name__ == "__main__":
    app()
