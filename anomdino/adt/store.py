"""The files of a trained ADT-Net: ``model.safetensors``, ``config.json``, and the network that outlines objects, if any
(:mod:`anomdino.adt.outline_net`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from anomdino.adt.fusion import AdtModel, FusionRule
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.adt.outline_net import FILE, load_outline_net, save_outline_net
from anomdino.adt.thresholds import Threshold
from anomdino.errors import CheckpointError, ConfigError
from anomdino.io.atomic import atomic_write_json, refuse_non_finite
from anomdino.io.tensors import write_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = "anomdino-adt-1"


def save_adt(model: AdtModel, folder: Path | str) -> None:
    """Write a model into ``folder``, each file whole or not at all; an outline network that is not the model's goes.

    Raises:
        ValueError: A number of its description is NaN or infinite; nothing is written then.
    """
    folder = Path(folder)
    net = model.net
    config = {
        "format": FORMAT,
        "architecture": net.architecture.as_dict(),
        "statistics": asdict(net.statistics),
        "rule": asdict(model.rule),
        "threshold": model.threshold.as_dict() if model.threshold else None,
        "provenance": model.provenance,
        "outline_network": model.outliner is not None,
    }
    refuse_non_finite(config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    metadata = {"config": json.dumps(config, sort_keys=True)}  # safetensors writes several keys in any order
    write_tensors(folder / WEIGHTS, tensors, metadata)
    atomic_write_json(folder / CONFIG, config)
    if model.outliner is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        save_outline_net(model.outliner, folder)


def load_adt(folder: Path | str, device: str = "cpu") -> AdtModel:
    """Read a model that :func:`save_adt` wrote. The weights carry their own copy of ``config.json``.

    An outline network beside a model that was stored without one is a stray of another model and not read. Older models
    do not say; they take the one beside them.

    Raises:
        CheckpointError: A file is missing, damaged or of another architecture.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise CheckpointError(path, "does not exist", "train one with `dvc repro train_adt`")
    try:
        with safe_open(path, framework="pt") as stored:
            config = json.loads((stored.metadata() or {}).get("config", "{}"))
        tensors = load_file(path, device=device)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            path, f"is no safetensors file or is damaged ({error})", "train again"
        ) from error
    if config.get("format") != FORMAT:
        raise CheckpointError(
            path, f"is no ADT-Net (format {config.get('format')})", "point to a folder of train_adt"
        )
    try:
        net = AdtNet(Architecture(**config["architecture"]), ScoreStatistics(**config["statistics"]))
        rule = FusionRule(**config["rule"])
        threshold = Threshold(**config["threshold"]) if config["threshold"] else None
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(path, f"has metadata of another version ({error})", "train it again") from error
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            path, f"does not fit its own description ({error})", "train it again"
        ) from error
    outliner = load_outline_net(folder, device) if config.get("outline_network", True) else None
    return AdtModel(net.to(device).eval(), rule, threshold, config["provenance"], outliner)
