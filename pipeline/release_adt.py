"""Train the ADT-Net of the released light model anew, on a CPU in minutes: its scorer and detector stay as they are.

Usage: python -m pipeline.release_adt --inlier SCENES --outliers OBJECTS [--seed N] [--work out/release_adt] [--to FOLDER]

SCENES (`images/`, `labels/`) must have trained neither scorer nor detector: CamVid's *val*, for the released model. Of
OBJECTS (`images/`, `masks/`) those are pasted that the scorer's training held out. Every composed image comes a
second time as another camera sees it. The parameters are those beside the released model, whose ADT-Net is replaced
at the very end.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomdino.config.params import Params
from pipeline import _release
from pipeline._material import (
    IMAGES,
    LABELS,
    LIST,
    compose_twice,
    detect_images,
    held_out_objects,
    score_images,
)

if TYPE_CHECKING:
    from anomdino.adt.fusion import AdtModel
    from anomdino.adt.outline_net import OutlineNet

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    inlier: _release.Scenes,
    outliers: _release.Objects,
    work: Annotated[Path, typer.Option(help="Where composed images, scores and boxes lie.")] = Path(
        "out/release_adt"
    ),
    to: _release.Released = _release.TARGET,
    count: _release.Doubled = 40,
    seed: _release.Seed = None,
) -> None:
    """Compose, score, detect, train, and put the result in the place of the released ADT-Net."""
    from anomdino.adt.outline_net import load_outline_net
    from anomdino.adt.store import save_adt

    with _release.training_command("release_adt", to, inlier, outliers) as params:
        objects = held_out_objects(params, outliers, work / "outliers")
        compose_twice(params, count, inlier, objects, work / "train")
        composed = work / "train" / IMAGES
        score_images(params, to / "models" / "rpl", composed, work)
        detect_images(params, to / "models", composed, work)
        outliner = load_outline_net(to / "models" / "adt")
        chosen = params.seed if seed is None else seed
        save_adt(trained(params, work, outliner, chosen), to / "models" / "adt")
    typer.echo(f"release_adt: {to / 'models' / 'adt'}")


def trained(params: Params, work: Path, outliner: OutlineNet | None, seed: int) -> AdtModel:
    """Train ADT-Net and search k and b on what its training held out; the network that outlines objects stays."""
    from anomdino.adt.dataset import TrainingFiles
    from anomdino.adt.training import plan_from, train_adt
    from anomdino.adt.tuning import tune_trained

    composed = work / "train"
    images = composed / IMAGES if params.adt.outline else None
    files = TrainingFiles(work / "scores", composed / LABELS, work / "boxes.json", composed / LIST, images)
    plan, out = plan_from(params.adt), work / "adt"
    model = replace(train_adt(files, plan, out, seed=seed), outliner=outliner)
    floor = params.adt.mask_floor == "auto"
    return tune_trained(model, files, plan, out, seed=seed, floor=floor)


if __name__ == "__main__":
    app()
