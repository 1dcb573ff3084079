"""A live source through the cascade, with a cascade that finds red."""

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from anomdino.adt.fusion import FusionRule
from anomdino.errors import DataError, DiskError
from anomdino.io.boxes import Boxes
from anomdino.io.stream import LiveFrame
from anomdino.prediction.watching import Sightings, Watched, stamp, watch
from anomdino.prediction.writing import PredictionWriter
from anomdino.tracking.motion import thumbnail

BEGIN = datetime(2026, 11, 30, 22, 59, 59, 950_000, UTC)


class FindsRed:
    def predict(self, image, name):
        if (image == 255).all():
            raise DataError(name, "has a score that is NaN", "")
        score = (image[..., 0].astype(np.float32) - image[..., 2]) / 255
        mask = score > 0.5
        boxes = Boxes(np.array([[0, 0, 32, 24]], np.float32), np.array([0.9], np.float32))
        return SimpleNamespace(score=score, mask=mask, boxes=boxes if mask.any() else Boxes.empty())


class Source:
    """Frames a tenth of a second apart, one a question, then nothing more."""

    name = "rtsp://cam/a"

    def __init__(self, *red, passed_over=0):
        self.frames = iter(
            LiveFrame(index * (1 + passed_over), BEGIN + timedelta(seconds=index / 10), frame(each))
            for index, each in enumerate(red)
        )
        self.waited = []

    def take(self, timeout=None):
        self.waited.append(timeout)
        found = next(self.frames, None)
        if found is None and timeout is None:
            raise DataError(self.name, "sends no more frames", "")
        return found


def frame(red):
    image = np.full((48, 64, 3), 255 if red is None else 120, np.uint8)
    if red:
        image[:24, :32] = (230, 20, 20)
    return image


def sightings(folder, keep=100):
    return Sightings(PredictionWriter(folder, FusionRule(output="fused")), "rtsp://cam/a", keep)


def watched(source, folder=None, keep=100, **options):
    lines = []
    pictures = sightings(folder, keep) if folder else None
    seen = watch(FindsRed(), source, lines.append, sightings=pictures, **options)
    return seen, lines


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_line_for_every_frame_and_pictures_of_those_with_an_anomaly(tmp_path):
    seen, lines = watched(Source(False, True, False, True, passed_over=4), tmp_path, frames=4)
    assert [line["frame"] for line in lines] == [0, 5, 10, 15]
    assert lines[1]["time"] == "2026-11-30T23:00:00.050+00:00"
    assert [line["anomaly_share"] for line in lines] == [0, 0.25, 0, 0.25]
    assert lines[1]["boxes"] == [{"xyxy": [0, 0, 32, 24], "score": 0.9}]
    names = ["20261130T230000.050Z", "20261130T230000.250Z"]
    assert [line["sighting"] for line in lines] == [None, names[0], None, names[1]]
    assert files(tmp_path) == [f"{kind}/{name}.jpg" for kind in ("overlay", "photo") for name in names]
    photo = cv2.imread(str(tmp_path / f"photo/{names[0]}.jpg"))[..., ::-1]
    np.testing.assert_allclose(photo[4:16, 4:24].reshape(-1, 3).mean(0), (230, 20, 20), atol=6)
    overlay = cv2.imread(str(tmp_path / f"overlay/{names[0]}.jpg"))
    assert overlay.shape[0] > photo.shape[0]  # the footer is there
    assert (seen.looked, seen.with_anomaly, seen.skipped) == (4, 2, 0)


def test_the_delay_is_the_time_since_the_frame_arrived():
    now = datetime.now(UTC)
    source = Source()
    source.frames = iter([LiveFrame(0, now - timedelta(seconds=100), frame(False))])
    (line,) = watched(source, frames=1)[1]
    assert 100 <= line["delay"] < 160


def test_without_a_folder_no_picture_is_named():
    _, lines = watched(Source(True), frames=1)
    assert lines[0]["sighting"] is None


def test_the_latest_pictures_are_kept_those_of_runs_before_are_the_first_to_go(tmp_path):
    mine = [tmp_path / "overlay" / name for name in ("0Z.jpg", "holiday.jpg")]
    watched(Source(True, True), tmp_path, frames=2)
    for file in mine:
        file.write_bytes(b"of a photo")
    later = Source(True, True)
    later.frames = iter(
        [LiveFrame(0, BEGIN + timedelta(days=1, hours=hour), frame(True)) for hour in range(2)]
    )
    watched(later, tmp_path, keep=3, frames=2)
    names = ["20261130T230000.050Z", "20261201T225959.950Z", "20261201T235959.950Z"]
    assert files(tmp_path / "photo") == [f"{name}.jpg" for name in names]
    assert files(tmp_path / "overlay") == ["0Z.jpg", *(f"{name}.jpg" for name in names), "holiday.jpg"]


