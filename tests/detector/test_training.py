import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from anomdino.config.detect import DetectConfig, NegativesConfig
from anomdino.detector import run as run_module
from anomdino.detector import runner as runner_module
from anomdino.detector import training as training_module
from anomdino.detector.architecture import build_detector
from anomdino.detector.dataset import train_transforms
from anomdino.detector.infer import (
    Detector,
    best_boxes,
    non_maximum_suppression,
    suppress_covered,
    with_map_means,
)
from anomdino.detector.lean import Prediction
from anomdino.detector.mmdet_parts import Chain
from anomdino.detector.quality import BoxMetrics, Coverage
from anomdino.detector.records import split_folds
from anomdino.detector.regions import score_regions
from anomdino.detector.run import Input, detect_out_of_fold, detect_set
from anomdino.detector.runner import BoxRecall, History
from anomdino.detector.training import map_statistics, split_of, train_detector
from anomdino.errors import CheckpointError, DataError, ProtocolError, TrainingError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.boxes import Boxes, image_id, read_box_results, write_box_results
from anomdino.io.images import read_label
from anomdino.uncertainty import UncertaintyMaps
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

    assert quality["AR@100"] == 1.0  # of the images that it may predict, not of all
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


def test_known_classes_count_from_their_score_on_and_a_whole_cover_is_one():
    box, unsure = np.array([[0, 0, 10, 10]]), NegativesConfig(names=["car"], score=0.3, cover=1.0, margin=0.1)
    for score, kept in ((0.25, 1), (0.35, 0)):
        assert len(suppress_covered(Boxes(box, [0.1]), Boxes(box, [score]), unsure)) == kept


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


def test_learning_rates_and_weight_decay_by_the_rule():
    """Fusion and backbone by their factors; gates and normalisation outside the fusion do not decay."""
    config = small_config(
        lr=2e-3, backbone_lr_factor=0.25, fusion_lr_factor=3.0, weight_decay=0.01, clip=0.7, amp=True
    )
    detector = build_detector(config, CLASSES)
    wrapper = runner_module._optimiser(detector, config, CPU)
    found = {id(p): group for group in wrapper.optimizer.param_groups for p in group["params"]}
    norms = {
        f"{name}.{part}"
        for name, module in detector.named_modules()
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm | torch.nn.BatchNorm2d)
        for part, _ in module.named_parameters(recurse=False)
    }
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = 2e-3
        decay = 0.0 if name in norms and not name.startswith(("ouafs.", "backbone.")) else 0.01
        if name.startswith("ouafs."):
            rate, decay = 6e-3, 0.0 if name.startswith("ouafs.gates") else 0.01
        elif name.startswith("backbone."):
            rate = 5e-4
        group = found[id(parameter)]
        assert (group["lr"], group["weight_decay"]) == pytest.approx((rate, decay)), name
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    assert type(wrapper).__name__ == "OptimWrapper"  # mixed precision is for CUDA
    parameter = next(p for p in detector.parameters() if p.requires_grad)
    parameter.grad = torch.full_like(parameter, 9.0)
    wrapper._clip_grad()
    assert parameter.grad.norm() == pytest.approx(0.7, rel=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_learning_rates_follow_the_schedule(schedule):
    from mmengine.registry import PARAM_SCHEDULERS

    steps, warmup = 50, 8
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    described = runner_module._schedule(small_config(schedule=schedule, steps=steps, warmup=warmup))
    schedulers = [PARAM_SCHEDULERS.build({**one, "optimizer": optimiser}) for one in described]
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        for scheduler in schedulers:
            scheduler.step()
    for step, rate in enumerate(rates):
        expected = 0.05 + 0.95 * min(1, step / (warmup - 1))
        if schedule == "step":
            expected *= 0.1 if step >= 40 else 1
        elif step >= warmup:
            expected = 0.01 + 0.99 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup))) / 2
        assert rate == pytest.approx(expected, abs=1e-6), step


def test_of_the_evaluations_the_best_gives_the_weights_of_equal_ones_the_later(
    composed, tmp_path, monkeypatch
):
    """AP50 says otherwise, and so does the order; the network trains between the evaluations."""
    kept, modes = [], []

    def metrics(predicted, truth):
        recall = next(recalls)
        return BoxMetrics({1: 1 - recall, 10: 1 - recall, 100: recall}, 1 - recall)

    after, before = runner_module.History.after_val_epoch, runner_module.History.before_train_iter

    def watched(self, runner, metrics=None):
        kept.append({name: value.clone() for name, value in runner.model.state_dict().items()})
        after(self, runner, metrics)

    def noted(self, runner, *args, **kwargs):
        modes.append(runner.model.training)
        before(self, runner, *args, **kwargs)

    monkeypatch.setattr(runner_module, "coco_metrics", metrics)
    monkeypatch.setattr(runner_module.History, "after_val_epoch", watched)
    monkeypatch.setattr(runner_module.History, "before_train_iter", noted)
    for name, given, best in (("a", [0.5, 0.5, 0.3], 1), ("b", [0.4, 0.1], 0)):
        kept.clear()
        recalls = iter(given)
        folder = train(
            composed, tmp_path, name=name, steps=len(given), val_interval=1, batch_size=1, backbone="none"
        )
        found = load_file(folder / "model.safetensors")
        assert all(torch.equal(value, kept[best][key]) for key, value in found.items())
        assert not all(torch.equal(value, kept[1 - best][key]) for key, value in found.items())
        written = json.loads((folder / "config.json").read_text())
        assert written["selected"]["ar100"] == pytest.approx(given[best])
    (fold,) = split_folds(read_set(composed), 1, 0.4, 0)
    scores = np.concatenate([np.load(record.maps)["score"].ravel() for record in fold.train])
    assert written["score"]["mean"] == pytest.approx(scores.mean(dtype=float))  # of what it learns from alone
    assert modes == [True] * 5


