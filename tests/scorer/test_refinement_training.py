"""Training of the network that lowers a score by the photo: crops, loss, and what it learns."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from anomdino.errors import DataError
from anomdino.scorer import refinement_training
from anomdino.scorer.base import normalise
from anomdino.scorer.batches import SampleId
from anomdino.scorer.distributed import World
from anomdino.scorer.efficientnet_lite import EfficientNetLite0
from anomdino.scorer.photo_unet import PhotoUNet
from anomdino.scorer.refinement import Refinement
from anomdino.scorer.refinement_training import (
    CROP,
    Calibrated,
    Crops,
    RefinementObjective,
    RefinementPlan,
    RefinementShare,
    crop,
    draw_place,
    join,
    lacking,
    read_item,
    train_refinement,
    write_item,
)
from anomdino.scorer.small_training import StoredItem
from tests.scorer.watching import given_to_training

STATISTICS = -8.0, 1.0
ALONE = World(0, 1, torch.device("cpu"))
PLAN = RefinementPlan(steps=4, batch=2, warmup=1, held_out=4, checkpoint_every=2)


@pytest.fixture(autouse=True)
def no_imagenet(monkeypatch):
    """Random weights in place of ImageNet's, which come in a package."""
    monkeypatch.setattr(EfficientNetLite0, "load_imagenet", lambda self: None)


def photo(source):
    """A red disc that the score sees the middle of, and a patch of light without an object that it takes for one."""
    label, middle, light = (np.zeros((120, 160), np.uint8) for _ in range(3))
    x, y = int(source.integers(40, 120)), int(source.integers(35, 85))
    cv2.circle(label, (x, y), 24, 1, -1)
    cv2.circle(middle, (x, y), 10, 1, -1)
    cv2.circle(light, ((x + 80) % 160, int(source.integers(20, 100))), 10, 1, -1)
    light[label == 1] = 0
    image = np.full((120, 160, 3), 90.0) + source.normal(0, 6, (120, 160, 3))
    image[label == 1] += [110, -50, -50]
    image[light == 1] += 60
    stands_out = cv2.GaussianBlur(np.maximum(middle, light).astype(np.float32), (0, 0), 3)
    score = (-8 + 5 * stands_out + source.normal(0, 0.3, (120, 160))).astype(np.float32)
    label[:4] = 255
    return image.clip(0, 255).astype(np.uint8), score, label


@pytest.fixture
def items(tmp_path):
    source, made = np.random.default_rng(4), []
    for number in range(8):
        made.append(StoredItem(str(number), tmp_path / f"{number}.npz"))
        write_item(made[-1].file, *photo(source))
    return made


def test_an_item_lies_on_the_grid_and_scores_keep_their_mean(tmp_path):
    image, score, label = photo(np.random.default_rng(0))
    write_item(tmp_path / "one.npz", image, score, label)
    stored, levels, small = read_item(tmp_path / "one.npz")
    assert stored.shape == (480, 640, 3)
    assert stored.dtype == np.uint8
    assert levels.shape == small.shape == (480, 640)
    assert set(np.unique(small)) == {0, 1, 255}
    assert levels.mean() == pytest.approx(score.mean(), abs=0.01)
    assert np.ptp(image.mean((0, 1))) > 3
    np.testing.assert_allclose(stored.mean((0, 1)), image.mean((0, 1)), atol=0.5)
    np.testing.assert_array_equal(small[::4, ::4], label)


def test_an_item_of_two_sizes_is_refused(tmp_path):
    image, score, label = photo(np.random.default_rng(0))
    with pytest.raises(DataError, match=r"one\.npz"):
        write_item(tmp_path / "one.npz", image, score[:-1], label)
    assert not (tmp_path / "one.npz").exists()


def test_an_item_that_was_damaged_says_so(items):
    content = items[0].file.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content.replace(b"label.npy", b"lapel.npy")):
        items[0].file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"0\.npz: is missing or damaged"):
            read_item(items[0].file)


@pytest.mark.parametrize("corner", [(0, 0), (-30, 50), (100, -200), (470, 600)])
def test_a_crop_is_what_lies_there_and_the_filling_beyond(corner):
    values = np.random.default_rng(0).integers(0, 200, (480, 640)).astype(np.uint8)
    cut = crop(values, corner, CROP, 255, nearest=True)
    for y, x in np.random.default_rng(1).integers(0, CROP, (200, 2)):
        row, column = corner[0] + y, corner[1] + x
        inside = 0 <= row < 480 and 0 <= column < 640
        assert cut[y, x] == (values[row, column] if inside else 255)


