"""The scorer interface: images in, closed-set logits, residual logits and an anomaly score out."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.errors import CheckpointError, ConfigError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.tensors import write_tensors

ScoreKind = Literal["energy", "entropy", "max_softmax", "max_logit"]
LogitsKind = Literal["residual", "closed"]

NUM_CLASSES = 19
LEAST_CLASSES = 2
"""Of one class every pixel is sure: there is no entropy, and no margin between the two largest probabilities."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ARCHITECTURES: dict[str, str] = {
    "small": "anomdino.scorer.small:build",
    "efficientnet_lite0": "anomdino.scorer.efficientnet_lite:build",
    "wide_resnet38": "anomdino.scorer.wide_resnet38:build",
    "transformers": "anomdino.scorer.transformers_scorer:build",
}


class ScorerOutput(NamedTuple):
    """What one forward pass yields.

    Attributes:
        logits: Z, closed-set logits, float (B, C, H, W).
        residual_logits: Zr, logits with the residual added, float (B, C, H, W); ``logits`` itself for a
            scorer without a residual block.
        projection: Features of CoroCL's projection head, float (B, K, h, w) at the decoder's resolution;
            only while a residual block is in training mode, else ``None``.
    """

    logits: Tensor
    residual_logits: Tensor
    projection: Tensor | None = None


@dataclass(frozen=True)
class ScorerSpec:
    """What has to be known to build a scorer's network again.

    Attributes:
        architecture: A name in :data:`ARCHITECTURES`.
        num_classes: C, the number of closed-set logits, two or more.
        options: Keyword arguments of the architecture's builder; JSON values only.
    """

    architecture: str = "small"
    num_classes: int = NUM_CLASSES
    options: Mapping[str, Any] = field(default_factory=dict)


class Scorer(nn.Module, ABC):
    """A network that scores every pixel of an image.

    Attributes:
        spec: How the network was built; stored beside its weights.
    """

    spec: ScorerSpec

    @abstractmethod
    def forward(self, images: Tensor) -> ScorerOutput:
        """Compute both sets of logits at the size of the images.

        Args:
            images: float32 (B, 3, H, W), RGB in [0, 1], normalised by ImageNet's mean and standard deviation
                (:func:`normalise`). Any H, W >= 1.
        """

    def encoder_features(self, images: Tensor) -> dict[int, Tensor]:
        """Compute the encoder's features by stride: ``{s: (B, channels, ceil(H / s), ceil(W / s))}``.

        Raises:
            ConfigError: This scorer does not expose its encoder.
        """
        raise ConfigError(
            type(self).__name__, "does not expose its encoder's features", "use another architecture"
        )


def build_scorer(spec: ScorerSpec) -> Scorer:
    """Build the network of a spec with fresh weights.

    Raises:
        ConfigError: The architecture is unknown, or does not take one of the options; or there are not two classes.
    """
    if spec.num_classes < LEAST_CLASSES:
        raise ConfigError(
            "rpl.num_classes", f"is {spec.num_classes}", f"a closed set has {LEAST_CLASSES} classes or more"
        )
    if spec.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError("rpl.architecture", f"'{spec.architecture}' is not known", f"use one of: {known}")
    module_name, _, function = ARCHITECTURES[spec.architecture].partition(":")
    build = getattr(import_module(module_name), function)
    try:
        scorer: Scorer = build(num_classes=spec.num_classes, **spec.options)
    except TypeError as error:
        raise ConfigError(
            "rpl.options",
            f"'{spec.architecture}' cannot be built from {dict(spec.options)}: {error}",
            "see the arguments of the architecture's builder",
        ) from error
    scorer.spec = spec
    return scorer


