"""Every item, in miniature and in its published form, becomes what the project's readers expect."""

from __future__ import annotations

import json
from pathlib import Path

import acquisition_miniature as miniature
import numpy as np
import pytest
from PIL import Image

from anomdino.acquisition.acquire import acquire, fetch_items
from anomdino.acquisition.archives import unpack
from anomdino.acquisition.normalise import benchmarks, inlier, outliers, s2m, weights
from anomdino.acquisition.registry import Expectation
from anomdino.acquisition.tree import Tree, layout_faults
from anomdino.adt.dataset import TrainingFiles, list_items
from anomdino.benchmarks import open_benchmark
from anomdino.config.acquisition import RegistryConfig
from anomdino.detector.records import read_records, split_folds
from anomdino.errors import DataError, ProtocolError
from anomdino.io.boxes import image_id
from anomdino.io.images import read_label
from anomdino.io.listing import list_images, pair_by_key
from anomdino.io.scores import read_score
from anomdino.protocol import refuse_evaluation_data


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    miniature.write_published(folder)
    return folder


@pytest.fixture
def get(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def one(*names: str) -> Path:
        config = RegistryConfig(items=list(names), from_dir=str(published), downloads="store", offline=True)
        acquire(config, tmp_path / "out", miniature.miniature_registry())
        return tmp_path / "out"

    return one


def test_cityscapes(get):
    out = get("cityscapes")
    for split, count in (("train", miniature.TRAIN), ("val", miniature.VAL)):
        root = out / "inlier" / split
        pairs = pair_by_key(list_images(root / "images"), list_images(root / "labels"))
        assert len(pairs) == count
        key, _, label = pairs[0]
        assert key.startswith("town/town_")
        values = read_label(label)
        assert (values[0, 0], values[-1, 0]) == (10, 0)


def test_cityscapes_ids_are_those_of_the_published_table():
    """Label ids by name (cityscapesScripts' table), independent of the code's own table."""
    names = (
        "road:7 sidewalk:8 building:11 wall:12 fence:13 pole:17 traffic_light:19 traffic_sign:20 "
        "vegetation:21 terrain:22 sky:23 person:24 rider:25 car:26 truck:27 bus:28 train:31 "
        "motorcycle:32 bicycle:33"
    )
    expected = {int(one.split(":")[1]): train_id for train_id, one in enumerate(names.split())}
    assert expected == inlier.CITYSCAPES_TRAIN_IDS


@pytest.mark.parametrize("strange", [34, 200, 254])
def test_label_ids_that_cityscapes_does_not_have_are_no_void(tmp_path, strange):
    values = np.array([[0, 7, 33, 255, strange]], np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a\.png.*Cityscapes label ids.*{{{strange}: 1}}"):
        inlier.read_cityscapes_label(tmp_path / "a.png")
    Image.fromarray(values[:, :4]).save(tmp_path / "a.png")
    assert inlier.read_cityscapes_label(tmp_path / "a.png").tolist() == [[255, 0, 18, 255]]


def test_an_index_that_camvids_codes_do_not_name_is_no_void(tmp_path):
    (tmp_path / "codes.txt").write_text("Road\nSky\n")
    for folder, values in (("images/a.png", np.zeros((2, 2, 3))), ("labels/a_P.png", [[0, 1], [1, 2]])):
        (tmp_path / folder).parent.mkdir()
        Image.fromarray(np.asarray(values, np.uint8)).save(tmp_path / folder)
    with pytest.raises(
        DataError, match=r"a_P\.png: has label values that are not lines of codes\.txt: {2: 1}"
    ):
        inlier.camvid(Tree((tmp_path,)), tmp_path / "out")


@pytest.mark.parametrize("form", ["indexed", "colours"])
def test_camvid_in_both_published_forms(published, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    only = {"camvid_indexed"} if form == "indexed" else {"camvid_images", "camvid_labels"}
    miniature.write_published(tmp_path / "by_hand", only)
    config = RegistryConfig(items=["camvid"], from_dir="by_hand", downloads="store", offline=True)
    acquire(config, tmp_path / "out", miniature.miniature_registry())
    stems = {
        split: sorted(list_images(tmp_path / "out/inlier" / split / "images")) for split in ("train", "val")
    }
    assert stems["train"] == ["0001TP_006690", "0006R0_f00930", "0016E5_00390"]
    assert stems["val"] == ["0016E5_07959", "0016E5_08159"]
    label = read_label(tmp_path / "out/inlier/train/labels/0006R0_f00930.png")
    names = sorted(inlier.CAMVID_CLASSES)
    assert [int(value) for value in label.ravel()[:32]] == [inlier.CAMVID_CLASSES[name][1] for name in names]


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("0001TP_006690", "train"),
        ("0001TP_008540", "train"),
        ("0001TP_008550", "test"),
        ("0001TP_010380", "test"),
        ("0006R0_f03930", "train"),
        ("0016E5_07957", "train"),
        ("0016E5_07959", "val"),
        ("0016E5_08159", "val"),
        ("0016E5_08160", "train"),
        ("Seq05VD_f00000", "test"),
    ],
)
def test_camvids_usual_split(stem, split):
    assert inlier.camvid_split(stem) == split


def test_camvid_classes_are_the_eleven_and_void():
    ids = {train_id for _, train_id in inlier.CAMVID_CLASSES.values()}
    assert ids == {0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 18, 255}
    assert len({colour for colour, _ in inlier.CAMVID_CLASSES.values()}) == 32
    assert inlier.CAMVID_CLASSES["Animal"][1] == 255


def test_camvid_colours_that_do_not_exist_are_refused(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0, 0] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "a_L.png")
    with pytest.raises(DataError, match=r"\(1, 2, 3\)"):
        inlier.read_camvid_colours(tmp_path / "a_L.png")


