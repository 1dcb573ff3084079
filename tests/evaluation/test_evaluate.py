"""The evaluate loop on a small benchmark in a temporary folder, against scikit-learn and plain loops."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anomdino.benchmarks import ComponentLimits, open_benchmark
from anomdino.errors import ConfigError, DataError
from anomdino.evaluation import (
    EvaluationSettings,
    ScoreFolder,
    evaluate_benchmark,
    write_metric_tables,
    write_metrics,
    write_plots,
    write_results,
    writing,
)
from anomdino.evaluation.compare import compare_runs
from anomdino.evaluation.console import print_summary
from anomdino.evaluation.groups import component_groups, distance_band, size_group
from anomdino.evaluation.summary import per_image_protocol
from anomdino.evaluation.tables import COMPONENTS, HISTOGRAMS, IMAGES, read_table
from anomdino.io.images import write_png
from anomdino.io.scores import write_score
from anomdino.metrics import ComponentState, SmiycPixels, frame_components
from anomdino.metrics.results import NO_ANOMALY, NO_INLIER
from tests.io.test_maps import write

LIMITS = ComponentLimits(min_predicted=6, min_gt=4)
SIZE = (48, 64)


def scene(rng, clean=False):
    """A label with blobs and a void border, and a score that finds most of them and some road."""
    label = np.zeros(SIZE, np.uint8)
    score = rng.normal(-10, 0.3, SIZE)
    for _ in range(0 if clean else 3):
        y, x, side = rng.integers(4, 36), rng.integers(4, 50), rng.integers(2, 9)
        label[y : y + side, x : x + side] = 1
        score[y : y + side, x : x + side] += rng.choice([0.2, 2.0])
    y, x = rng.integers(4, 36), rng.integers(4, 50)
    score[y : y + 4, x : x + 6] += 1.5
    label[:, :3] = 255
    return label, score.astype(np.float32)


@pytest.fixture
def world(tmp_path):
    """Eight images, two of them clean, in RoadAnomaly's layout, with score maps."""
    rng = np.random.default_rng(1)
    frames = {}
    for index in range(8):
        label, score = scene(rng, clean=index in {2, 5})
        name = f"frame{index}"
        for folder, content in (("original", np.zeros((*SIZE, 3), np.uint8)), ("labels", label)):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(tmp_path / "set" / folder / f"{name}.png")
        write_score(tmp_path / f"scores/{name}.npz", score)
        frames[name] = label, score
    return tmp_path, frames


def opened(world, **options):
    return open_benchmark("road_anomaly", world[0] / "set", name="mine", limits=LIMITS, **options)


def evaluated(world, **options):
    settings = EvaluationSettings(**{"bootstrap": 50, **options})
    return evaluate_benchmark(opened(world), ScoreFolder(world[0] / "scores"), settings)


def test_pixel_metrics_equal_scikit_learn_on_all_pixels(world):
    result = evaluated(world)
    label = np.concatenate([label.ravel() for label, _ in world[1].values()])
    score = np.concatenate([score.ravel() for _, score in world[1].values()])
    roi = label < 255
    pooled = result.pixel["score"]["pooled"]
    assert pooled.ap == pytest.approx(average_precision_score(label[roi], score[roi]), abs=1e-9)
    assert pooled.auroc == pytest.approx(roc_auc_score(label[roi], score[roi]), abs=1e-9)
    assert pooled.ap_error == 0.0


def test_components_use_the_threshold_of_smiycs_curve(world):
    result = evaluated(world)
    state, components = SmiycPixels(), ComponentState()
    for label, score in world[1].values():
        state.update(score, label)
    threshold = state.compute().best_f1_threshold
    for label, score in world[1].values():
        components.update(frame_components(score > threshold, label, 6, 4))
    assert result.thresholds == {"score": threshold}
    assert result.components["score"] == components.compute()


def test_rows_add_up_to_the_totals(world):
    result = evaluated(world)
    rows, components = result.rows_of("score"), result.components["score"]
    assert [row["key"] for row in rows] == sorted(world[1])
    assert sum(row["missed_25"] for row in rows) == components.missed["25"]
    assert sum(row["false_50"] for row in rows) == components.false["50"]
    assert len([row for row in result.component_rows if row["kind"] == "gt"]) == components.gt_components
    histograms = result.histograms["score"]
    assert histograms.tp.sum() == pytest.approx(result.pixel["score"]["pooled"].positives)
    assert histograms.fp.sum() == pytest.approx(result.pixel["score"]["pooled"].negatives)


