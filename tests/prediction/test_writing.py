"""What is written of a prediction."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from anomdino.adt.fusion import FusionRule
from anomdino.errors import DiskError
from anomdino.io.boxes import Boxes
from anomdino.io.images import read_image
from anomdino.prediction import writing


def prediction(size=(40, 60)):
    """A score from 0.1 to 0.9 with a mask and a box of its upper part, and thresholds from 0.3 to 0.8."""
    score = np.linspace(0.9, 0.1, size[0] * size[1], dtype=np.float32).reshape(size)
    boxes = Boxes(np.array([[3.25, 4.5, 20.126, 9]]), np.array([0.61234]))
    threshold = np.linspace(0.3, 0.8, size[0] * size[1], dtype=np.float32).reshape(size)
    return SimpleNamespace(raw=score - 9, score=score, mask=score > 0.7, boxes=boxes, threshold=threshold)


def kinds(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


ALL = {"score/a.npz", "mask/a.png", "boxes/a.json", "overlay/a.jpg", "threshold/a.npz", "threshold/a.jpg"}


@pytest.mark.parametrize("level", [0.2, 0.7, 1.02])
def test_a_picture_leaves_what_is_usual_in_its_photo_dark(tmp_path, monkeypatch, level):
    seen = []
    monkeypatch.setattr(writing, "draw_overlay", lambda image, heat, span, **_: seen.append(span) or image)
    score = np.full((20, 30), level, np.float32)
    score[:5, :5] = 1.03
    found = SimpleNamespace(score=score, mask=score > 1.02, boxes=Boxes.empty())
    writer = writing.PredictionWriter(tmp_path, FusionRule(output="fused", b=0.03))
    writer.write("a", np.zeros((20, 30, 3), np.uint8), found)
    (span,) = seen
    heat = span.unit(score)
    assert heat[0, 0] == pytest.approx(1)
    assert heat[-1, -1] == 0 if level < 0.9 * 1.03 else heat[-1, -1] > 0.5
    assert (tmp_path / "overlay" / "a.jpg").is_file()


def test_a_picture_has_the_colours_of_its_photo(tmp_path):
    photo = np.full((40, 320, 3), (200, 60, 20), np.uint8)
    calm = np.zeros((40, 320), np.float32)
    found = SimpleNamespace(score=calm, mask=calm > 1, boxes=Boxes.empty(), threshold=calm)
    writing.PredictionWriter(tmp_path, FusionRule(), thresholds=True).write("a", photo, found)
    for kind in ("overlay", "threshold"):
        red, green, blue = read_image(tmp_path / kind / "a.jpg")[20, 100].astype(int)
        assert red > green + 80 > blue + 100, kind


def test_the_range_of_raw_scores_leaves_out_the_few_extreme_ones(tmp_path):
    score = np.linspace(-8, -7, 10_000, dtype=np.float32).reshape(100, 100)
    score[0, 0], score[-1, -1] = -90, 90
    span = writing.PredictionWriter(tmp_path, FusionRule(output="raw")).range_of(SimpleNamespace(score=score))
    np.testing.assert_allclose([span.low, span.high], [-7.98, -7.002], atol=1e-3)


def test_the_line_of_a_photo_says_what_was_found(tmp_path):
    found, photo = prediction(), np.zeros((40, 60, 3), np.uint8)
    line = writing.PredictionWriter(tmp_path, FusionRule()).write("a", photo, found)
    assert line == json.loads((tmp_path / "boxes/a.json").read_text())
    assert (line["height"], line["width"]) == (40, 60)
    assert (line["score_min"], line["score_max"]) == pytest.approx((0.1, 0.9), abs=1e-6)
    assert line["anomaly_share"] == pytest.approx(np.count_nonzero(found.score > 0.7) / 2400, rel=1e-5)
    assert line["boxes"] == [{"xyxy": [3.25, 4.5, 20.13, 9.0], "score": 0.6123}]


def test_one_anomalous_pixel_of_many_is_an_anomaly():
    mask = np.zeros((3000, 4000), bool)
    found = SimpleNamespace(score=np.zeros((2, 2)), mask=mask, boxes=Boxes.empty())
    assert writing.description(found)["anomaly_share"] == 0
    mask[7, 8] = True
    assert writing.description(found)["anomaly_share"] == pytest.approx(1 / 12_000_000, rel=1e-5)


@pytest.mark.parametrize(("output", "top"), [("hard", 1), ("soft", 1), ("boost", 1.25), ("fused", 1.25)])
def test_the_range_of_a_rule(tmp_path, output, top):
    span = writing.PredictionWriter(tmp_path, FusionRule(output=output, b=0.25)).span
    assert (span.low, span.high) == (0, top)


@pytest.mark.parametrize("detector", [True, False])
def test_pictures_show_what_was_found(tmp_path, monkeypatch, detector):
    drawn = []
    monkeypatch.setattr(
        writing, "draw_overlay", lambda image, *given, **named: drawn.append((*given, named)) or image
    )
    found = prediction()
    writer = writing.PredictionWriter(tmp_path, FusionRule(b=0.1), thresholds=True, boxes=detector)
    writer.write("b/a", np.zeros((40, 60, 3), np.uint8), found)
    (score, heat, named), (threshold, span, beside) = drawn
    assert (score is found.score, threshold is found.threshold) == (True, True)
    assert (heat.low, heat.high) == pytest.approx((0.5, 1.1))
    assert (span.low, span.high) == pytest.approx((0.3, 0.8))
    boxes = found.boxes if detector else None  # else the legend would speak of boxes that nothing looked for
    for given in (named, beside):
        assert given["mask"] is found.mask
        assert given["boxes"] is boxes
        assert given["title"] == "a"


def test_nothing_stays_of_a_photo_that_cannot_be_used_now(tmp_path):
    writer = writing.PredictionWriter(tmp_path, FusionRule(), thresholds=True)
    writer.write("a", np.zeros((40, 60, 3), np.uint8), prediction())
    assert kinds(tmp_path) == ALL
    writer.remove("a", tmp_path / "photo.png")
    assert kinds(tmp_path) == set()


def test_maps_of_frames_go_of_all_kinds(tmp_path):
    writer = writing.PredictionWriter(tmp_path, FusionRule(), thresholds=True)
    writer.write_maps("film/000003", prediction())
    assert len(kinds(tmp_path)) == 3
    writer.remove_frames("film")
    assert kinds(tmp_path) == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DiskError("a", "the disk is full")])
def test_a_photo_that_is_stopped_in_the_middle_leaves_nothing(tmp_path, monkeypatch, error):
    writer, photo = writing.PredictionWriter(tmp_path, FusionRule()), np.zeros((40, 60, 3), np.uint8)
    writer.write("a", photo, prediction())

    def stops(*_):
        raise error

    monkeypatch.setattr(writing, "atomic_write_json", stops)
    with pytest.raises(type(error)):
        writer.write("a", photo, prediction())
    assert kinds(tmp_path) == set()  # neither new maps beside old boxes, nor files that no summary lists
