import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anomdino.adt import plugin
from anomdino.adt.box_score import choose_for_objects
from anomdino.adt.dataset import digest, list_items, read_item
from anomdino.adt.evidence import fit, weighed
from anomdino.adt.floor_search import search_floor
from anomdino.adt.fusion import FusionRule, fuse
from anomdino.adt.plugin import boxes_as_given, fuse_folder, oriented, refit
from anomdino.adt.rule_search import search
from anomdino.adt.store import load_adt, save_adt
from anomdino.adt.thresholds import Threshold, ThresholdKind
from anomdino.adt.tuning import apply_choice, fit_evidence
from anomdino.errors import AnomdinoError, ConfigError, DataError, ProtocolError
from anomdino.io.boxes import Boxes, read_box_results, write_box_results
from anomdino.io.images import read_image, read_label, write_png
from anomdino.io.maps import list_maps, read_map
from anomdino.io.scores import read_score, write_score
from anomdino.protocol import mark_evaluation_only
from anomdino.release import released_folder
from tests.io.test_maps import write


@pytest.fixture
def app():
    import typer

    from anomdino.cli import fuse as commands

    app = typer.Typer()
    for command in (commands.fuse, commands.calibrate, commands.tune):
        app.command()(command)
    return app


def run(app, *arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def rescale(source, target, function):
    for key, path in list_maps(source).items():
        target.mkdir(parents=True, exist_ok=True)
        np.save(target / f"{key}.npy", function(read_map(path)))


@pytest.mark.parametrize(
    ("function", "normal"),
    [
        (lambda s: 1000 * s + 5, False),
        (lambda s: -s, True),
        (lambda s: (0.01 * s - 3).astype(np.float64), False),
    ],
)
def test_after_refitting_scale_offset_and_sign_do_not_matter(model, make_set, tmp_path, function, normal):
    files = make_set(images=4)
    rescale(files.scores, tmp_path / "other", function)
    own, other = list_maps(files.scores), list_maps(tmp_path / "other")
    boxes = read_box_results(files.boxes, own)
    fuse_folder(own, boxes, refit(model, own.values()), tmp_path / "a")
    fuse_folder(other, boxes, refit(model, other.values(), higher_is_anomalous=not normal), tmp_path / "b")
    for key in own:
        first, second = (read_score(tmp_path / name / "score" / f"{key}.npz") for name in "ab")
        np.testing.assert_allclose(first, second, atol=2e-4)
        masks = [read_label(tmp_path / name / "mask" / f"{key}.png") for name in "ab"]
        assert np.mean(masks[0] != masks[1]) < 1e-3
        assert set(np.unique(masks[0])) <= {0, 255}


def test_orientation_belongs_to_the_maps(model, make_set):
    files = make_set(images=2)
    path = list_maps(files.scores)["000"]
    turned = oriented(model, higher_is_anomalous=False)
    from anomdino.adt.fusion import fuse

    one = fuse(read_map(path), Boxes.empty(), model)
    two = fuse(-read_map(path), Boxes.empty(), turned)
    np.testing.assert_array_equal(one.score, two.score)
    assert oriented(model, higher_is_anomalous=True) is model


def test_fuse_writes_scores_masks_and_what_made_them(model, make_set, tmp_path, app):
    files = make_set(images=3)
    save_adt(model, tmp_path / "adt")
    for key in list_maps(files.scores):
        write_png(tmp_path / "images" / f"{key}.png", np.zeros((64, 96, 3), np.uint8))
    common = ["--scores", files.scores, "--boxes", files.boxes, "--model", tmp_path / "adt"]
    out = run(
        app,
        "fuse",
        *common,
        "--images",
        tmp_path / "images",
        "-o",
        tmp_path / "out",
        "--thresholds",
        "--k",
        0.5,
    )
    assert "3 images, 0 without boxes" in out
    summary = json.loads((tmp_path / "out" / "fusion.json").read_text())
    assert summary["rule"]["k"] == 0.5
    assert summary["threshold"] == {"kind": "adt"}
    score = read_score(tmp_path / "out" / "score" / "001.npz")
    assert score.shape == (64, 96)
    assert read_score(tmp_path / "out" / "threshold" / "001.npz").min() > 0.3
    assert "3 without boxes" in run(app, "fuse", *common[:2], *common[4:], "-o", tmp_path / "none")


def test_calibrate_stores_a_threshold_that_fuse_uses(model, make_set, tmp_path, app):
    files = make_set(images=20)
    save_adt(model, tmp_path / "adt")
    common = ["--scores", files.scores, "--boxes", files.boxes]
    labelled = [*common, "--labels", files.labels, "--model", tmp_path / "adt"]
    out = run(app, "calibrate", *labelled, "--threshold", "fpr:0.1", "-o", tmp_path / "new")
    assert "threshold fpr:0.1" in out
    threshold = load_adt(tmp_path / "new").threshold
    run(app, "fuse", *common, "--model", tmp_path / "new", "-o", tmp_path / "out")
    alarms = normal = 0
    for key in list_maps(files.scores):
        label = read_label(files.labels / f"{key}.png")
        mask = read_label(tmp_path / "out" / "mask" / f"{key}.png") == 255
        score = read_score(tmp_path / "out" / "score" / f"{key}.npz")
        np.testing.assert_array_equal(mask, score >= np.float32(threshold.value))
        alarms, normal = alarms + mask[label == 0].sum(), normal + (label == 0).sum()
    assert 0.09 < alarms / normal <= 0.1
    assert json.loads((tmp_path / "out" / "fusion.json").read_text())["threshold"] == threshold.as_dict()
    with pytest.raises(AnomdinoError, match="belongs to fused"):
        run(app, "fuse", *common, "--model", tmp_path / "new", "-o", tmp_path / "x", "--output", "soft")
    with pytest.raises(AnomdinoError, match="not stored"):
        run(app, "fuse", *common, "--model", tmp_path / "new", "-o", tmp_path / "x", "--threshold", "f1")
    run(
        app, "fuse", *common, "--model", tmp_path / "new", "-o", tmp_path / "fixed", "--threshold", "fixed:99"
    )
    assert not (read_label(tmp_path / "fixed" / "mask" / "000.png")).any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--b", 5], "^b: is 5.0"),
        (["--box-score", 0], "^box_score"),
        (["--output", "raw"], "belongs to fused"),
        ([], "calibrated with boxes, and is to be used without"),
    ],
)
def test_a_stored_threshold_is_refused_for_other_scores(model, make_set, tmp_path, app, options, reason):
    files = make_set(images=3)
    save_adt(model, tmp_path / "adt")
    common = ["--scores", files.scores, "--boxes", files.boxes]
    asked = [*common, "--labels", files.labels, "--model", tmp_path / "adt", "--threshold", "fpr:0.1"]
    run(app, "calibrate", *asked, "-o", tmp_path / "new")
    given = common if options else common[:2]
    with pytest.raises(ConfigError, match=reason):
        run(app, "fuse", *given, "--model", tmp_path / "new", "-o", tmp_path / "x", *options)
    assert not list((tmp_path / "x").glob("[!.]*"))
    again = ["--model", tmp_path / "new", "-o", tmp_path / "x", *options, "--threshold", "adt"]
    run(app, "fuse", *given, *again)
    assert json.loads((tmp_path / "x/fusion.json").read_text())["threshold"] == {"kind": "adt"}


