"""ONNX files against the engine that everything else uses, by ONNX Runtime, and what goes wrong."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from anomdino import export
from anomdino.adt.fusion import AdtModel, FusionRule, fuse
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.adt.thresholds import Threshold
from anomdino.cascade import Cascade, find_models
from anomdino.cli.main import app
from anomdino.config.params import load_params
from anomdino.config.score import ScoreConfig
from anomdino.errors import BackendMissing, CheckpointError, DataError
from anomdino.export import export_onnx, open_session
from anomdino.io.boxes import Boxes
from anomdino.io.images import write_png
from anomdino.io.scores import read_score
from anomdino.scorer.base import ScorerSpec, build_scorer
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.options import ScoringOptions
from anomdino.scorer.refinement import Refinement
from anomdino.scorer.setup import engine_from
from anomdino.scorer.width_fusion import WidthFusion
from tests.scorer.test_inference import with_statistics

JOINED = ScoringOptions(widths=(48, 96), fusion="learned", refine=(120, 240), refine_net=True)
"""Windows of seven and of fourteen pixels in a picture of 72 columns."""


def picture(height, width, seed=0):
    source = np.random.default_rng(seed)
    coarse = source.integers(0, 256, (-(-height // 9), -(-width // 9), 3))
    return (
        (coarse.repeat(9, 0).repeat(9, 1)[:height, :width] + source.integers(0, 9, (height, width, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )


def engine(options, *, portable):
    torch.manual_seed(0)
    scorer = with_statistics(build_scorer(ScorerSpec("small")))
    for weights in scorer.parameters():
        if weights.ndim == 4 and len(weights) == scorer.spec.num_classes:
            weights.data.mul_(60)  # logits of several units, as a trained network's
    fusion, refinement = None, None
    if options.fusion == "learned":
        fusion = WidthFusion(options.widths, -3, 2)
        torch.nn.init.normal_(fusion.head.weight, std=0.3)
    if options.refine_net:
        refinement = Refinement(-3, 2)
    networks = {"fusion": fusion, "refinement": refinement}
    return ScoringEngine(scorer, options, consume=True, portable=portable, **networks)


def adt_for(scores, **rule):
    torch.manual_seed(1)
    net = AdtNet(Architecture(), ScoreStatistics(float(scores.mean()), float(scores.std())))
    return AdtModel(net.eval(), FusionRule(**rule))


def run(path, image):
    return open_session(path).run(["score", "mask"], {"image": image})


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (ScoringOptions(), (40, 64)),
        (ScoringOptions(kind="entropy", logits="closed"), (33, 47)),
        (ScoringOptions(kind="max_logit", widths=(80,)), (50, 50)),
        (ScoringOptions(max_pixels=4096, tile_overlap=16), (90, 120)),
        (JOINED, (45, 72)),
    ],
)
def test_a_file_computes_what_the_engine_and_adt_net_do(options, size, tmp_path):
    path, image = tmp_path / "a.onnx", picture(*size)
    scores = engine(options, portable=False).score(image).score
    adt = adt_for(scores, mask_floor=0.6, min_component=0)
    difference = export_onnx(engine(options, portable=True), adt, size, path)
    score, mask = run(path, image)
    assert score.shape == mask.shape == size
    assert (score.dtype, mask.dtype) == (np.float32, bool)
    np.testing.assert_allclose(score, scores, atol=2e-4, rtol=0)
    assert np.ptp(scores) > (0.1 if options.kind == "entropy" else 3)
    assert difference < 2e-4
    expected = fuse(scores, Boxes.empty(), adt)
    near = np.abs(expected.decision - expected.threshold) < 1e-4
    np.testing.assert_array_equal(mask[~near], expected.mask[~near])
    assert 0.01 < mask.mean() < 0.99  # both are there to be told apart
    assert near.mean() < 0.05


def test_a_stored_threshold_decides_the_mask(tmp_path):
    size, path = (40, 64), tmp_path / "a.onnx"
    image = picture(*size)
    scores = engine(ScoringOptions(), portable=False).score(image).score
    adt = adt_for(scores, output="fused", k=0.7)
    value = float(np.quantile(fuse(scores, Boxes.empty(), adt).score, 0.8))
    adt = replace(adt, threshold=Threshold(value, "fixed", "fused", {}))
    export_onnx(engine(ScoringOptions(), portable=True), adt, size, path)
    _, mask = run(path, image)
    expected = fuse(scores, Boxes.empty(), adt)
    near = np.abs(expected.score - value) < 1e-5
    np.testing.assert_array_equal(mask[~near], expected.mask[~near])
    assert 0.1 < mask.mean() < 0.3


def test_other_methods_signs_and_metadata_go_along(tmp_path):
    size, path = (40, 64), tmp_path / "a.onnx"
    scores = engine(ScoringOptions(), portable=False).score(picture(*size)).score
    adt = adt_for(scores, mask_floor=0.25, min_component=7)
    export_onnx(engine(ScoringOptions(), portable=True), adt, size, path, {"scorer": "abc"})
    model = onnx.load(path)
    onnx.checker.check_model(model)
    said = json.loads({prop.key: prop.value for prop in model.metadata_props}["anomdino"])
    assert said["scorer"] == "abc"
    assert said["input"] == "image: uint8 (40, 64, 3), RGB"
    assert said["widths"] == [64]
    assert said["mask"] == {"floor": 0.25, "least_component": 7, "threshold": "ADT-Net's without boxes"}
    assert said["score"]["mean"] == pytest.approx(scores.mean(), rel=1e-5)
    assert not [
        node for node in model.graph.node if node.domain not in {"", "ai.onnx"}
    ]  # any runtime has them


@pytest.mark.parametrize("name", ["segformer", "mask2former"])
def test_networks_of_transformers_are_exported_too(name, tmp_path):
    tiny = pytest.importorskip("tests.scorer.test_transformers").NETWORKS[name]
    torch.manual_seed(0)
    network = tiny()
    for weights in network.parameters():
        if weights.ndim > 1:
            weights.data.mul_(6)  # logits that are told apart
    network.save_pretrained(tmp_path / name)
    settings = {"source": "transformers", "transformers": str(tmp_path / name), "logits": "closed"}
    config = ScoreConfig(**settings, kind="max_softmax")
    image, path = picture(64, 96), tmp_path / "a.onnx"
    scores = engine_from(config, tmp_path)[0].score(image).score
    export_onnx(engine_from(config, tmp_path, portable=True)[0], adt_for(scores), (64, 96), path)
    np.testing.assert_allclose(run(path, image)[0], scores, atol=1e-5)
    assert np.ptp(scores) > 0.01


@pytest.mark.slow
def test_the_released_model_scores_as_predict_does(tmp_path):
    image, out = picture(144, 256), tmp_path / "released.onnx"
    write_png(tmp_path / "photo.png", image)
    call = CliRunner().invoke(
        app, ["export", "--models", "released", "--size", "256x144", "-o", str(out), "--width", "320"]
    )
    assert call.exit_code == 0, call.output
    assert "initializer" not in call.output  # the exporter keeps its commentary to itself
    assert "256 x 144" in call.output
    asked = ["predict", str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"), "--models", "released"]
    call = CliRunner().invoke(
        app, [*asked, "--no-boxes", "--width", "320", "--output", "raw", "--device", "cpu", "--no-overlay"]
    )
    assert call.exit_code == 0, call.output
    score, _ = run(out, image)
    expected = read_score(tmp_path / "out/score/photo.npz", (144, 256))
    np.testing.assert_allclose(score, expected, atol=1e-3)
    assert np.ptp(expected) > 1


def test_the_released_mask_is_that_of_the_cascade(tmp_path):
    folder, file = find_models(Path("released"), None)
    params = load_params(file, only=("score",))
    cascade = Cascade.load(folder, params, torch.device("cpu"), boxes=False).with_rule(min_component=0)
    image = picture(72, 128, 3)
    prediction = cascade.predict(image)
    graph = export.CascadeGraph(cascade.engine, cascade.adt)
    with torch.inference_mode():
        score, mask = graph(torch.from_numpy(image))
    np.testing.assert_allclose(score.numpy(), prediction.raw, atol=1e-4)
    np.testing.assert_array_equal(mask.numpy(), prediction.mask)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_and_nothing_is_left(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(export.torch.onnx, "export", lambda *_, **__: Written())
    with pytest.raises(BackendMissing, match=rf"{package}[\s\S]*anomdino\[onnx\]"):
        export_onnx(
            engine(ScoringOptions(), portable=True), adt_for(np.arange(9.0)), (20, 30), tmp_path / "a.onnx"
        )
    assert list(tmp_path.iterdir()) == []


class Written:
    """An exporter's result that writes a file."""

    def __init__(self):
        self.model = type("Model", (), {"metadata_props": {}})()

    def save(self, path):
        Path(path).write_bytes(b"graph")


