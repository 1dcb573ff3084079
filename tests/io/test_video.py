"""Reading and writing videos, compared with OpenCV's own decoder and encoder."""

import itertools
import struct
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomdino.errors import BackendMissing, ConfigError, DataError
from anomdino.io import video
from anomdino.io.video import Selection, VideoInfo, read_frames, video_info, writing_video

av = pytest.importorskip("av")


def picture(index, height=48, width=64):
    """A smooth picture that differs from frame to frame and has an upper left corner of its own."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows * 255 / height, columns * 255 / width, np.full(rows.shape, 20.0 * index)], axis=-1)
    image[: height // 4, : width // 4] = (250, 250, 40)
    return image.astype(np.uint8)


def written(path, count=10, rate=10.0, height=48, width=64):
    with writing_video(path, rate) as film:
        for index in range(count):
            film.write(picture(index, height, width), index / rate)
    return path


def by_opencv(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        good, frame = capture.read()
        if not good:
            return frames
        frames.append((capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, frame[..., ::-1]))


def test_what_was_written_is_read_back_by_us_and_by_opencv(tmp_path):
    path = written(tmp_path / "a" / "film.mp4")
    ours, theirs = list(read_frames(path)), by_opencv(path)
    assert [frame.index for frame in ours] == list(range(10))
    assert len(theirs) == 10
    for index, (frame, (time, other)) in enumerate(zip(ours, theirs, strict=True)):
        assert frame.time == pytest.approx(index / 10, abs=1e-4)
        assert time == pytest.approx(index / 10, abs=1e-3)
        assert frame.image.dtype == np.uint8
        assert np.abs(frame.image.astype(int) - picture(index)).mean() < 4
        assert np.abs(other.astype(int) - picture(index)).mean() < 4
    assert video_info(path) == VideoInfo(48, 64, 10.0, 10)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.duration * stream.time_base) == pytest.approx(1.0)
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")  # plays while it loads


@pytest.mark.parametrize(("name", "fourcc"), [("film.avi", "MJPG"), ("film.mp4", "mp4v")])
def test_videos_of_another_encoder(tmp_path, name, fourcc):
    path = tmp_path / name
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 5, (64, 48))
    for index in range(6):
        writer.write(picture(index)[..., ::-1])
    writer.release()
    ours, theirs = list(read_frames(path)), by_opencv(path)
    assert len(ours) == len(theirs) == 6
    for index, (frame, (_, other)) in enumerate(zip(ours, theirs, strict=True)):
        assert frame.time == pytest.approx(index / 5, abs=1e-3)
        assert np.abs(frame.image.astype(int) - other).mean() < 4
    assert video_info(path) == VideoInfo(48, 64, 5.0, 6)


@pytest.mark.parametrize(
    ("selection", "indices"),
    [
        (Selection(), list(range(20))),
        (Selection(every=7), [0, 7, 14]),
        (Selection(start=0.5), list(range(5, 20))),
        (Selection(end=0.5), [0, 1, 2, 3, 4]),
        (Selection(every=4, start=0.3, end=1.2), [3, 7, 11]),
        (Selection(start=5), []),
        (Selection(every=100), [0]),
    ],
)
def test_a_selection_takes_its_frames_and_knows_their_number(tmp_path, selection, indices):
    path = written(tmp_path / "film.mp4", count=20)
    assert [frame.index for frame in read_frames(path, selection)] == indices
    assert selection.count(video_info(path)) == len(indices)
    assert selection.count(VideoInfo(1, 1, 10.0, 0)) is None


def test_frames_between_those_that_are_given_are_passed_in_their_order(tmp_path):
    path, seen = written(tmp_path / "film.mp4", count=20), []
    every = {frame.index: frame.image for frame in read_frames(path)}

    def passed(image):
        (index,) = [index for index, other in every.items() if np.array_equal(image, other)]
        seen.append(index)

    given = read_frames(path, Selection(every=4, start=0.3, end=1.3), passed=passed)
    seen.extend(-frame.index for frame in given)
    assert seen == [-3, 4, 5, 6, -7, 8, 9, 10, -11, 12]


@pytest.mark.parametrize("wrong", [{"every": 0}, {"start": -1}, {"start": 2, "end": 2}, {"end": 0}])
def test_selections_that_make_no_sense(wrong):
    with pytest.raises(ConfigError):
        Selection(**wrong)


@pytest.mark.parametrize("rate", [29.97, 7.5, 0.2])
def test_uneven_times_are_kept(tmp_path, rate):
    times = [0, 1 / rate, 3 / rate, 4.5 / rate]
    with writing_video(tmp_path / "film.mp4", rate) as film:
        for index, time in enumerate(times):
            film.write(picture(index), time)
    assert [frame.time for frame in read_frames(tmp_path / "film.mp4")] == pytest.approx(times, abs=1e-4)


def test_odd_sizes_gain_a_row_and_a_column(tmp_path):
    path = written(tmp_path / "film.mp4", count=2, height=33, width=47)
    (first, _) = read_frames(path)
    assert first.image.shape == (34, 48, 3)
    assert np.abs(first.image[:33, :47].astype(int) - picture(0, 33, 47)).mean() < 6
    for added, beside in ((first.image[33], first.image[32]), (first.image[:, 47], first.image[:, 46])):
        assert np.abs(added.astype(int) - beside).mean() < 12


def test_times_that_do_not_rise_are_written_one_behind_the_other(tmp_path):
    with writing_video(tmp_path / "film.mp4", 10) as film:
        for index, time in enumerate((0, 0.5, 0.5, 0.4)):
            film.write(picture(index), time)
    times = [frame.time for frame in read_frames(tmp_path / "film.mp4")]
    assert times == pytest.approx([0, 0.5, 0.5, 0.5], abs=1e-3)
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize(
    ("degrees", "matrix"),
    [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))],
)
def test_a_turned_video_is_read_upright(tmp_path, degrees, matrix):
    """A telephone held upright writes lying frames and a matrix; OpenCV turns them, too."""
    path = written(tmp_path / "film.mp4", count=2)
    content = bytearray(path.read_bytes())
    a, b, c, d = (value * 65536 for value in matrix)
    at = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times and number, layer and volume
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    (first, _), ((_, other), _) = read_frames(path), by_opencv(path)
    assert first.image.shape == other.shape == ((64, 48, 3) if degrees != 180 else (48, 64, 3))
    assert np.abs(first.image.astype(int) - other).mean() < 4
    info = video_info(path)
    assert (info.height, info.width) == first.image.shape[:2]
    assert np.abs(first.image.astype(int) - np.rot90(picture(0), -degrees // 90)).mean() < 4


def test_a_file_that_is_no_video(tmp_path):
    page = tmp_path / "film.mp4"
    page.write_text("<!DOCTYPE html><html>not here</html>")
    with pytest.raises(DataError, match="no video but an HTML page"):
        video_info(page)
    page.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        video_info(page)
    page.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(DataError, match="no video, or damaged"):
        next(read_frames(page))
    with pytest.raises(DataError, match="does not exist"):
        video_info(tmp_path / "none.mp4")


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 8000, Fraction(1, 8000), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="holds no pictures"):
        video_info(tmp_path / "sound.mp4")


@pytest.mark.parametrize(
    ("name", "codec"), [("film.mp4", "libx264"), ("film.mkv", "libx264"), ("film.avi", "mpeg4")]
)
def test_a_video_without_its_end(tmp_path, name, codec):
    """Half a copy: what is there is read, and the rest is missed aloud."""
    path, rng = tmp_path / name, np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "+faststart"} if name == "film.mp4" else {}) as film:
        stream = film.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(40):
            noise = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        film.mux(stream.encode())
    assert len(list(read_frames(path))) == 40
    content, frames = path.read_bytes(), []
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"breaks off after \d+ frames, at second [12]\.\d of 4\.0"):
        for frame in read_frames(path):
            frames.append(frame)  # noqa: PERF402 - the list must hold what came before the error
    assert 5 < len(frames) < 25
    assert len(list(read_frames(path, Selection(end=0.5)))) == 5


def test_a_stream_that_cannot_be_decoded(tmp_path):
    path = written(tmp_path / "film.mp4", count=20)
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    content[begin:] = bytes(len(content) - begin)
    path.write_bytes(content)
    with pytest.raises(DataError, match="no frame that can be decoded"):
        video_info(path)
    assert list(read_frames(path)) == []


def made(path, codec, times, rate=10, sound_seconds=0, **options):
    """A film by PyAV itself: pictures at these times in tenths of a second, and silence."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", **options) as container:
        pictures = container.add_stream(codec, rate=rate)
        pictures.width, pictures.height = 64, 48
        pictures.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        sound = container.add_stream("aac", rate=8000) if sound_seconds else None
        for tenth in times:
            noise = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
            frame.pts, frame.time_base = tenth, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        for second in range(sound_seconds):
            silence = np.zeros((1, 8000), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 8000, Fraction(1, 8000), 8000 * second
            container.mux(sound.encode(frame))
        if sound:
            container.mux(sound.encode())
    return path


@pytest.mark.parametrize(
    ("name", "times", "sound"),
    [
        ("sound is longer.mkv", range(40), 8),
        ("begins late.mkv", range(50, 90), 0),
        ("last is shown long.mp4", [0, 1, 2, 3, 50, 100], 0),
    ],
)
def test_a_whole_video_does_not_break_off(tmp_path, name, times, sound):
    path = made(tmp_path / name, "libx264", times, sound_seconds=sound)
    found = [frame.time for frame in read_frames(path)]
    assert found == pytest.approx([(tenth - times[0]) / 10 for tenth in times], abs=2e-3)


def test_a_damaged_frame_is_left_out_and_the_others_read(tmp_path, caplog):
    path = made(tmp_path / "film.avi", "mjpeg", range(40))
    content = bytearray(path.read_bytes())
    begins = [at for at in range(len(content) - 4) if content[at : at + 4] == b"00dc"][:40]
    content[begins[9] + 8 : begins[10]] = bytes(begins[10] - begins[9] - 8)
    path.write_bytes(content)
    times = [round(10 * frame.time) for frame in read_frames(path)]
    (lost,) = set(range(40)) - set(times)
    assert lost in range(8, 11)  # the 9th mark of a frame may be in the header
    assert times == sorted(times)
    assert "1 damaged part left out" in caplog.text


def test_a_stream_that_stays_damaged_is_given_up(tmp_path, monkeypatch):
    path = made(tmp_path / "film.avi", "mjpeg", range(40))
    content = bytearray(path.read_bytes())
    begins = [at for at in range(len(content) - 4) if content[at : at + 4] == b"00dc"][:40]
    for begin, end in itertools.pairwise(begins[9:20]):
        content[begin + 8 : end] = bytes(end - begin - 8)
    path.write_bytes(content)
    assert 28 <= len(list(read_frames(path))) <= 32
    monkeypatch.setattr(video, "MOST_DAMAGED", 5)
    frames = []
    with pytest.raises(DataError, match="cannot be decoded"):
        for frame in read_frames(path):
            frames.append(frame)  # noqa: PERF402 - the list must hold what came before the error
    assert len(frames) in range(7, 11)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "expected"),
    [
        ("ten bits.mp4", "libx264", "yuv420p10le", (200, 100, 50)),
        ("grey.mkv", "ffv1", "gray", (124, 124, 124)),
        ("16 bits grey.mkv", "ffv1", "gray16le", (124, 124, 124)),
        ("alpha.mov", "png", "rgba", (200, 100, 50)),
    ],
)
def test_other_pixels_become_rgb(tmp_path, name, codec, pixels, expected):
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        flat = np.full((48, 64, 3), (200, 100, 50), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(flat, format="rgb24")))
        container.mux(stream.encode())
    (frame,) = read_frames(tmp_path / name)
    assert (frame.image.dtype, frame.image.shape) == (np.uint8, (48, 64, 3))
    assert np.abs(frame.image.astype(int) - expected).max() <= 4


