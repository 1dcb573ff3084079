import json
import unicodedata

import numpy as np
import pytest

from anomdino.detector.records import Record, labelled_records, read_records, split_folds
from anomdino.errors import DataError, ProtocolError
from anomdino.io.images import write_png
from anomdino.io.listing import list_images
from anomdino.protocol import mark_evaluation_only
from tests.detector.conftest import read_set


def test_reads_coco_annotations(composed):
    records = read_set(composed)
    assert len(records) == 10
    assert [r.key for r in records] == sorted(r.key for r in records)
    second = next(r for r in records if r.key == "part1/001")
    assert second.size == (64, 96)
    assert second.source == "s0"
    assert second.boxes.shape == (1, 4)
    assert (second.boxes[:, 2:] - second.boxes[:, :2] == [20, 16]).all()
    assert next(r for r in records if r.key == "part0/000").boxes.shape == (0, 4)


def test_reads_s2m_lists(composed, tmp_path):
    entries = [
        {"file_name": "part1/001.png", "annotations": {"bbox": [3, 4, 10, 12]}},
        {"file_name": "part1/001.png", "annotations": {"bbox": [30, 4, 40, 12]}},
        {"file_name": "part0/002.png", "annotations": {"bbox": [0, 0, 5, 5]}},
    ]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(entries))
    records = read_records(path, composed / "offline_dataset", composed / "offline_dataset_maps", composed)
    assert [r.key for r in records] == ["part0/002", "part1/001"]
    assert records[1].boxes.tolist() == [[3, 4, 11, 13], [30, 4, 41, 13]]
    assert records[1].size == (64, 96)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("{", "neither COCO"),
        ('{"images": [{"id": 1}]}', "neither COCO"),
        ('{"images": [], "annotations": []}', "no image"),
    ],
)
def test_bad_annotations_are_refused(composed, content, cause):
    (composed / "ood.json").write_text(content)
    with pytest.raises(DataError, match=cause):
        read_set(composed)


def test_missing_image_is_named(composed):
    (composed / "offline_dataset" / "part1" / "001.png").unlink()
    with pytest.raises(DataError, match=r"001\.png"):
        read_set(composed)


def test_evaluation_data_is_refused(composed):
    mark_evaluation_only(composed / "offline_dataset")
    with pytest.raises(ProtocolError):
        read_set(composed)


