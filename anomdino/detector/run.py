"""Running trained detectors over a set of images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomdino.config.detect import DetectConfig
from anomdino.detector.infer import Detector
from anomdino.detector.quality import Coverage, coco_metrics
from anomdino.detector.records import Record
from anomdino.errors import CheckpointError, DataError, ProtocolError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.boxes import Boxes, write_box_results
from anomdino.io.images import read_image, read_label
from anomdino.progress import track
from anomdino.uncertainty import UncertaintyMaps

SPLIT_FILE = "split.json"
RETRAIN = "train it again: `dvc repro train_detector`"


@dataclass(frozen=True)
class Input:
    """One image with its uncertainty maps: key, image file, maps file."""

    key: str
    image: Path
    maps: Path


@dataclass(frozen=True)
class Report:
    """What a detection run came to: images, boxes, images without any box."""

    images: int
    boxes: int
    empty: int


def detect_set(detector: Detector, inputs: Iterable[Input], output: Path | str, what: str) -> Report:
    """Write the boxes of a set of images: COCO results and parquet.

    Args:
        detector: The trained detector.
        inputs: The images.
        output: Final ``.json`` file.
        what: Name for the progress bar.
    """
    boxes: dict[str, Boxes] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for item in track(list(inputs), what):
        found, sizes[item.key] = detect_one(detector, item.image, item.maps)
        boxes[item.key] = found.as_written(sizes[item.key])
    write_box_results(output, boxes, sizes)
    return _report(boxes)


def detect_out_of_fold(
    folder: Path | str,
    records: Iterable[Record],
    output: Path | str,
    config: DetectConfig,
    device: Any,
    scorer_folder: Path | str | None = None,
) -> tuple[Report, dict[str, Any]]:
    """Write the boxes of training images, each from a detector that did not train on it, and judge them as written.

    Args:
        folder: The detector's folder; those of its folds lie in it.
        records: The composed set.
        output: Final ``.json`` file. ``<stem>_quality.json`` beside it holds the boxes' quality and the suggested
            threshold.
        config: How boxes are kept.
        device: Where the detectors run.
        scorer_folder: The scorer, for ``backbone: scorer``.

    Returns:
        The counts, and the quality.

    Raises:
        ProtocolError: A detector would predict an image that it was trained on.
        CheckpointError: The folder was trained with another number of folds, or on another set.
    """
    by_key = {record.key: record for record in records}
    parts = {part: _honest_keys(part, by_key, config.folds) for part in fold_folders(folder, config.folds)}
    left = sorted(by_key.keys() - {key for wanted in parts.values() for key in wanted})
    if config.folds > 1 and left:
        raise CheckpointError(
            folder, f"its folds leave {len(left)} images of ood.json without boxes: {left[:3]}", RETRAIN
        )
    boxes: dict[str, Boxes] = {}
    coverage = Coverage()
    for part, wanted in parts.items():
        detector = Detector.load(part, device, config, scorer_folder)
        for key in track(wanted, f"detect train {part.name}"):
            record = by_key[key]
            found, size = detect_one(detector, record.image, record.maps)
            boxes[key] = found.as_written(size)
            coverage.add(boxes[key], read_label(record.label))
    truth = {key: by_key[key].boxes for key in boxes}
    quality = box_quality(boxes, truth, coverage, config.target_recall)
    write_box_results(output, boxes, {key: by_key[key].size for key in boxes})
    atomic_write_json(Path(output).with_name(f"{Path(output).stem}_quality.json"), quality)
    return _report(boxes), quality


def box_quality(
    boxes: dict[str, Boxes], truth: dict[str, Any], coverage: Coverage, target_recall: float
) -> dict[str, Any]:
    """Gather AR, AP50, coverage curve and suggested threshold in one JSON-ready dictionary."""
    metrics = coco_metrics(boxes, truth)
    threshold = coverage.suggest_threshold(target_recall)
    return {
        "images": coverage.images,
        "components": coverage.components,
        **{f"AR@{limit}": value for limit, value in metrics.ar.items()},
        "AP50": metrics.ap50,
        "target_recall": target_recall,
        "suggested_threshold": threshold,
        "at_suggested_threshold": None if threshold is None else coverage.at(threshold),
        "curve": coverage.curve(),
    }


def detect_one(detector: Detector, image: Path, maps: Path) -> tuple[Boxes, tuple[int, int]]:
    """Detect in one image file; returns the boxes and the image's (H, W)."""
    pixels = read_image(image)
    size = (pixels.shape[0], pixels.shape[1])
    stored = UncertaintyMaps.load(maps)
    if tuple(stored.image_size) != size:
        raise DataError(
            maps, f"belongs to an image of {stored.image_size}, {image.name} is {size} (H, W)", "score again"
        )
    return detector.detect(pixels, stored), size


def fold_folders(folder: Path | str, folds: int) -> list[Path]:
    """Give the folders of the detectors that predict the training set."""
    folder = Path(folder)
    return [folder] if folds == 1 else [folder / f"fold{index}" for index in range(folds)]


def _honest_keys(folder: Path, by_key: dict[str, Record], folds: int) -> list[str]:
    try:
        split = json.loads((folder / SPLIT_FILE).read_text(encoding="utf-8"))
        wanted, trained = list(split["predict"]), set(split["train"])
        of = int(split.get("folds", folds))  # folders of earlier versions do not say
    except FileNotFoundError as error:
        cause = f"holds no trained fold, detect.folds is {folds}"
        raise CheckpointError(folder, cause, f"detect.folds changed? {RETRAIN}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(folder / SPLIT_FILE, f"is damaged ({error!r})", RETRAIN) from error
    if of != folds or not wanted:
        cause = f"is one of {of} folds, detect.folds is {folds}" if of != folds else "may predict no image"
        raise CheckpointError(folder, cause, RETRAIN)
    unknown = [key for key in wanted if key not in by_key]
    if unknown:
        raise CheckpointError(
            folder, f"was trained on another set: {unknown[:3]} are not in ood.json", "train again"
        )
    sources = {by_key[key].source for key in trained if key in by_key}
    seen = [key for key in wanted if key in trained or by_key[key].source in sources]
    if seen:
        raise ProtocolError(
            folder, f"was trained on {len(seen)} of the images it should predict: {seen[:3]}", "train again"
        )
    return wanted


def _report(boxes: dict[str, Boxes]) -> Report:
    return Report(len(boxes), sum(map(len, boxes.values())), sum(not len(found) for found in boxes.values()))


__all__ = ["Input", "Report", "box_quality", "detect_one", "detect_out_of_fold", "detect_set", "fold_folders"]
