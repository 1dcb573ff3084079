"""The searches for k, b and the floor: what is measured, what is chosen, and what of it a model stores."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_curve

from anomdino.adt.dataset import CropRules, list_items, read_item
from anomdino.adt.floor_search import search_floor
from anomdino.adt.fusion import AdtModel, FusionRule, fuse
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.adt.outline_net import OutlineNet
from anomdino.adt.plugin import refit
from anomdino.adt.rule_search import (
    LEAST_PREDICTED,
    LEAST_TRUE,
    Point,
    choose,
    choose_for_kinds,
    search,
    search_kinds,
)
from anomdino.adt.store import load_adt
from anomdino.adt.thresholds import Threshold
from anomdino.adt.training import TrainingPlan, train_adt
from anomdino.adt.tuning import apply_floor, tune_trained
from anomdino.errors import ConfigError, DataError
from anomdino.io.images import read_image, write_png
from anomdino.io.scores import read_score, write_score
from anomdino.metrics.components import ComponentState, frame_components

PLAN = TrainingPlan(
    crops=CropRules(crop=48), rule=FusionRule(k=0.6, b=0.1), epochs=4, batch=4, lr=1e-2, slope_lr=10.0
)


def point(k, b, ap=0.5, fpr95=0.2, f1=0.3, missed=10, components=None):
    return Point("fused", k, b, ap, fpr95, 0.5, 0.5, f1, missed, 5, components)


RAW = replace(point(1.0, 0.0, f1=0.2), output="raw")


def test_a_better_pair_that_loses_something_is_not_taken():
    honest = point(0.8, 0.2, f1=0.3)
    for worse in ({"missed": 11}, {"ap": 0.48}, {"fpr95": 0.22}):
        greedy = point(0.6, 0.1, f1=0.9, **worse)
        assert choose(RAW, [greedy, honest], "overall", 0.01) == honest


def test_among_equals_the_one_that_changes_least_is_taken():
    curve = [point(0.2, 0.4, f1=0.309), point(0.8, 0.2, f1=0.303), point(1.0, 0.1, f1=0.295)]
    assert choose(RAW, curve, "overall", 0.01) == curve[1]
    assert choose(RAW, curve, "overall", 0.02) == curve[2]
    assert choose(RAW, curve, "overall", 0.0) == curve[0]
    alike = [point(0.8, 0.0, f1=0.300), point(1.0, 0.2, f1=0.305), point(0.9, 0.1, f1=0.302)]
    assert choose(RAW, alike, "overall", 0.01) == alike[1]  # all change as much: the best of them


def test_a_pair_has_to_suit_every_kind_of_images():
    """Pooled or alone, each kind would take the pair that spoils the other."""
    composed = [point(1.0, 0.0, f1=0.2), point(0.8, 0.0, f1=0.3), point(0.6, 0.0, f1=0.5), point(0.4, 0.0)]
    photos = [point(1.0, 0.0, f1=0.2), point(0.8, 0.0, f1=0.3), point(0.6, 0.0, missed=11), point(0.4, 0.0)]
    photos[3] = point(0.4, 0.0, f1=0.9)
    composed[3] = point(0.4, 0.0, f1=0.9, fpr95=0.22)
    assert choose(RAW, composed, "overall", 0.01).k == 0.6
    assert choose(RAW, photos, "overall", 0.01).k == 0.4
    assert choose_for_kinds([RAW, RAW], [composed, photos], "overall", 0.01) == 1
    photos[1] = replace(photos[1], ap=0.4)
    assert choose_for_kinds([RAW, RAW], [composed, photos], "overall", 0.01) == 0


def test_what_one_kind_misses_more_another_may_miss_less():
    first, second = [point(0.6, 0.0, missed=11, f1=0.4)], [point(0.6, 0.0, missed=9, f1=0.4)]
    plain = [point(1.0, 0.0, f1=0.2)]
    assert choose_for_kinds([RAW, RAW], [plain + first, plain + second], "overall", 0.01) == 1
    second = [point(0.6, 0.0, missed=10, f1=0.4)]
    assert choose_for_kinds([RAW, RAW], [plain + first, plain + second], "overall", 0.01) == 0


@pytest.mark.parametrize(
    ("components", "tolerance", "taken"), [(199, 0.01, False), (200, 0.01, True), (200, 0.0, False)]
)
def test_of_hundreds_of_components_a_few_more_may_be_missed(components, tolerance, taken):
    """Two more of both kinds together: one of hundreds is luck."""
    raw = replace(RAW, components=components // 2)
    others = replace(RAW, components=components - components // 2)
    first, second = point(0.6, 0.0, missed=13, f1=0.4), point(0.6, 0.0, missed=9, f1=0.4)
    plain = point(1.0, 0.0, f1=0.2)
    chosen = choose_for_kinds([raw, others], [[plain, first], [plain, second]], "overall", tolerance)
    assert chosen == int(taken)


def test_of_admissible_pairs_the_mean_over_kinds_decides():
    first = [point(0.8, 0.0, f1=0.30), point(0.6, 0.0, f1=0.60), point(0.4, 0.0, f1=0.20)]
    second = [point(0.8, 0.0, f1=0.30), point(0.6, 0.0, f1=0.10), point(0.4, 0.0, f1=0.45)]
    assert choose_for_kinds([RAW, RAW], [first, second], "overall", 0.0) == 1  # means 0.30, 0.35, 0.325
    assert choose_for_kinds([RAW, RAW], [first, second], "overall", 0.06) == 0


def test_kinds_are_measured_apart_by_what_measures_them_alone(make_set, model):
    kinds = {
        "a": list_items(make_set("a", images=4)),
        "b": list_items(make_set("b", images=5, size=(48, 64))),
    }
    found = search_kinds(kinds, model, ks=[0.6, 1.0], bs=[0.0, 0.3])
    assert len({(tuning.choice.k, tuning.choice.b) for tuning in found.values()}) == 1
    for kind, items in kinds.items():
        alone = search(items, model, ks=[0.6, 1.0], bs=[0.0, 0.3])
        assert found[kind].raw == alone.raw
        for together, apart in zip(found[kind].curve, alone.curve, strict=True):
            if together.component_f1 is None:  # out in the other kind
                apart = replace(apart, component_f1=None, missed=None, false=None, components=None)
            assert together == apart


def test_a_label_of_another_size_is_named_with_both_sizes(make_set, model):
    files = make_set(images=3)
    write_png(files.labels / "001.png", np.zeros((5, 7), np.uint8))
    with pytest.raises(DataError, match=r"001\.png: is 5 x 7, its score map .*001\.npz is 64 x 96"):
        search_floor(list_items(files), model)


def test_images_without_an_anomaly_cannot_tune(make_set, model):
    files = make_set(images=3)
    for label in files.labels.glob("*.png"):
        write_png(label, np.zeros((64, 96), np.uint8))
    with pytest.raises(DataError, match="images in empty: there is no anomalous pixel"):
        search_kinds({"empty": list_items(files)}, model, ks=[1.0], bs=[0.0])


def test_where_nothing_gains_the_plain_order_stays():
    plain = point(1.0, 0.0, f1=0.2, missed=11)
    curve = [point(0.6, 0.1, f1=0.205), plain, point(0.8, 0.2, ap=0.4, f1=0.5)]
    assert choose(RAW, curve, "overall", 0.01) == plain


def test_where_no_pair_is_admissible_pixels_decide():
    curve = [point(0.2, 0.1, ap=0.3, f1=0.9), point(0.8, 0.1, ap=0.45, f1=0.1)]
    assert choose(RAW, curve, "overall", 0.01) == curve[1]


POINTS = st.builds(
    point,
    k=st.sampled_from([0.0, 0.5, 1.0]),
    b=st.sampled_from([0.0, 0.1, 0.4]),
    ap=st.floats(0, 1),
    fpr95=st.floats(0, 1),
    f1=st.floats(0, 1),
    missed=st.integers(0, 20),
)


@given(st.lists(POINTS, min_size=1, max_size=12), st.floats(0, 0.2))
def test_the_choice_holds_what_raw_has_and_is_near_the_best(curve, tolerance):
    chosen = choose(RAW, curve, "overall", tolerance)
    kept = [
        p
        for p in curve
        if (p.k, p.b) == (1.0, 0.0)
        or (p.missed <= 10 and p.ap >= 0.5 - tolerance and p.fpr95 <= 0.2 + tolerance)
    ]
    if not kept:
        assert chosen.ap - chosen.fpr95 >= max(p.ap - p.fpr95 for p in curve) - tolerance - 1e-12
        return
    assert chosen in kept
    best = max(p.ap - p.fpr95 + p.component_f1 for p in kept)
    assert chosen.ap - chosen.fpr95 + chosen.component_f1 >= best - tolerance - 1e-12
    gentler = [p for p in kept if 1 - p.k + p.b < 1 - chosen.k + chosen.b - 1e-6]
    assert all(p.ap - p.fpr95 + p.component_f1 <= best - tolerance + 1e-12 for p in gentler)


def test_measures_are_those_of_scikit_learn_and_of_components_counted_slowly(model, make_set):
    items = list_items(make_set(images=6))
    tuning = search(items, model, ks=[0.6, 1.0], bs=[0.0, 0.3], tolerance=1.0)
    assert (tuning.choice in tuning.curve, len(tuning.curve)) == (True, 4)
    for found in (tuning.raw, *tuning.curve):
        rule = FusionRule(found.output, k=found.k, b=found.b)
        images = [(fuse(score, item.boxes, model, rule).score, label)
                  for item in items for score, label in [read_item(item)]]  # fmt: skip
        score = np.concatenate([s[label != 255] for s, label in images])
        truth = np.concatenate([label[label != 255] for _, label in images]) == 1
        assert found.ap == pytest.approx(average_precision_score(truth, score), abs=2e-3)
        alarms, hits, _ = roc_curve(truth, score)
        assert found.fpr95 == pytest.approx(alarms[np.searchsorted(hits, 0.95)], abs=5e-3)
        predicted = score >= found.threshold
        assert found.f1 == pytest.approx(
            2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()), abs=1e-9
        )
        counts = np.sum([slow_components(s >= found.threshold, label) for s, label in images], axis=0)
        if found.missed is not None:
            assert [found.missed, found.false] == counts.tolist()
            assert found.components == sum(
                ndimage.label(label == 1, np.ones((3, 3)))[1] for _, label in images
            )
    assert tuning.raw.missed is not None


def test_components_are_those_of_what_using_the_model_gives(make_set, model, tmp_path):
    """With outlines by colours and by a network, and a floor; 17 and 3 pixels are 500 and 100 of 1280 x 720."""
    files, rng = make_set(images=2, size=(150, 210), sources=2), np.random.default_rng(0)
    for label in files.labels.glob("*.png"):
        write_png(tmp_path / "photos" / label.name, rng.integers(0, 256, (150, 210, 3)).astype(np.uint8))
    items = list_items(replace(files, images=tmp_path / "photos"))
    torch.manual_seed(0)
    rule = replace(model.rule, outline=True, mask_floor=0.7)
    model = AdtModel(model.net, rule, outliner=OutlineNet().eval())
    (found,) = search(items, model, ks=[0.3], bs=[0.4], tolerance=1.0).curve
    state, at_threshold = ComponentState(), 0
    for item in items:
        score, label = read_item(item)
        rule = replace(model.rule, output="fused", k=0.3, b=0.4)
        final = fuse(score, item.boxes, model, rule, image=read_image(item.image)).score
        at_threshold += int((final == np.float32(found.threshold)).sum())
        state.update(frame_components(final >= found.threshold, label, 17, 3))
    measured = state.compute()
    assert at_threshold  # it is one of these scores
    assert found.component_f1 == measured.f1
    assert (found.missed, found.false) == (measured.missed["25"], measured.false["25"])


def test_the_seed_chooses_the_pixels_of_large_images(make_set, model):
    items = list_items(make_set(images=2, size=(150, 210), sources=2))
    one, two = (search(items, model, objective="ap", ks=[1.0], bs=[0.0], seed=seed).raw for seed in (0, 1))
    assert one.ap != two.ap
    assert one.ap == pytest.approx(two.ap, abs=0.02)


def test_components_that_count_worked_by_hand(make_set, model):
    """150 x 210 pixels: 3 and more of an object count, 17 and more of what is found."""
    files = make_set(images=2, size=(150, 210), sources=2)
    label, high = np.zeros((150, 210), np.uint8), np.zeros((150, 210), bool)
    label[20:30, 30:40] = label[60:70, 30:40] = label[100, 30:32] = 1
    high[20:30, 30:40] = high[60:64, 30:40] = high[100, 30:32] = (
        True  # found, found to 40 %, too small to count
    )
    high[20:24, 100:105] = high[60:63, 100:104] = True  # a false one, and one that is too small
    low = np.linspace(-9, -8, label.size, dtype=np.float32).reshape(label.shape)
    for path in files.scores.glob("*.npz"):
        write_png(files.labels / f"{path.stem}.png", label)
        write_score(path, np.where(high, np.float32(1), low))
    raw = search(list_items(files), model, ks=[1.0], bs=[0.0]).raw
    assert (raw.threshold, raw.missed, raw.false, raw.components) == (1.0, 0, 2, 4)


def slow_components(mask, label, least=0):
    """Missed and false components at 0.25 of one image, straight from SMIYC's definition; below ``least`` none counts."""
    eight = np.ones((3, 3))
    truth, count = ndimage.label(label == 1, eight)
    found, _ = ndimage.label(mask & (label != 255), eight)
    kept = [index for index in range(1, found.max() + 1) if (found == index).sum() >= least]
    found[~np.isin(found, kept)] = 0
    missed = 0
    for index in range(1, count + 1):
        own = truth == index
        touching = np.isin(found, np.unique(found[own & (found > 0)])) & (found > 0)
        union = (own | touching) & ~((truth > 0) & ~own)
        missed += (own & touching).sum() / union.sum() < 0.25
    false = sum((truth[found == i] > 0).mean() < 0.25 for i in kept)
    return np.array([missed, false])


