import json
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anomdino.detector.quality import (
    THRESHOLDS,
    Coverage,
    coco_metrics,
    rounded_down,
    threshold_at_budget,
)
from anomdino.io.boxes import Boxes, read_box_results, write_box_results


def box_iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_recall(predicted, truth, limit):
    """Average recall, boxes matched greedily by score, one threshold after the other."""
    recalls = []
    for threshold in np.arange(0.5, 1.0, 0.05):
        found = total = 0
        for key, objects in truth.items():
            total += len(objects)
            boxes = predicted[key]
            taken = set()
            for index in np.argsort(-boxes.scores, kind="stable")[:limit]:
                overlaps = [
                    -1.0 if j in taken else box_iou(boxes.xyxy[index], o) for j, o in enumerate(objects)
                ]
                if overlaps and max(overlaps) >= threshold - 1e-10:
                    taken.add(int(np.argmax(overlaps)))
                    found += 1
        recalls.append(found / total)
    return float(np.mean(recalls))


def random_set(seed):
    rng = np.random.default_rng(seed)
    predicted, truth = {}, {}
    for index in range(3):
        low = rng.integers(0, 60, (rng.integers(0, 4), 2))
        objects = np.concatenate([low, low + rng.integers(10, 40, low.shape)], 1).astype(np.float32)
        noise = rng.normal(0, 3, objects.shape)
        strangers = rng.integers(0, 60, (2, 2))
        extra = np.concatenate([strangers, strangers + 20], 1)
        boxes = np.concatenate([objects + noise, extra]).astype(np.float32)
        truth[str(index)] = objects
        predicted[str(index)] = Boxes(boxes, rng.permutation(len(boxes)) / 10 + 0.05)
    truth["sure"] = np.array([[0, 0, 10, 10]], np.float32)
    predicted["sure"] = Boxes(np.array([[0, 0, 10, 9.3]]), np.array([0.9]))
    return predicted, truth


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_average_recall_equals_a_slow_formulation(seed):
    predicted, truth = random_set(seed)
    metrics = coco_metrics(predicted, truth)
    for limit in (1, 10, 100):
        assert metrics.ar[limit] == pytest.approx(slow_recall(predicted, truth, limit))


def test_ap50_by_hand():
    truth = {"a": np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)}
    boxes = Boxes(np.array([[0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 31]]), np.array([0.9, 0.8, 0.7]))
    # precision 1 up to recall 0.5, then 2/3: 51 of the 101 recall points at 1, 50 at 2/3
    assert coco_metrics({"a": boxes}, truth).ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_no_truth_and_no_boxes():
    nothing = coco_metrics({"a": Boxes.empty()}, {"a": np.zeros((0, 4), np.float32)})
    assert nothing.ap50 is None
    assert nothing.ar == {1: None, 10: None, 100: None}
    missed = coco_metrics({"a": Boxes.empty()}, {"a": np.array([[0, 0, 5, 5]], np.float32)})
    assert missed.ap50 == 0.0
    assert missed.ar[100] == 0.0


def slow_coverage(items, threshold):
    pixels = inside = components = covered = boxes = 0
    for kept, label in items:
        kept = kept.kept(threshold)
        boxes += len(kept)
        mask = np.zeros(label.shape, bool)
        for x0, y0, x1, y1 in kept.xyxy:
            for y in range(label.shape[0]):
                for x in range(label.shape[1]):
                    mask[y, x] |= x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1
        anomaly = label == 1
        pixels += anomaly.sum()
        inside += (anomaly & mask).sum()
        numbers, count = ndimage.label(anomaly, np.ones((3, 3)))
        for number in range(1, count + 1):
            components += 1
            covered += (mask & (numbers == number)).sum() * 2 > (numbers == number).sum()
    return pixels, inside, components, covered, boxes


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_coverage_equals_a_slow_formulation_and_merges(seed):
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(3):
        label = (ndimage.uniform_filter(rng.random((14, 17)), 3) > 0.56).astype(np.uint8)
        label[rng.random(label.shape) < 0.05] = 255
        low = rng.integers(0, 12, (3, 2))
        xyxy = np.concatenate([low, low + rng.integers(1, 9, low.shape)], 1).astype(np.float32)
        items.append((Boxes(xyxy, rng.choice([0.12, 0.37, 0.384, 0.62, 0.88], 3)), label))
    whole, merged = Coverage(), Coverage()
    for item in items:
        whole.add(*item)
        single = Coverage()
        single.add(*item)
        merged = merged + single
    assert whole.curve() == merged.curve()
    scores = sorted({float(score) for found, _ in items for score in found.scores})
    between = [(low + high) / 2 for low, high in pairwise(scores)]
    rows = [whole.at(threshold) for threshold in (0.17, *scores, *between)]  # off the grid of the curve
    for row in whole.curve() + rows:
        pixels, inside, components, covered, boxes = slow_coverage(items, row["threshold"])
        assert (whole.pixels, whole.components) == (pixels, components)
        assert row["pixels_inside"] == (inside / pixels if pixels else None)
        assert row["components_inside"] == (covered / components if components else None)
        assert row["boxes_per_image"] == boxes / len(items)
    assert [row["threshold"] for row in whole.curve()] == list(THRESHOLDS)


