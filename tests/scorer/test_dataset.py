import random

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from anomdino.config.rpl import AugmentConfig, PasteConfig, ResidualConfig
from anomdino.data.rpl_mixing import mix_rpl
from anomdino.errors import ConfigError, DataError
from anomdino.scorer.augment import centred_photo, change_colours, cut_out, random_crop
from anomdino.scorer.batches import SampleId, StepSampler, load_batches, network_input
from anomdino.scorer.dataset import (
    ClosedSetCrops,
    ImagePairs,
    OutlierCrops,
    PhotoCrops,
    paste_rules,
    split_outliers,
)
from anomdino.seeding import derive_seed

PLAIN = AugmentConfig(crop=(32, 40), scale=(1.0, 1.0), flip=0.0, jitter=0.0)


@pytest.fixture(scope="module")
def scenes(tiny_data):
    return ImagePairs(tiny_data / "inlier" / "train", "labels", [0, 1, 2, 3, 255], cache_mb=1)


@pytest.fixture(scope="module")
def outliers(tiny_data):
    return ImagePairs(tiny_data / "outliers", "masks", cache_mb=1)


def residual(**changes):
    base = {"rule": "objects", "augment": {"crop": (32, 40)}, "rpl_size": 40, "batch": 2}
    return ResidualConfig.model_validate(base | changes)


# Files and cache


def test_cache_is_bounded_and_changes_nothing(tiny_data, scenes):
    root = tiny_data / "inlier" / "train"
    pair_bytes = sum(array.nbytes for array in scenes[0])
    half = ImagePairs(root, "labels", cache_mb=3 * pair_bytes / 2**20 + 1e-6)
    none = ImagePairs(root, "labels", cache_mb=0)
    assert len(scenes._cache) == 6
    assert len(half._cache) == 3
    assert not none._cache
    for index in range(6):
        for a, b, c in zip(scenes[index], half[index], none[index], strict=True):
            assert np.array_equal(a, b)
            assert np.array_equal(a, c)


def test_values_that_are_no_class_are_refused_with_their_counts(tiny_data):
    with pytest.raises(DataError, match=r"value: pixels\): \{3: 120\}"):
        ImagePairs(tiny_data / "inlier" / "train", "labels", [0, 1, 2, 255], cache_mb=1)


def test_sizes_partners_and_emptiness_are_checked(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match="holds no image"):
        ImagePairs(tmp_path, "labels")
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(DataError, match="1 image without label: a"):
        ImagePairs(tmp_path, "labels")
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match="5 x 4, its image 6 x 4"):
        ImagePairs(tmp_path, "labels", cache_mb=1)


# Crops


def test_plain_crop_is_a_window_of_the_scene(scenes):
    image, label = scenes[0]
    crop, crop_label = random_crop(image, label, np.random.default_rng(0), PLAIN)
    places = [
        (y, x)
        for y in range(48 - 32 + 1)
        for x in range(64 - 40 + 1)
        if np.array_equal(image[y : y + 32, x : x + 40], crop)
    ]
    assert len(places) == 1
    (y, x) = places[0]
    assert np.array_equal(label[y : y + 32, x : x + 40], crop_label)


def test_small_scales_are_padded_with_void_around_the_middle(scenes):
    augment = AugmentConfig(crop=(64, 64), scale=(0.5, 0.5), flip=0.0)
    crop, label = random_crop(*scenes[0], np.random.default_rng(0), augment)
    assert (label[:20] == 255).all()
    assert (label[44:] == 255).all()
    assert (label[:, :16] == 255).all()
    assert (label[24:44, 16:48] != 255).all()
    assert (crop[:20] == [124, 116, 104]).all()


