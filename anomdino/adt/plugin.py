"""ADT-Net for the score maps of any method: fuse folders, refit the standardisation, find a threshold."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.adt.dataset import check_label, measure_scores
from anomdino.adt.fusion import AdtModel, FusionRule, check_map, fuse
from anomdino.adt.model import ScoreStatistics
from anomdino.adt.thresholds import Threshold, ThresholdCalibration, ThresholdKind
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.boxes import Boxes
from anomdino.io.images import image_size, read_image, read_label, write_png
from anomdino.io.listing import list_files, pair_by_key
from anomdino.io.maps import read_map
from anomdino.io.scores import write_score
from anomdino.progress import track

log = logging.getLogger(__name__)


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
    whatever the scores in it; the threshold that was calibrated with weighed boxes is dropped.
    """
    net = copy.deepcopy(model.net)
    net.box_weights = None
    return replace(model, net=net, threshold=None, provenance={**model.provenance, "boxes": "as given"})


def with_statistics(model: AdtModel, statistics: ScoreStatistics, note: Mapping[str, Any]) -> AdtModel:
    """Give a copy of the model with other statistics; a threshold calibrated before is dropped."""
    net = copy.deepcopy(model.net)
    net.statistics = statistics
    return replace(model, net=net, threshold=None, provenance=model.provenance | dict(note))


def oriented(model: AdtModel, *, higher_is_anomalous: bool) -> AdtModel:
    """Give the model for maps of the stated orientation; its statistics hold for the oriented score."""
    statistics = model.net.statistics
    wanted = 1 if higher_is_anomalous else -1
    if statistics.sign == wanted:
        return model
    net = copy.deepcopy(model.net)
    net.statistics = ScoreStatistics(statistics.mean, statistics.std, 1 if wanted > 0 else -1)
    return replace(model, net=net)


def calibrate_threshold(
    model: AdtModel,
    maps: Mapping[str, Path],
    labels: Path | str,
    boxes: Mapping[str, Boxes],
    kind: ThresholdKind,
    *,
    images: Mapping[str, Path] | None = None,
    rule: FusionRule | None = None,
) -> Threshold:
    """Find a threshold on the final score from labelled calibration images (`anomdino.adt.thresholds`).

    Args:
        model: The model that makes the final score.
        maps: Score maps by key.
        labels: Folder of ``<key>.png`` with 0, 1, 255.
        boxes: Boxes by key; an image that is not listed has none.
        kind: What is asked for.
        images: Images by key, one for each map; a rule with ``outline`` outlines objects by them.
        rule: Rule of the final score; the model's own if absent.

    Raises:
        DataError: A map has no label or image, or the reverse, has another size, holds NaN, or is constant; or a label
            has other values.
    """
    rule = rule or model.rule
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
    return calibration.threshold(kind, rule.output, str(labels))


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
    the model. Every map is checked before anything is written.

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
        DataError: A map has no image or the reverse, has another size, holds NaN, or is constant.
    """
    out, rule = Path(out), rule or model.rule
    sizes, photos = _sizes(maps, images), _photos(maps, images, rule)
    for key, path in track(sorted(maps.items()), "check"):
        check_named(path, read_map(path), sizes.get(key))
    (out / "fusion.json").unlink(missing_ok=True)
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
        out / "fusion.json",
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


def _photos(maps: Mapping[str, Path], images: Mapping[str, Path] | None, rule: FusionRule) -> dict[str, Path]:
    """Give the image of every map where the rule outlines objects; none, with a warning, where no images are given."""
    if not rule.outline:
        return {}
    if images is None:
        log.warning("the model outlines objects in the photos; no images are given, so boxes stay rectangles")
        return {}
    return {key: image for key, _, image in pair_by_key(maps, images, ("score map", "image"))}


def _sizes(maps: Mapping[str, Path], images: Mapping[str, Path] | None) -> dict[str, tuple[int, int]]:
    if images is None:
        return {}
    return {key: image_size(image) for key, _, image in pair_by_key(maps, images, ("score map", "image"))}
