"""Every layout is written to a temporary folder as its data set lies on disk, then read back."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from anomdino.benchmarks import LAYOUTS, REGISTRY, LabelMap, open_benchmark, open_registered, open_set
from anomdino.benchmarks.layouts import _LAF_INVALID
from anomdino.config.benchmark import BenchmarkSet
from anomdino.errors import ConfigError, DataError


def image(path, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def label(path, values, size=(6, 8)):
    """Write a label whose first pixels carry ``values`` and whose rest is the first of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = np.full(size, values[0], np.uint8)
    raw.ravel()[: len(values)] = values
    Image.fromarray(raw).save(path)


def first_pixels(benchmark, index=0, count=3):
    return benchmark.read_label(benchmark.samples[index]).ravel()[:count].tolist()


def test_road_anomaly_original_and_labels(tmp_path):
    for name in ("b", "a"):
        image(tmp_path / f"original/{name}.jpg")
        label(tmp_path / f"labels/{name}.png", [0, 1, 255])
    benchmark = open_benchmark("road_anomaly", tmp_path)
    assert [sample.key for sample in benchmark] == ["a", "b"]
    assert first_pixels(benchmark) == [0, 1, 255]
    assert benchmark.labelled
    benchmark.check()


def test_road_anomaly_frames_reads_two_as_anomaly(tmp_path):
    image(tmp_path / "frames/cow01.jpg")
    label(tmp_path / "frames/cow01.labels/labels_semantic.png", [0, 2, 1])
    image(tmp_path / "frames/cow01.labels/labels_semantic_color.png")
    benchmark = open_benchmark("road_anomaly_frames", tmp_path)
    assert [sample.key for sample in benchmark] == ["cow01"]
    assert first_pixels(benchmark) == [0, 1, 0]


def test_road_anomaly_says_when_the_folder_has_the_other_form(tmp_path):
    image(tmp_path / "frames/cow01.jpg")
    with pytest.raises(DataError, match="road_anomaly_frames"):
        open_benchmark("road_anomaly", tmp_path)


@pytest.mark.parametrize("folder", ["", "dataset_AnomalyTrack/"])
def test_anomaly_track_validation(tmp_path, folder):
    for index in range(10):
        image(tmp_path / f"{folder}images/validation{index:04d}.jpg")
        label(tmp_path / f"{folder}labels_masks/validation{index:04d}_labels_semantic.png", [0, 1, 255])
        image(tmp_path / f"{folder}labels_masks/validation{index:04d}_labels_semantic_color.png")
    benchmark = open_registered("AnomalyTrack", tmp_path)
    assert len(benchmark) == 10
    assert benchmark.samples[3].key == "validation0003"
    assert (benchmark.limits.min_predicted, benchmark.limits.min_gt) == (500, 100)
    assert benchmark.protocol == "smiyc"
    assert first_pixels(benchmark) == [0, 1, 255]


def test_anomaly_track_test_split_can_be_listed_but_not_scored(tmp_path):
    image(tmp_path / "images/validation0000.jpg")
    label(tmp_path / "labels_masks/validation0000_labels_semantic.png", [0, 1])
    image(tmp_path / "images/zebra0001.jpg")
    hidden = open_benchmark("smiyc_anomaly_track", tmp_path, "test")
    assert [sample.key for sample in hidden] == ["zebra0001"]
    assert not hidden.labelled
    with pytest.raises(DataError, match="predicted but not scored"):
        hidden.check()
    with pytest.raises(DataError, match="no label"):
        hidden.read_label(hidden.samples[0])
    everything = open_benchmark("smiyc_anomaly_track", tmp_path, "all")
    assert [sample.label is None for sample in everything] == [False, True]
    with pytest.raises(DataError, match="1 of 2 frames: zebra0001"):
        everything.check()
    image(tmp_path / "images/ape0001.jpg")
    everything = open_benchmark("smiyc_anomaly_track", tmp_path, "all")
    assert [sample.key for sample in everything] == ["ape0001", "validation0000", "zebra0001"]
    label(tmp_path / "labels_masks/ape0001_labels_semantic.png", [0, 1])
    label(tmp_path / "labels_masks/zebra0001_labels_semantic.png", [0, 1])
    image(tmp_path / "images/zebra0002.jpg")
    with pytest.raises(DataError, match="1 images without label: zebra0002"):
        open_benchmark("smiyc_anomaly_track", tmp_path, "all")


