"""Running the cascade over a user's photos and writing what a user wants to see."""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.adt.fusion import FusionRule
from anomdino.adt.model import LOW, SPAN
from anomdino.cascade import Cascade, Prediction
from anomdino.errors import AnomdinoError, DataError, DiskError
from anomdino.io.atomic import atomic_write_bytes, atomic_write_json
from anomdino.io.images import read_image, write_png
from anomdino.io.listing import image_key, list_images
from anomdino.io.scores import write_score
from anomdino.progress import track
from anomdino.viz.overlay import ScoreRange, draw_overlay

log = logging.getLogger(__name__)

THRESHOLDS = ScoreRange(LOW, LOW + SPAN, "threshold on S_n")


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        done: Photos with results.
        skipped: Photos that could not be used, listed in ``summary.json`` with the reason.
        with_anomaly: Photos whose mask is not empty.
        rate: Photos a second, reading and writing included.
    """

    done: int
    skipped: int
    with_anomaly: int
    rate: float


def collect(inputs: Sequence[str]) -> dict[str, Path]:
    """List the photos that a user names, by key.

    A folder gives its images with their tree; files and quoted globs give keys relative to the folder that all of
    them share.

    Raises:
        DataError: An input matches nothing, a folder has no image, or two photos have the same key.
    """
    photos: dict[str, Path] = {}
    files: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            listed = list_images(path)
            if not listed:
                raise DataError(path, "holds no image", "images are png, jpg, webp, bmp, tiff or ppm")
            _merge(photos, listed)
        elif path.is_file():
            files.append(path)
        else:
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - absolute patterns
            if not matches:
                raise DataError(
                    text, "is no file, no folder, and matches nothing", "check the path or quote the pattern"
                )
            files += [match for match in matches if match.is_file()]
            for match in matches:
                if match.is_dir():
                    _merge(photos, list_images(match))
    if files:
        root = Path(os.path.commonpath([file.parent for file in files]))
        for file in files:
            _merge(photos, {image_key(file, root): file})
    return dict(sorted(photos.items()))


def _merge(photos: dict[str, Path], more: Mapping[str, Path]) -> None:
    for key, path in more.items():
        if key in photos and photos[key] != path:
            raise DataError(
                path,
                f"would be written under the name '{key}', as {photos[key]}",
                "predict them into two output folders",
            )
        photos[key] = path


class PredictionWriter:
    """Writes the results of a photo: each file whole or not at all.

    Args:
        folder: Output folder with ``score/``, ``mask/``, ``boxes/`` and ``overlay/``.
        rule: Rule of the final score, for captions.
        overlay: Write pictures.
        thresholds: Write ADT-Net's threshold of each pixel as a map and a picture, ``threshold/``.
    """

    def __init__(
        self, folder: Path, rule: FusionRule, overlay: bool = True, thresholds: bool = False
    ) -> None:
        self.folder, self.rule, self.overlay, self.thresholds = folder, rule, overlay, thresholds
        top = 1.0 if rule.output in {"hard", "soft"} else 1.0 + rule.b
        self.span = ScoreRange(0.0, top, f"{rule.output} score")

    def write(self, key: str, image: npt.NDArray[np.uint8], prediction: Prediction) -> dict[str, object]:
        """Write all files of a photo and return its line of the summary."""
        height, width = image.shape[:2]
        line: dict[str, object] = {
            "image": key,
            "height": height,
            "width": width,
            "anomaly_share": round(float(prediction.mask.mean()), 6),
            "score_min": round(float(prediction.score.min()), 6),
            "score_max": round(float(prediction.score.max()), 6),
            "boxes": [
                {"xyxy": [round(float(v), 2) for v in box], "score": round(float(score), 4)}
                for box, score in zip(prediction.boxes.xyxy, prediction.boxes.scores, strict=True)
            ],
        }
        write_score(self.folder / "score" / f"{key}.npz", prediction.score)
        write_png(self.folder / "mask" / f"{key}.png", prediction.mask.astype(np.uint8) * 255)
        atomic_write_json(self.folder / "boxes" / f"{key}.json", line)
        if self.overlay:
            self._write_overlay(key, image, prediction)
        if self.thresholds:
            write_score(self.folder / "threshold" / f"{key}.npz", prediction.threshold)
            self._write_picture("threshold", key, image, prediction, prediction.threshold, THRESHOLDS)
        return line

    def _write_overlay(self, key: str, image: npt.NDArray[np.uint8], prediction: Prediction) -> None:
        if self.rule.output == "raw":
            low, high = np.percentile(prediction.score, [2, 99.8])
            span = ScoreRange(float(low), float(high), "raw, 2 - 99.8 %")
        else:  # photos of another place score high everywhere: what is usual in this one stays dark
            usual = min(float(np.median(prediction.score)), 0.9 * self.span.high)
            span = ScoreRange(usual, self.span.high, f"{self.rule.output}, above median")
        self._write_picture("overlay", key, image, prediction, prediction.score, span)

    def _write_picture(
        self,
        kind: str,
        key: str,
        image: npt.NDArray[np.uint8],
        prediction: Prediction,
        heat: npt.NDArray[np.float32],
        span: ScoreRange,
    ) -> None:
        picture = draw_overlay(
            image, heat, span, boxes=prediction.boxes, mask=prediction.mask, title=Path(key).name
        )
        good, encoded = cv2.imencode(
            ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92]
        )
        if not good:
            raise DataError(key, f"its {kind} could not be encoded", "")
        atomic_write_bytes(self.folder / kind / f"{key}.jpg", encoded.tobytes())


def predict_all(
    cascade: Cascade,
    photos: Mapping[str, Path],
    writer: PredictionWriter,
    *,
    max_pixels: int,
    strict: bool = False,
) -> Summary:
    """Predict photo by photo; memory does not grow with their number.

    Args:
        cascade: The loaded networks.
        photos: Paths by key (:func:`collect`).
        writer: Where results go.
        max_pixels: Larger photos are refused.
        strict: Stop at the first photo that cannot be used; else it is listed with the reason.

    Raises:
        AnomdinoError: With ``strict``, what is wrong with a photo; always, when the disk is full.
    """
    started, lines, skipped = time.perf_counter(), [], []
    for key, path in track(photos.items(), "predict", total=len(photos)):
        try:
            image = read_image(path, max_pixels)
            lines.append(writer.write(key, image, cascade.predict(image, path)))
        except DiskError:
            raise
        except AnomdinoError as error:
            named = (
                error
                if error.what == str(path)
                else type(error)(path, f"{error.what} {error.cause}", error.cure)
            )
            if strict:
                raise named from error
            log.warning("skipped: %s", named)
            skipped.append({"image": key, "path": str(path), "reason": named.cause})
    with_anomaly = sum(1 for line in lines if line["anomaly_share"])
    atomic_write_json(
        writer.folder / "summary.json",
        {
            "output": writer.rule.output,
            "score_range": [writer.span.low, writer.span.high],
            "images": lines,
            "skipped": skipped,
        },
    )
    rate = len(lines) / max(1e-9, time.perf_counter() - started)
    return Summary(len(lines), len(skipped), with_anomaly, rate)
