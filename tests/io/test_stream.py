"""Cameras and streams, served by this machine."""

import io
import re
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from anomdino.errors import DataError
from anomdino.io import stream as live
from anomdino.io.stream import LiveSource, is_live, without_password
from anomdino.io.video import writing_video
from tests.stream_server import Camera, picture, rtsp_camera, serving

av = pytest.importorskip("av")

PROBED = 5
"""Pictures that FFmpeg may want before it gives one."""
COLOURS = [(200, 40, 60), (30, 180, 90), (20, 60, 220), (210, 190, 20), (90, 20, 130)]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Lost sources are opened again at once."""
    monkeypatch.setattr(live, "FIRST_PAUSE", 0.01)


def film(rgb, frames, kind="mpegts"):
    """Give a film of one colour in H.264, with a whole picture every eight frames."""
    written = io.BytesIO()
    with av.open(written, "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=20, options={"g": "8", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            picture = np.full((48, 64, 3), rgb, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return written.getvalue()


def pictures_of(content):
    """Give the units of each picture of a raw H.264 film; a unit of type 1 or 5 ends a picture."""
    pictures = [[]]
    for unit in re.split(rb"\x00{2,3}\x01", content)[1:]:
        pictures[-1].append(unit)
        if unit[0] & 31 in {1, 5}:
            pictures.append([])
    return [picture for picture in pictures if picture]


def camera_of(*sessions, wait_last=True):
    camera = Camera()
    camera.sessions = [
        camera.send_all([picture(colour) for colour in colours], wait_last and index == len(sessions) - 1)
        for index, colours in enumerate(sessions)
    ]
    return camera


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def colour(frame):
    return frame.image.reshape(-1, 3).mean(0)


def test_frames_come_in_their_colours_with_the_time_they_arrived():
    camera, start = Camera(), datetime.now(UTC)
    go = threading.Semaphore(1)

    def one_at_a_time(send):
        for each in COLOURS:
            go.acquire(timeout=10)
            for _ in range(PROBED):
                send(picture(each))
        camera.closing.wait(20)

    camera.sessions = [one_at_a_time]
    with serving(camera) as address, LiveSource(address, silence=1) as source:
        times = []
        for expected in COLOURS:
            frame = source.take()
            while np.abs(colour(frame) - expected).max() > 4:  # of those before
                frame = source.take(timeout=10)
            assert frame.image.shape == (48, 64, 3)
            assert frame.image.dtype == np.uint8
            times.append(frame.arrived)
            go.release()
    assert times == sorted(times)
    assert start <= times[0] <= times[-1] <= datetime.now(UTC) + timedelta(seconds=1)


def test_the_newest_frame_is_given_and_the_others_are_passed_over():
    many = [COLOURS[index % 4] for index in range(30)] + [COLOURS[4]] * 3
    camera = camera_of(many)
    with serving(camera) as address, LiveSource(address, silence=1) as source:
        camera.sent.wait(10)
        until(lambda: source.frames > 20)
        time.sleep(0.2)  # the rest is on its way
        frame = source.take()
        assert frame.index > 20
        np.testing.assert_allclose(colour(frame), COLOURS[4], atol=4)
        assert source.take(timeout=0.05) is None  # none is given twice


class Clock:
    """Stands in for the time: each question is a step later."""

    def __init__(self, step):
        self.now_, self.step = datetime(2026, 12, 1, tzinfo=UTC), timedelta(seconds=step)

    def now(self, zone):
        self.now_ += self.step
        return self.now_


@pytest.mark.parametrize(("step", "stride"), [(0.2, 1), (0.04, 3)])
def test_something_is_kept_of_frames_that_are_passed_over(monkeypatch, step, stride):
    """Every frame of a slow source; ten a second of one with twenty-five, whose third frame is the first after 0.1 s."""
    camera = Camera()
    shades = [(8 * index, 8 * index, 8 * index) for index in range(31)]
    camera.sessions = [camera.send_all([picture(shade) for shade in shades])]
    monkeypatch.setattr(live, "datetime", Clock(step))
    seen = threading.Event()

    def shade_of(image):
        seen.wait(10)  # the first frame is taken before any is passed over
        return round(float(image.mean()) / 8)

    with serving(camera) as address, LiveSource(address, silence=1, passed=shade_of) as source:
        first = source.take()
        seen.set()
        camera.sent.wait(10)
        until(lambda: source.frames > 25)
        time.sleep(0.2)
        last = source.take()
        assert source.take(timeout=0.05) is None
    assert first.passed == ()
    begin, end = (round(float(colour(frame).mean()) / 8) for frame in (first, last))
    assert end - begin == last.index - first.index
    assert last.passed == tuple(range(last.passed[0], end, stride))
    assert begin < last.passed[0] <= begin + stride


def test_what_is_kept_is_thinned_out_and_begins_anew(monkeypatch):
    monkeypatch.setattr(live, "MOST_PASSED", 4)
    monkeypatch.setattr(live, "upright", lambda raw: raw)
    source, begin = LiveSource("rtsp://camera/a", passed=lambda raw: raw), datetime(2026, 12, 1, tzinfo=UTC)

    def come(*indices):
        for index in indices:
            if source._newest is not None:
                source._pass_over(*source._newest)
            source._newest = (index, begin + timedelta(seconds=0.1 * index), index)

    come(0)
    assert source.take().passed == ()
    come(*range(1, 8))
    # 1 2 3 4 5 -> 1 3 5, and from there on a fifth of a second apart
    assert source.take().passed == (1, 3, 5)
    come(*range(8, 11))
    assert source.take().passed == (8, 9)
    come(11)
    assert source.take().passed == ()


def test_what_comes_while_a_frame_is_taken_belongs_to_the_next():
    source = LiveSource("rtsp://camera/a", passed=lambda raw: raw)
    source._taken, source._between = (
        2,
        [(index, datetime(2026, 12, 1, tzinfo=UTC), index) for index in (1, 3, 4, 6)],
    )
    assert source._take_between(5) == (3, 4)
    assert source._take_between(8) == (6,)


def test_a_frame_that_is_taken_is_not_passed_over():
    source = LiveSource("rtsp://camera/a", passed=lambda raw: raw)
    source._taken = 5
    source._pass_over(5, datetime(2026, 12, 1, tzinfo=UTC), None)
    assert source._between == []


def test_a_lost_source_is_opened_again_and_its_numbers_go_on(caplog):
    camera = camera_of([COLOURS[0]] * 8, [COLOURS[1]] * 8)
    with serving(camera) as address, LiveSource(address, silence=1) as source:
        until(lambda: camera.connections == 2 and source.frames >= 10)
        frame = source.take()
    assert frame.index >= 8
    np.testing.assert_allclose(colour(frame), COLOURS[1], atol=4)
    assert "sends no more frames; opened again" in caplog.text


def test_a_source_that_stays_lost_is_given_up_after_its_last_frame_was_given():
    camera = camera_of([COLOURS[0]] * 8, [], wait_last=False)
    with serving(camera) as address, LiveSource(address, patience=0.2) as source:
        until(lambda: camera.connections > 2)
        assert source.take() is not None
        with pytest.raises(DataError, match="sends no more frames|cannot be opened"):
            source.take()


def test_a_silent_source_counts_as_lost():
    camera = camera_of([COLOURS[0]] * 8, [COLOURS[1]] * 8)
    camera.sessions[0] = camera.send_all([picture(COLOURS[0])] * 8)  # holds the line and says nothing
    with serving(camera) as address, LiveSource(address, silence=0.3) as source:
        until(lambda: camera.connections >= 2 and source.frames >= 10)
        np.testing.assert_allclose(colour(source.take()), COLOURS[1], atol=4)


def test_who_waits_is_told_of_any_error_of_the_reader(monkeypatch):
    def broken(*_):
        yield SimpleNamespace()
        raise MemoryError("no room for a frame")

    monkeypatch.setattr(live, "decodable", broken)
    monkeypatch.setattr(live, "upright", lambda _: np.zeros((48, 64, 3), np.uint8))
    with serving(camera_of([COLOURS[0]] * 8)) as address, LiveSource(address, silence=1) as source:
        assert source.take(timeout=10) is not None
        with pytest.raises(MemoryError):
            source.take(timeout=10)


def test_closing_ends_the_thread():
    with serving(camera_of([COLOURS[0]] * 8)) as address:
        with LiveSource(address, silence=0.2) as source:
            source.take()
        until(lambda: not source._thread.is_alive())


def test_an_address_where_nothing_answers_fails_at_once_and_tells_no_password():
    with serving(Camera(lambda _: None)) as address:
        pass
    secret = address.replace("://", "://user:pa:ss@") + "?key=12345"
    with pytest.raises(DataError, match="cannot be opened") as caught, LiveSource(secret):
        pass
    assert "user" not in str(caught.value)
    assert "pa:ss" not in str(caught.value)
    assert "12345" not in str(caught.value)
    assert address.replace("://", "://***@") in str(caught.value)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("rtsp://admin:p@ss:w/rd@10.0.0.1:554/a", "rtsp://***@10.0.0.1:554/a"),
        ("rtsp://admin:secret@cam/a?token=1@2", "rtsp://***@cam/a?***"),
        ("http://cam/user@example/a", "http://***@example/a"),
        ("http://cam/a", "http://cam/a"),
        ("/dev/video0", "/dev/video0"),
    ],
)
def test_what_is_shown_of_an_address(given, shown):
    assert without_password(given) == shown


def test_what_is_live(tmp_path):
    assert all(map(is_live, ["rtsp://cam/a", "HTTP://cam/a", "udp://@:1234", "/dev/null"]))
    assert not any(map(is_live, ["film.mp4", str(tmp_path), "file:///etc/passwd", "concat:a|b", "", "://"]))
    with pytest.raises(DataError, match="no address of a stream.*\n.*anomdino predict"):
        LiveSource(str(tmp_path / "film.mp4"))


def test_a_device_that_is_no_camera():
    with pytest.raises(DataError, match="/dev/null: cannot be opened"), LiveSource("/dev/null"):
        pass


def test_a_recording_is_not_a_stream(tmp_path):
    with writing_video(tmp_path / "film.mp4", 10) as film:
        for index in range(20):
            film.write(np.full((48, 64, 3), 10 * index, np.uint8), index / 10)
    answers = {
        "/film.mp4": ("video/mp4", (tmp_path / "film.mp4").read_bytes()),
        "/page": ("text/html", b"<html>" * 99),
    }
    with serving(Camera(lambda _: None), answers) as address:
        film, page = (address.replace("/live", path) for path in answers)
        with pytest.raises(DataError, match=r"is a recording of 2\.0 s"), LiveSource(film):
            pass
        with pytest.raises(DataError, match="cannot be opened"), LiveSource(page):
            pass


def test_a_play_list_from_outside_opens_no_file_of_this_machine(tmp_path):
    parts = tmp_path / "part.ts"
    parts.write_bytes(film((90, 90, 90), 20))
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-VERSION:3\n"

    def opened(where):
        play_list = f"{head}#EXTINF:2.0,\n{where}\n".encode()
        answers = {
            "/live.m3u8": ("application/vnd.apple.mpegurl", play_list),
            "/part.ts": ("video/mp2t", parts.read_bytes()),
        }
        with (
            serving(Camera(lambda _: None), answers) as address,
            LiveSource(address.replace("/live", "/live.m3u8"), silence=1) as source,
        ):
            return source.take()

    assert opened("part.ts").image.shape == (48, 64, 3)  # by its own address it is read
    with pytest.raises(DataError):
        opened(f"file://{parts}")


def test_frames_that_are_too_large_are_refused():
    with serving(camera_of([COLOURS[0]] * 8)) as address:
        refused = pytest.raises(DataError, match="64 x 48, more than 3000 pixels")
        with refused, LiveSource(address, max_pixels=3000):
            pass
        with LiveSource(address, max_pixels=3072) as source:
            assert source.take().image.shape == (48, 64, 3)


def test_video_over_tcp_that_begins_in_the_middle():
    """H.264 in an MPEG transport stream, as cameras of vehicles send it; the first packets belong to no whole frame."""
    content = film((0, 160, 40), 60)

    def send():
        line, _ = listener.accept()
        with line:
            line.sendall(content[188 * 7 + 50 :])
            stop.wait(20)

    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        with LiveSource(f"tcp://127.0.0.1:{listener.getsockname()[1]}", silence=5) as source:
            frame = source.take()
            stop.set()
        thread.join(10)
    np.testing.assert_allclose(colour(frame), (0, 160, 40), atol=8)


@pytest.mark.parametrize("password", [None, "admin:pa55"])
def test_a_camera_by_rtsp(password, caplog):
    with rtsp_camera(pictures_of(film((200, 60, 30), 16, "h264")), password) as address:
        with LiveSource(address, silence=5) as source:
            frames = [source.take() for _ in range(3)]
        assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 3
        np.testing.assert_allclose(colour(frames[-1]), (200, 60, 30), atol=8)
        if password:
            wrong = address.replace("pa55", "wrong")
            with pytest.raises(DataError, match="cannot be opened") as caught, LiveSource(wrong, silence=5):
                pass
            assert "wrong" not in str(caught.value)
