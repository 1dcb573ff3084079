"""The cascade without its detector as one ONNX file: bytes of a photo in, score map and mask out.

All that stands around the networks is in the file: normalisation, the widths and how they are joined, the closer look,
the filter, the lowering by the photo, ADT-Net's standardisation and threshold. A runtime that reads ONNX needs nothing
of this package. The detector stays out, for Grounding DINO cannot be exported: score and mask are those of
`anomdino predict --no-boxes --output raw`. A file is for one size of image.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import anomdino
from anomdino.adt.fusion import AdtModel, blended, fuse, surfaces_of, with_floor
from anomdino.adt.model import ramp_probability
from anomdino.adt.surfaces import surface_tensors
from anomdino.errors import AnomdinoError, BackendMissing, CheckpointError, ConfigError, DataError
from anomdino.io.atomic import atomic_path
from anomdino.io.boxes import Boxes
from anomdino.io.images import MAX_PIXELS
from anomdino.scorer.base import normalise
from anomdino.scorer.inference import ScoringEngine
from anomdino.synthetic import scene
from anomdino.words import counted

if TYPE_CHECKING:
    import onnxruntime

OPSET = 18
"""The first one whose `Resize` shrinks without aliasing."""
INPUT, SCORE, MASK = "image", "score", "mask"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LARGEST = 1_500_000_000
"""Bytes of weights that one file holds."""
TOLERANCE = 1e-3
"""Largest difference of a score, in standard deviations of the scores, and of what the mask is decided by."""
CURE = 'pip install "anomdino[onnx]"'
OTHER_VERSIONS = "try other versions of onnx, onnxscript and onnxruntime"


class Checked(NamedTuple):
    """How a file compares with the networks that it was made of, on a drawn scene.

    Attributes:
        difference: Largest difference of a score.
        in_mask: Share of the scene that both masks hold.
        flipped: Pixels of which one mask says what the other does not, and that are no matter of rounding.
    """

    difference: float
    in_mask: float
    flipped: int


class CascadeGraph(nn.Module):
    """What is exported: a photo's score and mask, without boxes.

    Args:
        engine: The scorer, made ``portable``, in float32 on the CPU.
        adt: ADT-Net with its rule.
    """

    def __init__(self, engine: ScoringEngine, adt: AdtModel) -> None:
        super().__init__()
        self.engine, self.adt = engine, adt
        networks = {"scorer": engine.network, "fusion": engine.fusion, "refinement": engine.refinement}
        self.networks = nn.ModuleDict(
            {name: network for name, network in {**networks, "adt": adt.net}.items() if network is not None}
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score a photo.

        Args:
            image: uint8 (H, W, 3), RGB.

        Returns:
            S, float32 (H, W), higher = more anomalous; and the mask, bool (H, W), with components of every size.
        """
        score = self.engine.evaluate(normalise(image[None]), maps=False).score[0]
        tensors = surface_tensors(self.adt.net, score, torch.full_like(score, -1))
        surfaces = with_floor(surfaces_of(tensors, Boxes.empty()), self.adt.net, self.adt.rule.mask_floor)
        if self.adt.threshold is not None:
            return score, blended(surfaces, self.adt.rule) >= self.adt.threshold.value
        ramp = self.adt.net.architecture.ramp
        return score, ramp_probability(surfaces.decision, surfaces.threshold, ramp) >= 0.5


def export_onnx(
    engine: ScoringEngine,
    adt: AdtModel,
    size: tuple[int, int],
    path: Path | str,
    details: Mapping[str, Any] | None = None,
) -> Checked:
    """Write the cascade without boxes as an ONNX file, whole or not at all, and check what it computes.

    Args:
        engine: The scorer, made ``portable``, in float32 on the CPU.
        adt: ADT-Net with its rule.
        size: H, W of the photos that the file is for.
        path: The file. Its input is ``image``, uint8 (H, W, 3), RGB; its outputs are ``score``, float32 (H, W), and
            ``mask``, bool (H, W). Its metadata has ``anomdino``, a JSON text.
        details: What else this text should say; JSON values.

    Returns:
        How ONNX Runtime's results compare with those of :meth:`ScoringEngine.score_alone` and :func:`fuse`.

    Raises:
        BackendMissing: `onnx`, `onnxscript` or `onnxruntime` is not installed.
        CheckpointError: The file cannot be run, or computes something else.
        ConfigError: The path is a folder or no ``.onnx``, the engine is another one, its network cannot be exported, or
            the model's threshold was calibrated with boxes.
        DataError: Photos of this size cannot be scored.
    """
    check_packages()
    _check_given(engine, size, Path(path))
    if adt.threshold is not None:
        adt.threshold.require(asdict(adt.rule), boxes=False)
    graph = CascadeGraph(engine, adt).requires_grad_(False).eval()
    with atomic_path(path) as temporary:
        _write(graph, size, temporary, describe(engine, adt, size, details or {}))
        try:
            checked = compare(engine, adt, draw_picture(size), temporary)
        except AnomdinoError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common class
            cause = f"ONNX Runtime cannot run it: {_first_line(error)}"
            raise CheckpointError(path, cause, OTHER_VERSIONS) from error
        if not checked.difference <= TOLERANCE * adt.net.statistics.std or checked.flipped:
            raise CheckpointError(
                path,
                f"would not be what the networks are: scores differ by {checked.difference:.3g}, "
                f"masks in {counted(checked.flipped, 'pixel')}",
                OTHER_VERSIONS,
            )
    return checked


