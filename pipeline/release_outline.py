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

import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from anomdino.config.params import Params, load_params, render_params
from anomdino.errors import AnomdinoError, DataError
from anomdino.io.atomic import atomic_write_json, atomic_write_text
from anomdino.io.images import read_image, read_label, write_png
from anomdino.io.listing import list_images
from anomdino.memory import keep_freed_memory
from anomdino.protocol import refuse_evaluation_data
from anomdino.seeding import rng, seed_everything
from pipeline.release import TARGET
from pipeline.release_adt import IMAGES, LABELS, detect_images, score_images
from pipeline.release_distil import gathered
from pipeline.release_fusion import label_file, read_kind

if TYPE_CHECKING:
    from anomdino.adt.model import ScoreStatistics
    from anomdino.adt.outline_training import OutlineShare

STREET = "street"
DRAWS = {"photos": 5, "small": 2, "large": 2, STREET: 3}
"""How often images of each kind are drawn from."""
SHOWN = {"photos": 0.95, "small": 0.4, "large": 0.4, STREET: 1.0}
"""How often the network sees a window's image, not only score and box: objects that were pasted give themselves away."""
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    inlier: Annotated[Path, typer.Option(help="Folder with images/ and labels/ (train ids).")],
    outliers: Annotated[Path, typer.Option(help="Folder with images/ and masks/.")],
    work: Annotated[Path, typer.Option(help="Where images, scores, boxes and resume points lie.")] = Path(
        "out/release_outline"
    ),
    to: Annotated[Path, typer.Option(help="The released model.")] = TARGET,
    count: Annotated[
        int, typer.Option(min=8, help="Images with large objects; three quarters as many have small ones.")
    ] = 160,
    photos: Annotated[int, typer.Option(min=2, help="Photos of objects.")] = 900,
    scenes: Annotated[int, typer.Option(min=2, help="Scenes in which known classes are anomalies.")] = 184,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the training.")] = 2400,
) -> None:
    """Gather images, score them, find boxes in them, train, and write the network."""
    from anomdino.adt.outline_training import OutlinePlan, train_outlines
    from anomdino.adt.store import load_adt, save_adt
    from anomdino.device import resolve_device
    from anomdino.scorer.distributed import World

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        keep_freed_memory()
        refuse_evaluation_data(inlier, outliers)
        params = load_params(to / "params.yaml")
        seed_everything(params.seed)
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
        adt = params.adt.model_copy(update={"outline": True})
        atomic_write_text(to / "params.yaml", render_params(params.model_copy(update={"adt": adt})))
    except AnomdinoError as error:
        typer.echo(f"release_outline failed. {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    typer.echo(f"release_outline: overlap (IoU) of kept images {overlap}; {to}")


def gather_street(
    params: Params, models: Path, inlier: Path, work: Path, count: int, statistics: ScoreStatistics
) -> None:
    """Write scenes in which a known class is the anomaly, spread over the folder: images, labels, scores and maps.

    What is there of a call before stays, if the scorer is the same.

    Raises:
        DataError: There are fewer than two.
    """
    from anomdino.device import resolve_device
    from anomdino.io.scores import write_score
    from anomdino.release.street import cases
    from anomdino.scorer.dataset import ImagePairs
    from anomdino.scorer.setup import engine_from

    score = params.score.model_copy(update={"map_stride": 1})
    engine, digest = engine_from(score, models / "rpl", resolve_device(params.device))
    files, out, seen = ImagePairs(inlier, "labels").files, work / STREET, work / "seen" / STREET
    scorer = out / "scorer.txt"
    if not scorer.is_file() or scorer.read_text(encoding="utf-8") != digest:
        for folder in (out, seen):
            shutil.rmtree(folder, ignore_errors=True)
        atomic_write_text(scorer, digest)
    for index in np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)):
        key, image, label = files[index]
        done = out / "scenes" / f"{key}.json"
        if done.is_file():
            continue
        names = []
        source = rng(params.seed, STREET, key)
        for case in cases(engine, read_image(image), read_label(label), statistics, source):
            names.append(f"{key}_{case.number}")
            write_score(seen / "scores" / f"{names[-1]}.npz", case.scored.score)
            case.scored.maps.save(seen / "maps" / f"{names[-1]}.npz")
            write_png(out / LABELS / f"{names[-1]}.png", case.label)
            link = out / IMAGES / f"{names[-1]}{image.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(image.resolve())
        atomic_write_json(done, names)
    if not (out / IMAGES).is_dir() or len(list_images(out / IMAGES)) < 2:
        raise DataError(
            inlier,
            "has no two scenes in which a known object stands out",
            "give more scenes, or more --scenes",
        )


def gather_share(params: Params, models: Path, work: Path, kind: str) -> OutlineShare:
    """Score the images of a kind, find boxes in them, and list them with their labels."""
    from anomdino.adt.outline_training import OutlineItem, OutlineShare
    from anomdino.io.boxes import read_box_results

    images, out = work / kind if kind == "photos" else work / kind / IMAGES, work / "seen" / kind
    if kind != STREET:
        score_images(params, models, images, out)
    detect_images(params, models, images, out)
    found = list_images(images)
    boxes = read_box_results(out / "boxes.json", list(found))
    items = [
        OutlineItem(key, path, out / "scores" / f"{key}.npz", label_of(key, work, kind), boxes[key])
        for key, path in found.items()
    ]
    return OutlineShare(items, DRAWS[kind], SHOWN[kind])


def label_of(key: str, work: Path, kind: str) -> Path:
    """Give the file of an image's label, 0, 1, 255; a photo's is written from its mask."""
    file = label_file(key, work, kind)
    if kind != "photos":
        return file
    written = work / "seen" / kind / LABELS / f"{key}.png"
    write_png(written, read_kind(file, kind))
    return written


if __name__ == "__main__":
    app()
