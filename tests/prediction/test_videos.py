"""Videos through the cascade, with a cascade that finds red."""

import json
import os
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from anomdino.adt.fusion import FusionRule
from anomdino.errors import BackendMissing, DataError, DiskError
from anomdino.io.boxes import Boxes
from anomdino.io.images import read_label, write_png
from anomdino.io.scores import read_score
from anomdino.io.video import Selection, read_frames, writing_video
from anomdino.prediction import videos
from anomdino.prediction.inputs import Inputs
from anomdino.prediction.run import predict_all
from anomdino.prediction.videos import Stretches
from anomdino.prediction.writing import PredictionWriter

av = pytest.importorskip("av")

SIZE = (48, 64)
RED = {3, 4, 5, 8}
"""Frames with a red square, a quarter of the picture."""


class FindsRed:
    """Scores how much redder than blue a pixel is."""

    def __init__(self, fail=None):
        self.seen, self.fail = 0, fail or {}

    def predict(self, image, name):
        self.seen += 1
        if self.seen in self.fail:
            raise self.fail[self.seen]
        score = (image[..., 0].astype(np.float32) - image[..., 2]) / 255
        mask = score > 0.5
        boxes = Boxes(np.array([[0, 0, 32, 24]], np.float32), np.array([0.9], np.float32))
        return SimpleNamespace(score=score, mask=mask, boxes=boxes if mask.any() else Boxes.empty())


def film(path, count=10, rate=10.0, red=RED):
    with writing_video(path, rate) as writer:
        for index in range(count):
            picture = np.full((*SIZE, 3), 120, np.uint8)
            if index in red:
                picture[:24, :32] = (230, 20, 20)
            writer.write(picture, index / rate)
    return path


def predicted(folder, *paths, cascade=None, overlay=True, rule="fused", **options):
    writer = PredictionWriter(folder, FusionRule(output=rule), overlay=overlay)
    given = Inputs(videos={path.stem: path for path in paths})
    return predict_all(cascade or FindsRed(), given, writer, **{"max_pixels": 10_000, **options})


def lines(folder, key):
    return [json.loads(line) for line in (folder / "frames" / f"{key}.jsonl").read_text().splitlines()]


def files(folder):
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not path.name.startswith("."))


def test_every_frame_has_its_line_and_its_picture(tmp_path):
    _, done = predicted(tmp_path / "out", film(tmp_path / "drive.mp4"))
    assert files(tmp_path / "out") == [
        "frames/drive.jsonl",
        "objects/drive.html",
        "objects/drive.jsonl",
        "objects/drive/0001.jpg",
        "overlay/drive.mp4",
        "summary.json",
    ]
    for index, line in enumerate(lines(tmp_path / "out", "drive")):
        assert (line["frame"], line["time"]) == (index, pytest.approx(index / 10, abs=1e-4))
        assert line["anomaly_share"] == pytest.approx(0.25 if index in RED else 0, abs=0.03)
        boxes = [{"xyxy": [0, 0, 32, 24], "score": 0.9}] if index in RED else []
        assert line["boxes"] == boxes
    pictures = list(read_frames(tmp_path / "out/overlay/drive.mp4"))
    assert [picture.time for picture in pictures] == pytest.approx(np.arange(10) / 10, abs=1e-3)
    heights = {picture.image.shape[0] for picture in pictures}
    assert heights == {SIZE[0] + 46}  # the photo and its footer
    red, _, blue = pictures[3].image[6, 6].astype(int)
    assert red > blue + 30
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    (line,) = summary["videos"]
    assert line == done.lines[0]
    assert line["stretches"] == [[0.3, 0.5], [0.8, 0.8]]
    assert (line["frames"], line["with_anomaly"], line["rate"], line["ended"]) == (10, 4, 10.0, "")
    assert (line["height"], line["width"], line["every"]) == (*SIZE, 1)
    assert summary["skipped"] == []