def test_coco_keeps_what_meta_ood_keeps_and_masks_are_exact(get):
    out = get("coco_outliers")
    pairs = pair_by_key(
        list_images(out / "outliers/images"), list_images(out / "outliers/masks"), ("image", "mask")
    )
    assert [key for key, *_ in pairs] == [f"coco_{number:012d}" for number in (1, 2, 6)]
    mask = read_label(out / "outliers/masks/coco_000000000001.png")
    assert set(np.unique(mask)) == {0, 255}
    expected = np.zeros((480, 640), bool)
    expected[20:220, 10:110] = True
    assert ((mask == 255) ^ expected).sum() <= 400  # pycocotools rounds the polygon's border
    crowd = read_label(out / "outliers/masks/coco_000000000002.png") == 255
    assert crowd.sum() == 500 * 50
    assert crowd[:, 100:150].all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"categories": []}, "is no COCO instance file"),
        ({"annotations": [5]}, "is no COCO instance file"),
        ({"images": [{"id": 1, "height": 480, "width": 480}]}, "is no COCO instance file"),
        ({"annotations": []}, "has no image of 480 pixels"),
        ({"annotations": [{"image_id": 1, "category_id": 1}]}, "image 1.jpg that cannot be drawn"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "segmentation": []}]}, "cannot be drawn"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[1, 2]]}]}, "cannot be drawn"),
    ],
)
def test_coco_annotations_that_are_damaged_are_refused_in_words(tmp_path, change, words):
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 480, "width": 480}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[9, 9, 99, 9, 99, 99]]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    miniature.write_unpacked(
        tmp_path / "coco",
        {
            "annotations/instances_train2017.json": json.dumps(content | change).encode(),
            "train2017/1.jpg": b"never looked at",
        },
    )
    with pytest.raises(DataError, match=words):
        outliers.coco(Tree((tmp_path / "coco",)), tmp_path / "out")


def test_coco_draw_is_the_same_for_everyone():
    ids = list(range(1, 1001))
    drawn = outliers.draw(ids, 10)
    assert drawn == outliers.draw(ids[::-1], 10) == sorted(drawn)
    assert len(set(drawn)) == 10
    assert outliers.draw(ids, 10_000) == ids


def test_smiyc_and_road_anomaly_open_as_benchmarks(get):
    out = get("smiyc_anomaly_track", "smiyc_obstacle_track", "road_anomaly")
    expected = {
        ("smiyc_anomaly_track", "AnomalyTrack", "validation"): [
            "validation0000",
            "validation0001",
            "validation0002",
        ],
        ("smiyc_obstacle_track", "ObstacleTrack", "validation"): [
            "validation_10",
            "validation_11",
            "validation_9",
        ],
        ("road_anomaly", "RoadAnomaly", "all"): ["animals00", "animals01", "animals02"],
    }
    for (layout, name, split), keys in expected.items():
        benchmark = open_benchmark(layout, out / "val" / name, split)
        assert [sample.key for sample in benchmark] == keys
        label = benchmark.read_label(benchmark.samples[0])
        assert 1 in label
        with pytest.raises(ProtocolError):
            refuse_evaluation_data(out / "val" / name)
    assert (out / "val/AnomalyTrack/LICENSE.txt").is_file()


