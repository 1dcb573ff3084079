"""Pasting: RPL's rule against a slow formulation with the same draws; laws of the improved rule."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomdino.data.mixing import OUTLIER, VOID, PasteRules, paste_objects
from anomdino.data.rpl_mixing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RPL_SCALES,
    denormalise,
    mix_rpl,
    normalise,
    paste_rpl,
)

EXACT = PasteRules(
    scale="log_uniform",
    truncation=0,
    edges="hard",
    erode=0,
    match=(0, 0),
    jitter=0,
    blur=0,
    shadow=0,
    flip=0,
    rotation=0,
    max_extent=1.0,
    min_area=1,
)


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def road(rng, height, width):
    label = np.full((height, width), 10, np.uint8)
    label[height // 3 :] = 0
    label[:3] = VOID
    return noise(rng, height, width, 3), label


def blob(rng, height, width):
    mask = np.zeros((height, width), bool)
    rows, columns = np.mgrid[:height, :width]
    mask |= ((rows - height / 2) / (height / 2.2)) ** 2 + ((columns - width / 2) / (width / 2.2)) ** 2 < 1
    mask &= rng.random((height, width)) > 0.02
    return noise(rng, height, width, 3), mask


# ---------------------------------------------------------------------------------------------- RPL's rule, the slow way


def slow_normalise(pixel):
    return [
        (value / 255 - mean) / std
        for value, mean, std in zip(pixel, IMAGENET_MEAN, IMAGENET_STD, strict=True)
    ]


def slow_bilinear(image, height, width):
    """Bilinear with pixel centres at half integers and clamped borders."""
    source_height, source_width = image.shape[:2]
    out = np.zeros((height, width, 3))
    for i in range(height):
        y = min(max((i + 0.5) * source_height / height - 0.5, 0), source_height - 1)
        for j in range(width):
            x = min(max((j + 0.5) * source_width / width - 0.5, 0), source_width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, source_height - 1), min(x0 + 1, source_width - 1)
            a, b = y - y0, x - x0
            top = (1 - b) * image[y0, x0] + b * image[y0, x1]
            bottom = (1 - b) * image[y1, x0] + b * image[y1, x1]
            out[i, j] = (1 - a) * top + a * bottom
    return out


def slow_nearest(mask, height, width):
    rows = [min(int(i * mask.shape[0] / height), mask.shape[0] - 1) for i in range(height)]
    columns = [min(int(j * mask.shape[1] / width), mask.shape[1] - 1) for j in range(width)]
    return np.array([[mask[r, c] for c in columns] for r in rows])


def slow_frame(plane, size, fill):
    """Pad to the centre of a `size` square where short, then cut the centre where long."""
    for axis in (0, 1):
        missing = max(size - plane.shape[axis], 0)
        before, after = missing // 2, missing // 2 + missing % 2
        shape = list(plane.shape)
        blocks = []
        for count in (before, after):
            shape[axis] = count
            blocks.append(np.full(shape, fill, plane.dtype))
        plane = np.concatenate([blocks[0], plane, blocks[1]], axis=axis)
    for axis in (0, 1):
        start = max(plane.shape[axis] // 2 - size // 2, 0)
        plane = np.take(plane, range(start, start + size), axis=axis)
    return plane


def slow_mix(image, label, outlier, mask, rng, size):
    if rng.random() >= 0.2:
        image, label = np.flip(image, 1), np.flip(label, 1)
    height, width = label.shape
    top = rng.randint(0, height - size + 1) if height > size else 0
    left = rng.randint(0, width - size + 1) if width > size else 0
    city = np.apply_along_axis(slow_normalise, 2, image)[top : top + size, left : left + size]
    city_label = label[top : top + size, left : left + size]
    city, city_label = slow_frame(city, size, 0.0), slow_frame(city_label, size, 255)
    scale = rng.choice(RPL_SCALES)
    photo = np.apply_along_axis(slow_normalise, 2, outlier)
    target = np.where(mask > 0, 254, 0).astype(np.uint8)
    new = int(outlier.shape[0] * scale), int(outlier.shape[1] * scale)
    group = slow_frame(slow_bilinear(photo, *new), size, 0.0)
    group_label = slow_frame(slow_nearest(target, *new), size, 255)
    ys, xs = np.nonzero(group_label == 254)
    y1, x1, y2, x2 = (ys.min(), xs.min(), ys.max() + 1, xs.max() + 1) if ys.size else (0, 0, 0, 0)
    at_row, at_column = rng.randint(0, size - (y2 - y1)), rng.randint(0, size - (x2 - x1))
    mixed, mixed_label = city.copy(), city_label.copy()
    for y, x in zip(ys, xs, strict=True):
        mixed[y - y1 + at_row, x - x1 + at_column] = group[y, x]
        mixed_label[y - y1 + at_row, x - x1 + at_column] = 254
    return city, city_label, mixed, mixed_label, slow_frame(photo, size, 0.0), slow_frame(target, size, 255)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("city_size", "photo_size"), [((60, 90), (50, 40)), ((40, 44), (90, 70)), ((49, 48), (31, 57))]
)
def test_rpl_rule_equals_the_slow_formulation(seed, city_size, photo_size):
    rng = np.random.default_rng(seed)
    image, label = noise(rng, *city_size, 3), rng.integers(0, 19, city_size, dtype=np.uint8)
    outlier, mask = blob(rng, *photo_size)
    fast = mix_rpl(image, label, outlier, mask, random.Random(seed), size=48)
    slow = slow_mix(image, label, outlier, mask, random.Random(seed), 48)
    for name, expected in zip(
        ("image", "label", "mixed_image", "mixed_label", "outlier_image", "outlier_label"), slow, strict=True
    ):
        found = getattr(fast, name)
        assert found.shape[:2] == (48, 48)
        np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=name)


@given(
    seed=st.integers(0, 2**20),
    city_size=st.tuples(st.integers(20, 70), st.integers(20, 70)),
    photo_size=st.tuples(st.integers(12, 90), st.integers(12, 90)),
    size=st.integers(16, 60),
    objects=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_bytes_pasted_directly_are_those_of_the_normalised_mix(seed, city_size, photo_size, size, objects):
    rng = np.random.default_rng(seed)
    image, label = noise(rng, *city_size, 3), rng.integers(0, 19, city_size, dtype=np.uint8)
    outlier, mask = blob(rng, *photo_size)
    floating, direct = random.Random(seed), random.Random(seed)
    mix = mix_rpl(image, label, outlier, mask & objects, floating, size=size)
    pasted, pasted_label = paste_rpl(image, label, outlier, mask & objects, direct, size=size)
    assert pasted.dtype == pasted_label.dtype == np.uint8
    np.testing.assert_array_equal(pasted, denormalise(mix.mixed_image))
    np.testing.assert_array_equal(pasted_label, mix.mixed_label)
    assert floating.getstate() == direct.getstate()


def test_normalised_bytes_equal_the_formula_bit_for_bit():
    pixels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    expected = (pixels / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert normalise(pixels).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(normalise(pixels[:, ::-1][::-1]), expected[::-1])


def test_rpl_rule_leaves_the_generator_where_the_published_order_of_draws_does():
    rng = np.random.default_rng(0)
    image, label = road(rng, 64, 80)
    used, replayed = random.Random(5), random.Random(5)
    mix = mix_rpl(image, label, *blob(rng, 30, 30), used, size=32)
    ys, xs = np.nonzero(mix.mixed_label == OUTLIER)
    replayed.random()
    replayed.randint(0, 64 - 32 + 1)
    replayed.randint(0, 80 - 32 + 1)
    replayed.choice(RPL_SCALES)
    assert replayed.randint(0, 32 - (ys.max() + 1 - ys.min())) == ys.min()
    assert replayed.randint(0, 32 - (xs.max() + 1 - xs.min())) == xs.min()
    assert used.getstate() == replayed.getstate()


def test_rpl_rule_with_a_photo_without_objects_changes_nothing():
    rng = np.random.default_rng(0)
    image, label = road(rng, 64, 64)
    mix = mix_rpl(image, label, noise(rng, 40, 40, 3), np.zeros((40, 40), bool), random.Random(1), size=48)
    np.testing.assert_array_equal(mix.mixed_image, mix.image)
    np.testing.assert_array_equal(mix.mixed_label, mix.label)


def test_normalisation_is_undone():
    image = noise(np.random.default_rng(3), 20, 20, 3)
    np.testing.assert_array_equal(denormalise(normalise(image).astype(np.float32)), image)


# --------------------------------------------------------------------------------------------------- the improved rule


def slow_boxes(instances, count):
    boxes = []
    for index in range(1, count + 1):
        points = [
            (y, x)
            for y, row in enumerate(instances.tolist())
            for x, value in enumerate(row)
            if value == index
        ]
        ys, xs = zip(*points, strict=True)
        boxes.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
    return np.array(boxes, np.float32).reshape(-1, 4)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 5),
    scale=st.sampled_from(["ground_row", "log_uniform", "mixed"]),
    edges=st.sampled_from(["soft", "hard", "mixed"]),
)
def test_labels_boxes_and_areas_agree_with_the_pixels(seed, count, scale, edges):
    rng = np.random.default_rng(seed)
    image, label = road(rng, 60, 90)
    objects = [blob(rng, int(rng.integers(6, 50)), int(rng.integers(6, 50))) for _ in range(count)]
    rules = PasteRules(scale=scale, edges=edges, shadow=0)
    pasted = paste_objects(image, label, objects, np.random.default_rng(seed), rules)

    np.testing.assert_array_equal(pasted.instances > 0, pasted.label == OUTLIER)
    kept = len(pasted.areas)
    assert kept <= count
    assert set(pasted.sources.tolist()) <= set(range(count))
    assert len(set(pasted.sources.tolist())) == kept
    np.testing.assert_array_equal(pasted.boxes, slow_boxes(pasted.instances, kept))
    np.testing.assert_array_equal(pasted.areas, [(pasted.instances == i + 1).sum() for i in range(kept)])
    assert (pasted.areas >= rules.min_area).all()
    untouched = pasted.label == label
    untouched &= ~((label == VOID) & (pasted.image != image).any(axis=2))
    np.testing.assert_array_equal(pasted.image[untouched], image[untouched])
    assert set(np.unique(pasted.label[~(pasted.label == label)]).tolist()) <= {OUTLIER, VOID}
    if edges == "hard":
        assert (pasted.label == VOID).sum() <= (label == VOID).sum()


@pytest.mark.parametrize("seed", range(6))
def test_an_object_at_its_own_size_arrives_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    image, label = road(rng, 80, 100)
    rgb, mask = blob(rng, 24, 30)
    ys, xs = np.nonzero(mask)
    tight = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    rgb, mask = rgb[tight], mask[tight]
    share = mask.shape[0] / 80
    rules = PasteRules(**{**EXACT.__dict__, "height": (share, share)})
    pasted = paste_objects(image, label, [(rgb, mask)], np.random.default_rng(seed), rules)
    x0, y0, x1, y1 = pasted.boxes[0].astype(int)
    assert (y1 - y0, x1 - x0) == mask.shape
    np.testing.assert_array_equal(pasted.instances[y0:y1, x0:x1] > 0, mask)
    np.testing.assert_array_equal(pasted.image[y0:y1, x0:x1][mask], rgb[mask])
    expected = image.copy()
    expected[y0:y1, x0:x1][mask] = rgb[mask]
    np.testing.assert_array_equal(pasted.image, expected)


def test_the_objects_own_background_never_reaches_the_picture():
    """A red object cut from a green photo, shrunk and softened: no green may appear around it."""
    image = np.full((120, 160, 3), 100, np.uint8)
    label = np.zeros((120, 160), np.uint8)
    rgb = np.zeros((90, 90, 3), np.uint8)
    rgb[..., 1] = 255
    mask = np.zeros((90, 90), bool)
    mask[20:70, 20:70] = True
    rgb[mask] = (200, 100, 100)
    rules = PasteRules(edges="soft", shadow=0, jitter=0, match=(0, 0))
    for seed in range(10):
        pasted = paste_objects(image, label, [(rgb, mask)], np.random.default_rng(seed), rules)
        assert len(pasted.areas) == 1
        assert abs(pasted.image[..., 1].astype(int) - 100).max() <= 3


def test_ground_objects_stand_on_the_ground_and_shrink_with_distance():
    rng = np.random.default_rng(0)
    image, label = np.zeros((200, 300, 3), np.uint8), np.full((200, 300), 10, np.uint8)
    label[80:] = 0
    rules = PasteRules(
        scale="ground_row",
        edges="hard",
        shadow=0,
        rotation=0,
        ground_height=(0.5, 0.5),
        min_height=2,
        erode=0,
    )
    full = (noise(rng, 40, 20, 3), np.ones((40, 20), bool))
    ratios = []
    for seed in range(60):
        pasted = paste_objects(image, label, [full], np.random.default_rng(seed), rules)
        x0, y0, x1, y1 = pasted.boxes[0]
        assert y1 - 1 >= 80
        if x0 > 0 and x1 < 300 and y1 - y0 > 12:
            ratios.append((y1 - y0) / (y1 - 76))
    assert len(ratios) > 20
    np.testing.assert_allclose(ratios, 0.5, atol=0.06)


def test_the_same_generator_state_gives_the_same_bytes_and_inputs_stay_as_they_are():
    rng = np.random.default_rng(0)
    image, label = road(rng, 90, 120)
    objects = [blob(rng, 40, 30) for _ in range(3)]
    before = image.copy(), label.copy(), objects[0][0].copy()
    first = paste_objects(image, label, objects, np.random.default_rng(9))
    second = paste_objects(image, label, objects, np.random.default_rng(9))
    for name in ("image", "label", "boxes", "areas", "instances", "sources"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])
    np.testing.assert_array_equal(objects[0][0], before[2])


def test_contact_shadows_darken_and_never_brighten_the_ground():
    rng = np.random.default_rng(0)
    image, label = road(rng, 90, 120)
    rules = PasteRules(scale="ground_row", shadow=1.0)
    pasted = paste_objects(image, label, [blob(rng, 40, 30)], np.random.default_rng(2), rules)
    outside = pasted.label == label
    assert (pasted.image[outside] <= image[outside]).all()
    assert (pasted.image[outside] < image[outside]).any()


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in size"):
        paste_objects(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8), [], np.random.default_rng(0))


def test_no_object_gives_empty_boxes():
    image, label = road(np.random.default_rng(0), 30, 40)
    pasted = paste_objects(image, label, [], np.random.default_rng(0))
    assert pasted.boxes.shape == (0, 4)
    assert pasted.areas.shape == (0,)
    np.testing.assert_array_equal(pasted.image, image)


@pytest.mark.parametrize("truncation", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(4, 300), (300, 4), (60, 60)])
def test_an_object_in_a_large_photo_has_the_extent_of_its_mask(shape, truncation):
    """A flat bar in a square photo had been planned as a square: it grew wider than the scene."""
    rng = np.random.default_rng(0)
    mask = np.zeros((320, 320), bool)
    mask[10 : 10 + shape[0], 5 : 5 + shape[1]] = True
    cutout = (noise(rng, 320, 320, 3), mask)
    rules = replace(EXACT, max_extent=0.5, truncation=truncation, height=(0.3, 0.9))
    image, label = road(rng, 96, 160)
    seen = 0
    for seed in range(40):
        mixed = paste_objects(image, label, [cutout], np.random.default_rng(seed), rules)
        rows, columns = np.nonzero(mixed.label == OUTLIER)
        if rows.size:
            height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
            assert height <= 0.5 * 96 + 1
            assert width <= 0.5 * 160 + 1
            whole = abs(height / width / (shape[0] / shape[1]) - 1) < 0.35 or min(height, width) <= 3
            assert whole or truncation
            seen += 1
    assert seen > 20


def test_what_stands_nearer_hides_what_stands_farther():
    """Whole objects on the ground, in any order given: where two overlap the one that stands lower is seen."""
    rules = replace(EXACT, scale="ground_row", ground_height=(1.0, 1.0), min_visible=0.05, tries=1)
    overlaps = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image, label = road(rng, 90, 60)
        objects = [
            (np.full((30, 20, 3), level, np.uint8), np.ones((30, 20), bool)) for level in (50, 100, 150, 200)
        ]
        pasted = paste_objects(image, label, objects, rng, rules)
        whole = [np.argwhere(pasted.instances == number + 1) for number in range(len(pasted.sources))]
        feet = [places[:, 0].max() for places in whole]
        assert feet[-1] == max(feet)  # the last one painted, which nothing hides
        box = pasted.boxes
        overlaps += any(
            box[i, 0] < box[j, 2] and box[j, 0] < box[i, 2] and box[j, 1] < box[i, 3]
            for j in range(len(box))
            for i in range(j)
        )
    assert overlaps > 2


def test_the_light_of_an_object_moves_to_that_of_its_place():
    """Rec. 601 luma of a pasted object of one colour: fully matched it is its surroundings', in the object's hue."""
    rules = replace(EXACT, match=(1.0, 1.0))
    colour = np.array([120, 60, 140], np.uint8)
    for level in ((90, 130, 60), (140, 90, 150)):
        image = np.full((80, 120, 3), level, np.uint8)
        cutout = np.full((20, 30, 3), colour, np.uint8), np.ones((20, 30), bool)
        pasted = paste_objects(
            image, np.zeros((80, 120), np.uint8), [cutout], np.random.default_rng(1), rules
        )
        found = pasted.image[pasted.instances == 1].astype(float).mean(0)
        shift = np.array([0.299, 0.587, 0.114]) @ (np.array(level) - colour.astype(float))
        np.testing.assert_allclose(found, colour + shift, atol=1)


def test_only_objects_that_stand_on_the_ground_cast_a_shadow():
    image, label = np.full((90, 120, 3), 128, np.uint8), np.zeros((90, 120), np.uint8)
    cutout = np.full((20, 20, 3), 200, np.uint8), np.ones((20, 20), bool)
    for scale, darkens in (("log_uniform", False), ("ground_row", True)):
        rules = replace(EXACT, scale=scale, shadow=1.0, max_extent=0.4)
        pasted = paste_objects(image, label, [cutout], np.random.default_rng(3), rules)
        assert (pasted.instances > 0).any()
        assert (pasted.image[pasted.instances == 0] < 128).any() == darkens


def test_a_soft_edge_does_not_lift_an_object_off_its_row():
    """The row that an object stands on is the last of its solid pixels, not the end of its canvas of empty ones."""
    image = np.full((120, 90, 3), 128, np.uint8)
    label = np.full((120, 90), 10, np.uint8)
    label[30:34] = 0  # the horizon
    label[100] = 0  # the one row that can hold a foot below it
    cutout = np.full((30, 30, 3), 200, np.uint8), np.ones((30, 30), bool)
    feet = set()
    for seed in range(12):
        rules = replace(EXACT, scale="ground_row", edges="soft", softness=(1.5, 1.5))
        pasted = paste_objects(image, label, [cutout], np.random.default_rng(seed), rules)
        feet |= {int(y1) - 1 for *_, y1 in pasted.boxes}
    assert 100 in feet
    assert feet <= {100, *range(30, 34)}


def test_fine_stripes_become_grey_when_an_object_is_made_small():
    """Each pixel of a small copy is the mean of the pixels that it covers, nine columns here, not one of them."""
    stripes = np.zeros((180, 180, 3), np.uint8)
    stripes[:, ::2] = 240
    image, label = road(np.random.default_rng(0), 100, 120)
    rules, cutout = replace(EXACT, height=(0.2, 0.2)), (stripes, np.ones((180, 180), bool))
    pasted = paste_objects(image, label, [cutout], np.random.default_rng(0), rules)
    found = pasted.image[pasted.instances == 1].astype(float)
    np.testing.assert_allclose(found, 120, atol=120 / 9 + 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_soft_edge_fades_out_and_is_not_cut_off(seed):
    """White on black: alpha is the grey level. Its smallest values on each side are near nothing."""
    image, label = np.zeros((80, 100, 3), np.uint8), np.zeros((80, 100), np.uint8)
    white = np.full((30, 30, 3), 255, np.uint8), np.ones((30, 30), bool)
    rules = replace(EXACT, edges="soft", softness=(1.5, 1.5), height=(0.3, 0.3))
    grey = paste_objects(image, label, [white], np.random.default_rng(seed), rules).image[..., 0]
    middle = np.argwhere(grey == 255).mean(axis=0).astype(int)
    for line in (grey[middle[0]], grey[:, middle[1]]):
        seen = np.flatnonzero(line)
        ends = [
            int(line[end]) for end in (seen[0], seen[-1]) if 0 < end < line.size - 1
        ]  # not the frame's own
        assert max(ends) < 0.12 * 255
        assert np.abs(np.diff(line[seen].astype(int))).max() < 0.3 * 255


def test_a_turned_object_keeps_its_area_and_turns_both_ways():
    image, label = np.zeros((120, 160, 3), np.uint8), np.zeros((120, 160), np.uint8)
    bar = np.full((60, 20, 3), 255, np.uint8), np.ones((60, 20), bool)
    rules = replace(EXACT, height=(0.5, 0.5), rotation=40)
    angles = []
    for seed in range(40):
        pasted = paste_objects(image, label, [bar], np.random.default_rng(seed), rules)
        y0, x0, y1, x1 = pasted.boxes[0, [1, 0, 3, 2]]
        if min(x0, y0) > 0 and y1 < 120 and x1 < 160:
            assert pasted.areas[0] == pytest.approx(60 * 20, rel=0.04)
            spread = np.cov(np.argwhere(pasted.instances == 1).T)
            angles.append(0.5 * np.degrees(np.arctan2(2 * spread[0, 1], spread[0, 0] - spread[1, 1])))
    assert len(angles) > 25
    assert max(np.abs(angles)) < 41
    assert np.abs(angles).max() > 30
    assert 0.25 < np.mean(np.array(angles) > 0) < 0.75


def test_heights_are_log_uniform():
    """Half of them are below the geometric mean of the limits, whose mean is twice as much."""
    image, label = np.zeros((200, 200, 3), np.uint8), np.zeros((200, 200), np.uint8)
    square = np.full((20, 20, 3), 255, np.uint8), np.ones((20, 20), bool)
    rules = replace(EXACT, height=(0.05, 0.8))
    found = [
        paste_objects(image, label, [square], np.random.default_rng(i), rules).boxes[0] for i in range(100)
    ]
    shares = np.array([(box[3] - box[1]) / 200 for box in found])
    assert 0.35 < (shares < 0.2).mean() < 0.65


@pytest.mark.parametrize("edges", ["soft", "hard"])
def test_an_object_keeps_the_visible_share_of_what_it_is_in_all(edges):
    """Behind later ones, whose soft rims hide too, and over the border."""
    square = np.full((20, 20, 3), 255, np.uint8), np.ones((20, 20), bool)
    image, label = np.zeros((60, 60, 3), np.uint8), np.zeros((60, 60), np.uint8)
    rules = replace(
        EXACT,
        edges=edges,
        softness=(1.5, 1.5),
        height=(1 / 3, 1 / 3),
        truncation=1.0,
        min_visible=0.8,
        tries=2,
    )
    whole, least = 0, []
    for seed in range(60):
        pasted = paste_objects(image, label, [square] * 4, np.random.default_rng(seed), rules)
        whole = max(whole, pasted.areas.max(initial=0))
        least.append(pasted.areas.min(initial=400))
    assert abs(whole - 400) <= 40
    assert 0.8 * whole - 1 <= min(least) < 0.9 * whole


def test_an_object_casts_no_shadow_on_another():
    """What stands farther is not ground; its pixels keep its colour."""
    image, label = road(np.random.default_rng(0), 90, 60)
    rules = replace(EXACT, scale="ground_row", ground_height=(1.0, 1.0), shadow=1.0, min_visible=0.05)
    levels = (100, 150, 200)
    objects = [(np.full((30, 20, 3), level, np.uint8), np.ones((30, 20), bool)) for level in levels]
    for seed in range(20):
        pasted = paste_objects(image, label, objects, np.random.default_rng(seed), rules)
        for number, source in enumerate(pasted.sources):
            assert set(pasted.image[pasted.instances == number + 1].ravel().tolist()) == {levels[source]}


def test_jitter_is_one_brightness_for_all_colours_and_a_bounded_contrast_for_each():
    """The mean colour is scaled as a whole; grey texture, which saturation leaves, by contrast times a channel's gain."""
    image, label = np.zeros((80, 80, 3), np.uint8), np.zeros((80, 80), np.uint8)
    grey = np.random.default_rng(0).integers(-20, 21, (40, 40, 1))
    rgb = (np.array([110, 130, 150]) + grey).astype(np.uint8)
    rules = replace(EXACT, height=(0.5, 0.5), jitter=0.2)
    brightness, contrast = [], []
    for seed in range(60):
        pasted = paste_objects(
            image, label, [(rgb, np.ones((40, 40), bool))], np.random.default_rng(seed), rules
        )
        found = pasted.image[pasted.instances == 1].astype(float)
        scaled = found.mean(axis=0) / rgb.mean(axis=(0, 1))
        np.testing.assert_allclose(scaled, scaled.mean(), rtol=0.01)
        brightness.append(scaled.mean())
        contrast += (found.std(axis=0) / rgb.std(axis=(0, 1))).tolist()
    assert 0.79 < min(brightness) < 0.87 < 1.13 < max(brightness) < 1.21
    assert 0.8 * 0.9 - 0.02 < min(contrast) < 0.9 < 1.1 < max(contrast) < 1.2 * 1.1 + 0.02


