"""Running stages one after another or together outside DVC, for the commands that need several of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

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
    """Run stages at the same time and wait for all; they end with this process where it is asked to end.

    Raises:
        TrainingError: One failed; the others are stopped.
        SystemExit: This process got SIGTERM; the stages are stopped.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    running: dict[Step, subprocess.Popen[bytes]] = {}
    with _ending_by_signal():
        try:
            for step in steps:
                command = [sys.executable, "-m", f"pipeline.{step.module}", *step.arguments]
                running[step] = subprocess.Popen(command, cwd=work, env=environment)
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


def check_work(work: Path) -> None:
    """Refuse to run stages in a project of DVC: they would take the place of its parameters, data and results.

    Raises:
        ConfigError: It is one.
    """
    if (work / "dvc.yaml").exists():
        cause = f"is {work}, where a project's own parameters, data and results lie"
        raise ConfigError("--work", cause, "name another folder, one in it say")


@contextmanager
def _ending_by_signal() -> Iterator[None]:
    """Let SIGTERM end this process by an exception, so that what it started does not go on without it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def named(texts: list[str]) -> dict[str, Path]:
    """Read ``NAME=FOLDER`` texts.

    Raises:
        ConfigError: One has another form, or a name stands there twice.
    """
    parts = [text.partition("=") for text in texts]
    wrong = [text for text, (name, _, folder) in zip(texts, parts, strict=True) if not (name and folder)]
    if wrong:
        raise ConfigError("--benchmark", f"is {', '.join(wrong)}", "write NAME=FOLDER")
    found = {name: Path(folder) for name, _, folder in parts}
    if len(found) < len(parts):
        raise ConfigError(
            "--benchmark", f"is {', '.join(texts)}, a name twice", "give each set a name of its own"
        )
    return found


def assign(content: dict[str, Any], change: str) -> None:
    """Set what ``KEY=VALUE`` says, the key dotted and the value YAML.

    Raises:
        ConfigError: It has another form, its value is no YAML, or its key goes on below a value.
    """
    key, equals, value = change.partition("=")
    if not (key and equals):
        raise ConfigError("--set", f"is {change}", "write KEY=VALUE")
    *path, last = key.split(".")
    for part in path:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise ConfigError(
                "--set", f"is {change}, and {part} holds a value, no block", "write its own key"
            )
    try:
        content[last] = YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise ConfigError(
            "--set", f"is {change}, whose value is no YAML", "quote it for the shell"
        ) from error
