"""The door where parameters are checked."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from anomdino.config.params import (
    PROFILES,
    Params,
    check_params,
    flatten,
    load_params,
    profile_params,
    read_yaml,
    render_params,
)
from anomdino.errors import ConfigError

ROOT = Path(__file__).parents[2]


def write(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


def blocks(model):
    for field in model.model_fields.values():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
            yield from blocks(annotation)


@pytest.mark.parametrize("text", ["1e-05", "'1e-05'", "1e-5", "0.00001", "'0.00001'"])
def test_numeric_strings_are_numbers(tmp_path, text):
    assert load_params(write(tmp_path, f"adt:\n  lr: {text}\n")).adt.lr == pytest.approx(1e-5, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adt:\n  lr: banana\n", ["adt.lr", "'banana'", "number"]),
        ("adt:\n  lr: true\n", ["adt.lr", "number"]),
        ("adt:\n  lr: -1\n", ["adt.lr", "-1", "greater than 0"]),
        ("adt:\n  learning_rate: 1\n", ["adt.learning_rate", "no parameter"]),
        ("adt:\n  epochss: 1\n", ["adt.epochss", "did you mean 'epochs'?"]),
        ("adtt:\n  lr: 1\n", ["adtt", "did you mean 'adt'?"]),
        ("adt:\n  epochs: 2.5\n", ["adt.epochs", "2.5"]),
        ("adt:\n  select: best\n", ["adt.select", "'ap', 'f1' or 'loss'"]),
        ("device: gpu\n", ["device", "'gpu'"]),
        ("detector:\n  levels: 2\n", ["detector", "backbone 'tiny' has 3 levels"]),
        ("detect:\n  short_side: 5\n", ["detect.short_side", "5", "at least 32 pixels"]),
        ("adt:\n  mask_floor: 1\n", ["adt.mask_floor", "1", "auto"]),
        ("seed: -3\n", ["seed", "-3"]),
        ("- 1\n- 2\n", ["list"]),
        ("adt: [1\n", ["no valid YAML"]),
        ("seed: 1\nseed: 2\n", ["seed"]),
        ("adt:\n  lr: banana\n  epochs: -1\n", ["2 parameters are wrong", "adt.lr", "adt.epochs"]),
    ],
)
def test_wrong_parameters_name_file_key_value_and_cure(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_params(path)
    message = str(caught.value)
    for words in [str(path), *said]:
        assert words in message


def test_a_place_that_holds_no_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="does not exist"):
        load_params(tmp_path / "file" / "params.yaml")
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        load_params(tmp_path)


def test_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="config use demo"):
        load_params(tmp_path / "params.yaml")


def test_a_stage_is_independent_of_mistakes_in_other_blocks(tmp_path):
    path = write(tmp_path, "adt:\n  lr: banana\nseed: 5\n")
    assert load_params(path, only=("score", "seed")).seed == 5
    with pytest.raises(ConfigError, match="scoer"):
        load_params(write(tmp_path, "scoer: {}\n"), only=("score",))


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_survive_rendering(tmp_path, name):
    params = profile_params(name)
    assert load_params(write(tmp_path, render_params(params))) == params


def test_unknown_profile():
    with pytest.raises(ConfigError, match="demo, folder, light, paper"):
        profile_params("huge")


def test_committed_params_are_the_demo_profile():
    assert (ROOT / "params.yaml").read_text() == render_params(profile_params("demo"))


def test_every_parameter_is_described():
    bare = [
        f"{block.__name__}.{name}"
        for block in {Params, *blocks(Params)}
        for name, field in block.model_fields.items()
        if not (field.description or "").strip()
    ]
    assert bare == []


def test_flatten_names_leaves():
    flat = flatten(Params())
    assert flat["adt.lr"] == Params().adt.lr
    assert "adt" not in flat


def test_check_params_is_not_mutating():
    content = {"adt": {"lr": "1e-05"}}
    check_params(content, "here")
    assert content == {"adt": {"lr": "1e-05"}}


def test_yaml_1_2_reads_no_as_text(tmp_path):
    assert read_yaml(write(tmp_path, "x: no\n")) == {"x": "no"}


def test_importing_the_package_is_cheap():
    code = "import sys, anomdino; print(sorted({'torch', 'mmdet', 'numpy', 'pandas'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
