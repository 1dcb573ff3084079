"""Atomic files, listings, score maps, boxes."""

import errno
import hashlib
import json
import os
import unicodedata
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from anomdino.errors import DataError, DiskError
from anomdino.io.atomic import atomic_path, atomic_write_json, atomic_write_text
from anomdino.io.boxes import Boxes, image_id, read_box_results, write_box_results
from anomdino.io.listing import list_images, pair_by_key
from anomdino.io.locking import exclusive, one_run_in
from anomdino.io.scores import read_score, write_score


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    target = tmp_path / "x.txt"
    atomic_write_text(target, "old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_disk_errors_name_path_and_cure(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(DiskError) as caught:
        atomic_write_text(tmp_path / "x.txt", "new")
    assert "x.txt" in str(caught.value)
    assert caught.value.cure
    assert caught.value.exit_code != 0
    assert os.listdir(tmp_path) == []


def test_replacing_a_read_only_file_works(tmp_path):
    target = tmp_path / "x.txt"
    atomic_write_text(target, "old")
    target.chmod(0o444)
    atomic_write_text(target, "new")
    assert target.read_text() == "new"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_holds_nan(tmp_path, value):
    with pytest.raises(ValueError, match=r"\$\.a\[1\]\.b"):
        atomic_write_json(tmp_path / "m.json", {"a": [0, {"b": value}]})
    assert os.listdir(tmp_path) == []


def test_listing_is_sorted_keyed_and_skips_hidden(tmp_path):
    for name in ["b/x.jpg", "a/x.png", "z.webp", ".hidden/y.png", "a/notes.txt", "a/.z.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(list_images(tmp_path)) == ["a/x", "b/x", "z"]


def test_same_key_twice_is_refused(tmp_path):
    (tmp_path / "x.png").touch()
    (tmp_path / "x.jpg").touch()
    with pytest.raises(DataError, match="same key 'x'"):
        list_images(tmp_path)


def test_nfd_names_get_nfc_keys_and_collide_loudly(tmp_path):
    nfd = unicodedata.normalize("NFD", "straße_ä")
    (tmp_path / f"{nfd}.png").touch()
    assert list(list_images(tmp_path)) == [unicodedata.normalize("NFC", nfd)]
    (tmp_path / f"{unicodedata.normalize('NFC', nfd)}.png").touch()
    with pytest.raises(DataError, match="same key"):
        list_images(tmp_path)


def test_pairs_list_both_sides(tmp_path):
    paths = {name: tmp_path / name for name in "abcd"}
    assert [p[0] for p in pair_by_key({k: paths[k] for k in "ba"}, {k: paths[k] for k in "ab"})] == ["a", "b"]
    with pytest.raises(DataError, match=r"1 image without label: a; 2 label without image: c, d"):
        pair_by_key({k: paths[k] for k in "ab"}, {k: paths[k] for k in "bcd"})


def test_scores_round_trip_with_the_same_bytes(tmp_path):
    score = np.random.default_rng(0).normal(size=(13, 17)).astype(np.float32) - 10
    write_score(tmp_path / "a.npz", score)
    write_score(tmp_path / "b.npz", score)
    np.testing.assert_array_equal(read_score(tmp_path / "a.npz", (13, 17)), score)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["arr_0"].dtype == np.float32


def test_bad_scores_are_refused(tmp_path):
    score = np.zeros((4, 4), np.float32)
    score[1, 1] = np.nan
    with pytest.raises(DataError, match="1 NaN or infinite"):
        write_score(tmp_path / "a.npz", score)
    assert os.listdir(tmp_path) == []
    write_score(tmp_path / "ok.npz", np.zeros((4, 4), np.float32))
    with pytest.raises(DataError, match=r"4 x 4, the image is 5 x 4(.|\n)*at the size of its image"):
        read_score(tmp_path / "ok.npz", (5, 4))
    whole = (tmp_path / "ok.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        read_score(tmp_path / "cut.npz")
    np.savez(tmp_path / "other.npz", score=np.zeros((2, 2)))
    with pytest.raises(DataError, match="no array 'arr_0'"):
        read_score(tmp_path / "other.npz")
    np.savez(tmp_path / "pickle.npz", np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="damaged|pickle"):
        read_score(tmp_path / "pickle.npz")


coordinates = st.floats(-50, 150, allow_nan=False, width=32)


@given(
    st.lists(
        st.tuples(coordinates, coordinates, coordinates, coordinates, st.floats(0, 1, width=32)), max_size=6
    )
)
def test_clipped_boxes_lie_inside_and_cover_like_a_loop(rows):
    boxes = Boxes(np.array([r[:4] for r in rows], np.float32), np.array([r[4] for r in rows], np.float32))
    size = (40, 60)
    clipped = boxes.clipped(size)
    if len(clipped):
        assert clipped.xyxy.min() >= 0
        assert (clipped.xyxy[:, 2:] > clipped.xyxy[:, :2]).all()
        assert (clipped.xyxy.max(axis=0) <= [60, 40, 60, 40]).all()
    slow = np.zeros(size, np.float32)
    for (x0, y0, x1, y1), score in zip(boxes.xyxy, boxes.scores, strict=True):
        for y in range(size[0]):
            for x in range(size[1]):
                if x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1:
                    slow[y, x] = max(slow[y, x], score)
    np.testing.assert_array_equal(boxes.coverage(size), slow)


def test_no_box_is_a_value_like_any_other(tmp_path):
    empty = Boxes.empty()
    assert empty.xyxy.shape == (0, 4)
    assert not empty.mask((3, 4)).any()
    assert len(empty.clipped((3, 4)).kept(0.5)) == 0
    write_box_results(tmp_path / "b.json", {"x": empty}, {"x": (3, 4)})
    assert json.loads((tmp_path / "b.json").read_text()) == []
    assert len(read_box_results(tmp_path / "b.json", ["x"])["x"]) == 0


def test_nan_boxes_are_refused():
    with pytest.raises(DataError, match="NaN"):
        Boxes(np.array([[0, 0, np.nan, 3]]), np.array([0.5])).clipped((9, 9))


def test_numbers_of_images_are_the_first_52_bits_of_their_keys_digest():
    for key in ("a", "a/é x"):
        assert image_id(key) == int(hashlib.sha256(key.encode()).hexdigest()[:13], 16)


def test_boxes_cover_the_pixels_whose_centres_they_hold():
    boxes = Boxes(
        np.array([[0.6, 0, 1.4, 5], [0.4, 0, 0.6, 1], [3, 0.51, 4, 1.49]]), np.array([0.9, 0.8, 0.7])
    )
    assert boxes.on_pixels().scores.tolist() == boxes.scores[1:2].tolist()
    assert boxes.coverage((5, 5))[0].tolist() == [boxes.scores[1], 0, 0, 0, 0]


def test_results_are_in_the_order_of_keys_and_scores_in_millionths(tmp_path):
    boxes = {key: Boxes(np.array([[0, 0, 2, 2]]), np.array([0.12345649])) for key in "ba"}
    write_box_results(tmp_path / "b.json", boxes, dict.fromkeys("ba", (3, 3)))
    written = json.loads((tmp_path / "b.json").read_text())
    assert [row["image_id"] for row in written] == [image_id("a"), image_id("b")]
    assert [row["score"] for row in written] == [0.123456] * 2


def test_box_files_read_back_and_by_pycocotools(tmp_path):
    boxes = {
        "a/x": Boxes(np.array([[1, 2, 11, 22], [0, 0, 5, 5]], np.float32), np.array([0.9, 0.25], np.float32)),
        "b": Boxes.empty(),
    }
    sizes = {"a/x": (30, 40), "b": (30, 40)}
    write_box_results(tmp_path / "boxes.json", boxes, sizes)
    back = read_box_results(tmp_path / "boxes.json", ["a/x", "b"])
    np.testing.assert_allclose(back["a/x"].xyxy, boxes["a/x"].xyxy)
    np.testing.assert_allclose(back["a/x"].scores, boxes["a/x"].scores)
    assert len(back["b"]) == 0
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image_id(k), "height": 30, "width": 40, "file_name": f"{k}.png"} for k in boxes],
        "categories": [{"id": 1, "name": "ood-object"}],
        "annotations": [],
    }
    coco.createIndex()
    assert len(coco.loadRes(str(tmp_path / "boxes.json")).anns) == 2
    import pandas as pd

    table = pd.read_parquet(tmp_path / "boxes.parquet").set_index("image")
    assert list(table.index) == ["a/x", "b"]
    assert list(table.loc["b", "x0"]) == []
    assert list(table.loc["a/x", "x1"]) == [11.0, 5.0]