def test_a_large_crop_is_shrunk_by_means_and_its_labels_keep_their_values():
    values = np.random.default_rng(0).normal(size=(960, 960)).astype(np.float32)
    means = values.reshape(320, 3, 320, 3).mean((1, 3))
    np.testing.assert_allclose(crop(values, (0, 0), 960, 0), means, atol=1e-5)
    labels = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (960, 960))
    assert {*np.unique(crop(labels, (0, 0), 960, 255, nearest=True))} == {0, 1, 255}


def test_crops_are_drawn_over_the_image_and_around_objects():
    label = np.zeros((480, 640), np.uint8)
    label[200:210, 500:510] = 1
    source, sides, hits = np.random.default_rng(0), [], 0
    for _ in range(400):
        (row, column), side = draw_place(source, label)
        assert min(0, 480 - side) <= row <= max(0, 480 - side)
        assert min(0, 640 - side) <= column <= max(0, 640 - side)
        hits += row <= 200 and row + side >= 210 and column <= 500 and column + side >= 510
        sides.append(side)
    assert min(sides) < 230
    assert max(sides) > 600
    assert hits > 260  # half by intention, others by chance


def test_a_crop_depends_on_its_number_alone(items):
    crops = Crops([RefinementShare(items)], STATISTICS, 3)
    first, again, other = (crops[SampleId(number, 0, False)] for number in (5, 5, 6))
    for one, two in zip(first[:4], again[:4], strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.level, other.level)
    assert first.image.shape == (3, CROP, CROP)
    drawn = [crops[SampleId(number, 0, False)] for number in range(12)]
    wide = [one for one in drawn if not one.frame.all()]
    assert wide
    for one in wide:
        beyond = one.frame == 0
        assert (one.label[beyond] == 255).all()
        assert (one.level[beyond] == 0).all()
        assert (one.image[:, beyond] == 0).all()


def test_photo_score_and_label_of_a_crop_stay_together(tmp_path, monkeypatch):
    """Where the label says object, the photo is white and the score high, turned round or not."""
    for name in ("changed_score", "changed_colours"):
        monkeypatch.setattr(refinement_training, name, lambda source, values, *rest: values)
    label = np.zeros((480, 640), np.uint8)
    label[100:300, 200:320] = 1
    item = StoredItem("a", tmp_path / "a.npz")
    write_item(item.file, np.repeat(255 * label[..., None], 3, 2), 20.0 * label.astype(np.float32), label)
    crops, columns = Crops([RefinementShare([item])], (0.0, 1.0), 0), set()
    for number in range(10):
        one = crops[SampleId(number, 0, False)]
        white, high, true = one.image[0] > 0, one.level > 10, one.label == 1
        assert (white != true).float().mean() < 0.01
        assert (high != true).float().mean() < 0.01
        assert true.any()
        columns.add(bool(true[:, :160].sum() > true[:, 160:].sum()))
    assert columns == {True, False}


def test_the_photo_is_hidden_as_often_as_asked(items):
    crops = Crops([RefinementShare(items, shown=0.3)], STATISTICS, 0)
    shown = sum(bool(crops[SampleId(number, 0, False)].image.any()) for number in range(60))
    assert 8 <= shown <= 28


def test_kinds_are_drawn_as_often_as_they_ask(items):
    shares = [RefinementShare(items[:4], 3, 1.0), RefinementShare(items[4:], 1, 2.0)]
    crops = Crops(shares, STATISTICS, 0)
    weights = [crops[SampleId(number, 0, False)].weight for number in range(8)]
    assert weights == [1, 1, 1, 2, 1, 1, 1, 2]


