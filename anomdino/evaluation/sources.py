"""Where the outputs come from that are evaluated: the cascade, or a folder of any method's score maps."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from anomdino.benchmarks import Sample
from anomdino.errors import DataError
from anomdino.io.boxes import Boxes
from anomdino.io.images import image_size, read_image, read_label
from anomdino.io.maps import MAP_SUFFIXES, read_map
from anomdino.io.npz import DAMAGED, open_npz
from anomdino.io.scores import read_score

if TYPE_CHECKING:
    from anomdino.adt.fusion import AdtModel, Output

FloatMap = npt.NDArray[np.float32]
BoolMap = npt.NDArray[np.bool_]
_MASK_SUFFIXES = (".png",)


@dataclass(frozen=True, eq=False)
class Prediction:
    """One output for one image.

    Attributes:
        score: float32 (H, W), higher = more anomalous.
        mask: bool (H, W), the mask that the method itself decides on, or None.
    """

    score: FloatMap
    mask: BoolMap | None = None


class OutputSource(Protocol):
    """Gives the outputs of an image by name, the same on every call."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order in which they are shown."""
        ...

    def predictions(self, sample: Sample) -> Mapping[str, Prediction]:
        """The outputs of an image, each of the image's size."""
        ...

    def boxes(self, sample: Sample) -> Boxes | None:
        """The detector's boxes, or None where there is no detector."""
        ...

    def classes(self, sample: Sample) -> npt.NDArray[np.uint8] | None:
        """The closed-set prediction, uint8 (H, W) of class ids, or None where there is none."""
        ...


@dataclass(frozen=True, eq=False)
class CascadeOutputs:
    """The cascade's outputs side by side, from scores and boxes on disk and a trained ADT-Net.

    Attributes:
        scores: Folder of score maps, ``<key>.npz``.
        box_results: Boxes of every image by key.
        model: The trained ADT-Net with its rule.
        names: Outputs among raw, hard, soft, boost, fused.
        min_component: Mask components with fewer pixels are removed (the track's limit).
        maps: Folder of uncertainty maps, for the closed-set prediction; None leaves it out.
    """

    scores: Path
    box_results: Mapping[str, Boxes]
    model: AdtModel
    names: tuple[Output, ...] = ("raw", "hard", "soft", "boost", "fused")
    min_component: int = 0
    maps: Path | None = None
    _weighed: dict[str, Boxes] = field(default_factory=dict, init=False)

    def predictions(self, sample: Sample) -> Mapping[str, Prediction]:
        """Run ADT-Net once and blend every output; ``fused`` carries the mask, by the model's threshold if it has one."""
        from anomdino.adt.fusion import compute_surfaces, final_mask, final_score

        size = image_size(sample.image)
        score = read_score(self.scores / f"{sample.key}.npz", size)
        rule, net = self.model.rule, self.model.net
        found = self.box_results.get(sample.key, Boxes.empty())
        image = read_image(sample.image) if rule.outline else None
        surfaces = compute_surfaces(
            score,
            found,
            net,
            rule.box_score,
            rule.mask_floor,
            image=image,
            outliner=self.model.outliner,
            image_size=size,
        )
        threshold = self.model.threshold
        if threshold is None:
            mask = final_mask(surfaces, net.architecture.ramp, self.min_component)
        else:
            threshold.require(asdict(rule))
            mask = threshold.mask(final_score(surfaces, rule), self.min_component)
        return {
            name: Prediction(
                final_score(surfaces, replace(rule, output=name)), mask if name == "fused" else None
            )
            for name in self.names
        }

    def boxes(self, sample: Sample) -> Boxes:
        """The detector's boxes, all of them, with the confidence that the ADT-Net goes by."""
        from anomdino.adt.evidence import weighed

        found = self.box_results.get(sample.key, Boxes.empty())
        if self.model.net.box_weights is None:
            return found
        if sample.key not in self._weighed:
            size = image_size(sample.image)
            score = read_score(self.scores / f"{sample.key}.npz", size)
            self._weighed[sample.key] = weighed(found.clipped(size), score, self.model.net)
        return self._weighed[sample.key]

    def classes(self, sample: Sample) -> npt.NDArray[np.uint8] | None:
        """Argmax of the pooled class probabilities, enlarged to the image's size (nearest)."""
        path = None if self.maps is None else self.maps / f"{sample.key}.npz"
        if path is None or not path.is_file():
            return None
        return _closed_set(path)


