"""What is written of a prediction."""

from types import SimpleNamespace

import numpy as np
import pytest

from anomdino.adt.fusion import FusionRule
from anomdino.io.boxes import Boxes
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
