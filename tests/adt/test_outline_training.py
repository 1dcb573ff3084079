"""Training of the network that outlines objects: windows, loss, and what it learns."""

import cv2
import numpy as np
import pytest
import torch

from anomdino.adt import outline_training
from anomdino.adt.model import ScoreStatistics
from anomdino.adt.outline_net import SIDE, OutlineNet, draw, window_of
from anomdino.adt.outline_training import (
    WIDEST,
    Loaded,
    OutlineItem,
    OutlinePlan,
    OutlineShare,
    Windows,
    around_nothing,
    draw_box,
    draw_sample,
    load,
    loosened,
    object_boxes,
    outline_loss,
    overlaps,
    train_outlines,
)
from anomdino.errors import DataError
from anomdino.io.boxes import Boxes
from anomdino.io.images import write_png
from anomdino.io.scores import write_score
from anomdino.scorer.batches import SampleId
from anomdino.scorer.distributed import World
from anomdino.scorer.efficientnet_lite import EfficientNetLite0
from tests.scorer.watching import given_to_training

STATISTICS = ScoreStatistics(-6.0, 2.0)
WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def no_imagenet(monkeypatch):
    """Random weights in place of ImageNet's, which come in a package."""
    monkeypatch.setattr(EfficientNetLite0, "load_imagenet", lambda self: None)


@pytest.fixture
def items(tmp_path):
    """Eight images of discs in bright colours, whose score finds their middle; a box of the detector around nothing."""
    made = []
    source = np.random.default_rng(4)
    for number in range(8):
        label = np.zeros((80, 120), np.uint8)
        centre = (int(source.integers(30, 90)), int(source.integers(25, 55)))
        cv2.circle(label, centre, 16, 1, -1)
        image = np.full((80, 120, 3), 100.0) + source.normal(0, 8, (80, 120, 3))
        image[label == 1] += [90, -60, -60]
        middle = cv2.circle(np.zeros((80, 120), np.float32), centre, 8, 1, -1)
        score = -8 + 6 * cv2.GaussianBlur(middle, (0, 0), 3) + source.normal(0, 0.3, (80, 120))
        label[:4] = 255
        write_png(tmp_path / f"i{number}.png", image.clip(0, 255).astype(np.uint8))
        write_png(tmp_path / f"l{number}.png", label)
        write_score(tmp_path / f"s{number}.npz", score.astype(np.float32))
        boxes = Boxes(np.array([[2, 60, 30, 78], [0, 0, 5, 5]], np.float32), np.array([0.4, 0.01]))
        files = (
            tmp_path / f"{kind}{number}{end}" for kind, end in (("i", ".png"), ("s", ".npz"), ("l", ".png"))
        )
        made.append(OutlineItem(str(number), *files, boxes))
    return made


def test_an_image_is_loaded_with_its_objects_and_the_sure_boxes(items):
    loaded = load(items[0], STATISTICS)
    np.testing.assert_array_equal(loaded.found, [[2, 60, 30, 78]])
    ((x0, y0, x1, y1),) = loaded.objects
    rows, columns = np.nonzero(loaded.label == 1)
    assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    with np.load(items[0].score) as stored:
        np.testing.assert_allclose(loaded.score, (stored["arr_0"] + 6) / 2, atol=1e-6)


def test_a_score_that_is_lower_for_anomalies_is_turned_round(items):
    turned = load(items[0], ScoreStatistics(6.0, 2.0, -1))
    np.testing.assert_allclose(turned.score, -load(items[0], ScoreStatistics(-6.0, 2.0)).score, atol=1e-6)


def test_windows_are_drawn_around_the_surest_boxes(tmp_path):
    image, label = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    write_png(tmp_path / "image.png", image)
    write_png(tmp_path / "label.png", label)
    write_score(tmp_path / "score.npz", np.eye(40, 60, dtype=np.float32))
    corners = np.arange(14)
    boxes = Boxes(
        np.stack([corners, corners, corners + 9, corners + 9], 1).astype(np.float32),
        np.array([0.5, 0.02, 0.9, 0.04, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.05, 0.06, 0.01], np.float32),
    )
    files = (tmp_path / name for name in ("image.png", "score.npz", "label.png"))
    found = load(OutlineItem("one", *files, boxes), ScoreStatistics(0.0, 1.0)).found
    assert found[:, 0].tolist() == [2, 10, 9, 8, 0, 7, 6, 5, 4, 12]  # ten from 0.03 on


