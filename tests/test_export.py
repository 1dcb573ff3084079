"""ONNX files against the engine that everything else uses, by ONNX Runtime, and what goes wrong."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from anomdino import export  # noqa: E402
from anomdino.adt.fusion import AdtModel, FusionRule, fuse  # noqa: E402
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics  # noqa: E402
from anomdino.adt.store import save_adt  # noqa: E402
from anomdino.adt.thresholds import Threshold  # noqa: E402
from anomdino.cli.main import app  # noqa: E402
from anomdino.config.score import ScoreConfig  # noqa: E402
from anomdino.errors import BackendMissing, CheckpointError, ConfigError, DataError  # noqa: E402
from anomdino.export import Checked, export_onnx, open_session  # noqa: E402
from anomdino.io.boxes import Boxes  # noqa: E402
from anomdino.io.images import read_label, write_png  # noqa: E402
from anomdino.io.scores import read_score  # noqa: E402
from anomdino.scorer.base import ScorerSpec, build_scorer, save_scorer  # noqa: E402
from anomdino.scorer.inference import ScoringEngine  # noqa: E402
from anomdino.scorer.options import ScoringOptions  # noqa: E402
from anomdino.scorer.refinement import Refinement  # noqa: E402
from anomdino.scorer.setup import engine_from  # noqa: E402
from anomdino.scorer.width_fusion import WidthFusion  # noqa: E402
from anomdino.synthetic import scene  # noqa: E402
from tests.scorer.test_inference import with_statistics  # noqa: E402

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
        (ScoringOptions(kind="max_logit", widths=(80,), max_pixels=4096, tile_overlap=16), (66, 50)),
        (JOINED, (45, 72)),
        (replace(JOINED, window=0.5), (45, 72)),
    ],
)
def test_a_file_computes_what_the_engine_and_adt_net_do(options, size, tmp_path):
    path, image = tmp_path / "a.onnx", picture(*size)
    scores = engine(options, portable=False).score(image).score
    adt = adt_for(scores, mask_floor=0.6, min_component=0)
    checked = export_onnx(engine(options, portable=True), adt, size, path)
    score, mask = run(path, image)
    assert score.shape == mask.shape == size
    assert (score.dtype, mask.dtype) == (np.float32, bool)
    np.testing.assert_allclose(score, scores, atol=2e-4, rtol=0)
    assert np.ptp(scores) > (0.1 if options.kind == "entropy" else 3)
    assert checked.difference < 2e-4
    assert (checked.in_mask > 0, checked.flipped) == (True, 0)
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


def test_what_a_file_says_of_itself_and_asks_of_a_runtime(tmp_path):
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


def test_a_network_of_transformers_is_exported_too(tmp_path):
    pytest.importorskip("transformers")
    from tests.scorer.test_transformers import tiny_segformer

    torch.manual_seed(0)
    network, name = tiny_segformer(), "segformer"
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
    image, out = scene("road", 1, size=(144, 256)).image, tmp_path / "released.onnx"
    write_png(tmp_path / "photo.png", image)
    call = CliRunner().invoke(
        app, ["export", "--models", "released", "--size", "256x144", "-o", str(out), "--width", "320"]
    )
    assert call.exit_code == 0, call.output
    assert "initializer" not in call.output  # the exporter keeps its commentary to itself
    assert "256 x 144" in call.output
    asked = ["predict", str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"), "--models", "released"]
    call = CliRunner().invoke(
        app,
        [
            *asked,
            "--no-boxes",
            "--width",
            "320",
            "--output",
            "raw",
            "--min-component",
            "0",
            "--device",
            "cpu",
        ],
    )
    assert call.exit_code == 0, call.output
    score, mask = run(out, image)
    np.testing.assert_array_equal(mask, read_label(tmp_path / "out/mask/photo.png") > 0)
    assert 0 < mask.mean() < 1
    expected = read_score(tmp_path / "out/score/photo.npz", (144, 256))
    np.testing.assert_allclose(score, expected, atol=1e-3)
    assert np.ptp(expected) > 1


@pytest.fixture
def quick(monkeypatch):
    """An exporter that writes a file at once, and says how often it did."""
    calls = []

    def written(*_, **__):
        calls.append(1)
        return Written()

    monkeypatch.setattr(export.torch.onnx, "export", written)
    return calls


class Written:
    """An exporter's result that writes a file."""

    def __init__(self):
        self.model = type("Model", (), {"metadata_props": {}})()

    def save(self, path):
        Path(path).write_bytes(b"graph")


