"""Photos of a folder as frames of a drive."""

import numpy as np
import pytest

from anomdino.errors import ConfigError, DataError
from anomdino.io.footage import PhotoSequence, VideoFile, in_order
from anomdino.io.images import write_png
from anomdino.io.video import Selection, VideoInfo, read_frames, video_info, writing_video


def photo(index, size=(12, 16)):
    return np.full((*size, 3), 10 * index, np.uint8)


def sequence(folder, count=10, rate=5.0):
    for index in range(count):
        write_png(folder / f"f{index + 5}.png", photo(index))  # f5 .. f14: letters would sort f10 before f5
    return PhotoSequence(folder, in_order(folder.iterdir()), rate)


def test_frames_in_the_order_in_which_people_count(tmp_path):
    frames = list(sequence(tmp_path).frames())
    assert [frame.name for frame in frames] == [f"f{index}.png" for index in range(5, 15)]
    assert [frame.index for frame in frames] == list(range(10))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(10) / 5)
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, photo(index))


@pytest.mark.parametrize(
    "names",
    [["a2", "a10", "b1"], ["0001", "0002", "10"], ["2 a", "10 a"], ["x", "x1y2", "x1y10"], ["1", "01x", "٢"]],
)
def test_numbers_count_wherever_they_stand(tmp_path, names):
    paths = [tmp_path / name for name in names]
    assert in_order(reversed(paths)) == tuple(paths)


@pytest.mark.parametrize(
    ("selection", "given", "passed"),
    [
        (Selection(every=4), [0, 4, 8], [1, 2, 3, 5, 6, 7, 9]),
        (Selection(every=3, start=0.3, end=1.6), [2, 5], [3, 4, 6, 7]),
        (Selection(start=7), [], []),
    ],
)
def test_a_selection_is_that_of_a_video(tmp_path, selection, given, passed):
    pytest.importorskip("av")
    drive = sequence(tmp_path / "photos")
    with writing_video(tmp_path / "film.mp4", 5.0) as film:
        for index in range(10):
            film.write(photo(index, (16, 16)), index / 5)
    video, between = VideoFile(tmp_path / "film.mp4"), []
    assert [frame.index for frame in drive.frames(selection)] == given
    found = list(drive.frames(selection, passed=lambda image: between.append(image[0, 0, 0] // 10)))
    assert ([frame.index for frame in found], between) == (given, passed)
    others = [(frame.index, frame.time) for frame in video.frames(selection)]
    assert others == [(frame.index, pytest.approx(frame.time, abs=1e-4)) for frame in found]
    assert selection.count(drive.info()) == selection.count(video.info()) == len(given)


def test_what_it_says_of_itself(tmp_path):
    drive = sequence(tmp_path / "town")
    assert (drive.info(), drive.name, drive.path) == (VideoInfo(12, 16, 5.0, 10), "town", tmp_path / "town")


def test_a_video_is_read_as_before(tmp_path):
    pytest.importorskip("av")
    with writing_video(tmp_path / "film.mp4", 5.0) as film:
        for index in range(3):
            film.write(photo(index, (16, 16)), index / 5)
    video = VideoFile(tmp_path / "film.mp4")
    assert (video.info(), video.name) == (video_info(video.path), "film.mp4")
    for ours, theirs in zip(video.frames(), read_frames(video.path), strict=True):
        np.testing.assert_array_equal(ours.image, theirs.image)
    with pytest.raises(DataError, match="more than 10 pixels"):
        video.info(10)
    with pytest.raises(DataError, match="more than 10 pixels"):
        list(video.frames(max_pixels=10))


def test_photos_that_cannot_be_read_are_left_out(tmp_path, caplog):
    drive = sequence(tmp_path)
    (tmp_path / "f5.png").write_bytes(b"")
    (tmp_path / "f9.png").write_bytes((tmp_path / "f9.png").read_bytes()[:40])
    assert [frame.index for frame in drive.frames()] == [1, 2, 3, 5, 6, 7, 8, 9]
    assert [frame.index for frame in drive.frames(Selection(every=2))] == [2, 6, 8]
    assert "2 photos left out, the first: " in caplog.text
    assert "f5.png is empty" in caplog.text
    assert drive.info().frames == 10


def test_strictly_a_photo_that_cannot_be_read_ends_it(tmp_path):
    drive = sequence(tmp_path)
    (tmp_path / "f7.png").write_bytes(b"")
    frames = drive.frames(strict=True)
    assert [next(frames).index for _ in range(2)] == [0, 1]
    with pytest.raises(DataError, match=r"f7.png.* is empty"):
        next(frames)


def test_no_photo_that_can_be_read(tmp_path):
    drive = sequence(tmp_path, count=2)
    with pytest.raises(DataError, match="no photo that can be read"):
        drive.info(max_pixels=20)


def test_a_photo_of_another_size_ends_it(tmp_path, caplog):
    drive = sequence(tmp_path)
    (tmp_path / "f6.png").write_bytes(b"")
    write_png(tmp_path / "f8.png", photo(3, (16, 12)))
    frames = drive.frames()
    assert [next(frames).index for _ in range(2)] == [0, 2]
    with pytest.raises(DataError, match=r"f8.png.* is of 12 x 16, and those before of 16 x 12"):
        next(frames)
    assert "1 photo left out" in caplog.text  # what was left out until then is told, too


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf")])
def test_rates_that_make_no_sense(tmp_path, rate):
    with pytest.raises(ConfigError, match="frames a second"):
        PhotoSequence(tmp_path, (), rate)
