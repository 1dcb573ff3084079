import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score
from torch.utils.data import DataLoader, Subset

from anomdino.adt import training
from anomdino.adt.dataset import (
    CropDataset,
    CropRules,
    cut,
    digest,
    hold_out,
    list_items,
    measure_scores,
    perturb_boxes,
    read_item,
    shrink,
)
from anomdino.adt.dataset import _draw_scale as draw_scale
from anomdino.adt.fusion import fuse
from anomdino.adt.losses import mask_loss
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics, surrogate_logits
from anomdino.adt.store import load_adt
from anomdino.adt.training import TrainingHost, TrainingPlan, plan_from, schedule, train_adt
from anomdino.config.adt import AdtConfig
from anomdino.errors import DataError, ProtocolError, TrainingError
from anomdino.io.boxes import Boxes
from anomdino.io.images import read_image, write_png
from anomdino.io.scores import read_score, write_score
from anomdino.protocol import mark_evaluation_only
from tests.forked import launch

PLAN = TrainingPlan(auto_box_score=False, crops=CropRules(crop=48), epochs=3, batch=4, lr=1e-2)


def files_of(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_training_improves_and_writes_what_it_says(make_set, tmp_path):
    model = train_adt(make_set(images=16), replace(PLAN, epochs=8), tmp_path / "adt", seed=1)
    history = (tmp_path / "adt" / "history.csv").read_text().splitlines()
    assert history[0].startswith("epoch,lr,train_total,train_inside")
    rows = [
        dict(zip(history[0].split(","), map(float, line.split(",")), strict=True)) for line in history[1:]
    ]
    assert rows[-1]["train_total"] < 0.7 * rows[0]["train_total"]
    assert model.provenance["held_out"]["val_f1"] == max(row["val_f1"] for row in rows)
    stored = load_adt(tmp_path / "adt")
    assert stored.provenance == json.loads((tmp_path / "adt" / "config.json").read_text())["provenance"]
    for name, tensor in model.net.state_dict().items():
        assert torch.equal(tensor, stored.net.state_dict()[name])


def test_same_seed_gives_the_same_files_with_any_number_of_workers(make_set, tmp_path):
    files = make_set()
    train_adt(files, PLAN, tmp_path / "a", seed=4)
    train_adt(files, PLAN, tmp_path / "b", seed=4, host=TrainingHost(workers=2))
    train_adt(files, PLAN, tmp_path / "c", seed=5)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert files_of(tmp_path / "a") != files_of(tmp_path / "c")


def test_an_interrupted_run_continues_to_the_same_files(make_set, tmp_path, monkeypatch):
    files, state = make_set(), tmp_path / "state.pt"
    train_adt(files, PLAN, tmp_path / "whole", seed=4)
    original, calls = training.train_epoch, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(training, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_adt(files, PLAN, tmp_path / "resumed", seed=4, host=TrainingHost(state=state))
    assert state.is_file()
    assert not (tmp_path / "resumed").exists()
    torch.manual_seed(999)
    train_adt(files, PLAN, tmp_path / "resumed", seed=4, host=TrainingHost(state=state))
    assert len(calls) == 4
    assert not state.exists()
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "resumed")


def test_a_run_with_another_image_held_out_starts_anew(make_set, tmp_path, monkeypatch):
    """The sources of images say which are held out; the images, in their order, can be the same."""
    files, epochs, original = make_set(images=4), [], training.train_epoch

    def killed(*args, **kwargs):
        epochs.append(args[4])
        if args[4] == 1:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(training, "train_epoch", killed)
    for learned in (2, 3, 3):
        monkeypatch.setattr(training, "hold_out", lambda items, *_, n=learned: (items[:n], items[n:]))
        with pytest.raises(KeyboardInterrupt):
            plan = replace(PLAN, samples_per_epoch=4)
            train_adt(files, plan, tmp_path / "adt", seed=4, host=TrainingHost(state=tmp_path / "state.pt"))
    assert epochs == [0, 1, 0, 1, 1]


def test_a_run_goes_on_with_the_same_inputs_alone_and_the_seed_is_that_of_the_weights(
    make_set, tmp_path, monkeypatch
):
    files, seen = make_set(images=4), []

    def killed(net, loader, optimiser, plan, epoch, *, amp):
        seen.append((epoch, net.statistics.mean, sum(p.sum().item() for p in net.parameters())))
        if epoch == 1:
            raise KeyboardInterrupt
        return original(net, loader, optimiser, plan, epoch, amp=amp)

    original = training.train_epoch
    monkeypatch.setattr(training, "train_epoch", killed)
    plan, host = replace(PLAN, samples_per_epoch=4), TrainingHost(state=tmp_path / "state.pt")
    learned, _ = hold_out(list_items(files), plan.holdout, 4)
    for change, seed in ((0, 4), (0, 4), (1, 4), (0, 5)):
        score = read_score(learned[0].score)
        write_score(learned[0].score, score + change)
        with pytest.raises(KeyboardInterrupt):
            train_adt(files, plan, tmp_path / "adt", seed=seed, host=host)
    assert [epoch for epoch, *_ in seen] == [0, 1, 1, 0, 1, 0, 1]
    expected = np.concatenate([read_score(item.score).ravel() for item in learned]).mean()
    assert seen[3][1] == pytest.approx(expected, rel=1e-6)  # of the images that are learned from
    assert seen[3][2] != seen[5][2]


def test_a_gradient_is_clipped(make_set):
    items = list_items(make_set(images=4))
    moved = {}
    for clip in (5.0, 1e-15):
        torch.manual_seed(0)
        net = AdtNet(Architecture(), ScoreStatistics(-6.0, 2.0))
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        plan = replace(PLAN, clip=clip, weight_decay=0.0)
        dataset = CropDataset(items, plan.crops, 4, 0, 0)
        loader = DataLoader(Subset(dataset, range(4)), 4)
        training.train_epoch(net, loader, training.make_optimiser(net, plan), plan, 0, amp=False)
        moved[clip] = (
            (torch.cat([p.detach().flatten() for p in net.parameters()]) - before).abs().max().item()
        )
    assert moved[1e-15] < 1e-4 < 1e-3 < moved[5.0]


def test_validation_measures_what_using_the_network_gives(make_set, model):
    items, plan = list_items(make_set(images=3)), replace(PLAN, rule=model.rule)
    row = training.validate(model.net, items, plan)
    fused = [fuse(*(read_item(item)[0], item.boxes), model) for item in items]
    labels = np.stack([read_item(item)[1] for item in items])
    masks, thresholds = (np.stack([getattr(one, name) for one in fused]) for name in ("mask", "threshold"))
    inside = np.stack([one.surfaces.inside.numpy() for one in fused])
    losses = [
        mask_loss(
            surrogate_logits(one.surfaces.decision, one.surfaces.threshold, model.net.architecture.ramp),
            torch.from_numpy(label), one.surfaces.inside, plan.loss,
        ).total.item()
        for one, label in zip(fused, labels, strict=True)
    ]  # fmt: skip
    assert row["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    known = labels != 255
    truth, found = labels[known] == 1, masks[known]
    assert 0 < row["val_f1"] == pytest.approx(f1_score(truth, found), rel=1e-9)
    assert row["val_precision"] == pytest.approx(precision_score(truth, found), rel=1e-9)
    assert row["val_recall"] == pytest.approx(recall_score(truth, found), rel=1e-9)
    assert row["val_t_fg"] == pytest.approx(thresholds[inside].mean(), rel=1e-5)
    assert row["val_t_bg"] == pytest.approx(thresholds[~inside].mean(), rel=1e-5)
    assert abs(row["val_t_fg"] - row["val_t_bg"]) > 1e-4


def test_the_chosen_box_score_is_that_of_rule_and_crops(make_set):
    chosen = training.with_box_score(TrainingPlan(), list_items(make_set(images=4)))
    assert chosen.rule.box_score == chosen.crops.box_score != TrainingPlan().crops.box_score


def test_a_run_that_had_stopped_stays_so_and_its_curves_stay_whole(make_set, tmp_path, monkeypatch):
    """Killed after the last epoch: no epoch is added, and DVCLive shows all of them."""
    plan = replace(PLAN, lr=1e-12, epochs=9, patience=2)
    files, state = make_set(), tmp_path / "state.pt"
    train_adt(files, plan, tmp_path / "whole", seed=4, host=TrainingHost(dvclive=True))
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_adt", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_adt(files, plan, tmp_path / "resumed", seed=4, host=TrainingHost(state=state, dvclive=True))
    train_adt(files, plan, tmp_path / "resumed", seed=4, host=TrainingHost(state=state, dvclive=True))
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "resumed")
    curve = "dvclive/plots/metrics/val/f1.tsv"
    columns = [
        [line.split("\t")[1:] for line in (tmp_path / name / curve).read_text().splitlines()]
        for name in ("whole", "resumed")
    ]
    assert len(columns[0]) == 1 + 3
    assert columns[0] == columns[1]


@pytest.mark.parametrize("damage", ["other plan", "garbage"])
def test_a_state_that_does_not_fit_is_not_used(make_set, tmp_path, monkeypatch, damage):
    files, state = make_set(), tmp_path / "state.pt"
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_adt", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_adt(files, replace(PLAN, lr=1e-4), tmp_path / "x", seed=4, host=TrainingHost(state=state))
    if damage == "garbage":
        state.write_bytes(state.read_bytes()[:100])
    train_adt(files, PLAN, tmp_path / "a", seed=4)
    train_adt(files, PLAN, tmp_path / "b", seed=4, host=TrainingHost(state=state))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_last_good_epoch(
    make_set, tmp_path, monkeypatch
):
    files, state = make_set(), tmp_path / "state.pt"
    original, calls = training.adt_loss, []

    def poisoned(*args):
        calls.append(1)
        parts = original(*args)
        return parts._replace(total=parts.total * float("nan")) if len(calls) == 4 else parts

    monkeypatch.setattr(training, "adt_loss", poisoned)
    with pytest.raises(
        TrainingError, match=r"nan at step 2 of epoch 2, lr .*, images 00\d, 00\d, 00\d, 00\d"
    ):
        train_adt(files, PLAN, tmp_path / "adt", seed=4, host=TrainingHost(state=state))
    kept = torch.load(state, weights_only=True)
    assert kept["progress"]["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in kept["net"].values())
    assert not (tmp_path / "adt").exists()


def test_training_stops_when_nothing_gets_better(make_set, tmp_path):
    plan = replace(PLAN, lr=1e-12, epochs=9, patience=2)
    train_adt(make_set(), plan, tmp_path / "adt")
    assert len((tmp_path / "adt" / "history.csv").read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize("select", ["ap", "f1", "loss"])
def test_the_chosen_epoch_is_the_best_by_the_measure(make_set, tmp_path, select):
    model = train_adt(make_set(), replace(PLAN, select=select), tmp_path / "adt", seed=2)
    lines = (tmp_path / "adt" / "history.csv").read_text().splitlines()
    column = lines[0].split(",").index(f"val_{select}")
    values = [float(line.split(",")[column]) for line in lines[1:]]
    wanted = np.argmin(values) if select == "loss" else np.argmax(values)
    assert model.provenance["best_epoch"] == wanted + 1


@pytest.mark.parametrize("part", ["labels", "boxes", "index", "images"])
def test_every_part_of_evaluation_data_is_refused(make_set, tmp_path, part):
    files = make_set(images=2)
    path = getattr(files, part) or tmp_path / "photos"
    moved = tmp_path / "evaluation" / path.name
    moved.parent.mkdir()
    path.rename(moved) if path.exists() else moved.mkdir()
    mark_evaluation_only(moved.parent)
    with pytest.raises(ProtocolError, match="is evaluation data"):
        list_items(replace(files, **{part: moved}))


def test_evaluation_data_is_refused(make_set, tmp_path):
    files = make_set()
    mark_evaluation_only(files.scores)
    with pytest.raises(ProtocolError):
        train_adt(files, PLAN, tmp_path / "adt")


def test_only_images_with_honest_boxes_are_used(make_set):
    import pyarrow.parquet as pq

    files = make_set(images=6)
    table = files.boxes.with_suffix(".parquet")
    pq.write_table(pq.read_table(table).slice(0, 4), table)
    assert [item.key for item in list_items(files)] == ["000", "001", "002", "003"]


def test_images_of_one_source_stay_together(make_set):
    items = list_items(make_set(images=20, sources=5))
    training_items, held_out = hold_out(items, 0.2, seed=0)
    assert len(held_out) == 4
    assert not {i.source for i in training_items} & {i.source for i in held_out}
    assert sorted(i.key for i in training_items + held_out) == [i.key for i in items]


def test_sources_are_held_out_until_they_have_the_share_of_the_images(make_set):
    items = list_items(make_set(images=12))
    items = [
        replace(item, source=str(max(0, place - 7))) for place, item in enumerate(items)
    ]  # 8, 1, 1, 1, 1
    sizes = set()
    for seed in range(12):
        learned, held = hold_out(items, 0.25, seed)
        assert sorted(learned + held, key=lambda item: item.key) == items
        assert len(held) >= 3
        assert len({item.source for item in held}) == 1 or len(held) - 8 < 3
        sizes.add(len(held))
    assert min(sizes) == 3


def test_one_source_cannot_be_split(make_set):
    with pytest.raises(DataError, match="1 source"):
        hold_out(list_items(make_set(images=4, sources=1)), 0.2, 0)


def test_statistics_against_numpy(make_set):
    maps = [read_score(item.score) for item in list_items(make_set(images=4))]
    everything = np.concatenate([score.ravel() for score in maps]).astype(np.float64)
    statistics = measure_scores(maps)
    assert statistics.mean == pytest.approx(everything.mean(), rel=1e-9)
    assert statistics.std == pytest.approx(everything.std(), rel=1e-9)
    turned = measure_scores(maps, sign=-1)
    assert (turned.mean, turned.sign) == (pytest.approx(-everything.mean(), rel=1e-9), -1)


def test_constant_scores_are_refused():
    with pytest.raises(DataError, match=r"2\.5"):
        measure_scores([np.full((5, 5), 2.5, np.float32)] * 2)


def test_a_crop_is_the_same_in_any_process_and_differs_between_epochs(make_set):
    items = list_items(make_set())
    rules = CropRules(crop=32)
    first, again, later = (CropDataset(items, rules, 10, 0, epoch) for epoch in (0, 0, 1))
    for one, two in zip(first[3], again[3], strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first[3].scores, later[3].scores)
    assert sorted(first.order) == list(range(10))


def test_every_epoch_has_an_order_and_crops_of_its_own(make_set):
    items = list_items(make_set(images=8))
    orders = {tuple(CropDataset(items, CropRules(crop=16), 8, 0, epoch).order) for epoch in range(4)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(8)) for order in orders)
    crops = [CropDataset(items[:1], CropRules(crop=16), 1, 0, epoch)[0].scores for epoch in range(2)]
    assert not torch.equal(*crops)


def test_a_crop_is_mirrored_as_a_whole():
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=(20, 30)).astype(np.float32), rng.integers(0, 2, (20, 30), np.uint8)
    boxes = Boxes(np.array([[3, 2, 14, 19]], np.float32), np.ones(1, np.float32))
    plain, mirrored = (
        cut(score, label, boxes, CropRules(crop=16, flip=flip), np.random.default_rng(1)) for flip in (0, 1)
    )
    for one, other in zip(plain[:3], mirrored[:3], strict=True):
        assert torch.equal(other, one.flip(-1))
        assert not torch.equal(other, one)


def test_scales_are_spread_evenly_by_their_logarithm():
    draws = [draw_scale(0.25, np.random.default_rng(seed)) for seed in range(400)]
    assert 0.25 <= min(draws) < 0.27
    assert 0.95 < max(draws) <= 1
    assert np.median(draws) == pytest.approx(0.5, abs=0.05)


def test_object_crops_hold_small_objects(make_set, tmp_path):
    label = np.zeros((200, 300), np.uint8)
    label[150:155, 250:254] = 1
    items = list_items(make_set(images=2, sources=2))
    write_png(items[0].label, label)
    write_score(items[0].score, np.random.default_rng(0).normal(size=label.shape).astype(np.float32))
    for share, seen in ((1.0, 40), (0.0, 0)):
        rules = CropRules(crop=40, object_crops=share, scale_min=1)
        crops = [CropDataset(items[:1], rules, 40, seed, 0)[seed] for seed in range(40)]
        whole = sum(int((crop.labels == 1).sum()) == 20 for crop in crops)
        assert whole >= seen if share else whole < 12


def test_small_images_are_continued_and_void_there(make_set):
    items = list_items(make_set(size=(40, 50)))
    crop = CropDataset(items, CropRules(crop=64, scale_min=1, flip=0), 4, 0, 0)[0]
    assert crop.scores.shape == crop.labels.shape == crop.inside.shape == (1, 64, 64)
    assert (crop.labels[:, 40:] == 255).all()
    assert (crop.labels[:, :, 50:] == 255).all()
    np.testing.assert_array_equal(crop.scores[0, 40, :50], crop.scores[0, 39, :50])


def test_means_are_those_of_the_whole_image(make_set):
    items = list_items(make_set(images=2, sources=2))
    rules = CropRules(crop=16, scale_min=1, box_drop_all=0, box_drop_min=0, box_drop_max=0, box_jitter=0)
    dataset = CropDataset(items, rules, 2, 0, 0)
    item = items[dataset.order[0]]
    score, inside = read_score(item.score), item.boxes.kept(0.3).mask((64, 96))
    assert dataset[0].mean_fg.item() == pytest.approx(score[inside].mean(), rel=1e-5)
    assert dataset[0].mean_bg.item() == pytest.approx(score[~inside].mean(), rel=1e-5)
    assert dataset[0].has_boxes.item()


@pytest.mark.parametrize(("boxes", "covered"), [(Boxes.empty(), False), (None, True)])
def test_an_empty_region_has_the_mean_of_the_whole_image(boxes, covered):
    score = np.random.default_rng(0).normal(-7, 2, (20, 30)).astype(np.float32)
    whole = Boxes(np.array([[0, 0, 30, 20]], np.float32), np.ones(1, np.float32))
    found = cut(
        score,
        np.zeros((20, 30), np.uint8),
        whole if boxes is None else boxes,
        CropRules(crop=8),
        np.random.default_rng(1),
    )
    assert found.has_boxes.item() == covered
    assert found.mean_fg.item() == pytest.approx(score.mean(), rel=1e-5)
    assert found.mean_bg.item() == pytest.approx(score.mean(), rel=1e-5)


def test_boxes_are_dropped_and_shifted_as_often_and_as_far_as_said():
    boxes = Boxes(np.tile([100.0, 100, 140, 120], (50, 1)), np.full(50, 0.7))
    rules = CropRules(box_jitter=0.1, box_drop_min=0.1, box_drop_max=0.3, box_drop_all=0.15)
    draw = np.random.default_rng(0)
    results = [perturb_boxes(boxes, rules, (500, 500), draw) for _ in range(600)]
    assert np.mean([len(result) == 0 for result in results]) == pytest.approx(0.15, abs=0.05)
    kept = [result for result in results if len(result)]
    assert np.mean([len(result) for result in kept]) / 50 == pytest.approx(0.8, abs=0.02)
    shifts = np.concatenate([result.xyxy for result in kept]) - boxes.xyxy[0]
    assert np.abs(shifts[:, ::2]).max() <= 4.001
    assert np.abs(shifts[:, 1::2]).max() <= 2.001
    assert np.abs(shifts[:, ::2]).max() > 3.5


def test_shrinking_keeps_maps_and_boxes_together():
    score = np.zeros((60, 80), np.float32)
    score[20:40, 40:60] = 8
    small, label, boxes = shrink(
        score, score.astype(np.uint8) // 8, Boxes(np.array([[40, 20, 60, 40]]), np.ones(1)), 0.5
    )
    assert small.shape == label.shape == (30, 40)
    np.testing.assert_array_equal(boxes.mask((30, 40)), label == 1)
    np.testing.assert_array_equal(small == 8, label == 1)


def test_boxes_shrink_with_the_rounded_sides_and_labels_keep_their_values():
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=(10, 100)), rng.choice(np.array([0, 1, 255], np.uint8), (10, 100))
    boxes = Boxes(np.array([[10, 2, 20, 8]], np.float32), np.ones(1, np.float32))
    small, small_label, moved = shrink(score.astype(np.float32), label, boxes, 0.57)
    assert small.shape == small_label.shape == (6, 57)
    assert {*np.unique(small_label)} == {0, 1, 255}
    np.testing.assert_allclose(moved.xyxy, [[5.7, 1.2, 11.4, 4.8]], rtol=1e-6)
    assert small.mean() == pytest.approx(score.mean(), abs=1e-5)


