"""The stage evaluate: what it leaves on disk, whichever outputs are asked for, and after it failed."""

import hashlib
import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from anomdino.adt.fusion import AdtModel, FusionRule, fuse
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.adt.store import load_adt, save_adt
from anomdino.io.boxes import Boxes, write_box_results
from anomdino.io.images import write_png
from anomdino.io.scores import write_score

SIZE = (48, 64)
PARAMS = """
benchmark:
  bootstrap: 0
  sets: {mine: {root: data/val/mine, layout: folder, min_predicted: 0, min_gt: 0}}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    sizes = {}
    for key in ("a", "b"):
        label = np.zeros(SIZE, np.uint8)
        label[10:20, 10:30] = 1
        write_png(
            tmp_path / f"data/val/mine/images/{key}.png", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        )
        write_png(tmp_path / f"data/val/mine/labels/{key}.png", label)
        score = rng.normal(size=SIZE).astype(np.float32) + 3 * (label == 1)
        write_score(tmp_path / f"data/scores/mine/score/{key}.npz", score.astype(np.float32))
        sizes[key] = SIZE
    box = Boxes(np.array([[8, 8, 32, 22], [2, 1, 5, 4]]), np.array([0.9, 0.05]))  # the second is not kept
    write_box_results(tmp_path / "data/boxes/mine.json", {"a": box, "b": Boxes.empty()}, sizes)
    save_adt(
        AdtModel(AdtNet(Architecture(), ScoreStatistics(0.3, 1.2)), FusionRule()),
        tmp_path / "data/models/adt",
    )
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(root):
    files = [
        root / "metrics.json",
        *(p for name in ("data/predictions", "plots", "eval", "report") for p in (root / name).rglob("*")),
    ]
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.is_file()
    }


def test_a_failed_evaluation_loses_nothing(project):
    stage = importlib.import_module("pipeline.evaluate")
    stage.evaluate()
    before = results(project)
    assert {
        "metrics.json",
        "report/index.html",
        "plots/roc.json",
        "data/predictions/mine/mask/a.png",
    } <= before.keys()
    np.savez(project / "data/scores/mine/score/b.npz", np.full(SIZE, np.nan, np.float32))
    with pytest.raises(SystemExit) as stopped:
        stage.evaluate()
    assert stopped.value.code == 2
    assert results(project) == before


def test_a_benchmark_of_clean_roads_goes_through(project):
    for key in ("a", "b"):
        write_png(project / f"data/val/mine/labels/{key}.png", np.zeros(SIZE, np.uint8))
    importlib.import_module("pipeline.evaluate").evaluate()
    block = json.loads((project / "metrics.json").read_text())["mine"]
    assert (block["images"], block["clean_images"]) == (2, 2)
    assert block["fused"]["AP"] is None
    assert "no anomalous pixel" in block["fused"]["reasons"]["AP"]
    assert block["mask"]["missed"] == 0
    details = json.loads((project / "data/predictions/mine/details.json").read_text())["outputs"]
    masks = np.stack(
        [np.array(Image.open(project / f"data/predictions/mine/mask/{key}.png")) for key in "ab"]
    )
    assert details["mask"]["clean_road"]["fpr"] == pytest.approx((masks > 0).mean(), abs=1e-6)
    assert "clean roads" in (project / "report/index.html").read_text()


@pytest.mark.parametrize("outputs", ["[raw]", "[fused, raw]", "[raw, boost]"])
def test_any_outputs_go_through(project, outputs):
    (project / "params.yaml").write_text(
        PARAMS.replace("bootstrap: 0", f"bootstrap: 0\n  outputs: {outputs}")
    )
    importlib.import_module("pipeline.evaluate").evaluate()
    names = outputs.strip("[]").split(", ")
    final = "fused" if "fused" in names else names[-1]
    model, box = load_adt(project / "data/models/adt"), Boxes(np.array([[8, 8, 32, 22]]), np.array([0.9]))
    score = np.load(project / "data/scores/mine/score/a.npz")["arr_0"]
    expected = fuse(score, box, replace(model, rule=replace(model.rule, output=final))).score
    stored = np.load(project / "data/predictions/mine/score/a.npz")["arr_0"]
    np.testing.assert_allclose(stored, expected, rtol=1e-5, atol=1e-6)
    mask = project / "data/predictions/mine/mask/a.png"
    assert mask.is_file() == (final == "fused")
    block = json.loads((project / "metrics.json").read_text())["mine"]
    assert {name for name in block if isinstance(block[name], dict)} - {"detector"} == {
        *names,
        *(["mask"] if final == "fused" else []),
    }
    page = (project / "report/index.html").read_text()
    assert ("mask of ADT-Net" in page) == (final == "fused")
    scores = [np.load(project / f"data/predictions/mine/score/{key}.npz")["arr_0"] for key in "ab"]
    assert entries_of(page)[0]["range"] == pytest.approx([np.min(scores), np.max(scores)], abs=1e-5)
    assert {entry["key"]: len(entry["boxes"]) for entry in entries_of(page)} == {"a": 1, "b": 0}
    assert f">{100 * block['detector']['pixels_in_boxes']:.2f}</td>" in page  # in percent, as all shares
    facts = {entry["key"]: entry["facts"] for entry in entries_of(page)}
    label = np.array(Image.open(project / "data/val/mine/labels/a.png"))
    threshold = json.loads((project / "data/predictions/mine/details.json").read_text())["outputs"][final][
        "threshold"
    ]
    drawn = np.array(Image.open(mask)) > 0 if final == "fused" else stored > np.float32(threshold)
    assert facts["a"]["false_area"] == pytest.approx((drawn & (label == 0)).mean(), abs=1e-6)


def test_labels_that_dvc_does_not_watch_are_named(project, capsys, tmp_path):
    importlib.import_module("pipeline.evaluate").evaluate()
    assert "dvc repro -fs evaluate" not in capsys.readouterr().err
    (project / "data/val/mine").rename(tmp_path / "elsewhere")
    (project / "params.yaml").write_text(PARAMS.replace("data/val/mine", str(tmp_path / "elsewhere")))
    importlib.import_module("pipeline.evaluate").evaluate()
    said = capsys.readouterr().err
    assert "benchmark.sets.mine" in said
    assert "dvc repro -fs evaluate" in said


def entries_of(page):
    content = page.split('<script id="entries" type="application/json">')[1].split("</script>")[0]
    return json.loads(content)


def test_without_predictions_the_report_has_no_pictures_and_is_of_this_run(project):
    stage = importlib.import_module("pipeline.evaluate")
    stage.evaluate()
    before = results(project)
    (project / "params.yaml").write_text(
        PARAMS.replace("bootstrap: 0", "bootstrap: 0\n  save_predictions: false")
    )
    write_score(
        project / "data/scores/mine/score/a.npz",
        np.random.default_rng(5).normal(size=SIZE).astype(np.float32),
    )
    stage.evaluate()
    after = results(project)
    assert after["report/index.html"] != before["report/index.html"]
    assert not any(name.endswith(".png") for name in after)
    page = (project / "report/index.html").read_text()
    assert entries_of(page) == []
    assert "save_predictions" in page
    ap = json.loads((project / "metrics.json").read_text())["mine"]["fused"]["AP"]
    assert f"{100 * ap:.2f}" in page
