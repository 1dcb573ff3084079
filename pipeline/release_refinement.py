"""Train the network that lowers the released scorer's score by the photo, and make the released model use it.

Usage: python -m pipeline.release_refinement --inlier SCENES --outliers OBJECTS [--seed N] [--to FOLDER]

SCENES (`images/`, `labels/`) and OBJECTS (`images/`, `masks/`) are those of training. Images with large and with small
objects are composed as for `pipeline.release_distil`, the objects' own photos join them, from objects alone that the
scorer's training did not hold out, and scenes in which a known class is the anomaly (`anomdino/release/street.py`). The
released scorer scores them as the model's parameters say, but for this network, which starts from the weights of the one
that outlines objects (`pipeline.release_outline`; from ImageNet's where there is none) and learns what to add
(`anomdino/scorer/refinement_training.py`). It is written beside the scorer's weights, and the model's parameters say
`score.refine_net: true`. `anomdino tune` fits ADT-Net's rule to it. A killed training goes on where it stopped when
called again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from anomdino.config.params import Params, render_params, with_changes
from anomdino.io.atomic import atomic_write_text
from anomdino.io.images import read_image
from anomdino.io.listing import list_images
from anomdino.io.scores import read_score
from anomdino.progress import track
from pipeline import _release
from pipeline._material import (
    PHOTOS,
    SHOWN,
    STREET,
    gather_street,
    gathered,
    label_files,
    read_kind,
    score_kind,
)

if TYPE_CHECKING:
    from anomdino.scorer.refinement_training import RefinementShare

KINDS = {PHOTOS: (1.0, 5), "small": (3.0, 2), "large": (2.0, 2), STREET: (2.0, 3)}
"""Weight of the loss and draws of each kind of image."""
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    inlier: _release.Scenes,
    outliers: _release.Objects,
    work: _release.Work = Path("out/release_refinement"),
    to: _release.Released = _release.TARGET,
    count: _release.LargeImages = 160,
    photos: _release.Photos = 900,
    scenes: _release.StreetScenes = 184,
    steps: _release.Steps = 1500,
    seed: _release.Seed = None,
) -> None:
    """Gather images, score them, train, and write network and parameters."""
    from anomdino.adt.store import load_adt
    from anomdino.device import resolve_device
    from anomdino.scorer.distributed import World
    from anomdino.scorer.refinement import save_refinement
    from anomdino.scorer.refinement_training import RefinementPlan, train_refinement

    with _release.training_command("release_refinement", to, inlier, outliers) as given:
        params = with_changes(given, "score", refine_net=False)
        world = World(0, 1, resolve_device(params.device))
        gathered(params, inlier, outliers, work, count, photos, world)
        adt = load_adt(to / "models" / "adt")
        gather_street(params, to / "models", inlier, work, scenes, adt.net.statistics)
        shares = [gather_share(params, to / "models", work, kind) for kind in KINDS]
        plan, chosen = RefinementPlan(steps=steps), params.seed if seed is None else seed
        measures = adt.net.statistics
        done = train_refinement(
            shares,
            (measures.mean, measures.std),
            plan,
            work / "state",
            seed=chosen,
            world=world,
            start=adt.outliner,
        )
        details = {
            "trained by": "python -m pipeline.release_refinement",
            "starts from": "ImageNet" if adt.outliner is None else "the network that outlines objects",
            "steps": steps,
            "seed": chosen,
            "images": {kind: len(share.items) for kind, share in zip(KINDS, shares, strict=True)},
            "loss before": dict(zip(KINDS, done.before, strict=True)),
            "loss after": dict(zip(KINDS, done.after, strict=True)),
        }
        save_refinement(done.network, to / "models" / "rpl", details)
        atomic_write_text(to / "params.yaml", render_params(with_changes(given, "score", refine_net=True)))
    losses = _release.changes(KINDS, done.before, done.after)
    typer.echo(f"release_refinement: cross-entropy of kept images {losses}; {to}")


def gather_share(params: Params, models: Path, work: Path, kind: str) -> RefinementShare:
    """Score the images of a kind and store them with their labels on the network's grid."""
    from anomdino.scorer.refinement_training import RefinementShare, write_item
    from anomdino.scorer.small_training import StoredItem

    images, seen = score_kind(params, models, work, kind)
    items, labels = [], label_files(work, kind)
    for key, path in track(list_images(images).items(), f"store {kind}"):
        label = read_kind(labels[key], kind)
        file = work / "grids" / kind / f"{key}.npz"
        write_item(file, read_image(path), read_score(seen / "scores" / f"{key}.npz", label.shape), label)
        items.append(StoredItem(key, file))
    weight, draws = KINDS[kind]
    return RefinementShare(items, draws, weight, SHOWN[kind])


if __name__ == "__main__":
    app()