@pytest.mark.parametrize("erode", [0, 1])
def test_the_outermost_pixels_of_a_mask_are_cut_off_against_halos(erode):
    rgb, mask = np.full((40, 40, 3), 200, np.uint8), np.zeros((40, 40), bool)
    mask[5:35, 5:35] = True
    rgb[5:35, 5:35] = (255, 0, 0)
    rgb[6:34, 6:34] = 200
    side = 30 - 2 * erode
    rules = replace(EXACT, erode=erode, height=(side / 80, side / 80))
    image, label = np.full((80, 80, 3), 50, np.uint8), np.zeros((80, 80), np.uint8)
    pasted = paste_objects(image, label, [(rgb, mask)], np.random.default_rng(0), rules)
    assert pasted.areas.tolist() == [side * side]
    red = np.ptp(pasted.image[pasted.instances == 1].astype(int), axis=1)
    assert red.max() == (0 if erode else 255)


@pytest.mark.parametrize("horizon", ["road", "assumed"])
def test_the_height_of_an_object_follows_the_distance_of_its_row_from_the_horizon(horizon):
    """Without a road the horizon is at 45 % less 2 % of the frame; ground above it holds the smallest objects alone."""
    label = np.full((200, 300), 10, np.uint8)
    label[20:40], label[120:] = 1, 1
    if horizon == "road":
        label[80] = 0
    top = 80 - 4 if horizon == "road" else 90 - 4
    rules = replace(EXACT, scale="ground_row", ground_height=(0.5, 0.5), min_height=6, max_extent=0.9)
    square = np.full((20, 20, 3), 255, np.uint8), np.ones((20, 20), bool)
    image, above = np.zeros((200, 300, 3), np.uint8), 0
    for seed in range(60):
        pasted = paste_objects(image, label, [square], np.random.default_rng(seed), rules)
        x0, y0, x1, y1 = pasted.boxes[0]
        if x0 > 0 and x1 < 300:
            foot = y1 - 1
            above += foot < 40
            assert y1 - y0 == pytest.approx(max(0.5 * (foot - top), 6), abs=1)
    assert above > 3
