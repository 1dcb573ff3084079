"""The command that trains the released model: its parameters, its order of stages, its failures, its result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from anomdino.config.params import Params, load_params
from anomdino.errors import CheckpointError, ConfigError, TrainingError
from anomdino.io.images import write_png
from anomdino.release.build import build_release, half_agrees
from anomdino.scorer.base import ScorerSpec, build_scorer, load_scorer, save_scorer
from pipeline import _steps, measure, release
from pipeline._steps import Step, named, run_together
from pipeline.release import parameters, waves, waves_between

ROOT = Path(__file__).parents[2]


def test_the_order_can_begin_and_end_in_the_middle() -> None:
    whole = waves(["A"])
    assert waves_between("download", "evaluate", ["A"]) == whole
    assert waves_between("train_detector", "evaluate", ["A"]) == whole[3:]
    assert waves_between("compose", "train_detector", ["A"]) == whole[1:4]
    assert waves_between("train_adt", "evaluate", []) == waves([])[5:]
    with pytest.raises(ConfigError, match="--since: is 'train_rlp'"):
        waves_between("train_rlp", "evaluate", ["A"])
    with pytest.raises(ConfigError, match="--through: is 'train_rlp'"):
        waves_between("download", "train_rlp", ["A"])
    with pytest.raises(ConfigError, match="comes before"):
        waves_between("train_adt", "train_rpl", ["A"])


def test_stages_are_those_of_the_graph_in_an_order_it_allows() -> None:
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    names = ["A", "B"]
    place = {step.name: number for number, wave in enumerate(waves(names)) for step in wave}
    produced: dict[str, int] = {}
    wanted: list[tuple[str, list[str]]] = []
    for stage in graph.values():
        for name in names if "foreach" in stage else [""]:
            body = json.loads(json.dumps(stage.get("do", stage)).replace("${key}", name))
            command = body["cmd"].removeprefix("python -m pipeline.")
            if command.startswith("score_view"):
                continue
            assert command in place, command
            for out in body.get("outs", []):
                produced[out if isinstance(out, str) else next(iter(out))] = place[command]
            wanted.append((command, body["deps"]))
    for command, needs in wanted:
        for need in needs:
            for out, number in produced.items():
                if (need + "/").startswith(out + "/") or (out + "/").startswith(need + "/"):
                    assert number < place[command], (command, need)


def test_parameters_take_folders_and_changes(tmp_path: Path) -> None:
    params = parameters(
        "light",
        tmp_path,
        tmp_path,
        {"AnomalyTrack": tmp_path},
        ["rpl.residual.lr=1e-4", "score.widths=[256]"],
    )
    assert params.data.source == "folder"
    assert params.data.folder.inlier == str(tmp_path.resolve())
    assert list(params.benchmark.sets) == ["AnomalyTrack"]
    assert params.rpl.residual.lr == 1e-4
    assert params.score.widths == [256]
    assert params.rpl.architecture == "efficientnet_lite0"
    untouched = parameters("light", None, None, {}, [])
    assert untouched.data.source == "registry"
    assert "camvid" in untouched.data.registry.items
    with pytest.raises(ConfigError, match=r"rpl\.residual\.lrr"):
        parameters("light", None, None, {}, ["rpl.residual.lrr=1"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((Path(), None, {}, []), "--inlier: .*belong together"),
        ((None, Path(), {}, []), "--inlier: .*belong together"),
        ((None, None, {"AnomalyTrack": Path()}, []), "--benchmark: is for data in folders"),
        ((Path(), Path(), {"mine": Path()}, []), "--benchmark: mine.*\n.*use AnomalyTrack, ObstacleTrack"),
        ((None, None, {}, ["seed.x=1"]), "--set: is seed.x=1, and seed holds a value"),
        ((None, None, {}, ["score.widths.0=5"]), "--set: is score.widths.0=5, and widths holds a value"),
        ((None, None, {}, ["score.widths=[1"]), r"--set: is score.widths=\[1, whose value is no YAML"),
    ],
)
def test_what_would_be_left_out_or_cannot_be_read_is_named(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parameters("light", *given)


@pytest.mark.parametrize("app", [release.app, measure.app])
def test_the_project_s_own_folder_is_no_place_to_work(tmp_path: Path, app: typer.Typer) -> None:
    (tmp_path / "dvc.yaml").touch()
    write_png(tmp_path / "set/images/a.png", np.zeros((8, 9, 3), np.uint8))
    write_png(tmp_path / "set/labels/a.png", np.zeros((8, 9), np.uint8))
    sets = ["--benchmark", f"mine={tmp_path / 'set'}", "--models", "released"] if app is measure.app else []
    result = CliRunner().invoke(app, ["--work", str(tmp_path), *sets])
    assert result.exit_code == 2
    assert "--work: is" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"dvc.yaml", "set"}


def test_a_set_is_named_once() -> None:
    assert named(["A=x", "B=x=y"]) == {"A": Path("x"), "B": Path("x=y")}
    with pytest.raises(ConfigError, match="a name twice"):
        named(["A=x", "A=y"])


def test_stages_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    package = tmp_path / "root" / "pipeline"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "slow.py").write_text(
        "import os, pathlib, time; pathlib.Path('made').write_text(str(os.getpid()));"
        "pathlib.Path('made').rename('pid'); time.sleep(600)"
    )
    program = (
        "import pathlib, sys; from pipeline import _steps; _steps.ROOT = pathlib.Path(sys.argv[1], 'root');"
        "_steps.run_together([_steps.Step('slow')], pathlib.Path(sys.argv[1]))"
    )
    caller = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    while not (tmp_path / "pid").is_file():
        time.sleep(0.02)
    caller.terminate()
    assert caller.wait() == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_stages_run_together_and_a_failure_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "root" / "pipeline"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "good.py").write_text("import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('done')")
    (package / "bad.py").write_text("import sys; sys.exit(5)")
    (package / "slow.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(_steps, "ROOT", tmp_path / "root")
    run_together([Step("good", ("a",)), Step("good", ("b",))], tmp_path)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "done"
    with pytest.raises(TrainingError, match="exit code 5"):
        run_together([Step("slow"), Step("bad")], tmp_path)


def trained(folder: Path, options: dict[str, object]) -> Path:
    torch.manual_seed(0)
    scorer = build_scorer(ScorerSpec("small", 19, options))
    save_scorer(scorer, folder / "models" / "rpl")
    for part in ("detector", "adt"):
        (folder / "models" / part).mkdir()
        (folder / "models" / part / "config.json").write_text("{}")
        save_file({"w": torch.rand(3), "n": torch.tensor(2)}, folder / "models" / part / "model.safetensors")
        (folder / "models" / part / "history.json").write_text("[]")
    return folder / "models"


def weights_of(models: Path, part: str) -> torch.Tensor:
    return load_file(models / part / "model.safetensors")["w"]


def test_release_holds_half_weights_and_what_prediction_needs(tmp_path: Path) -> None:
    models = trained(tmp_path / "work", {})
    target = tmp_path / "light"
    sizes = build_release(models, Params(seed=3), target, {"commands": "one"})
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert files == [
        "models/adt/config.json",
        "models/adt/model.safetensors",
        "models/detector/config.json",
        "models/detector/model.safetensors",
        "models/rpl/config.json",
        "models/rpl/model.safetensors",
        "params.yaml",
    ]
    stored = load_file(target / "models" / "rpl" / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    detector, adt = (
        load_file(target / "models" / part / "model.safetensors") for part in ("detector", "adt")
    )
    assert (detector["w"].dtype, detector["n"].dtype, adt["w"].dtype) == (
        torch.float16,
        torch.int64,
        torch.float32,
    )
    torch.testing.assert_close(detector["w"].float(), weights_of(models, "detector"), rtol=1e-3, atol=0)
    assert torch.equal(adt["w"], weights_of(models, "adt"))
    assert json.loads((target / "models" / "rpl" / "config.json").read_text())["details"] == {
        "commands": "one"
    }
    assert all(value.dtype == torch.float32 for value in load_scorer(target / "models" / "rpl").parameters())
    assert sizes["rpl"] < 0.6 * (models / "rpl" / "model.safetensors").stat().st_size
    assert 0 < half_agrees(models, target) < 1e-2
    assert load_params(target / "params.yaml").seed == 3


def test_parts_that_were_not_trained_are_left_out_and_replaced_whole(tmp_path: Path) -> None:
    models = trained(tmp_path / "work", {})
    target = tmp_path / "light"
    old = [target / "models" / name for name in ("adt/old.txt", "rpl/fusion-64-96.safetensors")]
    for file in old:
        file.parent.mkdir(parents=True)
        file.touch()
    (models / "detector" / "config.json").unlink()
    build_release(models, Params(seed=3), target)
    assert not (target / "models" / "detector").exists()
    assert not any(file.exists() for file in old)


def test_a_scorer_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = trained(tmp_path / "work", {})
    monkeypatch.setattr("anomdino.release.build.SCORER_LIMIT", 1000)
    kept = tmp_path / "light/models/rpl/model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_text("the scorer before")
    with pytest.raises(CheckpointError, match=r"rpl: has \d+ bytes .*1000 are allowed"):
        build_release(models, Params(seed=3), tmp_path / "light")
    assert [path for path in (tmp_path / "light").rglob("*") if path.is_file()] == [kept]
    assert kept.read_text() == "the scorer before"


def test_light_benchmark_figures_agree_with_scikit_learn() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from light import pooled_figures
    finally:
        sys.path.pop(0)
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    generator = torch.Generator().manual_seed(1)
    for decimals in (1, 6):
        scores = torch.randn(4000, generator=generator)
        truth = torch.rand(4000, generator=generator) < torch.sigmoid(2 * scores - 2)
        scores = torch.round(scores, decimals=decimals)
        figures = pooled_figures(scores, truth)
        assert figures["AP"] == pytest.approx(100 * average_precision_score(truth, scores))
        assert figures["AUROC"] == pytest.approx(100 * roc_auc_score(truth, scores))
        fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
        assert figures["FPR95"] == pytest.approx(100 * fpr[tpr >= 0.95][0])
