import numpy as np
import pytest

from anomdino.detector.dataset import RecordReader, train_transforms
from anomdino.detector.dataset import test_transforms as transforms_of_testing
from anomdino.detector.maps import stack_maps, warp_maps
from anomdino.detector.mmdet_parts import TRANSFORMS, Chain
from anomdino.errors import DataError
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