def test_road_anomaly_two_is_the_anomaly(get):
    label = read_label(get("road_anomaly") / "val/RoadAnomaly/labels/animals01.png")
    assert set(np.unique(label)) == {0, 1}
    assert (label == 1).sum() == 14 * 20


def test_lost_and_found(get):
    out = get("lost_and_found")
    benchmark = open_benchmark("lost_and_found", out / "val/LostAndFound", "test")
    assert [sample.frame_id for sample in benchmark] == list(miniature.LAF_FRAMES["test"])


def test_fishyscapes_takes_its_frames_out_of_lost_and_found(get):
    out = get("fishyscapes_laf")
    benchmark = open_benchmark("fishyscapes", out / "val/Fishyscapes", "LostAndFound")
    assert [sample.key for sample in benchmark] == list(miniature.LAF_FRAMES["test"])
    assert not list((out / "val").glob(".*"))


def test_s2m_validation_with_its_scores(get):
    out = get("s2m_val")
    names = sorted(path.relative_to(out / "val").as_posix() for path in out.rglob("s2m_score"))
    assert names == [
        "AnomalyTrack/s2m_score",
        "Fishyscapes/LostAndFound/s2m_score",
        "ObstacleTrack/s2m_score",
        "RoadAnomaly/s2m_score",
    ]
    for layout, root, split in (
        ("road_anomaly", "RoadAnomaly", "all"),
        ("smiyc_anomaly_track", "AnomalyTrack", "validation"),
        ("smiyc_obstacle_track", "ObstacleTrack", "validation"),
        ("fishyscapes", "Fishyscapes", "LostAndFound"),
    ):
        assert len(open_benchmark(layout, out / "val" / root, split)) == 3


def test_s2m_scores_follow_the_rank_of_their_image(get):
    """ObstacleTrack is ranked by number: validation_9 has the first score, though it sorts last by name."""
    out = get("s2m_val")
    first = np.random.default_rng(0).normal(size=(miniature.HEIGHT, miniature.WIDTH)).astype(np.float32)
    assert np.array_equal(read_score(out / "val/ObstacleTrack/s2m_score/validation_9.npz"), first)
    assert np.array_equal(read_score(out / "val/AnomalyTrack/s2m_score/validation0000.npz"), first)
    assert np.array_equal(read_score(out / "val/Fishyscapes/LostAndFound/s2m_score/image_9.npz"), first)


def test_s2m_training_set_becomes_coco_and_says_that_it_has_no_masks(
    published, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    config = RegistryConfig(from_dir=str(published), downloads="store", offline=True)
    fetch_items(miniature.miniature_registry(), ["s2m_train"], config, into=tmp_path / "data")
    content = json.loads((tmp_path / "data/s2m_train/ood.json").read_text())
    assert [one["bbox"] for one in content["annotations"]] == [
        [10, 20, 1 + number, 21] for number in range(5)
    ]
    assert [one["area"] for one in content["annotations"]] == [21 * (1 + number) for number in range(5)]
    assert content["categories"] == [{"id": 1, "name": "ood-object"}]
    assert {one["width"] for one in content["images"]} == {miniature.WIDTH}
    ids = [image_id(Path(one["file_name"]).stem) for one in content["images"]]  # as in files of boxes
    assert [one["id"] for one in content["images"]] == ids
    assert [one["image_id"] for one in content["annotations"]] == ids
    assert "ADT-Net cannot" in caplog.text
    assert "compose" in caplog.text


def test_s2ms_first_hundred_entries_are_held_out(tmp_path):
    for name in "abc":
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / f"{name}.png")
    box = (0.0, 0.0, 1.0, 1.0)
    entries = [("a.png", box)] * 99 + [("b.png", box), ("c.png", box)]
    content = s2m.to_coco(entries, list_images(tmp_path))
    assert [one["split"] for one in content["images"]] == ["val", "val", "train"]


