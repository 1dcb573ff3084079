"""``anomdino fuse``, ``calibrate``, ``tune``: thresholds, mask and a better score for any method's maps."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomdino.cli.cascade_options import OutputRule
from anomdino.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anomdino.adt.fusion import AdtModel
    from anomdino.io.boxes import Boxes

DATA = Path("data")


class HigherIs(StrEnum):
    """What high values of a score map mean."""

    anomalous = "anomalous"
    normal = "normal"


class SearchFor(StrEnum):
    """What the search for k and b maximises."""

    overall = "overall"
    both = "both"
    ap = "ap"
    fpr95 = "fpr95"


Scores = Annotated[
    Path, typer.Option(help="Folder of score maps: <key>.npz (arr_0), .npy, .tif or .hdf5 (value).")
]
BoxFile = Annotated[
    Path | None, typer.Option(help="COCO results, or a COCO data set with scores; without it no box is used.")
]
Model = Annotated[
    Path | None,
    typer.Option(help="Folder of a trained ADT-Net, or `released`; default: data/models/adt, else released."),
]
Orientation = Annotated[
    HigherIs | None, typer.Option(help="Meaning of high scores; what the model was made for if absent.")
]
Images = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the images; sizes are checked, and a model that outlines objects needs them."
    ),
]
AsGiven = Annotated[
    bool,
    typer.Option(
        "--boxes-as-given",
        help="Take boxes at their own confidence, not weighed by the scores in them: those of a better detector.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:<number> or mps.")]


def fuse(
    *,
    scores: Scores,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder: score/, mask/, fusion.json.")],
    model: Model = None,
    boxes: BoxFile = None,
    images: Images = None,
    higher_is: Orientation = None,
    output: Annotated[OutputRule | None, typer.Option(help="Rule of the final score.")] = None,
    k: Annotated[float | None, typer.Option(help="Share of the score that thresholds do not touch.")] = None,
    b: Annotated[float | None, typer.Option(help="What a box of confidence 1 adds.")] = None,
    box_score: Annotated[float | None, typer.Option(help="Least confidence of a box.")] = None,
    as_given: AsGiven = False,
    min_component: Annotated[
        int | None, typer.Option(min=0, help="Remove smaller mask components (pixels).")
    ] = None,
    mask_floor: Annotated[
        float | None, typer.Option(help="Least standardised score of a mask pixel, in [0, 1).")
    ] = None,
    outline: Annotated[
        bool | None,
        typer.Option("--outline/--no-outline", help="Outline the objects of boxes in the images."),
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="adt, fixed:X, or what `calibrate` stored (the default, else adt).")
    ] = None,
    thresholds: Annotated[bool, typer.Option(help="Write the threshold maps too.")] = False,
    device: Device = "auto",
) -> None:
    """Turn score maps and boxes into final scores and masks."""
    from anomdino.adt.fusion import FusionRule
    from anomdino.adt.plugin import boxes_as_given, fuse_folder, oriented, with_threshold
    from anomdino.errors import ConfigError
    from anomdino.io.atomic import require_folder
    from anomdino.io.listing import list_images
    from anomdino.io.locking import one_run_in
    from anomdino.io.maps import list_maps

    require_folder(out)
    if outline and images is None:
        raise ConfigError("--outline", "needs the photos", "name their folder: --images FOLDER")
    loaded = _load(model, device)
    if higher_is is not None:
        loaded = oriented(loaded, higher_is_anomalous=higher_is is HigherIs.anomalous)
    if as_given:
        loaded = boxes_as_given(loaded)
    rule = loaded.rule
    rule = FusionRule(
        output=rule.output if output is None else output.value,
        k=rule.k if k is None else k,
        b=rule.b if b is None else b,
        box_score=rule.box_score if box_score is None else box_score,
        min_component=rule.min_component if min_component is None else min_component,
        mask_floor=rule.mask_floor if mask_floor is None else mask_floor,
        outline=rule.outline if outline is None else outline,
    )
    loaded = with_threshold(loaded, threshold, rule)
    _refuse_mixture(scores, out)
    maps = list_maps(scores)
    listed = list_images(images) if images else None
    with one_run_in(out):
        written = fuse_folder(
            maps, _boxes(boxes, maps), loaded, out, images=listed, rule=rule, write_thresholds=thresholds
        )
    typer.echo(
        f"fuse: {counted(written.images, 'image')}, {written.without_boxes} without boxes, "
        f"{counted(written.predicted_pixels, 'anomalous pixel')}, rule {rule.output}, in {out}"
    )


def calibrate(
    *,
    scores: Scores,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the calibrated model.")],
    model: Model = None,
    boxes: BoxFile = None,
    labels: Annotated[
        Path | None, typer.Option(help="Folder of <key>.png with 0, 1, 255; needed for a threshold.")
    ] = None,
    images: Images = None,
    higher_is: Orientation = None,
    refit: Annotated[
        bool,
        typer.Option(help="Refit the standardisation, for maps of another method."),
    ] = True,
    threshold: Annotated[
        str | None, typer.Option(help="Store f1, fpr:RATE, conformal:RATE or conformal_miss:RATE.")
    ] = None,
    as_given: AsGiven = False,
    device: Device = "auto",
) -> None:
    """Fit a model to the score maps of another method, and choose a threshold, on a calibration folder."""
    from dataclasses import replace

    from anomdino.adt import plugin
    from anomdino.adt.store import save_adt
    from anomdino.adt.thresholds import ThresholdKind
    from anomdino.errors import ConfigError
    from anomdino.io.atomic import require_folder
    from anomdino.io.listing import list_images
    from anomdino.io.maps import list_maps
    from anomdino.protocol import refuse_evaluation_data

    require_folder(out)
    kind = ThresholdKind.parse(threshold) if threshold else None
    if kind and labels is None:
        cause = f"is missing: threshold {kind} is found on labelled images"
        raise ConfigError("--labels", cause, "name their folder: --labels FOLDER")
    refuse_evaluation_data(scores, *([labels] if labels else []))
    loaded, maps = replace(_load(model, device), threshold=None), list_maps(scores)
    if as_given:
        loaded = plugin.boxes_as_given(loaded)
    anomalous = loaded.net.sign > 0 if higher_is is None else higher_is is HigherIs.anomalous
    loaded = plugin.oriented(loaded, higher_is_anomalous=anomalous)
    if refit:
        loaded = plugin.refit(loaded, maps.values(), higher_is_anomalous=anomalous)
    if kind and labels is not None:
        listed = list_images(images) if images else None
        found = plugin.calibrate_threshold(loaded, maps, labels, _boxes(boxes, maps), kind, images=listed)
        loaded = replace(loaded, threshold=found)
    save_adt(loaded, out)
    statistics = loaded.net.statistics
    asked = f", threshold {kind} = {loaded.threshold.value:.6g}" if loaded.threshold and kind else ""
    typer.echo(
        f"calibrate: {counted(len(maps), 'map')}, mean {statistics.mean:.6g}, std {statistics.std:.6g}{asked}, in {out}"
    )


def tune(
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the model with its new rule, and the curve.")
    ],
    model: Model = None,
    scores: Scores = DATA / "train_dataset" / "offline_dataset_score",
    labels: Annotated[Path, typer.Option(help="Folder of <key>.png with 0, 1, 255.")] = DATA
    / "train_dataset"
    / "offline_dataset_label",
    boxes: Annotated[Path, typer.Option(help="Out-of-fold boxes: COCO results.")] = DATA
    / "boxes"
    / "train.json",
    images: Annotated[
        Path, typer.Option(help="Folder of the images; read where the model outlines objects.")
    ] = DATA / "train_dataset" / "offline_dataset",
    index: Annotated[
        Path | None, typer.Option(help="COCO data set that names the source of each image.")
    ] = DATA / "train_dataset" / "ood.json",
    objective: Annotated[
        SearchFor,
        typer.Option(
            help="overall: AP - FPR95 + component F1*, none worse than raw; both: AP - FPR95; ap; fpr95."
        ),
    ] = SearchFor.overall,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Differences up to this size count as none.")
    ] = 0.01,
    floor: Annotated[
        bool, typer.Option("--floor/--no-floor", help="Choose the least score that a threshold stands for.")
    ] = False,
    evidence: Annotated[
        bool,
        typer.Option(
            "--box-evidence/--no-box-evidence",
            help="Fit how boxes are weighed by the scores in and around them, and their least confidence.",
        ),
    ] = False,
    outline: Annotated[
        bool | None,
        typer.Option("--outline/--no-outline", help="Outline the objects of boxes in --images, or no more."),
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out/--all", help="Only the images that the model's training held out.")
    ] = True,
    by_folder: Annotated[
        bool,
        typer.Option(
            "--by-folder/--pooled",
            help="Images in different folders below --scores are of different kinds: no kind may get worse than raw.",
        ),
    ] = False,
    as_given: AsGiven = False,
    device: Device = "auto",
) -> None:
    """Search the fused score's k and b on labelled images of the training domain, never evaluation data."""
    from dataclasses import replace

    from anomdino.adt.dataset import TrainingFiles, by_folder_of, hold_out, list_items
    from anomdino.adt.plugin import boxes_as_given
    from anomdino.adt.store import save_adt
    from anomdino.adt.tuning import tune_rule, write_tuning
    from anomdino.errors import CheckpointError, ConfigError
    from anomdino.io.atomic import require_folder

    require_folder(out)
    if evidence and as_given:
        raise ConfigError("--box-evidence", "weighs boxes, and --boxes-as-given does not", "choose one")
    loaded = _load(model, device)
    if as_given:
        loaded = boxes_as_given(loaded)
    if outline is not None:
        loaded = replace(loaded, rule=replace(loaded.rule, outline=outline), threshold=None)
    if loaded.rule.outline and not images.is_dir():
        raise ConfigError(
            "--images",
            f"{images} is no folder, and the model outlines objects in photos",
            "name the folder of the photos, or add --no-outline",
        )
    known = index if index and index.is_file() else None
    items = list_items(TrainingFiles(scores, labels, boxes, known, images if loaded.rule.outline else None))
    if held_out:
        made = loaded.provenance
        if "plan" not in made:
            raise CheckpointError(
                model or "the model", "does not say which images it held out", "use --all on unseen images"
            )
        _, items = hold_out(items, made["plan"]["holdout"], made["seed"])
    kinds = by_folder_of(items) if by_folder else {"": items}
    tuned = tune_rule(
        kinds, loaded, evidence=evidence, floor=floor, objective=objective.value, tolerance=tolerance
    )
    tunings = tuned.tunings
    save_adt(tuned.model, out)
    write_tuning(tunings if by_folder else tunings[""], out / "tuning.json")
    for kind, found in tunings.items():
        best, raw = found.choice, found.raw
        typer.echo(
            f"tune: {counted(found.images, 'image')}{f' in {kind}' if kind else ''}, k {best.k:g}, b {best.b:g}: "
            f"AP {best.ap:.4f} (raw {raw.ap:.4f}), FPR95 {best.fpr95:.4f} (raw {raw.fpr95:.4f}), "
            f"best pixel F1 {best.f1:.4f} (raw {raw.f1:.4f}), in {out}"
        )
    if evidence:
        weights = ", ".join(f"{value:.3g}" for value in tuned.model.provenance["box_evidence"]["weights"])
        typer.echo(
            f"tune: boxes weighed by {weights}; kept from a confidence of {tuned.model.rule.box_score:g}"
        )
    if tuned.floors is not None:
        mask, without = tuned.floors.choice, tuned.floors.curve[0]
        typer.echo(
            f"tune: mask floor {mask.floor:g}: F1* {mask.component_f1:.4f}, {mask.missed} missed, {mask.false} false "
            f"(without {without.component_f1:.4f}, {without.missed}, {without.false})"
        )


def _refuse_mixture(scores: Path, out: Path) -> None:
    from anomdino.errors import ConfigError

    maps, results = scores.resolve(), out.resolve()
    if results.is_relative_to(maps) or maps.is_relative_to((results / "score").resolve()):
        raise ConfigError(
            "--out", f"and --scores, {scores}, would hold maps and results", "choose another folder"
        )


def _load(model: Path | None, device: str) -> AdtModel:
    from anomdino.adt.store import load_adt
    from anomdino.cascade import RELEASED
    from anomdino.device import resolve_device
    from anomdino.release import released_folder

    trained, released = DATA / "models" / "adt", released_folder()
    named = model is not None and model.as_posix() == RELEASED and not model.exists()
    asked = named or (model is None and not trained.is_dir())
    folder = released / "models" / "adt" if asked and released else model or trained
    return load_adt(folder, str(resolve_device(device)))


def _boxes(path: Path | None, keys: Iterable[str]) -> dict[str, Boxes]:
    from anomdino.io.boxes import read_box_results

    return read_box_results(path, keys) if path else {}
