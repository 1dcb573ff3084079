import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from anomdino.config.detect import DetectConfig, NegativesConfig
from anomdino.detector import run as run_module
from anomdino.detector import runner as runner_module
from anomdino.detector.architecture import build_detector
from anomdino.detector.dataset import train_transforms
from anomdino.detector.infer import (
    Detector,
    best_boxes,
    non_maximum_suppression,
    suppress_covered,
    with_map_means,
)
from anomdino.detector.mmdet_parts import Chain
from anomdino.detector.quality import Coverage
from anomdino.detector.records import split_folds
from anomdino.detector.run import Input, detect_out_of_fold, detect_set
from anomdino.detector.training import map_statistics, split_of, train_detector
from anomdino.errors import CheckpointError, DataError, ProtocolError, TrainingError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.boxes import Boxes, image_id, read_box_results
from anomdino.io.images import read_label
from tests.detector.conftest import CLASSES, make_maps, read_set, small_config

CPU = torch.device("cpu")


def train(composed, tmp_path, folds=1, name="detector", **changes):
    config = small_config(**changes)
    for fold in split_folds(read_set(composed), folds, 0.4, 0):
        folder = tmp_path / name if fold.name == "final" else tmp_path / name / fold.name
        train_detector(config, fold, folder, tmp_path / "work", 5, CPU)
    return tmp_path / name


def test_parameters_of_the_same_settings_are_one_group_of_the_optimiser(monkeypatch):
    config = small_config(lr=1e-3, backbone_lr_factor=0.5, fusion_lr_factor=2.0, weight_decay=0.01)
    detector = build_detector(config, CLASSES)
    groups = runner_module._optimiser(detector, config, CPU).optimizer.param_groups
    monkeypatch.setattr(runner_module, "_merged", list)
    single = runner_module._optimiser(detector, config, CPU).optimizer.param_groups
    trained = sum(parameter.requires_grad for parameter in detector.parameters())
    assert len(single) == sum(len(group["params"]) for group in groups) == trained

    def settings(groups):
        return {id(p): {**group, "params": None} for group in groups for p in group["params"]}

    assert settings(groups) == settings(single)
    kinds = {(group["lr"], group["weight_decay"]) for group in groups}
    assert len(groups) == len(kinds) > 4


@pytest.mark.slow
def test_trains_saves_loads_and_detects(composed, tmp_path):
    folder = train(composed, tmp_path)
    history = json.loads((folder / "history.json").read_text())
    assert [row["step"] for row in history["losses"]] == [2, 4]
    assert [row["step"] for row in history["evaluations"]] == [2, 4]
    assert {"loss", "loss_cls", "loss_orth"} <= set(history["losses"][0])
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())

    detect = DetectConfig(folds=1, min_score=0.0)
    report, quality = detect_out_of_fold(
        folder, read_set(composed), tmp_path / "boxes" / "train.json", detect, CPU
    )
    assert report.images == 2
    split = json.loads((folder / "split.json").read_text())
    boxes = read_box_results(tmp_path / "boxes" / "train.json", split["predict"])
    table = pq.read_table(tmp_path / "boxes" / "train.parquet").to_pylist()
    assert [row["image"] for row in table] == sorted(split["predict"])
    for row in table:
        found = boxes[row["image"]]
        assert row["image_id"] == image_id(row["image"])
        assert len(found) == len(row["x0"]) > 0
        for name in (
            "level",
            "proposal_score",
            "feature_norm",
            "fusion_share",
            "mean_entropy",
            "mean_anomaly",
        ):
            assert len(row[name]) == len(row["x0"])
        assert set(row["level"]) <= {0.0, 1.0, 2.0}
        assert (found.xyxy[:, 2:] > found.xyxy[:, :2]).all()
        assert found.xyxy.min() >= 0
        assert found.xyxy[:, 2].max() <= row["width"]
        assert found.xyxy[:, 3].max() <= row["height"]
    assert set(quality) >= {"AR@100", "AP50", "suggested_threshold", "curve"}
    assert json.loads((tmp_path / "boxes" / "train_quality.json").read_text()) == quality