def test_the_loss_counts_less_far_from_the_box():
    image, score = np.zeros((200, 200, 3), np.uint8), np.zeros((200, 200), np.float32)
    label = np.zeros((200, 200), np.uint8)
    boxes = np.array([[80.0, 80.0, 120.0, 120.0]])
    for seed in range(20):
        sample = draw_sample(np.random.default_rng(seed), Loaded(image, score, label, boxes, boxes), "one")
        in_box, weight = sample.view.context[1] > 0, sample.weight
        values = {round(value, 3) for value in weight.unique().tolist()}
        assert {0.3, 1.0} <= values <= {0.0, 0.3, 1.0}  # 0 beyond the image
        assert not (weight[in_box] == np.float32(0.3)).any()
        assert (weight == 1).sum() < 1.6 * in_box.sum() < weight.numel()


def test_objects_are_the_components_and_all_of_them_together():
    label = np.zeros((50, 60), np.uint8)
    label[5:10, 5:15] = 1
    label[30:40, 40:44] = 1
    label[45, 50:60] = 1  # ten pixels
    label[20:25, 20:30] = 255
    boxes = sorted(map(tuple, object_boxes(label)))
    assert boxes == [(5, 5, 15, 10), (5, 5, 44, 40), (40, 30, 44, 40)]
    assert object_boxes(np.zeros((5, 5), np.uint8)).shape == (0, 4)


def test_a_label_of_another_size_is_named(items, tmp_path):
    write_png(tmp_path / "l0.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match="l0.png"):
        load(items[0], STATISTICS)


def test_boxes_are_found_ones_objects_and_places_without_one(items):
    loaded = load(items[0], STATISTICS)
    object_, source = loaded.objects[0], np.random.default_rng(0)
    kinds = {"found": 0, "object": 0, "nothing": 0}
    for _ in range(600):
        box = draw_box(source, loaded)
        assert (box >= 0).all()
        assert (box <= [120, 80, 120, 80]).all()
        assert (box[2:] - box[:2] >= 3).all()
        if np.abs(box - loaded.found[0]).max() < 5:
            kinds["found"] += 1
        elif np.abs((box[2:] + box[:2]) / 2 - (object_[2:] + object_[:2]) / 2).max() < 14:
            kinds["object"] += 1
        elif (box[:2] <= object_[:2]).all() and (box[2:] >= object_[2:]).all():
            kinds["object"] += 1  # drawn far too wide
        else:
            kinds["nothing"] += 1
    assert kinds["found"] == pytest.approx(300, abs=60)
    assert kinds["object"] == pytest.approx(225, abs=60)
    assert kinds["nothing"] > 25


def test_a_wide_box_holds_the_object_anywhere_in_it():
    source, object_ = np.random.default_rng(0), np.array([50.0, 40, 60, 44])
    wide = np.array([loosened(source, object_) for _ in range(300)])
    assert (wide[:, :2] <= object_[:2]).all()
    assert (wide[:, 2:] >= object_[2:]).all()
    longer = (wide[:, 2:] - wide[:, :2]) / [10, 4]
    assert longer.min() >= 1
    assert 6 < longer.max() <= WIDEST
    assert np.median(longer) == pytest.approx(np.sqrt(WIDEST), rel=0.15)
    before = (object_[:2] - wide[:, :2]) / np.maximum(wide[:, 2:] - wide[:, :2] - [10, 4], 1e-9)
    assert before.mean(0) == pytest.approx([0.5, 0.5], abs=0.06)


def test_a_box_around_nothing_lies_off_the_objects_where_the_score_is_high():
    score, label = np.full((40, 80), -5, np.float32), np.zeros((40, 80), np.uint8)
    score[8:12, 60:64], label[20:30, 20:30] = 5, 1
    loaded = Loaded(np.zeros((40, 80, 3), np.uint8), score, label, np.zeros((0, 4)), np.zeros((0, 4)))
    source, near = np.random.default_rng(0), 0
    for _ in range(50):
        box = around_nothing(source, loaded)
        x, y = (box[:2] + box[2:]) / 2
        near += abs(x - 60) <= 4 and abs(y - 8) <= 4
    assert near > 40  # e^10 times as likely as any other cell
    everywhere = loaded._replace(label=np.ones_like(label))
    assert not around_nothing(source, everywhere).any()


def test_windows_depend_on_the_seed_and_their_number_alone(items):
    shares = [OutlineShare(items[:4]), OutlineShare(items[4:], draws=2)]
    windows, others = Windows(shares, STATISTICS, 0), Windows(shares, STATISTICS, 1)
    first = windows[SampleId(5, 0, False)]
    windows[SampleId(6, 0, False)]
    again = windows[SampleId(5, 3, True)]
    assert len(first) == 4
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.view.image, b.view.image)
        assert torch.equal(a.target, b.target)
    assert not torch.equal(first[0].view.image, others[SampleId(5, 0, False)][0].view.image)
    keys = {number: windows[SampleId(number, 0, False)][0].key for number in range(30)}
    assert all((int(key) < 4) == (number % 3 == 0) for number, key in keys.items())


