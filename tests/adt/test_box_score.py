import numpy as np
import pytest

from anomdino.adt.box_score import choose_box_score, choose_for_objects
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
    for choose in (choose_box_score, choose_for_objects):
        assert choose([(Boxes.empty(), label)], fallback=0.42) == 0.42
    assert (
        choose_for_objects([(Boxes(np.array([[1, 1, 5, 5]]), np.array([0.9])), label)], fallback=0.42) == 0.42
    )


def test_by_objects_a_small_one_counts_as_much_as_a_large_one():
    """A sure box on a large object, less sure ones on small objects, boxes around nothing below and between them."""
    label = np.zeros((100, 200), np.uint8)
    label[5:85, 5:85] = 1
    label[20:24, 120:124] = label[60:64, 150:154] = 1
    boxes = [[5, 5, 85, 85], [120, 20, 124, 24], [150, 60, 154, 64], [88, 0, 200, 18]]
    boxes += [[100 + 8 * i, 80, 106 + 8 * i, 95] for i in range(8)]
    confidence = [0.9, 0.25, 0.2, 0.22, *[0.1] * 8]
    images = [(Boxes(np.array(boxes), np.array(confidence)), label)]
    held = np.arange(12) < 3

    def by_boxes(threshold):
        kept = np.array(confidence, np.float32) >= np.float32(threshold)
        precision, recall = (kept & held).sum() / max(1, kept.sum()), (kept & held).sum() / held.sum()
        return 5 * precision * recall / (4 * precision + recall) if (kept & held).any() else 0.0

    assert choose_for_objects(images) == max((step / 100 for step in range(1, 100)), key=by_boxes) == 0.11
    assert (
        choose_box_score(images) == 0.23
    )  # by pixels the second small one is not worth the large box around nothing


def test_the_plan_takes_the_choice_everywhere(make_set):
    items = list_items(make_set())
    plan = with_box_score(TrainingPlan(), items)
    expected = choose_box_score((item.boxes, read_item(item)[1]) for item in items)
    assert plan.rule.box_score == plan.crops.box_score == expected


@pytest.mark.parametrize("seed", [4, 5, 10, 11])  # F1.4 would choose otherwise
def test_recall_counts_twice_where_confidences_tell_little(seed):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(6):
        label = np.zeros((50, 70), np.uint8)
        label[15:25, 20:40] = 1
        corners = np.concatenate([rng.normal([20, 15], 8, (4, 2)), rng.uniform(0, [60, 40], (4, 2))]).clip(0)
        images.append(
            (Boxes(np.hstack([corners, corners + np.array([20, 10])]), rng.uniform(0.02, 0.98, 8)), label)
        )
    every = {step / 100: f2(images, step / 100) for step in range(1, 100)}
    assert every[choose_box_score(images)] == pytest.approx(max(every.values()))
