"""Segmentation networks of the ``transformers`` library as scorers, for the closed-set scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.errors import BackendMissing, CheckpointError
from anomdino.scorer.base import IMAGENET_MEAN, IMAGENET_STD, NUM_CLASSES, Scorer, ScorerOutput, ScorerSpec

MASK_CLASSIFIERS = frozenset({"mask2former", "maskformer", "oneformer", "eomt"})
SMALLEST_EVIDENCE = 1e-8
SMALLEST_SIDE = 64


class TransformersScorer(Scorer):
    """A network of ``AutoModelForSemanticSegmentation``, or a mask classifier such as Mask2Former.

    There is no residual block: both sets of logits are the closed-set ones. A network that classifies pixels
    (SegFormer, UPerNet, BEiT) gives its logits, resized bilinearly. A mask classifier gives log evidence,
    ``log sum_q p_q(c) m_q(x)`` over its queries q, with class probabilities p (without "no object") and mask
    probabilities m: softmax of it is the usual class probability, and energy and max_logit say how little any
    class claims the pixel.

    Args:
        network: The network of ``transformers``.
        options: What :func:`build` needs to make the same network: ``config``, ``mean``, ``std``.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(self, network: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        config: Any = network.config
        self.spec = ScorerSpec("transformers", int(config.num_labels), dict(options))
        self._masks = config.model_type in MASK_CLASSIFIERS
        mean, std = torch.tensor(options["mean"]), torch.tensor(options["std"])
        scale = torch.tensor(IMAGENET_STD) / std
        shift = (torch.tensor(IMAGENET_MEAN) - mean) / std
        self.register_buffer("_scale", scale[:, None, None], persistent=False)
        self.register_buffer("_shift", shift[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> ScorerOutput:
        """Compute the closed-set logits, twice the same (see :meth:`Scorer.forward`).

        Images with a side under 64 pixels are padded by their edge for the network and cut back.
        """
        height, width = images.shape[-2:]
        margins = (0, max(0, SMALLEST_SIDE - width), 0, max(0, SMALLEST_SIDE - height))
        inputs = F.pad(images, margins, mode="replicate") if any(margins) else images
        output = self.network(pixel_values=inputs * self._scale + self._shift)
        logits = self._mask_evidence(output) if self._masks else output.logits
        logits = F.interpolate(logits, size=inputs.shape[-2:], mode="bilinear", align_corners=False)
        logits = logits[..., :height, :width]
        return ScorerOutput(logits, logits)

    def fingerprint(self) -> str:
        """Digest the weights, so that results of other weights are told apart."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    @staticmethod
    def _mask_evidence(output: Any) -> Tensor:
        classes = output.class_queries_logits.float().softmax(dim=-1)[..., :-1]
        masks = output.masks_queries_logits.float().sigmoid()
        return torch.einsum("bqc,bqhw->bchw", classes, masks).clamp(min=SMALLEST_EVIDENCE).log()


def build(
    num_classes: int = NUM_CLASSES,
    *,
    config: Mapping[str, Any],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> TransformersScorer:
    """Build a network with fresh weights from its configuration.

    Args:
        num_classes: C; the configuration's own number must equal it.
        config: What ``config.json`` of ``transformers`` holds.
        mean: Mean of the network's inputs in [0, 1].
        std: Standard deviation of the network's inputs.

    Raises:
        BackendMissing: ``transformers`` is not installed.
        CheckpointError: The configuration is of no segmentation network, or of another number of classes.
    """
    library = _library()
    settings = dict(config)
    model_type = str(settings.pop("model_type", ""))
    try:
        parsed = library.AutoConfig.for_model(model_type, **settings)
        network = _auto_class(library, parsed).from_config(parsed)
    except (ValueError, KeyError) as error:
        raise CheckpointError("config.json", f"is of no segmentation network ({error})", "") from error
    scorer = TransformersScorer(network, {"config": dict(config), "mean": list(mean), "std": list(std)})
    if scorer.spec.num_classes != num_classes:
        raise CheckpointError(
            "config.json", f"has {scorer.spec.num_classes} classes, {num_classes} were expected", ""
        )
    return scorer


def load_transformers(name: Path | str) -> TransformersScorer:
    """Load a published segmentation network in evaluation mode; only safetensors or plain weights are read.

    Args:
        name: A local folder, or a name on the Hugging Face hub.

    Raises:
        BackendMissing: ``transformers`` is not installed.
        CheckpointError: There is no such network, it cannot be fetched, it segments nothing, or its weights are
            damaged, incomplete or of another shape.
    """
    library = _library()
    try:
        config = library.AutoConfig.from_pretrained(name, trust_remote_code=False)
        network, report = _auto_class(library, config).from_pretrained(
            name, config=config, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            name,
            f"is no segmentation network of transformers ({reason})",
            "give a local folder written by save_pretrained, or a hub name such as "
            "nvidia/segformer-b1-finetuned-cityscapes-1024-1024",
        ) from error
    _refuse_fresh_weights(name, network, report["missing_keys"])
    mean, std = _normalisation(library, name)
    settings = json.loads(config.to_json_string(use_diff=False))
    return TransformersScorer(network, {"config": settings, "mean": mean, "std": std}).eval()


def _refuse_fresh_weights(name: Path | str, network: nn.Module, missing: Iterable[str]) -> None:
    """Refuse a network some of whose parameters were drawn at random because the files lack them."""
    lacking = sorted(set(missing) & {key for key, _ in network.named_parameters()})
    if lacking:
        raise CheckpointError(
            name,
            f"lacks {len(lacking)} weights of its network: {', '.join(lacking[:10])}"
            f"{' ...' if len(lacking) > 10 else ''}",
            "give a network that was trained for semantic segmentation, not its backbone alone",
        )


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise BackendMissing(
            "transformers", "is not installed", "pip install 'anomdino[detector]' brings it"
        ) from error
    return transformers


def _auto_class(library: Any, config: Any) -> Any:
    if config.model_type in MASK_CLASSIFIERS:
        return library.AutoModelForUniversalSegmentation
    return library.AutoModelForSemanticSegmentation


def _normalisation(library: Any, name: Path | str) -> tuple[list[float], list[float]]:
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        settings, _ = BaseImageProcessor.get_image_processor_dict(str(name))
    except (OSError, ValueError):
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    return list(settings.get("image_mean") or IMAGENET_MEAN), list(settings.get("image_std") or IMAGENET_STD)