def test_scores_that_do_not_fit_their_images_are_left_out(tmp_path, caplog):
    for folder, names in (("original", ("image_0", "image_1", "image_2")), ("score", ("0", "1", "3"))):
        (tmp_path / folder).mkdir()
        for name in names:
            image = Image.fromarray(np.zeros((2, 2), np.uint8))
            image.save(tmp_path / folder / f"{name}.{'png' if folder == 'original' else 'npz'}", "png")
    s2m._copy_scores(tmp_path, "original", tmp_path / "out", link=False)
    assert not (tmp_path / "out").exists()
    assert "3 scores for 3 images; they are left out" in caplog.text


@pytest.mark.parametrize("folds", [1, 2])
def test_the_detector_can_train_on_s2ms_set_and_adt_net_says_why_it_cannot(
    published, tmp_path, monkeypatch, folds
):
    monkeypatch.chdir(tmp_path)
    config = RegistryConfig(from_dir=str(published), downloads="store", offline=True)
    fetch_items(miniature.miniature_registry(), ["s2m_train"], config, into=tmp_path / "data")
    root = tmp_path / "data/s2m_train"
    labels = root / "offline_dataset_label"
    records = read_records(root / "ood.json", root / "offline_dataset", root / "offline_dataset_maps", labels)
    assert [record.boxes.tolist() for record in records] == [[[10, 20, 11 + n, 41]] for n in range(5)]
    for fold in split_folds(records, folds, 0.4, seed=0):
        assert fold.train
    files = TrainingFiles(root / "offline_dataset_score", labels, root / "boxes.json")
    with pytest.raises(DataError, match=r"learns from masks.*\n.*compose a training set with masks"):
        list_items(files)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[{}]",
        '[{"file_name": "0.png", "annotations": {"bbox": [5, 5, 1, 1]}}]',
        "[",
        '[{"file_name": 1}]',
    ],
)
def test_a_damaged_s2m_list_is_refused(tmp_path, text):
    (tmp_path / "ood.json").write_text(text)
    if text == "{}":
        assert s2m.read_s2m_list(tmp_path / "ood.json") == []
        return
    with pytest.raises(DataError, match="not S2M's list"):
        s2m.read_s2m_list(tmp_path / "ood.json")


def test_weights_are_laid_out_unchanged(get, published):
    out = get(
        "rpl_seed", "rpl_corocl", "wide_resnet38_cityscapes", "mm_grounding_dino_t", "bert_base_uncased"
    )
    assert (out / "weights/rev3.pth").read_bytes() == (published / "rev3.pth").read_bytes()
    assert (out / "weights/rpl_seed.pth").is_file()
    names = {path.name for path in (out / "weights/bert-base-uncased").iterdir()}
    assert names == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "model.safetensors",
    }


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_seed_weights_may_come_inside_an_archive(published, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    members = {"readme.txt": b"hello", "weights/rev3.pth": miniature.checkpoint()}
    inner = miniature.packed(f"x.{kind}", members)
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand/anomdino_rpl_weights").write_bytes(inner)
    config = RegistryConfig(items=["rpl_seed"], from_dir="hand", downloads="store", offline=True)
    acquire(config, tmp_path / "out", miniature.miniature_registry())
    assert (tmp_path / "out/weights/rpl_seed.pth").read_bytes() == miniature.checkpoint()


@pytest.mark.parametrize("names", [[], ["a.pth", "b/c.ckpt"]])
def test_seed_weights_are_one_checkpoint(published, tmp_path, names):
    members = {"readme.txt": b"hello"} | dict.fromkeys(names, miniature.checkpoint())
    (tmp_path / "weights").write_bytes(miniature.packed("x.tgz", members))
    with pytest.raises(DataError, match=f"holds {len(names)} checkpoints"):
        weights.seed(Tree((), files={"rpl_seed": tmp_path / "weights"}), tmp_path / "out")


def test_what_a_mac_adds_to_an_archive_is_no_data(tmp_path):
    """Beside every folder that it packs there is one of the same form with other files in it."""
    miniature.write_unpacked(
        tmp_path, {"__MACOSX/images/._1.png": b"x", ".x/images/1.png": b"x", "set/images/1.png": b"x"}
    )
    assert Tree((tmp_path,)).glob("images/*.png") == [tmp_path / "set/images/1.png"]


def test_fishyscapes_frames_are_found_among_all_of_an_unpacked_lost_and_found(tmp_path):
    hand = tmp_path / "hand"
    miniature.write_unpacked(hand, miniature.laf_images() | miniature.fishyscapes_labels())
    image = next(hand.rglob("*_leftImg8bit.png"))
    image.with_name("00_More_000000_000010_leftImg8bit.png").write_bytes(image.read_bytes())
    counts = benchmarks.fishyscapes_laf(Tree((hand,), owned=False), tmp_path / "out")
    assert counts == {"val/Fishyscapes/LostAndFound": len(miniature.LAF_FRAMES["test"])}


@pytest.mark.parametrize("outer", ["", "Cityscapes", "some/where/deep"])
def test_a_data_set_that_was_unpacked_by_hand(tmp_path, monkeypatch, outer):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "hand/cityscapes" / outer
    miniature.write_unpacked(root, miniature.cityscapes_images())
    miniature.write_unpacked(root, miniature.cityscapes_labels())
    config = RegistryConfig(items=["cityscapes"], from_dir="hand", downloads="store", offline=True)
    counts = acquire(config, tmp_path / "out", miniature.miniature_registry())
    assert counts == {"inlier/train": miniature.TRAIN, "inlier/val": miniature.VAL}
    original = next(root.rglob("train/town/*_leftImg8bit.png"))
    copy = next((tmp_path / "out/inlier/train/images").rglob("*.png"))
    assert original.stat().st_nlink == copy.stat().st_nlink == 1


def linked(folder: Path, elsewhere: Path) -> None:
    """Move a folder away and leave a link to it, as where a data set is spread over disks."""
    elsewhere.parent.mkdir(exist_ok=True)
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere, target_is_directory=True)