def small():
    return engine(ScoringOptions(), portable=True), adt_for(np.arange(9.0))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_anything_is_done(package, quick, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendMissing, match=rf"{package}[\s\S]*anomdino\[onnx\]"):
        export_onnx(*small(), (20, 30), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    assert not quick


@pytest.mark.parametrize("found", [Checked(0.1, 0.2, 0), Checked(0.0, 0.2, 1), Checked(float("nan"), 0.2, 0)])
def test_a_file_that_computes_something_else_is_not_kept(found, quick, tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"before")
    monkeypatch.setattr(export, "compare", lambda *_: found)
    with pytest.raises(CheckpointError, match="would not be what the networks are"):
        export_onnx(*small(), (20, 30), path)
    assert quick
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_the_runtime_refuses_is_not_kept(quick, tmp_path):
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot run it"):
        export_onnx(*small(), (20, 30), tmp_path / "a.onnx")  # b"graph" is none
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["\x1b[31mno operator\x1b[0m for it\nnext steps: ...", ""])
def test_what_the_exporter_cannot_do_is_said_in_a_line(text, tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise torch.onnx.OnnxExporterError(text)

    monkeypatch.setattr(export.torch.onnx, "export", refuses)
    with pytest.raises(ConfigError) as raised:
        export_onnx(*small(), (20, 30), tmp_path / "a.onnx")
    said = "no operator for it" if text else "OnnxExporterError"
    assert raised.value.cause == f"cannot be exported: {said}"
    assert list(tmp_path.iterdir()) == []


class Session:
    """A runtime that gives what it is told to."""

    def __init__(self, score, mask):
        self.results = score, mask

    def run(self, names, inputs):
        return self.results


def test_flips_count_where_they_are_no_matter_of_rounding(monkeypatch):
    scorer, image = engine(ScoringOptions(), portable=True), picture(40, 64)
    scores = scorer.score(image).score
    adt = adt_for(scores, mask_floor=0.6, min_component=2000)  # components of every size are in a file
    fused = fuse(scores, Boxes.empty(), adt, replace(adt.rule, min_component=0))
    assert fused.mask.sum() > fuse(scores, Boxes.empty(), adt).mask.sum()
    margin = np.abs(fused.decision - fused.threshold)
    clear, close = (np.unravel_index(pick(margin), margin.shape) for pick in (np.argmax, np.argmin))
    assert margin[close] < 1e-3 < margin[clear]
    for place, flips in ((clear, 1), (close, 0)):
        mask = fused.mask.copy()
        mask[place] = ~mask[place]
        monkeypatch.setattr(export, "open_session", lambda _, mask=mask: Session(scores + 0.25, mask))
        checked = export.compare(scorer, adt, image, "a.onnx")
        assert checked.flipped == flips
        assert checked.difference == pytest.approx(0.25, abs=1e-6)
        assert checked.in_mask == (mask & fused.mask).mean()


@pytest.mark.parametrize(
    ("size", "words"), [((400, 6), "6 x 400.*64 megapixels"), ((99_999, 99_999), "more than 64 megapixels")]
)
def test_a_size_that_cannot_be_scored_is_refused(size, words, quick, tmp_path):
    with pytest.raises(DataError, match=words):
        export_onnx(
            engine(ScoringOptions(widths=(1600,)), portable=True),
            adt_for(np.arange(9.0)),
            size,
            tmp_path / "a.onnx",
        )
    assert not quick


def test_engines_that_other_runtimes_cannot_follow_are_refused(quick, tmp_path, monkeypatch):
    _, adt = small()
    with pytest.raises(ConfigError, match="portable"):
        export_onnx(engine(ScoringOptions(), portable=False), adt, (20, 30), tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match="float32"):
        export_onnx(
            engine(ScoringOptions(precision="bf16"), portable=True), adt, (20, 30), tmp_path / "a.onnx"
        )
    monkeypatch.setattr(export, "LARGEST", 1000)
    with pytest.raises(ConfigError, match="of weights"):
        export_onnx(*small(), (20, 30), tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match=r"name it a\.onnx"):
        export_onnx(*small(), (20, 30), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="is a folder"):
        export_onnx(*small(), (20, 30), tmp_path)
    assert not quick


def test_weights_of_all_networks_count(quick, tmp_path, monkeypatch):
    scorer = engine(JOINED, portable=True)
    alone, *others = (
        sum(tensor.nbytes for tensor in network.state_dict().values())
        for network in (scorer.network, scorer.fusion, scorer.refinement)
    )
    monkeypatch.setattr(export, "LARGEST", alone + max(others))
    with pytest.raises(ConfigError, match="of weights"):
        export_onnx(scorer, adt_for(np.arange(9.0)), (45, 72), tmp_path / "a.onnx")
    assert not quick


def test_a_threshold_that_was_calibrated_with_boxes_is_refused(quick, tmp_path):
    scorer, adt = small()
    stored = Threshold(0.5, "fpr:0.1", adt.rule.output, {}, asdict(adt.rule), boxes=True)
    with pytest.raises(ConfigError, match="calibrated with boxes"):
        export_onnx(scorer, replace(adt, threshold=stored), (20, 30), tmp_path / "a.onnx")
    assert not quick


def test_precision_and_compilation_do_not_reach_a_portable_engine(tmp_path):
    save_scorer(build_scorer(ScorerSpec("small")), tmp_path)
    made, _ = engine_from(ScoreConfig(precision="bf16", compile=True), tmp_path, portable=True)
    assert (made.dtype, made.options.compile, made.portable) == (torch.float32, False, True)


def test_the_command_takes_other_widths_and_refuses_maps(quick, tmp_path, monkeypatch):
    save_scorer(build_scorer(ScorerSpec("small")), tmp_path / "models/rpl")
    save_adt(adt_for(np.arange(9.0)), tmp_path / "models/adt")
    (tmp_path / "params.yaml").write_text("score: {}\n")
    (tmp_path / "maps.yaml").write_text("score: {source: maps}\n")
    seen = []
    monkeypatch.setattr(export, "compare", lambda engine, *_: seen.append(engine) or Checked(0.0, 0.0, 0))
    asked = ["export", "--models", str(tmp_path), "--size", "64x40", "-o", str(tmp_path / "a.onnx")]
    call = CliRunner().invoke(app, [*asked, "--width", "96", "--width", "48", "--window", "0.5"])
    assert call.exit_code == 0, call.output
    assert seen[0].options.window == 0.5
    assert "64 x 40" in call.output
    assert "none of its pixels is in the mask" in call.output
    assert seen[0].options.widths == (48, 96)
    call = CliRunner().invoke(app, [*asked, "--params", str(tmp_path / "maps.yaml")])
    assert "score.source" in str(call.exception)


@pytest.mark.parametrize("size", ["1280", "0x7", "1280x720x3", "axb", "-4x5", "1e3x3"])
def test_sizes_are_width_by_height(size, tmp_path):
    call = CliRunner().invoke(app, ["export", "--size", size, "-o", str(tmp_path / "a.onnx")])
    assert call.exit_code
    assert "WIDTHxHEIGHT" in str(call.exception)
