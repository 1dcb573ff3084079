"""The learned fusion of widths: against the mean, a slow formulation, its laws, its files, its training."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from anomdino.config.score import ScoreConfig
from anomdino.errors import CheckpointError, ConfigError, DataError, TrainingError
from anomdino.scorer import width_fusion_training
from anomdino.scorer.base import ScorerSpec, build_scorer, save_scorer
from anomdino.scorer.batches import SampleId
from anomdino.scorer.distributed import World
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.options import ScoringOptions
from anomdino.scorer.setup import engine_from
from anomdino.scorer.small_training import StoredItem
from anomdino.scorer.width_fusion import (
    GRID_WIDTH,
    WidthFusion,
    at_grid,
    fusion_file,
    load_fusion,
    save_fusion,
)
from anomdino.scorer.width_fusion_training import (
    Calibrated,
    Crops,
    FusionPlan,
    FusionShare,
    cross_entropy,
    is_written,
    join,
    match_levels,
    read_grid,
    statistics,
    train_fusion,
    write_grid,
)
from tests.scorer.test_training import OPTIONS
from tests.scorer.watching import given_to_training

ALONE = World(0, 1, torch.device("cpu"))
WIDTHS = (48, 96)


def random_fusion(seed=0, widths=WIDTHS, share=1.0):
    """A network whose last layer is not zero: every place has weights and an offset of its own."""
    torch.manual_seed(seed)
    fusion = WidthFusion(widths, mean=-7.0, std=2.0, share=share)
    torch.nn.init.normal_(fusion.head.weight, std=2.0)
    torch.nn.init.normal_(fusion.head.bias)
    return fusion.eval().requires_grad_(False)


def random_scores(seed=0, sizes=((36, 48), (72, 96))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, *size, generator=generator) * 2 - 7 for size in sizes]


def resized(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=True)


@pytest.fixture
def scorer(tmp_path):
    torch.manual_seed(3)
    network = build_scorer(ScorerSpec("small", 4, OPTIONS)).eval()
    save_scorer(network, tmp_path / "rpl")
    return tmp_path / "rpl"


def test_an_untrained_network_gives_the_mean_of_the_widths():
    scores, size = random_scores(), (72, 96)
    fused = WidthFusion(WIDTHS, -7.0, 2.0)(scores, size)
    mean = torch.stack([resized(score[:, None], size)[:, 0] for score in scores]).mean(0)
    torch.testing.assert_close(fused, mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(72, 96), (75, 101), (1, 96), (200, 7)])
def test_fusing_agrees_with_weights_and_offset_put_together_at_once(size):
    fusion, scores = random_fusion(), random_scores(1)
    gates = F.interpolate(fusion.gates(at_grid(scores, size)), size, mode="bilinear", align_corners=False)
    stacked = torch.cat([resized(score[:, None], size) for score in scores], 1)
    expected = (gates[:, :2] * stacked).sum(1) + 2.0 * gates[:, 2] - 7.0 * (1 - gates[:, :2].sum(1))
    fused = fusion(scores, size)
    assert fused.shape == (1, *size)
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-4)


def test_weights_sum_to_one_and_without_an_offset_no_score_leaves_the_widths_range():
    fusion, size = random_fusion(2), (72, 96)
    fusion.head.weight[-1] = 0
    fusion.head.bias[-1] = 0
    for seed in range(5):
        scores = random_scores(seed)
        weights = fusion.gates(at_grid(scores, size))[:, :-1]
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
        stacked = torch.cat([resized(score[:, None], size) for score in scores], 1)
        fused = fusion(scores, size)
        assert (fused <= stacked.amax(1) + 1e-4).all()
        assert (fused >= stacked.amin(1) - 1e-4).all()
        assert (fused - stacked.mean(1)).abs().max() > 0.1  # it does choose


def test_a_share_lies_between_the_mean_and_the_network():
    scores, size = random_scores(4), (60, 80)
    mean, third, whole = (random_fusion(share=share)(scores, size) for share in (0.0, 1 / 3, 1.0))
    torch.testing.assert_close(mean, WidthFusion(WIDTHS, -7.0, 2.0)(scores, size), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(third, mean + (whole - mean) / 3, rtol=1e-4, atol=1e-4)


def test_images_of_a_batch_do_not_see_each_other():
    fusion, size = random_fusion(), (72, 96)
    first, second = random_scores(5), random_scores(6)
    both = fusion([torch.cat(pair) for pair in zip(first, second, strict=True)], size)
    torch.testing.assert_close(
        both, torch.cat([fusion(first, size), fusion(second, size)]), rtol=1e-5, atol=1e-5
    )


def test_the_grid_is_640_wide_whatever_the_image():
    assert at_grid(random_scores(), (36, 48)).shape == (1, 2, 480, GRID_WIDTH)
    assert at_grid(random_scores(), (1080, 1920)).shape == (1, 2, 360, GRID_WIDTH)
    assert at_grid(random_scores(), (1, 1920)).shape == (1, 2, 1, GRID_WIDTH)


def test_the_engine_joins_its_own_widths_by_the_network(scorer):
    save_fusion(random_fusion(), scorer)
    config = ScoreConfig(widths=list(WIDTHS), fusion="learned")
    engine, digest = engine_from(config, scorer)
    plain, plain_digest = engine_from(config.model_copy(update={"fusion": "mean"}), scorer)
    assert digest != plain_digest
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    scored, averaged = engine.score(image), plain.score(image)
    by_width = engine.score_widths(image)
    assert [tuple(score.shape) for score in by_width] == [(1, 36, 48), (1, 72, 96)]
    expected = random_fusion()(by_width, (60, 80))[0].numpy()
    np.testing.assert_allclose(scored.score, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(scored.score - averaged.score).max() > 0.1
    np.testing.assert_array_equal(scored.maps.semantic, averaged.maps.semantic)
    other, fusion = random_fusion(7), digest
    save_fusion(other, scorer)
    assert engine_from(config, scorer)[1] != fusion  # stored results of the other network are not valid


def test_an_engine_that_should_learn_needs_a_network_of_its_widths():
    network = build_scorer(ScorerSpec("small", 4, OPTIONS)).eval()
    options = ScoringOptions(widths=(48, 64), fusion="learned")
    with pytest.raises(ConfigError, match="none is given"):
        ScoringEngine(network, options)
    with pytest.raises(ConfigError, match=r"for \(48, 96\)"):
        ScoringEngine(network, options, fusion=random_fusion())


def test_what_is_saved_is_loaded(scorer):
    fusion = random_fusion(share=0.25)
    save_fusion(fusion, scorer, {"steps": 7})
    loaded = load_fusion(scorer, list(WIDTHS))
    for name, tensor in fusion.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_files_that_do_not_belong_say_so(scorer):
    with pytest.raises(CheckpointError, match="does not exist, and score.fusion is learned"):
        load_fusion(scorer, WIDTHS)
    save_fusion(random_fusion(), scorer)
    path = fusion_file(scorer, WIDTHS)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_fusion(scorer, (96, 48))
    shutil.copy(path, fusion_file(scorer, (96, 48)))
    with pytest.raises(CheckpointError, match=r"trained for the widths \(48, 96\), not \(96, 48\)"):
        load_fusion(scorer, (96, 48))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_fusion(scorer, WIDTHS)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no fusion of widths"):
        load_fusion(scorer, WIDTHS)
    digest = json.dumps({"widths": WIDTHS, "scorer": "0"})
    save_file({"weight": torch.zeros(1)}, path, {"format": "anomdino-width-fusion-9", "content": digest})
    with pytest.raises(CheckpointError, match="format anomdino-width-fusion-9"):
        load_fusion(scorer, WIDTHS)
    path.write_bytes(whole)
    save_scorer(build_scorer(ScorerSpec("small", 4, OPTIONS)), scorer)
    with pytest.raises(CheckpointError, match="another scorer"):
        load_fusion(scorer, WIDTHS)


def with_byte_changed(content, member):
    """Change the byte after the header of an array in an npz file."""
    place = content.index(b"\n", content.index(member)) + 1
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


def test_a_grid_holds_the_scores_of_every_width_and_the_label(scorer, tmp_path):
    engine, _ = engine_from(ScoreConfig(widths=list(WIDTHS)), scorer)
    image = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    label = np.zeros((60, 80), np.uint8)
    label[10:40, 20:50], label[50:] = 1, 255
    path = tmp_path / "grids/a.npz"
    assert not is_written(path, "one")
    write_grid(path, engine, image, label, "one")
    assert is_written(path, "one")
    assert not is_written(path, "two")
    scores, small = read_grid(path)
    assert scores.shape == (2, 480, GRID_WIDTH)
    assert small.shape == (480, GRID_WIDTH)
    np.testing.assert_array_equal(small[4::8, 4::8], label)
    for found, score in zip(scores, engine.score_widths(image), strict=True):
        expected = resized(score[None], (480, GRID_WIDTH))[0, 0].numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    whole = path.read_bytes()
    for damaged in (
        whole[:100],
        with_byte_changed(whole, b"scores.npy"),
        with_byte_changed(whole, b"digest.npy"),
    ):
        path.write_bytes(damaged)
        assert not is_written(path, "one")
    path.write_bytes(with_byte_changed(whole, b"label.npy"))
    assert not is_written(path, "one")
    with pytest.raises(DataError, match=r"a\.npz: is missing or damaged"):
        read_grid(path)
    with pytest.raises(DataError, match="label of"):
        write_grid(path, engine, image, label[1:], "one")


def test_cross_entropy_by_hand_without_void():
    logits = torch.tensor([[[0.0, 2.0, 50.0]], [[1.0, 1.0, 1.0]]], requires_grad=True)
    labels = torch.tensor([[[0, 1, 2]], [[255, 255, 255]]], dtype=torch.uint8)  # void from 2 on
    losses = cross_entropy(logits, labels)
    expected = (np.log(2) + np.log1p(np.exp(-2))) / 2
    assert losses[0].item() == pytest.approx(expected, rel=1e-6)
    assert losses[1].item() == 0
    losses.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0, 2] == 0


def stored(folder, count, right, seed=0, shape=(40, GRID_WIDTH)):
    """Images in which one of two widths tells where the object is; the other is noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, images = np.random.default_rng(seed), []
    for index in range(count):
        label = np.zeros(shape, np.uint8)
        top, left = rng.integers(0, shape[0] - 16), rng.integers(0, shape[1] - 60)
        label[top : top + 16, left : left + 60] = 1
        scores = rng.normal(-7, 2, (2, *shape))
        scores[right] += 6.0 * label
        path = folder / f"{index}.npz"
        np.savez(path, scores=scores.astype(np.float16), label=label, digest=np.array("x"))
        images.append(StoredItem(f"{folder.name}/{index}", path))
    return images