def test_a_split_that_a_folder_does_not_have_is_refused(tmp_path):
    for split in ("a", "b"):
        image(tmp_path / split / "images/1.png")
        label(tmp_path / split / "labels/1.png", [0, 1])
    assert len(open_benchmark("folder", tmp_path, "a")) == 1
    with pytest.raises(ConfigError, match="(?s)'c' is no folder there.*images/: a, b"):
        open_benchmark("folder", tmp_path, "c")


OBSTACLE_SCENES = {"curvy-street": 2, "driveway": 3, "snowstorm1": 1, "snowstorm2": 1}


def obstacle_track(root, validation):
    for scene, count in OBSTACLE_SCENES.items():
        for index in range(count):
            image(root / f"images/{scene}_{index}.webp")
    for number in validation:
        image(root / f"images/validation_{number}.webp")
        label(root / f"labels_masks/validation_{number}_labels_semantic.png", [0, 1, 255])


def test_obstacle_track_splits_by_scene(tmp_path):
    obstacle_track(tmp_path, range(1, 41))
    sizes = {
        split: len(open_benchmark("smiyc_obstacle_track", tmp_path, split))
        for split in ("night", "snowstorm", "test", "noNight", "all")
    }
    assert sizes == {"night": 3, "snowstorm": 2, "test": 2, "noNight": 4, "all": 47}
    snow = open_benchmark("smiyc_obstacle_track", tmp_path, "snowstorm")
    assert {sample.tags for sample in snow} == {("snowstorm1", "snowstorm"), ("snowstorm2", "snowstorm")}


def test_obstacle_validation_leaves_out_ten_prefixes_of_forty(tmp_path):
    obstacle_track(tmp_path, range(1, 41))
    benchmark = open_registered("ObstacleTrack", tmp_path)
    numbers = {int(sample.key.split("_")[1]) for sample in benchmark}
    assert numbers == set(range(1, 41)) - {19, *range(21, 30)}
    assert (benchmark.limits.min_predicted, benchmark.limits.min_gt) == (50, 10)


def test_obstacle_validation_that_was_renumbered_keeps_its_thirty(tmp_path):
    obstacle_track(tmp_path, range(1, 31))
    assert len(open_registered("ObstacleTrack", tmp_path)) == 30


def test_registered_set_with_frames_missing_is_refused(tmp_path):
    image(tmp_path / "images/validation0000.jpg")
    with pytest.raises(DataError, match="holds 1 frames in split 'validation', AnomalyTrack has 10"):
        open_registered("AnomalyTrack", tmp_path)
    assert len(open_registered("AnomalyTrack", tmp_path, expected_count=1)) == 1


def lost_and_found(root, frames, split="test", kind="labelIds", values=(0, 1, 2, 200, 201)):
    for frame in frames:
        scene = "_".join(frame.split("_")[:-2])
        image(root / f"leftImg8bit/{split}/{scene}/{frame}_leftImg8bit.png")
        label(root / f"gtCoarse/{split}/{scene}/{frame}_gtCoarse_{kind}.png", list(values))


def test_lost_and_found_label_ids(tmp_path):
    lost_and_found(tmp_path, ["02_Hanns_Klemm_Str_44_000000_000010"])
    benchmark = open_benchmark("lost_and_found", tmp_path, "test")
    assert benchmark.samples[0].key == "02_Hanns_Klemm_Str_44/02_Hanns_Klemm_Str_44_000000_000010_leftImg8bit"
    assert benchmark.samples[0].frame_id == "02_Hanns_Klemm_Str_44_000000_000010"
    assert benchmark.samples[0].tags == ("02_Hanns_Klemm_Str_44",)
    assert first_pixels(benchmark, count=5) == [255, 0, 1, 1, 255]


def test_lost_and_found_train_ids_as_rpl_reads_them(tmp_path):
    lost_and_found(
        tmp_path, ["02_Hanns_Klemm_Str_44_000000_000010"], kind="labelTrainIds", values=(0, 1, 2, 255)
    )
    benchmark = open_benchmark("lost_and_found_train_ids", tmp_path, "test")
    assert first_pixels(benchmark, count=4) == [255, 0, 1, 255]