def test_images_of_one_class_have_null_ap_and_are_counted(world):
    result = evaluated(world)
    clean = [row for row in result.rows_of("score") if row["clean"]]
    assert [row["key"] for row in clean] == ["frame2", "frame5"]
    assert all(row["ap"] is None for row in clean)
    write_results(world[0] / "out", result)
    details = json.loads((world[0] / "out/details.json").read_text())["outputs"]["score"]
    per_image = details["pixel"]["per_image"]
    assert per_image["images"] == 6
    assert list(per_image["left_out"].values()) == [2]
    values = [row["ap"] for row in result.rows_of("score") if row["ap"] is not None]
    assert per_image["AP"] == pytest.approx(np.mean(values), abs=1e-6)
    assert details["clean_road"]["images"] == 2
    false = sum(row["false_positive_pixels"] for row in clean) / sum(row["roi_pixels"] for row in clean)
    assert details["clean_road"]["fpr"] == pytest.approx(false, abs=1e-6)


def test_groups_add_up(world):
    write_results(world[0] / "out", evaluated(world))
    details = json.loads((world[0] / "out/details.json").read_text())["outputs"]["score"]
    for grouping in ("by_size", "by_distance"):
        assert (
            sum(group["gt"] for group in details[grouping].values()) == details["components"]["gt_components"]
        )
        assert (
            sum(group["missed"] for group in details[grouping].values())
            == details["components"]["missed"]["25"]
        )


def test_metrics_file_is_nested_and_the_same_twice(world):
    texts = []
    for name in ("one", "two"):
        result = evaluated(world)
        content = write_metrics(world[0] / name / "metrics.json", [result], seed=3)
        write_results(world[0] / name, result)
        write_plots(world[0] / name / "plots", [result])
        files = sorted(path for path in (world[0] / name).rglob("*") if path.is_file())
        texts.append({str(path.relative_to(world[0] / name)): path.read_bytes() for path in files})
    assert texts[0] == texts[1]
    assert content["seed"] == 3
    assert content["mine"]["protocol"] == "pooled"
    assert content["mine"]["images"] == 8
    assert set(content["mine"]["score"]) == {"AP", "FPR95", "AUROC", "sIoU", "PPV", "F1*", "missed", "false"}
    assert "NaN" not in texts[0]["metrics.json"].decode()


def test_intervals_hold_the_value_and_narrow_with_agreement(world):
    spans = evaluated(world, bootstrap=300).intervals["score"]
    pixel = evaluated(world).pixel["score"]["pooled"]
    assert spans["AP"][0] <= pixel.ap <= spans["AP"][1]
    assert spans["AP"][1] - spans["AP"][0] > 0.005
    for name in ("frame1", "frame3", "frame4", "frame6", "frame7"):
        label, score = world[1]["frame0"]
        Image.fromarray(label).save(world[0] / f"set/labels/{name}.png")
        write_score(world[0] / f"scores/{name}.npz", score)
    narrow = evaluated(world, bootstrap=300).intervals["score"]
    assert narrow["AP"][1] - narrow["AP"][0] < (spans["AP"][1] - spans["AP"][0]) / 2


def test_tables_document_their_columns(world):
    write_results(world[0] / "out", evaluated(world))
    for name, columns in (("images", IMAGES), ("components", COMPONENTS), ("histograms", HISTOGRAMS)):
        schema = pq.read_schema(world[0] / f"out/{name}.parquet")
        assert schema.names == list(columns)
        for field in schema:
            assert field.metadata[b"description"].decode() == columns[field.name][1]
    assert len(read_table(world[0] / "out/images.parquet")) == 8


def test_own_masks_are_reported_beside_the_threshold(world):
    for name, (label, _) in world[1].items():
        (world[0] / "masks").mkdir(exist_ok=True)
        Image.fromarray((label == 1).astype(np.uint8) * 255).save(world[0] / f"masks/{name}.png")
    source = ScoreFolder(world[0] / "scores", masks=world[0] / "masks")
    result = evaluate_benchmark(opened(world), source, EvaluationSettings(bootstrap=20))
    content = write_metrics(world[0] / "m.json", [result], 0)["mine"]
    assert content["mask"]["sIoU"] > content["score"]["sIoU"]
    assert "AP" not in content["mask"]


