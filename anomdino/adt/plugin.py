"""ADT-Net for the score maps of any method: fuse folders, refit the standardisation, find a threshold."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.adt.dataset import check_label, measure_scores
from anomdino.adt.fusion import AdtModel, FusionRule, check_map, fuse
from anomdino.adt.model import AdtNet, ScoreStatistics
from anomdino.adt.thresholds import Threshold, ThresholdCalibration, ThresholdKind
from anomdino.errors import ConfigError, DataError
from anomdino.io.atomic import atomic_write_json, remove_file
from anomdino.io.boxes import Boxes
from anomdino.io.images import image_size, read_image, read_label, write_png
from anomdino.io.listing import list_files, pair_by_key
from anomdino.io.maps import read_map
from anomdino.io.scores import write_score
from anomdino.progress import track

log = logging.getLogger(__name__)

SUMMARY = "fusion.json"
FAR = 3.0
"""Standard deviations by which the mean of foreign maps lies off, and how often theirs may be the model's own."""


@dataclass(frozen=True)
class FusedFolder:
    """What was written: number of images, of those without boxes, and of predicted pixels."""

    images: int
    without_boxes: int
    predicted_pixels: int


def refit(model: AdtModel, maps: Iterable[Path], *, higher_is_anomalous: bool = True) -> AdtModel:
    """Give the model with its standardisation refitted to other score maps; the network stays as it is.

    Args:
        model: A trained model.
        maps: Maps of the other method, on images like those of the training domain; no labels are needed.
        higher_is_anomalous: False for a method whose higher scores are more normal.
    """
    paths = list(maps)
    checked = (check_named(path, read_map(path)) for path in paths)
    statistics = measure_scores(checked, sign=1 if higher_is_anomalous else -1)
    return with_statistics(model, statistics, {"refitted_on": {"images": len(paths)}})


def boxes_as_given(model: AdtModel) -> AdtModel:
    """Give the model without the weights of its boxes (``adt.box_evidence``), for boxes of another detector.

    The weights were fitted to the detector that the model was trained with. A box then counts with its own confidence,
    whatever the scores in it; the threshold that was calibrated with weighed boxes is dropped. A model without weights
    stays as it is.
    """
    if model.net.box_weights is None:
        return model
    net = AdtNet(replace(model.net.architecture, box_evidence=False), model.net.statistics)
    net.load_state_dict(
        {name: value for name, value in model.net.state_dict().items() if name != "box_weights"}
    )
    net = net.to(model.net.mean.device).eval()
    made = {**model.provenance, "boxes": "as given"}
    return replace(_without_threshold(model), net=net, provenance=made)


def with_threshold(model: AdtModel, asked: str | None, rule: FusionRule) -> AdtModel:
    """Give the model with the threshold that a user asks for in place of its own.

    Args:
        model: A trained model, with or without a calibrated threshold.
        asked: ``adt`` for ADT-Net's own thresholds, ``fixed:X``, or the kind that is stored; None takes the stored one,
            else ADT-Net's.
        rule: Rule of the final score that it is for.

    Raises:
        ConfigError: The threshold is of an unknown kind, not stored with the model, or calibrated for another rule.
    """
    if asked == "adt":
        return replace(model, threshold=None)
    if asked is not None:
        kind = ThresholdKind.parse(asked)
        if kind.name == "fixed" and kind.number is not None:
            return replace(model, threshold=Threshold(kind.number, str(kind), rule.output, {}))
        if model.threshold is None or model.threshold.kind != str(kind):
            raise ConfigError(
                "--threshold",
                f"{kind} is not stored with this model",
                f"run `anomdino calibrate --threshold {kind}`",
            )
    if model.threshold is not None:
        model.threshold.require(asdict(rule))
        if model.threshold.keeps_small and rule.min_component > model.rule.min_component:
            cause = f"would take away what {model.threshold.kind} promises to find"
            raise ConfigError("--min-component", cause, "leave it out, or use `--threshold adt`")
    return model


def _without_threshold(model: AdtModel) -> AdtModel:
    """Give the model without its stored threshold, and say so."""
    if model.threshold is not None:
        kind = model.threshold.kind
        log.warning("the stored threshold %s is for other maps or boxes: ADT-Net's own are used", kind)
    return replace(model, threshold=None)