def test_lost_and_found_drops_invalid_frames_by_rank_and_known_objects_by_prefix(tmp_path):
    frames = [f"02_Hanns_Klemm_Str_44_000000_{index:06d}" for index in range(20)]
    known = [
        "15_Rechbergstr_Deckenpfronn_000000_000010",
        "10_Schlossberg_9_000004_000010",
        "01_Hanns_Klemm_Str_45_000006_000010",
        "01_Hanns_Klemm_Str_45_000007_000010",
    ]
    frames = ["01_Hanns_Klemm_Str_45_000008_000010", *frames[:-1]]
    lost_and_found(tmp_path, [*frames, *known])
    valid = open_benchmark("lost_and_found", tmp_path, "testValid")
    left_out = sorted([*frames, *known])[17]
    assert {sample.frame_id for sample in valid} == {*frames, *known} - {left_out}
    unknown = open_benchmark("lost_and_found", tmp_path, "testNoKnown")
    assert {sample.frame_id for sample in unknown} == set(frames) - {left_out}


def test_lost_and_found_counts_frames_by_their_own_names_and_training_frames_apart(tmp_path):
    """The 45th training frame is invalid; folders do not matter for the rank."""
    for index in range(46):
        name = f"train/{45 - index:02d}/02_A_000000_{index:06d}"
        for path in (f"leftImg8bit/{name}_leftImg8bit.png", f"gtCoarse/{name}_gtCoarse_labelIds.png"):
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).touch()
    lost_and_found(tmp_path, ["02_B_000000_000010"])
    found = open_benchmark("lost_and_found", tmp_path, "trainValid")
    assert [int(sample.frame_id[-6:]) for sample in found] == [*range(44), 45]


def test_lost_and_found_roi_makes_the_whole_street_count(tmp_path):
    lost_and_found(tmp_path, ["02_Hanns_Klemm_Str_44_000000_000010"])
    label(tmp_path / "roi.png", [255, 1, 0, 1, 0])
    benchmark = open_benchmark("lost_and_found", tmp_path, "test", roi=tmp_path / "roi.png")
    assert first_pixels(benchmark, count=5) == [0, 0, 1, 1, 255]


def test_a_region_of_interest_keeps_void_inside_and_anomalies_outside(tmp_path):
    image(tmp_path / "images/a.png")
    label(tmp_path / "labels/a.png", [0, 1, 255, 0, 1, 255])
    label(tmp_path / "roi.png", [1, 1, 1, 0, 0, 0])
    benchmark = open_benchmark("folder", tmp_path, roi=tmp_path / "roi.png")
    assert first_pixels(benchmark, count=6) == [0, 1, 255, 255, 1, 255]


@pytest.mark.parametrize("prefix", ["Static/", ""])
def test_fishyscapes(tmp_path, prefix):
    for number in (0, 1, 2, 10):
        image(tmp_path / f"{prefix}original/image_{number}.png")
        label(tmp_path / f"{prefix}labels/image_{number}.png", [0, 1, 255])
    benchmark = open_benchmark("fishyscapes", tmp_path, "Static")
    assert [sample.key for sample in benchmark] == ["image_0", "image_1", "image_10", "image_2"]
    assert benchmark.protocol == "fishyscapes"


def test_fishyscapes_lost_and_found_takes_the_frames_that_have_labels(tmp_path):
    frames = ["02_A_000000_000010", "02_A_000000_000020"]
    lost_and_found(tmp_path / "dataset_LostAndFound", frames)
    label(tmp_path / f"dataset_FishyLAF/labels/val/{frames[1]}_fishy-labels.png", [0, 1, 255])
    benchmark = open_benchmark("fishyscapes_laf", tmp_path)
    assert [sample.frame_id for sample in benchmark] == [frames[1]]
    assert first_pixels(benchmark) == [0, 1, 255]


def test_fishyscapes_lost_and_found_is_in_the_order_of_its_images(tmp_path):
    for split, frame in (("train", "01_A_000000_000010"), ("test", "02_A_000000_000020")):
        lost_and_found(tmp_path / "dataset_LostAndFound", [frame], split)
        label(tmp_path / f"dataset_FishyLAF/labels/val/{frame}_fishy-labels.png", [0, 1])
    benchmark = open_benchmark("fishyscapes_laf", tmp_path)
    assert [sample.key.split("/")[0] for sample in benchmark] == ["test", "train"]