def test_what_stays_in_view_is_pictured_after_the_gap(tmp_path):
    lines = []
    pictures = Sightings(PredictionWriter(tmp_path, FusionRule(output="fused")), "cam", 100, gap=0.25)
    watch(
        FindsRed(),
        Source(True, True, False, True, True, True, True),
        lines.append,
        sightings=pictures,
        frames=7,
    )
    assert [line["sighting"] is not None for line in lines] == [True, False, False, True, False, False, True]
    assert len(files(tmp_path / "photo")) == 3


def test_objects_keep_their_numbers(tmp_path):
    _, lines = watched(Source(True, True, False, None, True), frames=5)
    assert [line.get("objects") for line in lines] == [
        [{"id": 1, "xyxy": [0, 0, 32, 24], "score": 0.8235, "pixels": 768, "look": look}] if look else nothing
        for look, nothing in ((1, []), (2, []), (0, []), (0, None), (3, []))
    ]


def test_frames_that_were_passed_over_show_where_an_object_went():
    ground = np.repeat(
        np.repeat(np.random.default_rng(0).integers(90, 150, (12, 40, 1), np.uint8), 8, 0), 8, 1
    )

    def picture(at):
        image = np.repeat(ground, 3, 2)
        image[30:60, at : at + 40] = np.clip(image[30:60, 20:60] + np.array([100, -90, -90]), 0, 255)
        return image

    def numbers(passed):
        source = Source()
        source.frames = iter(
            [
                LiveFrame(0, BEGIN, picture(20)),
                LiveFrame(9, BEGIN, picture(80), tuple(map(thumbnail, passed))),
            ]
        )
        return [line["objects"][0]["id"] for line in watched(source, frames=2)[1]]

    assert numbers([picture(at) for at in range(26, 80, 6)]) == [1, 1]
    assert numbers([]) == [1, 2]


@pytest.mark.parametrize(("at_look", "pictured"), [(1, [0]), (2, [1]), (3, [3]), (9, [])])
def test_a_picture_for_each_object_at_one_of_its_looks(tmp_path, at_look, pictured):
    lines, source = [], Source(True, True, False, True, True)
    pictures = Sightings(PredictionWriter(tmp_path, FusionRule(output="fused")), "cam", 100, at_look=at_look)
    watch(FindsRed(), source, lines.append, sightings=pictures, frames=5)
    assert [index for index, line in enumerate(lines) if line["sighting"]] == pictured
    assert len(files(tmp_path)) == 2 * len(pictured)


def test_a_frame_that_cannot_be_scored_is_told_and_it_goes_on(caplog):
    seen, lines = watched(Source(None, None, True), frames=3)
    assert [line.get("skipped") for line in lines] == ["has a score that is NaN"] * 2 + [None]
    assert (seen.looked, seen.with_anomaly, seen.skipped) == (3, 1, 2)
    assert caplog.text.count("skipped: rtsp://cam/a, frame 0") == 1


def test_it_ends_when_the_time_is_over():
    source = Source(False, False)
    seen, lines = watched(source, seconds=50)
    assert len(lines) == seen.looked == 2
    assert all(0 < left <= 50 for left in source.waited)
    assert watched(Source(False), seconds=0)[1] == []


def test_what_was_seen_is_known_after_the_source_is_lost_and_after_ctrl_c():
    seen = Watched()
    with pytest.raises(DataError, match="sends no more frames"):
        watched(Source(True, False), watched=seen)
    assert (seen.looked, seen.with_anomaly) == (2, 1)

    def interrupted(_):
        raise KeyboardInterrupt

    seen = Watched()
    with pytest.raises(KeyboardInterrupt):
        watch(FindsRed(), Source(True, True), interrupted, watched=seen)
    assert seen.looked == 1
    assert seen.seconds > 0


def test_a_full_disk_ends_it(tmp_path, monkeypatch):
    def full(*_):
        raise DiskError(tmp_path, "is full", "")

    monkeypatch.setattr("anomdino.prediction.watching.atomic_write_bytes", full)
    with pytest.raises(DiskError):
        watched(Source(True), tmp_path, frames=1)


def test_stamps_are_in_utc_and_sort_as_times_do():
    there = datetime(2026, 12, 1, 1, 0, 0, 50_999, timezone(timedelta(hours=2)))
    assert stamp(there) == "20261130T230000.050Z"
    moments = [BEGIN + timedelta(milliseconds=137 * step) for step in range(50)]
    assert [stamp(moment) for moment in moments] == sorted(map(stamp, moments))
