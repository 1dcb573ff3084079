"""Comparing two runs: stars by chance, real gains, and runs that cannot be compared."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm
from sklearn.metrics import average_precision_score

from anomdino.benchmarks import ComponentLimits, open_benchmark
from anomdino.errors import DataError
from anomdino.evaluation import EvaluationSettings, ScoreFolder, evaluate_benchmark, write_results
from anomdino.evaluation.bootstrap import ImageCounts, ImageHistograms, pixel_values
from anomdino.evaluation.compare import _difference, compare_runs
from anomdino.evaluation.swaps import RunImages, on_common_rates, swap_test
from anomdino.io.scores import write_score

EDGES = np.linspace(6, -4, 60)
PIXELS = 3000


def run_of(gain, anomalies):
    """Expected histograms of images with normal scores whose anomalies lie ``gain`` higher."""
    above = [1 - norm.cdf(EDGES - np.asarray(mean)[:, None]) for mean in (gain, 0 * gain)]
    for part in above:
        part[:, -1] = 1
    tp, fp = (np.diff(part, prepend=0.0, axis=1) for part in above)
    return RunImages(
        ImageHistograms(EDGES, tp * anomalies[:, None], fp * (PIXELS - anomalies)[:, None]), None
    )


def pair(rng, images, better=0.0):
    """Two methods on the same images, hard and easy ones; what a method makes of an image is its own luck."""
    hard, anomalies = rng.normal(2, 1, images), PIXELS * 10 ** rng.uniform(-2.5, -0.7, images)
    return [run_of(hard + more + rng.normal(0, 0.5, images), anomalies) for more in (0.0, better)]


@pytest.mark.parametrize("images", [5, 10, 30])
def test_methods_that_differ_by_chance_get_few_stars(images):
    """Percentiles of resampled differences gave 16 to 20 % at 5 images and 12 to 18 % at 10."""
    rng = np.random.default_rng(images)
    pairs, stars = 200, dict.fromkeys(("AP", "FPR95", "AUROC"), 0)
    for _ in range(pairs):
        for name, p in swap_test(*pair(rng, images), 200, rng).items():
            stars[name] += p < 0.05
    most = 0.05 * pairs + 3 * np.sqrt(0.05 * 0.95 * pairs) if images > 5 else 0
    assert max(stars.values()) <= most, stars


def test_a_real_difference_is_found_whatever_the_scale():
    rng = np.random.default_rng(0)
    for _ in range(5):
        weak, strong = pair(rng, 10, better=1.5)
        histograms = strong.histograms
        moved = RunImages(ImageHistograms(np.exp(histograms.thresholds), histograms.tp, histograms.fp), None)
        p = swap_test(weak, strong, 1000, np.random.default_rng(0))
        assert p["AP"] < 0.02
        assert swap_test(weak, moved, 1000, np.random.default_rng(0)) == p


def test_every_swap_of_few_images_equals_a_plain_loop():
    """Components need no common scale, so that p can be counted by hand over all 2^6 swaps."""
    rng = np.random.default_rng(4)
    runs = []
    for quality in (0.3, 0.6):
        found = rng.binomial(3, quality, (6, 1)).repeat(11, 1)
        ones = np.ones(6)
        runs.append(RunImages(None, ImageCounts(found, 3 - found, 0 * found, found[:, 0] * 0.8, ones, ones)))

    def f1(found):
        tp, fn = found.sum(), (3 - found).sum()
        return 2 * tp / (2 * tp + fn)

    one, two = (run.counts.tp[:, 0] for run in runs)
    observed = abs(f1(two) - f1(one))
    as_large = sum(
        abs(f1(np.where(s, one, two)) - f1(np.where(s, two, one))) >= observed - 1e-12
        for s in product([False, True], repeat=6)
    )
    assert swap_test(*runs, 1000, rng)["F1*"] == as_large / 64


def test_random_swaps_come_close_to_all_swaps():
    one, two = pair(np.random.default_rng(3), 11, better=0.3)
    every = swap_test(one, two, 1024, np.random.default_rng(0))
    some = swap_test(one, two, 1000, np.random.default_rng(0))
    assert some == swap_test(one, two, 1000, np.random.default_rng(0))
    for name, p in every.items():
        assert some[name] == pytest.approx(p, abs=0.06)


def test_all_swaps_are_tried_up_to_the_number_asked_for():
    """Ten images have 512 different swaps: with 512 asked for, or more, chance has no part in p."""
    runs = pair(np.random.default_rng(5), 10, better=0.4)
    found = [swap_test(*runs, 512, np.random.default_rng(seed)) for seed in range(2)]
    assert found[0] == found[1] == swap_test(*runs, 5000, np.random.default_rng(2))
    assert all(p * 512 == round(p * 512) for p in found[0].values())


def test_a_difference_smaller_than_what_bins_change_is_no_difference():
    """The same tiny gain on every one of ten images would be the surest of all."""
    rng = np.random.default_rng(0)
    hard, anomalies = rng.normal(2, 1, 10), PIXELS * 10 ** rng.uniform(-2.5, -0.7, 10)
    runs = [run_of(hard + gain, anomalies) for gain in (0.0, 2e-4)]
    differences = [run.values(np.ones((1, 10)))["AP"][0] for run in runs]
    assert 1e-5 < differences[1] - differences[0] < 4e-4
    assert swap_test(*runs, 1000, rng) == dict.fromkeys(("AP", "FPR95", "AUROC"), 1.0)


def test_random_swaps_never_give_p_of_zero():
    """The runs as they are count as one of the swaps, so that no difference is surer than the swaps that were tried."""
    p = swap_test(*pair(np.random.default_rng(0), 40, better=2.0), 99, np.random.default_rng(0))
    assert p == dict.fromkeys(("AP", "FPR95", "AUROC"), 0.01)


def test_a_common_scale_changes_no_metric():
    rng = np.random.default_rng(0)
    label = (rng.random((2, 4, 500)) < 0.1).astype(np.uint8)
    score = np.round(rng.normal(size=label.shape), 1) + label
    edges = np.unique(score)[::-1]
    runs = []
    for s, t in zip(score, label, strict=True):
        tp, fp = (
            np.array(
                [[((a == e) & (b == side)).sum() for e in edges] for a, b in zip(s, t, strict=True)], float
            )
            for side in (1, 0)
        )
        runs.append(ImageHistograms(edges, tp, fp))
    for run, s, t in zip(on_common_rates(*runs), score, label, strict=True):
        assert pixel_values(run, np.ones((1, 4)))["AP"][0] == pytest.approx(
            average_precision_score(t.ravel(), s.ravel()), abs=0.01
        )


SIZE = (40, 60)


def measure(
    root, out, images=8, strength=1.0, protocol="pooled", name="mine", limits=(6, 4), grow=0, scale=False
):
    """Evaluate a method on ``images`` frames whose objects are ``grow`` pixels larger than in truth."""
    rng = np.random.default_rng(7)
    for index in range(images):
        label = np.zeros(SIZE, np.uint8)
        label[10 : 20 + grow, 10 : 30 + index] = 1
        for folder, content in (("images", np.zeros((*SIZE, 3), np.uint8)), ("labels", label)):
            path = root / f"set_{out}" / folder / f"f{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
        score = rng.normal(0, 1, SIZE) + rng.uniform(0.5, 1.5) * strength * (label == 1)
        write_score(
            root / f"scores_{out}/f{index}.npz", (np.exp(score) if scale else score).astype(np.float32)
        )
    benchmark = open_benchmark(
        "folder", root / f"set_{out}", name=name, limits=ComponentLimits(*limits), protocol=protocol
    )
    result = evaluate_benchmark(
        benchmark, ScoreFolder(root / f"scores_{out}"), EvaluationSettings(bootstrap=20)
    )
    write_results(root / out, result)
    return str(root / out)


@pytest.mark.parametrize("protocol", ["pooled", "smiyc"])
def test_the_values_are_those_that_the_runs_stored(tmp_path, protocol):
    runs = [measure(tmp_path, f"r{i}", strength=1 + i, protocol=protocol, scale=i == 1) for i in range(2)]
    block = compare_runs(*runs)["mine"]["score"]
    assert block["protocol"] == protocol
    for run, side in zip(runs, ("first", "second"), strict=True):
        details = json.loads((tmp_path / run / "details.json").read_text())["outputs"]["score"]
        for shown, stored in (("AP", "ap"), ("FPR95", "fpr95"), ("AUROC", "auroc")):
            assert block["metrics"][shown][side] == details["pixel"][protocol][stored]
        assert block["metrics"]["F1*"][side] == details["components"]["f1"]
    gain = block["metrics"]["AP"]
    assert gain["difference"] == pytest.approx(gain["second"] - gain["first"], abs=2e-6)
    assert gain["p"] == pytest.approx(
        1 / 128, abs=1e-6
    )  # of the 2^7 different swaps of eight images none is as large
    assert gain["significant"]
    assert gain["low"] < gain["difference"] < gain["high"]


def test_a_run_on_some_of_the_images_is_compared_on_those(tmp_path):
    whole, part = measure(tmp_path, "whole", 8), measure(tmp_path, "part", 6, strength=2.0)
    block = compare_runs(whole, part)["mine"]["score"]
    assert (block["images"], block["protocol"]) == (6, None)
    stored = json.loads((tmp_path / "part/details.json").read_text())["outputs"]["score"]["pixel"]["pooled"]
    assert block["metrics"]["AP"]["second"] == pytest.approx(stored["ap"], abs=5e-3)


@pytest.mark.parametrize("images", [1, 5])
def test_few_images_get_no_star(tmp_path, images):
    runs = [measure(tmp_path, f"r{i}", images, strength=1 + 3 * i) for i in range(2)]
    gain = compare_runs(*runs)["mine"]["score"]["metrics"]["AP"]
    assert gain["difference"] > 0.3
    assert not gain["significant"]
    assert gain["p"] == (1.0 if images == 1 else 1 / 16)
    assert (gain["low"] is None) == (images == 1)


def test_other_labels_and_other_rules_are_refused(tmp_path):
    base = measure(tmp_path, "base")
    with pytest.raises(DataError, match="other labels.*8 of 8 images: f0, f1"):
        compare_runs(base, measure(tmp_path, "labels", grow=1))
    with pytest.raises(DataError, match="component limits.*'min_gt': 5"):
        compare_runs(base, measure(tmp_path, "limits", limits=(6, 5)))
    with pytest.raises(DataError, match="with the protocol smiyc"):
        compare_runs(base, measure(tmp_path, "protocol", protocol="smiyc"))


def test_the_folder_that_was_named_is_taken(tmp_path):
    weak = measure(tmp_path, "weak")
    measure(tmp_path, "strong", strength=3.0)
    (tmp_path / "strong").rename(tmp_path / "weak/kept")
    same = compare_runs(weak, weak)["mine"]["score"]["metrics"]["AP"]
    gain = compare_runs(weak, f"{weak}/kept")["mine"]["score"]["metrics"]["AP"]
    assert same["difference"] == 0
    assert gain["difference"] > 0.1


def test_two_runs_on_one_benchmark_in_a_folder_are_refused(tmp_path):
    base = measure(tmp_path, "base")
    for name in ("one", "two"):
        measure(tmp_path, f"both/{name}")
    with pytest.raises(DataError, match="holds two runs on 'mine'.*one.*two"):
        compare_runs(base, str(tmp_path / "both"))


def test_a_star_needs_the_sign_of_the_histograms_and_p_below_the_level():
    def star(moved, p):
        return _difference(0.5, 0.6, moved, 0.2, p)["significant"]

    assert star(0.1, 0.049)
    assert not star(-0.1, 0.049)
    assert not star(0.1, 0.05)
    assert _difference(0.9, 0.1, -0.8, 0.5, 0.01)["low"] == -1.0
    assert _difference(0.1, 0.9, 0.8, 0.5, 0.01) | {"difference": 0} == {
        "first": 0.1, "second": 0.9, "difference": 0, "low": pytest.approx(0.3), "high": 1.0, "p": 0.01,
        "significant": True,
    }  # fmt: skip


@pytest.mark.parametrize("content", ["[]", "null", "1", '{"outputs": {}}', "{"])
def test_details_of_something_else_are_named(tmp_path, content):
    base = measure(tmp_path, "base", images=2)
    (tmp_path / "base/details.json").write_text(content)
    with pytest.raises(DataError, match=r"details.json: is no.*\n.*evaluate again"):
        compare_runs(base, base)