def fake_records(count, split="train"):
    from pathlib import Path

    nowhere = Path("x")
    return [
        Record(
            f"{i:03d}", nowhere, nowhere, nowhere, (8, 8), f"s{i // 3}", split, np.zeros((0, 4), np.float32)
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("folds", [1, 2, 3, 5])
def test_no_detector_predicts_a_source_it_learned_from(folds):
    records = fake_records(45)
    result = split_folds(records, folds, 0.4, seed=3)
    predicted = [r.key for fold in result for r in fold.predict]
    assert len(predicted) == len(set(predicted))
    for fold in result:
        learned = {r.source for r in fold.train}
        assert not learned & {r.source for r in (*fold.predict, *fold.val)}
        assert fold.val
        assert len(fold.train) + len(fold.val) == len(records)
    assert result[-1].name == "final"
    if folds > 1:
        assert sorted(predicted) == [r.key for r in records]
    else:
        assert len(predicted) == 18


def test_the_sets_own_split_is_used_with_one_fold(composed):
    (fold,) = split_folds(read_set(composed), 1, 0.4, seed=0)
    assert {r.source for r in fold.predict} == {"s4"}
    assert len(fold.train) == 8


def test_split_depends_on_the_seed_alone():
    records = fake_records(45)
    first, again, other = (split_folds(records, 2, 0.4, seed=s)[0] for s in (1, 1, 2))
    assert [r.key for r in first.train] == [r.key for r in again.train]
    assert [r.key for r in first.train] != [r.key for r in other.train]


def test_too_few_sources():
    with pytest.raises(DataError, match="too few"):
        split_folds(fake_records(3), 2, 0.4, seed=0)


def test_labels_alone_give_a_box_to_every_part_that_is_large_enough(tmp_path):
    label = np.zeros((30, 40), np.uint8)
    label[2:6, 3:9] = 1
    label[6, 9] = 1  # touches by a corner: the same part
    label[20:23, 20:24] = 1  # 12 pixels
    label[12, 30:35] = 1  # 5 pixels
    label[25:, 30:] = 255
    empty = np.where(label == 1, np.uint8(0), label)
    for key, values in (("b/town_11", label), ("a_0", label.T.copy()), ("none_13", empty)):
        write_png(tmp_path / "images" / f"{key}.png", np.zeros((*values.shape, 3), np.uint8))
        write_png(tmp_path / "labels" / f"{key}.png", values)
    folders = (tmp_path / name for name in ("images", "labels", "maps"))
    first, second = labelled_records(*folders, lambda key: key.rpartition("_")[0])
    assert (first.key, first.source, first.size) == ("a_0", "a", (40, 30))
    assert (second.key, second.source, second.size) == ("b/town_11", "b/town", (30, 40))
    assert second.boxes.tolist() == [[3, 2, 10, 7], [20, 20, 24, 23]]
    assert first.boxes[:, [1, 0, 3, 2]].tolist() == second.boxes.tolist()
    assert second.maps == tmp_path / "maps/b/town_11.npz"
    assert {first.split, second.split} == {"train"}


def test_labels_that_miss_or_belong_to_an_evaluation_are_refused(tmp_path):
    write_png(tmp_path / "images/a.png", np.zeros((4, 4, 3), np.uint8))
    folders = [tmp_path / name for name in ("images", "labels", "maps")]
    with pytest.raises(DataError, match=r"labels/a\.png"):
        labelled_records(*folders, str)
    mark_evaluation_only(tmp_path / "images")
    with pytest.raises(ProtocolError):
        labelled_records(*folders, str)


def coco(*boxes, **image):
    entry = {"id": 1, "file_name": "a.png", "height": 60, "width": 90, **image}
    annotations = [{"image_id": 1, "bbox": box} for box in boxes]
    return {"images": [entry], "annotations": annotations}


def read_entries(tmp_path, content):
    (tmp_path / "ood.json").write_text(json.dumps(content))
    return read_records(tmp_path / "ood.json", tmp_path / "images", tmp_path / "maps", tmp_path / "labels")


def test_boxes_are_cut_to_their_image_and_what_is_no_object_is_left_out(tmp_path):
    write_png(tmp_path / "images/a.png", np.zeros((60, 90, 3), np.uint8))
    content = coco([-5, 3, 20, 100], [10, 10, 0, 5], [10, 10, 5, -2], [200, 3, 4, 4], [0, 0, 90, 60])
    content["annotations"].append({"image_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 1})
    (record,) = read_entries(tmp_path, content)
    assert record.boxes.tolist() == [[0, 3, 15, 60], [0, 0, 90, 60]]
    entries = [
        {"file_name": "a.png", "annotations": {"bbox": box}} for box in ([10, 10, 5, 5], [-3, 0, 95, 2])
    ]
    (record,) = read_entries(tmp_path, entries)
    assert record.boxes.tolist() == [[0, 0, 90, 3]]


@pytest.mark.parametrize("box", [[float("nan"), 0, 5, 5], [0, 0, float("inf"), 5], ["a", 0, 5, 5], [1, 2, 3]])
def test_boxes_that_are_no_numbers_are_refused(tmp_path, box):
    write_png(tmp_path / "images/a.png", np.zeros((60, 90, 3), np.uint8))
    with pytest.raises(DataError, match=r"ood\.json"):
        read_entries(tmp_path, coco(box))


@pytest.mark.parametrize("name", [3, "", "/a.png"])
def test_file_names_that_name_nothing_below_the_folder_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="neither COCO"):
        read_entries(tmp_path, coco(file_name=name))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match="neither COCO"):
        read_records(tmp_path / "folder.json", tmp_path, tmp_path, tmp_path)


def test_two_images_of_one_key_are_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        write_png(tmp_path / "images" / name, np.zeros((60, 90, 3), np.uint8))
    content = coco()
    content["images"].append({**content["images"][0], "id": 2, "file_name": "a.jpg"})
    with pytest.raises(DataError, match=r"a\.jpg and a\.png, both of the key 'a'"):
        read_entries(tmp_path, content)


def test_keys_have_the_unicode_form_that_scores_are_written_under(tmp_path):
    name = unicodedata.normalize("NFD", "äö x.png")
    write_png(tmp_path / "images" / name, np.zeros((60, 90, 3), np.uint8))
    (record,) = read_entries(tmp_path, coco(file_name=name))
    assert [record.key] == list(list_images(tmp_path / "images"))
    assert record.image.is_file()
    assert record.maps == tmp_path / "maps" / "äö x.npz"


def test_images_that_choose_the_weights_are_drawn_from_all_sources():
    records = fake_records(60)
    (fold,) = split_folds(records, 1, 0.5, seed=0)
    first = fold.val[: len(fold.val) // 2]
    assert len({record.source for record in first}) > 0.7 * len({record.source for record in fold.val})
    assert {r.key for r in fold.val} == {r.key for r in fold.predict}
    assert [r.key for r in fold.predict] == sorted(r.key for r in fold.predict)


def test_the_final_detector_learns_from_nine_tenths():
    final = split_folds(fake_records(90), 3, 0.4, seed=0)[-1]
    assert len(final.val) == 9
    assert final.predict == []
    with pytest.raises(DataError, match="2 source images"):
        split_folds(fake_records(6), 3, 0.4, seed=0)