def test_an_all_void_image_is_left_out_and_counted(world):
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(world[0] / "set/labels/frame3.png")
    result = evaluated(world)
    assert result.left_out == {"frame3": "every pixel is void"}
    content = write_metrics(world[0] / "m.json", [result], 0)["mine"]
    assert (content["images"], content["left_out"]) == (7, 1)


def relabelled(world, value):
    for name in world[1]:
        Image.fromarray(np.full(SIZE, value, np.uint8)).save(world[0] / f"set/labels/{name}.png")


def written(world, result):
    metrics = write_metrics(world[0] / "m.json", [result], 0)
    write_metric_tables(world[0] / "eval", metrics)
    write_results(world[0] / "out", result)
    write_plots(world[0] / "plots", [result])
    print_summary(metrics)
    return metrics["mine"], json.loads((world[0] / "out/details.json").read_text())["outputs"]


@pytest.mark.parametrize(("value", "reason"), [(0, "no anomalous pixel"), (1, "no in-distribution pixel")])
def test_a_set_of_one_class_gives_null_with_the_reason(world, capsys, value, reason):
    relabelled(world, value)
    result = evaluated(world)
    metrics, details = written(world, result)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if reason in line]
    assert said.endswith("(AP, FPR95, AUROC)")
    for name in ("AP", "FPR95", "AUROC"):
        assert metrics["score"][name] is None
        assert reason in metrics["score"]["reasons"][name]
    for name in ("sIoU", "PPV", "F1*", "missed", "false"):
        assert metrics["score"][name] is None
        assert "no threshold" in metrics["score"]["reasons"][name]
    assert details["score"]["pixel"]["per_image"]["images"] == 0
    assert list(details["score"]["pixel"]["per_image"]["left_out"].values()) == [8]
    assert details["score"]["clean_road"]["fpr"] is None
    assert "no threshold" in details["score"]["clean_road"]["reason"]
    assert result.intervals == {"score": {}}
    table = read_table(world[0] / "out/images.parquet")
    assert len(table) == 8
    assert table["threshold"].isna().all()


def test_clean_frames_have_a_false_positive_rate_at_a_given_threshold_or_own_mask(world):
    relabelled(world, 0)
    for name, (_, score) in world[1].items():
        path = world[0] / f"masks/{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(((score > -9.0) * 255).astype(np.uint8)).save(path)
    settings = EvaluationSettings(bootstrap=20, threshold=-9.5)
    source = ScoreFolder(world[0] / "scores", masks=world[0] / "masks")
    result = evaluate_benchmark(opened(world), source, settings)
    metrics, details = written(world, result)
    scores = np.stack([score for _, score in world[1].values()])
    for name, threshold in (("score", -9.5), ("mask", -9.0)):
        assert details[name]["clean_road"]["fpr"] == pytest.approx((scores > threshold).mean(), abs=1e-6)
        assert details[name]["clean_road"]["images"] == 8
        assert metrics[name]["missed"] == 0
        assert metrics[name]["sIoU"] is None
    assert metrics["score"]["AP"] is None


def test_a_given_threshold_takes_the_place_of_the_best_f1(world):
    result = evaluated(world, threshold=-9.25)
    state = ComponentState()
    for label, score in world[1].values():
        state.update(frame_components(score > -9.25, label, 6, 4))
    assert result.components["score"] == state.compute()
    assert {row["threshold"] for row in result.image_rows} == {-9.25}


def test_thresholds_of_tiny_scores_keep_their_digits(world):
    """Scores of 1e-8: the threshold in the files must give the masks that the components are of."""
    frames = {name: (label, (score * np.float32(1e-8))) for name, (label, score) in world[1].items()}
    for name, (_, score) in frames.items():
        write_score(world[0] / f"scores/{name}.npz", score)
    result = evaluated(world)
    _, details = written(world, result)
    threshold = details["score"]["threshold"]
    assert threshold == details["score"]["pixel"]["smiyc"]["best_f1_threshold"] != 0
    for row in result.rows_of("score"):
        label, score = frames[row["key"]]
        found = (score > np.float32(threshold)) & (label == 1)
        assert row["true_positive_pixels"] == found.sum()
    plotted = json.loads((world[0] / "plots/f1.json").read_text())
    best = max(plotted, key=lambda point: point["f1"])["threshold"]
    assert best == details["score"]["pixel"]["pooled"]["best_f1_threshold"]


