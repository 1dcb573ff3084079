"""What is written of a prediction: maps, lines of JSON, pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.adt.fusion import FusionRule
from anomdino.adt.model import LOW, SPAN
from anomdino.cascade import Prediction
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_write_bytes, atomic_write_json
from anomdino.io.boxes import Boxes
from anomdino.io.images import write_png
from anomdino.io.scores import write_score
from anomdino.prediction.instances import InstanceFile
from anomdino.viz.overlay import ScoreRange, draw_overlay

PHOTO_FILES = (
    ("score", ".npz"), ("mask", ".png"), ("boxes", ".json"),
    ("overlay", ".jpg"), ("threshold", ".npz"), ("threshold", ".jpg"),
)  # fmt: skip
VIDEO_FILES = (("frames", ".jsonl"), ("overlay", ".mp4"))
NEW_SHARE = 0.1
"""Share of a frame in the range of the heat, whose rest is that of the frames before."""
QUALITY = 92
THRESHOLDS = ScoreRange(LOW, LOW + SPAN, "threshold on S_n")


class PredictionWriter:
    """Writes the results of a photo: each file whole or not at all.

    Args:
        folder: Output folder with ``score/``, ``mask/``, ``boxes/`` and ``overlay/``.
        rule: Rule of the final score, for captions.
        overlay: Write pictures.
        thresholds: Write ADT-Net's threshold of each pixel as a map and a picture, ``threshold/``.
        instances: Collects the instances of the photos, for one COCO file of all.
        boxes: There is a detector; without, pictures do not speak of boxes.
    """

    def __init__(
        self,
        folder: Path,
        rule: FusionRule,
        overlay: bool = True,
        thresholds: bool = False,
        instances: InstanceFile | None = None,
        *,
        boxes: bool = True,
    ) -> None:
        self.folder, self.rule, self.overlay, self.thresholds = folder, rule, overlay, thresholds
        self.instances, self.boxes = instances, boxes
        top = 1.0 if rule.output in {"hard", "soft"} else 1.0 + rule.b
        self.span = ScoreRange(0.0, top, f"{rule.output} score")

    def write(
        self, key: str, image: npt.NDArray[np.uint8], prediction: Prediction, photo: Path | None = None
    ) -> dict[str, object]:
        """Write all files of a photo and return its line of the summary; where that fails, or is stopped, none stays.

        Pictures and maps of a run before that are not asked for now go; the photo itself stays, wherever it lies.
        """
        try:
            return self._write(key, image, prediction, photo)
        except BaseException:
            self._unlink(PHOTO_FILES, key, photo)
            raise

    def _write(
        self, key: str, image: npt.NDArray[np.uint8], prediction: Prediction, photo: Path | None
    ) -> dict[str, object]:
        line: dict[str, object] = {
            "image": key,
            "height": image.shape[0],
            "width": image.shape[1],
            **description(prediction),
        }
        self.write_maps(key, prediction)
        atomic_write_json(self.folder / "boxes" / f"{key}.json", line)
        if self.overlay:
            span = self.range_of(prediction)
            self._write_picture("overlay", key, image, prediction, prediction.score, span)
        if self.thresholds:
            self._write_picture("threshold", key, image, prediction, prediction.threshold, THRESHOLDS)
        if self.instances is not None:
            self.instances.add(key, photo or Path(key), prediction.mask, prediction.score)
        left_out = {"overlay": not self.overlay, "threshold": not self.thresholds}
        self._unlink([(kind, suffix) for kind, suffix in PHOTO_FILES if left_out.get(kind)], key, photo)
        return line

    def write_maps(self, key: str, prediction: Prediction) -> None:
        """Write score map and mask, and the map of thresholds where it was asked for."""
        write_score(self.folder / "score" / f"{key}.npz", prediction.score)
        write_png(self.folder / "mask" / f"{key}.png", prediction.mask.astype(np.uint8) * 255)
        if self.thresholds:
            write_score(self.folder / "threshold" / f"{key}.npz", prediction.threshold)

    def remove(self, key: str, photo: Path) -> None:
        """Remove what a run before wrote of a photo that cannot be used now; the photo itself stays."""
        self._unlink(PHOTO_FILES, key, photo)

    def remove_video(self, key: str, video: Path) -> None:
        """Remove what a run before wrote of a video that cannot be used now; the video itself stays."""
        self._unlink(VIDEO_FILES, key, video)
        self.remove_frames(key)

    def remove_film(self, key: str, video: Path) -> None:
        """Remove the film of a run before; the video itself stays."""
        self._unlink([("overlay", ".mp4")], key, video)

    def remove_frames(self, key: str) -> None:
        """Remove what :meth:`write_maps` wrote of a video's frames before: there may be other frames now."""
        for kind in ("score", "mask", "threshold"):
            for file in (self.folder / kind / key).glob("*"):
                if file.stem.isdecimal() and file.suffix in {".npz", ".png"}:
                    file.unlink()

    def _unlink(self, files: Iterable[tuple[str, str]], key: str, source: Path | None) -> None:
        for kind, suffix in files:
            file = self.folder / kind / f"{key}{suffix}"
            there = os.path.lexists(file)  # a name that is too long is not
            if there and (source is None or file.resolve() != source.resolve()):
                file.unlink(missing_ok=True)

    def range_of(self, prediction: Prediction) -> ScoreRange:
        """Give the range of the heat: photos of another place score high everywhere, what is usual stays dark."""
        if self.rule.output == "raw":
            low, high = np.percentile(prediction.score, [2, 99.8])
            return ScoreRange(float(low), float(high), "raw, 2 - 99.8 %")
        usual = min(float(np.median(prediction.score)), 0.9 * self.span.high)
        return ScoreRange(usual, self.span.high, f"{self.rule.output}, above median")

    def drawn(self, prediction: Prediction) -> Boxes | None:
        """Give the boxes that a picture shows; ``None``, which its legend leaves out, without a detector."""
        return prediction.boxes if self.boxes else None

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
            image, heat, span, boxes=self.drawn(prediction), mask=prediction.mask, title=Path(key).name
        )
        atomic_write_bytes(self.folder / kind / f"{key}.jpg", encode_jpeg(picture, key))


