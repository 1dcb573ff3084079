"""The commands evaluate, compare and submit, as a user calls them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from anomdino import submission
from anomdino.benchmarks import Sample, open_benchmark
from anomdino.cli.evaluate import compare, evaluate, submit_app
from anomdino.errors import AnomdinoError, ConfigError, DataError
from anomdino.evaluation import ScoreFolder
from anomdino.evaluation.summary import RESERVED
from anomdino.io.images import write_png
from anomdino.io.locking import one_run_in
from anomdino.io.scores import write_score
from anomdino.metrics import SmiycPixels, exact_curve, sort_scores

app = typer.Typer()
app.command()(evaluate)
app.command()(compare)
app.add_typer(submit_app, name="submit")
SIZE = (60, 80)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def track(tmp_path):
    """Ten AnomalyTrack validation frames with scores of two methods, the second one better."""
    rng = np.random.default_rng(0)
    for index in range(10):
        label = np.zeros(SIZE, np.uint8)
        y, x = rng.integers(5, 40), rng.integers(5, 50)
        label[y : y + 12, x : x + 20] = 1
        label[:4] = 255
        name = f"validation{index:04d}"
        for folder, file, content in (
            ("images", f"{name}.jpg", np.zeros((*SIZE, 3), np.uint8)),
            ("labels_masks", f"{name}_labels_semantic.png", label),
        ):
            path = tmp_path / "track" / folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
        noise = rng.normal(-10, 0.5, SIZE)
        for method, strength in (("weak", 0.5), ("strong", 1.5)):
            score = (noise + strength * (label == 1)).astype(np.float32)
            write_score(tmp_path / method / f"{name}.npz", score)
    return tmp_path


def run_evaluate(track, method, *options):
    return invoke(
        "evaluate", "--scores", track / method, "--benchmark", "AnomalyTrack", "--root", track / "track",
        "--out", track / f"out_{method}", "--bootstrap", 200, *options,
    )  # fmt: skip


def test_evaluate_scores_a_folder_of_maps(track):
    result = run_evaluate(track, "strong")
    assert result.exit_code == 0
    assert "AnomalyTrack: 10 images, protocol smiyc" in result.output
    assert max(len(line) for line in result.output.splitlines() if "results:" not in line) <= 100
    metrics = json.loads((track / "out_strong/metrics.json").read_text())["AnomalyTrack"]["score"]
    assert metrics["AP"] > 0.8
    assert (track / "out_strong/images.parquet").is_file()
    assert (track / "out_strong/plots/roc.json").is_file()


def test_labels_may_come_from_elsewhere(track):
    for path in (track / "track/labels_masks").iterdir():
        (track / "mine").mkdir(exist_ok=True)
        path.rename(track / "mine" / path.name.replace("_labels_semantic", ""))
    (track / "track/labels_masks").rmdir()
    result = run_evaluate(track, "strong", "--labels", track / "mine")
    assert result.exit_code == 0
    with pytest.raises(DataError, match="predicted but not scored"):
        run_evaluate(track, "strong")


def test_unknown_benchmark_lists_the_known_ones(track):
    with pytest.raises(AnomdinoError, match="RoadAnomaly"):
        invoke("evaluate", "--scores", track, "--benchmark", "nothing", "--root", track)
    with pytest.raises(AnomdinoError, match="is needed"):
        invoke("evaluate", "--scores", track, "--benchmark", "RoadAnomaly")
    with pytest.raises(ConfigError, match=r"--params: .*none\.yaml is no file"):
        run_evaluate(track, "strong", "--params", track / "none.yaml")


@pytest.mark.parametrize("name", ["images", "protocol", "detector", "left_out", "clean_images", "seed", " "])
def test_a_name_that_metrics_has_other_uses_for_is_refused(track, name):
    with pytest.raises(ConfigError, match="--name"):
        run_evaluate(track, "strong", "--name", name)
    assert not (track / "out_strong").exists()


def test_every_key_of_a_benchmark_in_metrics_is_reserved(track):
    run_evaluate(track, "strong")
    metrics = json.loads((track / "out_strong/metrics.json").read_text())
    block = metrics.pop("AnomalyTrack")
    assert {*metrics, *block} - {"score"} <= RESERVED


def write_masks(track, value=255, size=SIZE):
    for path in (track / "strong").iterdir():
        write_png(track / f"masks/{path.stem}.png", np.full(size, value, np.uint8))


def test_masks_are_checked_before_anything_is_read(track):
    write_masks(track)
    assert run_evaluate(track, "strong", "--masks", track / "masks").exit_code == 0
    metrics = json.loads((track / "out_strong/metrics.json").read_text())["AnomalyTrack"]
    assert metrics["score_mask"]["missed"] == 10  # all of an image is one component: sIoU below 0.25
    (track / "strong/validation0000.npz").write_bytes(b"damaged: would be the first to be read")
    (track / "masks/validation0007.png").unlink()
    with pytest.raises(DataError, match=r"masks.*lacks the masks of 1 of 10 images: validation0007"):
        run_evaluate(track, "strong", "--masks", track / "masks")
    write_png(track / "masks/validation0007.png", np.zeros((SIZE[0], 3), np.uint8))
    with pytest.raises(DataError, match=r"validation0007\.png.*is 60 x 3, the image .* is 60 x 80"):
        run_evaluate(track, "strong", "--masks", track / "masks")


def test_masks_are_found_by_the_names_that_maps_are_found_by(tmp_path):
    image = tmp_path / "a_leftImg8bit.png"
    write_png(image, np.zeros((*SIZE, 3), np.uint8))
    sample = Sample("scene/a_leftImg8bit", image, frame_id="a")
    write_score(tmp_path / "maps/a.npz", np.zeros(SIZE, np.float32))
    write_png(tmp_path / "masks/a.png", np.full(SIZE, 255, np.uint8))
    source = ScoreFolder(tmp_path / "maps", masks=tmp_path / "masks")
    source.require([sample])
    assert source.predictions(sample)["score"].mask.all()


def test_two_runs_do_not_write_to_one_folder(track):
    with one_run_in(track / "out_weak"), pytest.raises(DataError, match="is held by process"):
        run_evaluate(track, "weak")
    given = ["--scores", track / "weak", "--root", track / "track", "--method", "m", "--expected-count", 0]
    with one_run_in(track / "outputs"), pytest.raises(DataError, match="is held by process"):
        invoke("submit", "smiyc", *given, "-o", track / "outputs")
    assert not list(track.glob("out*/[!.]*"))


def test_compare_finds_a_real_gain_and_none_with_itself(track):
    for method in ("weak", "strong"):
        run_evaluate(track, method)
    result = invoke("compare", track / "out_weak", track / "out_strong", "--json", track / "c.json")
    assert result.exit_code == 0
    assert max(len(line) for line in result.output.splitlines()[1:]) <= 100
    block = json.loads((track / "c.json").read_text())["AnomalyTrack"]["score"]
    gain = block["metrics"]["AP"]
    assert gain["low"] > 0
    assert gain["significant"]
    assert gain["low"] <= gain["difference"] <= gain["high"]
    aps = [
        json.loads((track / f"out_{method}/details.json").read_text())["outputs"]["score"]["pixel"]["pooled"][
            "ap"
        ]
        for method in ("weak", "strong")
    ]
    assert gain["difference"] == pytest.approx(aps[1] - aps[0], abs=0.005)
    assert len(block["changed_most"]) == 5
    invoke("compare", track / "out_weak", track / "out_weak", "--json", track / "c.json")
    same = json.loads((track / "c.json").read_text())["AnomalyTrack"]["score"]["metrics"]["AP"]
    with pytest.raises(DataError, match=r"output 'x' in common; the first has AnomalyTrack \(score\)"):
        invoke("compare", track / "out_weak", track / "out_weak", "--output", "x")
    assert (same["difference"], same["low"], same["high"], same["significant"]) == (0.0, 0.0, 0.0, False)


def test_compare_refuses_folders_without_results(track):
    with pytest.raises(DataError, match=r"no images\.parquet"):
        invoke("compare", track, track)


def submit(track, *options):
    return invoke(
        "submit", "smiyc", "--scores", track / "strong", "--root", track / "track", "--method", "mine",
        "--out", track / "sub", *options,
    )  # fmt: skip


def test_submission_is_read_back_by_the_specification(track):
    result = submit(track, "--split", "validation")
    assert result.exit_code == 0
    folder = track / "sub/anomaly_p/mine/AnomalyTrack-all"
    files = sorted(path.name for path in folder.iterdir())
    assert files == [f"validation{index:04d}.hdf5" for index in range(10)]
    before, after = SmiycPixels(), SmiycPixels()
    scores, stored, labels = [], [], []
    for name in files:
        with h5py.File(folder / name) as file:
            assert list(file) == ["value"]
            value = file["value"]
            assert (value.dtype, value.shape, value.compression) == (np.float16, SIZE, "gzip")
            value = value[()]
        label = np.array(Image.open(track / f"track/labels_masks/{name[:-5]}_labels_semantic.png"))
        score = np.load(track / f"strong/{name[:-5]}.npz")["arr_0"]
        assert value.min() >= 0
        assert value.max() <= 1
        before.update(score, label)
        after.update(value, label)
        scores, stored, labels = [*scores, score], [*stored, value], [*labels, label]
    exact = [
        exact_curve(sort_scores(np.stack(values), np.stack(labels))).average_precision()
        for values in (scores, stored)
    ]
    assert exact[1] == pytest.approx(exact[0], abs=1e-4)
    assert after.compute().ap == pytest.approx(before.compute().ap, abs=2e-3)


def test_rescaling_keeps_many_more_values_apart_than_plain_float16(track):
    submit(track, "--split", "validation")
    files = sorted((track / "strong").glob("*.npz"))
    plain = np.stack([np.load(path)["arr_0"] for path in files]).astype(np.float16)
    stored = []
    for path in files:
        with h5py.File(track / f"sub/anomaly_p/mine/AnomalyTrack-all/{path.stem}.hdf5") as file:
            stored.append(file["value"][()])
    assert len(np.unique(np.stack(stored))) > 8 * len(np.unique(plain))


def test_rescaling_keeps_the_order(track):
    submit(track, "--split", "validation")
    stored = json.loads((track / "sub/mine_AnomalyTrack-all_rescaling.json").read_text())
    assert (np.diff(stored["scores"]) > 0).all()
    assert (np.diff(stored["ranks"]) > 0).all()
    name = "validation0003"
    with h5py.File(track / f"sub/anomaly_p/mine/AnomalyTrack-all/{name}.hdf5") as file:
        value = file["value"][()].ravel().astype(np.float64)
    score = np.load(track / f"strong/{name}.npz")["arr_0"].ravel()
    assert (np.diff(value[np.argsort(score, kind="stable")]) >= 0).all()


def test_a_method_is_a_name_and_no_path(track):
    with pytest.raises(DataError, match="without / or"):
        submit(track, "--split", "validation", "--method", "../../evil")


def test_submission_checks_the_number_of_frames(track):
    with pytest.raises(DataError, match=r"has 10 frames, AnomalyTrack-all has 110\n.*--expected-count"):
        submit(track)
    with pytest.raises(DataError, match="ObstacleTrack: has 10 frames, ObstacleTrack-all has 327"):
        submit(track, "--track", "obstacle", "--split", "test")
    assert submit(track, "--expected-count", 0).exit_code == 0
    (track / "strong/validation0004.npz").unlink()
    with pytest.raises(DataError, match="validation0004"):
        submit(track, "--expected-count", 0)


def test_a_submission_is_of_one_run(track):
    """Scores of the second run are far higher: beside frames of the first one they would rank wrongly."""
    folder = track / "sub/anomaly_p/mine/AnomalyTrack-all"
    assert submit(track, "--split", "validation").exit_code == 0
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    kept = track / "kept"
    for name in ("images", "labels_masks"):
        for path in sorted((track / "track" / name).iterdir())[5:]:
            (kept / name).mkdir(parents=True, exist_ok=True)
            path.rename(kept / name / path.name)
    with pytest.raises(DataError, match=r"(?s)5 files that are not of this run: validation0005\.hdf5.*--out"):
        submit(track, "--expected-count", 0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    shutil.rmtree(folder)
    assert submit(track, "--expected-count", 0).exit_code == 0
    for path in kept.rglob("*.*"):
        path.rename(track / "track" / path.relative_to(kept))
    assert submit(track, "--split", "validation").exit_code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (np.full(SIZE, 1.5, np.float16), r"outside \[0, 1\]"),
        (np.full(SIZE, -0.1, np.float16), r"outside \[0, 1\]"),
        (np.full(SIZE, np.nan, np.float16), r"outside \[0, 1\]"),
        (np.zeros(SIZE, np.float32), "holds float32"),
        (np.zeros(SIZE[::-1], np.float16), r"holds float16 \(80, 60\)"),
    ],
)
def test_a_submission_that_the_benchmark_would_misread_is_refused(tmp_path, value, cause):
    write_png(tmp_path / "images/x.png", np.zeros((*SIZE, 3), np.uint8))
    samples = open_benchmark("folder", tmp_path, name="mine").samples
    submission._write_value(tmp_path / "x.hdf5", value)
    with pytest.raises(DataError, match=cause):
        submission.check_submission([tmp_path / "x.hdf5"], samples)
    with pytest.raises(DataError, match="1 files for 2 frames"):
        submission.check_submission([tmp_path / "x.hdf5"] * 2, samples * 2)


def test_frames_of_one_name_are_refused_before_any_score_is_read(tmp_path):
    for folder in ("a", "b"):
        write_png(tmp_path / f"images/{folder}/x.png", np.zeros((*SIZE, 3), np.uint8))
    benchmark = open_benchmark("folder", tmp_path, name="mine")
    with pytest.raises(DataError, match=r"mine: has several frames for one file: x\.hdf5"):
        submission.write_submission(benchmark, lambda sample: pytest.fail(sample.key), tmp_path / "out", "m")


def test_a_failing_submission_leaves_the_one_of_before(track, monkeypatch):
    folder = track / "sub/anomaly_p/mine/AnomalyTrack-all"
    submit(track, "--split", "validation")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in (track / "strong").iterdir():
        write_score(path, np.random.default_rng(0).normal(size=SIZE).astype(np.float32))
    left, write = [5], submission._write_value

    def disk_full_after_five(path, value):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("disk full")
        write(path, value)

    monkeypatch.setattr(submission, "_write_value", disk_full_after_five)
    with pytest.raises(OSError, match="disk full"):
        submit(track, "--split", "validation")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_submission_that_cannot_take_its_place_leaves_the_one_of_before(track, monkeypatch):
    folder = track / "sub/anomaly_p/mine/AnomalyTrack-all"
    submit(track, "--split", "validation")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename = Path.rename

    def stopped(path, target):
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        submission.write_submission(
            open_benchmark("smiyc_anomaly_track", track / "track", "validation"),
            lambda sample: np.random.default_rng(len(sample.key)).normal(size=SIZE).astype(np.float32),
            track / "sub",
            "mine",
        )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_compare_reads_a_git_revision_from_dvcs_cache(track, monkeypatch):
    """The weak run is committed with DVC, the strong one lies in the working tree."""
    if importlib.util.find_spec("dvc") is None:
        pytest.skip("DVC is not installed")
    project = track / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def shell(*command):
        subprocess.run(command, check=True, capture_output=True)

    shell("git", "init", "-q")
    shell("git", "config", "user.email", "a@b.c")
    shell("git", "config", "user.name", "a")
    shell("dvc", "init", "-q")
    for method in ("weak", "strong"):
        run_evaluate(track, method)
    shutil.copytree(track / "out_weak", "data/predictions/AnomalyTrack")
    shell("dvc", "add", "-q", "data/predictions")
    shell("git", "add", "-A")
    shell("git", "commit", "-qm", "weak")
    shutil.rmtree("data/predictions")
    shutil.copytree(track / "out_strong", "data/predictions/AnomalyTrack")
    monkeypatch.setenv("PATH", os.defpath)  # dvc is that of the running Python, in no folder of the path
    result = invoke("compare", "HEAD", ".", "--json", track / "c.json")
    assert result.exit_code == 0
    metrics = json.loads((track / "c.json").read_text())["AnomalyTrack"]["score"]["metrics"]
    assert metrics["AP"]["difference"] > 0.1
    with pytest.raises(DataError, match="no revision with results .*unknown Git revision 'nothing'"):
        invoke("compare", "nothing", ".")
