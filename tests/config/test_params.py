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
        ("rpl: {residual: {paste: {objects: [3, 1]}}}\n", ["rpl.residual.paste", "objects [3, 1]", "fewest"]),
        (
            "rpl: {residual: {paste: {objects: [-2, 1]}}}\n",
            ["rpl.residual.paste", "objects [-2, 1]", "fewest"],
        ),
        ("rpl: {residual: {paste: {swaps: [2, 1]}}}\n", ["rpl.residual.paste", "swaps [2, 1]", "fewest"]),
        ("rpl: {residual: {paste: {height: [0.6, 0.06]}}}\n", ["rpl.residual.paste", "height [0.6, 0.06]"]),
        ("rpl: {residual: {paste: {height: [0, 0.5]}}}\n", ["rpl.residual.paste", "height [0.0, 0.5]"]),
        ("rpl: {residual: {rpl_scales: []}}\n", ["rpl.residual.rpl_scales", "at least 1"]),
        ("rpl: {residual: {rpl_scales: [0.5, 0]}}\n", ["rpl.residual.rpl_scales.1", "greater than 0"]),
        ("rpl: {closed_set: {augment: {scale: [1.5, 0.5]}}}\n", ["closed_set.augment", "scale [1.5, 0.5]"]),
        ("score: {widths: [512, 0]}\n", ["score.widths.1", "greater than or equal to 1"]),
        ("score: {widths: [-5]}\n", ["score.widths.0", "-5"]),
        (
            "score_view: {low_percentile: 60, high_percentile: 40}\n",
            ["score_view", "low_percentile", "60", "40"],
        ),
        ("compose: {objects_min: 5}\n", ["compose", "objects_min (5) is above objects_max (4)"]),
        ("compose: {ground_height_min: 2}\n", ["ground_height_min (2.0) is above ground_height_max (1.4)"]),
        ("adt: {box_drop_min: 0.5}\n", ["box_drop_min 0.5 is above box_drop_max 0.3"]),
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


def floats(block, prefix=""):
    """Give every parameter below a block that is a float, as (dotted key, value that the file would have)."""
    for name, value in block:
        key = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from floats(value, f"{key}.")
        elif isinstance(value, tuple) and isinstance(value[0], float):
            yield key, lambda bad, value=value: [bad, *value[1:]]
        elif isinstance(value, float):
            yield key, lambda bad: bad


@pytest.mark.parametrize("bad", [".inf", "-.inf", ".nan"])
def test_no_float_parameter_takes_what_is_not_finite(tmp_path, bad):
    found = dict(floats(Params()))
    assert {
        "rpl.residual.lr",
        "rpl.residual.rpl_scales",
        "rpl.residual.schedule.power",
        "adt.b",
    } <= found.keys()
    assert len(found) > 100
    for key, content in found.items():
        *blocks_, name = key.split(".")
        lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(blocks_)]
        value = str(content(bad)).replace("'", "")
        path = write(tmp_path, "\n".join([*lines, f"{'  ' * len(blocks_)}{name}: {value}\n"]))
        with pytest.raises(ConfigError, match=rf"(?s)params\.yaml: {key}.*(finite number|greater|less|auto)"):
            load_params(path)


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