def test_street_hazards(tmp_path):
    image(tmp_path / "test/images/test/t5/300.png")
    label(tmp_path / "test/annotations/test/t5/300.png", [1, 13, 14, 0, 255])
    benchmark = open_benchmark("street_hazards", tmp_path)
    assert benchmark.samples[0].key == "t5/300"
    assert benchmark.samples[0].tags == ("t5",)
    assert first_pixels(benchmark, count=5) == [0, 0, 1, 255, 255]


def test_folder_with_declared_values_tags_and_instances(tmp_path):
    image(tmp_path / "images/rain/one.png")
    label(tmp_path / "masks/rain/one.png", [7, 255, 9])
    label(tmp_path / "instances/rain/one.png", [0, 1])
    (tmp_path / "tags.json").write_text(json.dumps({"rain/one": ["wet"]}))
    settings = BenchmarkSet(root=tmp_path, layout="folder", labels={7: 0, 255: 1, 9: 255}, min_gt=3)
    benchmark = open_set("mine", settings)
    assert benchmark.name == "mine"
    assert benchmark.limits.min_gt == 3
    assert benchmark.samples[0].tags == ("rain", "wet")
    assert benchmark.samples[0].instances == tmp_path / "instances/rain/one.png"
    assert first_pixels(benchmark) == [0, 1, 255]


def test_masks_serve_where_no_folder_of_labels_is_named(tmp_path):
    image(tmp_path / "images/one.png")
    label(tmp_path / "masks/one.png", [0, 1])
    assert open_benchmark("folder", tmp_path).labelled
    assert not open_benchmark("folder", tmp_path, labels="truth").labelled


def test_instances_that_fit_no_image_or_are_missing_are_listed(tmp_path):
    """A frame without its file would be left out of the instance metrics, false positives included."""
    for name in ("one", "two"):
        image(tmp_path / f"images/{name}.png")
    label(tmp_path / "instances/one.png", [0, 1])
    label(tmp_path / "instances/tow.png", [0, 1])
    match = "1 image without instances: two; 1 instances without image: tow"
    with pytest.raises(DataError, match=match):
        open_benchmark("folder", tmp_path)


@pytest.mark.parametrize("kind", ["palette", "16 bits", "1 bit", "grey in three channels"])
def test_instances_are_read_as_they_are_stored(tmp_path, kind):
    image(tmp_path / "images/one.png")
    ids = np.zeros((6, 8), np.uint16)
    ids[0, :3], ids[3, 3] = 300 if kind == "16 bits" else 1, 1
    picture = Image.fromarray(ids if kind == "16 bits" else ids.astype(np.uint8))
    if kind == "palette":
        picture = Image.fromarray(ids.astype(np.uint8), mode="P")
        picture.putpalette([0, 0, 0, 200, 10, 99] + [7] * 762)
    elif kind == "1 bit":
        picture = Image.fromarray(ids > 0)
    elif kind == "grey in three channels":
        picture = picture.convert("RGB")
    (tmp_path / "instances").mkdir()
    picture.save(tmp_path / "instances/one.png")
    benchmark = open_benchmark("folder", tmp_path)
    read = benchmark.read_instances(benchmark.samples[0])
    assert read.dtype == np.int32
    expected = np.where(ids > 0, 255, 0) if kind == "1 bit" else ids
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("kind", ["16-bit colour", "real", "signed"])
def test_instances_of_other_kinds_are_refused(tmp_path, kind):
    """As 8 bits a channel, or cut to whole numbers, different ids would become one."""
    image(tmp_path / "images/one.png")
    (tmp_path / "instances").mkdir()
    ids = np.full((6, 8, 3), 300, np.uint16) if kind == "16-bit colour" else np.full((6, 8), 0.5, np.float32)
    ids = ids.astype(np.int16) if kind == "signed" else ids
    path = tmp_path / f"instances/one.{'png' if kind == '16-bit colour' else 'tif'}"
    assert cv2.imwrite(str(path), ids)
    benchmark = open_benchmark("folder", tmp_path)
    with pytest.raises(DataError, match="instance ids are one 8- or 16-bit channel"):
        benchmark.read_instances(benchmark.samples[0])