def test_an_object_is_one_from_its_first_look_to_its_last(tmp_path):
    _, done = predicted(tmp_path / "out", film(tmp_path / "drive.mp4"))
    told = [line["objects"] for line in lines(tmp_path / "out", "drive")]
    assert [[(one["id"], one["look"]) for one in objects] for objects in told] == [
        [], [], [], [(1, 1)], [(1, 2)], [(1, 3)], [], [], [(1, 4)], [],
    ]  # fmt: skip
    (line,) = map(json.loads, (tmp_path / "out/objects/drive.jsonl").read_text().splitlines())
    assert (line["id"], line["looks"], line["frames"]) == (1, 4, [3, 8])
    assert [line["first"], line["last"]] == pytest.approx([0.3, 0.8], abs=1e-3)
    assert line["best"]["xyxy"] == pytest.approx([0, 0, 32, 24], abs=1)
    assert (done.lines[0]["objects"], done.lines[0]["seen_again"]) == (1, 1)


def moving(path, count=13):
    """A red square that goes five columns a frame to the right, over ground with a texture."""
    ground = np.random.default_rng(0).integers(90, 150, (12, 40, 1), dtype=np.uint8)
    ground = np.repeat(np.repeat(np.repeat(ground, 8, 0), 8, 1), 3, 2)
    with writing_video(path, 10.0) as writer:
        for index in range(count):
            picture = ground.copy()
            texture = ground[30:60, 20:60].astype(int) - 120
            at = 20 + 5 * index
            picture[30:60, at : at + 40] = np.clip(np.array([220, 30, 30]) + texture, 0, 255)
            writer.write(picture, index / 10)
    return path


def test_frames_that_are_passed_over_show_where_an_object_goes(tmp_path, monkeypatch):
    path = moving(tmp_path / "drive.mp4")
    predicted(tmp_path / "out", path, selection=Selection(every=12), overlay=False, max_pixels=40_000)
    first, last = (line["objects"] for line in lines(tmp_path / "out", "drive"))
    assert last[0]["xyxy"][0] - first[0]["xyxy"][0] == pytest.approx(
        60, abs=4
    )  # one and a half of its widths
    assert (first[0]["id"], last[0]["id"]) == (1, 1)
    monkeypatch.setattr("anomdino.tracking.tracker.Tracker.follow", lambda *_: None)
    predicted(tmp_path / "out", path, selection=Selection(every=12), overlay=False, max_pixels=40_000)
    first, last = (line["objects"] for line in lines(tmp_path / "out", "drive"))
    assert (first[0]["id"], last[0]["id"]) == (1, 2)


def test_films_show_the_numbers_of_objects(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        videos, "draw_overlay", lambda image, *_, numbers, **__: drawn.append(list(numbers)) or image
    )
    predicted(tmp_path / "out", film(tmp_path / "drive.mp4", count=5))
    assert [[number for number, _ in numbers] for numbers in drawn] == [[], [], [], [1], [1]]
    assert drawn[3][0][1] == pytest.approx([0, 0, 32, 24], abs=1)


def test_frames_a_second_and_titles(tmp_path, monkeypatch):
    titles, clock = (
        [],
        iter([100.0, 200.0, 204.0, 300.0]),
    )  # all videos begin, this one begins and ends, all end
    monkeypatch.setattr(videos, "draw_overlay", lambda image, *_, title, **__: titles.append(title) or image)
    path = film(tmp_path / "drive.mp4")
    monkeypatch.setattr(videos, "time", SimpleNamespace(perf_counter=clock.__next__))
    _, done = predicted(tmp_path / "out", path)
    assert (done.lines[0]["frames_per_second"], done.seconds) == (2.5, 200)
    assert titles == [f"drive.mp4  0.{tenth}0 s" for tenth in range(10)]


@pytest.mark.parametrize("detector", [True, False])
def test_films_speak_of_boxes_where_there_is_a_detector(tmp_path, monkeypatch, detector):
    drawn = []
    monkeypatch.setattr(
        videos, "draw_overlay", lambda image, *_, boxes, **__: drawn.append(boxes is not None) or image
    )
    given = Inputs(videos={"drive": film(tmp_path / "drive.mp4", count=2)})
    writer = PredictionWriter(tmp_path / "out", FusionRule(), boxes=detector)
    predict_all(FindsRed(), given, writer, max_pixels=10_000)
    assert drawn == [detector, detector]