@pytest.mark.slow
def test_training_starts_from_the_weights_of_the_checkpoint(composed, tmp_path):
    first = train(composed, tmp_path, name="first", steps=1) / "model.safetensors"
    standing_still = {"lr": 1e-30, "weight_decay": 0.0, "steps": 1}
    second = train(composed, tmp_path, name="second", init_checkpoint=str(first), **standing_still)
    before, after = load_file(first), load_file(second / "model.safetensors")
    assert before.keys() == after.keys()
    counted = ("running_mean", "running_var", "num_batches_tracked")  # by the images, not by the optimiser
    for name in (name for name in before if not name.endswith(counted)):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-20, msg=name)


@pytest.mark.slow
def test_same_seed_gives_the_same_files(composed, tmp_path):
    first, second = (train(composed, tmp_path, name=name) for name in ("a", "b"))
    for name in ("model.safetensors", "config.json", "history.json", "split.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.slow
def test_out_of_fold_boxes_are_honest_and_complete(composed, tmp_path):
    folder = train(composed, tmp_path, folds=2, steps=2)
    records = read_set(composed)
    report, _ = detect_out_of_fold(folder, records, tmp_path / "train.json", DetectConfig(folds=2), CPU)
    assert report.images == len(records)
    for other in (1, 3):
        with pytest.raises(CheckpointError, match=f"of 2 folds, detect.folds is {other}") as caught:
            detect_out_of_fold(folder, records, tmp_path / "other.json", DetectConfig(folds=other), CPU)
        assert "dvc repro train_detector" in caught.value.cure
    with pytest.raises(CheckpointError, match="no trained fold"):
        detect_out_of_fold(tmp_path, records, tmp_path / "other.json", DetectConfig(folds=1), CPU)
    assert not (tmp_path / "other.json").exists()
    split = json.loads((folder / "fold0" / "split.json").read_text())
    split["predict"].append(split["train"][0])
    (folder / "fold0" / "split.json").write_text(json.dumps(split))
    with pytest.raises(ProtocolError, match="was trained on"):
        detect_out_of_fold(folder, records, tmp_path / "train.json", DetectConfig(folds=2), CPU)


def test_folds_that_leave_images_without_boxes_are_refused(composed, tmp_path):
    """Folders of earlier versions do not say how many folds there were; what they predict does."""
    records = read_set(composed)
    folds = split_folds(records, 3, 0.4, 0)
    for fold in folds:
        split = split_of(fold)
        assert split.pop("folds") == 3
        atomic_write_json(tmp_path / (fold.name if fold.name != "final" else ".") / "split.json", split)
    left = len(records) - len(folds[0].predict) - len(folds[1].predict)
    for number, cause in ((2, f"leave {left} images"), (1, "may predict no image")):
        with pytest.raises(CheckpointError, match=cause):
            detect_out_of_fold(tmp_path, records, tmp_path / "b.json", DetectConfig(folds=number), CPU)
    (tmp_path / "split.json").write_text("[")
    with pytest.raises(CheckpointError, match="is damaged"):
        detect_out_of_fold(tmp_path, records, tmp_path / "b.json", DetectConfig(folds=1), CPU)


def test_the_quality_is_that_of_the_boxes_in_the_file(composed, tmp_path, monkeypatch):
    """Boxes of scores that rounding lifts or lowers: what the file gives at the suggestion is what is said of it."""
    records = {record.key: record for record in read_set(composed)}
    (fold,) = split_folds(list(records.values()), 1, 0.4, 0)
    atomic_write_json(tmp_path / "split.json", split_of(fold))
    scores = iter(np.linspace(0.3000004, 0.9000006, 50))
    by_image = {record.image: record for record in records.values()}

    def detected(detector, image, maps):
        record = by_image[image]
        return Boxes(record.boxes + 0.004, [next(scores) for _ in record.boxes]), record.size

    monkeypatch.setattr(Detector, "load", lambda *_: None)
    monkeypatch.setattr(run_module, "detect_one", detected)
    detect = DetectConfig(folds=1, target_recall=1.0)
    _, quality = detect_out_of_fold(tmp_path, records.values(), tmp_path / "train.json", detect, CPU)
    found = read_box_results(tmp_path / "train.json", [record.key for record in fold.predict])

    def kept(threshold):
        coverage = Coverage()
        for key, boxes in found.items():
            coverage.add(boxes.kept(threshold), read_label(records[key].label))
        return coverage.at(0)

    threshold = quality["suggested_threshold"]
    assert kept(threshold)["components_inside"] == 1.0
    assert kept(threshold + 2e-6)["components_inside"] < 1.0
    assert quality["at_suggested_threshold"] == {**kept(threshold), "threshold": threshold}


@pytest.mark.slow
def test_interrupted_training_resumes(composed, tmp_path, monkeypatch):
    from anomdino.detector import runner as runner_module

    original = runner_module.History.after_train_iter

    def stop(self, runner, batch_idx, data_batch=None, outputs=None):
        original(self, runner, batch_idx, data_batch, outputs)
        if runner.iter == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner_module.History, "after_train_iter", stop)
    with pytest.raises(KeyboardInterrupt):
        train(composed, tmp_path)
    monkeypatch.setattr(runner_module.History, "after_train_iter", original)
    seen = []
    monkeypatch.setattr(
        runner_module.History, "before_train_iter", lambda self, runner, *a, **k: seen.append(runner.iter)
    )
    folder = train(composed, tmp_path)
    assert seen == [2, 3]
    history = json.loads((folder / "history.json").read_text())
    assert [row["step"] for row in history["evaluations"]] == [2, 4]