def test_linked_folders_of_an_unpacked_set_are_read_like_others(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    towns = tmp_path / "hand/cityscapes"
    miniature.write_unpacked(towns, miniature.cityscapes_images())
    miniature.write_unpacked(towns, miniature.cityscapes_labels())
    for number, kind in enumerate(("leftImg8bit", "gtFine")):
        linked(towns / kind / "train/town", tmp_path / f"disk/{number}")
    registry = miniature.miniature_registry()
    name = registry.files["smiyc_anomaly_track"].name
    (tmp_path / "hand/smiyc_anomaly_track").mkdir()
    unpack(published / name, tmp_path / "hand/smiyc_anomaly_track")
    linked(next((tmp_path / "hand/smiyc_anomaly_track").rglob("images")), tmp_path / "disk/images")
    items = ["cityscapes", "smiyc_anomaly_track"]
    config = RegistryConfig(items=items, from_dir="hand", downloads="store", offline=True)
    assert acquire(config, tmp_path / "out", registry) == {
        "inlier/train": miniature.TRAIN,
        "inlier/val": miniature.VAL,
        "val/AnomalyTrack": 4,
    }
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


@pytest.mark.parametrize(
    ("count", "least", "fault"), [(2, 1, True), (3, 1, False), (4, 1, True), (None, 4, True)]
)
def test_more_files_than_expected_are_a_fault_as_fewer_are(tmp_path, count, least, fault):
    for number in range(3):
        (tmp_path / f"{number}.png").touch()
    expected = Expectation(pattern="*.png", count=count, least=least)
    assert bool(layout_faults(Tree((tmp_path,)), [expected])) == fault


def test_an_archive_that_lacks_files_is_refused(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = dict(miniature.cityscapes_images())
    files.pop(next(name for name in files if "/train/" in name))
    (tmp_path / "hand").mkdir()
    name = "leftImg8bit_trainvaltest.zip"
    (tmp_path / "hand" / name).write_bytes(miniature.packed(name, files))
    other = "gtFine_trainvaltest.zip"
    (tmp_path / "hand" / other).write_bytes((published / other).read_bytes())
    config = RegistryConfig(items=["cityscapes"], from_dir="hand", downloads="store", offline=True)
    with pytest.raises(DataError, match=r"3 files match leftImg8bit/train.*expected 4"):
        acquire(config, tmp_path / "out", miniature.miniature_registry())
    assert not (tmp_path / "out/inlier").exists()
    assert not list((tmp_path / "store").glob("*.unpacked"))