def test_suggested_threshold_keeps_the_wanted_share():
    coverage = Coverage()
    label = np.zeros((10, 60), np.uint8)
    boxes = []
    for index in range(5):
        label[2:6, 12 * index : 12 * index + 6] = 1
        boxes.append([12 * index, 2, 12 * index + 6, 6])
    coverage.add(Boxes(np.array(boxes), np.array([0.9, 0.8, 0.7, 0.6, 0.2])), label)
    assert coverage.suggest_threshold(0.8) == pytest.approx(0.6)
    assert coverage.suggest_threshold(0.81) == pytest.approx(0.2)
    assert coverage.at(0.6)["components_inside"] == pytest.approx(0.8)
    assert Coverage().suggest_threshold(0.95) is None
    coverage.add(Boxes.empty(), label)
    assert coverage.suggest_threshold(0.95) == pytest.approx(0.2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_boxes_of_the_file_reach_the_target_at_the_suggestion(tmp_path_factory, seed, target):
    """As stored, and as the stage prints it; kept from the JSON, and from the table beside it, in double precision."""
    rng, size = np.random.default_rng(seed), (10, 240)
    label = np.zeros(size, np.uint8)
    for index in range(20):
        label[2:8, 12 * index : 12 * index + 8] = 1
    xyxy = np.array([[12 * index, 2, 12 * index + 8, 8] for index in range(20)], np.float32)
    file = tmp_path_factory.mktemp("boxes") / "train.json"
    boxes = Boxes(xyxy, rng.uniform(0.05, 0.9, 20))
    coverage = Coverage()
    coverage.add(boxes.as_written(size), label)
    stored = coverage.suggest_threshold(target)
    write_box_results(file, {"a": boxes}, {"a": size})
    read = read_box_results(file, ["a"])["a"]
    scores = [row["score"] for row in json.loads(file.read_text())]
    (table,) = pq.read_table(file.with_suffix(".parquet")).to_pylist()
    for threshold in (stored, rounded_down(stored, 4)):
        needed = int(np.ceil(target * 20 - 1e-9))
        assert len(read.kept(threshold)) >= needed
        assert sum(score >= threshold for score in scores) >= needed
        assert sum(score >= threshold for score in table["score"]) >= needed
    assert len(read.kept(stored + 2e-6)) < needed
    assert coverage.at(stored)["components_inside"] == len(read.kept(stored)) / 20


def test_clean_images_count_their_boxes():
    coverage = Coverage()
    clean = np.zeros((8, 8), np.uint8)
    coverage.add(Boxes(np.array([[0, 0, 4, 4], [1, 1, 3, 3]]), np.array([0.5, 0.2])), clean)
    coverage.add(Boxes.empty(), np.full((8, 8), 255, np.uint8))
    row = coverage.at(0.3)
    assert row["boxes_per_clean_image"] == pytest.approx(0.5)
    assert row["pixels_inside"] is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 2.0, 50.0]))
def test_threshold_of_a_budget_is_the_lowest_that_keeps_it(seed, budget):
    rng = np.random.default_rng(seed)
    sets = [Boxes(np.tile([0, 0, 5, 5], (n, 1)), rng.choice(8, n) / 10 + 0.1) for n in rng.integers(0, 7, 4)]

    def kept(threshold):
        return sum(len(found.kept(threshold)) for found in sets) / len(sets)

    threshold = threshold_at_budget(sets, budget)
    assert kept(threshold) <= budget
    lower = [score for found in sets for score in found.scores.tolist() if score < threshold]
    if lower:
        assert kept(max(lower)) > budget


def test_coverage_over_other_thresholds():
    label = np.zeros((10, 20), np.uint8)
    label[2:6, 2:6] = 1
    label[2:6, 12:16] = 1
    coverage = Coverage.over([0.33, 0.71])
    coverage.add(Boxes(np.array([[2, 2, 6, 6], [12, 2, 16, 6]]), np.array([0.7, 0.8])), label)
    rows = coverage.curve()
    assert [row["components_inside"] for row in rows] == [1.0, 0.5]
    assert [row["boxes_per_image"] for row in rows] == [2.0, 1.0]


def test_large_boxes_and_loose_ones_count_and_so_do_other_limits():
    truth = {"a": np.array([[0, 0, 100, 100], [200, 200, 300, 300]], np.float32)}
    loose = Boxes(np.array([[0, 0, 100, 60], [200, 200, 300, 300]]), np.array([0.9, 0.8]))  # IoU 0.6 and 1
    metrics = coco_metrics({"a": loose}, truth, limits=(2, 1))
    assert metrics.ap50 == pytest.approx(1.0)
    stranger = Boxes(np.concatenate([[[500, 500, 520, 520]], loose.xyxy]), np.array([0.95, 0.9, 0.8]))
    assert coco_metrics({"a": stranger}, truth, limits=(2, 3)).ar[2] == pytest.approx(0.3 / 2)
    # within one box: 0.5, 0.55 and 0.6 find one object of two; within two: those both, the others one
    assert metrics.ar == {1: pytest.approx(0.3 / 2), 2: pytest.approx(0.3 * 1.0 + 0.7 * 0.5)}


def test_clean_images_are_merged_and_thresholds_compared_in_single_precision():
    clean = np.zeros((8, 8), np.uint8)
    parts = [Coverage(), Coverage()]
    for part in parts:
        part.add(Boxes(np.array([[0, 0, 4, 4]]), np.array([0.7])), clean)  # 0.7 in float32 is less than 0.7
    merged = (parts[0] + parts[1]).at(0.7)
    assert merged["boxes_per_clean_image"] == merged["boxes_per_image"] == 1.0
