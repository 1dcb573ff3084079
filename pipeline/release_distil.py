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

from pathlib import Path
from typing import Annotated

import typer

from anomdino.config.params import Params, render_params, with_changes
from anomdino.io.atomic import atomic_write_text
from anomdino.release.build import put_folder
from pipeline import _release
from pipeline._material import gathered
from pipeline.distil import SCORING, distilled, write_model

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    inlier: _release.Scenes,
    outliers: _release.Objects,
    work: _release.Work = Path("out/release_distil"),
    to: _release.Released = _release.TARGET,
    count: _release.LargeImages = 160,
    photos: _release.Photos = 330,
    width: Annotated[int, typer.Option(min=16, help="Width of the first round.")] = 1280,
    crop: Annotated[tuple[int, int], typer.Option(help="Height and width of the windows.")] = (608, 800),
    steps: Annotated[tuple[int, int], typer.Option(help="Steps of both rounds.")] = (1200, 600),
) -> None:
    """Gather images, distil twice, and put the result in the place of the released scorer."""
    from anomdino.device import resolve_device
    from anomdino.scorer.distillation import DistillationPlan
    from anomdino.scorer.distributed import joined_processes

    with _release.training_command("release_distil", to, inlier, outliers) as params:
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
                put_parameters(params, own, to)
                put_folder(work / "model2" / "models" / "rpl", to / "models" / "rpl")
            world.wait()
    if world.leads:
        typer.echo(f"release_distil: {to / 'models' / 'rpl'}")


def put_parameters(params: Params, widths: tuple[int, ...], to: Path) -> None:
    """Make a model score by the mean of some widths, as no network beside the scorer of before fits a new one."""
    plain = with_changes(params, "score", widths=list(widths), fusion="mean", refine_net=False)
    atomic_write_text(to / "params.yaml", render_params(plain))


if __name__ == "__main__":
    app()
