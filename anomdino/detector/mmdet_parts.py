"""The parts of mmdet that the detector builds on, imported once the compiled operators are provided.

Importing this module imports mmdet (seconds). Nothing else in the package imports mmdet directly.
"""

from __future__ import annotations

import warnings
from typing import Any

from anomdino.detector.compiled_ops import provide_compiled_ops

provide_compiled_ops()

# Said at every layer of every image by mmcv and torch about each other; a user can do nothing about it.
warnings.filterwarnings("ignore", message="position encoding of (key|query) is")
warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmcv.image import rescale_size
    from mmcv.transforms import BaseTransform
    from mmdet.datasets import BaseDetDataset
    from mmdet.datasets.transforms import Resize
    from mmdet.models import DetDataPreprocessor, GroundingDINO
    from mmdet.models.language_models.bert import generate_masks_with_special_tokens_and_transfer_map
    from mmdet.models.layers.transformer.utils import MLP, coordinate_to_encoding, get_text_sine_pos_embed
    from mmdet.models.utils.vlfuse_helper import BiMultiHeadAttention
    from mmdet.registry import DATASETS, METRICS, MODELS, TRANSFORMS
    from mmdet.structures import DetDataSample
    from mmengine.config import ConfigDict
    from mmengine.logging import MMLogger

__all__ = [
    "DATASETS",
    "METRICS",
    "MLP",
    "MODELS",
    "TRANSFORMS",
    "BaseDetDataset",
    "BaseTransform",
    "BiMultiHeadAttention",
    "Chain",
    "ConfigDict",
    "DetDataPreprocessor",
    "DetDataSample",
    "GroundingDINO",
    "MMLogger",
    "Resize",
    "coordinate_to_encoding",
    "generate_masks_with_special_tokens_and_transfer_map",
    "get_text_sine_pos_embed",
    "rescale_size",
]


class Chain:
    """Transforms one after the other.

    Args:
        transforms: Their descriptions, as mmdet's registry reads them.
    """

    def __init__(self, transforms: list[dict[str, Any]]) -> None:
        self.transforms = [TRANSFORMS.build({**transform, "_scope_": "mmdet"}) for transform in transforms]

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Run all transforms on ``results``."""
        for transform in self.transforms:
            results = transform(results)
        return results
