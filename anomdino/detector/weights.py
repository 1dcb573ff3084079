"""Detector weights: safe loading of mmengine checkpoints, strict matching, and the detector's own folder."""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomdino.config.detector import DetectorConfig
from anomdino.errors import CheckpointError
from anomdino.io.atomic import atomic_write_bytes, atomic_write_json
from anomdino.io.tensors import DAMAGED_CHECKPOINT, write_tensors

FORMAT = 1
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
TEXT_ENCODER = "text_encoder"
NEW_PREFIX = "ouafs."
_STATISTICS = ("ouafs.score_mean", "ouafs.score_std")
_OBSOLETE = ("embeddings.position_ids",)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint without executing anything that it holds.

    ``.safetensors`` files give their tensors. Others are unpickled with torch's weights-only reader, which here also
    admits mmengine's history buffers and numpy's arrays; anything else is refused.

    Raises:
        CheckpointError: The file is missing or damaged, or holds an object that is not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            path,
            "does not exist",
            "check the path; `anomdino data list` shows what can be fetched, `anomdino data get NAME` fetches it",
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return {"state_dict": load_file(path)}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(path, f"is damaged ({error})", "copy or download it again") from error
    try:
        with torch.serialization.safe_globals(_allowed()):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            path,
            f"holds objects that may run code, or is damaged: {str(error).splitlines()[0]}",
            "if you trust its source, load it once with torch.load(weights_only=False) and save its state_dict alone",
        ) from error
    except DAMAGED_CHECKPOINT as error:
        cause = f"is no checkpoint or is damaged ({error!r})"
        raise CheckpointError(path, cause, "copy or download it again") from error
    found: dict[str, Any] = content if isinstance(content, dict) else {"state_dict": content}
    if "state_dict" not in found:
        found = {"state_dict": found.get("model", found)}
    state = found["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        cause = f"holds {type(state).__name__}, expected a dictionary of weights by name"
        raise CheckpointError(path, cause, "choose a file that holds a network's state_dict")
    return found


def _allowed() -> list[Any]:
    """List what a checkpoint may hold beside tensors: numpy arrays and mmengine's histories of scalars."""
    import numpy as np
    from mmengine.logging.history_buffer import HistoryBuffer

    core = importlib.import_module(
        "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"
    )
    kinds = {
        type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool", "uint32", "uint8")
    }
    places = [
        (getattr(core, name), f"{package}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for package in ("numpy.core", "numpy._core")
    ]
    methods = [getattr(HistoryBuffer, name) for name in _HISTORY_METHODS]
    lookups = [(_history_method, f"{package}.getattr") for package in ("builtins", "__builtin__")]
    return [HistoryBuffer, np.ndarray, np.dtype, *kinds, *places, *methods, *lookups]


_HISTORY_METHODS = ("min", "max", "mean", "current")


def _history_method(owner: Any, name: str) -> Any:
    """Look up one of the four functions that a pickled history names; refuse everything else."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f"attribute {name!r} of {owner!r} is not allowed")
    return getattr(owner, name)


def load_pretrained(detector: nn.Module, path: Path | str) -> None:
    """Put a published (MM-)Grounding-DINO checkpoint, or an own ``model.safetensors``, into a detector: every key must
    find its place.

    OUAFS alone may be missing from the checkpoint. A ``module.`` prefix is stripped.

    Raises:
        CheckpointError: Keys are left over or missing, or shapes differ; the message lists the first ten of each.
    """
    state = {
        name.removeprefix("module."): value
        for name, value in read_checkpoint(path)["state_dict"].items()
        if not name.endswith(_OBSOLETE)
    }
    _match(detector, _with_aliases(state, detector), path, may_miss=NEW_PREFIX)


def _match(detector: nn.Module, state: Mapping[str, Tensor], path: Path | str, may_miss: str = "\0") -> None:
    own = detector.state_dict()
    missing = [name for name in own if name not in state and not name.startswith(may_miss)]
    extra = [name for name in state if name not in own]
    parts = [
        f"{len(names)} keys {what}: {', '.join(names[:10])}"
        for names, what in (
            (missing, "missing"),
            (extra, "unexpected"),
            (other_shapes(state, own), "of another shape"),
        )
        if names
    ]
    if parts:
        raise CheckpointError(
            path, "; ".join(parts), "use the detector's parameters that belong to this checkpoint"
        )
    detector.load_state_dict({**own, **state})


def other_shapes(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> list[str]:
    """Describe what a file's ``state`` holds under the names of ``own`` in another shape, or as no tensor at all."""
    return [
        f"{name}: {shape} in the file, {tuple(own[name].shape)} here"
        for name in own
        if name in state and (shape := _shape(state[name])) != tuple(own[name].shape)
    ]


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def save_detector(
    detector: nn.Module, config: DetectorConfig, classes: int, folder: Path | str, extra: Mapping[str, Any]
) -> None:
    """Write ``model.safetensors`` and ``config.json`` to ``folder``.

    Vocabulary and configuration of a text encoder that came from a folder go to ``text_encoder/``: the weights are
    among the detector's, so that it loads wherever it is copied to.

    Args:
        detector: The trained network.
        config: Its parameters.
        classes: C, channels of its semantic map.
        folder: The detector's folder.
        extra: Further facts for ``config.json``.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    write_tensors(Path(folder) / WEIGHTS_FILE, _without_aliases(state))
    for name, value in detector.language_model.files.items():  # type: ignore[union-attr,operator]
        atomic_write_bytes(Path(folder) / TEXT_ENCODER / name, value)
    content = {"format": FORMAT, "classes": classes, "detector": config.model_dump(mode="json"), **extra}
    atomic_write_json(Path(folder) / CONFIG_FILE, content)


def score_statistics(folder: Path | str) -> tuple[float, float]:
    """Read mean and standard deviation that a detector standardises the residual score with.

    Raises:
        CheckpointError: The folder holds no detector with a score map, or a damaged one.
    """
    path = Path(folder) / WEIGHTS_FILE
    state = read_checkpoint(path)["state_dict"]
    if not state.keys() >= set(_STATISTICS):
        raise CheckpointError(path, "holds no detector", "train one: `dvc repro train_detector`")
    mean, std = (float(state[name]) for name in _STATISTICS)
    return mean, std


def set_score_statistics(
    folder: Path | str, mean: float, std: float, notes: Mapping[str, Any] | None = None
) -> None:
    """Put other statistics of the residual score into a detector's files, each whole or not at all; weights stay.

    ``config.json`` is first: what it says is what the weights are about to hold, if the call is killed in between.

    Args:
        folder: The detector's folder.
        mean: Mean of the scores.
        std: Their standard deviation.
        notes: What else ``config.json`` should say; JSON values.

    Raises:
        CheckpointError: The folder holds no detector, or a damaged one.
    """
    folder = Path(folder)
    state = dict(read_checkpoint(folder / WEIGHTS_FILE)["state_dict"])
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        content = {**content, "score": {"mean": mean, "std": std}, **(notes or {})}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(folder / CONFIG_FILE, f"cannot be read ({error})", "train again") from error
    score_statistics(folder)
    atomic_write_json(folder / CONFIG_FILE, content)
    for name, value in zip(_STATISTICS, (mean, std), strict=True):
        state[name] = torch.full_like(state[name], value)
    write_tensors(folder / WEIGHTS_FILE, state)


def load_detector(
    folder: Path | str, scorer_folder: Path | str | None = None
) -> tuple[nn.Module, DetectorConfig, dict[str, Any]]:
    """Build the detector of a folder and load its weights.

    Args:
        folder: A folder written by :func:`save_detector`.
        scorer_folder: The scorer, for ``backbone: scorer``; the folder ``rpl`` beside ``folder`` when left out.

    Returns:
        The network in evaluation mode, its parameters, and the content of ``config.json``.

    Raises:
        CheckpointError: The folder holds no detector, or its files are damaged or do not fit each other.
    """
    from anomdino.detector.architecture import build_detector

    folder = Path(folder)
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config = DetectorConfig.model_validate(content["detector"])
        classes = int(content["classes"])
    except FileNotFoundError as error:
        raise CheckpointError(folder, "holds no detector", "train one: `dvc repro train_detector`") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            folder / CONFIG_FILE, f"is damaged or of another version ({error})", "train again"
        ) from error
    elsewhere = {"init_checkpoint": "", "pretrained_backbone": ""}
    if config.text_encoder != "tiny" and (folder / TEXT_ENCODER).is_dir():
        elsewhere["text_encoder"] = str(folder / TEXT_ENCODER)
    detector = build_detector(
        config.model_copy(update=elsewhere),
        classes,
        scorer_folder or folder.parent / "rpl",
    )
    state = _with_aliases(read_checkpoint(folder / WEIGHTS_FILE)["state_dict"], detector)
    _match(detector, state, folder / WEIGHTS_FILE)
    return detector.eval(), config, content


def _aliases(state: Mapping[str, Tensor]) -> dict[str, str]:
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    aliases = {}
    for name, value in state.items():
        place = (value.data_ptr(), tuple(value.shape))
        if value.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
    return aliases


def _with_aliases(state: Mapping[str, Tensor], detector: nn.Module) -> dict[str, Tensor]:
    """Add the names that :func:`save_detector` leaves out because they share their tensor with another."""
    aliases = _aliases(detector.state_dict())
    return {**{name: state[first] for name, first in aliases.items() if first in state}, **state}


def _without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    aliases = _aliases(state)
    return {name: value for name, value in state.items() if name not in aliases}