def test_a_selection_of_frames(tmp_path):
    path, cascade = film(tmp_path / "drive.mp4", count=30), FindsRed()
    predicted(tmp_path / "out", path, cascade=cascade, selection=Selection(every=5, start=0.3, end=2.0))
    assert [line["frame"] for line in lines(tmp_path / "out", "drive")] == [3, 8, 13, 18]
    (line,) = json.loads((tmp_path / "out/summary.json").read_text())["videos"]
    assert (line["rate"], line["every"], line["frames"]) == (
        10,
        5,
        4,
    )  # of the video, not of what was looked at
    assert cascade.seen == 4
    times = [picture.time for picture in read_frames(tmp_path / "out/overlay/drive.mp4")]
    assert times == pytest.approx([0, 0.5, 1.0, 1.5], abs=1e-3)
    with av.open(str(tmp_path / "out/overlay/drive.mp4")) as container:
        assert container.start_time == 0
        assert container.duration / av.time_base == pytest.approx(2.0, abs=0.01)  # nothing empty before them
    _, done = predicted(tmp_path / "none", path, selection=Selection(start=99, end=100))
    assert "no frame from second 99 on and before 100" in done.skipped[0]["reason"]
    assert files(tmp_path / "none") == ["summary.json"]


def test_maps_of_every_frame_where_they_are_asked_for(tmp_path):
    predicted(tmp_path / "out", film(tmp_path / "drive.mp4"), frame_maps=True, overlay=False)
    names = [f"{index:06d}" for index in range(10)]
    expected = [f"mask/drive/{name}.png" for name in names] + [f"score/drive/{name}.npz" for name in names]
    assert files(tmp_path / "out") == [
        "frames/drive.jsonl",
        *expected[:10],
        "objects/drive.jsonl",
        *expected[10:],
        "summary.json",
    ]
    for index, name in enumerate(names):
        score = read_score(tmp_path / "out" / "score" / "drive" / f"{name}.npz", SIZE)
        mask = read_label(tmp_path / "out" / "mask" / "drive" / f"{name}.png")
        np.testing.assert_array_equal(mask, np.where(score > 0.5, 255, 0))
        assert mask.any() == (index in RED)


def broken(path):
    content = film(path, count=60, rate=5, red=set(range(0, 60, 3))).read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + (len(content) - content.index(b"mdat")) * 6 // 10])
    return path


def test_a_video_that_breaks_off_keeps_what_was_found(tmp_path):
    path = broken(tmp_path / "drive.mp4")
    _, done = predicted(tmp_path / "out", path)
    (line,) = done.lines
    assert "breaks off after" in line["ended"]
    assert 5 < line["frames"] == len(lines(tmp_path / "out", "drive")) < 55
    assert len(list(read_frames(tmp_path / "out/overlay/drive.mp4"))) == line["frames"]
    with pytest.raises(DataError, match="breaks off after"):
        predicted(tmp_path / "strict", path, strict=True)
    assert files(tmp_path / "strict") == ["summary.json"]
    assert "breaks off after" in json.loads((tmp_path / "strict/summary.json").read_text())["ended"]


def test_what_is_no_video_is_listed_and_the_others_done(tmp_path):
    (tmp_path / "page.mp4").write_text("<!DOCTYPE html><html>not here</html>")
    _, done = predicted(tmp_path / "out", tmp_path / "page.mp4", film(tmp_path / "drive.mp4"))
    assert [line["video"] for line in done.lines] == ["drive"]
    (skipped,) = json.loads((tmp_path / "out/summary.json").read_text())["skipped"]
    assert (skipped["video"], skipped["path"]) == ("page", str(tmp_path / "page.mp4"))
    assert "HTML" in skipped["reason"]
    with pytest.raises(DataError, match="HTML"):
        predicted(tmp_path / "strict", tmp_path / "page.mp4", strict=True)


def test_a_frame_that_cannot_be_scored_is_listed_and_the_others_done(tmp_path):
    path, error = film(tmp_path / "drive.mp4"), DataError("drive.mp4, frame 3", "its score is constant")
    _, done = predicted(tmp_path / "out", path, cascade=FindsRed({4: error}))
    assert (done.lines[0]["frames"], done.lines[0]["skipped"], done.lines[0]["with_anomaly"]) == (10, 1, 3)
    found = lines(tmp_path / "out", "drive")
    assert found[3] == {"frame": 3, "time": 0.3, "skipped": "its score is constant"}
    assert len(list(read_frames(tmp_path / "out/overlay/drive.mp4"))) == 9
    with pytest.raises(DataError, match="constant"):
        predicted(tmp_path / "strict", path, cascade=FindsRed({4: error}), strict=True)


