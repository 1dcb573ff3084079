"""What a benchmark is to the rest of the code: a list of samples with labels that mean 0, 1 or 255."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.benchmarks.labels import ANOMALY, IN_DISTRIBUTION, VOID, LabelMap
from anomdino.errors import AnomdinoError, DataError
from anomdino.io.images import image_size, read_label

# SMIYC's LostAndFound with a region of interest: the region is 0, obstacles 1, all else 255
_ROI_IS_ROAD = {"lost_and_found", "lost_and_found_train_ids"}


@dataclass(frozen=True)
class ComponentLimits:
    """Smallest components that SMIYC's component metrics count, in pixels.

    Attributes:
        min_predicted: Predicted components with fewer pixels are removed.
        min_gt: Ground-truth components with fewer pixels become void.
    """

    min_predicted: int = 500
    min_gt: int = 100


@dataclass(frozen=True)
class Sample:
    """One frame of a benchmark.

    Attributes:
        key: Path of the image below the folder of images, without suffix; outputs carry it.
        image: The image file.
        label: The label file, or None in a split whose labels are not public.
        tags: Groups that results are broken down by (scene, night, ...).
        frame_id: The name that the benchmark itself uses; equals ``key`` where it has none.
        instances: Instance-id image (0 = no instance), where the data set has one.
    """

    key: str
    image: Path
    label: Path | None = None
    tags: tuple[str, ...] = ()
    frame_id: str = ""
    instances: Path | None = None

    def __post_init__(self) -> None:
        if not self.frame_id:
            object.__setattr__(self, "frame_id", self.key)


@dataclass(frozen=True)
class Benchmark:
    """An opened benchmark.

    Attributes:
        name: Name that results are filed under.
        layout: Name of the layout it was read with.
        split: Name of the split.
        samples: Frames in order of their key.
        label_map: Meaning of the raw label values.
        limits: Component limits of its track.
        protocol: Pixel protocol that its published numbers follow: pooled, rpl, fishyscapes or smiyc.
        roi: Optional image whose non-zero pixels are the region of interest. Outside it all but anomalies becomes void;
            inside, labels are as they are, except in LostAndFound, whose own rule makes everything there road that is
            no obstacle.
    """

    name: str
    layout: str
    split: str
    samples: tuple[Sample, ...]
    label_map: LabelMap
    limits: ComponentLimits
    protocol: str
    roi: Path | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def labelled(self) -> bool:
        """Whether the split has labels, so that it can be scored."""
        return bool(self.samples) and all(sample.label is not None for sample in self.samples)

    def read_label(self, sample: Sample) -> npt.NDArray[np.uint8]:
        """Read the label of a frame.

        Returns:
            uint8 (H, W) of the image's size: 0 in-distribution, 1 anomaly, 255 void.

        Raises:
            DataError: The frame has no label, or the label is damaged, coloured, of another size than the
                image, or holds undeclared values.
        """
        if sample.label is None:
            raise DataError(sample.image, f"has no label in split '{self.split}' of {self.name}", _HIDDEN)
        raw = read_label(sample.label)
        _check_size(sample, raw.shape)
        label = self.label_map.apply(raw, sample.label)
        return label if self._roi is None else self._restricted(label, sample)

    def read_instances(self, sample: Sample) -> npt.NDArray[np.int32] | None:
        """Read the instance ids of a frame, int32 (H, W), 0 = none; None where the data set has no instances.

        Raises:
            DataError: The file is damaged, coloured, or of another size than the image.
        """
        if sample.instances is None:
            return None
        instances = read_ids(sample.instances)
        _check_size(replace(sample, label=sample.instances), instances.shape)
        return instances

    def check(self) -> None:
        """Read every label once.

        Raises:
            DataError: Some labels are unusable; the message lists the first ten cases.
        """
        self.require_labels()
        problems: list[str] = []
        for sample in self.samples:
            try:
                self.read_label(sample)
            except AnomdinoError as error:
                problems.append(str(error))
        if problems:
            listed = "\n  ".join(problem.replace("\n", "\n  ") for problem in problems[:10])
            more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
            raise DataError(
                self.name, f"{len(problems)} of {len(self)} labels are unusable:\n  {listed}{more}"
            )

    def require_labels(self) -> None:
        """Refuse to score a split whose labels are not there.

        Raises:
            DataError: A frame has no label; the message lists the first ten.
        """
        lacking = [sample.key for sample in self.samples if sample.label is None]
        if lacking or not self.samples:
            listed = ", ".join(lacking[:10]) + (" ..." if len(lacking) > 10 else "")
            raise DataError(
                self.name,
                f"split '{self.split}' has no labels for {len(lacking)} of {len(self)} frames: {listed}; "
                "it can be predicted but not scored",
                _HIDDEN,
            )

    @cached_property
    def _roi(self) -> npt.NDArray[np.bool_] | None:
        return None if self.roi is None else read_label(self.roi) != 0

    def _restricted(self, label: npt.NDArray[np.uint8], sample: Sample) -> npt.NDArray[np.uint8]:
        roi = self._roi
        assert roi is not None
        if roi.shape != label.shape:
            raise DataError(self.roi, f"is {roi.shape} (H, W), the label of {sample.key} is {label.shape}")
        inside = IN_DISTRIBUTION if self.layout in _ROI_IS_ROAD else label
        restricted = np.where(roi, inside, VOID).astype(np.uint8)
        restricted[label == ANOMALY] = ANOMALY
        return restricted


def read_ids(path: Path) -> npt.NDArray[np.int32]:
    """Read an 8- or 16-bit image of ids, int32 (H, W); palette images give their indices.

    Raises:
        DataError: The file is damaged, or has colour channels that differ.
    """
    ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if ids is None:
        raise DataError(path, "is missing, truncated or no image", "copy or download it again")
    if ids.ndim == 3 and ids.dtype == np.uint8:
        ids = read_label(path)
    if ids.ndim != 2 or ids.dtype.kind != "u":
        raise DataError(
            path, f"has shape {ids.shape} and type {ids.dtype}", "instance ids are one 8- or 16-bit channel"
        )
    return np.asarray(ids, np.int32)


_HIDDEN = (
    "labels of test splits are kept by the benchmark's authors; `anomdino submit smiyc` writes a submission"
)


def _check_size(sample: Sample, shape: tuple[int, ...]) -> None:
    expected = image_size(sample.image)
    if tuple(shape) == expected:
        return
    turned = tuple(shape) == expected[::-1]
    raise DataError(
        sample.label,
        f"is {shape[0]} x {shape[1]}, its image {sample.image.name} is {expected[0]} x {expected[1]} (H x W)",
        "the image carries an EXIF orientation that the label lacks: turn the label"
        if turned
        else "labels must have the size of their image; they are never resized silently",
    )