def test_a_training_reads_of_its_fold_what_belongs_to_it(composed, tmp_path, monkeypatch):
    """Mosaics and score statistics of the images that it learns from, evaluations of so many held-out ones as asked."""
    (fold,) = split_folds(read_set(composed), 1, 0.4, 0)
    seen = {}
    transforms = runner_module.train_transforms

    def noted(config, std, records):
        seen["mosaic"] = [record.key for record in records]
        return transforms(config, std, records)

    monkeypatch.setattr(runner_module, "train_transforms", noted)
    config = small_config(val_images=1, long_side=160, mosaic=0.5)
    detector = build_detector(config, CLASSES)
    runner, _ = runner_module.build_runner(detector, config, fold, tmp_path, 77, CPU, 1.0, None)
    assert runner.seed == 77
    train_set, val_set = (loader["dataset"] for loader in (runner._train_dataloader, runner._val_dataloader))
    assert seen["mosaic"] == [r.key for r in train_set.records] == [r.key for r in fold.train]
    assert [r.key for r in val_set.records] == [r.key for r in fold.val[:1]]
    assert runner._train_dataloader["sampler"]["shuffle"]
    assert not runner._val_dataloader["sampler"]["shuffle"]


def test_losses_of_the_history_are_means_of_the_steps_since_the_last_line(config, tmp_path):
    history = History(config.model_copy(update={"log_interval": 2, "steps": 3}), 1, tmp_path)
    for step, loss in enumerate((1.0, 4.0, 7.0)):
        outputs = {"loss": torch.tensor(loss), "lr": torch.tensor(5.0)}
        history.after_train_iter(SimpleNamespace(iter=step), step, None, outputs)
    assert history.losses == [{"step": 2, "loss": 2.5}, {"step": 3, "loss": 7.0}]


def test_boxes_of_the_prompt_alone_are_evaluated(composed):
    (record,) = [r for r in read_set(composed) if r.key == "part1/001"]
    metric = BoxRecall([record])
    bboxes = torch.tensor(np.concatenate([record.boxes + 30, record.boxes]))
    for labels, expected in (([0, 0], 1.0), ([0, 1], 0.0)):
        scores = torch.tensor([0.5, 0.9])
        instances = {"bboxes": bboxes, "scores": scores, "labels": torch.tensor(labels)}
        metric.results.clear()
        metric.process(None, [{"key": record.key, "pred_instances": instances}])
        assert metric.compute_metrics(metric.results)["ar1"] == expected


def test_statistics_read_no_more_than_two_hundred_images_evenly(monkeypatch):
    read = []
    maps = make_maps(np.random.default_rng(0), (8, 8))
    monkeypatch.setattr(UncertaintyMaps, "load", lambda path: read.append(path) or maps)
    map_statistics([SimpleNamespace(maps=index) for index in range(450)])
    assert len(read) <= 200
    assert np.ptp(np.diff(read)) == 0
    assert read[-1] >= 440


def test_other_parameters_data_or_seeds_start_a_training_anew(composed, config, monkeypatch):
    (fold,) = split_folds(read_set(composed), 1, 0.4, 0)
    moved = replace(fold.train[-1], boxes=np.array([[1, 2, 3, 4]], np.float32))
    given = [
        (config, fold, 5, (5, 0.0, 1.0)),
        (config.model_copy(update={"lr": 3e-3}), fold, 5, (5, 0.0, 1.0)),
        (config, fold, 6, (5, 0.0, 1.0)),
        (config, fold, 5, (5, 0.5, 1.0)),
        (config, replace(fold, name="fold0"), 5, (5, 0.0, 1.0)),
        (config, replace(fold, val=fold.val[:1]), 5, (5, 0.0, 1.0)),
        (config, replace(fold, train=[*fold.train[:-1], moved]), 5, (5, 0.0, 1.0)),
    ]
    digests = [training_module._fingerprint(*each, None) for each in given]
    fold.train[0].image.write_bytes(fold.train[0].image.read_bytes() + b"more")
    digests.append(training_module._fingerprint(*given[0], None))
    assert len(set(digests)) == len(digests)


def scripted(detector, scores, boxes):
    """Let the network predict these: scores (queries, prompts), boxes (cx, cy, w, h) in shares; note what it sees."""
    seen = []

    def predict(image, maps, prompts):
        seen.append((tuple(image.shape[2:]), prompts))
        origin = torch.zeros(len(boxes), 4)
        return Prediction(torch.tensor(scores), torch.tensor(boxes), origin)

    detector.predictor = predict
    return seen


