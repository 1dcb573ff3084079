"""A released model that trains in seconds, and how its commands are called in tests."""

import shutil

from ruamel.yaml import YAML
from typer.testing import CliRunner

from anomdino.config.params import check_params, load_params, render_params
from pipeline._release import TARGET

FOLDERS = {"--inlier": "scenes", "--outliers": "objects", "--work": "work", "--to": "light"}


def tiny_release(target, widths=(96,)):
    """The released scorer and detector with parameters that take seconds."""
    shutil.copytree(TARGET, target)
    content = YAML(typ="safe", pure=True).load((target / "params.yaml").read_text())
    content["score"] |= {"widths": list(widths), "fusion": "mean", "refine_net": False}
    content["detector"] |= {"test_short_side": 96, "long_side": 128}
    content["detect"] |= {"short_side": 96, "max_boxes": 4}
    content["adt"] |= {"epochs": 1, "samples_per_epoch": 8, "crop": 64}
    content["compose"]["workers"] = 1
    (target / "params.yaml").write_text(render_params(check_params(content, "tiny")))
    return load_params(target / "params.yaml")


def invoke(app, folder, *more, folders=FOLDERS):
    """Run a command on the folders of the fixture ``sources``."""
    given = [text for name, part in folders.items() for text in (name, str(folder / part))]
    return CliRunner().invoke(app, [*given, *more])