def test_a_crop_that_is_larger_than_the_grid_is_continued_by_its_edge_and_void(tmp_path):
    image = stored(tmp_path / "a", 1, 0)[0]
    scores, label = read_grid(image.file)
    crop = Crops([FusionShare([image])], FusionPlan(crop=GRID_WIDTH, flip=0), seed=1)[SampleId(0, 0)]
    np.testing.assert_array_equal(crop.scores, np.pad(scores, [(0, 0), (0, 600), (0, 0)], mode="edge"))
    np.testing.assert_array_equal(crop.label, np.pad(label, [(0, 600), (0, 0)], constant_values=255))


def test_a_large_label_keeps_its_values_on_the_grid(scorer, tmp_path):
    engine, _ = engine_from(ScoreConfig(widths=list(WIDTHS)), scorer)
    label = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (20, 1500))
    write_grid(tmp_path / "a.npz", engine, np.zeros((20, 1500, 3), np.uint8), label, "one")
    assert {*np.unique(read_grid(tmp_path / "a.npz")[1])} == {0, 1, 255}


def test_crops_depend_on_their_number_alone_and_labels_go_with_the_scores(tmp_path):
    shares = [
        FusionShare(stored(tmp_path / "a", 3, 0), weight=2.0),
        FusionShare(stored(tmp_path / "b", 3, 1), 2, 5.0),
    ]
    crops = Crops(shares, FusionPlan(crop=64), seed=1)
    assert [crops[SampleId(n, 0, True)].weight for n in range(6)] == [2.0, 5.0, 5.0, 2.0, 5.0, 5.0]
    for number in range(12):
        crop = crops[SampleId(number, 0, True)]
        again = Crops(shares, FusionPlan(crop=64), seed=1)[SampleId(number, 0, True)]
        assert torch.equal(crop.scores, again.scores)
        assert crop.scores.shape == (2, 64, 64)
        assert (crop.label[40:] == 255).all()  # the images are 40 rows high
        right = 0 if crop.key.startswith("a") else 1
        objects = crop.label == 1
        if objects.sum() > 100:
            assert crop.scores[right][objects].mean() > -3
            assert crop.scores[right][crop.label == 0].mean() < -6
    batch = join([crops[SampleId(n, 0, True)] for n in range(3)])
    assert batch.scores.shape == (3, 2, 64, 64)
    assert batch.weights.tolist() == [2.0, 5.0, 5.0]