def test_runs_on_clean_frames_can_be_compared(world):
    relabelled(world, 0)
    for name in ("one", "two"):
        write_results(world[0] / name, evaluated(world))
    compared = compare_runs(str(world[0] / "one"), str(world[0] / "two"), bootstrap=10)
    assert compared["mine"]["score"]["metrics"]["AP"]["difference"] is None


def test_pixel_metrics_by_distance_band_are_those_of_the_bands_pixels(world):
    result = evaluated(world)
    _, details = written(world, result)
    rows = np.arange(SIZE[0])[:, None].repeat(SIZE[1], 1)
    label = np.stack([label for label, _ in world[1].values()])
    score = np.stack([score for _, score in world[1].values()])
    share = np.stack([rows + 1] * len(label)) / SIZE[0]
    seen = 0
    for band, low, high in (("far", 0, 0.45), ("middle", 0.45, 0.6), ("near", 0.6, 0.8), ("close", 0.8, 2)):
        inside = (share >= low) & (share < high) & (label < 255)
        measured = details["score"]["by_distance"][band]
        seen += inside.sum()
        assert measured["anomaly_pixels"] == (label[inside] == 1).sum()
        assert measured["inlier_pixels"] == (label[inside] == 0).sum()
        if not (label[inside] == 1).any():
            assert (measured["AP"], measured["reason"]) == (None, NO_ANOMALY)
            continue
        expected = average_precision_score(label[inside], score[inside])
        assert measured["AP"] == pytest.approx(expected, abs=0.01)
        assert measured["AUROC"] == pytest.approx(roc_auc_score(label[inside], score[inside]), abs=0.005)
    assert seen == (label < 255).sum()


def test_tags_count_images_once_and_may_hold_commas(world):
    tags = {"frame0": ["night, rain", "wet"], "frame1": ["wet", "wet"], "frame2": ["wet"]}
    (world[0] / "set/tags.json").write_text(json.dumps(tags))
    _, details = written(world, evaluated(world))
    images = {tag: group["images"] for tag, group in details["score"]["by_tag"].items()}
    assert images == {"night, rain": 1, "wet": 3}


def test_files_of_a_run_that_fails_to_write_do_not_mix_with_those_of_before(world, monkeypatch):
    out = world[0] / "out"
    write_results(out, evaluated(world))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(writing, "benchmark_details", lambda result: {"threshold": float("nan")})
    with pytest.raises(ValueError, match="NaN|nan"):
        write_results(out, evaluated(world, threshold=-9.0))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_maps_are_found_whatever_the_form_of_unicode(tmp_path, forms):
    image, score = (unicodedata.normalize(form, "Füße/é") for form in forms)
    for folder, content in (
        ("images", np.zeros((4, 5, 3), np.uint8)),
        ("labels", np.eye(4, 5, dtype=np.uint8)),
    ):
        write_png(tmp_path / folder / f"{image}.png", content)
    write_score(tmp_path / f"scores/{score}.npz", np.zeros((4, 5), np.float32))
    source = ScoreFolder(tmp_path / "scores")
    benchmark = open_benchmark("folder", tmp_path, name="mine")
    source.require(benchmark.samples)
    assert source.predictions(benchmark.samples[0])["score"].score.shape == (4, 5)


def test_missing_scores_and_wrong_sizes_are_named(world):
    source = ScoreFolder(world[0] / "scores")
    (world[0] / "scores/frame4.npz").unlink()
    with pytest.raises(DataError, match="1 of 8 images: frame4"):
        source.require(opened(world).samples)
    write_score(world[0] / "scores/frame4.npz", np.zeros((5, 5), np.float32))
    with pytest.raises(DataError, match="5 x 5, the image is 48 x 64"):
        evaluated(world)


@pytest.mark.parametrize("suffix", [".npy", ".hdf5", ".tif"])
def test_other_score_formats(world, suffix):
    expected = evaluated(world).pixel
    for name, (_, score) in world[1].items():
        (world[0] / f"scores/{name}.npz").unlink()
        write(world[0] / f"scores/{name}{suffix}", score)
    assert evaluated(world).pixel == expected


