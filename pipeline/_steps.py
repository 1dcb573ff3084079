"""Running stages one after another or together outside DVC, for the commands that need several of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from ruamel.yaml import YAML

from anomdino.errors import ConfigError, TrainingError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Step:
    """One stage: `python -m pipeline.<module> <arguments>`."""

    module: str
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Give the stage's name as people write it."""
        return " ".join((self.module, *self.arguments))


def run_together(steps: list[Step], work: Path) -> None:
    """Run stages at the same time and wait for all.

    Raises:
        TrainingError: One failed; the others are stopped.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    running = {
        step: subprocess.Popen(
            [sys.executable, "-m", f"pipeline.{step.module}", *step.arguments], cwd=work, env=environment
        )
        for step in steps
    }
    try:
        while running:
            for step, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                if code:
                    raise TrainingError(step.name, f"ended with exit code {code}", "its message is above")
                typer.echo(f"stage {step.name}: {time.perf_counter() - started:.0f} s")
                del running[step]
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def named(texts: list[str]) -> dict[str, Path]:
    """Read ``NAME=FOLDER`` texts.

    Raises:
        ConfigError: One has another form.
    """
    parts = {text: text.partition("=") for text in texts}
    wrong = [text for text, (name, _, folder) in parts.items() if not (name and folder)]
    if wrong:
        raise ConfigError("--benchmark", f"is {', '.join(wrong)}", "write NAME=FOLDER")
    return {name: Path(folder) for name, _, folder in parts.values()}


def assign(content: dict[str, Any], change: str) -> None:
    """Set what ``KEY=VALUE`` says, the key dotted and the value YAML.

    Raises:
        ConfigError: It has another form.
    """
    key, equals, value = change.partition("=")
    if not (key and equals):
        raise ConfigError("--set", f"is {change}", "write KEY=VALUE")
    *path, last = key.split(".")
    for part in path:
        content = content.setdefault(part, {})
    content[last] = YAML(typ="safe", pure=True).load(value)