def test_instances_of_another_size_are_refused(tmp_path):
    image(tmp_path / "images/one.png")
    label(tmp_path / "instances/one.png", [0, 1], size=(5, 8))
    benchmark = open_benchmark("folder", tmp_path)
    with pytest.raises(DataError, match=r"instances/one\.png: is 5 x 8, its image one\.png is 6 x 8"):
        benchmark.read_instances(benchmark.samples[0])


def test_limits_of_components_are_the_layouts_unless_they_are_set(tmp_path):
    obstacle_track(tmp_path, [1])
    settings = {"root": tmp_path, "layout": "smiyc_obstacle_track"}
    for changes, expected in (({}, (50, 10)), ({"min_predicted": 7}, (7, 10)), ({"min_gt": 0}, (50, 0))):
        limits = open_set("mine", BenchmarkSet(**settings, **changes)).limits
        assert (limits.min_predicted, limits.min_gt) == expected


@pytest.mark.parametrize("rest", [0, 1, 255])
def test_values_that_are_not_declared_mean_what_is_said(rest):
    raw = np.array([[0, 1, 7, 9, 254]], np.uint8)
    assert LabelMap.of([0], [1], [9], rest=rest).apply(raw).tolist() == [[0, 1, rest, 255, rest]]


def test_as_many_frames_of_lost_and_found_are_invalid_as_the_counts_say():
    counts = REGISTRY["LostAndFound"].counts
    for split, invalid in _LAF_INVALID.items():
        assert len(set(invalid)) == counts[split] - counts[f"{split}Valid"]
        assert max(invalid) < counts[split]


def test_fishyscapes_lost_and_found_without_labels_is_refused(tmp_path):
    lost_and_found(tmp_path / "dataset_LostAndFound", ["02_A_000000_000010"])
    image(tmp_path / "dataset_FishyLAF/labels/val/02_A_000000_000010.png")
    with pytest.raises(DataError, match=r"holds no <frame>_fishy-labels\.png"):
        open_benchmark("fishyscapes_laf", tmp_path)


def test_set_named_after_an_entry_takes_its_layout_split_and_count(tmp_path):
    image(tmp_path / "images/validation0000.jpg")
    with pytest.raises(DataError, match="has 10"):
        open_set("track", BenchmarkSet(root=tmp_path, entry="AnomalyTrack"))


def test_what_is_set_goes_before_the_entry_and_the_layout(tmp_path):
    image(tmp_path / "images/one.png")
    label(tmp_path / "labels/one.png", [7, 9, 1, 7])
    label(tmp_path / "roi.png", [1, 1, 0, 0])
    own = BenchmarkSet(
        root=tmp_path, entry="AnomalyTrack", layout="folder", split="all", expected_count=1, protocol="rpl",
        labels={7: 0, 1: 1}, other_labels=255, roi=tmp_path / "roi.png",
    )  # fmt: skip
    benchmark = open_set("mine", own)
    assert (benchmark.layout, benchmark.split, benchmark.protocol) == ("folder", "all", "rpl")
    assert first_pixels(benchmark, count=4) == [0, 255, 1, 255]
    plain = open_set("mine", BenchmarkSet(root=tmp_path, layout="folder"))
    assert (plain.protocol, plain.roi) == (LAYOUTS["folder"].protocol, None)
    with pytest.raises(DataError, match="holds 1 frames in split 'all', mine has 2"):
        open_set("mine", own.model_copy(update={"expected_count": 2}))
    with pytest.raises(DataError, match="holds 1 frames in split 'all', mine has 110"):
        open_set("mine", own.model_copy(update={"expected_count": None}))


def folder_with(tmp_path, write):
    image(tmp_path / "images/one.png")
    (tmp_path / "labels").mkdir()
    write(tmp_path / "labels/one.png")
    benchmark = open_benchmark("folder", tmp_path)
    return benchmark, benchmark.samples[0]


def test_unknown_values_are_listed_with_their_pixels(tmp_path):
    benchmark, sample = folder_with(tmp_path, lambda path: label(path, [0, 2, 2, 38]))
    with pytest.raises(DataError, match="2: 2 px, 38: 1 px"):
        benchmark.read_label(sample)
    with pytest.raises(DataError, match="1 of 1 labels are unusable"):
        benchmark.check()


