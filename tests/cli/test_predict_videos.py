"""`anomdino predict` with videos."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from anomdino.cli.main import app
from anomdino.cli.predict import video_line
from anomdino.errors import AnomdinoError
from anomdino.io.images import write_png
from anomdino.io.scores import read_score
from anomdino.io.video import read_frames, writing_video

pytest.importorskip("av")


@pytest.fixture
def drive(tmp_path):
    """A folder with a photo and a video of six frames; its third frame is the photo."""
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.repeat(rng.integers(40, 216, (6, 10, 16, 3), dtype=np.uint8), 4, 1), 4, 2)
    write_png(tmp_path / "drive" / "third.png", scenes[2])
    with writing_video(tmp_path / "drive" / "film.mp4", 2) as film:
        for index, scene in enumerate(scenes):
            film.write(scene, index / 2)
    return tmp_path / "drive"


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments), "--no-boxes", "--device", "cpu"])


def test_a_folder_of_photos_and_videos(models, drive, tmp_path):
    out = tmp_path / "out"
    result = predict(drive, "-o", out, "--models", models, "--output", "raw", "--frames")
    assert result.exit_code == 0, result.output
    assert "predict: 1 photo, " in result.output
    assert "film: 6 frames of 64 x 40" in result.output
    assert len((out / "frames/film.jsonl").read_text().splitlines()) == 6
    assert len(list(read_frames(out / "overlay/film.mp4"))) == 6
    photo, frame = (read_score(out / "score" / name) for name in ("third.npz", "film/000002.npz"))
    others = [read_score(out / "score" / "film" / f"{index:06d}.npz") for index in (0, 1, 3, 4, 5)]
    off = np.abs(photo - frame).mean()  # the codec changes pixels a little
    assert off < 0.5 * min(np.abs(photo - other).mean() for other in others)
    summary = json.loads((out / "summary.json").read_text())
    assert [len(summary[kind]) for kind in ("images", "videos", "skipped")] == [1, 1, 0]


def test_every_second_frame_of_a_stretch(models, drive, tmp_path):
    out = tmp_path / "out"
    asked = [drive / "film.mp4", "-o", out, "--models", models, "--every", 2, "--start", 0.5, "--end", 2]
    result = predict(*asked, "--no-overlay")
    assert result.exit_code == 0, result.output
    assert "photos" not in result.output
    frames = [json.loads(line)["frame"] for line in (out / "frames/film.jsonl").read_text().splitlines()]
    assert frames == [1, 3]
    assert not (out / "overlay").exists()


def test_an_end_before_the_start_is_refused_before_anything_is_loaded(drive, tmp_path):
    result = predict(drive, "-o", tmp_path / "out", "--models", tmp_path, "--start", 3, "--end", 2)
    assert isinstance(result.exception, AnomdinoError)
    assert "not after the start" in str(result.exception)


def test_a_file_that_is_no_video_fails_clearly(models, tmp_path):
    (tmp_path / "film.mp4").write_text("hello")
    result = predict(tmp_path / "film.mp4", "-o", tmp_path / "out", "--models", models)
    assert result.exit_code == 2
    (skipped,) = json.loads((tmp_path / "out/summary.json").read_text())["skipped"]
    assert "no video, or damaged" in skipped["reason"]


def test_the_line_of_a_video_names_the_first_stretches():
    line = {"video": "a/film", "frames": 9, "width": 64, "height": 40, "ended": "", "skipped": 0}
    line |= {"frames_per_second": 2.0, "objects": 7, "seen_again": 2}
    found = [[0.5, 0.5], [1, 2.25], [3, 4], [5, 6], [7, 8], [9, 10]]
    text = video_line({**line, "with_anomaly": 6, "stretches": found})
    assert text == (
        "a/film: 9 frames of 64 x 40, 6 with an anomaly (seconds 0.5, 1-2.25, 3-4, 5-6, 7-8 ...), "
        "7 objects (2 seen again), 2.00 frames/s"
    )
    assert "seconds" not in video_line({**line, "with_anomaly": 0, "stretches": []})
    stopped = {**line, "with_anomaly": 0, "stretches": [], "ended": "interrupted", "skipped": 2}
    assert "40, interrupted, 2 skipped, 0 with" in video_line(stopped)


def test_photos_of_a_folder_in_sequence(models, drive, tmp_path):
    out, source = tmp_path / "out", tmp_path / "town" / "noon"
    for frame in read_frames(drive / "film.mp4"):
        write_png(source / f"{frame.index + 7}.png", frame.image)
    (source / "9.png").write_bytes(b"")
    everything = ["--threshold", "fixed:-1", "--min-component", 0]
    result = predict(tmp_path / "town", "-o", out, "--models", models, "--sequence", 4, *everything)
    assert result.exit_code == 0, result.output
    assert (
        "noon: 5 frames of 64 x 40, 5 with an anomaly (seconds 0-1.25), 1 object (1 seen again)"
        in result.output
    )
    lines = [json.loads(line) for line in (out / "frames/noon.jsonl").read_text().splitlines()]
    assert [(line["photo"], line["time"]) for line in lines] == [
        ("7.png", 0), ("8.png", 0.25), ("10.png", 0.75), ("11.png", 1.0), ("12.png", 1.25),
    ]  # fmt: skip
    assert [line["objects"][0]["id"] for line in lines] == [1] * 5
    times = [frame.time for frame in read_frames(out / "overlay/noon.mp4")]
    assert times == pytest.approx([0, 0.25, 0.75, 1, 1.25], abs=1e-3)
    assert (out / "objects/noon.html").is_file()
    assert not (out / "score").exists()
    (line,) = json.loads((out / "summary.json").read_text())["videos"]
    assert (line["video"], line["path"], line["rate"]) == ("noon", str(source), 4.0)
    refused = predict(source, "-o", out, "--models", models, "--sequence", 0)
    assert "frames a second" in str(refused.exception)