def test_what_conformal_miss_promises_to_find_is_not_removed(model, make_set, tmp_path, app):
    files = make_set(images=12)
    save_adt(replace(model, rule=replace(model.rule, min_component=3000)), tmp_path / "adt")
    common = ["--scores", files.scores, "--boxes", files.boxes]
    asked = [
        *common,
        "--labels",
        files.labels,
        "--model",
        tmp_path / "adt",
        "--threshold",
        "conformal_miss:0.1",
    ]
    run(app, "calibrate", *asked, "-o", tmp_path / "new")
    run(app, "fuse", *common, "--model", tmp_path / "new", "-o", tmp_path / "out")
    value = load_adt(tmp_path / "new").threshold.value
    for key in list_maps(files.scores):
        score = read_score(tmp_path / f"out/score/{key}.npz")
        mask = read_label(tmp_path / f"out/mask/{key}.png") == 255
        np.testing.assert_array_equal(mask, score >= np.float32(value))
    with pytest.raises(ConfigError, match=r"--min-component.*conformal_miss"):
        run(app, "fuse", *common, "--model", tmp_path / "new", "-o", tmp_path / "x", "--min-component", 4000)


def test_results_of_other_maps_go_where_a_finished_run_wrote_them(model, make_set, tmp_path):
    files, out = make_set(images=3), tmp_path / "out"
    maps = list_maps(files.scores)
    fuse_folder(maps, {}, model, out, write_thresholds=True)
    fuse_folder({"001": maps["001"]}, {}, model, out)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "fusion.json",
        "mask/001.png",
        "score/001.npz",
    ]
    write_score(tmp_path / "elsewhere" / "mine.npz", np.eye(4, dtype=np.float32))
    (out / "score" / "linked").symlink_to(tmp_path / "elsewhere")
    fuse_folder(maps, {}, model, out)
    assert (tmp_path / "elsewhere" / "mine.npz").is_file()
    (out / "score" / "linked").unlink()
    write_score(out / "score" / "mine.npz", np.eye(4, dtype=np.float32))
    (out / "fusion.json").unlink()
    with pytest.raises(DataError, match=r"1 results of other maps, mine\.npz"):
        fuse_folder(maps, {}, model, out)
    assert (out / "score" / "mine.npz").is_file()


