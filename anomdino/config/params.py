"""``params.yaml``: the single source of parameters, read by one schema."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from anomdino.config.adt import AdtConfig
from anomdino.config.base import Block
from anomdino.config.benchmark import BenchmarkConfig
from anomdino.config.compose import ComposeConfig
from anomdino.config.data import DataConfig
from anomdino.config.detect import DetectConfig
from anomdino.config.detector import DetectorConfig
from anomdino.config.rpl import RplConfig
from anomdino.config.score import ScoreConfig
from anomdino.config.score_view import ScoreViewConfig
from anomdino.errors import ConfigError

PROFILES = ("demo", "folder", "light", "paper")
_PROFILE_FOLDER = Path(__file__).parent / "profiles"


class Params(Block):
    """All parameters: one block a stage, and the two that every stage shares."""

    seed: int = Field(default=0, ge=0)
    """Root of all random numbers."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    """Where networks run: auto, cpu, cuda, cuda:<number> or mps."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Stage download."""
    compose: ComposeConfig = Field(default_factory=ComposeConfig)
    """Stage compose."""
    rpl: RplConfig = Field(default_factory=RplConfig)
    """Stage train_rpl."""
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    """Stage score."""
    score_view: ScoreViewConfig = Field(default_factory=ScoreViewConfig)
    """Stage score_view."""
    detector: DetectorConfig = Field(default_factory=DetectorConfig)
    """Stage train_detector."""
    detect: DetectConfig = Field(default_factory=DetectConfig)
    """Stage detect."""
    adt: AdtConfig = Field(default_factory=AdtConfig)
    """Stage train_adt."""
    benchmark: BenchmarkConfig = Field(default_factory=BenchmarkConfig)
    """Stage evaluate."""


def load_params(path: Path | str = "params.yaml", only: tuple[str, ...] | None = None) -> Params:
    """Read and check a parameter file.

    Args:
        path: A YAML 1.2 file.
        only: Blocks to check; the others keep their defaults. A stage that reads its own block alone stays
            independent of mistakes elsewhere. ``None`` checks everything.

    Returns:
        The checked parameters, frozen.

    Raises:
        ConfigError: The file is missing or no YAML, or a parameter is unknown, of the wrong type or out of range. The
            message has the file, the dotted key, the value, what is allowed and, for an unknown key, the nearest name.
    """
    content = read_yaml(path)
    if only is not None:
        content = {
            key: value for key, value in content.items() if key in only or key not in Params.model_fields
        }
    return check_params(content, str(path))


def check_params(content: Any, source: str) -> Params:
    """Check parameters that were read already (see :func:`load_params`).

    Args:
        content: Nested dictionaries as YAML gives them.
        source: Name of the file for messages.
    """
    if not isinstance(content, dict):
        raise ConfigError(
            source, f"holds {type(content).__name__}, expected one block a stage", "see `config use demo`"
        )
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        count = f"{len(lines)} parameters are wrong:\n  " if len(lines) > 1 else ""
        cure = "`anomdino config check` checks again; `anomdino config use demo` restores the defaults"
        raise ConfigError(source, count + "\n  ".join(lines), cure) from error


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML 1.2 file whose keys occur once.

    Raises:
        ConfigError: The file is missing or cannot be read, is no YAML, or holds a key twice.
    """
    try:
        content = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(path, "does not exist", "`anomdino config use demo` writes it") from error
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {(error.strerror or str(error)).lower()}", "") from error
    except (YAMLError, UnicodeDecodeError) as error:
        cure = "correct it there, or `anomdino config use demo` restores the defaults"
        raise ConfigError(path, f"is no valid YAML: {str(error).strip()}", cure) from error
    return {} if content is None else content


def profile_params(name: str) -> Params:
    """Give the parameters of a packaged profile: the schema's defaults with the profile's changes.

    Raises:
        ConfigError: There is no such profile.
    """
    if name not in PROFILES:
        raise ConfigError("profile", f"unknown profile '{name}'", f"choose one of {', '.join(PROFILES)}")
    path = _PROFILE_FOLDER / f"{name}.yaml"
    return check_params(read_yaml(path), str(path))


def render_params(params: Params) -> str:
    """Write parameters as the text of ``params.yaml``, every parameter with its description as a comment."""
    document = _commented(params, depth=0)
    document.yaml_set_start_comment(
        "Parameters of the pipeline, one block a stage. `anomdino config check` validates this file.\n"
    )
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    from io import StringIO

    stream = StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def with_changes(params: Params, block: str, **changes: Any) -> Params:
    """Give parameters with values of one block changed, which are not checked."""
    return params.model_copy(update={block: getattr(params, block).model_copy(update=changes)})


def flatten(params: Params) -> dict[str, Any]:
    """Give the parameters as ``{"adt.lr": 1e-3, ...}``; lists are values."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    walk("", params.model_dump(mode="json"))
    return flat


def _commented(block: Block, depth: int) -> CommentedMap:
    node = CommentedMap()
    for name, field in type(block).model_fields.items():
        value = getattr(block, name)
        node[name] = _plain(value, depth)
        comment = (field.description or "").strip().replace("\n", " ")
        if comment and depth:
            node.yaml_set_comment_before_after_key(name, before=comment, indent=2 * depth)
    return node


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, Block):
        return _commented(value, depth + 1)
    if isinstance(value, dict):
        return CommentedMap({key: _entry(inner, depth + 1) for key, inner in value.items()})
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, list | tuple):
        row = CommentedSeq([_plain(inner, depth) for inner in value])
        if not any(isinstance(inner, Block | dict | list) for inner in value):
            row.fa.set_flow_style()
        return row
    return value


def _entry(value: Any, depth: int) -> Any:
    if isinstance(value, Block):
        return _plain(value.model_dump(mode="json", exclude_defaults=True), depth)
    return _plain(value, depth)


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        names = _names_beside(item["loc"])
        near = difflib.get_close_matches(str(item["loc"][-1]), names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(names)}"
        return f"{key} = {item['input']!r} is no parameter; {hint}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key} = {item['input']!r}: {message[0].lower()}{message[1:]}"


def _names_beside(location: tuple[Any, ...]) -> list[str]:
    block: Any = Params
    for part in location[:-1]:
        field = getattr(block, "model_fields", {}).get(part)
        annotation = field.annotation if field else None
        block = annotation if isinstance(annotation, type) and issubclass(annotation, Block) else block
    return sorted(block.model_fields)


__all__ = [
    "PROFILES",
    "Params",
    "check_params",
    "flatten",
    "load_params",
    "profile_params",
    "read_yaml",
    "render_params",
    "with_changes",
]