def test_what_lacks_is_one_less_dice_of_what_counts():
    source = np.random.default_rng(0)
    logits, labels = source.normal(size=(3, 9, 8)), source.choice([0, 1, 255], (3, 9, 8))
    labels[2] = 0
    p = 1 / (1 + np.exp(-logits))
    expected = []
    for q, y in zip(p, labels, strict=True):
        found, true = q[y != 255].sum(), (y == 1).sum()
        dice = (2 * q[y == 1].sum() + 1) / (found + true + 1)
        expected.append((1 - dice) * (true > 8))
    found = lacking(torch.from_numpy(logits), torch.from_numpy(labels.astype(np.uint8)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert expected[2] == 0


def test_the_loss_is_that_of_the_moved_score_its_overlap_and_the_anchor(items):
    torch.manual_seed(0)
    network = Calibrated(Refinement(*STATISTICS))
    objective = RefinementObjective(network, ALONE, PLAN)
    crops = Crops([RefinementShare(items, weight=3.0)], STATISTICS, 1)
    batch = join([crops[SampleId(number, 0, False)] for number in range(2)])
    with torch.no_grad():
        losses = objective(batch)
        offsets = network.refinement.offsets(batch.images, batch.levels, batch.frames)
    levels, known = batch.levels.double(), batch.labels < 2
    total = 0.0
    for index in range(2):
        true = (batch.labels[index] == 1)[known[index]].double()
        parts = []
        for level in (levels[index], levels[index] + offsets[index].double()):
            p = torch.sigmoid(1.5 * level - 4)[known[index]]
            parts.append(float(-(true * p.log() + (1 - true) * (1 - p).log()).mean()))
        dice = (2 * (p * true).sum() + 1) / (p.sum() + true.sum() + 1)
        total += 3 * (parts[1] + 0.3 * float(1 - dice) * bool(true.sum() > 8) + 0.3 * parts[0]) / 2
    assert float(losses["loss"]) == pytest.approx(total, rel=1e-4)


def test_every_weight_learns_and_the_encoders_statistics_stay(items):
    torch.manual_seed(0)
    network = Calibrated(Refinement(*STATISTICS))
    objective = RefinementObjective(network, ALONE, PLAN)
    objective.start_step()
    crops = Crops([RefinementShare(items)], STATISTICS, 1)
    objective(join([crops[SampleId(number, 0, False)] for number in range(4)]))["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert not any(module.training for module in network.refinement.network.encoder.modules())
    trained = {id(p) for group in objective.optimiser().param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in network.parameters()}


def test_a_killed_training_ends_as_an_unbroken_one(items, tmp_path, monkeypatch):
    shares = [RefinementShare(items)]
    whole = train_refinement(shares, STATISTICS, PLAN, tmp_path / "whole", seed=2, world=ALONE)
    keep, seen = Crops.__getitem__, []

    def dies(self, sample):
        seen.append(sample.number)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return keep(self, sample)

    monkeypatch.setattr(Crops, "__getitem__", dies)
    with pytest.raises(KeyboardInterrupt):
        train_refinement(shares, STATISTICS, PLAN, tmp_path / "broken", seed=2, world=ALONE)
    monkeypatch.setattr(Crops, "__getitem__", keep)
    resumed = train_refinement(shares, STATISTICS, PLAN, tmp_path / "broken", seed=2, world=ALONE)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_a_training_starts_from_the_weights_that_it_is_given(items, tmp_path):
    torch.manual_seed(7)
    start = PhotoUNet(maps=2)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    plan = replace(PLAN, lr=1e-9, encoder_lr=1e-9, weight_decay=0.0)
    done = train_refinement(
        [RefinementShare(items)], STATISTICS, plan, tmp_path / "state", seed=0, world=ALONE, start=start
    )
    for name, tensor in done.network.network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.state_dict().items())


def test_kept_images_teach_nothing_and_a_resume_point_is_of_all_that_counts(items, tmp_path, monkeypatch):
    def given(shares, statistics=STATISTICS, start=None):
        return given_to_training(
            monkeypatch,
            refinement_training,
            lambda: train_refinement(shares, statistics, PLAN, tmp_path, seed=0, world=ALONE, start=start),
        )

    torch.manual_seed(7)
    starts = [PhotoUNet(maps=2) for _ in range(2)]
    keys, depends = given([RefinementShare(items)])
    assert keys == {"1", "2", "3", "5", "6", "7"}
    other = [
        given([RefinementShare(items[1:])]),
        given([RefinementShare(items, draws=2)]),
        given([RefinementShare(items, weight=2.0)]),
        given([RefinementShare(items, shown=0.5)]),
        given([RefinementShare(items)], (-8.0, 2.0)),
        *(given([RefinementShare(items)], start=start) for start in starts),
    ]
    assert len({depends, *(one for _, one in other)}) == 8
    assert given([RefinementShare(items)])[1] == depends


def test_a_kind_of_one_image_is_refused(items, tmp_path):
    with pytest.raises(DataError, match="fewer than two of a kind"):
        train_refinement([RefinementShare(items[:1])], STATISTICS, PLAN, tmp_path, seed=0, world=ALONE)


@pytest.mark.slow
def test_a_trained_network_lowers_patches_of_light(items, tmp_path):
    plan = replace(PLAN, steps=40, batch=4, warmup=5, checkpoint_every=100)
    done = train_refinement(
        [RefinementShare(items)], STATISTICS, plan, tmp_path / "state", seed=0, world=ALONE
    )
    assert done.after[0] < done.before[0]
    network = done.network
    network.share.fill_(1.0)
    source = np.random.default_rng(99)
    before, after, truth = [], [], []
    for _ in range(4):
        image, score, label = photo(source)
        given = torch.from_numpy(score)[None]
        moved = network(given, normalise(torch.from_numpy(image)[None]))[0].numpy()
        known = label < 2
        before.append(score[known])
        after.append(moved[known])
        truth.append(label[known] == 1)
    truth = np.concatenate(truth)
    old, new = (average_precision_score(truth, np.concatenate(part)) for part in (before, after))
    assert new > old + 0.005
