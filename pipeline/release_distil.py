"""Distil the scorer of the released light model anew: it teaches itself, from images without labels.

Usage: python -m pipeline.release_distil --inlier SCENES --outliers OBJECTS [--work out/release_distil] [--to FOLDER]

SCENES (`images/`, `labels/`) and OBJECTS (`images/`, `masks/`) are those of training. Images with large and with small
objects are composed as for `pipeline.release_detector`, from objects alone that the scorer's training did not hold out,
and the objects' own photos join them. The released scorer scores them at its widths; in two rounds of `pipeline.distil`
first one width learns what their mean says, then, from the mean of both weights, every width does. The released scorer
is replaced at the very end, and the networks beside it go; `pipeline.release_fusion`, where its widths were joined by a
network, `pipeline.recalibrate`, `pipeline.release_refinement` and `anomdino tune` fit the rest to it.
`torchrun --nproc-per-node 2 -m pipeline.release_distil ...` scores and trains with two processes.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from anomdino.config.params import Params, load_params, render_params
from anomdino.errors import AnomdinoError, DataError
from anomdino.io.atomic import atomic_path, atomic_write_text
from anomdino.io.images import image_size
from anomdino.io.listing import list_images
from anomdino.memory import keep_freed_memory
from anomdino.protocol import refuse_evaluation_data
from anomdino.seeding import seed_everything
from pipeline.distil import SCORING, distilled, write_model
from pipeline.release import TARGET
from pipeline.release_adt import IMAGES, compose_twice, linked_objects
from pipeline.release_detector import LARGE

if TYPE_CHECKING:
    from anomdino.scorer.distributed import World

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
LEAST_WIDTH = 300
"""Photos of objects that are narrower teach nothing: they would be enlarged several times."""


@app.command()
def main(
    inlier: Annotated[Path, typer.Option(help="Folder with images/ and labels/ (train ids).")],
    outliers: Annotated[Path, typer.Option(help="Folder with images/ and masks/.")],
    work: Annotated[Path, typer.Option(help="Where images, scores and resume points lie.")] = Path(
        "out/release_distil"
    ),
    to: Annotated[Path, typer.Option(help="The released model.")] = TARGET,
    count: Annotated[
        int, typer.Option(min=8, help="Images with large objects; three quarters as many have small ones.")
    ] = 160,
    photos: Annotated[int, typer.Option(min=2, help="Photos of objects.")] = 330,
    width: Annotated[int, typer.Option(min=16, help="Width of the first round.")] = 1280,
    crop: Annotated[tuple[int, int], typer.Option(help="Height and width of the windows.")] = (608, 800),
    steps: Annotated[tuple[int, int], typer.Option(help="Steps of both rounds.")] = (1200, 600),
) -> None:
    """Gather images, distil twice, and put the result in the place of the released scorer."""
    from anomdino.device import resolve_device
    from anomdino.scorer.distillation import DistillationPlan
    from anomdino.scorer.distributed import joined_processes

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        keep_freed_memory()
        refuse_evaluation_data(inlier, outliers)
        params = load_params(to / "params.yaml")
        seed_everything(params.seed)
        own = tuple(params.score.widths) or (width,)
        rounds = [
            (DistillationPlan(widths=(width,), crop=crop, steps=steps[0]), 0.5),
            (DistillationPlan(widths=own, crop=crop, steps=steps[1], lr=2e-4), 1.0),
        ]
        with joined_processes(resolve_device(params.device), SCORING) as world:
            folders = gathered(params, inlier, outliers, work, count, photos, world)
            start = None
            for number, (plan, share) in enumerate(rounds, 1):
                here, model = work / f"round{number}", work / f"model{number}"
                done = distilled(params, to / "models" / "rpl", folders, plan, work, world, start, here)
                if world.leads:
                    write_model(to, model, params, plan, done, share)
                world.wait()
                start = model / "models" / "rpl"
            if world.leads:
                put(work / "model2" / "models" / "rpl", to / "models" / "rpl")
                if params.score.fusion == "learned" or params.score.refine_net:  # for the scorer before
                    put_parameters(params, to)
            world.wait()
    except AnomdinoError as error:
        typer.echo(f"release_distil failed. {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    if world.leads:
        typer.echo(f"release_distil: {to / 'models' / 'rpl'}")


def gathered(
    params: Params, inlier: Path, outliers: Path, work: Path, count: int, photos: int, world: World
) -> list[Path]:
    """Compose images and choose photos; photos are named twice, for they teach twice as often.

    Raises:
        DataError: A folder is missing, or fewer than two photos are wide enough.
    """
    from anomdino.data.compose import compose

    if world.leads:
        objects = linked_objects(params, outliers, work / "objects", held_out=False)
        large = params.compose.model_copy(update={**LARGE, "count": count})
        compose(large, params.seed, inlier, objects, work / "large")
        compose_twice(params, count * 3 // 8, inlier, objects, work / "small")
        link_photos(objects / "images", work / "photos", photos)
    world.wait()
    return [work / "large" / IMAGES, work / "small" / IMAGES, work / "photos", work / "photos"]


def link_photos(images: Path, out: Path, count: int) -> None:
    """Link at most ``count`` photos that are wide enough, spread over the folder."""
    wide = [(key, path) for key, path in list_images(images).items() if image_size(path)[1] >= LEAST_WIDTH]
    if len(wide) < 2:
        raise DataError(
            images, f"has {len(wide)} photos of {LEAST_WIDTH} pixels in width", "give at least two"
        )
    shutil.rmtree(out, ignore_errors=True)
    for index in np.unique(np.linspace(0, len(wide) - 1, min(count, len(wide))).round().astype(int)):
        key, path = wide[index]
        link = out / f"{key}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())


def put(student: Path, released: Path) -> None:
    """Put a scorer's files in the place of the released ones, each whole or not at all; networks for the old one go."""
    from anomdino.scorer.refinement import FILE

    for file in sorted(student.iterdir()):
        with atomic_path(released / file.name) as temporary:
            shutil.copyfile(file, temporary)
    for network in (*released.glob("fusion-*.safetensors"), *released.glob(FILE)):
        network.unlink()


def put_parameters(params: Params, to: Path) -> None:
    """Make a model join the scores of its widths by their mean, and leave them there."""
    score = params.score.model_copy(update={"fusion": "mean", "refine_net": False})
    atomic_write_text(to / "params.yaml", render_params(params.model_copy(update={"score": score})))


if __name__ == "__main__":
    app()
