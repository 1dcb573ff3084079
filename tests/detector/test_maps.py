from dataclasses import replace

import numpy as np
import pytest
import torch

from anomdino.detector.dataset import ComposedDataset, MosaicComposed, RecordReader, train_transforms
from anomdino.detector.dataset import test_transforms as transforms_of_testing
from anomdino.detector.maps import stack_maps, warp_maps
from anomdino.detector.mmdet_parts import TRANSFORMS, Chain
from anomdino.detector.records import Record
from anomdino.errors import DataError
from anomdino.io.boxes import image_id
from anomdino.io.images import write_png
from anomdino.uncertainty import UncertaintyMaps
from tests.detector.conftest import make_maps, read_set, small_config

SIZE = (160, 240)


def coordinate_scene():
    """An image and maps whose values are the pixel coordinates of the original image."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    image = np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)
    h, w = SIZE[0] // 4, SIZE[1] // 4
    cell_y, cell_x = np.mgrid[:h, :w].astype(np.float32) * 4 + 2  # centres, in pixels
    semantic = np.zeros((2, h, w), np.float16)
    maps = UncertaintyMaps(
        semantic, (cell_x / 256).astype(np.float16), (cell_y / 256).astype(np.float16), cell_x, SIZE
    )
    return image, maps


def run(transforms, seed):
    np.random.seed(seed)  # noqa: NPY002 - mmdet's transforms draw from numpy's global generator
    image, maps = coordinate_scene()
    instances = [{"bbox": [40, 40, 120, 100], "bbox_label": 0, "ignore_flag": 0}]
    return Chain(transforms)(
        {"img": image, "maps": maps, "text": "ood-object", "img_id": 1, "key": "k", "instances": instances}
    )


def check_alignment(packed, stride, inner=2):
    """Where the maps say the pixel came from must be where the image says it came from."""
    image = packed["inputs"].numpy().astype(np.float32)  # (3, H, W), channels x, y of the original pixel
    maps = packed["data_samples"].maps.numpy()
    rows, columns = image.shape[1] // stride, image.shape[2] // stride
    cells = (
        image[:2, : rows * stride, : columns * stride].reshape(2, rows, stride, columns, stride).mean((2, 4))
    )
    said = np.stack([maps[2], maps[3]]) * 256 - 0.5  # cell centres to pixel index
    difference = np.abs(said[:, :rows, :columns] - cells)[:, inner:-inner, inner:-inner]
    assert difference.max() < 1.5, difference.max()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("stride", [4, 8])
def test_maps_follow_the_image_through_training_transforms(seed, stride):
    config = small_config(crop=True, short_sides=[96, 128, 192], long_side=400, fusion={"map_stride": stride})
    check_alignment(run(train_transforms(config, 1.0), seed), stride)


def test_maps_follow_the_image_through_testing_transforms():
    config = small_config(test_short_side=100, long_side=400)
    packed = run(transforms_of_testing(config, 0), 0)
    assert packed["inputs"].shape[1:] == (100, 150)
    assert packed["data_samples"].maps.shape[1:] == (13, 19)
    check_alignment(packed, 8)


@pytest.mark.parametrize(
    ("short_side", "expected"),
    [(0, (100, 150)), (50, (50, 75)), (220, (220, 330)), (400, (400, 600))],
)
def test_size_of_detection_replaces_the_size_of_testing(short_side, expected):
    config = small_config(test_short_side=100, long_side=150)  # the limit of the longer side follows
    packed = run(transforms_of_testing(config, short_side), 0)
    assert packed["inputs"].shape[1:] == expected
    check_alignment(packed, 8)


def test_vertical_flips_and_crops_are_followed():
    steps = train_transforms(small_config(), 1.0)
    pack = steps[-2:]
    flip = {"type": "RandomFlip", "prob": 1.0, "direction": "diagonal"}
    crop = {
        "type": "RandomCrop",
        "crop_type": "absolute",
        "crop_size": (96, 128),
        "allow_negative_crop": True,
    }
    check_alignment(run([*steps[:2], flip, crop, {"type": "Resize", "scale": (192, 144)}, flip, *pack], 3), 8)


def test_identity_warp_keeps_the_maps():
    maps = np.random.default_rng(0).random((3, 8, 12)).astype(np.float32)
    np.testing.assert_allclose(warp_maps(maps, (32, 48), np.eye(3), (32, 48), 4), maps, atol=1e-6)


def test_shrinking_averages_instead_of_sampling():
    checker = (np.indices((16, 16)).sum(0) % 2).astype(np.float32)[None]
    half = np.diag([0.5, 0.5, 1.0])
    np.testing.assert_allclose(warp_maps(checker, (64, 64), half, (32, 32), 4)[0][1:-1, 1:-1], 0.5, atol=1e-6)


def test_stacking_order():
    maps = make_maps(np.random.default_rng(0), (16, 24), classes=3)
    stacked = stack_maps(maps)
    assert stacked.shape == (6, 4, 6)
    assert stacked.dtype == np.float32
    np.testing.assert_array_equal(stacked[5], maps.score)
    np.testing.assert_array_equal(stacked[3], maps.entropy.astype(np.float32))


def test_score_jitter_changes_the_score_alone():
    results = {"maps": np.arange(2 * 4, dtype=np.float32).reshape(2, 2, 2)}
    before = results["maps"].copy()
    np.random.seed(0)  # noqa: NPY002
    jitter = TRANSFORMS.build({"type": "JitterScore", "sigma": 0.5, "spread": 2.0})
    after = jitter(results)["maps"]
    np.testing.assert_array_equal(after[0], before[0])
    order = after[1].ravel()
    assert (np.diff(order) > 0).all()
    assert not np.allclose(after[1], before[1])


def test_mosaics_keep_image_maps_and_boxes_together(composed):
    """In the composed set objects are bright and score high: both must hold inside the boxes of a mosaic."""
    records = [r for r in read_set(composed) if len(r.boxes)]
    steps = train_transforms(small_config(mosaic=1.0, short_sides=[128], long_side=400), 1.0, records)
    for seed in range(4):
        np.random.seed(seed)  # noqa: NPY002
        first = records[seed]
        instances = [{"bbox": b.tolist(), "bbox_label": 0, "ignore_flag": 0} for b in first.boxes]
        packed = Chain(steps)(
            {
                "img_path": first.image,
                "maps_path": first.maps,
                "text": "x",
                "img_id": 1,
                "key": "k",
                "instances": instances,
            }
        )
        image, sample = packed["inputs"].numpy(), packed["data_samples"]
        assert len(sample.gt_instances) >= 4
        assert sample.ori_shape == (first.size[0] * 2, first.size[1] * 2)
        inside = np.zeros(image.shape[1:], bool)
        for x0, y0, x1, y1 in sample.gt_instances.bboxes.tensor.numpy().round().astype(int):
            inside[y0:y1, x0:x1] = True
        assert image[:, inside].mean() > image[:, ~inside].mean() + 80
        cells = np.add.reduceat(
            np.add.reduceat(inside.astype(float), range(0, inside.shape[0], 8), 0),
            range(0, inside.shape[1], 8),
            1,
        )
        score = sample.maps[-1].numpy()
        assert score[cells > 40].mean() > score[cells == 0].mean() + 2


def sample(steps, record, seed):
    np.random.seed(seed)  # noqa: NPY002
    instances = [{"bbox": b.tolist(), "bbox_label": 0, "ignore_flag": 0} for b in record.boxes]
    given = {"img_path": record.image, "maps_path": record.maps, "text": "x", "img_id": 1, "key": "k"}
    packed = steps({**given, "instances": instances})
    return packed["inputs"].numpy(), packed["data_samples"].maps.numpy()


def test_images_in_memory_give_the_samples_of_images_on_disk(composed):
    records = [r for r in read_set(composed) if len(r.boxes)]
    changes = {"mosaic": 0.5, "map_noise": 0.5, "flip": 0.5, "short_sides": [64, 96]}
    kept, read = (
        Chain(train_transforms(small_config(**changes, cache_mb=size), 1.0, records)) for size in (64, 0)
    )
    for seed in range(12):  # four records: each is read several times, and the score map is changed in place
        for ours, theirs in zip(
            sample(kept, records[seed % 4], seed), sample(read, records[seed % 4], seed), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    for record in records:
        record.image.unlink()
    sample(kept, records[0], 0)
    with pytest.raises(DataError, match=r"\.png"):
        sample(read, records[0], 0)


def test_no_more_is_kept_than_was_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for index in range(4):  # 3 x 300 x 400 bytes of image and 8 x 75 x 100 floats of maps: 0.57 MiB each
        write_png(tmp_path / f"{index}.png", rng.integers(0, 255, (300, 400, 3)).astype(np.uint8))
        make_maps(rng, (300, 400)).save(tmp_path / f"{index}.npz")
        files.append((tmp_path / f"{index}.png", tmp_path / f"{index}.npz"))
    for cache_mb, expected in ((0, [0, 0, 0, 0]), (1, [1, 0, 0, 0]), (2, [1, 1, 1, 0])):
        reader = RecordReader(cache_mb)
        first = [reader.read(*pair)[0] for pair in files]
        kept = [reader.read(*pair)[0] is image for pair, image in zip(files, first, strict=True)]
        assert kept == [bool(one) for one in expected]
    with pytest.raises(ValueError, match="read-only"):
        reader.read(*files[0])[1][0] = 0


def test_score_jitter_has_the_deviations_it_is_given():
    """With scores of mean 7 and deviation 1: offsets deviate by sigma spreads, logs of gains by half of sigma."""
    score = np.array([[6.0, 8.0]], np.float32)
    jitter = TRANSFORMS.build({"type": "JitterScore", "sigma": 0.5, "spread": 4.0})
    np.random.seed(0)  # noqa: NPY002
    drawn = np.array([jitter({"maps": score[None].copy()})["maps"][0, 0] for _ in range(3000)])
    offsets, gains = drawn.mean(1) - 7, np.log((drawn[:, 1] - drawn[:, 0]) / 2)
    assert offsets.std() == pytest.approx(0.5 * 4.0, rel=0.06)
    assert gains.std() == pytest.approx(0.25, rel=0.06)
    assert abs(offsets.mean()) < 0.15
    assert abs(gains.mean()) < 0.02


def extent(packed):
    """Which part of the scene an image of the coordinates shows, and whether it is mirrored."""
    image = packed["inputs"].numpy().astype(float)
    columns, rows = image[0].mean(0), image[1].mean(1)
    shares = np.array([np.ptp(rows) + 1, np.ptp(columns) + 1]) / SIZE
    return shares, columns[0] > columns[-1], image.shape[1:]


def test_sizes_flips_and_crops_are_those_of_the_parameters():
    for flip in (0.0, 1.0):
        config = small_config(short_sides=[64, 96], long_side=400, flip=flip)
        seen = [extent(run(train_transforms(config, 1.0), seed)) for seed in range(8)]
        assert all(mirrored == bool(flip) for _, mirrored, _ in seen)
        assert all(shares.min() > 0.97 for shares, _, _ in seen)
        assert {shape[0] for _, _, shape in seen} == {64, 96}
    plain, noisy = (
        run(train_transforms(small_config(flip=0.0, map_noise=noise), 1.0), 0)["data_samples"].maps
        for noise in (0.0, 0.5)
    )
    assert [torch.equal(a, b) for a, b in zip(plain, noisy, strict=True)] == [True] * 4 + [False]
    config = small_config(short_sides=[96], long_side=120, flip=0.0)
    assert extent(run(train_transforms(config, 1.0), 0))[2] == (80, 120)
    config = small_config(short_sides=[96], long_side=400, crop=True)
    rows = np.array([extent(run(train_transforms(config, 1.0), seed))[0][0] for seed in range(40)])
    assert 8 < (rows > 0.97).sum() < 36  # half of the samples are whole, and some crops
    assert 0.6 < rows.min() < 0.9  # 0.8 to 1.25 of a side that was brought to 0.83 to 1.25 of 96


def test_an_image_whose_objects_are_all_cut_off_stays_as_one_without():
    image, maps = coordinate_scene()
    results = {"img": image, "maps": maps, "text": "x", "img_id": 1, "key": "k"}
    results["instances"] = [{"bbox": [300, 10, 320, 40], "bbox_label": 0, "ignore_flag": 0}]
    packed = Chain(train_transforms(small_config(flip=0.0), 1.0))(results)
    assert len(packed["data_samples"].gt_instances) == 0
    results["instances"] = [{"bbox": [10, 10, 12, 40], "bbox_label": 0, "ignore_flag": 0}]
    results["img"], results["maps"] = coordinate_scene()
    assert (
        len(Chain(train_transforms(small_config(flip=0.0), 1.0))(results)["data_samples"].gt_instances) == 1
    )


def test_files_of_one_name_in_two_folders_are_two_images(tmp_path):
    reader, rng = RecordReader(1), np.random.default_rng(0)
    for number, folder in enumerate("ab"):
        write_png(tmp_path / folder / "x.png", np.full((8, 8, 3), number, np.uint8))
        make_maps(rng, (8, 8)).save(tmp_path / folder / "x.npz")
    pixels = [reader.read(tmp_path / f / "x.png", tmp_path / f / "x.npz")[0][0, 0, 0] for f in "abab"]
    assert pixels == [0, 1, 0, 1]


def test_mosaics_by_hand(tmp_path):
    """Records of one colour, size and box each: a tile's colour tells whose box must lie where in it."""
    rng, records = np.random.default_rng(0), []
    for number, size in enumerate([(40, 60), (60, 40), (80, 80), (40, 120), (50, 50)]):
        write_png(tmp_path / f"{number}.png", np.full((*size, 3), 50 * number, np.uint8))
        maps = make_maps(rng, size)
        maps.score[:] = (np.arange(maps.score.shape[1]) + 0.5) / maps.score.shape[1]
        maps.save(tmp_path / f"{number}.npz")
        box = np.array([[4.0, 8.0, 30.0, 20.0]], np.float32)
        files = tmp_path / f"{number}.png", tmp_path / f"{number}.npz", tmp_path
        records.append(Record(str(number), *files, size, "s", "train", box))
    transform = MosaicComposed(1.0, records, RecordReader(8))
    others = set()
    for seed in range(12):
        np.random.seed(seed)  # noqa: NPY002
        first = records[seed % 5]
        image, maps = RecordReader().read(first.image, first.maps)
        found = transform({"img": image, "maps": maps, "instances": [{"bbox": first.boxes[0].tolist()}]})
        height, width = first.size
        assert found["img"].shape[:2] == found["ori_shape"] == (2 * height, 2 * width)
        assert found["maps"].shape[1:] == (2 * maps.shape[1], 2 * maps.shape[2])
        for tile, instance in enumerate(found["instances"]):
            top, left = tile // 2 * height, tile % 2 * width
            number = int(found["img"][top + height // 2, left + width // 2, 0]) // 50
            others |= {number} if tile else set()
            rows, columns = maps.shape[1:]
            part = found["maps"][-1, tile // 2 * rows :][:rows, tile % 2 * columns :][:, :columns]
            ramp = (np.arange(columns) + 0.5) / columns  # from left to right of whatever the tile shows
            np.testing.assert_allclose(part, np.broadcast_to(ramp, part.shape), atol=0.06)
            own = records[number]
            x, y = width / own.size[1], height / own.size[0]
            expected = own.boxes[0] * [x, y, x, y] + [left, top, left, top]
            np.testing.assert_allclose(instance["bbox"], expected, rtol=1e-5)
    assert len(others) == 5


def test_the_prompt_and_the_objects_of_a_record_reach_its_sample(composed):
    records = read_set(composed)
    steps = [Chain(transforms_of_testing(small_config(), 0))]
    dataset = ComposedDataset(records, "lost cargo", pipeline=steps, test_mode=True)
    assert len(dataset) == len(records)
    sample = dataset[3]["data_samples"]
    assert (sample.text, sample.key, sample.img_id) == (
        "lost cargo",
        records[3].key,
        image_id(records[3].key),
    )


@pytest.mark.parametrize("name", ["semantic", "entropy", "score"])
def test_maps_that_are_not_finite_are_named(tmp_path, name):
    maps = make_maps(np.random.default_rng(0), (16, 24))
    getattr(maps, name).flat[[1, 5]] = np.nan, np.inf
    maps.save(tmp_path / "x.npz")
    with pytest.raises(DataError, match=f"NaN or infinite numbers: 2 of {name}") as caught:
        UncertaintyMaps.load(tmp_path / "x.npz")
    assert caught.value.what == str(tmp_path / "x.npz")


def test_maps_of_unequal_shapes_are_refused(tmp_path):
    maps = make_maps(np.random.default_rng(0), (16, 24))
    for odd in ({"entropy": maps.entropy[:2]}, {"semantic": maps.semantic[0]}):
        replace(maps, **odd).save(tmp_path / "x.npz")
        with pytest.raises(DataError, match="unequal shapes"):
            UncertaintyMaps.load(tmp_path / "x.npz")


def test_shrinking_takes_the_mean_of_what_a_cell_covers():
    maps = np.random.default_rng(0).normal(size=(2, 32, 48)).astype(np.float32)
    small = warp_maps(
        maps, (128, 192), np.diag([0.25, 0.25, 1.0]), (32, 48), 8
    )  # a cell covers 8 x 8 of the maps
    expected = maps.reshape(2, 4, 8, 6, 8).mean((2, 4))
    np.testing.assert_allclose(small, expected, atol=1e-5)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.7])
def test_of_a_constant_map_nothing_is_lost_at_the_border(scale):
    size = round(40 * scale), round(56 * scale)
    warped = warp_maps(np.ones((1, 10, 14), np.float32), (40, 56), np.diag([scale, scale, 1.0]), size, 8)
    np.testing.assert_allclose(warped, 1.0, atol=1e-6)