def test_shares_become_pixels_and_known_classes_suppress_their_own_boxes(config):
    """Three queries, two class names: each name's confidence goes with the box of its own query."""
    names = NegativesConfig(names=["car", "bus"], score=0.3, cover=0.8, margin=0.1)
    detect = DetectConfig(min_score=0.1, nms_iou=1.0, short_side=96, negatives=names)
    network = build_detector(config, CLASSES).train()
    detector = Detector(network, config.model_copy(update={"prompt": "lost cargo"}), CLASSES, detect)
    assert not network.training
    boxes = [[0.25, 0.5, 0.5, 0.2], [0.75, 0.25, 0.1, 0.3], [0.5, 0.5, 0.25, 0.5]]
    rng = np.random.default_rng(0)
    image, maps = rng.integers(0, 255, (100, 200, 3)).astype(np.uint8), make_maps(rng, (100, 200))
    for scores, kept in (
        ([[0.5, 0.0, 0.0], [0.4, 0.0, 0.9], [0.3, 0.0, 0.0]], [0, 2]),
        ([[0.5, 0.0, 0.7], [0.4, 0.0, 0.0], [0.3, 0.2, 0.2]], [1, 2]),
        ([[0.5, 0.0, 0.0], [0.4, 0.0, 0.0], [0.3, 0.8, 0.0]], [0, 1]),
    ):
        seen = scripted(detector, scores, boxes)
        found = detector.detect(image, maps)
        expected = np.array([[0, 40, 100, 60], [140, 10, 160, 40], [75, 25, 125, 75]])[kept]
        np.testing.assert_allclose(found.xyxy, expected, atol=1e-3)
        np.testing.assert_allclose(found.scores, np.array(scores)[kept, 0])
        assert seen == [((96, 192), ("lost cargo", "car", "bus"))]


def test_regions_are_measured_in_the_deviation_of_the_detectors_scores(config):
    detect = DetectConfig(min_score=0.0, nms_iou=1.0, nms_cover=1.0, regions=0.8)
    detector = Detector(build_detector(config, CLASSES), config, CLASSES, detect)
    detector.network.ouafs.score_std.fill_(2.5)
    scripted(detector, [[0.01]], [[0.5, 0.5, 0.1, 0.1]])
    rng = np.random.default_rng(0)
    maps = make_maps(rng, (64, 96))
    maps.score[4:8, 6:12] += 6
    found = detector.detect(np.zeros((64, 96, 3), np.uint8), maps)
    expected = score_regions(maps, 2.5, 0.8)
    assert len(found) == len(expected) + 1
    np.testing.assert_array_equal(found.scores[0], expected.scores[0])


def test_parts_within_better_boxes_go_though_no_overlap_is_too_large(config):
    boxes = Boxes(np.array([[0, 0, 40, 40], [5, 5, 15, 15]]), np.array([0.9, 0.5]))
    assert len(best_boxes(boxes, DetectConfig(nms_iou=1.0, nms_cover=0.6))) == 1


def test_images_of_a_source_that_was_learned_from_are_not_predicted(composed, tmp_path):
    records = read_set(composed)
    (fold,) = split_folds(records, 1, 0.4, 0)
    split = split_of(fold)
    held = next(record for record in fold.predict)
    twin = replace(held, key="twin")
    atomic_write_json(tmp_path / "split.json", {**split, "train": [*split["train"], "twin"]})
    with pytest.raises(ProtocolError, match="was trained on"):
        detect_out_of_fold(tmp_path, [*records, twin], tmp_path / "b.json", DetectConfig(folds=1), CPU)


def test_a_training_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    composed, tmp_path, monkeypatch
):
    save, steps = runner_module.SafeRunner.save_checkpoint, []

    def dying(self, *args, **kwargs):
        if self.iter == 1:
            raise KeyboardInterrupt
        save(self, *args, **kwargs)

    before = runner_module.History.before_train_iter

    def noted(self, runner, *args, **kwargs):
        steps.append(runner.iter)
        before(self, runner, *args, **kwargs)

    settings = {"steps": 2, "val_interval": 1, "batch_size": 1, "backbone": "none", "decoder_layers": 1}
    monkeypatch.setattr(runner_module.SafeRunner, "save_checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        train(composed, tmp_path, **settings)
    monkeypatch.setattr(runner_module.SafeRunner, "save_checkpoint", save)
    monkeypatch.setattr(runner_module.History, "before_train_iter", noted)
    train(composed, tmp_path, **settings)
    assert steps == [1]


def test_a_name_that_is_no_unicode_has_a_row_in_the_table(tmp_path):
    key = os.fsdecode(b"caf\xe9")
    write_box_results(tmp_path / "b.json", {key: Boxes.empty()}, {key: (3, 4)})
    (row,) = pq.read_table(tmp_path / "b.parquet").to_pylist()
    assert (row["image"], row["image_id"]) == ("caf\\udce9", image_id(key))
    assert len(read_box_results(tmp_path / "b.json", [key])[key]) == 0