@pytest.mark.parametrize("found", [(0.5, 0.0), (0.0, 0.1), (float("nan"), 0.0)])
def test_a_file_that_computes_something_else_is_not_kept(found, tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"before")
    monkeypatch.setattr(export.torch.onnx, "export", lambda *_, **__: Written())
    monkeypatch.setattr(export, "compare", lambda *_: found)
    with pytest.raises(CheckpointError, match="would not be what the networks are"):
        export_onnx(engine(ScoringOptions(), portable=True), adt_for(np.arange(9.0)), (20, 30), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_size_that_cannot_be_scored_is_refused(tmp_path):
    with pytest.raises(DataError, match="6 x 400.*64 megapixels"):
        export_onnx(
            engine(ScoringOptions(widths=(1600,)), portable=True),
            adt_for(np.arange(9.0)),
            (400, 6),
            tmp_path / "a.onnx",
        )


@pytest.mark.parametrize("size", ["1280", "0x7", "1280x720x3", "axb", "-4x5", "1e3x3"])
def test_sizes_are_width_by_height(size, tmp_path):
    call = CliRunner().invoke(app, ["export", "--size", size, "-o", str(tmp_path / "a.onnx")])
    assert call.exit_code
    assert "WIDTHxHEIGHT" in str(call.exception)
