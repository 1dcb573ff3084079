"""Boxes from a trained detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from anomdino.config.detect import DetectConfig
from anomdino.config.detector import DetectorConfig
from anomdino.detector.regions import score_regions
from anomdino.detector.suppression import non_maximum_suppression, suppress_covered
from anomdino.errors import CheckpointError
from anomdino.io.boxes import Boxes
from anomdino.uncertainty import UncertaintyMaps


class Detector:
    """A trained detector.

    Args:
        network: The network in evaluation mode.
        config: Its parameters.
        classes: C, channels of the semantic map it expects.
        detect: How boxes are kept.
    """

    def __init__(
        self, network: nn.Module, config: DetectorConfig, classes: int, detect: DetectConfig | None = None
    ) -> None:
        from anomdino.detector.dataset import test_transforms
        from anomdino.detector.lean import LeanPredictor
        from anomdino.detector.mmdet_parts import Chain

        self.network: Any = network.eval()
        self.config, self.classes, self.detect_config = config, classes, detect or DetectConfig()
        fast = self.detect_config.fast
        self.predictor = LeanPredictor(self.network, half=fast, graphs=fast)
        self.pipeline = Chain(test_transforms(config, self.detect_config.short_side))

    @classmethod
    def load(
        cls,
        folder: Path | str,
        device: torch.device | str = "cpu",
        detect: DetectConfig | None = None,
        scorer_folder: Path | str | None = None,
    ) -> Detector:
        """Load a detector.

        Args:
            folder: A folder that the stage train_detector wrote.
            device: Where it runs.
            detect: How boxes are kept; the defaults of the stage detect when left out.
            scorer_folder: The scorer, for ``backbone: scorer``; ``rpl`` beside ``folder`` when left out.

        Raises:
            CheckpointError: The folder holds no detector, or a damaged one.
        """
        from anomdino.detector.weights import load_detector

        network, config, content = load_detector(folder, scorer_folder)
        return cls(network.to(device), config, int(content["classes"]), detect)

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @torch.inference_mode()
    def detect(self, image: npt.NDArray[np.uint8], maps: UncertaintyMaps) -> Boxes:
        """Find the anomalous objects of an image.

        Args:
            image: uint8 (H, W, 3), RGB.
            maps: Its uncertainty maps.

        Returns:
            Boxes in pixels of ``image``, clipped to it, none without area, best first. Their details tell where a box
            comes from: those of :class:`~anomdino.detector.lean.Prediction`, NaN for regions of the score, and the
            means of entropy, distance and residual score inside the box.

        Raises:
            CheckpointError: The maps have another number of classes than the detector was trained with.
            DataError: The network gives numbers that are not finite.
        """
        if len(maps.semantic) != self.classes:
            raise CheckpointError(
                "uncertainty maps",
                f"have {len(maps.semantic)} classes, the detector was trained with {self.classes}",
                "score the images with the scorer that the detector was trained with",
            )
        from anomdino.detector.lean import ORIGIN

        negatives = self.detect_config.negatives
        prompts = (self.config.prompt, *negatives.names)
        packed = self.pipeline({"img": image, "maps": maps, "text": prompts, "img_id": 0, "key": ""})
        batch = self.network.data_preprocessor({"inputs": [packed["inputs"]], "data_samples": None}, False)
        grid = packed["data_samples"].maps[None].to(self.device)
        predicted = self.predictor(batch["inputs"], grid, prompts)
        scores, shares, origin = (part.cpu().numpy() for part in predicted)
        size = (image.shape[0], image.shape[1])
        xyxy = np.concatenate([shares[:, :2] - shares[:, 2:] / 2, shares[:, :2] + shares[:, 2:] / 2], 1)
        xyxy *= np.array([size[1], size[0], size[1], size[0]], np.float32)
        details = dict(zip(ORIGIN, origin.T, strict=True))
        objects = Boxes(xyxy, scores[:, 0], details).clipped(size)
        if self.detect_config.regions:
            std = float(self.network.ouafs.score_std)
            objects = joined(objects, score_regions(maps, std, self.detect_config.regions))
        known = Boxes(np.tile(xyxy, (len(prompts) - 1, 1)), scores[:, 1:].T.ravel()).clipped(size)
        objects = suppress_covered(objects, known, negatives)
        return with_map_means(best_boxes(objects, self.detect_config), maps)


def joined(objects: Boxes, regions: Boxes) -> Boxes:
    """Put regions of the score behind the detector's boxes; their details are NaN, for no query gave them."""
    unknown = np.full(len(regions), np.nan, np.float32)
    details = {name: np.concatenate([values, unknown]) for name, values in objects.details.items()}
    xyxy = np.concatenate([objects.xyxy, regions.xyxy])
    return Boxes(xyxy, np.concatenate([objects.scores, regions.scores]), details)


def with_map_means(boxes: Boxes, maps: UncertaintyMaps) -> Boxes:
    """Add the details ``mean_entropy``, ``mean_distance`` and ``mean_anomaly``: means of the maps inside each box.

    A cell counts when its centre lies inside the box; a box that holds none takes the cell at its own centre.
    """
    height, width = maps.score.shape
    stride = np.array([maps.image_size[1] / width, maps.image_size[0] / height], np.float32)
    cells = []
    for box in boxes.xyxy.reshape(-1, 2, 2) / stride:
        low, high = np.ceil(box - 0.5).astype(int)
        centre = np.minimum(box.mean(0).astype(int), [width - 1, height - 1])
        (x0, y0), (x1, y1) = np.where(high > low, (low, high), (centre, centre + 1))
        cells.append((slice(y0, y1), slice(x0, x1)))
    sources: dict[str, npt.NDArray[Any]] = {
        "mean_entropy": maps.entropy,
        "mean_distance": maps.distance,
        "mean_anomaly": maps.score,
    }
    means = {
        name: [float(values[cell].astype(np.float32).mean()) for cell in cells]
        for name, values in sources.items()
    }
    return Boxes(
        boxes.xyxy, boxes.scores, {**boxes.details, **{name: np.array(m) for name, m in means.items()}}
    )


def best_boxes(boxes: Boxes, config: DetectConfig) -> Boxes:
    """Keep boxes by score, non-maximum suppression and number; best first."""
    kept = boxes.kept(config.min_score)
    kept = kept.subset(np.argsort(-kept.scores, kind="stable"))
    if min(config.nms_iou, config.nms_cover) < 1 and len(kept) > 1:
        kept = non_maximum_suppression(kept, config.nms_iou, config.nms_cover)
    return kept.subset(slice(config.max_boxes))


__all__ = ["Detector", "best_boxes", "non_maximum_suppression", "suppress_covered", "with_map_means"]