FRACTIONS = st.sampled_from([-0.02, -0.004, 0.0, 0.0049, 0.005, 0.008, 0.5, 0.994, 0.9951, 0.996])
SIDES = st.tuples(st.integers(0, 1280), FRACTIONS).map(sum)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), min_size=1, max_size=6))
def test_written_boxes_have_area_and_stay_in_the_frame(tmp_path_factory, corners):
    """In exact decimal arithmetic: x + width is the corner rounded to hundredths, whatever the corners are."""
    height, width = 719, 1280
    path = tmp_path_factory.mktemp("boxes") / "b.json"
    boxes = Boxes(np.array(corners, np.float32), np.linspace(0.9, 0.1, len(corners)))
    write_box_results(path, {"x": boxes}, {"x": (height, width)})
    expected = []
    for x0, y0, x1, y1 in boxes.xyxy.tolist():
        cut = [
            min(max(value, 0), limit)
            for value, limit in ((x0, width), (y0, height), (x1, width), (y1, height))
        ]
        near = [Decimal(value).quantize(Decimal("0.01")) for value in cut]
        if near[2] > near[0] and near[3] > near[1]:
            expected.append(near)
    found = json.loads(path.read_text(), parse_float=Decimal)
    written = [[x, y, x + w, y + h] for x, y, w, h in (map(Decimal, one["bbox"]) for one in found)]
    assert written == expected
    back = read_box_results(path, ["x"])["x"]
    assert (back.xyxy[:, 2:] > back.xyxy[:, :2]).all()
    assert (back.xyxy <= np.float32([width, height, width, height])).all()
    np.testing.assert_array_equal(back.xyxy, boxes.as_written((height, width)).xyxy)
    (row,) = pq.read_table(path.with_suffix(".parquet")).to_pylist()
    np.testing.assert_array_equal(back.xyxy, np.stack([row[side] for side in ("x0", "y0", "x1", "y1")], 1))