@pytest.mark.parametrize(
    ("function", "fits"),
    [
        (lambda s: s, True),
        (lambda s: s - 1, True),
        (lambda s: -s, False),
        (lambda s: 50 * s + 300, False),
        (lambda s: 0.001 * s - 6, False),
    ],
)
def test_maps_unlike_those_that_the_model_knows_are_noticed(
    model, make_set, tmp_path, caplog, function, fits
):
    rescale(make_set(images=3).scores, tmp_path / "other", function)
    fuse_folder(list_maps(tmp_path / "other"), {}, model, tmp_path / "out")
    assert ("anomdino calibrate" in caplog.text) == (not fits)


def test_maps_that_were_turned_are_known_by_a_model_that_was_turned(model, make_set, tmp_path, caplog):
    rescale(make_set(images=3).scores, tmp_path / "other", lambda s: -s)
    fuse_folder(
        list_maps(tmp_path / "other"), {}, oriented(model, higher_is_anomalous=False), tmp_path / "out"
    )
    assert "anomdino calibrate" not in caplog.text


def test_a_run_that_breaks_off_leaves_no_summary_and_a_finished_one_counts_pixels(
    model, make_set, tmp_path, monkeypatch
):
    files, out = make_set(images=3), tmp_path / "out"
    maps = list_maps(files.scores)
    done = fuse_folder(maps, {}, model, out)
    masks = [read_label(path) for path in sorted((out / "mask").iterdir())]
    assert {*np.unique(masks)} == {0, 255}
    assert done.predicted_pixels == int((np.stack(masks) == 255).sum())
    monkeypatch.setattr(plugin, "write_png", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fuse_folder(maps, {}, model, out)
    assert not (out / "fusion.json").exists()


def test_a_threshold_of_before_is_in_the_way_of_neither_calibrating_nor_refitting(model, make_set):
    files = make_set(images=4)
    maps = list_maps(files.scores)
    old = Threshold(0.5, "f1", "raw", {"set": "other"}, {"output": "raw"}, boxes=False)
    found, expected = (
        plugin.calibrate_threshold(one, maps, files.labels, {}, ThresholdKind.parse("fpr:0.1"))
        for one in (replace(model, threshold=old), model)
    )
    assert found == expected
    assert refit(replace(model, threshold=old), maps.values()).threshold is None


def draw_photos(files, folder):
    """Photos on which the objects have a colour of their own."""
    for path in sorted(files.labels.glob("*.png")):
        photo = np.full((64, 96, 3), (90, 95, 100), np.uint8)
        photo[read_label(path) == 1] = (200, 60, 30)
        write_png(folder / path.name, photo)
    return folder


def test_fuse_outlines_objects_by_the_photos(model, make_set, tmp_path, app, caplog):
    files = make_set(images=3)
    photos = draw_photos(files, tmp_path / "photos")
    save_adt(replace(model, rule=FusionRule(outline=True)), tmp_path / "adt")
    common = ["--scores", files.scores, "--boxes", files.boxes, "--model", tmp_path / "adt"]
    run(app, "fuse", *common, "--images", photos, "-o", tmp_path / "out")
    boxes, outlined = read_box_results(files.boxes, list_maps(files.scores)), 0
    for key, path in list_maps(files.scores).items():
        alone = fuse(
            read_map(path), boxes[key], load_adt(tmp_path / "adt"), image=read_image(photos / f"{key}.png")
        )
        np.testing.assert_array_equal(read_score(tmp_path / "out/score" / f"{key}.npz"), alone.score)
        np.testing.assert_array_equal(read_label(tmp_path / "out/mask" / f"{key}.png") == 255, alone.mask)
        outlined += int(alone.surfaces.outline.sum())
    assert outlined
    assert json.loads((tmp_path / "out/fusion.json").read_text())["rule"]["outline"]
    assert not caplog.records
    run(app, "fuse", *common, "-o", tmp_path / "without")
    assert "no images are given" in caplog.text
    run(app, "fuse", *common, "--no-outline", "-o", tmp_path / "asked")
    for name in ("001", "002"):
        scores = [read_score(tmp_path / part / "score" / f"{name}.npz") for part in ("without", "asked")]
        np.testing.assert_array_equal(*scores)
    with pytest.raises(AnomdinoError, match="needs the photos"):
        run(app, "fuse", *common, "--outline", "-o", tmp_path / "x")


def test_boxes_of_a_better_detector_count_as_they_are(model, make_set, tmp_path, app):
    files = make_set(images=3)
    weighing = fit_evidence(list_items(files), replace(model, threshold=None))
    weighing.net.box_weights.copy_(torch.tensor([-50.0, 0, 0, 0]))  # no box holds an object
    save_adt(replace(weighing, rule=model.rule), tmp_path / "adt")
    common = ["--scores", files.scores, "--boxes", files.boxes, "--model", tmp_path / "adt"]
    assert "3 without boxes" in run(app, "fuse", *common, "-o", tmp_path / "weighed")
    assert "0 without boxes" in run(app, "fuse", *common, "--boxes-as-given", "-o", tmp_path / "given")
    boxes = read_box_results(files.boxes, list_maps(files.scores))
    for key, path in list_maps(files.scores).items():
        plain = fuse(read_map(path), boxes[key], model)
        np.testing.assert_array_equal(read_score(tmp_path / "given/score" / f"{key}.npz"), plain.score)
        np.testing.assert_array_equal(read_label(tmp_path / "given/mask" / f"{key}.png") == 255, plain.mask)
    given = boxes_as_given(replace(weighing, threshold=Threshold(0.5, "fixed", "fused", {})))
    assert given.threshold is None
    assert boxes_as_given(given) is given
    assert weighing.net.box_weights is not None  # the model that was given stays


def test_a_threshold_can_be_calibrated_for_boxes_as_they_are(model, make_set, tmp_path, app, caplog):
    files = make_set(images=8)
    weighing = replace(fit_evidence(list_items(files), model), rule=model.rule)
    save_adt(weighing, tmp_path / "adt")
    common = ["--scores", files.scores, "--boxes", files.boxes]
    labelled = [*common, "--labels", files.labels, "--model", tmp_path / "adt"]
    run(app, "calibrate", *labelled, "--threshold", "f1", "--boxes-as-given", "-o", tmp_path / "given")
    stored = load_adt(tmp_path / "given")
    assert stored.net.box_weights is None
    run(app, "fuse", *common, "--model", tmp_path / "given", "--boxes-as-given", "-o", tmp_path / "out")
    summary = json.loads((tmp_path / "out/fusion.json").read_text())
    assert summary["threshold"] == stored.threshold.as_dict()
    assert not caplog.records
    run(app, "calibrate", *labelled, "--threshold", "f1", "-o", tmp_path / "weighed")
    run(app, "fuse", *common, "--model", tmp_path / "weighed", "--boxes-as-given", "-o", tmp_path / "other")
    assert "stored threshold f1" in caplog.text
    run(app, "tune", *labelled, "--all", "--boxes-as-given", "-o", tmp_path / "tuned")
    assert load_adt(tmp_path / "tuned").net.box_weights is None
    with pytest.raises(ConfigError, match="--box-evidence"):
        run(app, "tune", *labelled, "--all", "--boxes-as-given", "--box-evidence", "-o", tmp_path / "tuned")


def test_a_threshold_is_calibrated_on_outlined_scores(model, make_set, tmp_path, app):
    files = make_set(images=12)
    photos = draw_photos(files, tmp_path / "photos")
    save_adt(replace(model, rule=FusionRule(outline=True, k=0.5, b=0.4)), tmp_path / "adt")
    labelled = ["--scores", files.scores, "--boxes", files.boxes, "--labels", files.labels]
    labelled += ["--images", photos, "--model", tmp_path / "adt", "--threshold", "f1"]
    run(app, "calibrate", *labelled, "--no-refit", "-o", tmp_path / "new")
    calibrated, scores, labels = load_adt(tmp_path / "new"), [], []
    boxes = read_box_results(files.boxes, list_maps(files.scores))
    for key, path in list_maps(files.scores).items():
        label = read_label(files.labels / f"{key}.png")
        image = read_image(photos / f"{key}.png")
        scores.append(fuse(read_map(path), boxes[key], calibrated, image=image).score[label < 2])
        labels.append(label[label < 2])
    score, label = np.concatenate(scores), np.concatenate(labels)
    f1 = [2 * (label[score >= t]).sum() / ((score >= t).sum() + label.sum()) for t in np.unique(score)[::50]]
    chosen = score >= np.float32(calibrated.threshold.value)
    assert 2 * label[chosen].sum() / (chosen.sum() + label.sum()) >= max(f1) - 1e-3
    write_png(photos / "003.png", np.zeros((64, 95, 3), np.uint8))
    with pytest.raises(DataError, match=r"003.*64 x 95"):
        run(app, "calibrate", *labelled, "--no-refit", "-o", tmp_path / "new")


def test_tune_outlines_where_it_is_asked_to(model, make_set, tmp_path, app):
    files = make_set(images=5)
    photos = draw_photos(files, tmp_path / "photos")
    save_adt(model, tmp_path / "adt")
    asked = ["--scores", files.scores, "--labels", files.labels, "--boxes", files.boxes, "--all"]
    asked += ["--model", tmp_path / "adt", "--images", photos]
    run(app, "tune", *asked, "--outline", "--floor", "-o", tmp_path / "new")
    tuned = load_adt(tmp_path / "new")
    items = list_items(replace(files, index=None, images=photos))
    assert tuned.rule.outline
    outlining = replace(model, rule=replace(model.rule, outline=True))
    assert tuned.rule.mask_floor == search_floor(items, outlining).choice.floor
    found = search(items, replace(outlining, rule=replace(outlining.rule, mask_floor=tuned.rule.mask_floor)))
    assert (tuned.rule.k, tuned.rule.b) == (found.choice.k, found.choice.b)
    assert found.curve != search(list_items(files), tuned).curve  # without photos nothing is outlined
    run(app, "tune", *asked, "-o", tmp_path / "plain")
    assert not load_adt(tmp_path / "plain").rule.outline
    before = digest(items)
    assert before != digest(list_items(replace(files, index=None)))
    write_png(photos / "002.png", np.zeros((64, 96, 3), np.uint8))
    assert digest(items) != before
    for photo in sorted(photos.iterdir()):
        photo.unlink()
        with pytest.raises(DataError, match="image"):
            run(app, "tune", *asked, "--outline", "-o", tmp_path / "new")
    photos.rmdir()
    with pytest.raises(ConfigError, match="(?s)--images.*--no-outline"):
        run(app, "tune", *asked, "--outline", "-o", tmp_path / "new")


def test_a_new_rule_drops_the_threshold_that_belonged_to_the_old_one(model, make_set):
    threshold = Threshold(0.5, "f1", "fused", {})
    tuned = replace(model, threshold=threshold)
    items = list_items(make_set(images=4))
    found = search(items, tuned, ks=[0.4], bs=[0.3])
    assert apply_choice(tuned, found).threshold is None
    kept = replace(tuned, rule=replace(tuned.rule, k=0.4, b=0.3))
    assert apply_choice(kept, found).threshold == threshold


def test_calibration_never_reads_evaluation_data(model, make_set, tmp_path, app):
    files = make_set(images=3)
    save_adt(model, tmp_path / "adt")
    mark_evaluation_only(files.scores)
    with pytest.raises(ProtocolError):
        run(app, "calibrate", "--scores", files.scores, "--model", tmp_path / "adt", "-o", tmp_path / "new")
    with pytest.raises(ProtocolError):
        run(
            app, "tune", "--scores", files.scores, "--labels", files.labels, "--boxes", files.boxes,
            "--model", tmp_path / "adt", "--all", "-o", tmp_path / "new",
        )  # fmt: skip


def test_tune_writes_choice_and_curve(model, make_set, tmp_path, app):
    files = make_set(images=6)
    save_adt(model, tmp_path / "adt")
    arguments = [
        "--scores",
        files.scores,
        "--labels",
        files.labels,
        "--boxes",
        files.boxes,
        "--index",
        files.index,
    ]
    out = run(app, "tune", *arguments, "--model", tmp_path / "adt", "--all", "-o", tmp_path / "new")
    stored = json.loads((tmp_path / "new" / "tuning.json").read_text())
    assert "6 images" in out
    assert len(stored["curve"]) == 48
    assert load_adt(tmp_path / "new").rule.k == stored["choice"]["k"]
    with pytest.raises(AnomdinoError, match="held out"):
        run(app, "tune", *arguments, "--model", tmp_path / "adt", "-o", tmp_path / "new")


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".hdf5"])
def test_every_command_reads_maps_of_every_format(model, make_set, tmp_path, app, suffix):
    files = make_set(images=3)
    save_adt(model, tmp_path / "adt")
    for key, path in list_maps(files.scores).items():
        write(tmp_path / "other" / f"{key}{suffix}", read_map(path))
    for scores, out in ((files.scores, tmp_path / "a"), (tmp_path / "other", tmp_path / "b")):
        given = ["--scores", scores, "--boxes", files.boxes]
        run(
            app,
            "tune",
            *given,
            "--labels",
            files.labels,
            "--model",
            tmp_path / "adt",
            "--all",
            "-o",
            out / "tuned",
        )
        run(app, "calibrate", *given, "--model", out / "tuned", "-o", out / "calibrated")
        run(app, "fuse", *given, "--model", out / "calibrated", "-o", out / "fused")
    for key in list_maps(files.scores):
        one, two = (read_score(tmp_path / part / f"fused/score/{key}.npz") for part in "ab")
        np.testing.assert_array_equal(one, two)


