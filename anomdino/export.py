"""The cascade without its detector as one ONNX file: bytes of a photo in, score map and mask out.

All that stands around the networks is in the file: normalisation, the widths and how they are joined, the filter, the
lowering by the photo, ADT-Net's standardisation and threshold. A runtime that reads ONNX needs nothing of this package.
The detector stays out, for Grounding DINO cannot be exported: score and mask are those of `anomdino predict --no-boxes`.
A file is for one size of image.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import anomdino
from anomdino.adt.fusion import AdtModel, blended, surfaces_of, with_floor
from anomdino.adt.model import ramp_probability
from anomdino.adt.surfaces import surface_tensors
from anomdino.errors import BackendMissing, CheckpointError, ConfigError
from anomdino.io.atomic import atomic_path
from anomdino.io.boxes import Boxes
from anomdino.scorer.base import normalise
from anomdino.scorer.inference import ScoringEngine
from anomdino.seeding import rng

if TYPE_CHECKING:
    import onnxruntime

OPSET = 18
"""The first one whose `Resize` shrinks without aliasing."""
INPUT, SCORE, MASK = "image", "score", "mask"
TOLERANCE, FLIPPED = 1e-3, 0.01
"""Largest difference of a score from that of the network here, in standard deviations of the scores; and the share of the
mask that may change by it, pixels whose score is the threshold to the last digits."""
CURE = 'pip install "anomdino[onnx]"'


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
        score = self.engine.evaluate(normalise(image[None])).score[0]
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
) -> float:
    """Write the cascade without boxes as an ONNX file, whole or not at all, and check what it computes.

    Args:
        engine: The scorer, made ``portable``, in float32 on the CPU.
        adt: ADT-Net with its rule.
        size: H, W of the photos that the file is for.
        path: The file. Its input is ``image``, uint8 (H, W, 3), RGB; its outputs are ``score``, float32 (H, W), and
            ``mask``, bool (H, W). Its metadata has ``anomdino``, a JSON text.
        details: What else this text should say; JSON values.

    Returns:
        Largest difference of a score of a drawn picture from that of the network here, by ONNX Runtime.

    Raises:
        BackendMissing: `onnx`, `onnxscript` or `onnxruntime` is not installed.
        CheckpointError: The file computes something else.
        ConfigError: The network cannot be exported.
        DataError: Photos of this size cannot be scored.
    """
    engine.check_size(size, f"{size[1]} x {size[0]}")
    graph = CascadeGraph(engine, adt).requires_grad_(False).eval()
    picture = draw_picture(size)
    with atomic_path(path) as temporary:
        _write(graph, picture, temporary, describe(engine, adt, size, details or {}))
        difference, changed = compare(graph, picture, temporary)
        if not difference <= TOLERANCE * adt.net.statistics.std or changed > FLIPPED:
            raise CheckpointError(
                path,
                f"would not be what the networks are: scores differ by {difference:.3g}, masks on {changed:.2%}",
                "try other versions of onnx and onnxruntime",
            )
    return difference


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
        "mask": {
            "least_component": adt.rule.min_component,
            "floor": adt.rule.mask_floor,
            "threshold": "ADT-Net's without boxes" if adt.threshold is None else adt.threshold.kind,
        },
        **details,
    }


def draw_picture(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Draw a picture of patches of random colour with noise, uint8 (H, W, 3)."""
    source, side = rng(0, "export"), 16
    patches = source.integers(0, 256, (-(-size[0] // side), -(-size[1] // side), 3))
    picture = patches.repeat(side, 0).repeat(side, 1)[: size[0], : size[1]]
    return np.clip(picture + source.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)


@torch.inference_mode()
def compare(graph: CascadeGraph, picture: npt.NDArray[np.uint8], path: Path) -> tuple[float, float]:
    """Give the largest difference of a score in a file from the graph's, and the share of mask pixels that differ."""
    session = open_session(path)
    score, mask = session.run([SCORE, MASK], {INPUT: picture})
    expected, expected_mask = (part.numpy() for part in graph(torch.from_numpy(picture)))
    return float(np.abs(score - expected).max()), float((mask != expected_mask).mean())


def open_session(path: Path | str) -> onnxruntime.InferenceSession:
    """Open a file with ONNX Runtime on the CPU.

    Raises:
        BackendMissing: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendMissing("onnxruntime", "is not installed", CURE) from error
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _write(
    graph: CascadeGraph, picture: npt.NDArray[np.uint8], path: Path, description: Mapping[str, Any]
) -> None:
    try:
        import onnx  # noqa: F401 - the exporter needs both
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendMissing(error.name, "is not installed", CURE) from error
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (torch.from_numpy(picture),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[SCORE, MASK],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = str(error).strip().splitlines()[0]
        raise ConfigError(
            "the scorer", f"cannot be exported: {cause}", "export another architecture"
        ) from error
    assert program is not None
    program.model.metadata_props["anomdino"] = json.dumps(dict(description), sort_keys=True)
    with _quiet():
        program.save(path)


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