def test_plot_files_name_every_series(world):
    write_plots(world[0] / "plots", [evaluated(world)])
    rows = json.loads((world[0] / "plots/pr.json").read_text())
    assert {row["series"] for row in rows} == {"mine score"}
    assert len(rows) <= 260
    assert max(row["recall"] for row in rows) == 1.0


def test_instances_are_scored_where_the_set_has_them(world):
    import cv2

    root = world[0] / "set"
    (root / "original").rename(root / "images")
    (root / "instances").mkdir()
    for name, (label, _) in world[1].items():
        _, instances = cv2.connectedComponents((label == 1).astype(np.uint8), connectivity=8)
        cv2.imwrite(str(root / f"instances/{name}.png"), (instances * 300).astype(np.uint16))
    benchmark = open_benchmark("folder", root, name="mine", limits=LIMITS)
    result = evaluate_benchmark(benchmark, ScoreFolder(world[0] / "scores"), EvaluationSettings(bootstrap=0))
    write_results(world[0] / "out", result)
    details = json.loads((world[0] / "out/details.json").read_text())["outputs"]["score"]
    assert 0 < details["instances"]["ap"] < details["instances"]["ap50"] < 1
    assert details["instances"]["instances"] == details["components"]["gt_components"]


@pytest.mark.parametrize("void", [False, True])
def test_an_output_that_is_not_finite_is_named_with_image_count_and_range(world, void):
    """On void too: there it would reach the tables and the pictures."""
    source = ScoreFolder(world[0] / "scores", "mine")
    read = source.predictions

    def spoiled(sample):
        prediction = read(sample)["mine"]
        if sample.key == "frame3":
            prediction.score[4:6, 0 if void else 20] = np.nan
        return {"mine": prediction}

    object.__setattr__(source, "predictions", spoiled)
    with pytest.raises(
        DataError, match=r"frame3.png, output 'mine': holds 2 NaN .* of 3072 \(finite values -1"
    ):
        evaluate_benchmark(opened(world), source, EvaluationSettings(bootstrap=0))


def test_what_a_mask_covers_of_void_counts_nowhere(tmp_path):
    """A mask that runs on from an object into void twice as large."""
    label = np.zeros(SIZE, np.uint8)
    label[10:20, 10:20], label[10:20, 20:40] = 1, 255
    for folder, content in (("images", label), ("labels", label), ("instances", label % 255)):
        write_png(tmp_path / f"{folder}/a.png", content)
    write_png(tmp_path / "masks/a.png", (label > 0).astype(np.uint8) * 255)
    write_score(tmp_path / "scores/a.npz", (label == 1).astype(np.float32))
    benchmark = open_benchmark("folder", tmp_path, name="mine", limits=LIMITS)
    source = ScoreFolder(tmp_path / "scores", masks=tmp_path / "masks")
    result = evaluate_benchmark(benchmark, source, EvaluationSettings(bootstrap=0))
    (row,) = result.rows_of("mask")
    assert (row["true_positive_pixels"], row["false_positive_pixels"], row["iou"]) == (100, 0, 1.0)
    assert (row["siou"], row["ppv"], row["roi_pixels"]) == (1.0, 1.0, label.size - 200)
    assert result.instances["mask"].compute().ap == pytest.approx(1.0)


def test_s2m_metrics_are_given_for_scores_between_0_and_1(world):
    from anomdino.metrics import S2mState

    assert evaluated(world).s2m == {}
    state = S2mState()
    for name, (label, score) in world[1].items():
        share = (1 / (1 + np.exp(-9.0 - score))).astype(np.float32)
        write_score(world[0] / f"scores/{name}.npz", share)
        state.update(share, label)
    result = evaluated(world)
    assert result.s2m["score"].compute() == state.compute()
    write_results(world[0] / "out", result)
    details = json.loads((world[0] / "out/details.json").read_text())["outputs"]["score"]
    assert details["s2m"]["AuIoU"] == pytest.approx(state.compute()["area"], abs=1e-6)
    share[0, 0] = 1.5  # of the last image
    write_score(world[0] / f"scores/{name}.npz", share)
    assert evaluated(world).s2m == {}