def test_boxes_of_unknown_images_are_refused(tmp_path):
    write_box_results(tmp_path / "b.json", {"x": Boxes(np.array([[0, 1, 2, 3]]), np.ones(1))}, {"x": (3, 4)})
    with pytest.raises(DataError, match="unknown image_id"):
        read_box_results(tmp_path / "b.json", ["y"])


GOOD = {"image_id": image_id("x"), "bbox": [1, 2, 3, 4], "score": 0.5}
DATA_SET = {"images": [{"id": 7, "file_name": "images/x.png"}], "annotations": [GOOD | {"image_id": 7}]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{**GOOD, "score": None}], "box 0 cannot be read"),
        ([{"image_id": image_id("x"), "bbox": [1, 2, 3, 4]}], "box 0 lacks 'score'"),
        ([{"image_id": image_id("x"), "score": 0.5}], "lacks 'bbox'"),
        ([{"bbox": [1, 2, 3, 4], "score": 0.5}], "lacks 'image_id'"),
        ([GOOD, {**GOOD, "bbox": [1, 2, 3]}], "box 1 cannot be read"),
        ([{**GOOD, "bbox": "box"}], "cannot be read"),
        ([{**GOOD, "bbox": [1, 2, -3, 4]}], "-3 wide"),
        ([{**GOOD, "bbox": [1, 2, float("nan"), 4]}], "NaN"),
        ([{**GOOD, "score": 90}], "has the score 90"),
        ([{**GOOD, "image_id": [1]}], "cannot be read"),
        ([1, 2], "box 0 cannot be read"),
        ({"a": 1}, "lacks the list images or annotations"),
        ("text", "neither a list"),
        ({**DATA_SET, "images": [{"id": 7}]}, "an image without id and file_name"),
        ({**DATA_SET, "images": [{"id": 7, "file_name": "y.png"}]}, "a box for 'y'"),
    ],
)
def test_what_are_no_boxes_is_refused_with_the_place(tmp_path, content, reason):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"mine.json.*{reason}"):
        read_box_results(path, ["x"])


