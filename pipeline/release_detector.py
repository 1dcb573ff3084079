"""Train the detector of the released light model on, on a CPU: from its own weights, on the scores of its scorer.

Usage: python -m pipeline.release_detector --inlier SCENES --outliers OBJECTS [--seed N] [--work FOLDER] [--to FOLDER]

SCENES (`images/`, `labels/`) and OBJECTS (`images/`, `masks/`) are those of training. Half of the composed images have
objects of 5 % of the height and more on scenes as they come; the other half is made as the parameters beside the model
say, with small objects, and comes a second time as another camera sees it. Street scenes in which a known class is the
anomaly join them: nobody pasted what they show. The released scorer scores them all; a quarter of the scenes, composed
or not, is held out to measure the detector. Its parameters are those beside the model, changed by TRAINING and then by
`--set`. The released detector is replaced at the very end; `anomdino tune --box-evidence` fits ADT-Net to its boxes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomdino.config.params import Params, check_params, with_changes
from anomdino.io.atomic import atomic_write_json
from anomdino.io.digest import file_sha256
from pipeline import _release
from pipeline._material import (
    IMAGES,
    LABELS,
    LARGE,
    LIST,
    STREET,
    compose_twice,
    gather_street,
    score_images,
)
from pipeline._steps import assign

if TYPE_CHECKING:
    from anomdino.detector.records import Fold, Record

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
HELD_OUT = 0.25
TRAINING: dict[str, Any] = {
    "steps": 240,
    "batch_size": 4,
    "lr": 3e-4,
    "warmup": 20,
    "mosaic": 0.25,
    "map_noise": 0.3,
    "short_sides": [400, 480, 560, 640],
    "long_side": 1920,
    "val_interval": 240,
    "workers": 0,
    "cache_mb": 3000,
}


@app.command()
def main(
    inlier: _release.Scenes,
    outliers: _release.Objects,
    work: _release.ComposedWork = Path("out/release_detector"),
    to: _release.Released = _release.TARGET,
    count: Annotated[int, typer.Option(min=4, help="Composed images of each half.")] = 160,
    scenes: _release.StreetScenes = 184,
    seed: _release.Seed = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the detector's parameters.")
    ] = None,
) -> None:
    """Compose, score, train on, and put the result in the place of the released detector."""
    from anomdino.adt.store import load_adt
    from anomdino.detector.training import train_detector
    from anomdino.device import resolve_device

    with _release.training_command("release_detector", to, inlier, outliers) as given:
        params = changed(given, to, set_ or [])
        fold = composed(params, count, inlier, outliers, work, to / "models")
        statistics = load_adt(to / "models" / "adt").net.statistics
        # the maps hold the score as it is before that network, which does not know this anomaly
        plain = with_changes(params, "score", refine_net=False)
        gather_street(plain, to / "models", inlier, work, scenes, statistics)
        fold, chosen = with_street(fold, work), params.seed if seed is None else seed
        device, scorer = resolve_device(params.device), to / "models" / "rpl"
        trained = train_detector(
            params.detector, fold, work / "detector", work / "state", chosen, device, scorer
        )
        put(trained.folder, to / "models" / "detector")
    typer.echo(f"release_detector: AR@100 {trained.best_ar100:.3f} held out, {to / 'models' / 'detector'}")


def changed(params: Params, to: Path, changes: list[str]) -> Params:
    """Give the parameters of training on: those of the model with TRAINING and the user's changes."""
    content = params.model_dump(mode="json")
    content["detector"] |= TRAINING
    content["compose"]["val_fraction"] = HELD_OUT
    content["detector"]["init_checkpoint"] = str(to / "models" / "detector" / "model.safetensors")
    for change in changes:
        assign(content, f"detector.{change}")
    return check_params(content, "release_detector")


def composed(params: Params, count: int, inlier: Path, outliers: Path, work: Path, models: Path) -> Fold:
    """Compose and score both halves, and give what the detector learns from and is chosen by."""
    from anomdino.data.compose import compose
    from anomdino.detector.records import Fold, split_folds

    large = params.compose.model_copy(update={**LARGE, "count": count})
    compose(large, params.seed, inlier, outliers, work / "large" / "train")
    compose_twice(params, count // 2, inlier, outliers, work / "small" / "train")
    halves = []
    for name in ("large", "small"):
        score_images(params, models / "rpl", work / name / "train" / IMAGES, work / name)
        (half,) = split_folds(records_of(work / name), 1, params.detect.holdout, params.seed)
        halves.append(half)
    held_out = in_turns(*(half.val for half in halves))
    held = {
        record.source for record in held_out
    }  # of few images a half may hold out a scene of the other's own
    learned = [record for half in halves for record in half.train if record.source not in held]
    return Fold("final", learned, held_out, [])


def in_turns(*kinds: list[Record]) -> list[Record]:
    """Give the images of every kind in turns, so that each is seen, whatever `detector.val_images` leaves."""
    return [record for turn in zip_longest(*kinds) for record in turn if record is not None]


def with_street(fold: Fold, work: Path) -> Fold:
    """Add the street scenes of :func:`gather_street`; those that were held out for composing stay held out."""
    from anomdino.detector.records import labelled_records

    folder, maps = work / STREET, work / "seen" / STREET / "maps"
    found = labelled_records(folder / IMAGES, folder / LABELS, maps, lambda key: key.rpartition("_")[0])
    records = [replace(record, key=f"{STREET}/{record.key}") for record in found]
    held = {record.source for record in fold.val}
    learned = [record for record in records if record.source not in held]
    kept = [record for record in records if record.source in held]
    return replace(fold, train=[*fold.train, *learned], val=in_turns(fold.val, kept))


def records_of(folder: Path) -> list[Record]:
    """Read one half; its keys begin with its name."""
    from anomdino.detector.records import read_records

    train = folder / "train"
    records = read_records(train / LIST, train / IMAGES, folder / "maps", train / LABELS)
    return [replace(record, key=f"{folder.name}/{record.key}") for record in records]


def put(trained: Path, released: Path) -> None:
    """Put a trained detector in the place of the released one, in half precision, and say what it came from."""
    from anomdino.release.build import halve_detector

    before = file_sha256(released / "model.safetensors")
    halve_detector(trained, released)
    content = json.loads((released / "config.json").read_text(encoding="utf-8"))
    content["detector"]["init_checkpoint"] = ""  # a path of the machine it was trained on
    atomic_write_json(released / "config.json", content | {"trained_on_from_sha256": before})


if __name__ == "__main__":
    app()