def check_packages() -> None:
    """Check that all packages are there.

    Raises:
        BackendMissing: One is not.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendMissing(", ".join(missing), "not installed", CURE)


def _check_given(engine: ScoringEngine, size: tuple[int, int], path: Path) -> None:
    if path.is_dir():
        raise ConfigError(path, "is a folder", "name a file, as in anomdino.onnx")
    if path.suffix.lower() != ".onnx":
        named = path.with_suffix(".onnx").name
        raise ConfigError(path, "does not end in .onnx, the one format there is", f"name it {named}")
    if not engine.portable or engine.dtype != torch.float32 or engine.device.type != "cpu":
        raise ConfigError("the engine", "is not portable, or not in float32 on the CPU", "make it so")
    networks = [part for part in (engine.network, engine.fusion, engine.refinement) if part is not None]
    weights = sum(tensor.nbytes for part in networks for tensor in part.state_dict().values())
    if weights > LARGEST:
        raise ConfigError(
            "the scorer",
            f"has {weights / 1e9:.1f} GB of weights, and one file holds {LARGEST / 1e9:.1f}",
            "export a smaller one",
        )
    height, width = size
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{width} x {height}",
            f"is more than {MAX_PIXELS // 1_000_000} megapixels",
            "choose a smaller size",
        )
    engine.check_size(size, f"{width} x {height}")


def describe(
    engine: ScoringEngine, adt: AdtModel, size: tuple[int, int], details: Mapping[str, Any]
) -> dict[str, Any]:
    """Give what a file should say of itself, JSON values."""
    statistics = asdict(adt.net.statistics)
    return {
        "version": anomdino.__version__,
        "input": f"{INPUT}: uint8 ({size[0]}, {size[1]}, 3), RGB",
        "outputs": f"{SCORE}: float32, higher = more anomalous; {MASK}: bool, with components of every size",
        "score": {"kind": engine.options.kind, "logits": engine.options.logits, **statistics},
        "widths": list(engine.options.widths) or [size[1]],
        "window": engine.options.window,
        "mask": {
            "least_component": adt.rule.min_component,
            "floor": adt.rule.mask_floor,
            "threshold": "ADT-Net's without boxes" if adt.threshold is None else adt.threshold.kind,
        },
        **details,
    }


def draw_picture(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Draw a road with objects that do not belong there, uint8 (H, W, 3), whatever its shape."""
    picture = scene("road", 0, size=(360, 640)).image
    return np.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def compare(
    engine: ScoringEngine, adt: AdtModel, picture: npt.NDArray[np.uint8], path: Path | str
) -> Checked:
    """Compare a file's score and mask of a picture, uint8 (H, W, 3), with the networks' own, without boxes."""
    score, mask = open_session(path).run([SCORE, MASK], {INPUT: picture})
    expected = engine.score_alone(picture)
    fused = fuse(expected, Boxes.empty(), adt, replace(adt.rule, min_component=0))
    if adt.threshold is None:
        margin = np.abs(fused.decision - fused.threshold)
    else:
        margin = np.abs(fused.score - adt.threshold.value)
    flipped = (mask != fused.mask) & (margin > TOLERANCE)
    return Checked(
        float(np.abs(score - expected).max()), float((mask & fused.mask).mean()), int(flipped.sum())
    )


def open_session(path: Path | str) -> onnxruntime.InferenceSession:
    """Open a file with ONNX Runtime on the CPU.

    Raises:
        BackendMissing: It is not installed.
    """
    check_packages()
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _write(graph: CascadeGraph, size: tuple[int, int], path: Path, description: Mapping[str, Any]) -> None:
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (torch.zeros(*size, 3, dtype=torch.uint8),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[SCORE, MASK],
                verbose=False,
            )
            assert program is not None
            program.model.metadata_props["anomdino"] = json.dumps(dict(description), sort_keys=True)
            program.save(path)
    except torch.onnx.OnnxExporterError as error:
        cause = f"cannot be exported: {_first_line(error)}"
        raise ConfigError("the scorer", cause, "export another architecture") from error


def _first_line(error: Exception) -> str:
    """Give the first line of an error's message, without colours of the terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's running commentary out of the log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
