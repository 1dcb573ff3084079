"""The composed set as an mmengine data set, and the transforms of training and testing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from anomdino.config.detector import DetectorConfig
from anomdino.detector.maps import resized_maps, stack_maps, warp_maps
from anomdino.detector.mmdet_parts import (
    DATASETS,
    TRANSFORMS,
    BaseDetDataset,
    BaseTransform,
    Resize,
    rescale_size,
)
from anomdino.detector.records import Record
from anomdino.io.boxes import CATEGORY_NAME, image_id
from anomdino.io.images import read_image
from anomdino.uncertainty import UncertaintyMaps

META_KEYS = ("img_id", "key", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction", "text")


class RecordReader:
    """Reads images with their maps; the first ones that fit stay decoded in memory, in every loading process.

    Args:
        cache_mb: Memory for them.
    """

    def __init__(self, cache_mb: int = 0) -> None:
        self._room = cache_mb * 2**20
        self._kept: dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]] = {}

    def read(
        self, image_path: Path | str, maps_path: Path | str
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Give the image, uint8 (H, W, 3) RGB, and its stacked maps, float32 (C + 3, h, w); neither can be written to.

        Raises:
            DataError: A file cannot be read.
        """
        key = str(image_path)
        if key in self._kept:
            return self._kept[key]
        pair = read_image(image_path), stack_maps(UncertaintyMaps.load(maps_path))
        for array in pair:
            array.flags.writeable = False
        size = sum(array.nbytes for array in pair)
        if size <= self._room:
            self._room -= size
            self._kept[key] = pair
        return pair


