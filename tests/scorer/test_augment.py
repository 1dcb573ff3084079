"""Harder colours, windows that are padded last, and swapped regions in training crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomdino.config.rpl import AugmentConfig, ResidualConfig
from anomdino.io.images import write_png
from anomdino.scorer.augment import PAD_COLOUR, change_colours, change_style, cut_window, pad_to
from anomdino.scorer.batches import SampleId
from anomdino.scorer.dataset import ImagePairs, OutlierCrops


def photo(seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def test_style_moves_mean_and_spread_part_of_the_way() -> None:
    image = np.clip(np.random.default_rng(0).normal(60, 15, (80, 90, 3)), 0, 255).astype(np.uint8)
    means, spreads = [], []
    for seed in range(300):
        styled = change_style(image, np.random.default_rng(seed)).astype(float)
        means.append(styled.mean())
        spreads.append(styled.std(axis=(0, 1)).mean())
    assert min(means) > 45
    assert max(means) > 120
    assert min(spreads) > 10
    assert max(spreads) > 35


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1)])
def test_images_of_one_row_or_column_are_shrunk_to_no_less(size: tuple[int, int]) -> None:
    image, label = photo(0, size), np.zeros(size, np.uint8)
    for seed in range(20):
        found = cut_window(
            image, label, np.random.default_rng(seed), AugmentConfig(crop=(32, 32), scale=(0.2, 0.4))
        )
        assert found[0].shape == (*found[1].shape, 3)
        assert min(found[1].shape) == 1


def test_style_keeps_the_order_of_grey_levels() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    for seed in range(20):
        styled = change_style(ramp, np.random.default_rng(seed)).astype(int)
        assert np.all(np.diff(styled[0], axis=0) >= 0)


@pytest.mark.parametrize(
    ("field", "value"), [("gamma", 0.5), ("style", 1.0), ("grey", 1.0), ("noise", 8.0), ("blur", 1.0)]
)
def test_every_change_acts_alone_and_is_reproducible(field: str, value: float) -> None:
    config = AugmentConfig(jitter=0, **{field: value})
    first, second = (change_colours(photo(), np.random.default_rng(3), config) for _ in range(2))
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, photo())
    if field == "grey":
        assert np.array_equal(first[..., 0], first[..., 1])
        assert np.array_equal(first[..., 0], first[..., 2])


def test_nothing_asked_nothing_changed() -> None:
    unchanged = change_colours(photo(), np.random.default_rng(0), AugmentConfig(jitter=0))
    assert np.array_equal(unchanged, photo())


def test_gamma_is_a_power_of_the_grey_level() -> None:
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    changed = change_colours(levels, np.random.default_rng(5), AugmentConfig(jitter=0, gamma=0.8))[0, :, 0]
    exponent = np.log(changed[128] / 255) / np.log(128 / 255)
    assert abs(np.log(exponent)) <= 0.8
    assert np.abs(changed - 255 * (np.arange(256) / 255) ** exponent).max() < 2.5


def test_small_windows_are_padded_in_the_middle() -> None:
    config = AugmentConfig(crop=(64, 96), scale=(0.5, 0.5), flip=0)
    image, label = cut_window(photo(), np.ones((48, 64), np.uint8), np.random.default_rng(0), config)
    assert label.shape == (24, 32)
    padded, padded_label = pad_to(image, label, config.crop)
    assert np.array_equal(padded[20:44, 32:64], image)
    assert (padded_label == 1).sum() == 24 * 32
    assert (padded_label == 255).sum() == 64 * 96 - 24 * 32
    assert tuple(padded[0, 0]) == PAD_COLOUR


def folder(root: Path, planes: str, level: int, value: int, count: int) -> ImagePairs:
    for index in range(count):
        write_png(root / "images" / f"{index}.png", np.full((60, 80, 3), level + index, np.uint8))
        plane = np.zeros((60, 80), np.uint8)
        plane[20:40, 30:50] = value
        write_png(root / planes / f"{index}.png", plane if planes == "masks" else np.full_like(plane, value))
    return ImagePairs(root, planes)


def test_crops_hold_swapped_regions_and_no_object_in_the_padding(tmp_path: Path) -> None:
    scenes = folder(tmp_path / "scenes", "labels", 40, 3, 2)
    write_png(tmp_path / "scenes" / "labels" / "1.png", np.full((60, 80), 5, np.uint8))
    scenes = ImagePairs(tmp_path / "scenes", "labels")
    objects = folder(tmp_path / "objects", "masks", 200, 255, 3)
    config = ResidualConfig.model_validate(
        {
            "rule": "objects",
            "augment": {"crop": [96, 128], "scale": [0.6, 0.6], "jitter": 0},
            "paste": {"objects": [1, 1], "swaps": [2, 2]},
            "corocl": {"enabled": False},
        }
    )
    crops = OutlierCrops(scenes, objects, [0, 1, 2], config, seed=1)
    seen: set[int] = set()
    for number in range(12):
        label = crops[SampleId(number, 0, True)].label
        rows, columns = np.nonzero(label == 254)
        assert rows.size
        assert rows.min() >= 30
        assert rows.max() < 66
        assert columns.min() >= 40
        assert columns.max() < 88
        seen |= set(np.unique(label).tolist())
    assert {3, 5, 254, 255} <= seen


def test_jitter_is_saturation_then_contrast_then_brightness_and_gains_step_by_step():
    image = np.random.default_rng(0).integers(60, 150, (20, 30, 3)).astype(np.uint8)
    image[:10, :, 2] //= 4  # warm colours: red and blue weigh differently
    changed = change_colours(image, np.random.default_rng(16), AugmentConfig(jitter=0.3))
    source = np.random.default_rng(16)  # takes a quarter of the colour
    brightness, contrast, saturation = 1 + 0.3 * source.uniform(-1, 1, 3)
    gains = 1 + 0.1 * source.uniform(-1, 1, 3)
    wanted = image.astype(float)
    grey = 0.299 * wanted[..., :1] + 0.587 * wanted[..., 1:2] + 0.114 * wanted[..., 2:]
    wanted = grey + saturation * (wanted - grey)
    wanted = image.mean() + contrast * (wanted - image.mean())
    wanted = (wanted * brightness * gains).clip(0, 255)
    np.testing.assert_allclose(changed, wanted, rtol=0, atol=1)  # OpenCV computes in fixed point


def test_noise_never_wraps_round_at_black_and_white():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 255
    noisy = change_colours(image, np.random.default_rng(1), AugmentConfig(jitter=0, noise=30))
    assert noisy[:, :20].max() < 128 < noisy[:, 20:].min()
    assert noisy[:, :20].max() > 0
