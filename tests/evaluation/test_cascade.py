"""The cascade's outputs side by side, with an ADT-Net that was never trained: what counts is the wiring."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from anomdino.adt.fusion import AdtModel, fuse
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.adt.thresholds import Threshold
from anomdino.benchmarks import ComponentLimits, open_benchmark
from anomdino.errors import DataError
from anomdino.evaluation import CascadeOutputs, EvaluationSettings, evaluate_benchmark, write_metrics
from anomdino.evaluation.summary import curve_points
from anomdino.io.boxes import Boxes
from anomdino.io.scores import write_score

SIZE = (64, 96)


@pytest.fixture
def cascade(tmp_path):
    rng = np.random.default_rng(3)
    boxes = {}
    for index in range(4):
        label = np.zeros(SIZE, np.uint8)
        label[20:36, 30:60] = index != 2
        score = (rng.normal(-10, 0.5, SIZE) + 1.5 * label).astype(np.float32)
        name = f"f{index}"
        for folder, content in (("original", np.zeros((*SIZE, 3), np.uint8)), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(content).save(tmp_path / folder / f"{name}.png")
        write_score(tmp_path / f"scores/{name}.npz", score)
        if index != 3:
            boxes[name] = Boxes(np.array([[29, 19, 61, 37], [0, 0, 5, 5]]), np.array([0.9, 0.1]))
    semantic = np.zeros((19, 16, 24), np.float16)
    semantic[13, :8], semantic[0, 8:] = 1, 1
    for index in range(4):
        (tmp_path / "maps").mkdir(exist_ok=True)
        np.savez(tmp_path / f"maps/f{index}.npz", semantic=semantic, image_size=np.array(SIZE))
    net = AdtNet(Architecture(), ScoreStatistics(mean=-10.0, std=0.6)).eval()
    source = CascadeOutputs(
        tmp_path / "scores", boxes, AdtModel(net), min_component=6, maps=tmp_path / "maps"
    )
    return open_benchmark("road_anomaly", tmp_path, name="mine", limits=ComponentLimits(6, 4)), source


def test_outputs_are_those_of_the_fusion(cascade):
    benchmark, source = cascade
    predictions = source.predictions(benchmark.samples[0])
    assert list(predictions) == ["raw", "hard", "soft", "boost", "fused"]
    score = predictions["raw"].score
    alone = fuse(score, source.boxes(benchmark.samples[0]), source.model)
    np.testing.assert_array_equal(predictions["fused"].score, alone.score)
    assert predictions["raw"].mask is None
    assert predictions["fused"].mask is not None


def test_the_mask_goes_by_the_models_own_threshold(cascade):
    benchmark, source = cascade
    sample = benchmark.samples[0]
    score = source.predictions(sample)["fused"].score
    value = float(np.quantile(score, 0.9))
    rule = asdict(source.model.rule)
    stored = Threshold(value, "conformal_miss:0.1", "fused", {}, rule, boxes=True)
    mask = replace(source, model=replace(source.model, threshold=stored)).predictions(sample)["fused"].mask
    np.testing.assert_array_equal(mask, score >= np.float32(value))


def test_objects_are_outlined_by_the_benchmarks_photos(cascade, tmp_path):
    benchmark, source = cascade
    sample = benchmark.samples[0]
    photo = np.full((*SIZE, 3), 90, np.uint8)
    photo[20:36, 30:60] = (200, 40, 30)
    Image.fromarray(photo).save(sample.image)
    outlining = replace(source.model, rule=replace(source.model.rule, outline=True))
    predicted = replace(source, model=outlining).predictions(sample)["fused"]
    score = source.predictions(sample)["raw"].score
    alone = fuse(score, source.boxes(sample), outlining, image=photo)
    np.testing.assert_array_equal(predicted.score, alone.score)
    assert (predicted.score != source.predictions(sample)["fused"].score).any()


def test_every_output_and_the_mask_is_reported(cascade, tmp_path):
    benchmark, source = cascade
    saved = []
    result = evaluate_benchmark(
        benchmark, source, EvaluationSettings(bootstrap=20), save=lambda sample, _: saved.append(sample.key)
    )
    assert saved == ["f0", "f1", "f2", "f3"]
    block = write_metrics(tmp_path / "metrics.json", [result], seed=0)["mine"]
    assert {"raw", "hard", "soft", "boost", "fused", "mask"} <= set(block)
    assert block["clean_images"] == 1
    assert block["detector"]["pixels_in_boxes"] == pytest.approx(2 / 3, abs=1e-6)
    assert block["detector"]["objects_in_boxes"] == pytest.approx(2 / 3, abs=1e-6)
    assert 0 < block["detector"]["AR1"] <= block["detector"]["AR10"] <= block["detector"]["AR100"] < 1
    assert block["detector"]["boxes_per_clean_image"] == 1  # of the two on the frame f2, one is sure


def test_boxes_count_with_the_confidence_that_the_network_goes_by(cascade):
    """The weights turn the sure box down and the other one up: report and shares inside boxes must follow."""
    benchmark, source = cascade
    net = AdtNet(Architecture(box_evidence=True), ScoreStatistics(mean=-10.0, std=0.6)).eval()
    net.box_weights.copy_(torch.tensor([0.0, -1.0, 0.0, 0.0]))
    turned = replace(source, model=AdtModel(net))
    sample = benchmark.samples[0]
    np.testing.assert_allclose(turned.boxes(sample).scores, [0.1, 0.9], rtol=1e-5)
    score = turned.predictions(sample)["raw"].score
    given = source.boxes(sample)  # fuse weighs the detector's boxes itself, once
    np.testing.assert_array_equal(
        turned.predictions(sample)["fused"].score, fuse(score, given, turned.model).score
    )
    np.testing.assert_array_equal(fuse(score, given, turned.model).boxes.xyxy, given.xyxy[1:])
    detector = evaluate_benchmark(benchmark, turned, EvaluationSettings(bootstrap=0)).detector
    assert detector["pixels_in_boxes"] == 0
    assert len(turned.boxes(benchmark.samples[3])) == 0


def test_without_boxes_the_fused_score_ranks_as_the_raw_one(cascade):
    benchmark, source = cascade
    sample = benchmark.samples[3]
    predictions = source.predictions(sample)
    raw, fused = (predictions[name].score.ravel() for name in ("raw", "fused"))
    np.testing.assert_array_equal(np.argsort(raw, kind="stable"), np.argsort(fused, kind="stable"))


def test_false_positives_are_counted_by_closed_set_class(cascade):
    benchmark, source = cascade
    result = evaluate_benchmark(benchmark, source, EvaluationSettings(bootstrap=0))
    counts = result.false_positive_classes["raw"]
    assert counts.sum() == sum(row["false_positive_pixels"] for row in result.rows_of("raw"))
    assert set(np.flatnonzero(counts)) <= {0, 13}
    assert counts[13] > 0
    rows = [row for row in curve_points([result])["false_positives"] if row["output"] == "raw"]
    assert {row["class"] for row in rows} <= {"road", "car"}
    assert sum(row["share"] for row in rows) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("content", [b"", b"<html>", "one array"])
def test_a_damaged_map_of_classes_is_named(cascade, content):
    benchmark, source = cascade
    sample = next(iter(benchmark))
    path = source.maps / f"{sample.key}.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_score(path, np.zeros((3, 4), np.float32))
    with pytest.raises(DataError, match=rf"{path.name}: holds no uncertainty maps"):
        source.classes(sample)
