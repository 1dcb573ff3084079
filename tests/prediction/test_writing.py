"""What is written of a prediction."""

from types import SimpleNamespace

import numpy as np
import pytest

from anomdino.adt.fusion import FusionRule
from anomdino.io.boxes import Boxes
from anomdino.io.images import read_image
from anomdino.prediction import writing


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