def test_images_that_a_data_set_does_not_list_have_no_boxes(tmp_path):
    data_set = {**DATA_SET, "images": [{"id": 7, "file_name": "x.png"}]}
    (tmp_path / "b.json").write_text(json.dumps(data_set))
    found = read_box_results(tmp_path / "b.json", ["x", "y"])
    np.testing.assert_array_equal(found["x"].xyxy, [[1, 2, 4, 6]])
    assert len(found["y"]) == 0


def test_a_name_that_fits_several_images_is_refused(tmp_path):
    def boxes(name, keys):
        data_set = {**DATA_SET, "images": [{"id": 7, "file_name": name}]}
        (tmp_path / "b.json").write_text(json.dumps(data_set))
        return {key for key, found in read_box_results(tmp_path / "b.json", keys).items() if len(found)}

    assert boxes("x.png", ["a/x", "b/y"]) == {"a/x"}
    assert boxes("b/x.png", ["a/x", "b/x"]) == {"b/x"}
    assert boxes("x.png", ["a/x", "x"]) == {"x"}
    with pytest.raises(DataError, match="'x', which may be a/x or b/x"):
        boxes("x.png", ["a/x", "b/x"])


@pytest.mark.parametrize("below", ["a.txt", "deep/er/a.txt"])
def test_a_path_below_a_file_is_explained_and_the_file_stays(below, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(DiskError, match="a part of its path is a file") as raised:
        atomic_write_text(file / below, "text")
    assert raised.value.what == str(file / below)
    assert file.read_text() == "kept"


def test_a_folder_that_the_system_refuses_is_explained(tmp_path):
    with pytest.raises(DiskError, match="cannot be made: file name too long") as raised:
        atomic_write_text(tmp_path / ("f" * 300) / "x.txt", "text")
    assert "choose another output folder" in str(raised.value)


def test_an_error_of_the_block_itself_is_passed_on(tmp_path):
    with pytest.raises(NotADirectoryError, match="theirs"), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise NotADirectoryError("theirs")
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_writes_nothing_leaves_things_as_they_are(tmp_path):
    with atomic_path(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_no_lock_that_is_held(tmp_path):
    (tmp_path / "file").write_text("")
    for lock, cause in (
        (tmp_path / "file/a.lock", "is a file and no folder"),
        (tmp_path, "is a directory"),
        (Path("/proc/a.lock"), "cannot be made"),
    ):
        with pytest.raises(DiskError, match=cause), exclusive(lock, wait=0.05):
            pass


def test_a_file_that_may_not_be_read_is_not_said_to_be_unwritable(tmp_path):
    """Copying, say: the error names the file that was read, and what was to be written is left alone."""
    other = tmp_path / "other.npz"
    with pytest.raises(DiskError) as raised, atomic_path(tmp_path / "out/a.npz"):
        raise PermissionError(errno.EACCES, "Permission denied", str(other))
    assert str(raised.value).startswith(f"{other}: permission denied")
    for name in ("{temporary}", "file:{temporary}", str(tmp_path / "out"), None):
        with pytest.raises(DiskError) as raised, atomic_path(tmp_path / "out/a.npz") as temporary:
            filename = name and name.format(temporary=temporary)
            raise PermissionError(errno.EACCES, "Permission denied", filename)
        assert str(raised.value).startswith(f"{tmp_path / 'out/a.npz'}: no permission to write")


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    with one_run_in(tmp_path / "out"):
        with (
            pytest.raises(DataError, match=f"is held by process {os.getpid()} on"),
            one_run_in(tmp_path / "out"),
        ):
            pass
        with one_run_in(tmp_path / "other"):
            pass
    with one_run_in(tmp_path / "out"):
        pass