def test_a_video_of_which_no_frame_can_be_scored_is_skipped(tmp_path):
    path, error = film(tmp_path / "drive.mp4", count=3), DataError("drive.mp4", "its score is constant")
    _, done = predicted(tmp_path / "out", path, cascade=FindsRed(dict.fromkeys(range(1, 4), error)))
    assert (done.lines, done.skipped[0]["video"]) == ([], "drive")
    assert "no frame that can be scored (its score is constant)" in done.skipped[0]["reason"]
    assert files(tmp_path / "out") == ["summary.json"]


def test_stopped_before_its_first_frame_what_was_there_before_stays(tmp_path):
    path = film(tmp_path / "drive.mp4")
    predicted(tmp_path / "out", path)
    before = (tmp_path / "out/frames/drive.jsonl").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        predicted(tmp_path / "out", path, cascade=FindsRed({1: KeyboardInterrupt()}))
    assert (tmp_path / "out/frames/drive.jsonl").read_bytes() == before
    assert len(list(read_frames(tmp_path / "out/overlay/drive.mp4"))) == 10


def test_maps_of_a_run_before_do_not_stay_between(tmp_path):
    path = film(tmp_path / "drive.mp4")
    write_png(tmp_path / "out/mask/drive/photo.png", np.zeros(SIZE, np.uint8))
    predicted(tmp_path / "out", path, frame_maps=True)
    predicted(tmp_path / "out", path, frame_maps=True, selection=Selection(every=5))
    masks = sorted(file.name for file in (tmp_path / "out/mask/drive").iterdir())
    assert masks == ["000000.png", "000005.png", "photo.png"]


def test_a_photo_and_a_frame_of_one_name_are_refused(tmp_path):
    write_png(tmp_path / "a/000003.png", np.zeros((*SIZE, 3), np.uint8))
    given = Inputs({"a/000003": tmp_path / "a/000003.png"}, {"a": film(tmp_path / "a.mp4")})
    writer = PredictionWriter(tmp_path / "out", FusionRule())
    with pytest.raises(DataError, match="a frame of"):
        predict_all(FindsRed(), given, writer, max_pixels=10_000, frame_maps=True)


def test_a_name_that_is_no_unicode(tmp_path):
    path = film(tmp_path / "drive.mp4").rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    _, done = predicted(tmp_path / "out", path)
    (line,) = json.loads((tmp_path / "out/summary.json").read_text())["videos"]
    assert line["video"] == path.stem == done.lines[0]["video"]
    assert line["frames"] == 10


def test_stopped_by_the_user_it_keeps_what_was_found(tmp_path):
    paths = [film(tmp_path / "drive.mp4"), film(tmp_path / "next.mp4")]
    with pytest.raises(KeyboardInterrupt):
        predicted(tmp_path / "out", *paths, cascade=FindsRed({5: KeyboardInterrupt()}))
    assert [name for name in files(tmp_path / "out") if "next" in name] == []
    assert {"frames/drive.jsonl", "objects/drive.html", "overlay/drive.mp4"} < set(files(tmp_path / "out"))
    (line,) = json.loads((tmp_path / "out/summary.json").read_text())["videos"]
    assert (line["video"], line["frames"], line["ended"]) == ("drive", 4, "interrupted")
    assert len(lines(tmp_path / "out", "drive")) == 4