class SteadyRange:
    """The range of the heat in pictures that follow each other: it goes after theirs slowly, so colours do not flicker.

    Args:
        writer: Knows the range of a single picture.
    """

    def __init__(self, writer: PredictionWriter) -> None:
        self._writer = writer
        self._span: ScoreRange | None = None

    @property
    def span(self) -> ScoreRange:
        """The range now; of a prediction at least."""
        assert self._span is not None
        return self._span

    def follow(self, prediction: Prediction) -> ScoreRange:
        """Take a tenth of a prediction's own range, and give what is the range then."""
        now = self._writer.range_of(prediction)
        before = self._span or now
        self._span = ScoreRange(
            (1 - NEW_SHARE) * before.low + NEW_SHARE * now.low,
            (1 - NEW_SHARE) * before.high + NEW_SHARE * now.high,
            now.origin,
        )
        return self._span


def encode_jpeg(picture: npt.NDArray[np.uint8], name: str) -> bytes:
    """Encode a picture, uint8 (H, W, 3), RGB, as JPEG.

    Raises:
        DataError: It cannot be encoded: a side is longer than 65,535 pixels.
    """
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    try:
        good, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    except cv2.error:
        good = False
    if not good:
        raise DataError(name, "its picture could not be encoded", "")
    return bytes(encoded.tobytes())


def description(prediction: Prediction) -> dict[str, object]:
    """Give what a line of JSON says of a prediction: share of the mask, range of the score, boxes."""
    return {
        "anomaly_share": float(f"{prediction.mask.mean():.6g}"),  # one pixel of many stays above 0
        "score_min": round(float(prediction.score.min()), 6),
        "score_max": round(float(prediction.score.max()), 6),
        "boxes": [
            {"xyxy": [round(float(v), 2) for v in box], "score": round(float(score), 4)}
            for box, score in zip(prediction.boxes.xyxy, prediction.boxes.scores, strict=True)
        ],
    }
