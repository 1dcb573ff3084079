import numpy as np
import pytest

from anomdino.adt.box_score import choose_box_score
from anomdino.adt.dataset import list_items, read_item
from anomdino.adt.training import TrainingPlan, with_box_score
from anomdino.io.boxes import Boxes


def scene(rng):
    label = np.zeros((60, 80), np.uint8)
    label[20:35, 30:50] = 1
    label[:4] = 255
    good = [28, 18, 52, 36]
    noise = rng.uniform(0, 40, (6, 2))
    boxes = np.concatenate([[good], np.hstack([noise, noise + 15])])
    return Boxes(boxes, np.concatenate([[rng.uniform(0.4, 0.6)], rng.uniform(0.05, 0.38, 6)])), label


def f2(images, threshold):
    hit = alarm = anomalous = 0
    for boxes, label in images:
        mask = boxes.kept(threshold).mask(label.shape)
        hit, alarm = hit + (mask & (label == 1)).sum(), alarm + (mask & (label == 0)).sum()
        anomalous += (label == 1).sum()
    precision, recall = hit / max(1, hit + alarm), hit / anomalous
    return 5 * precision * recall / (4 * precision + recall) if hit else 0.0


def test_the_choice_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(0)
    images = [scene(rng) for _ in range(8)]
    chosen = choose_box_score(images)
    every = {step / 100: f2(images, step / 100) for step in range(1, 100)}
    assert every[chosen] == pytest.approx(max(every.values()))
    assert 0.3 < chosen < 0.6


def test_a_detector_with_lower_confidence_gets_a_lower_choice():
    rng = np.random.default_rng(0)
    images = [scene(rng) for _ in range(8)]
    halved = [(Boxes(boxes.xyxy, boxes.scores / 2), label) for boxes, label in images]
    assert choose_box_score(halved) == pytest.approx(choose_box_score(images) / 2, abs=0.011)


def test_useless_boxes_give_the_fallback():
    label = np.zeros((9, 9), np.uint8)
    assert choose_box_score([(Boxes.empty(), label)], fallback=0.42) == 0.42


def test_the_plan_takes_the_choice_everywhere(make_set):
    items = list_items(make_set())
    plan = with_box_score(TrainingPlan(), items)
    expected = choose_box_score((item.boxes, read_item(item)[1]) for item in items)
    assert plan.rule.box_score == plan.crops.box_score == expected
