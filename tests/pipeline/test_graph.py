"""The DVC graph says the truth: stages depend on the code they run, on their own parameters, on their inputs."""

import ast
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from anomdino.config.params import Params

ROOT = Path(__file__).parents[2]
GRAPH = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
STAGES = GRAPH["stages"]
# Code that decides nothing about a stage's results: messages, bars, the door where parameters are checked.
SHARED = (
    "anomdino/config/",
    "anomdino/errors.py",
    "anomdino/progress.py",
    "anomdino/device.py",
    "anomdino/__init__.py",
)


def definition(name):
    return STAGES[name].get("do", STAGES[name])


def module_file(name):
    path = ROOT / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate.relative_to(ROOT).as_posix()
    return None


@cache
def imports_of(file):
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] == "anomdino" and (target := module_file(name)):
                found.add(target)
    return found


def type_checking_only(file):
    tree = ast.parse((ROOT / file).read_text())
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in ast.walk(node):
                if (
                    isinstance(inner, ast.ImportFrom)
                    and inner.module
                    and (target := module_file(inner.module))
                ):
                    hidden.add(target)
    return hidden


def closure(file):
    seen, todo = set(), [file]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        todo += [f for f in imports_of(current) - type_checking_only(current) if not f.startswith(SHARED)]
    return seen


def stage_module(name):
    return definition(name)["cmd"].split()[2].replace(".", "/") + ".py"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_it_runs(name):
    declared = [dep for dep in definition(name)["deps"] if dep.startswith(("anomdino", "pipeline"))]
    missing = sorted(
        file
        for file in closure(stage_module(name))
        if not any(file == d or file.startswith(f"{d}/") for d in declared)
    )
    assert missing == []


@pytest.mark.parametrize("name", STAGES)
def test_declared_code_exists(name):
    for dep in definition(name)["deps"]:
        if dep.startswith(("anomdino", "pipeline")):
            assert (ROOT / dep).exists(), dep


@pytest.mark.parametrize("name", STAGES)
def test_parameters_of_a_stage_exist(name):
    for key in definition(name)["params"]:
        assert key.split(".")[0] in Params.model_fields, key


def test_only_training_and_evaluation_follow_the_threshold_net():
    readers = {
        name for name in STAGES if any(key.split(".")[0] == "adt" for key in definition(name)["params"])
    }
    assert readers == {"train_adt"}
    followers = {name for name in STAGES if "data/models/adt" in definition(name)["deps"]}
    assert followers == {"evaluate"}


def test_metrics_are_outputs_and_all_that_is_known_of_boxes_is_drawn():
    listed = [out for name in STAGES for out in definition(name)["outs"]]
    outs = {name for out in listed for name in (out if isinstance(out, dict) else [out])}
    assert set(GRAPH["metrics"]) <= outs
    drawn = {
        (file, column)
        for plot in GRAPH["plots"]
        for settings in plot.values()
        if isinstance(settings["y"], dict)
        for file, column in settings["y"].items()
    }
    columns = ("objects_in_boxes", "pixels_in_boxes", "boxes_per_clean_image")
    assert drawn == {("plots/detector.json", column) for column in columns}


def test_the_library_knows_nothing_of_the_pipeline():
    for file in (ROOT / "anomdino").rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            assert not (module or "").startswith(("pipeline", "dvc.")), file


def test_only_the_detector_imports_mmdet():
    for file in (ROOT / "anomdino").rglob("*.py"):
        if "detector" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in {"mmdet", "mmengine", "mmcv"} for name in names), file
