"""Segmentation networks of the ``transformers`` library as scorers, for the closed-set scores."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.errors import BackendMissing, CheckpointError
from anomdino.scorer.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    LEAST_CLASSES,
    NUM_CLASSES,
    Scorer,
    ScorerOutput,
    ScorerSpec,
)

log = logging.getLogger(__name__)

MASK_CLASSIFIERS = frozenset({"mask2former", "maskformer", "oneformer", "eomt"})
UNSUITED = {"oneformer": "reads a text of its task beside the image"}
"""Kinds of networks that cannot be scorers, with the reason."""
UNKNOWN_STEPS = frozenset({"do_grayscale", "rescale_offset"})
"""Steps of image processors that change colours otherwise than :func:`build` can say."""
SMALLEST_EVIDENCE = 1e-8
SMALLEST_SIDE = 64
TRIED_SIZE = (70, 106)
"""Size, no multiple of any stride, of the image that tells whether a network takes images of any size."""
CURE = (
    "give a local folder written by save_pretrained, or a hub name such as "
    "nvidia/segformer-b1-finetuned-cityscapes-1024-1024"
)


class TransformersScorer(Scorer):
    """A network of ``AutoModelForSemanticSegmentation``, or a mask classifier such as Mask2Former.

    There is no residual block: both sets of logits are the closed-set ones. A network that classifies pixels
    (SegFormer, UPerNet, DPT, BEiT) gives its logits, resized bilinearly. A mask classifier (Mask2Former, MaskFormer,
    EoMT) gives log evidence, ``log sum_q p_q(c) m_q(x)`` over its queries q, with class probabilities p (without "no
    object") and mask probabilities m: softmax of it is the usual class probability, and energy and max_logit say how
    little any class claims the pixel.

    A network that takes images of one size alone (EoMT, BEiT, DPT) sees them resized to it, whatever their proportions,
    and its logits are resized back.

    Args:
        network: The network of ``transformers``.
        options: What :func:`build` needs to make the same network: its arguments but ``num_classes``.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(self, network: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        config: Any = network.config
        self.spec = ScorerSpec("transformers", int(config.num_labels), dict(options))
        self._masks = config.model_type in MASK_CLASSIFIERS
        self._flip = bool(options["flip"])
        self._size = None if options["size"] is None else tuple(options["size"])
        mean, std = torch.tensor(options["mean"]), torch.tensor(options["std"])
        scale = torch.tensor(IMAGENET_STD) / std
        shift = (torch.tensor(IMAGENET_MEAN) - mean) / std
        self.register_buffer("_scale", scale[:, None, None], persistent=False)
        self.register_buffer("_shift", shift[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> ScorerOutput:
        """Compute the closed-set logits, twice the same (see :meth:`Scorer.forward`).

        Images with a side under 64 pixels are padded by their edge for the network and cut back, unless it has a size of
        its own.
        """
        height, width = images.shape[-2:]
        inputs = self._padded(images) if self._size is None else images
        back = inputs.shape[-2:]
        if self._size is not None and tuple(back) != self._size:
            inputs = F.interpolate(images.float(), self._size, mode="bilinear", antialias=True).to(
                images.dtype
            )
        pixels = inputs * self._scale + self._shift
        output = self.network(pixel_values=pixels.flip(1) if self._flip else pixels)
        logits = self._mask_evidence(output) if self._masks else output.logits
        logits = F.interpolate(logits, size=back, mode="bilinear", align_corners=False)
        logits = logits[..., :height, :width]
        return ScorerOutput(logits, logits)

    def fingerprint(self) -> str:
        """Digest weights, configuration and preprocessing, so that results of others are told apart."""
        digest = hashlib.sha256(json.dumps(dict(self.spec.options), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    @staticmethod
    def _padded(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        margins = (0, max(0, SMALLEST_SIDE - width), 0, max(0, SMALLEST_SIDE - height))
        return F.pad(images, margins, mode="replicate") if any(margins) else images

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
    flip: bool = False,
    size: tuple[int, int] | None = None,
) -> TransformersScorer:
    """Build a network with fresh weights from its configuration.

    Args:
        num_classes: C; the configuration's own number must equal it.
        config: What ``config.json`` of ``transformers`` holds.
        mean: What is taken off RGB in [0, 1], colour by colour.
        std: What the rest is divided by.
        flip: The network reads BGR.
        size: Height and width of the only images that the network takes; ``None``: any.

    Raises:
        BackendMissing: ``transformers`` is not installed.
        CheckpointError: The configuration is of no segmentation network, of one that is no scorer, or of another
            number of classes.
    """
    library = _library()
    settings = copy.deepcopy(dict(config))  # transformers takes its parts apart
    model_type = str(settings.pop("model_type", ""))
    _refuse_unsuited("config.json", model_type, num_classes)
    try:
        parsed = library.AutoConfig.for_model(model_type, **settings)
        network = _auto_class(library, parsed).from_config(parsed)
    except (ValueError, KeyError, ImportError) as error:
        raise CheckpointError("config.json", f"is of no segmentation network ({error})", "") from error
    seen = {"mean": list(mean), "std": list(std), "flip": flip, "size": None if size is None else list(size)}
    scorer = TransformersScorer(network, {"config": dict(config), **seen})
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
        CheckpointError: There is no such network, it cannot be fetched, it segments nothing or not by the image alone,
            its weights are damaged, incomplete or of another shape, or its processor does what is not followed here.
    """
    library = _library()
    try:
        config = library.AutoConfig.from_pretrained(name, trust_remote_code=False)
        _refuse_unsuited(name, config.model_type, config.num_labels)
        network, report = _auto_class(library, config).from_pretrained(
            name, config=config, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = _first_line(error)
        raise CheckpointError(name, f"is no segmentation network of transformers ({reason})", CURE) from error
    _refuse_fresh_weights(name, network, report["missing_keys"])
    settings = json.loads(json.dumps(config.to_dict(), sort_keys=True, default=_json_value))
    return _sized(name, network.float(), {"config": settings, **_preprocessing(library, name)})


def _sized(name: Path | str, network: nn.Module, options: Mapping[str, Any]) -> TransformersScorer:
    """Give the scorer for images of any size or, where the network fails at that, for those of its configuration.

    Raises:
        CheckpointError: It fails at both.
    """
    own = _own_size(network.config)
    reason = ""
    for size in [None] if own is None else [None, own]:
        scorer = TransformersScorer(network, {**options, "size": size}).eval()
        try:
            with torch.inference_mode():
                scorer(torch.zeros(1, 3, *TRIED_SIZE))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            reason = reason or _first_line(error)
            continue
        if size is not None:
            log.info("%s takes images of %d x %d alone: they are resized to it", name, size[1], size[0])
        return scorer
    raise CheckpointError(name, f"does not segment by the image alone ({reason})", CURE)


def _own_size(config: Any) -> list[int] | None:
    """Give (height, width) that a configuration is for, if it says so."""
    for part in (config, getattr(config, "backbone_config", None)):
        size = getattr(part, "image_size", None)
        if isinstance(size, int):
            return [size, size]
        if isinstance(size, list | tuple) and len(size) == 2:
            return [int(side) for side in size]
    return None


def _refuse_unsuited(name: Path | str, model_type: str, classes: int) -> None:
    if model_type in UNSUITED:
        raise CheckpointError(name, f"is of the kind {model_type}, which {UNSUITED[model_type]}", CURE)
    if classes < LEAST_CLASSES:
        raise CheckpointError(name, f"knows {classes} class, a closed set has two or more", CURE)


def _json_value(value: Any) -> str:
    """Write what a configuration holds beside JSON's values: torch's types, by their names."""
    return str(value).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


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


def _preprocessing(library: Any, name: Path | str) -> dict[str, Any]:
    """Give what a network's image processor does to pixels, resizing aside, as arguments of :func:`build`.

    The processor rescales bytes by a factor (``do_rescale``), changes RGB to BGR (``do_flip_channel_order``), takes off a
    mean and divides by a standard deviation (``do_normalize``). Without a processor: value / 255, ImageNet's statistics.

    Raises:
        CheckpointError: It does something else to colours.
    """
    settings = _processor(library, name)
    if settings is None:
        return {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "flip": False}
    for step in UNKNOWN_STEPS & settings.keys():
        if settings[step]:
            raise CheckpointError(name, f"has an image processor with {step}, which is not done here", CURE)
    factor = float(settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale", True) else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if settings.get("do_normalize", "image_mean" in settings):
        mean = _colours(settings.get("image_mean"), IMAGENET_MEAN)
        std = _colours(settings.get("image_std"), IMAGENET_STD)
    flip = bool(settings.get("do_flip_channel_order"))
    if flip:
        mean, std = mean[::-1], std[::-1]  # of BGR; build wants RGB's
    return {
        "mean": [value / (255 * factor) for value in mean],
        "std": [value / (255 * factor) for value in std],
        "flip": flip,
    }


def _processor(library: Any, name: Path | str) -> dict[str, Any] | None:
    """Give the settings of an image processor, with its kind's defaults where that is known; ``None`` without one."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        settings, _ = BaseImageProcessor.get_image_processor_dict(str(name))
    except (OSError, ValueError):
        return None
    try:
        known = library.AutoImageProcessor.from_pretrained(name, use_fast=False, trust_remote_code=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        log.debug("%s: image processor of another kind (%s)", name, error)
        return dict(settings)
    return dict(known.to_dict())


def _colours(values: Any, otherwise: tuple[float, ...]) -> list[float]:
    if isinstance(values, int | float):
        return [float(values)] * 3
    return [float(value) for value in values or otherwise]