def test_label_follows_the_image_through_scale_and_flip():
    ramp = np.zeros((60, 80, 3), np.uint8)
    ramp[..., 0] = np.arange(80) * 3
    label = (ramp[..., 0] // 24).astype(np.uint8)
    augment = AugmentConfig(crop=(30, 40), scale=(0.6, 1.7), flip=0.5)
    for seed in range(30):
        crop, crop_label = random_crop(ramp, label, np.random.default_rng(seed), augment)
        known = crop_label != 255
        assert np.abs(crop[..., 0][known] / 24 - crop_label[known] - 0.5).max() < 0.85


def test_colours_change_within_bounds_and_not_at_all_when_off(scenes):
    image = scenes[1][0]
    assert np.array_equal(change_colours(image, np.random.default_rng(0), PLAIN), image)
    changed = change_colours(image, np.random.default_rng(0), AugmentConfig(jitter=0.3, blur=1.0, noise=5))
    assert changed.dtype == np.uint8
    assert changed.shape == image.shape
    assert not np.array_equal(changed, image)


def test_object_is_cut_out_tightly(outliers):
    photo, mask = outliers[0]
    colour, alpha = cut_out(photo, mask)
    assert alpha.sum() == (mask > 0).sum()
    assert alpha[0].any()
    assert alpha[-1].any()
    assert alpha[:, 0].any()
    assert alpha[:, -1].any()
    assert np.array_equal(colour[alpha], photo[mask > 0])
    assert not cut_out(photo, np.zeros_like(mask))[1].any()


def test_photo_is_centred(outliers):
    photo, mask = outliers[0]
    image, label = centred_photo(photo, mask, (50, 20))
    assert np.array_equal(image[5:45], photo[:, 5:25])
    assert np.array_equal(label[5:45] == 254, mask[:, 5:25] > 0)
    assert (label[:5] == 255).all()
    assert (label[45:] == 255).all()


# Whole samples


@pytest.mark.parametrize("rule", ["objects", "rpl"])
def test_samples_do_not_depend_on_the_number_of_workers(scenes, outliers, rule):
    dataset = OutlierCrops(scenes, outliers, range(5), residual(rule=rule), seed=3)
    runs = [list(load_batches(dataset, StepSampler(6, 2, 4, 3), workers)) for workers in (0, 2)]
    for one, two in zip(*runs, strict=True):
        assert one.keys == two.keys
        for a, b in zip(one, two, strict=True):
            assert a == b if isinstance(a, list) else torch.equal(a, b)


def test_loading_draws_no_random_number_of_the_process(scenes):
    torch.manual_seed(0)
    list(load_batches(ClosedSetCrops(scenes, PLAIN, 0), StepSampler(6, 2, 2, 0), 0))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_numbers_and_seeds_give_different_crops(scenes):
    augment = AugmentConfig(crop=(32, 40))
    dataset = ClosedSetCrops(scenes, augment, 0)
    again = ClosedSetCrops(scenes, augment, 0)
    other = ClosedSetCrops(scenes, augment, 1)
    assert np.array_equal(dataset[SampleId(4, 0)].image, again[SampleId(4, 0)].image)
    assert not np.array_equal(dataset[SampleId(4, 0)].image, dataset[SampleId(5, 0)].image)
    assert not np.array_equal(dataset[SampleId(4, 0)].image, other[SampleId(4, 0)].image)


def test_published_rule_is_mix_rpl(scenes, outliers):
    dataset = OutlierCrops(scenes, outliers, [1, 3, 4], residual(rule="rpl"), seed=9)
    sample = dataset[SampleId(7, 2)]
    source = random.Random(derive_seed(9, "residual", 7))
    outlier = [1, 3, 4][source.randint(0, 2)]
    expected = mix_rpl(
        *scenes[2], *outliers[outlier], source, size=40, scales=(0.25, 0.5, 0.5, 0.75, 0.1, 0.125)
    )
    assert np.array_equal(sample.image, expected.mixed_image)
    assert np.array_equal(sample.label, expected.mixed_label)
    assert np.array_equal(sample.outlier_label, expected.outlier_label)
    batch = next(iter(load_batches(dataset, StepSampler(6, 2, 1, 0), 0)))
    assert torch.equal(network_input(batch.images), batch.images.permute(0, 3, 1, 2))


def test_trap_the_published_rule_flips_eight_scenes_of_ten(scenes, outliers):
    def flips(**changes):
        dataset = OutlierCrops(scenes, outliers, range(5), residual(rule="rpl", **changes), seed=0)
        upright = OutlierCrops(
            scenes, outliers, range(5), residual(rule="rpl", **changes | {"rpl_flip": 0.0}), seed=0
        )
        found = 0
        for number in range(200):
            sample, other = (part[SampleId(number, number % 6, False)] for part in (dataset, upright))
            found += not np.array_equal(sample.image, other.image)
        return found / 200

    settings = {"without_outliers": "scene"}
    assert 0.72 < flips(**settings) < 0.88
    assert flips(**settings, rpl_flip=1.0) == 1
    assert residual().rpl_flip == 0.8


@pytest.mark.parametrize("rule", ["objects", "rpl"])
def test_batches_without_outliers(scenes, outliers, rule):
    zeros = OutlierCrops(scenes, outliers, range(5), residual(rule=rule), seed=0)[SampleId(0, 1, False)]
    assert not zeros.label.any()
    tensor = torch.from_numpy(np.asarray(zeros.image))[None]
    assert network_input(tensor).abs().max() < 0.01
    plain = OutlierCrops(scenes, outliers, range(5), residual(rule=rule, without_outliers="scene"), seed=0)
    assert set(np.unique(plain[SampleId(0, 1, False)].label)) <= {0, 1, 2, 3, 255}


def test_objects_appear_as_254_and_the_photo_comes_along_for_corocl(scenes, outliers):
    config = residual(paste={"objects": (2, 2), "height": (0.3, 0.5)})
    sample = OutlierCrops(scenes, outliers, range(5), config, seed=0)[SampleId(0, 0)]
    assert (sample.label == 254).sum() > 20
    assert sample.outlier_image.shape == sample.image.shape == (32, 40, 3)
    assert set(np.unique(sample.outlier_label)) == {0, 254, 255}
    without = OutlierCrops(scenes, outliers, range(5), residual(corocl={"enabled": False}), seed=0)
    assert without[SampleId(0, 0)].outlier_image is None


def test_a_whole_photo_keeps_its_own_scene(scenes, outliers):
    photo, mask = outliers[2]
    config = residual(whole_photos=1.0, augment=PLAIN.model_copy(update={"crop": mask.shape}))
    sample = OutlierCrops(scenes, outliers, [2], config, seed=0)[SampleId(0, 0)]
    assert np.array_equal(sample.image, photo)
    assert np.array_equal(sample.label, np.where(mask > 0, 254, 0))
    assert sample.key == outliers.key(2)
    assert np.array_equal(sample.outlier_label, sample.label)


def test_whole_photos_come_as_often_as_asked_and_only_from_the_chosen(scenes, outliers):
    crops = OutlierCrops(scenes, outliers, [1, 3], residual(whole_photos=0.3), seed=0)
    keys = [crops[SampleId(number, number % 6)].key for number in range(300)]
    photos = [key for key in keys if key in {outliers.key(index) for index in range(5)}]
    assert 0.22 < len(photos) / 300 < 0.38
    assert set(photos) == {outliers.key(1), outliers.key(3)}


def test_batches_without_outliers_hold_no_whole_photo(scenes, outliers):
    config = residual(whole_photos=1.0, without_outliers="scene")
    sample = OutlierCrops(scenes, outliers, range(5), config, seed=0)[SampleId(0, 1, False)]
    assert sample.key == scenes.key(1)
    assert set(np.unique(sample.label)) <= {0, 1, 2, 3, 255}


def test_whole_photos_need_rule_objects():
    with pytest.raises(ValidationError, match=r"whole_photos is 0\.5, but rule rpl .* set rule: objects"):
        residual(rule="rpl", whole_photos=0.5)


def test_photos_for_validation_come_in_order_and_padded(outliers):
    crops = PhotoCrops(outliers, [4, 0], (60, 80))
    assert len(crops) == 2
    for place, index in enumerate([4, 0]):
        photo, mask = outliers[index]
        height, width = mask.shape
        top, left = (60 - height) // 2, (80 - width) // 2
        window = np.s_[top : top + height, left : left + width]
        sample = crops[place]
        assert sample.key == outliers.key(index)
        assert np.array_equal(sample.image[window], photo)
        assert np.array_equal(sample.label[window], np.where(mask > 0, 254, 0))
        assert (sample.label != 255).sum() == mask.size


def test_a_photo_larger_than_the_crop_is_shrunk_in_whole(outliers):
    photo, mask = outliers[1]
    height, width = mask.shape
    sample = PhotoCrops(outliers, [1], (height // 2, width))[0]
    shown = sample.label != 255
    assert shown.sum() == (height // 2) * (width // 2)
    share = (sample.label == 254).sum() / shown.sum()
    assert share == pytest.approx((mask > 0).mean(), abs=0.05)
    mean = sample.image[shown].mean(axis=0)
    np.testing.assert_allclose(mean, photo.reshape(-1, 3).mean(axis=0), atol=3)


def test_unknown_paste_rule_is_refused(scenes, outliers):
    config = residual(paste=PasteConfig(rules={"shadwo": 1}))
    with pytest.raises(ConfigError, match="shadow"):
        OutlierCrops(scenes, outliers, range(5), config, seed=0)


@pytest.mark.parametrize(
    "rules",
    [
        {"softness": [2, 1]},
        {"ground_height": [0, 1]},
        {"match": [0.5]},
        {"height": [0.1, float("inf")]},
        {"match": 1},
    ],
)
def test_a_range_of_paste_rules_with_its_ends_out_of_order_is_refused(rules):
    name = next(iter(rules))
    with pytest.raises(ConfigError, match=rf"(?s)paste\.rules\.{name}: .*low <= high"):
        paste_rules(PasteConfig(rules=rules))
    assert paste_rules(PasteConfig(rules={"softness": [1, 2]})).softness == (1, 2)


def test_held_out_outliers_are_never_trained_on(outliers):
    train, held = split_outliers(outliers, 0.4, 0)
    assert len(held) == 2
    assert sorted(train + held) == list(range(5))
    assert split_outliers(outliers, 0.4, 0) == (train, held)
    assert split_outliers(outliers, 0.0, 0) == (list(range(5)), list(range(5)))