def test_one_bad_map_leaves_the_results_of_before(model, make_set, tmp_path):
    files = make_set(images=3)
    fuse_folder(list_maps(files.scores), {}, model, tmp_path / "out")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.*"))}
    write_score(files.scores / "002.npz", np.ones((5, 7), np.float32))
    with pytest.raises(DataError, match="constant"):
        fuse_folder(list_maps(files.scores), {}, model, tmp_path / "out", rule=FusionRule(output="raw"))
    assert {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.*"))} == before


@pytest.mark.parametrize("below", [".", "out"])
def test_results_and_maps_in_one_folder_are_refused(model, make_set, tmp_path, app, below):
    files = make_set(images=2)
    save_adt(model, tmp_path / "adt")
    (tmp_path / "linking").mkdir()
    (tmp_path / "linking/score").symlink_to(files.scores)
    for scores, out in (
        (files.scores, files.scores / below),
        (tmp_path / "x/score", tmp_path / "x"),
        (files.scores, tmp_path / "linking"),
    ):
        with pytest.raises(ConfigError, match="maps and results"):
            run(app, "fuse", "--scores", scores, "--model", tmp_path / "adt", "-o", out)


def test_a_calibration_label_of_other_values_is_named(model, make_set, tmp_path, app):
    files = make_set(images=2)
    save_adt(model, tmp_path / "adt")
    write_png(files.labels / "001.png", np.full(read_label(files.labels / "001.png").shape, 2, np.uint8))
    with pytest.raises(DataError, match=r"001\.png.*\{2: "):
        run(
            app, "calibrate", "--scores", files.scores, "--labels", files.labels, "--threshold", "fpr:0.05",
            "--model", tmp_path / "adt", "-o", tmp_path / "new",
        )  # fmt: skip


@pytest.mark.skipif(released_folder() is None, reason="this checkout carries no released model")
@pytest.mark.parametrize("asked", [[], ["--model", "released"]])
def test_without_a_trained_model_the_released_one_is_taken(make_set, tmp_path, app, monkeypatch, asked):
    files = make_set(images=1)
    monkeypatch.chdir(tmp_path)
    run(app, "fuse", "--scores", files.scores, *asked, "-o", "out")
    stored = json.loads((tmp_path / "out/fusion.json").read_text())
    assert stored["statistics"] == asdict(load_adt(released_folder() / "models/adt").net.statistics)


def test_tune_by_folder_has_a_curve_of_every_kind(model, make_set, tmp_path, app):
    save_adt(model, tmp_path / "adt")
    boxes, sizes = {}, {}
    for kind, images in (("composed", 5), ("photos", 4)):
        files = make_set(kind, images=images)
        for part, folder in (("scores", files.scores), ("labels", files.labels)):
            shutil.copytree(folder, tmp_path / part / kind)
        keys = [path.stem for path in sorted(files.labels.glob("*.png"))]
        for key, found in read_box_results(files.boxes, keys).items():
            boxes[f"{kind}/{key}"], sizes[f"{kind}/{key}"] = found, (64, 96)
    write_box_results(tmp_path / "boxes.json", boxes, sizes)
    out = run(
        app, "tune", "--scores", tmp_path / "scores", "--labels", tmp_path / "labels", "--all", "--by-folder",
        "--boxes", tmp_path / "boxes.json", "--model", tmp_path / "adt", "-o", tmp_path / "new",
    )  # fmt: skip
    assert "5 images in composed" in out
    assert "4 images in photos" in out
    stored = json.loads((tmp_path / "new" / "tuning.json").read_text())["kinds"]
    tuned = load_adt(tmp_path / "new")
    assert list(stored) == ["composed", "photos"]
    for kind in stored.values():
        assert len(kind["curve"]) == 48
        assert (kind["choice"]["k"], kind["choice"]["b"]) == (tuned.rule.k, tuned.rule.b)
    assert set(tuned.provenance["tuning"]["kinds"]) == {"composed", "photos"}


def test_tune_fits_boxes_floor_and_rule_in_this_order(model, make_set, tmp_path, app):
    """A model trained without weights of boxes gets those that training would have fitted; the network stays."""
    files = make_set(images=12)
    save_adt(model, tmp_path / "adt")
    out = run(
        app, "tune", "--scores", files.scores, "--labels", files.labels, "--boxes", files.boxes,
        "--model", tmp_path / "adt", "--all", "--box-evidence", "--floor", "-o", tmp_path / "new",
    )  # fmt: skip
    assert "boxes weighed by" in out
    assert "mask floor" in out
    tuned, items = load_adt(tmp_path / "new"), list_items(replace(files, index=None))
    for name, tensor in model.net.state_dict().items():
        assert torch.equal(tuned.net.state_dict()[name], tensor)
    weights = fit(((*read_item(item), item.boxes) for item in items), tuned.net)
    np.testing.assert_allclose(tuned.net.box_weights.numpy(), weights, rtol=1e-5)
    known = [(weighed(i.boxes.clipped((64, 96)), read_item(i)[0], tuned.net), read_item(i)[1]) for i in items]
    assert tuned.rule.box_score == choose_for_objects(known)
    floors = search_floor(items, replace(tuned, rule=replace(model.rule, box_score=tuned.rule.box_score)))
    assert tuned.rule.mask_floor == floors.choice.floor
    choice = search(items, tuned).choice
    assert (tuned.rule.k, tuned.rule.b) == (choice.k, choice.b)


def test_boxes_that_do_not_tell_are_refused(model, make_set):
    items = [replace(item, boxes=Boxes.empty()) for item in list_items(make_set(images=3))]
    with pytest.raises(DataError, match=r"boxes.*none"):
        fit_evidence(items, model)


def test_what_cannot_be_fused_is_refused_with_path_and_reason(model, make_set, tmp_path):
    files = make_set(images=2)
    write_png(tmp_path / "images" / "000.png", np.zeros((64, 97, 3), np.uint8))
    write_png(tmp_path / "images" / "001.png", np.zeros((64, 96, 3), np.uint8))
    from anomdino.io.listing import list_images

    images = list_images(tmp_path / "images")
    with pytest.raises(DataError, match=r"000\.npz: is 64 x 96, the image is 64 x 97"):
        fuse_folder(list_maps(files.scores), {}, model, tmp_path / "out", images=images)
    (tmp_path / "images" / "001.png").unlink()
    with pytest.raises(DataError, match="1 score map without image: 001"):
        fuse_folder(
            list_maps(files.scores), {}, model, tmp_path / "out", images=list_images(tmp_path / "images")
        )


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((6, 7), np.nan), "NaN"),
        (np.ones((6, 7)), "constant"),
        (np.zeros((3, 6, 7)), "shape"),
        (np.array([{"a": 1}], dtype=object), "damaged"),
    ],
)
def test_bad_arrays_are_refused_with_their_path(model, tmp_path, array, reason):
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=rf"bad\.npy.*{reason}"):
        fuse_folder(list_maps(tmp_path), {}, model, tmp_path / "out")
    assert not (tmp_path / "out" / "score").exists()


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no score map"):
        list_maps(tmp_path)


def test_keys_keep_the_tree(model, tmp_path):
    rng = np.random.default_rng(0)
    for key in ("a/x", "b/x", "ü y"):
        write_score(tmp_path / "in" / f"{key}.npz", rng.normal(size=(9, 11)).astype(np.float32))
    fuse_folder(list_maps(tmp_path / "in"), {}, model, tmp_path / "out")
    masks = tmp_path / "out" / "mask"
    written = sorted(path.relative_to(masks).as_posix() for path in masks.rglob("*.png"))
    assert written == ["a/x.png", "b/x.png", "ü y.png"]