def test_what_is_void_or_beyond_the_image_does_not_count(items, monkeypatch):
    loaded = load(items[0], STATISTICS)
    box = np.array([0.0, 0.0, 80.0, 80.0])
    monkeypatch.setattr(outline_training, "draw_box", lambda source, loaded: box)
    window = window_of(box)
    scale = SIDE / window.side
    for seed in range(20):
        sample = draw_sample(np.random.default_rng(seed), loaded, "0")
        weight = sample.weight.numpy()
        mirrored = weight[:, :20].any()  # the window begins far left of the image
        weight = weight[:, ::-1] if mirrored else weight
        top = round(-window.y * scale)
        assert not weight[: top + round(4 * scale) - 1].any()
        assert not weight[:, : round(-window.x * scale) - 1].any()
        inner = weight[top + round(6 * scale) : top + round(70 * scale)]
        assert (inner[:, round((10 - window.x) * scale) : round((70 - window.x) * scale)] == 1).all()
        assert set(np.unique(weight)) <= {0, np.float32(0.3), 1}
        assert sample.view.image.shape == (3, SIDE, SIDE)
        assert sample.view.context.shape == (2, SIDE, SIDE)


def test_photo_score_and_target_of_a_window_stay_together(monkeypatch):
    """Where the target is, the photo is white, the score high and the box, turned round or not."""
    for name in ("changed_score", "changed_colours"):
        monkeypatch.setattr(outline_training, name, lambda source, values, *rest: values)
    label = np.zeros((80, 120), np.uint8)
    label[20:60, 30:70] = 1
    box, wider = np.array([[30.0, 20.0, 70.0, 60.0], [30.0, 20.0, 90.0, 60.0]])
    monkeypatch.setattr(outline_training, "draw_box", lambda source, loaded: wider)
    monkeypatch.setattr(outline_training, "draw_coarseness", lambda source, window: 0)
    loaded = Loaded(
        np.repeat(255 * label[..., None], 3, 2), 9.0 * label.astype(np.float32), label, box[None], box[None]
    )
    turned = set()
    for seed in range(20):
        sample = draw_sample(np.random.default_rng(seed), loaded, "0")
        true, inside = sample.target == 1, sample.view.context[1] > 0
        for seen in (sample.view.image[0] > 0, sample.view.context[0] > 1):
            assert (seen != true).float().mean() < 0.02
        assert (true & ~inside).float().mean() < 0.02
        weighed = sample.weight == 1  # the box and its rim
        assert (inside & ~weighed).float().mean() < 0.02
        turned.add(bool((inside & ~true)[:, : SIDE // 2].sum() > (inside & ~true)[:, SIDE // 2 :].sum()))
    assert turned == {True, False}


def test_images_that_are_not_shown_leave_score_and_box(items):
    loaded = load(items[0], STATISTICS)
    shown, hidden = (draw_sample(np.random.default_rng(3), loaded, "0", share) for share in (1.0, 0.0))
    assert shown.view.image.any()
    assert not hidden.view.image.any()
    assert torch.equal(shown.view.context, hidden.view.context)
    assert torch.equal(shown.target, hidden.target)
    windows = Windows([OutlineShare(items, shown=0.5)], STATISTICS, 0)
    samples = [sample for number in range(20) for sample in windows[SampleId(number, 0, False)]]
    assert sum(sample.view.image.any().item() for sample in samples) == pytest.approx(40, abs=15)


def test_the_loss_is_cross_entropy_and_dice_of_what_counts():
    source = np.random.default_rng(0)
    logits, targets = source.normal(size=(3, 9, 8)), (source.random((3, 9, 8)) < 0.4).astype(float)
    weights = source.choice([0, 0.3, 1], (3, 9, 8))
    targets[2] = 0  # a window around nothing has no overlap to win
    p = 1 / (1 + np.exp(-logits))
    expected = []
    for q, y, w in zip(p, targets, weights, strict=True):
        entropy = -(w * (y * np.log(q) + (1 - y) * np.log(1 - q))).sum() / w.sum()
        dice = (2 * (q * y * w * w).sum() + 1) / ((q * w).sum() + (y * w).sum() + 1)
        expected.append(entropy + (1 - dice) * ((y * w).sum() > 8))
    tensors = [torch.from_numpy(part) for part in (logits, targets, weights)]
    np.testing.assert_allclose(outline_loss(*tensors), expected, rtol=1e-9)
    found = overlaps(*tensors).numpy()
    for index in range(2):
        yes, true, w = logits[index] > 0, targets[index] == 1, weights[index]
        assert found[index] == pytest.approx((w * (yes & true)).sum() / (w * (yes | true)).sum())
    assert np.isnan(found[2])


@pytest.mark.slow
def test_training_learns_to_outline_what_the_score_covers_in_part(items, tmp_path):
    plan = OutlinePlan(steps=40, batch=4, lr=3e-3, held_out=8)
    done = train_outlines([OutlineShare(items)], STATISTICS, plan, tmp_path / "state", seed=0, world=WORLD)
    assert done.history[-2]["overlap"] > done.history[0]["overlap"]
    assert done.overlap == [done.history[-1]["overlap 0"]]
    kept = load(items[0], STATISTICS)
    box = Boxes(object_boxes(kept.label).astype(np.float32), np.ones(1))
    found = draw(done.network, kept.image, kept.score, box).shape >= 0.5
    true, known = kept.label == 1, kept.label < 2
    overlap = (found & true).sum() / ((found | true) & known).sum()
    by_score = max(
        ((kept.score > level) & true).sum() / (((kept.score > level) | true) & known).sum()
        for level in np.linspace(-2, 2, 41)
    )
    assert overlap > 0.7
    assert overlap > by_score + 0.05
    assert 0 < done.overlap[0] <= 1


@pytest.mark.slow
def test_a_training_that_was_killed_ends_like_an_unbroken_one(items, tmp_path, monkeypatch):
    plan = OutlinePlan(steps=4, batch=4, checkpoint_every=2)
    shares = [OutlineShare(items[:4]), OutlineShare(items[4:])]

    def train(state):
        return train_outlines(shares, STATISTICS, plan, tmp_path / state, seed=0, world=WORLD).network

    whole, reading = train("whole"), Windows.__getitem__

    def killed(self, sample):
        if sample.number >= 3:
            raise KeyboardInterrupt
        return reading(self, sample)

    with monkeypatch.context() as patch:
        patch.setattr(Windows, "__getitem__", killed)
        with pytest.raises(KeyboardInterrupt):
            train("broken")
    assert (tmp_path / "broken/state.pt").is_file()
    for (name, value), other in zip(
        whole.state_dict().items(), train("broken").state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def test_kept_images_teach_nothing_and_a_resume_point_is_of_all_that_counts(items, tmp_path, monkeypatch):
    def given(shares, statistics=STATISTICS):
        plan = OutlinePlan(held_out=4)
        return given_to_training(
            monkeypatch,
            outline_training,
            lambda: train_outlines(shares, statistics, plan, tmp_path, seed=0, world=WORLD),
        )

    keys, depends = given([OutlineShare(items)])
    assert keys == {"1", "2", "3", "5", "6", "7"}
    other = [
        given([OutlineShare(items[1:])]),
        given([OutlineShare(items, draws=2)]),
        given([OutlineShare(items, shown=0.5)]),
        given([OutlineShare(items)], ScoreStatistics(-6.0, 1.0)),
    ]
    assert len({depends, *(one for _, one in other)}) == 5
    assert given([OutlineShare(items)])[1] == depends


def test_kinds_of_one_image_are_refused(items, tmp_path):
    with pytest.raises(DataError, match="fewer than two"):
        train_outlines([OutlineShare(items[:1])], STATISTICS, OutlinePlan(), tmp_path, seed=0, world=WORLD)


def test_the_content_of_an_item_is_all_that_training_reads(items, tmp_path):
    before = items[0].content()
    assert items[1].content() != before
    moved = OutlineItem("0", items[0].image, items[0].score, items[0].label, Boxes.empty())
    assert moved.content() != before
    write_png(tmp_path / "l0.png", np.zeros((80, 120), np.uint8))
    assert items[0].content() != before


def test_the_rate_of_the_encoder_is_its_own(items):
    objective = outline_training.OutlineObjective(OutlineNet(), WORLD, OutlinePlan())
    groups = objective.optimiser().param_groups
    assert [group["base_lr"] for group in groups] == [1e-3, 1e-4]
    assert sum(len(group["params"]) for group in groups) == len(list(objective.parameters()))
