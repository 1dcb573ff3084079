"""Messages and pages name commands that exist."""

import ast
import re
from itertools import takewhile
from pathlib import Path

import pytest
import typer

from anomdino.acquisition.registry import load_registry
from anomdino.cli.main import app

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("anomdino", "pipeline") for path in (ROOT / folder).rglob("*.py"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))
COMMAND = re.compile(r"(?:`|^\s+|Usage: )anomdino((?: +[A-Za-z0-9_-]+)+)", re.MULTILINE)


def texts(path):
    """Give the text of a page, or the strings of a module, docstrings among them."""
    if path.suffix == ".md":
        return [path.read_text()]
    return [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def named(paths):
    return {
        (path.relative_to(ROOT).as_posix(), *match.group(1).split())
        for path in paths
        for text in texts(path)
        for match in COMMAND.finditer(text)
    }


def unknown(words):
    """Give the first word that the command line, or the registry of downloads, does not know."""
    command = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "commands"):
            break
        if word not in command.commands:
            return word
        command = command.commands[word]
    if words[:2] == ["data", "get"]:
        names = takewhile(lambda word: word.islower() and not word.startswith("-"), words[2:])
        return next((name for name in names if name not in load_registry().items), None)
    return None


@pytest.mark.parametrize("paths", [SOURCES, PAGES], ids=["messages", "pages"])
def test_every_command_that_is_named_exists(paths):
    found = named(paths)
    assert len(found) > 15
    wrong = {(file, *words): word for file, *words in found if (word := unknown(words))}
    assert wrong == {}


def test_a_command_that_does_not_exist_is_noticed():
    assert unknown(["data", "weights"]) == "weights"
    assert unknown(["data", "get", "no_such_set"]) == "no_such_set"
    assert unknown(["data", "get", "bert_base_uncased"]) is None
