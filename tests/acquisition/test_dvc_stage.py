"""The stage under DVC: a clear failure without network, outs written once, a folder as remote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import acquisition_miniature as miniature
import pytest
from ruamel.yaml import YAML

pytest.importorskip("dvc")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STAGE = """
stages:
  download:
    cmd: "{python} -m pipeline.download"
    params: [data]
    outs: [data/inlier, data/outliers, data/val, data/weights]
"""


def run(project: Path, *command: str, good: bool = True) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode == 0) == good, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_params(project: Path, **registry: object) -> None:
    with (project / "params.yaml").open("w") as stream:
        YAML().dump({"data": {"source": "registry", "registry": registry}}, stream)


def files_below(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    (folder / "dvc.yaml").write_text(STAGE.format(python=sys.executable))
    return folder


def test_without_network_it_fails_in_seconds_and_says_what_to_do(project):
    write_params(project, offline=True)
    started = time.monotonic()
    text = run(project, "dvc", "repro", good=False)
    assert time.monotonic() - started < 30
    for words in ("cityscapes (11.2 GB", "coco_outliers (19.6 GB", "register on the web site", "from_dir"):
        assert words in text
    assert "Traceback" not in text


def test_outs_are_written_once_and_travel_through_a_remote(project, tmp_path):
    with (project / "registry.yaml").open("w") as stream:
        YAML().dump(miniature.miniature_registry().model_dump(exclude_defaults=True), stream)
    miniature.write_published(tmp_path / "hand")
    write_params(project, file="registry.yaml", from_dir=str(tmp_path / "hand"), offline=True)
    run(project, "dvc", "config", "cache.type", "hardlink")
    run(project, "dvc", "repro")
    assert not (project / "data/weights/rev3.pth").stat().st_mode & 0o222
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "hand").iterdir())
    first = files_below(project / "data/inlier")
    assert "didn't change" in run(project, "dvc", "repro")
    run(project, "dvc", "remote", "add", "-q", "-d", "team", str(tmp_path / "remote"))
    run(project, "dvc", "push", "-q")
    for gone in ("data", ".dvc/cache"):
        shutil.rmtree(project / gone)
    shutil.rmtree(tmp_path / "hand")
    run(project, "dvc", "pull", "-q")
    assert files_below(project / "data/inlier") == first
    assert (project / "data/val/RoadAnomaly/EVALUATION_ONLY").is_file()
    assert "didn't change" in run(project, "dvc", "repro")