def test_the_digest_is_of_all_that_an_item_holds(make_set):
    item = list_items(make_set(images=2))[0]
    other = Boxes(item.boxes.xyxy, item.boxes.scores / 2)
    moved = Boxes(item.boxes.xyxy + 1, item.boxes.scores)
    changed = [replace(item, boxes=boxes) for boxes in (other, moved)]
    changed += [replace(item, key="x"), replace(item, label=item.score), replace(item, image=item.score)]
    assert len({digest([one]) for one in (item, *changed)}) == 6


def test_damaged_labels_are_refused(make_set, tmp_path):
    files = make_set()
    write_png(files.labels / "000.png", np.full((64, 96), 38, np.uint8))
    with pytest.raises(DataError, match="38"):
        train_adt(files, PLAN, tmp_path / "adt")


def test_schedule():
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1
    assert all(b <= a for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001


def test_memory_does_not_grow_with_the_number_of_images(make_set):
    small, large = (
        CropDataset(list_items(make_set(str(n), images=n)), CropRules(crop=32), n, 0, 0) for n in (4, 24)
    )
    assert all(isinstance(item.score, Path) for item in large.items)
    import tracemalloc

    peaks = []
    for dataset in (small, large):
        dataset[0]
        tracemalloc.start()
        for index in range(len(dataset)):
            dataset[index]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_every_field_of_the_block_reaches_the_plan():
    config = AdtConfig(
        lr=0.5, ramp=0.2, slopes="fixed", k=0.3, false_positive=0.6, crop=99, box_score=0.4, select="ap"
    )
    plan = plan_from(config)
    assert (plan.lr, plan.architecture.ramp, plan.architecture.learn_slopes) == (0.5, 0.2, False)
    assert (plan.rule.k, plan.loss.false_positive, plan.crops.crop, plan.select) == (0.3, 0.6, 99, "ap")
    assert plan.rule.box_score == plan.crops.box_score == 0.4
    assert not plan.auto_box_score
    assert plan_from(AdtConfig()) == TrainingPlan()


def test_curves_and_pictures_are_written_where_they_are_asked_for(make_set, tmp_path):
    pytest.importorskip("dvclive")
    out = tmp_path / "adt"
    train_adt(make_set(), PLAN, out, seed=4, host=TrainingHost(dvclive=True, pictures_every=2))
    history = (out / "history.csv").read_text().splitlines()
    best = [float(line.split(",")[history[0].split(",").index("val_ap")]) for line in history[1:]]
    stored = (out / "dvclive" / "plots" / "metrics" / "val" / "ap.tsv").read_text().splitlines()
    assert [float(line.split("\t")[-1]) for line in stored[1:]] == pytest.approx(best, abs=1e-6)
    curves = {path.stem for path in (out / "dvclive" / "plots" / "metrics").rglob("*.tsv")}
    assert {"inside", "outside", "overall", "ap", "f1", "t_fg", "t_bg"} <= curves
    pictures = sorted((out / "pictures").rglob("*.png"))
    assert {path.parent.name for path in pictures} == {"epoch_002"}
    assert read_image(pictures[0]).shape == (64, 4 * 96, 3)


PAIR = TrainingPlan(crops=CropRules(crop=48), epochs=2, batch=2, lr=1e-2)
RANK = """
import sys
from pathlib import Path
from anomdino.adt.dataset import CropRules, TrainingFiles
from anomdino.adt.training import TrainingPlan, train_adt
out, *files = map(Path, sys.argv[1:])
train_adt(TrainingFiles(*files), TrainingPlan(crops=CropRules(crop=48), epochs=2, batch=2, lr=1e-2), out, seed=4)
"""


def train_pair(files, out):
    weights = train_adt(files, PAIR, out, seed=4).net.state_dict()
    torch.save(weights, f"{out}.{os.environ['RANK']}")


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_which_are_those_under_torchrun(make_set, tmp_path):
    files = make_set(images=12)
    script = tmp_path / "run.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    paths = [path for path in vars(files).values() if path]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "first", *paths], check=True, env=environment, timeout=120)
    assert launch(train_pair, [(files, tmp_path / "second")] * 2) == [0, 0]
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")
    assert load_adt(tmp_path / "first").provenance["held_out"]["val_ap"] > 0
    first, second = (torch.load(tmp_path / f"second.{rank}") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