def test_statistics_are_those_of_all_stored_scores(tmp_path):
    images = [stored(tmp_path / "a", 2, 0), stored(tmp_path / "b", 1, 1)]
    every = np.concatenate([read_grid(image.file)[0].ravel() for part in images for image in part])
    mean, std = statistics([FusionShare(part) for part in images])
    assert mean == pytest.approx(every.mean(), rel=1e-5)
    assert std == pytest.approx(every.std(), rel=1e-5)


def test_matched_levels_keep_the_order_and_give_the_means_distribution(tmp_path):
    shares = [FusionShare(stored(tmp_path / "a", 3, 0)), FusionShare(stored(tmp_path / "b", 3, 1))]
    fusion = random_fusion()
    grids = [torch.from_numpy(read_grid(image.file)[0])[None] for share in shares for image in share.items]

    def fused():
        return np.concatenate([fusion(grid.unbind(1), (40, GRID_WIDTH)).numpy().ravel() for grid in grids])

    before, mean = fused(), np.concatenate([grid.mean(1).numpy().ravel() for grid in grids])
    assert abs(before.std() / mean.std() - 1) > 0.1
    match_levels(fusion, shares)
    after = fused()
    order = np.argsort(before, kind="stable")
    assert (np.diff(after[order]) >= 0).all()
    chosen = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
    np.testing.assert_allclose(np.quantile(after, chosen), np.quantile(mean, chosen), atol=0.15)