def test_the_choice_is_stored_with_the_model_and_searching_again_gives_the_same(make_set, tmp_path):
    files = make_set(images=16)
    model = train_adt(files, PLAN, tmp_path / "adt", seed=1)
    tuned = tune_trained(model, files, PLAN, tmp_path / "adt", seed=1)
    stored = json.loads((tmp_path / "adt" / "tuning.json").read_text())
    assert (tuned.rule.k, tuned.rule.b) == (stored["choice"]["k"], stored["choice"]["b"])
    assert load_adt(tmp_path / "adt").rule == tuned.rule
    again = tune_trained(tuned, files, PLAN, tmp_path / "again", seed=1)
    assert again.rule == tuned.rule
    pixels = tune_trained(model, files, PLAN, tmp_path / "pixels", seed=1, objective="both", tolerance=0.0)
    curve = json.loads((tmp_path / "pixels" / "tuning.json").read_text())["curve"]
    chosen = next(p for p in curve if (p["k"], p["b"]) == (pixels.rule.k, pixels.rule.b))
    assert chosen["ap"] - chosen["fpr95"] == max(p["ap"] - p["fpr95"] for p in curve)


def test_the_floor_is_the_lowest_near_the_best_by_components_counted_slowly(make_set, model):
    items = list_items(make_set(images=6))
    floors = (0.0, 0.4, 0.8, 0.95)
    found = search_floor(items, model, floors=floors, tolerance=0.02)
    assert [point.floor for point in found.curve] == list(floors)
    for point in found.curve:
        least = round(LEAST_PREDICTED * read_item(items[0])[1].size)
        rule = replace(model.rule, mask_floor=point.floor, min_component=least)
        counts = np.sum(
            [slow_components(fuse(score, item.boxes, model, rule).mask, label, least)
             for item in items for score, label in [read_item(item)]], axis=0,
        )  # fmt: skip
        assert [point.missed, point.false] == counts.tolist()
    best = max(point.component_f1 for point in found.curve)
    near = [point.floor for point in found.curve if point.component_f1 >= best - 0.02]
    assert found.choice.floor == min(near)
    kept = apply_floor(model, found)
    assert kept.rule == replace(model.rule, mask_floor=found.choice.floor)
    assert len(kept.provenance["mask_floor"]) == len(floors)
    calibrated = replace(kept, threshold=Threshold(0.5, "f1", "fused", {}))
    assert apply_floor(calibrated, found).threshold is not None
    lower = replace(found, choice=replace(found.choice, floor=0.12))
    assert apply_floor(calibrated, lower).threshold is None


