"""The panels that show what ADT-Net decides."""

import matplotlib as mpl
import numpy as np
import torch

from anomdino.adt.fusion import AdtModel, FusionRule, fuse
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.adt.pictures import draw_decision
from anomdino.io.boxes import Boxes
from anomdino.io.images import read_image


def test_the_four_panels_show_score_surface_thresholds_and_mask(tmp_path):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    score = rng.normal(-2, 1, (40, 60)).astype(np.float32)
    score[10:20, 15:40] += 4
    label = np.zeros((40, 60), np.uint8)
    label[12:24, 20:45] = 1
    label[:3] = 255
    boxes = Boxes(np.array([[14, 9, 42, 22]]), np.array([0.9]))
    model = AdtModel(AdtNet(Architecture(), ScoreStatistics(-2, 1)).eval(), FusionRule(b=0.25))
    draw_decision(tmp_path / "a.png", score, label, boxes, model)
    panels = read_image(tmp_path / "a.png")
    assert panels.shape == (40, 4 * 60, 3)
    fused, inferno = fuse(score, boxes, model), mpl.colormaps["inferno"]
    ranges = (fused.score / 1.25, (fused.decision - 0.3) / 0.5, (fused.threshold - 0.3) / 0.5)
    for number, values in enumerate(ranges):
        expected = 255 * inferno(np.clip(values, 0, 1))[..., :3]
        assert np.abs(panels[:, 60 * number : 60 * (number + 1)] - expected).max() < 6, number
    decided, frame = panels[:, 180:], np.zeros((40, 60), bool)
    frame[9, 14:42] = frame[21, 14:42] = frame[9:22, 14] = frame[9:22, 41] = True
    assert (decided[frame] == (255, 220, 0)).all()
    void = label == 255
    for where, colour in (
        (void, (90, 90, 90)),
        (~void & (label == 1) & fused.mask, (0, 200, 0)),
        (~void & (label == 0) & fused.mask, (220, 0, 0)),
        (~void & (label == 1) & ~fused.mask, (40, 80, 255)),
        (~void & (label == 0) & ~fused.mask, (0, 0, 0)),
    ):
        assert (where & ~frame).sum() > 20
        assert (decided[where & ~frame] == colour).all()


def test_raw_scores_below_zero_are_drawn_from_the_lowest_to_the_highest(tmp_path):
    score = np.linspace(-9, -2, 600, dtype=np.float32).reshape(20, 30)
    model = AdtModel(AdtNet(Architecture(), ScoreStatistics(-5, 2)).eval(), FusionRule(output="raw"))
    draw_decision(tmp_path / "a.png", score, np.zeros((20, 30), np.uint8), Boxes.empty(), model)
    panel = read_image(tmp_path / "a.png")[:, :30].astype(float)
    expected = 255 * mpl.colormaps["inferno"]((score + 9) / 7)[..., :3]
    assert np.abs(panel - expected).max() < 6