def trained(tmp_path, state, steps=24, **changes):
    shares = [FusionShare(stored(tmp_path / "right", 6, 1))]
    plan = FusionPlan(steps=steps, batch=2, crop=40, lr=5e-3, warmup=2, checkpoint_every=10, **changes)
    return train_fusion(shares, WIDTHS, plan, tmp_path / state, seed=0, world=ALONE)


def test_training_sees_a_crop_as_scoring_sees_its_place():
    fusion = random_fusion(share=0.5)
    grid = torch.randn(1, 2, 320, GRID_WIDTH) * 2 - 7
    calibrated = Calibrated(fusion)
    scored = fusion(grid.unbind(1), (320, GRID_WIDTH))  # scores of a whole image, already on the grid
    whole = calibrated.slope * fusion.standardised(scored) + calibrated.offset
    torch.testing.assert_close(calibrated(grid), whole)
    fusion.whole.weight.zero_()  # without what the network knows of the whole image, far places do not matter
    part, expected = calibrated(grid[..., :320, :480]), calibrated(grid)[..., :320, :480]
    torch.testing.assert_close(
        part[..., 150:170, 60:240], expected[..., 150:170, 60:240], rtol=1e-4, atol=1e-4
    )


def test_training_learns_which_width_to_believe(tmp_path):
    done = trained(tmp_path, "state", steps=60)
    assert done.after[0] < 0.8 * done.before[0]
    scores, _ = read_grid(stored(tmp_path / "new", 1, 1, seed=9)[0].file)
    weights = done.network.gates(torch.from_numpy(scores)[None])[0]
    assert weights[1].mean() > 0.6  # the second width tells, the first is noise


