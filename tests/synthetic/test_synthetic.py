"""Procedural scenes: geometry, planes that agree, determinism, layouts."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anomdino.benchmarks import open_benchmark
from anomdino.config.data import SyntheticConfig
from anomdino.errors import ProtocolError
from anomdino.protocol import refuse_evaluation_data
from anomdino.seeding import rng as named_rng
from anomdino.synthetic import outlier, scene, write_synthetic
from anomdino.synthetic.camera import Camera
from anomdino.synthetic.canvas import Canvas
from anomdino.synthetic.dataset import STYLES
from anomdino.synthetic.ground import paint_ground
from anomdino.synthetic.light import draw_light
from anomdino.synthetic.noise import fractal, pick, sample, tile, wrap
from anomdino.synthetic.objects import (
    EVALUATION,
    EVALUATION_PATTERNS,
    TRAINING,
    TRAINING_PATTERNS,
    draw_look,
    render,
)
from anomdino.synthetic.pixels import put, shaded, take
from anomdino.synthetic.scene import _planes, draw_scene, render_scene

SIZE = (128, 256)
KNOWN = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 18, 255}


# ---------------------------------------------------------------------------------------------------- geometry and noise


@settings(max_examples=30, deadline=None)
@given(
    focal=st.floats(80, 400),
    horizon=st.floats(30, 60),
    eye=st.floats(1, 2),
    offset=st.floats(-3, 3),
    curvature=st.floats(-0.005, 0.005),
    yaw=st.floats(-0.1, 0.1),
)
def test_the_ground_seen_by_a_pixel_projects_back_to_it(focal, horizon, eye, offset, curvature, yaw):
    camera = Camera(100, 160, focal, horizon, eye, offset, curvature, yaw)
    first, x, z = camera.ground_grid()
    near = z > 1.3
    points = np.stack([x[near], np.zeros(near.sum()), z[near]], axis=1)
    rows, columns = np.nonzero(near)
    seen = camera.project(points)
    np.testing.assert_allclose(seen[:, 1], rows + first, atol=0.02)
    np.testing.assert_allclose(seen[:, 0], columns, atol=0.15)


def test_a_thing_twice_as_far_is_half_as_high():
    camera = Camera(200, 300, 250.0, 80.0, 1.4, 0.5, 0.0, 0.0)
    heights = []
    for z in (10.0, 20.0):
        foot, top = camera.project([(1.0, 0.0, z), (1.0, 1.7, z)])
        heights.append(foot[1] - top[1])
    assert heights[0] == pytest.approx(2 * heights[1])
    assert heights[0] == pytest.approx(1.7 * camera.scale(10.0))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-500, 500, width=32), min_size=1, max_size=20), st.sampled_from([0.5, 1.0, 3.0, 9.0])
)
def test_wrap_is_a_modulo(values, period):
    values = np.array(values, np.float32)
    found, expected = wrap(values, period), np.mod(values.astype(np.float64), period)
    apart = np.abs(found - expected)
    assert np.minimum(apart, period - apart).max() < 1e-3


@pytest.mark.parametrize("noise", [tile(3), tile(6, 1), tile(9), fractal(2, 6)])
def test_noise_is_standardised_and_repeats_without_a_seam(noise):
    assert noise.shape == (512, 512)
    assert abs(noise.mean()) < 0.3
    assert noise.std() == pytest.approx(1, abs=0.15)
    grid = np.linspace(0, 1, 50, dtype=np.float32)[None, :].repeat(3, 0)
    down = np.full_like(grid, 0.3)
    np.testing.assert_allclose(sample(noise, grid, down), sample(noise, grid + 4, down - 2), atol=0.05)
    u, v = np.array([3 / 512, 511 / 512]), np.array([5 / 512, 0.0])
    np.testing.assert_array_equal(pick(noise, u + 1e-5, v + 1e-5), noise[[5, 0], [3, 511]])


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), share=st.floats(0, 1), wide=st.booleans())
def test_colours_of_chosen_pixels_are_those_of_plain_indexing(rows, columns, share, wide):
    rng = np.random.default_rng(rows * 10 + columns)
    kind = np.float64 if wide else np.float32
    image = rng.normal(size=(rows + 2, columns, 3)).astype(kind)
    window, where = image[1:-1], rng.random((rows, columns)) < share
    expected = image.copy()
    np.testing.assert_array_equal(take(window, where), expected[1:-1][where])
    colour = (0.3, 220.7, 15.1)
    tone = rng.normal(size=int(where.sum())).astype(kind)
    np.testing.assert_array_equal(shaded(tone, colour), tone[:, None] * np.array(colour, kind))
    whole = rng.normal(size=(rows, columns)).astype(kind)
    np.testing.assert_array_equal(shaded(whole, colour), whole[..., None] * np.array(colour, kind))
    colours = rng.normal(size=(int(where.sum()), 3))
    put(window, where, colours)
    expected[1:-1][where] = colours
    np.testing.assert_array_equal(image, expected)


def test_smooth_noise_has_no_jump_at_the_border():
    noise = tile(4)
    inside = np.abs(np.diff(noise, axis=1)).max()
    assert np.abs(noise[:, 0] - noise[:, -1]).max() <= 1.2 * inside


# ------------------------------------------------------------------------------------------------------------ scenes


@pytest.mark.parametrize("split", ["train", "val", "road", "track"])
def test_planes_have_their_types_and_values(split):
    for index in range(3):
        frame = scene(split, index, size=SIZE)
        assert frame.image.shape == (*SIZE, 3)
        assert frame.image.dtype == frame.label.dtype == frame.anomaly.dtype == np.uint8
        assert set(np.unique(frame.label).tolist()) <= KNOWN
        assert {0, 10} <= set(np.unique(frame.label).tolist())
        assert set(np.unique(frame.anomaly).tolist()) <= {0, 1, 255}
        if split in {"train", "val"}:
            assert frame.objects == ()
            assert not (frame.anomaly == 1).any()


@pytest.mark.parametrize(
    ("split", "index", "seed"), [("train", 10, 1396), ("road", 2, 1036), ("track", 3, 1026)]
)
def test_a_low_and_wide_frame_sees_no_ground_at_its_foot(split, index, seed):
    """Cracks and puddles lie nearer than the nearest ground that such a frame shows."""
    frame = scene(split, index, seed, (96, 400))
    assert frame.image.shape[:2] == frame.label.shape == frame.anomaly.shape == (96, 400)


def test_the_same_arguments_give_the_same_bytes_and_others_do_not():
    first, again = scene("road", 3, size=SIZE), scene("road", 3, size=SIZE)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.anomaly, again.anomaly)
    for other in (scene("track", 3, size=SIZE), scene("road", 4, size=SIZE), scene("road", 3, 1, SIZE)):
        assert (other.image != first.image).mean() > 0.5


def test_taking_the_objects_away_changes_their_pixels_and_shadows_alone():
    """The anomaly plane against a second rendering without the objects: exact where pixels are pure."""
    checked = 0
    for index in range(8):
        drawn = draw_scene(named_rng(0, "synthetic", "road", index), SIZE, STYLES["road"])
        drawn = replace(drawn, border=0)
        with_objects, without = render_scene(drawn), render_scene(replace(drawn, foreign=()))
        anomaly = with_objects.anomaly == 1
        changed = np.abs(with_objects.image.astype(int) - without.image).max(axis=2)
        assert not (without.anomaly == 1).any()
        elsewhere = with_objects.anomaly == 0
        np.testing.assert_array_equal(with_objects.label[elsewhere], without.label[elsewhere])
        rows = np.flatnonzero((with_objects.label != without.label).any(axis=1))
        if anomaly.sum() > 100:
            checked += 1
            assert changed[anomaly].mean() > 5
            assert changed[: rows[0] - 3].max(initial=0) <= 1
            assert (with_objects.label[anomaly] == 255).mean() > 0.97
    assert checked >= 4


def test_benchmarks_hold_frames_with_and_without_objects_small_and_large_ones_and_void():
    for split in ("road", "track"):
        frames = [scene(split, index, size=SIZE) for index in range(24)]
        areas = np.array([(frame.anomaly == 1).mean() for frame in frames])
        assert 1 <= (areas == 0).sum() <= 9
        assert (areas > 0.03).any()
        assert ((areas > 0) & (areas < 0.01)).any()
        assert sum((frame.anomaly == 255).any() for frame in frames) > 12


def empty_canvas(height=16, width=24):
    camera = Camera(height, width, 20.0, 6.0, 1.4, 0.0, 0.0, 0.0)
    return Canvas(camera, draw_light(np.random.default_rng(0)))


def test_what_is_painted_hides_what_was_there_in_every_plane():
    canvas = empty_canvas()
    square = np.ones((6, 6), bool)
    canvas.stamp(
        np.full((6, 6, 3), 9, np.uint8), square, (-2, 20), 11, 7.0, foreign=3
    )  # clipped at two sides
    assert (canvas.label == 11).sum() == (canvas.foreign == 3).sum() == (canvas.depth == 7).sum() == 4 * 4
    assert (canvas.label[:4, 20:] == 11).all()
    canvas.polygon(np.array([[-5.0, -5], [40, -5], [40, 40], [-5, 40]]), (1.0, 2.0, 300.0), 4, 5.0)
    assert (canvas.image == (1, 2, 255)).all()
    assert (canvas.label == 4).all()
    assert (canvas.depth == 5).all()
    assert not canvas.foreign.any()


@pytest.mark.parametrize("border", [0, 2])
def test_labels_of_a_frame_say_of_every_pixel_what_its_four_parts_are(border):
    """Three or four parts of an object: anomaly; one or two, the own car, and the frame's border: void."""
    canvas = empty_canvas()
    canvas.label[:] = 0
    for hits in range(5):
        for part in range(hits):
            canvas.foreign[6 + part // 2, 6 + 2 * hits + part % 2] = 1
    canvas.label[12:14, 8:10] = 255
    label, anomaly = _planes(canvas, border)
    expected = np.zeros((8, 12), int)
    expected[3, 3:8] = 0, 255, 255, 1, 1
    expected[6, 4] = 255
    inner = np.s_[border : 8 - border, border : 12 - border]
    if border:
        outside = np.ones((8, 12), bool)
        outside[inner] = False
        assert (anomaly[outside] == 255).all()
    np.testing.assert_array_equal(anomaly[inner], expected[inner])
    np.testing.assert_array_equal(label == 255, expected > 0)


def test_far_things_are_painted_before_near_ones():
    order = []
    drawn = draw_scene(named_rng(0, "synthetic", "train", 0), (96, 128), STYLES["train"])
    things = [
        replace(drawn.props[0], distance=distance, paint=lambda _, distance=distance: order.append(distance))
        for distance in (5.0, 50.0, 20.0)
    ]
    render_scene(replace(drawn, props=tuple(things), foreign=()))
    assert order == [50.0, 20.0, 5.0]


def test_the_road_its_pavement_and_what_is_beyond_have_their_labels():
    """By the ground's own coordinates: x from the middle of the road."""
    for seed in range(4):
        drawn = draw_scene(named_rng(seed, "synthetic", "train", seed), (96, 128), STYLES["train"])
        first, _, label, _ = paint_ground(drawn.camera, drawn.road, drawn.light)
        rows, x, _ = drawn.camera.ground_grid()
        assert rows == first
        away = np.abs(x) - drawn.road.half
        pavement = np.where(x < 0, *drawn.road.pavement)
        expected = np.where(away < 0, 0, np.where(away < pavement, 1, 9))
        assert (label == expected).mean() > 0.999


def test_objects_stand_in_view_apart_and_with_nothing_in_them_or_closely_before_them():
    placed = 0
    for index in range(12):
        drawn = draw_scene(named_rng(0, "synthetic", "track", index), SIZE, STYLES["track"])
        column = [
            drawn.camera.project([(one.x, 0, one.z)])[0, 0] / drawn.camera.width for one in drawn.foreign
        ]
        assert all(0.06 < share < 0.94 for share in column)
        for number, one in enumerate(drawn.foreign):
            half = 0.5 * one.height * one.look.width
            for other in drawn.foreign[:number]:
                reach = half + 0.5 * other.height * other.look.width
                assert abs(one.x - other.x) > reach or abs(one.z - other.z) > 4
            for thing in drawn.props:
                place = thing.footprint
                if place.size and thing.distance <= 400:
                    inside = np.abs(place[:, 0] - one.x) < half
                    assert not (inside & (np.abs(place[:, 2] - one.z) < 0.9)).any()
            placed += 1
    assert placed > 12


def test_every_so_many_frames_of_a_benchmark_one_is_clean():
    assert not scene("road", 9, size=(96, 128)).objects
    assert not scene("track", 7, size=(96, 128)).objects
    assert scene("track", 0, size=(96, 128)).objects


def test_training_and_evaluation_share_neither_families_nor_patterns():
    assert not set(TRAINING) & set(EVALUATION)
    assert not set(TRAINING_PATTERNS) & set(EVALUATION_PATTERNS)
    shown = {
        family
        for split in ("road", "track")
        for i in range(6)
        for family in scene(split, i, size=SIZE).objects
    }
    assert shown <= set(EVALUATION)
    assert len(shown) > 4


@pytest.mark.parametrize("family", [*TRAINING, *EVALUATION])
def test_every_family_can_be_drawn_at_any_size(family):
    for seed, height in enumerate((3, 17, 90)):
        rng = np.random.default_rng(seed)
        look = draw_look(rng, family, evaluation=family in EVALUATION)
        rgb, inside = render(look, height, draw_light(rng))
        assert rgb.shape == (*inside.shape, 3)
        assert abs(inside.any(axis=1).sum() - height) <= 2
        assert inside.mean() > 0.1
        assert rgb[inside].std() > 0 or height == 3


def test_a_face_that_looks_away_from_the_sun_has_the_light_of_the_sky_alone():
    for seed in range(5):
        light = draw_light(np.random.default_rng(seed))
        towards = np.array(light.sun)
        assert np.linalg.norm(towards) == pytest.approx(1)
        assert light.shade(tuple(towards)) == pytest.approx(light.ambient + light.direct)
        assert light.shade(tuple(-towards)) == light.ambient


def test_an_outlier_photo_has_half_the_size_of_what_was_rendered():
    """A pixel of its mask is one whose greater part is object: a quarter of the pixels, not of their rim as well."""
    for index, seed in ((0, 0), (3, 5)):
        _, mask = outlier(index, seed)
        rng = named_rng(seed, "synthetic", "outlier", index)
        light = draw_light(rng)
        look = draw_look(rng, tuple(TRAINING)[index], evaluation=False)
        _, inside = render(look, int(rng.integers(220, 360)), light)
        assert (mask > 0).sum() == pytest.approx(inside.sum() / 4, rel=0.02)
    assert not np.array_equal(outlier(0, 0)[0], outlier(0, 1)[0])


def test_outlier_photos_show_the_object_of_the_mask():
    for index in range(len(TRAINING)):
        image, mask = outlier(index)
        assert image.shape == (*mask.shape, 3)
        assert set(np.unique(mask).tolist()) == {0, 255}
        assert 0.05 < (mask == 255).mean() < 0.95
        assert not (mask[0] | mask[-1]).any()


# -------------------------------------------------------------------------------------------------------------- files


def tree(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    config = SyntheticConfig(height=96, width=160, train=3, val=2, outliers=4, benchmark=3, workers=1)
    return root, config, write_synthetic(config, root)


def test_layouts_are_those_of_the_real_sets(written):
    root, config, counts = written
    assert counts == {"inlier": 10, "outliers": 8, "val": 12}
    for split, count in (("train", config.train), ("val", config.val)):
        images = sorted(path.name for path in (root / f"inlier/{split}/images").iterdir())
        assert images == sorted(path.name for path in (root / f"inlier/{split}/labels").iterdir())
        assert len(images) == count
    for layout, folder in (("road_anomaly", "synthetic_road"), ("smiyc_anomaly_track", "synthetic_track")):
        benchmark = open_benchmark(layout, root / "val" / folder)
        assert len(benchmark.samples) == 3
        for sample_ in benchmark.samples:
            with Image.open(sample_.image) as image:
                assert image.size == (160, 96)
            label = benchmark.read_label(sample_)
            assert label.shape == (96, 160)
            assert set(np.unique(label).tolist()) <= {0, 1, 255}


def test_benchmarks_are_marked_and_training_folders_are_not(written):
    root = written[0]
    for folder in ("synthetic_road", "synthetic_track"):
        with pytest.raises(ProtocolError):
            refuse_evaluation_data(root / "val" / folder)
    refuse_evaluation_data(root / "inlier", root / "outliers")


def test_the_number_of_processes_changes_nothing(written, tmp_path):
    root, config, _ = written
    write_synthetic(config.model_copy(update={"workers": 2}), tmp_path)
    assert tree(tmp_path) == tree(root)


def test_files_hold_the_frames(written):
    root, config, _ = written
    frame = scene("train", 1, config.seed, (96, 160))
    np.testing.assert_array_equal(
        np.array(Image.open(root / "inlier/train/images/scene_0001.png")), frame.image
    )
    shown = scene("road", 1, config.seed, (96, 160)).image
    stored = np.array(Image.open(root / "val/synthetic_road/original/road0001.jpg")).astype(float)
    apart = [np.abs(stored - shown[..., order]).mean() for order in ([0, 1, 2], [2, 1, 0])]
    assert apart[0] < 5 < apart[1]  # red is red
    image, mask = outlier(1, config.seed)
    name = f"{tuple(TRAINING)[1]}_0001.png"
    np.testing.assert_array_equal(np.array(Image.open(root / "outliers/images" / name)), image)
    np.testing.assert_array_equal(np.array(Image.open(root / "outliers/masks" / name)), mask)
    np.testing.assert_array_equal(
        np.array(Image.open(root / "inlier/train/labels/scene_0001.png")), frame.label
    )
    frame = scene("track", 2, config.seed, (96, 160))
    folder = root / "val/synthetic_track/dataset_AnomalyTrack"
    label = np.array(Image.open(folder / "labels_masks/validation0002_labels_semantic.png"))
    np.testing.assert_array_equal(label, frame.anomaly)
    seen = np.array(Image.open(folder / "images/validation0002.jpg")).astype(int)
    assert np.abs(seen - frame.image).mean() < 4
