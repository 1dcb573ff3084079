"""What a user may name: files, folders, globs; photos and videos."""

import numpy as np
import pytest

from anomdino.errors import DataError
from anomdino.io.images import write_png
from anomdino.prediction.inputs import collect


@pytest.fixture
def drive(tmp_path):
    for name in ("a/one.png", "a/b/two.png", "three ü.png"):
        write_png(tmp_path / "drive" / name, np.zeros((4, 5, 3), np.uint8))
    for name in ("a/one.mp4", "late.MOV", "notes.txt"):
        (tmp_path / "drive" / name).write_bytes(b"what lies in it is looked at later")
    return tmp_path / "drive"


def test_files_and_globs_are_named_below_their_common_folder(drive):
    listed = collect([str(drive / "a" / "*.png"), str(drive / "three ü.png")])
    assert list(listed.photos) == ["a/one", "three ü"]
    assert list(collect([str(drive / "**" / "*.png")]).photos) == ["a/b/two", "a/one", "three ü"]


def test_a_folder_gives_its_photos_and_its_videos(drive):
    found = collect([str(drive)])
    assert list(found.photos) == ["a/b/two", "a/one", "three ü"]
    assert list(found.videos.items()) == [("a/one", drive / "a/one.mp4"), ("late", drive / "late.MOV")]


def test_what_a_run_before_wrote_below_the_folder_is_not_taken(drive):
    for name in ("overlay/three ü.jpg", "overlay/late.mp4"):
        path = drive / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for given in (drive, drive / "**" / "*.*"):
        found = collect([str(given)], drive / "out")
        assert not [key for key in (*found.photos, *found.videos) if key.startswith(("out/", "overlay/"))]
        assert list(found.videos) == ["a/one", "late"]
    assert list(collect([str(drive / "out/overlay/late.mp4")], drive / "out").videos) == ["late"]
    with pytest.raises(DataError, match="nothing but what lies in the results"):
        collect([str(drive / "out/overlay/*")], drive / "out")


def test_results_may_go_beside_the_photos(drive):
    (drive / "overlay").mkdir()
    (drive / "overlay/three ü.jpg").write_bytes(b"")
    assert list(collect([str(drive)], drive).photos) == ["a/b/two", "a/one", "three ü"]
    assert list(collect([str(drive)], drive / "a").photos) == [
        "a/b/two",
        "a/one",
        "overlay/three ü",
        "three ü",
    ]


def test_a_file_is_a_video_by_its_suffix_else_a_photo(drive):
    found = collect([str(drive / "late.MOV"), str(drive / "notes.txt")])
    assert (list(found.photos), list(found.videos)) == (["notes"], ["late"])


@pytest.mark.parametrize("text", ["nothing-here", "no/*.png"])
def test_inputs_that_match_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="matches nothing"):
        collect([text])


def test_a_folder_without_any(tmp_path):
    with pytest.raises(DataError, match="holds no image and no video"):
        collect([str(tmp_path)])


def test_two_of_one_name_are_refused(drive, tmp_path):
    write_png(tmp_path / "other" / "a" / "one.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="would be written under the name"):
        collect([str(drive), str(tmp_path / "other")])
    (drive / "late.avi").write_bytes(b"")
    with pytest.raises(DataError, match="same key 'late'"):
        collect([str(drive)])


def test_photos_where_results_go_are_left_out_and_a_first_run_says_so(drive, caplog):
    write_png(drive / "frames/four.png", np.zeros((4, 5, 3), np.uint8))
    assert "frames/four" not in collect([str(drive)], drive).photos
    assert "1 files are left out" in caplog.text
    with pytest.raises(DataError, match="nothing but what lies in the results"):
        collect([str(drive / "frames")], drive)
    caplog.clear()
    (drive / "summary.json").write_text("{}")
    collect([str(drive)], drive)
    assert not caplog.text


def test_what_is_named_twice_counts_once(drive):
    found = collect([str(drive / "**")]).photos
    assert len(set(found.values())) == len(found) == 4  # notes.txt was named too
    assert list(collect([str(drive / "a"), str(drive / "a/one.png")]).photos) == ["b/two", "one"]