def test_a_killed_training_ends_as_an_unbroken_one(tmp_path, monkeypatch):
    whole = trained(tmp_path, "whole").network.state_dict()
    from anomdino.scorer import width_fusion_training as module

    real, calls = module.cross_entropy, []

    def killed(logits, labels):
        calls.append(1)
        if len(calls) == 16:  # one look at kept images comes before
            raise KeyboardInterrupt
        return real(logits, labels)

    monkeypatch.setattr(module, "cross_entropy", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "broken")
    monkeypatch.setattr(module, "cross_entropy", real)
    resumed = trained(tmp_path, "broken").network.state_dict()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_kept_images_teach_nothing_and_a_resume_point_is_of_all_that_counts(tmp_path, monkeypatch):
    images = stored(tmp_path / "a", 5, 1)

    def given(shares, widths=WIDTHS):
        plan = FusionPlan(held_out=4)
        return given_to_training(
            monkeypatch,
            width_fusion_training,
            lambda: train_fusion(shares, widths, plan, tmp_path, seed=0, world=ALONE),
        )

    keys, depends = given([FusionShare(images)])
    assert keys == {"a/1", "a/2", "a/3"}
    other = [
        given([FusionShare(images[1:])]),
        given([FusionShare(images, draws=2)]),
        given([FusionShare(images, weight=2.0)]),
        given([FusionShare(images)], (48, 100)),
    ]
    assert len({depends, *(one for _, one in other)}) == 5
    assert given([FusionShare(images)])[1] == depends


def test_scores_that_are_not_finite_stop_the_training_by_name(tmp_path):
    images = stored(tmp_path / "a", 2, 0)
    with np.load(images[1].file) as file:
        scores, label = file["scores"], file["label"]
    scores[:] = np.inf
    np.savez(images[1].file, scores=scores, label=label, digest=np.array("x"))
    plan = FusionPlan(steps=4, batch=2, crop=40, held_out=2)
    with pytest.raises(TrainingError, match="a/1"):
        train_fusion([FusionShare(images)], WIDTHS, plan, tmp_path / "state", seed=0, world=ALONE)


def test_one_image_of_a_kind_is_too_few(tmp_path):
    with pytest.raises(DataError, match="fewer than two"):
        train_fusion(
            [FusionShare(stored(tmp_path / "a", 1, 0))],
            WIDTHS,
            FusionPlan(),
            tmp_path / "s",
            seed=0,
            world=ALONE,
        )


def test_scores_are_mapped_by_a_broken_line_that_goes_on_at_both_ends():
    fusion = WidthFusion(WIDTHS)
    old = np.cumsum(np.random.default_rng(0).uniform(0.1, 1, 32))
    new = np.cumsum(np.random.default_rng(1).uniform(0.1, 1, 32))
    fusion.levels.copy_(torch.from_numpy(np.stack([old, new])))
    values = np.concatenate([np.linspace(old[0] - 2, old[-1] + 2, 301), old])
    ends = [(new[1] - new[0]) / (old[1] - old[0]), (new[-1] - new[-2]) / (old[-1] - old[-2])]
    expected = np.interp(values, old, new)
    expected += ends[0] * np.minimum(values - old[0], 0) + ends[1] * np.maximum(values - old[-1], 0)
    mapped = fusion.mapped(torch.from_numpy(values.astype(np.float32))[None, None])[0, 0]
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-5)


def test_what_a_place_gets_depends_on_the_whole_image():
    """The coarsest features have the mean over the image added: more than any receptive field sees."""
    fusion, grid = (
        random_fusion(),
        torch.randn(1, 2, 64, 1024, generator=torch.Generator().manual_seed(1)) * 2 - 7,
    )
    changed = grid.clone()
    changed[..., 768:] += 4000
    near, far = fusion.gates(grid), fusion.gates(changed)
    assert (near - far)[..., :64].abs().max() > 1e-4
    fusion.whole.weight.zero_()
    assert (fusion.gates(grid) - fusion.gates(changed))[..., :64].abs().max() < 1e-6