def with_statistics(model: AdtModel, statistics: ScoreStatistics, note: Mapping[str, Any]) -> AdtModel:
    """Give a copy of the model with other statistics; a threshold calibrated before is dropped."""
    net = copy.deepcopy(model.net)
    net.statistics = statistics
    return replace(model, net=net, threshold=None, provenance=model.provenance | dict(note))


def oriented(model: AdtModel, *, higher_is_anomalous: bool) -> AdtModel:
    """Give the model for maps of the stated orientation; its statistics hold for the oriented score.

    A threshold that was calibrated for the other orientation is dropped.
    """
    statistics = model.net.statistics
    wanted = 1 if higher_is_anomalous else -1
    if statistics.sign == wanted:
        return model
    net = copy.deepcopy(model.net)
    net.statistics = ScoreStatistics(statistics.mean, statistics.std, 1 if wanted > 0 else -1)
    return replace(_without_threshold(model), net=net)


def calibrate_threshold(
    model: AdtModel,
    maps: Mapping[str, Path],
    labels: Path | str,
    boxes: Mapping[str, Boxes],
    kind: ThresholdKind,
    *,
    images: Mapping[str, Path] | None = None,
) -> Threshold:
    """Find a threshold on the final score from labelled calibration images (`anomdino.adt.thresholds`).

    Args:
        model: The model that makes the final score.
        maps: Score maps by key.
        labels: Folder of ``<key>.png`` with 0, 1, 255.
        boxes: Boxes by key; an image that is not listed has none.
        kind: What is asked for.
        images: Images by key, one for each map; a rule with ``outline`` outlines objects by them.

    Returns:
        The threshold, with the rule that it was found for.

    Raises:
        DataError: A map has no label or image, or the reverse, has another size, holds NaN, or is constant; or a label
            has other values.
    """
    rule = as_carried_out(model.rule, images)
    model = replace(model, threshold=None)
    sizes, photos = _sizes(maps, images), _photos(maps, images, rule)
    calibration = ThresholdCalibration()
    pairs = pair_by_key(maps, list_files(labels, {".png"}), ("score map", "label"))
    for key, path, label_path in track(pairs, "calibrate"):
        label = read_label(label_path)
        check_label(label_path, label)
        score = check_named(path, read_map(path), (label.shape[0], label.shape[1]))
        check_named(path, score, sizes.get(key))
        photo = read_image(photos[key]) if photos else None
        calibration.add(fuse(score, boxes.get(key, Boxes.empty()), model, rule, image=photo).score, label)
    return calibration.threshold(kind, asdict(rule), str(labels), boxes=bool(boxes))


def fuse_folder(
    maps: Mapping[str, Path],
    boxes: Mapping[str, Boxes],
    model: AdtModel,
    out: Path | str,
    *,
    images: Mapping[str, Path] | None = None,
    rule: FusionRule | None = None,
    write_thresholds: bool = False,
) -> FusedFolder:
    """Fuse a folder of score maps, one image at a time.

    Writes ``score/<key>.npz`` (float32, key ``arr_0``), ``mask/<key>.png`` (0 or 255), with
    ``write_thresholds`` ``threshold/<key>.npz``, and at the end ``fusion.json`` with rule, threshold and provenance of
    the model. Every map is checked before anything is written; what a finished run before left of other maps goes.

    Args:
        maps: Score maps by key.
        boxes: Boxes by key; an image that is not listed has none.
        model: A trained model, refitted where the maps come from another method.
        out: Output folder.
        images: Images by key; where given, every map must have one of its size. A rule with ``outline`` outlines objects
            by them.
        rule: Rule of the final score; the model's own if absent.
        write_thresholds: Write the threshold maps too.

    Raises:
        DataError: A map has no image or the reverse, has another size, holds NaN, or is constant; or ``out`` holds
            results of other maps that no finished run wrote.
        ConfigError: The model's threshold was calibrated for another rule, or with boxes where there are none.
    """
    out, rule = Path(out), as_carried_out(rule or model.rule, images)
    if model.threshold is not None:
        model.threshold.require(asdict(rule), bool(boxes))
    sizes, photos = _sizes(maps, images), _photos(maps, images, rule)
    _check_maps(maps, sizes, model.net.statistics)
    remove_others(out, maps, write_thresholds)
    remove_file(out / SUMMARY)
    without_boxes = predicted = 0
    for key, path in track(sorted(maps.items()), "fuse"):
        fused = fuse(
            check_named(path, read_map(path), sizes.get(key)),
            boxes.get(key, Boxes.empty()),
            model,
            rule,
            image=read_image(photos[key]) if photos else None,
        )
        write_score(out / "score" / f"{key}.npz", fused.score)
        write_png(out / "mask" / f"{key}.png", fused.mask.astype(np.uint8) * 255)
        if write_thresholds:
            write_score(out / "threshold" / f"{key}.npz", fused.threshold)
        without_boxes += not len(fused.boxes)
        predicted += int(fused.mask.sum())
    atomic_write_json(
        out / SUMMARY,
        {
            "rule": asdict(rule),
            "threshold": model.threshold.as_dict() if model.threshold else {"kind": "adt"},
            "statistics": asdict(model.net.statistics),
            "model": model.provenance,
            "images": len(maps),
        },
    )
    return FusedFolder(len(maps), without_boxes, predicted)