@pytest.mark.parametrize("by_network", [False, True])
def test_masks_of_every_floor_have_the_outlines_that_using_the_model_has(
    make_set, model, tmp_path, by_network
):
    files = make_set(images=4)
    rng = np.random.default_rng(0)
    for label in files.labels.glob("*.png"):
        write_png(tmp_path / "photos" / label.name, rng.integers(0, 256, (64, 96, 3)).astype(np.uint8))
    items = list_items(replace(files, images=tmp_path / "photos"))
    torch.manual_seed(0)
    outliner = OutlineNet().eval() if by_network else None
    model = AdtModel(model.net, replace(model.rule, outline=True), outliner=outliner)
    found = search_floor(items, model, floors=(0.0, 0.6, 0.9))
    for point in found.curve:
        state = ComponentState()
        for item in items:
            score, label = read_item(item)
            least = round(LEAST_PREDICTED * label.size)
            rule = replace(model.rule, mask_floor=point.floor, min_component=least)
            mask = fuse(score, item.boxes, model, rule, image=read_image(item.image)).mask
            state.update(frame_components(mask, label, least, round(LEAST_TRUE * label.size)))
        assert point.component_f1 == (state.compute().f1 or 0.0)
        assert (point.missed, point.false) == (state.compute().missed["25"], state.compute().false["25"])