def test_loss_that_is_not_finite_stops(composed, tmp_path):
    with pytest.raises(TrainingError, match="not finite"):
        train(composed, tmp_path, lr=1e12, clip=1e12)


def test_learns_to_find_bright_blobs_in_the_score(composed, tmp_path):
    """A few dozen steps on the maps alone must lift the recall on held-out images clearly above the untrained one."""
    folder = train(
        composed, tmp_path, backbone="none", steps=60, val_interval=60, log_interval=20, lr=3e-3, clip=1.0, batch_size=4,
        fusion={"gate_init": 1.0},
    )  # fmt: skip
    losses = json.loads((folder / "history.json").read_text())["losses"]
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"]


def test_statistics_equal_numpy(composed):
    records = read_set(composed)
    classes, mean, std = map_statistics(records)
    scores = np.concatenate([np.load(r.maps)["score"].ravel() for r in records]).astype(np.float64)
    assert classes == 5
    assert mean == pytest.approx(scores.mean())
    assert std == pytest.approx(scores.std())


@pytest.fixture
def detector(config):
    from anomdino.detector.architecture import build_detector

    return Detector(build_detector(config, 5), config, 5, DetectConfig(min_score=0.0, nms_iou=1.0))


@pytest.mark.parametrize(
    "size", [(64, 96), (1, 1), (7, 200), (33, 35), (1, 4700), (3000, 2), (5, 4000), (4000, 5)]
)
def test_any_size_gives_boxes_inside_the_image(detector, size):
    rng = np.random.default_rng(1)
    boxes = detector.detect(rng.integers(0, 255, (*size, 3)).astype(np.uint8), make_maps(rng, size))
    assert boxes.xyxy.dtype == np.float32
    assert (boxes.xyxy >= 0).all()
    assert (boxes.xyxy <= [size[1], size[0], size[1], size[0]]).all()
    assert (boxes.xyxy[:, 2:] > boxes.xyxy[:, :2]).all()
    assert (np.diff(boxes.scores) <= 0).all()