def check_named(
    path: Path, score: npt.NDArray[np.float32], size: tuple[int, int] | None = None
) -> npt.NDArray[np.float32]:
    """Check a map (:func:`anomdino.adt.fusion.check_map`) with its path in the message."""
    try:
        return check_map(score, size)
    except DataError as error:
        raise DataError(path, error.cause, error.cure) from error


def as_carried_out(rule: FusionRule, images: Mapping[str, Path] | None) -> FusionRule:
    """Give the rule without outlines where there are no photos to outline by, and say so."""
    if not rule.outline or images is not None:
        return rule
    log.warning("the model outlines objects in the photos; no images are given, so boxes stay rectangles")
    return replace(rule, outline=False)


def _check_maps(
    maps: Mapping[str, Path], sizes: Mapping[str, tuple[int, int]], statistics: ScoreStatistics
) -> None:
    """Check every map, and warn where all together are unlike those that the model standardises."""
    pixels, total, squares = 0, 0.0, 0.0
    for key, path in track(sorted(maps.items()), "check"):
        score = check_named(path, read_map(path), sizes.get(key)).astype(np.float64)
        standard = (statistics.sign * score - statistics.mean) / statistics.std
        pixels, total, squares = (
            pixels + standard.size, total + float(standard.sum()), squares + float(np.square(standard).sum())
        )  # fmt: skip
    mean = total / max(1, pixels)
    spread = math.sqrt(max(0.0, squares / max(1, pixels) - mean**2))
    if pixels and not (abs(mean) <= FAR and 1 / FAR <= spread <= FAR):
        log.warning(
            "these maps are unlike those that the model knows: their mean lies %.3g of its standard deviations away, "
            "theirs is %.3g of it; `anomdino calibrate` fits the model to them, --higher-is says what high scores mean",
            mean,
            spread,
        )


def remove_others(out: Path, keys: Iterable[str], thresholds: bool) -> None:
    """Remove what an earlier run wrote of maps that are not among ``keys``, and threshold maps that are not asked for.

    What lies elsewhere and is linked from ``out`` stays.

    Args:
        out: Output folder of :func:`fuse_folder`; it need not exist.
        keys: Keys of the maps that are fused now.
        thresholds: Whether threshold maps are written now.

    Raises:
        DataError: There are such results, and no finished run says that they are its own.
    """
    wanted = set(keys)
    others = []
    for kind, suffix in (("score", ".npz"), ("mask", ".png"), ("threshold", ".npz")):
        found = list_files(out / kind, {suffix}) if (out / kind).is_dir() else {}
        written = wanted if thresholds or kind != "threshold" else set()
        others += [path for key, path in found.items() if key not in written]
    if others and not (out / SUMMARY).is_file():
        raise DataError(
            out,
            f"holds {len(others)} results of other maps, {others[0].name} for one",
            "choose another folder",
        )
    for path in others:
        if path.parent.resolve().is_relative_to(out.resolve()):
            path.unlink()


def _photos(maps: Mapping[str, Path], images: Mapping[str, Path] | None, rule: FusionRule) -> dict[str, Path]:
    """Give the image of every map where the rule outlines objects."""
    if not rule.outline or images is None:
        return {}
    return {key: image for key, _, image in pair_by_key(maps, images, ("score map", "image"))}


def _sizes(maps: Mapping[str, Path], images: Mapping[str, Path] | None) -> dict[str, tuple[int, int]]:
    if images is None:
        return {}
    return {key: image_size(image) for key, _, image in pair_by_key(maps, images, ("score map", "image"))}