def test_constant_scores_are_chance_not_a_crash(world):
    for name in world[1]:
        write_score(world[0] / f"scores/{name}.npz", np.zeros(SIZE, np.float32))
    result = evaluated(world, bootstrap=20)
    pooled = result.pixel["score"]["pooled"]
    assert pooled.ap == pytest.approx(pooled.positives / (pooled.positives + pooled.negatives))
    assert (pooled.auroc, pooled.fpr95) == (0.5, 1.0)
    write_results(world[0] / "out", result)
    write_metrics(world[0] / "m.json", [result], 0)
    write_plots(world[0] / "plots", [result])


def test_pixels_filled_with_the_smallest_float_do_not_stop_the_evaluation(world):
    for key, (_, score) in world[1].items():
        filled = score.copy()
        filled[:, 3:9] = np.finfo(np.float32).min
        write_score(world[0] / f"scores/{key}.npz", filled)
    source, settings = ScoreFolder(world[0] / "scores"), EvaluationSettings(bootstrap=0)
    result = evaluate_benchmark(opened(world, protocol="smiyc"), source, settings)
    write_plots(world[0] / "plots", [result])
    rows = json.loads((world[0] / "plots/pr.json").read_text())
    assert min(row["threshold"] for row in rows) < -1e38


def test_one_image_is_enough_but_has_no_interval(world):
    for name in list(world[1])[1:]:
        for folder in ("original", "labels"):
            (world[0] / "set" / folder / f"{name}.png").unlink()
    result = evaluated(world, bootstrap=20)
    assert result.keys == ["frame0"]
    assert result.pixel["score"]["pooled"].ap is not None
    assert result.intervals == {"score": {}}


def test_threads_do_not_change_results(world):
    def content(workers):
        result = evaluated(world, workers=workers)
        write_results(world[0] / f"out{workers}", result)
        return [path.read_bytes() for path in sorted((world[0] / f"out{workers}").iterdir())]

    assert content(1) == content(4)


def test_a_failing_writer_stops_the_evaluation(world):
    def save(sample, predictions):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        evaluate_benchmark(opened(world), ScoreFolder(world[0] / "scores"), EvaluationSettings(), save)


def test_other_bins_of_the_same_scores_are_no_difference(world):
    for name, bins in (("one", 1024), ("two", 700)):
        write_results(world[0] / name, evaluated(world, histogram_bins=bins))
    metrics = compare_runs(str(world[0] / "one"), str(world[0] / "two"))["mine"]["score"]["metrics"]
    assert abs(metrics["AP"]["difference"]) < 5e-3
    assert not any(metrics[name]["significant"] for name in metrics)


def test_groups_begin_at_their_limits():
    sizes = [size_group(pixels, 10_000) for pixels in (4, 5, 49, 50, 499, 500, 10_000)]
    assert sizes == ["tiny", "small", "small", "medium", "medium", "large", "large"]
    bands = [distance_band(bottom, 100) for bottom in (44, 45, 59, 60, 79, 80, 100)]
    assert bands == ["far", "middle", "middle", "near", "near", "close", "close"]


def test_images_without_a_mean_are_counted_by_the_class_they_lack():
    rows = [{"ap": None, "anomaly_pixels": pixels} for pixels in (0, 0, 5)]
    assert per_image_protocol(rows)["left_out"] == {NO_ANOMALY: 2, NO_INLIER: 1}


def test_an_empty_mask_on_a_clean_image_has_no_iou(world):
    rows = evaluated(world, threshold=100.0).rows_of("score")
    assert [row["iou"] for row in rows] == [None if row["clean"] else 0.0 for row in rows]


def test_a_component_at_a_quarter_is_neither_missed_nor_false():
    rows = [
        {"kind": kind, "siou": value, "covered": value, "size_group": "tiny"}
        for kind in ("gt", "predicted")
        for value in (0.25, 0.2)
    ]
    assert component_groups(rows, "size_group", ["tiny", "small"]) == {
        "tiny": {"gt": 2, "missed": 1, "sIoU": pytest.approx(0.225), "predicted": 2, "false": 1},
        "small": {"gt": 0, "missed": 0, "sIoU": None, "predicted": 0, "false": 0},
    }


def test_an_evaluation_without_workers_is_refused():
    with pytest.raises(ConfigError, match="workers: is 0"):
        EvaluationSettings(workers=0)