def test_films_put_one_behind_the_other_go_on(tmp_path):
    one = made(tmp_path / "one.mpg", "mpeg2video", range(25), rate=25).read_bytes()
    (tmp_path / "two.mpg").write_bytes(one + one)
    times = np.array([frame.time for frame in read_frames(tmp_path / "two.mpg")])
    assert len(times) > 45
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize(("width", "height"), [(128, 96), (128, 48), (64, 96)])
def test_frames_that_change_their_size_are_refused(tmp_path, width, height):
    made(tmp_path / "one.mpg", "mpeg2video", range(10), rate=25)
    with av.open(str(tmp_path / "other.mpg"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(10):
            noise = np.full((height, width, 3), 20 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    joined = tmp_path / "joined.mpg"
    joined.write_bytes((tmp_path / "one.mpg").read_bytes() + (tmp_path / "other.mpg").read_bytes())
    with pytest.raises(DataError, match="changes its size after"):
        list(read_frames(joined))
    with pytest.raises(DataError, match=f"{width} x {height}, more than"):
        video_info(tmp_path / "other.mpg", max_pixels=64 * 48)


@pytest.mark.parametrize("name", ["film.mp4", "film.avi"])
def test_a_play_list_under_the_name_of_a_video_opens_no_other_file(tmp_path, name):
    written(tmp_path / "secret.mp4", count=2)
    (tmp_path / name).write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(DataError, match="no video, or damaged"):
        video_info(tmp_path / name)
    (tmp_path / name).write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n")
    with pytest.raises(DataError, match="no video, or damaged"):
        video_info(tmp_path / name)


@pytest.mark.parametrize("name", ["2024-01-01T12:30:00.mp4", "ü ä%20#?.mp4", "長" * 80 + ".mp4"])
def test_names_that_are_no_plain_words(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert len(list(read_frames(written(tmp_path / name, count=2)))) == 2
    assert len(list(read_frames(written(Path(name), count=2)))) == 2


def test_large_frames_are_refused(tmp_path):
    path = written(tmp_path / "film.mp4", count=2)
    with pytest.raises(DataError, match="64 x 48, more than 3071 pixels"):
        video_info(path, max_pixels=64 * 48 - 1)
    assert video_info(path, max_pixels=64 * 48).width == 64


@pytest.mark.parametrize(("name", "fourcc"), [("film.avi", "MJPG"), ("film.mp4", "mp4v")])
def test_large_frames_are_named_where_the_decoder_forgets_their_size(tmp_path, name, fourcc):
    path = tmp_path / name
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 5, (64, 48))
    writer.write(picture(0)[..., ::-1])
    writer.release()
    for read in (video_info, lambda *given: list(read_frames(given[0], max_pixels=given[1]))):
        with pytest.raises(DataError, match="64 x 48, more than 3071 pixels"):
            read(path, 64 * 48 - 1)
    assert len(list(read_frames(path, max_pixels=100_000))) == 1


def test_a_codec_without_a_decoder_is_named(tmp_path):
    path = made(tmp_path / "film.avi", "mjpeg", range(3))
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"ZQZQ"))
    with pytest.raises(DataError, match="no decoder"):
        video_info(path)
    with pytest.raises(DataError, match="no decoder"):
        list(read_frames(path))


def test_a_video_that_may_not_be_read_is_not_said_to_be_damaged(tmp_path, monkeypatch):
    path = written(tmp_path / "film.mp4", count=2)

    def refuse(*_, **__):
        raise av.error.PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(av, "open", refuse)  # root may read everything
    with pytest.raises(DataError, match="may not be read: permission denied"):
        video_info(path)


def test_a_film_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), writing_video(tmp_path / "film.mp4", 10) as film:
        film.write(picture(0), 0)
        raise ZeroDivisionError
    with writing_video(tmp_path / "none.mp4", 10):
        pass
    with pytest.raises(DataError, match="after"), writing_video(tmp_path / "two.mp4", 10) as film:
        film.write(picture(0), 0)
        film.write(picture(0, 24, 24), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_film_with_hours_between_its_frames(tmp_path):
    with writing_video(tmp_path / "film.mp4", 1e-9) as film:
        film.write(picture(0), 0)
        film.write(picture(1), 7200)
    assert [frame.time for frame in read_frames(tmp_path / "film.mp4")] == [0, 7200]


def test_without_pyav_the_command_that_brings_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(BackendMissing, match=r"anomdino\[video\]"):
        video_info(tmp_path / "film.mp4")
    with pytest.raises(BackendMissing), video.writing_video(tmp_path / "film.mp4", 5):
        pass