def test_training_stores_the_floor_that_it_was_asked_to_choose(make_set, tmp_path):
    files = make_set(images=12)
    model = train_adt(files, PLAN, tmp_path / "adt", seed=1)
    tuned = tune_trained(model, files, PLAN, tmp_path / "adt", seed=1, floor=True)
    assert load_adt(tmp_path / "adt").rule == tuned.rule
    assert tuned.rule.mask_floor in {point["floor"] for point in tuned.provenance["mask_floor"]}
    assert tune_trained(model, files, PLAN, tmp_path / "adt", seed=1).rule.mask_floor == 0


def test_scores_that_crowd_below_one_are_told_apart(make_set):
    items = list_items(make_set(images=4))
    crowded = AdtModel(AdtNet(Architecture(), ScoreStatistics(-22.0, 2.0)).eval(), FusionRule(box_score=1.0))
    found = search(items, crowded, ks=[1.0], bs=[0.0], tolerance=1.0).curve[
        0
    ]  # no box is kept: the raw order
    pairs = [read_item(item) for item in items]
    truth = np.concatenate([label[label != 255] for _, label in pairs]) == 1
    score = np.concatenate([s[label != 255] for s, label in pairs])
    assert found.ap == pytest.approx(average_precision_score(truth, score), abs=2e-3)
    best = max(2 * (p := score >= t)[truth].sum() / (p.sum() + truth.sum()) for t in np.unique(score)[::7])
    assert found.f1 == pytest.approx(best, abs=5e-3)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: 1 / (1 + np.exp(-2 * z.astype(np.float64))),  # probabilities that crowd at 0 and at 1
        lambda z: 1000 + 0.001 * z,
        lambda z: np.exp(3 * z.astype(np.float64)),
    ],
)
def test_the_plain_score_of_any_method_is_measured_as_scikit_learn_does(make_set, model, function):
    files = make_set(images=4)
    for path in sorted(files.scores.glob("*.npz")):
        write_score(path, function(read_score(path)).astype(np.float32))
    items = list_items(files)
    fitted = refit(model, [item.score for item in items])
    found = search(items, fitted, ks=[1.0], bs=[0.0])
    pairs = [read_item(item) for item in items]
    truth = np.concatenate([label[label != 255] for _, label in pairs]) == 1
    score = np.concatenate([s[label != 255] for s, label in pairs])
    alarms, hits, _ = roc_curve(truth, score)
    for measured in (found.raw, found.choice):
        assert measured.ap == pytest.approx(average_precision_score(truth, score), abs=1e-3)
        assert measured.fpr95 == pytest.approx(alarms[np.searchsorted(hits, 0.95)], abs=2e-3)


def test_k_one_and_b_zero_is_raw(make_set, model):
    plain = search(list_items(make_set(images=4)), model, ks=[1.0], bs=[0.0])
    assert plain.choice.ap == pytest.approx(plain.raw.ap, abs=1e-9)
    assert plain.choice.fpr95 == pytest.approx(plain.raw.fpr95, abs=1e-9)
    with pytest.raises(ConfigError, match="objective"):
        search([], model, objective="accuracy")
