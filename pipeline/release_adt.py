"""Train the ADT-Net of the released light model anew, on a CPU in minutes: its scorer and detector stay as they are.

Usage: python -m pipeline.release_adt --inlier SCENES --outliers OBJECTS [--work out/release_adt] [--to FOLDER]

SCENES (`images/`, `labels/`) must have trained neither scorer nor detector: CamVid's *val*, for the released model. Of
OBJECTS (`images/`, `masks/`) those are pasted that the scorer's training held out. Every composed image comes a
second time as another camera sees it. The parameters are those beside the released model, whose ADT-Net is replaced
at the very end.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from anomdino.config.params import Params, load_params
from anomdino.errors import AnomdinoError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.images import read_image, read_label, write_png
from anomdino.io.listing import list_images
from anomdino.seeding import seed_everything
from pipeline.release import TARGET

if TYPE_CHECKING:
    from anomdino.adt.fusion import AdtModel
    from anomdino.adt.outline_net import OutlineNet

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
IMAGES, LABELS, LIST = "offline_dataset", "offline_dataset_label", "ood.json"


@app.command()
def main(
    inlier: Annotated[Path, typer.Option(help="Folder with images/ and labels/ (train ids).")],
    outliers: Annotated[Path, typer.Option(help="Folder with images/ and masks/.")],
    work: Annotated[Path, typer.Option(help="Where composed images, scores and boxes lie.")] = Path(
        "out/release_adt"
    ),
    to: Annotated[Path, typer.Option(help="The released model.")] = TARGET,
    count: Annotated[int, typer.Option(min=2, help="Composed images before they are doubled.")] = 40,
) -> None:
    """Compose, score, detect, train, and put the result in the place of the released ADT-Net."""
    from anomdino.adt.outline_net import load_outline_net
    from anomdino.adt.store import save_adt

    try:
        params = load_params(to / "params.yaml")
        seed_everything(params.seed)
        objects = held_out_objects(params, outliers, work / "outliers")
        compose_twice(params, count, inlier, objects, work / "train")
        composed = work / "train" / IMAGES
        score_images(params, to / "models", composed, work)
        detect_images(params, to / "models", composed, work)
        outliner = load_outline_net(to / "models" / "adt")
        save_adt(trained(params, work, outliner), to / "models" / "adt")
    except AnomdinoError as error:
        typer.echo(f"release_adt failed. {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    typer.echo(f"release_adt: {to / 'models' / 'adt'}")


def held_out_objects(params: Params, outliers: Path, out: Path) -> Path:
    """Link the objects that the scorer's training held out."""
    return linked_objects(params, outliers, out, held_out=True)


def linked_objects(params: Params, outliers: Path, out: Path, *, held_out: bool) -> Path:
    """Link the objects that the scorer's training held out, or the others."""
    from anomdino.scorer.dataset import ImagePairs, split_outliers

    pairs = ImagePairs(outliers, "masks")
    learned, held = split_outliers(pairs, params.rpl.residual.outlier_holdout, params.seed)
    shutil.rmtree(out, ignore_errors=True)
    for index in held if held_out else learned:
        key, image, mask = pairs.files[index]
        for folder, source in (("images", image), ("masks", mask)):
            link = out / folder / f"{key}{source.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source.resolve())
    return out


def compose_twice(params: Params, count: int, inlier: Path, outliers: Path, out: Path) -> None:
    """Compose images and add each one as another camera sees it, under its key with an `s` before it."""
    from anomdino.data.compose import compose
    from anomdino.release.camera import other_camera

    compose(params.compose.model_copy(update={"count": count}), params.seed, inlier, outliers, out)
    content = json.loads((out / LIST).read_text(encoding="utf-8"))
    copies, boxes = [], []
    last = max((one["id"] for one in content["annotations"]), default=0)
    for record in content["images"]:
        name, rng = record["file_name"], np.random.default_rng(999 + record["id"])
        write_png(out / IMAGES / f"s{name}", other_camera(read_image(out / IMAGES / name), rng))
        write_png(out / LABELS / f"s{name}", read_label(out / LABELS / name))
        copies.append({**record, "id": count + record["id"], "file_name": f"s{name}"})
    for number, one in enumerate(content["annotations"], 1):
        boxes.append({**one, "id": last + number, "image_id": count + one["image_id"]})
    content["images"] += copies
    content["annotations"] += boxes
    atomic_write_json(out / LIST, content, indent=None)


def score_images(params: Params, models: Path, images: Path, work: Path) -> None:
    """Write scores and maps of a folder of images into ``work``, by the scorer in ``models``; valid ones stay."""
    from anomdino.device import resolve_device
    from anomdino.scorer.run import Outputs, SetScorer
    from anomdino.scorer.setup import engine_from, run_options

    engine, digest = engine_from(params.score, models / "rpl", resolve_device(params.device))
    outputs = Outputs(work / "scores", work / "maps")
    runner = SetScorer(engine, outputs, digest, run_options(params.score), what=f"score {work.name}")
    runner.run(list_images(images))


def detect_images(params: Params, models: Path, images: Path, work: Path) -> None:
    """Write boxes of a folder of images into ``work``, where their maps lie, by the detector in ``models``."""
    from anomdino.detector.infer import Detector
    from anomdino.detector.run import Input, detect_set
    from anomdino.device import resolve_device

    device = resolve_device(params.device)
    detector = Detector.load(models / "detector", device, params.detect, models / "rpl")
    inputs = [Input(key, path, work / "maps" / f"{key}.npz") for key, path in list_images(images).items()]
    detect_set(detector, inputs, work / "boxes.json", "detect")


def trained(params: Params, work: Path, outliner: OutlineNet | None = None) -> AdtModel:
    """Train ADT-Net and search k and b on what its training held out; the network that outlines objects stays."""
    from anomdino.adt.dataset import TrainingFiles
    from anomdino.adt.training import plan_from, train_adt
    from anomdino.adt.tuning import tune_trained

    composed = work / "train"
    images = composed / IMAGES if params.adt.outline else None
    files = TrainingFiles(work / "scores", composed / LABELS, work / "boxes.json", composed / LIST, images)
    plan, out = plan_from(params.adt), work / "adt"
    model = replace(train_adt(files, plan, out, seed=params.seed), outliner=outliner)
    floor = params.adt.mask_floor == "auto"
    return tune_trained(model, files, plan, out, seed=params.seed, floor=floor)


if __name__ == "__main__":
    app()