def test_a_frame_at_which_the_user_stops_is_in_none_of_the_numbers(tmp_path, monkeypatch):
    write = videos.VideoWriter.write

    def stopped(film, picture, time):
        if time > 0.35:
            raise KeyboardInterrupt
        write(film, picture, time)

    path = film(tmp_path / "drive.mp4", red={4, 5})
    monkeypatch.setattr(videos.VideoWriter, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        predicted(tmp_path / "out", path)
    (line,) = json.loads((tmp_path / "out/summary.json").read_text())["videos"]
    assert (line["frames"], line["with_anomaly"], line["stretches"]) == (4, 0, [])


def test_photos_that_were_stopped_are_in_the_summary(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        write_png(tmp_path / f"{name}.png", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    given = Inputs({name: tmp_path / f"{name}.png" for name in "abc"}, {"d": film(tmp_path / "d.mp4")})
    writer = PredictionWriter(tmp_path / "out", FusionRule())
    with pytest.raises(KeyboardInterrupt):
        predict_all(FindsRed({2: KeyboardInterrupt()}), given, writer, max_pixels=10_000)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [line["image"] for line in summary["images"]] == ["a"]
    assert summary["videos"] == []


def test_a_full_disk_stops_at_once_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*_):
        raise DiskError("score", "the disk is full")

    monkeypatch.setattr(PredictionWriter, "write_maps", full)
    with pytest.raises(DiskError):
        predicted(tmp_path / "out", film(tmp_path / "drive.mp4"), frame_maps=True)
    assert files(tmp_path / "out") == ["summary.json"]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["ended"] == "score: the disk is full"


def test_results_of_a_run_before_that_are_not_made_now_go(tmp_path):
    out, path = tmp_path / "out", film(tmp_path / "drive.mp4")
    predicted(out, path, frame_maps=True)
    assert len(files(out)) == 6 + 2 * 10
    (out / "objects/drive/0002.jpg").write_text("of the user")
    predicted(out, path, overlay=False)
    assert files(out) == [
        "frames/drive.jsonl", "objects/drive.jsonl", "objects/drive/0002.jpg", "summary.json",
    ]  # fmt: skip
    (out / "objects/drive/0002.jpg").unlink()
    predicted(out, path)
    path.write_text("<!DOCTYPE html><html>not here</html>")
    predicted(out, path)
    assert files(out) == ["summary.json"]
    assert path.is_file()


def test_a_summary_of_before_does_not_outlive_its_files(tmp_path, monkeypatch):
    out, path = tmp_path / "out", film(tmp_path / "drive.mp4")
    predicted(out, path)

    def killed(*_, **__):
        raise SystemExit(137)

    monkeypatch.setattr("anomdino.prediction.run.predict_videos", killed)
    with pytest.raises(SystemExit):
        predicted(out, path)
    assert "summary.json" not in files(out)


@pytest.mark.parametrize("missing", ["av", "scipy.optimize"])
def test_without_what_videos_need_nothing_begins(tmp_path, monkeypatch, missing):
    write_png(tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint8))
    given, cascade = Inputs({"a": tmp_path / "a.png"}, {"d": film(tmp_path / "d.mp4")}), FindsRed()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BackendMissing, match=r"anomdino\[video\]"):
        predict_all(cascade, given, PredictionWriter(tmp_path / "out", FusionRule()), max_pixels=10_000)
    assert cascade.seen == 0


def test_memory_does_not_grow_with_the_length(tmp_path):
    peaks = []
    for count in (40, 400):
        path = film(tmp_path / f"{count}.mp4", count=count, red=set(range(count // 2)))
        tracemalloc.start()
        predicted(tmp_path / "out", path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 10 * 3 * SIZE[0] * SIZE[1]  # 360 frames more, the bytes of ten


def test_colours_follow_the_scene_slowly(tmp_path, monkeypatch):
    """The median of every second frame is 0.4 higher; the lower end of the colour bar moves a tenth of that."""
    spans = []
    monkeypatch.setattr(videos, "draw_overlay", lambda image, heat, span, **_: spans.append(span) or image)
    with writing_video(tmp_path / "drive.mp4", 10) as writer:
        for index in range(20):
            writer.write(np.full((*SIZE, 3), (150 if index % 2 else 48, 48, 48), np.uint8), index / 10)
    predicted(tmp_path / "out", tmp_path / "drive.mp4")
    low = np.array([span.low for span in spans])
    assert np.abs(np.diff(low)).max() < 0.05
    assert low[-2:].mean() == pytest.approx(0.2, abs=0.06)
    assert [span.high for span in spans] == pytest.approx([1.0 + FusionRule().b] * 20)


@pytest.mark.parametrize(
    ("frames", "stretches"),
    [
        ("", []),
        ("...", []),
        ("#", [[0, 0]]),
        (".##.#", [[1, 2], [4, 4]]),
        ("###", [[0, 2]]),
    ],
)
def test_stretches(frames, stretches):
    found = Stretches()
    for time, frame in enumerate(frames):
        found.add(float(time), frame == "#")
    assert found.found == stretches