def normalise(images: Tensor) -> Tensor:
    """Turn RGB bytes into the input of a scorer, as RPL's published validation does.

    Args:
        images: uint8 (B, H, W, 3), RGB.

    Returns:
        float32 (B, 3, H, W): value / 255, minus ImageNet's mean, divided by its standard deviation.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).mul(255)
    std = torch.tensor(IMAGENET_STD, device=images.device).mul(255)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def to_bytes(images: Tensor) -> npt.NDArray[np.uint8]:
    """Turn normalised images (B, 3, H, W) back into RGB bytes (B, H, W, 3): inverse of :func:`normalise`."""
    mean = torch.tensor(IMAGENET_MEAN).mul(255)
    std = torch.tensor(IMAGENET_STD).mul(255)
    values = images.detach().cpu().permute(0, 2, 3, 1) * std + mean
    return np.asarray(values.round().clamp(0, 255).byte().numpy(), np.uint8)


def to_input(image: npt.NDArray[np.uint8]) -> Tensor:
    """Turn one image, uint8 (H, W, 3) RGB, into a batch of one: float32 (1, 3, H, W), normalised."""
    return normalise(torch.from_numpy(np.ascontiguousarray(image))[None])


def anomaly_score(
    output: ScorerOutput,
    kind: ScoreKind = "energy",
    logits: LogitsKind = "residual",
    blur: bool | None = None,
) -> Tensor:
    """Score every pixel, higher = more anomalous, by the formulas of RPL's published `compute_anomaly_score`.

    ``energy`` = -logsumexp of the logits; ``entropy`` = -sum p log p / log C; ``max_softmax`` = 1 - max p;
    ``max_logit`` = -max logit.

    Args:
        output: Result of a scorer.
        kind: Which score.
        logits: ``residual`` reads Zr (RPL's anomaly logits), ``closed`` reads Z (closed-set baselines).
        blur: Smooth by RPL's 7 x 7 Gaussian; ``None``: as RPL does, for energy and entropy alone.

    Returns:
        float32 (B, H, W).
    """
    score = pixel_score(output.residual_logits if logits == "residual" else output.logits, kind)
    return gaussian_blur(score) if (kind in {"energy", "entropy"} if blur is None else blur) else score


def pixel_score(logits: Tensor, kind: ScoreKind) -> Tensor:
    """Score logits (B, C, H, W) pixel by pixel without smoothing: float32 (B, H, W)."""
    values = logits.float()
    if kind == "energy":
        return -values.logsumexp(dim=1)
    if kind == "max_logit":
        return -values.amax(dim=1)
    if kind == "max_softmax":
        return 1 - values.softmax(dim=1).amax(dim=1)
    if kind == "entropy":
        log_p = values.log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1) / math.log(values.shape[1])
    raise ConfigError("score.kind", f"'{kind}' is not known", "use energy, entropy, max_softmax or max_logit")


def gaussian_blur(maps: Tensor, radius: int = 3, sigma: float = 1.0) -> Tensor:
    """Smooth (B, H, W) by a normalised Gaussian of 2 * radius + 1 pixels; borders are reflected.

    A side too short to be reflected (at most ``radius`` pixels) repeats its edge instead.
    """
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    values = maps.float()[:, None]
    values = F.pad(values, (0, 0, radius, radius), mode="reflect" if maps.shape[-2] > radius else "replicate")
    values = F.pad(values, (radius, radius, 0, 0), mode="reflect" if maps.shape[-1] > radius else "replicate")
    values = F.conv2d(F.conv2d(values, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return values[:, 0]


def resize(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize (B, C, h, w) bilinearly with aligned corners, RPL's convention everywhere."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def enlarged(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bring logits (B, C, h, w) to the size of the images; those in bfloat16, whose steps would show, in float32."""
    return resize(logits.float() if logits.dtype == torch.bfloat16 else logits, size)


WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FORMAT = 1


def save_scorer(
    scorer: Scorer,
    folder: Path | str,
    details: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write ``model.safetensors`` and ``config.json`` to ``folder``, each whole or not at all.

    Args:
        scorer: A network built by :func:`build_scorer`.
        folder: Made if missing.
        details: What else ``config.json`` should say, under ``details``; JSON values.
        dtype: Store floating-point tensors in this type, for example ``torch.float16``; default: as they are.
    """
    folder = Path(folder)
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in scorer.state_dict().items()
    }
    config = {
        "format": FORMAT,
        "architecture": scorer.spec.architecture,
        "num_classes": scorer.spec.num_classes,
        "options": dict(scorer.spec.options),
        "details": dict(details or {}),
    }
    write_tensors(folder / WEIGHTS_FILE, tensors)
    atomic_write_json(folder / CONFIG_FILE, config)


def load_scorer(folder: Path | str, device: torch.device | str = "cpu") -> Scorer:
    """Read a scorer written by :func:`save_scorer`, in evaluation mode. No code in the files is executed.

    Raises:
        CheckpointError: A file is missing, damaged, or does not fit the architecture it names.
        ConfigError: The architecture is unknown.
    """
    folder = Path(folder)
    spec = _read_spec(folder / CONFIG_FILE)
    scorer = build_scorer(spec)
    load_strictly(scorer, read_weights(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    return scorer.to(device).eval()


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file onto the CPU.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    if not Path(path).is_file():
        raise CheckpointError(path, "does not exist", "train a scorer first: `dvc repro train_rpl`")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            path, f"is damaged ({error})", "remove it and train or download it again"
        ) from error


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load weights where every name and every shape has to fit.

    Args:
        module: What the weights go into.
        state: Tensors by name; floating-point tensors are converted to the module's types.
        source: File or address that the message names.

    Raises:
        CheckpointError: Names or shapes differ; the message lists the first ten of each kind, and the
            module is untouched.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    different = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", different))
        if names
    ]
    if problems:
        cure = "use weights of the same architecture and number of classes"
        if any(name.startswith("module.") for name in unexpected):
            cure = "strip the prefix 'module.', for example by `anomdino weights convert`"
        raise CheckpointError(source, "does not fit the network: " + "; ".join(problems), cure)
    module.load_state_dict(dict(state))


def _read_spec(path: Path) -> ScorerSpec:
    if not path.is_file():
        raise CheckpointError(path, "does not exist", "train a scorer first: `dvc repro train_rpl`")
    try:
        config = json.loads(path.read_text("utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']}, this version reads format {FORMAT}")
        if int(config["num_classes"]) < LEAST_CLASSES:
            raise ValueError(f"num_classes is {config['num_classes']}")
        return ScorerSpec(str(config["architecture"]), int(config["num_classes"]), dict(config["options"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"is no scorer's config ({error})", "train the scorer again") from error