@pytest.mark.parametrize("size", [(2, 3000), (3000, 2), (40, 160)])
@pytest.mark.parametrize("crop", [False, True])
def test_maps_and_boxes_follow_an_image_of_any_shape_in_training(config, size, crop):
    """Of a ramp from left to right, or top to bottom, every cell still knows where on the image it lies."""
    rng, long = np.random.default_rng(2), int(size[1] < size[0])
    image = np.zeros((*size, 3), np.uint8)
    maps = make_maps(rng, size, stride=1)
    ramp = (np.indices(size)[1 - long] + 0.5) / max(size)
    maps = replace(maps, score=ramp.astype(np.float32))
    low, high = size[1 - long] // 4, size[1 - long] // 2
    box = [0, low, size[1], high] if long else [low, 0, high, size[0]]
    settings = config.model_copy(update={"crop": crop, "flip": 0.0})
    transforms = Chain(train_transforms(settings, 1.0))
    whole = 0
    for seed in range(6):
        np.random.seed(seed)  # noqa: NPY002 - what mmdet draws from
        instances = [{"bbox": list(box), "bbox_label": 0, "ignore_flag": 0}]
        packed = transforms(
            {"img": image, "maps": maps, "text": "x", "img_id": 0, "key": "", "instances": instances}
        )
        shape = packed["inputs"].shape[1:]
        assert min(shape) >= 1
        found = packed["data_samples"].gt_instances.bboxes
        found = getattr(found, "tensor", found).numpy()
        score = packed["data_samples"].maps[-1].numpy()
        assert score.shape == tuple(-(-side // config.fusion.map_stride) for side in shape)
        if abs(score.max() - score.min()) < 0.9:
            continue  # a part of the image
        whole += 1
        relative = found[0, [long, 2 + long]] / shape[1 - long]
        np.testing.assert_allclose(relative, np.array([low, high]) / max(size), atol=0.02)
        profile = score.mean(long)
        expected = (np.arange(len(profile)) + 0.5) * config.fusion.map_stride / shape[1 - long]
        np.testing.assert_allclose(profile[:-1], expected[:-1], atol=0.05)
    assert whole > 0


@pytest.mark.parametrize("regions", [0.0, 1.0])
def test_regions_of_the_score_join_the_boxes_where_they_are_asked_for(config, regions):
    from anomdino.detector.architecture import build_detector

    detect = DetectConfig(min_score=0.9, regions=regions)  # an untrained network has no box so sure
    detector, rng = Detector(build_detector(config, 5), config, 5, detect), np.random.default_rng(1)
    image, maps = rng.integers(0, 255, (64, 96, 3)).astype(np.uint8), make_maps(rng, (64, 96))
    stride = 96 // maps.score.shape[1]
    score = np.full(maps.score.shape, -8, np.float32)
    score[2:5, 3:7] = 5.0
    boxes = detector.detect(image, replace(maps, score=score))
    assert boxes.xyxy.tolist() == ([[3 * stride, 2 * stride, 7 * stride, 5 * stride]] if regions else [])
    if regions:
        assert boxes.scores[0] == pytest.approx(1.0, abs=1e-6)
        assert boxes.details["mean_anomaly"][0] == pytest.approx(5.0)
        assert np.isnan(boxes.details["level"][0])


def test_wrong_number_of_classes_is_explained(detector):
    rng = np.random.default_rng(1)
    with pytest.raises(CheckpointError, match="4 classes"):
        detector.detect(np.zeros((32, 32, 3), np.uint8), make_maps(rng, (32, 32), classes=4))


def test_diverged_weights_raise_instead_of_writing_nan(detector, tmp_path):
    for parameter in detector.network.bbox_head.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    with pytest.raises(DataError, match="NaN"):
        detector.detect(np.zeros((32, 32, 3), np.uint8), make_maps(np.random.default_rng(1), (32, 32)))


def test_maps_of_another_image_are_refused(detector, composed, tmp_path):
    records = read_set(composed)
    inputs = [Input("k", records[0].image, records[1].maps)]
    assert records[0].size != records[1].size
    with pytest.raises(DataError, match="belongs to an image"):
        detect_set(detector, inputs, tmp_path / "x.json", "test")
    assert not (tmp_path / "x.json").exists()


def test_images_without_boxes_are_present(detector, composed, tmp_path):
    detector.detect_config = DetectConfig(min_score=0.999)
    records = read_set(composed)
    report = detect_set(
        detector, [Input(r.key, r.image, r.maps) for r in records], tmp_path / "x.json", "test"
    )
    assert (report.images, report.boxes, report.empty) == (10, 0, 10)
    assert json.loads((tmp_path / "x.json").read_text()) == []
    assert len(pq.read_table(tmp_path / "x.parquet")) == 10


def slow_nms(boxes, limit, cover=1.0):
    kept = []
    for index in np.argsort(-boxes.scores, kind="stable"):
        a = boxes.xyxy[index]
        for other in kept:
            b = boxes.xyxy[other]
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            shared = max(0, width) * max(0, height)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
            own = (a[2] - a[0]) * (a[3] - a[1])
            if shared / union > limit or (cover < 1 and shared / own > cover):
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_suppression_equals_a_slow_formulation(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 30, (40, 2))
    boxes = Boxes(np.concatenate([low, low + rng.uniform(3, 20, low.shape)], 1), rng.random(40))
    for iou, cover in ((0.4, 1.0), (0.4, 0.6), (1.0, 0.6)):
        kept = non_maximum_suppression(boxes, iou, cover)
        np.testing.assert_array_equal(kept.xyxy, boxes.xyxy[slow_nms(boxes, iou, cover)])
    assert len(best_boxes(boxes, DetectConfig(min_score=0.5, nms_iou=1.0, max_boxes=3))) == 3


def test_a_part_goes_with_a_better_whole_and_a_whole_stays_with_a_better_part():
    whole, part, beside = [0, 0, 40, 40], [5, 5, 15, 15], [35, 0, 75, 40]
    for scores, expected in (((0.9, 0.5, 0.3), [whole, beside]), ((0.5, 0.9, 0.3), [part, whole, beside])):
        boxes = Boxes(np.array([whole, part, beside], np.float32), np.array(scores, np.float32))
        config = DetectConfig(min_score=0.0, nms_iou=0.7, nms_cover=0.6)
        assert best_boxes(boxes, config).xyxy.tolist() == expected
        kept = best_boxes(boxes, config.model_copy(update={"nms_cover": 1.0}))
        assert len(kept) == 3


def test_known_classes_suppress_what_they_cover():
    objects = Boxes(np.array([[0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 60]]), np.array([0.5, 0.5, 0.7]))
    known = Boxes(np.array([[0, 0, 10, 10], [49, 49, 61, 61]]), np.array([0.7, 0.75]))
    rule = NegativesConfig(names=["car"], score=0.3, cover=0.8, margin=0.1)
    kept = suppress_covered(objects, known, rule)
    assert kept.xyxy[:, 3].tolist() == [
        20,
        60,
    ]  # the second is half covered, the third nearly as sure as the car


def test_means_of_the_maps_inside_a_box_equal_a_slow_formulation():
    rng = np.random.default_rng(4)
    size = (50, 71)
    maps = make_maps(rng, size)
    low = rng.uniform(0, 45, (20, 2))
    xyxy = np.concatenate([low, low + rng.uniform(0.5, 25, low.shape)], 1)
    boxes = Boxes(xyxy, rng.random(20)).clipped(size)
    found = with_map_means(boxes, maps)
    height, width = maps.score.shape
    for index, (x0, y0, x1, y1) in enumerate(boxes.xyxy):
        cells = [
            (r, c)
            for r in range(height)
            for c in range(width)
            if x0 <= (c + 0.5) * size[1] / width < x1 and y0 <= (r + 0.5) * size[0] / height < y1
        ]
        if not cells:
            cells = [(int((y0 + y1) / 2 * height / size[0]), int((x0 + x1) / 2 * width / size[1]))]
        for name, values in (
            ("mean_entropy", maps.entropy),
            ("mean_distance", maps.distance),
            ("mean_anomaly", maps.score),
        ):
            expected = np.mean([float(values[cell]) for cell in cells])
            assert found.details[name][index] == pytest.approx(expected, abs=1e-5)
    assert with_map_means(Boxes.empty(), maps).details["mean_entropy"].shape == (0,)


def test_negative_prompts_reach_the_network(config):
    from anomdino.detector.architecture import build_detector

    detect = DetectConfig(min_score=0.0, negatives=NegativesConfig(names=["car", "traffic light"]))
    detector = Detector(build_detector(config, 5), config, 5, detect)
    rng = np.random.default_rng(0)
    boxes = detector.detect(rng.integers(0, 255, (64, 96, 3)).astype(np.uint8), make_maps(rng, (64, 96)))
    assert len(boxes) <= config.queries
    caption = next(iter(detector.network.language_model._known))[0]
    assert caption == "ood-object. car. traffic light. "