@TRANSFORMS.register_module()
class LoadComposed(BaseTransform):  # type: ignore[misc]
    """Give the image, uint8 (H, W, 3) RGB, and its stacked maps, as they come or from their files.

    Args:
        reader: Reads the files.
    """

    def __init__(self, reader: RecordReader | None = None) -> None:
        self.reader = reader or RecordReader()

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``img``, ``img_shape``, ``ori_shape`` and ``maps`` (float32 (C + 3, h, w), free to be written to)."""
        if "img" in results:
            results["maps"] = stack_maps(results["maps"])
        else:
            results["img"], maps = self.reader.read(results["img_path"], results["maps_path"])
            results["maps"] = maps.copy()
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class MosaicComposed(BaseTransform):  # type: ignore[misc]
    """Put an image and three others into a mosaic of two by two, at random: objects of half the relative size.

    DINO's proposals are relative to the image, so that the sizes of objects, as shares of the image, must occur in
    training. The others are resized to the first.

    Args:
        probability: Share of samples that become a mosaic.
        records: The images that the others are drawn from.
        reader: Reads them.
    """

    def __init__(self, probability: float, records: Sequence[Record], reader: RecordReader) -> None:
        self.probability, self.records, self.reader = probability, list(records), reader

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Merge ``img``, ``maps`` and ``instances``; ``ori_shape`` becomes that of the mosaic."""
        if np.random.random() >= self.probability:  # noqa: NPY002 - seeded with mmdet's own transforms
            return results
        (height, width), grid = results["img"].shape[:2], results["maps"].shape[1:]
        others = [self._load(number) for number in np.random.randint(0, len(self.records), 3)]  # noqa: NPY002
        tiles = [(results["img"], results["maps"], [i["bbox"] for i in results["instances"]]), *others]
        images, maps, instances = [], [], []
        for index, (image, stacked, boxes) in enumerate(tiles):
            scale = np.array([width / image.shape[1], height / image.shape[0]] * 2)
            shift = np.array([index % 2 * width, index // 2 * height] * 2)
            images.append(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
            maps.append(resized_maps(stacked, (grid[0], grid[1])))
            instances += [
                {"bbox": (np.array(box) * scale + shift).tolist(), "bbox_label": 0, "ignore_flag": 0}
                for box in boxes
            ]
        results["img"] = np.vstack([np.hstack(images[:2]), np.hstack(images[2:])])
        results["maps"] = np.concatenate([np.concatenate(maps[:2], 2), np.concatenate(maps[2:], 2)], 1)
        results["instances"] = instances
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results

    def _load(self, number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], list[list[float]]]:
        record = self.records[number]
        return *self.reader.read(record.image, record.maps), record.boxes.tolist()


@TRANSFORMS.register_module()
class JitterScore(BaseTransform):  # type: ignore[misc]
    """Shift and scale the score map at random, so that no absolute score is learned by heart.

    Args:
        sigma: Standard deviation of the offset, and half of it that of the log gain, in units of the set's spread.
        spread: Standard deviation of the scores of the training set.
    """

    def __init__(self, sigma: float, spread: float) -> None:
        self.sigma, self.spread = sigma, spread

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change the last map in place."""
        if self.sigma:
            offset, log_gain = np.random.normal(0, (self.sigma, self.sigma / 2))  # noqa: NPY002 - as mmdet draws
            score = results["maps"][-1]
            results["maps"][-1] = (
                (score - score.mean()) * np.exp(log_gain) + score.mean() + offset * self.spread
            )
        return results


@TRANSFORMS.register_module()
class ResizeComposed(Resize):  # type: ignore[misc]
    """mmdet's resizing, but of extremely long images, whose shorter side it rounds to nothing, a pixel stays."""

    def _resize_img(self, results: dict[str, Any]) -> None:
        height, width = results["img"].shape[:2]
        size = rescale_size((width, height), results["scale"])
        if min(size) > 0:
            super()._resize_img(results)
            return
        columns, rows = (max(1, side) for side in size)
        results["img"] = cv2.resize(results["img"], (columns, rows), interpolation=cv2.INTER_LINEAR)
        results["img_shape"], results["scale_factor"] = (rows, columns), (columns / width, rows / height)


@TRANSFORMS.register_module()
class WarpMaps(BaseTransform):  # type: ignore[misc]
    """Bring the maps onto the grid of the transformed image, by the homography that the transforms recorded.

    Args:
        stride: Pixels of the transformed image a cell covers.
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace ``maps`` by float32 (C + 3, ceil(H / stride), ceil(W / stride))."""
        homography = results.get("homography_matrix")
        results["maps"] = warp_maps(
            results["maps"],
            results["ori_shape"],
            np.eye(3) if homography is None else homography,
            results["img"].shape[:2],
            self.stride,
        )
        return results


@TRANSFORMS.register_module()
class PackComposed(BaseTransform):  # type: ignore[misc]
    """Pack image and sample with mmdet's ``PackDetInputs`` and hang the maps on the sample."""

    def __init__(self) -> None:
        self.pack = TRANSFORMS.build({"type": "PackDetInputs", "meta_keys": META_KEYS})

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Give ``inputs`` (uint8 (3, H, W)) and ``data_samples``."""
        packed: dict[str, Any] = self.pack(results)
        packed["data_samples"].maps = torch.from_numpy(results["maps"])
        return packed


@DATASETS.register_module()
class ComposedDataset(BaseDetDataset):  # type: ignore[misc]
    """The records of a fold.

    Args:
        records: The images.
        text: The prompt, or several.
        **kwargs: Arguments of mmdet's BaseDetDataset, such as ``pipeline``.
    """

    METAINFO = {"classes": (CATEGORY_NAME,)}  # noqa: RUF012

    def __init__(self, records: Sequence[Record], text: str | Sequence[str], **kwargs: Any) -> None:
        self.records, self.text = list(records), text
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Describe every image: id, key, files, size and instances."""
        return [
            {
                "img_id": image_id(record.key),
                "key": record.key,
                "img_path": str(record.image),
                "maps_path": str(record.maps),
                "height": record.size[0],
                "width": record.size[1],
                "text": self.text,
                "instances": [
                    {"bbox": box.tolist(), "bbox_label": 0, "ignore_flag": 0} for box in record.boxes
                ],
            }
            for record in self.records
        ]


def train_transforms(
    config: DetectorConfig, score_std: float, records: Sequence[Record] = ()
) -> list[dict[str, Any]]:
    """List the transforms of training: mosaic, flip, resize (and DETR's crop branch), maps after them."""
    resize = _choice_resize([(side, config.long_side) for side in config.short_sides])
    if not config.crop:
        geometry = [resize]
    else:
        low = min(config.short_sides)
        steps = [round(low * factor) for factor in (0.83, 1.04, 1.25)]
        crop = {
            "type": "RandomCrop",
            "crop_type": "absolute_range",
            "crop_size": (round(low * 0.8), round(low * 1.25)),
            "allow_negative_crop": True,
        }
        branch = [_choice_resize([(side, 4 * config.long_side) for side in steps]), crop, resize]
        geometry = [{"type": "RandomChoice", "transforms": [[resize], branch]}]
    reader = RecordReader(config.cache_mb)
    mosaic = config.mosaic if records else 0.0
    return [
        {"type": "LoadComposed", "reader": reader},
        {"type": "MosaicComposed", "probability": mosaic, "records": records, "reader": reader},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "JitterScore", "sigma": config.map_noise, "spread": score_std},
        {"type": "RandomFlip", "prob": config.flip},
        *geometry,
        {"type": "FilterAnnotations", "min_gt_bbox_wh": (1e-2, 1e-2), "keep_empty": False},
        {"type": "WarpMaps", "stride": config.fusion.map_stride},
        {"type": "PackComposed"},
    ]


def test_transforms(config: DetectorConfig, short_side: int) -> list[dict[str, Any]]:
    """List the transforms of testing: resize to the test size, maps after it.

    Args:
        config: The detector's parameters.
        short_side: Shorter side in pixels in place of ``config.test_short_side``; the limit of the longer side grows
            or shrinks with it. 0 changes nothing.
    """
    long_side = config.long_side
    if short_side:
        long_side = round(config.long_side * short_side / config.test_short_side)
    return [
        {"type": "LoadComposed"},
        {
            "type": "ResizeComposed",
            "scale": (short_side or config.test_short_side, long_side),
            "keep_ratio": True,
        },
        {"type": "WarpMaps", "stride": config.fusion.map_stride},
        {"type": "PackComposed"},
    ]


def _choice_resize(scales: list[tuple[int, int]]) -> dict[str, Any]:
    resize_type = "mmdet.ResizeComposed"
    return {"type": "RandomChoiceResize", "resize_type": resize_type, "scales": scales, "keep_ratio": True}