def test_palette_indices_are_read_as_values_and_a_wrong_palette_is_explained(tmp_path):
    def palette(path, index):
        values = np.zeros((6, 8), np.uint8)
        values[0, :2] = index, 255
        picture = Image.fromarray(values).convert("P")
        picture.putpalette([128, 0, 0] * 256)
        picture.putdata(values.ravel().tolist())
        picture.save(path)

    benchmark, sample = folder_with(tmp_path, lambda path: palette(path, 1))
    assert benchmark.read_label(sample).ravel()[:3].tolist() == [1, 255, 0]
    palette(tmp_path / "labels/one.png", 5)
    with pytest.raises(DataError, match="palette image"):
        benchmark.read_label(sample)


def test_colour_label_is_refused(tmp_path):
    def colour(path):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).save(path)

    benchmark, sample = folder_with(tmp_path, colour)
    with pytest.raises(DataError, match="colour image"):
        benchmark.read_label(sample)


def test_size_mismatch_names_both_sizes_and_the_exif_case(tmp_path):
    benchmark, sample = folder_with(tmp_path, lambda path: label(path, [0, 1], size=(5, 8)))
    with pytest.raises(DataError, match=r"is 5 x 8, its image one.png is 6 x 8"):
        benchmark.read_label(sample)
    label(tmp_path / "labels/one.png", [0, 1], size=(8, 6))
    with pytest.raises(DataError, match="EXIF"):
        benchmark.read_label(sample)


def test_lone_labels_and_images_are_listed_on_both_sides(tmp_path):
    image(tmp_path / "images/one.png")
    image(tmp_path / "images/two.png")
    label(tmp_path / "labels/one.png", [0, 1])
    label(tmp_path / "labels/three.png", [0, 1])
    with pytest.raises(DataError, match="1 images without label: two; 1 labels without image: three"):
        open_benchmark("folder", tmp_path)


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'road_anomaly'"):
        open_benchmark("road_anomly", tmp_path)
    with pytest.raises(ConfigError, match="validation"):
        open_benchmark("smiyc_anomaly_track", tmp_path, "val")
    with pytest.raises(ConfigError, match="AnomalyTrack"):
        open_registered("AnomalyTrak", tmp_path)


def test_label_map_refuses_two_meanings():
    with pytest.raises(ConfigError, match="twice"):
        LabelMap.of([0], [0])
    with pytest.raises(ConfigError, match="meanings"):
        LabelMap.from_values({3: 2})
    for value in (-1, 256):
        with pytest.raises(ConfigError, match="labels are 0..255"):
            LabelMap.of([0], [value])
    with pytest.raises(ConfigError, match="use 0, 1, 255 or nothing"):
        LabelMap.of([0], [1], rest=7)


def test_every_entry_is_complete_and_names_a_layout_and_a_split_that_exist():
    for name, entry in REGISTRY.items():
        layout = LAYOUTS[entry.layout]
        assert entry.split in layout.splits, name
        assert set(entry.counts) <= set(layout.splits), name
        assert all([entry.roi, entry.resolution, entry.licence, entry.home.startswith("http")]), name


def test_a_tag_counts_once_and_is_no_text_of_letters(tmp_path):
    image(tmp_path / "images/driveway_1.webp")
    tags = tmp_path / "tags.json"
    tags.write_text(json.dumps({"driveway_1": ["night", "wet", "wet"]}))
    (sample,) = open_benchmark("smiyc_obstacle_track", tmp_path, "night").samples
    assert sample.tags == ("driveway", "night", "wet")
    tags.write_text(json.dumps({"driveway_1": "wet"}))
    with pytest.raises(DataError, match=r"tags\.json.*list of tags"):
        open_benchmark("smiyc_obstacle_track", tmp_path, "night")


@pytest.mark.parametrize(
    ("entry", "counts"),
    [
        ("AnomalyTrack", {"all": 110, "validation": 10, "test": 100}),
        ("ObstacleTrack", {"test": 327, "noNight": 382, "night": 30, "snowstorm": 55, "validation": 30}),
        (
            "LostAndFound",
            {"train": 1036, "test": 1203, "trainValid": 1030, "testValid": 1186, "testNoKnown": 1043},
        ),
        ("FishyLAFAnomaly", {"val": 100}),
        ("RoadAnomaly", {"all": 60}),
    ],
)
def test_counts_of_the_reference(entry, counts):
    assert REGISTRY[entry].counts == counts