@dataclass(frozen=True, eq=False)
class ScoreFolder:
    """Score maps of any method, named by key, in any format of :func:`anomdino.io.maps.read_map`.

    Attributes:
        folder: Folder of score maps; the tree below it follows the keys.
        name: Name that the output gets.
        masks: Folder of binary masks ``<key>.png`` that the method decided on, not 0 where anomalous, or None.
    """

    folder: Path
    name: str = "score"
    masks: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The one output."""
        return (self.name,)

    def predictions(self, sample: Sample) -> Mapping[str, Prediction]:
        """Read the map of an image; its size must be the image's."""
        (path,) = _files_of([sample], "score maps", self.folder, MAP_SUFFIXES)
        score = read_map(path, image_size(sample.image))
        return {self.name: Prediction(score, self._mask(sample))}

    def boxes(self, sample: Sample) -> Boxes | None:
        """None: a folder of scores has no boxes."""
        return None

    def classes(self, sample: Sample) -> npt.NDArray[np.uint8] | None:
        """None: a folder of scores has no closed-set prediction."""
        return None

    def require(self, samples: Sequence[Sample]) -> None:
        """Check that every image has a map, and where there are masks one of its size.

        Raises:
            DataError: Some have none; the message lists the first ten.
        """
        _files_of(samples, "score maps", self.folder, MAP_SUFFIXES)
        if self.masks is not None:
            masks = _files_of(samples, "masks", self.masks, _MASK_SUFFIXES)
            for sample, path in zip(samples, masks, strict=True):
                _check_mask_size(path, image_size(path), sample)

    def _mask(self, sample: Sample) -> BoolMap | None:
        if self.masks is None:
            return None
        (path,) = _files_of([sample], "masks", self.masks, _MASK_SUFFIXES)
        mask = read_label(path) > 0
        _check_mask_size(path, mask.shape, sample)
        return mask


def _files_of(samples: Sequence[Sample], what: str, folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Find the file of each image by its key or the benchmark's own name for it.

    Raises:
        DataError: Some images have none; the message lists the first ten.
    """

    def of(sample: Sample) -> Path | None:
        names = (sample.key, sample.frame_id)  # NFC, which files need not be
        stems = (*names, *(unicodedata.normalize("NFD", name) for name in names))
        candidates = (folder / f"{stem}{suffix}" for stem in stems for suffix in suffixes)
        return next((path for path in candidates if path.is_file()), None)

    found = {sample.key: of(sample) for sample in samples}
    missing = [key for key, path in found.items() if path is None]
    if missing:
        listed = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
        raise DataError(
            folder,
            f"lacks the {what} of {len(missing)} of {len(samples)} images: {listed}",
            f"name them <key>{' or <key>'.join(suffixes)}",
        )
    return [path for path in found.values() if path is not None]


def _check_mask_size(path: Path, size: tuple[int, ...], sample: Sample) -> None:
    expected = image_size(sample.image)
    if tuple(size) != expected:
        raise DataError(
            path,
            f"is {size[0]} x {size[1]}, the image {sample.image.name} is {expected[0]} x {expected[1]} (H x W)",
            "write masks of the image's size; they are never resized silently",
        )


def _closed_set(path: Path) -> npt.NDArray[np.uint8]:
    import cv2

    try:
        with open_npz(path) as stored:
            small = stored["semantic"].argmax(axis=0).astype(np.uint8)
            height, width = (int(side) for side in stored["image_size"])
    except DAMAGED as error:
        cause = f"holds no uncertainty maps or is damaged ({error})"
        raise DataError(path, cause, "remove it, run the score stage") from error
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
