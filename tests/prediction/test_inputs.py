"""What a user may name: files, folders, globs; photos and videos."""

import numpy as np
import pytest

from anomdino.errors import ConfigError, DataError
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


def test_links_to_nothing_are_no_photos_however_they_are_named(drive):
    (drive / "gone.png").symlink_to("nothing-here.png")
    for given in (drive, drive / "*.png"):
        assert "gone" not in collect([str(given)]).photos
    with pytest.raises(DataError, match="is no file, no folder, and matches nothing"):
        collect([str(drive / "gone.png")])


def test_a_folder_without_any(tmp_path):
    with pytest.raises(DataError, match="holds no image and no video"):
        collect([str(tmp_path)])


def test_two_of_one_name_are_refused(drive, tmp_path):
    write_png(tmp_path / "other" / "a" / "one.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="would be written under the name"):
        collect([str(drive), str(tmp_path / "other")])


def test_files_of_one_folder_that_differ_in_their_suffix_keep_it(drive):
    (drive / "late.avi").write_bytes(b"")
    (drive / "a/one.jpg").write_bytes(b"")
    for given in (str(drive), str(drive / "**" / "*")):
        found = collect([given])
        assert found.photos["a/one.png"] == drive / "a/one.png"
        assert found.photos["a/one.jpg"] == drive / "a/one.jpg"
        assert list(found.videos) == ["a/one", "late.MOV", "late.avi"]
    assert list(collect([str(drive / "a/one.png")]).photos) == ["one"]
    write_png(drive / "a/one.jpg.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(DataError, match="under the name 'a/one.jpg'"):
        collect([str(drive)])


def test_linked_folders_are_entered_and_circles_are_not(drive, tmp_path):
    write_png(tmp_path / "disk/rain/five.png", np.zeros((4, 5, 3), np.uint8))
    (drive / "linked").symlink_to(tmp_path / "disk")
    (drive / "a/back").symlink_to(drive)
    (tmp_path / "disk/rain/up").symlink_to(tmp_path / "disk")
    assert list(collect([str(drive)]).photos) == ["a/b/two", "a/one", "linked/rain/five", "three ü"]


def test_photos_where_results_go_are_left_out_and_a_first_run_says_so(drive, caplog):
    write_png(drive / "frames/four.png", np.zeros((4, 5, 3), np.uint8))
    assert "frames/four" not in collect([str(drive)], drive).photos
    assert "1 file is left out" in caplog.text
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


def test_relative_absolute_and_upward_paths_have_keys_below_one_folder(drive, monkeypatch):
    monkeypatch.chdir(drive / "a")
    assert list(collect(["one.png", "../three ü.png", str(drive / "a/b/two.png")]).photos) == [
        "a/b/two",
        "a/one",
        "three ü",
    ]
    assert list(collect(["one.png", "b/*"]).photos) == ["b/two", "one"]


def test_a_pattern_that_matches_folders_keeps_them_apart(drive, tmp_path):
    write_png(tmp_path / "drive2/a/one.png", np.zeros((4, 5, 3), np.uint8))
    found = collect([str(tmp_path / "drive*")]).photos
    assert list(found) == ["drive/a/b/two", "drive/a/one", "drive/three ü", "drive2/a/one"]


def test_a_stream_is_sent_to_the_command_for_streams():
    for address in ("rtsp://me:secret@camera/a", "/dev/null"):
        with pytest.raises(DataError, match=r"is a stream or a camera\n.*`anomdino watch`") as caught:
            collect([address])
        assert "secret" not in str(caught.value)


def drives(*inputs, out=None, rate=4.0):
    found = collect([str(one) for one in inputs], out, rate)
    assert found.photos == {}
    return {key: [photo.name for photo in drive.photos] for key, drive in found.sequences.items()}, found


@pytest.fixture
def recordings(tmp_path):
    for name in ("noon/2.png", "noon/10.png", "noon/left/1.png", "night/1.png"):
        write_png(tmp_path / "town" / name, np.zeros((4, 5, 3), np.uint8))
    return tmp_path / "town"


def test_photos_of_a_folder_are_a_drive(recordings):
    named, found = drives(recordings)
    assert named == {"night": ["1.png"], "noon": ["2.png", "10.png"], "noon/left": ["1.png"]}
    assert (found.sequences["noon"].path, found.sequences["noon"].rate) == (recordings / "noon", 4.0)
    assert list(found.footage) == ["night", "noon", "noon/left"]
    assert len(found) == 3


def test_a_drive_without_a_folder_above_it_has_the_name_of_its_own(recordings, monkeypatch):
    assert drives(recordings / "night")[0] == {"night": ["1.png"]}
    assert drives(recordings / "night", recordings / "noon/left")[0] == {
        "left": ["1.png"],
        "night": ["1.png"],
    }
    assert drives(recordings / "noon/10.png", recordings / "noon/2.png")[0] == {"noon": ["2.png", "10.png"]}
    monkeypatch.chdir(recordings / "noon/left")
    assert drives(".")[0] == {"left": ["1.png"]}


def test_drives_of_one_name_are_refused(recordings):
    for name in ("other/noon/1.png", "noon.png"):
        write_png(recordings / name, np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"other/noon: would be written under the name 'noon', as .*/town/noon"
    ):
        drives(recordings / "noon", recordings / "other/noon")
    (recordings / "noon.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"town/noon: would be written under the name 'noon', as .*/noon.mp4"):
        drives(recordings)


def test_videos_stay_videos_beside_drives(recordings):
    (recordings / "late.mp4").write_bytes(b"")
    found = drives(recordings)[1]
    assert list(found.videos) == ["late"]
    assert list(found.footage) == ["late", "night", "noon", "noon/left"]
    assert found.footage["late"].path == recordings / "late.mp4"


def test_a_rate_that_makes_no_sense(recordings):
    with pytest.raises(ConfigError, match="frames a second"):
        drives(recordings, rate=0)
