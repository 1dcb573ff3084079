"""Moving the standardisation of detector and ADT-Net to another scorer, at tiny size."""

import shutil
from dataclasses import astuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anomdino.adt.model import ScoreStatistics
from anomdino.adt.store import load_adt
from anomdino.config.params import render_params
from anomdino.detector.weights import score_statistics
from anomdino.io.scores import read_score
from anomdino.scorer.width_fusion import WidthFusion, save_fusion
from pipeline import recalibrate
from pipeline._release import TARGET
from tests.release.tiny import FOLDERS, invoke, tiny_release


def another_scorer(folder):
    """The released scorer with logits 1.3 times as large: another mean and spread of the energy."""
    state = load_file(folder / "model.safetensors")
    state["final.6.weight"] *= 1.3
    save_file(state, folder / "model.safetensors")


def run(sources, *more):
    return invoke(recalibrate.app, sources, "--count", "4", *more, folders={**FOLDERS, "--before": "before"})


def standardised(folder, statistics):
    """Mean and spread of stored scores as the given statistics see them."""
    scores = np.concatenate(
        [read_score(path).astype(np.float64).ravel() for path in sorted(folder.glob("*.npz"))]
    )
    mean, std = statistics
    return (scores.mean() - mean) / std, scores.std() / std


def test_what_reads_the_scores_sees_them_as_before(sources):
    pytest.importorskip("mmdet")
    target = sources / "light"
    tiny_release(target)
    shutil.copytree(TARGET / "models/rpl", sources / "before")
    another_scorer(target / "models/rpl")
    weights = load_file(target / "models/detector/model.safetensors")
    seen = {
        "adt": (statistics := load_adt(target / "models/adt").net.statistics)
        and (statistics.mean, statistics.std),
        "detector": score_statistics(target / "models/detector"),
    }
    result = run(sources)
    assert result.exit_code == 0, result.output

    model = load_adt(target / "models/adt")
    now = {
        "adt": (model.net.statistics.mean, model.net.statistics.std),
        "detector": score_statistics(target / "models/detector"),
    }
    for part, before in seen.items():
        expected = standardised(sources / "work/before/scores", before)
        found = standardised(sources / "work/now/scores", now[part])
        assert found == pytest.approx(expected, abs=5e-3), part  # the detector stores half precision
        assert now[part][1] > 1.1 * before[1]

    after = load_file(target / "models/detector/model.safetensors")
    changed = {name for name, value in weights.items() if not value.equal(after[name])}
    assert changed == {"ouafs.score_mean", "ouafs.score_std"}
    assert model.rule == load_adt(TARGET / "models/adt").rule

    again = run(sources)
    assert again.exit_code != 0
    assert "already" in again.output
    assert score_statistics(target / "models/detector") == now["detector"]


def test_the_same_scorer_changes_nothing(sources):
    pytest.importorskip("mmdet")
    tiny_release(sources / "light")
    another_scorer(sources / "light/models/rpl")  # the released model is fitted to its own already
    shutil.copytree(sources / "light/models/rpl", sources / "before")
    before = score_statistics(sources / "light/models/detector")
    result = run(sources)
    assert result.exit_code == 0, result.output
    assert score_statistics(sources / "light/models/detector") == before


def test_widths_joined_by_a_network_count_as_another_scorer(sources):
    pytest.importorskip("mmdet")
    target, scorer = sources / "light", sources / "light/models/rpl"
    params = tiny_release(target, widths=(64, 96))
    shutil.copytree(scorer, sources / "before", ignore=shutil.ignore_patterns("fusion-*"))
    fusion = WidthFusion((64, 96), mean=-7.0, std=2.0)
    torch.nn.init.constant_(fusion.head.bias[-1:], 0.75)  # the mean of the widths, 0.75 x 2 higher
    save_fusion(fusion, scorer)
    learned = params.model_copy(update={"score": params.score.model_copy(update={"fusion": "learned"})})
    (target / "params.yaml").write_text(render_params(learned))
    before = load_adt(target / "models/adt").net.statistics
    assert run(sources).exit_code == 0
    after = load_adt(target / "models/adt").net.statistics
    assert after.mean == pytest.approx(before.mean + 1.5, abs=2e-3)
    assert after.std == pytest.approx(before.std, rel=1e-3)
    again = run(sources)
    assert again.exit_code != 0
    assert "nothing is left to do" in again.output


def test_a_run_that_was_killed_moves_nothing_twice(sources, monkeypatch):
    pytest.importorskip("mmdet")
    tiny_release(sources / "light")
    models = sources / "light/models"
    another_scorer(models / "rpl")
    measured = {"before": ScoreStatistics(-5.0, 2.0), "now": ScoreStatistics(-4.0, 3.0)}
    adt, detector = load_adt(models / "adt").net.statistics, score_statistics(models / "detector")

    def killed(*given):
        raise KeyboardInterrupt

    for name in ("anomdino.detector.weights.write_tensors", "anomdino.adt.store.save_adt", ""):
        monkeypatch.setattr("anomdino.data.compose.compose", lambda *given: None)
        monkeypatch.setattr(recalibrate, "scored", lambda *given: measured[given[-1]])
        if name:
            monkeypatch.setattr(name, killed)
        assert (run(sources).exit_code == 0) is not bool(name)
        monkeypatch.undo()
    for old, new in (
        ((adt.mean, adt.std), astuple(load_adt(models / "adt").net.statistics)[:2]),
        (detector, score_statistics(models / "detector")),
    ):
        assert new == pytest.approx((-4 + 1.5 * (old[0] + 5), 1.5 * old[1]), rel=1e-3)


def test_a_scorer_that_is_not_there_is_named_and_nothing_changes(sources):
    tiny_release(sources / "light")
    another_scorer(sources / "light/models/rpl")
    kept = (sources / "light/models/adt/model.safetensors").read_bytes()
    result = run(sources)
    assert result.exit_code != 0
    assert "before" in result.output
    assert (sources / "light/models/adt/model.safetensors").read_bytes() == kept


def test_a_detector_without_its_description_is_refused_before_anything_is_written(sources):
    pytest.importorskip("mmdet")
    target = sources / "light"
    tiny_release(target)
    shutil.copytree(TARGET / "models/rpl", sources / "before")
    another_scorer(target / "models/rpl")
    (target / "models/detector/config.json").unlink()
    files = [target / "models" / part / "model.safetensors" for part in ("adt", "detector")]
    kept = [file.read_bytes() for file in files]
    result = run(sources)
    assert result.exit_code != 0
    assert "config.json" in result.output
    assert [file.read_bytes() for file in files] == kept
