"""Train the network that joins the released scorer's scores at several widths, and make the released model use it.

Usage: python -m pipeline.release_fusion --inlier SCENES --outliers OBJECTS [--width 512 --width 800 ...] [--to FOLDER]

SCENES (`images/`, `labels/`) and OBJECTS (`images/`, `masks/`) are those of training. Images with large and with small
objects are composed as for `pipeline.release_distil`, and the objects' own photos join them, from objects alone that the
scorer's training did not hold out. The scorer scores them at every `--width` (the model's own, or 512, 800, 1280 and
1600); the network learns from these scores and the labels which width to believe where. It is written beside the
scorer's weights, and the model's parameters say `score.fusion: learned` and the widths. Its scores have
the distribution of the mean; `anomdino tune` fits ADT-Net's rule to it. A killed training goes on where it stopped when
called again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomdino.config.params import Params, check_params, render_params
from anomdino.errors import ConfigError
from anomdino.io.atomic import atomic_write_text
from anomdino.io.digest import file_sha256
from anomdino.io.images import read_image
from anomdino.io.listing import list_images
from anomdino.progress import track
from pipeline import _release
from pipeline._material import PHOTOS, gathered, images_of, label_files, read_kind

if TYPE_CHECKING:
    from anomdino.scorer.small_training import StoredItem

WIDTHS = (512, 800, 1280, 1600)
KINDS = {"large": (3.0, 1), "small": (8.0, 2), PHOTOS: (1.0, 1)}
"""Weight of the loss and draws of each kind of image."""
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    inlier: _release.Scenes,
    outliers: _release.Objects,
    work: _release.Work = Path("out/release_fusion"),
    to: _release.Released = _release.TARGET,
    width: Annotated[
        list[int] | None,
        typer.Option(min=16, help="Width in pixels at which images are scored; two at least."),
    ] = None,
    count: _release.LargeImages = 160,
    photos: _release.Photos = 330,
    steps: _release.Steps = 2000,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the network in the score; the rest is the widths' mean."),
    ] = 0.5,
    beside: Annotated[
        bool,
        typer.Option(
            help="Write the network alone: the model's own widths stay, `predict --width` may ask for these."
        ),
    ] = False,
) -> None:
    """Gather images, score them at every width, train, and write network and parameters."""
    from anomdino.device import resolve_device
    from anomdino.scorer.distributed import World
    from anomdino.scorer.width_fusion import save_fusion
    from anomdino.scorer.width_fusion_training import FusionPlan, FusionShare, match_levels, train_fusion

    with _release.training_command("release_fusion", to, inlier, outliers) as given:
        params = with_fusion(given, check_widths(width or given.score.widths or list(WIDTHS)))
        world = World(0, 1, resolve_device(params.device))
        gathered(params, inlier, outliers, work, count, photos, world)
        grids = {kind: score_grids(params, to / "models" / "rpl", work, kind) for kind in KINDS}
        shares = [FusionShare(grids[kind], draws, weight) for kind, (weight, draws) in KINDS.items()]
        widths, plan = tuple(params.score.widths), FusionPlan(steps=steps)
        done = train_fusion(shares, widths, plan, work / "state", seed=params.seed, world=world)
        done.network.share.fill_(share)
        match_levels(done.network, shares)
        details = {
            "trained by": "python -m pipeline.release_fusion",
            "loss before": dict(zip(KINDS, done.before, strict=True)),
            "loss after": dict(zip(KINDS, done.after, strict=True)),
        }
        save_fusion(done.network, to / "models" / "rpl", details)
        if not beside:
            atomic_write_text(to / "params.yaml", render_params(params))
    losses = _release.changes(KINDS, done.before, done.after)
    typer.echo(f"release_fusion: cross-entropy of kept images {losses}; {to}")


def check_widths(widths: list[int]) -> list[int]:
    """Give the widths.

    Raises:
        ConfigError: There are fewer than two, or one twice.
    """
    if len(set(widths)) < 2 or len(set(widths)) < len(widths):
        raise ConfigError("--width", f"is {widths}", "give two different widths, or more")
    return widths


def with_fusion(params: Params, widths: list[int]) -> Params:
    """Give parameters that join the scores at these widths by the network."""
    content = params.model_dump(mode="json")
    content["score"] |= {"widths": widths, "fusion": "learned"}
    return check_params(content, "the parameters with a learned fusion")


def score_grids(params: Params, scorer: Path, work: Path, kind: str) -> list[StoredItem]:
    """Score the images of a kind at every width, onto the network's grid; what is there and valid is kept."""
    from anomdino.device import resolve_device
    from anomdino.scorer.setup import engine_from
    from anomdino.scorer.small_training import StoredItem
    from anomdino.scorer.width_fusion_training import is_written, write_grid

    after_widths = {"fusion": "mean", "refine": [], "refine_net": False}
    score = params.score.model_copy(update=after_widths)
    engine, digest = engine_from(score, scorer, resolve_device(params.device))
    grids, labels = [], label_files(work, kind)
    for key, path in track(list_images(images_of(work, kind)).items(), f"score {kind}"):
        grid = StoredItem(key, work / "grids" / kind / f"{key}.npz")
        label = labels[key]
        content = "-".join([digest, file_sha256(path), file_sha256(label)])
        if not is_written(grid.file, content):
            write_grid(grid.file, engine, read_image(path), read_kind(label, kind), content)
        grids.append(grid)
    return grids


if __name__ == "__main__":
    app()
