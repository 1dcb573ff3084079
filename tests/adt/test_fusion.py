import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from anomdino.adt.components import remove_small_components
from anomdino.adt.fusion import (
    CROWDED,
    OUTPUTS,
    AdtModel,
    FusionRule,
    compute_surfaces,
    final_score,
    fuse,
    ordered,
    score_order,
)
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.adt.outline import draw_outlines
from anomdino.errors import ConfigError, DataError
from anomdino.io.boxes import Boxes


def same_order(first, second):
    a, b = first.ravel(), second.ravel()
    order = np.argsort(a, kind="stable")
    rises = np.sign(np.diff(a[order]))
    return np.array_equal(np.sign(np.diff(b[order])), rises)


@pytest.mark.parametrize("output", OUTPUTS)
def test_rules_against_their_formulas(model, scene, output):
    score, _, boxes = scene
    rule = FusionRule(output=output, k=0.4, b=0.2)
    got = fuse(score, boxes, model, rule)
    unit = 1 / (1 + np.exp(-(score.astype(np.float64) + 6) / 2))
    inside, coverage = boxes.kept(0.3).mask(score.shape), boxes.kept(0.3).coverage(score.shape)
    soft_p = 1 / (1 + np.exp(-(got.decision.astype(np.float64) - got.threshold) / 0.05))
    soft = unit * (0.4 + 0.6 * soft_p)
    expected = {
        "raw": score,
        "hard": unit * inside,
        "soft": soft,
        "boost": unit + 0.2 * inside,
        "fused": soft + 0.2 * coverage,
    }[output]
    np.testing.assert_allclose(got.score, expected, rtol=2e-5, atol=1e-6)
    assert got.score.dtype == np.float32
    np.testing.assert_array_equal(got.mask, got.decision >= got.threshold)


@pytest.mark.parametrize("output", ["raw", "soft", "boost", "fused"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("spread", [0.001, 1.0, 40.0])
def test_without_boxes_the_order_of_the_score_is_kept_exactly(output, sign, spread):
    torch.manual_seed(0)
    model = AdtModel(AdtNet(Architecture(), ScoreStatistics(-6.0, 2.0, sign)).eval())
    score = np.random.default_rng(1).normal(-6, spread, (120, 170)).astype(np.float32)
    score[5, 5:40] = score[7, 7]
    fused = fuse(score, Boxes.empty(), model, FusionRule(output=output))
    assert same_order(sign * score, fused.score)
    assert len(np.unique(fused.score)) == len(np.unique(score))
    assert not len(fused.boxes)


def test_boxes_below_the_confidence_count_as_none(model, scene):
    score, _, boxes = scene
    weak = Boxes(boxes.xyxy, boxes.scores * 0.1)
    np.testing.assert_array_equal(fuse(score, weak, model).score, fuse(score, Boxes.empty(), model).score)


def test_distinct_scores_stay_nearly_all_distinct_with_boxes(model, scene):
    score, _, boxes = scene
    assert len(np.unique(fuse(score, boxes, model).score)) > 0.98 * len(np.unique(score))


@pytest.fixture
def crowded():
    """Scores of a method that crowds: most pixels in a narrow band, the rest 5 to 60 standard deviations above it."""
    rng = np.random.default_rng(8)
    score = rng.normal(-6, 0.5, (80, 120)).astype(np.float32)
    score[20:60, 30:90] = rng.uniform(4, 114, (40, 60))
    return score


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("output", "k", "b"), [("fused", 1, 0), ("soft", 1, 0.3), ("boost", 0.2, 0)])
def test_with_boxes_that_change_nothing_the_order_is_kept_exactly(crowded, sign, output, k, b):
    torch.manual_seed(0)
    model = AdtModel(AdtNet(Architecture(), ScoreStatistics(-6.0, 2.0, sign)).eval())
    boxes = Boxes(np.array([[2, 2, 70, 40]]), np.array([0.9]))
    fused = fuse(sign * crowded, boxes, model, FusionRule(output=output, k=k, b=b))
    assert len(fused.boxes) == 1
    assert same_order(crowded, fused.score)
    assert len(np.unique(fused.score)) == len(np.unique(crowded))


@pytest.mark.parametrize(("output", "k", "b"), [("boost", 1, 0.3), ("fused", 1, 0.3), ("hard", 1, 0)])
def test_what_a_rule_treats_alike_keeps_its_order_however_high_it_scores(model, crowded, output, k, b):
    boxes = Boxes(np.array([[2, 2, 70, 40]]), np.array([1.0]))
    fused = fuse(crowded, boxes, model, FusionRule(output=output, k=k, b=b))
    inside = boxes.mask(crowded.shape)
    high = crowded > -6 + 2 * np.log(CROWDED / (1 - CROWDED)) + 0.01
    assert high.sum() > 1500
    for region in (inside & high, ~inside & high)[: 1 if output == "hard" else 2]:
        assert same_order(crowded[region], fused.score[region])
        assert len(np.unique(fused.score[region])) == len(np.unique(crowded[region]))
    plain = final_score(fused.surfaces, FusionRule("boost", 1, 0)) + b * inside
    plain = plain * inside if output == "hard" else plain
    np.testing.assert_allclose(fused.score, plain, atol=1e-3)


def test_what_crowds_outside_of_the_boxes_is_nothing_to_hard(model, crowded):
    boxes = Boxes(np.array([[0, 0, 10, 10]]), np.array([1.0]))
    fused = fuse(crowded, boxes, model, FusionRule(output="hard"))
    assert not fused.score[10:, 10:].any()
    assert same_order(crowded[:10, :10], fused.score[:10, :10])


def test_a_box_between_the_centres_of_pixels_is_none(model, scene):
    score, _, _ = scene
    narrow = Boxes(np.array([[10.6, 10.6, 11.4, 11.4], [5, 20.55, 80, 21.45]]), np.array([0.9, 0.9]))
    fused = fuse(score, narrow, model)
    assert not len(fused.boxes)
    assert same_order(score, fused.score)
    assert len(narrow.on_pixels()) == 0
    assert len(Boxes(np.array([[10.6, 10.4, 11.6, 10.6]]), np.array([0.9])).on_pixels()) == 1


def test_a_higher_box_confidence_wins_where_boxes_overlap(model, scene):
    score = scene[0]
    boxes = Boxes(np.array([[10, 10, 40, 40], [20, 20, 50, 50]]), np.array([0.9, 0.5]))
    surfaces = compute_surfaces(score, boxes, model.net, 0.3)
    assert surfaces.coverage[30, 30] == pytest.approx(0.9)
    assert surfaces.coverage[45, 45] == pytest.approx(0.5)
    assert surfaces.coverage[5, 5] == 0


@pytest.mark.parametrize("size", [(1, 2), (7, 7), (64, 1), (33, 250), (9, 8)])
def test_any_size_and_box_position(model, size):
    score = np.random.default_rng(0).normal(size=size).astype(np.float32)
    boxes = Boxes(np.array([[-5, -5, 3, 3], [0, 0, 9999, 9999], [4, 4, 4, 4], [9, 9, 2, 2]]), np.full(4, 0.9))
    fused = fuse(score, boxes, model)
    assert fused.score.shape == fused.mask.shape == fused.threshold.shape == size
    assert np.isfinite(fused.score).all()
    assert len(fused.boxes) <= 2


def test_images_of_mixed_sizes_do_not_depend_on_each_other(model, scene):
    score, _, boxes = scene
    first = fuse(score, boxes, model)
    fuse(score[:31, :47], Boxes.empty(), model)
    np.testing.assert_array_equal(first.score, fuse(score, boxes, model).score)


def test_surfaces_serve_all_rules_at_once(model, scene):
    score, _, boxes = scene
    surfaces = compute_surfaces(score, boxes, model.net, 0.3)
    for output in OUTPUTS:
        rule = FusionRule(output=output)
        np.testing.assert_array_equal(final_score(surfaces, rule), fuse(score, boxes, model, rule).score)


@given(arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))), st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_small_components_against_scipy(mask, limit):
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    expected = mask.copy()
    for component in range(1, count + 1):
        if (labels == component).sum() < limit:
            expected[labels == component] = False
    before = mask.copy()
    np.testing.assert_array_equal(remove_small_components(mask, limit), expected)
    np.testing.assert_array_equal(mask, before)


def test_a_thin_ring_goes_and_what_it_surrounds_stays():
    ring = np.zeros((30, 40), bool)
    ring[2:20, 2:22] = True
    ring[3:19, 3:21] = False  # 72 pixels
    inner = np.zeros_like(ring)
    inner[6:16, 7:17] = True
    inner[9:12, 10:13] = False  # 91 pixels round a hole ...
    dot = np.zeros_like(ring)
    dot[10, 11] = True  # ... with one pixel in it
    edge = np.zeros_like(ring)
    edge[25:, 30:] = True  # 50 pixels, at the border
    whole = ring | inner | dot | edge
    for limit, expected in (
        (1, whole),
        (2, ring | inner | edge),
        (51, ring | inner),
        (73, inner),
        (92, inner & ring),
    ):
        np.testing.assert_array_equal(remove_small_components(whole, limit), expected)


@given(
    arrays(np.float32, 60, elements=st.floats(-1e4, 1e4, width=32)),
    st.floats(0.001, 10),
)
@settings(max_examples=150, deadline=None)
def test_order_is_restored_with_small_changes(scores, scale):
    reference = scores.reshape(6, 10)
    values = np.exp(-np.logaddexp(0, -reference.astype(np.float64) * scale)).astype(np.float32)
    fixed = ordered(score_order(reference), values)
    assert same_order(reference, fixed)
    np.testing.assert_allclose(fixed, values, rtol=60 * 2**-23, atol=1e-37)


def bad_maps():
    good = np.random.default_rng(0).normal(size=(10, 12)).astype(np.float32)
    nan, infinite = good.copy(), good.copy()
    nan[3, 3], infinite[0, 0] = np.nan, -np.inf
    return [
        (nan, "1 NaN"),
        (infinite, "1 NaN or infinite"),
        (np.full((5, 5), 3.0), "constant"),
        (good[None], r"shape \(1, 10, 12\)"),
        (np.zeros((0, 4)), "shape"),
    ]


@pytest.mark.parametrize(("score", "reason"), bad_maps())
def test_maps_that_rank_nothing_are_refused(model, score, reason):
    with pytest.raises(DataError, match=reason):
        fuse(score, Boxes.empty(), model)


def test_a_map_of_another_size_is_refused(model, scene):
    with pytest.raises(DataError, match="90 x 141, the image is 100 x 141"):
        fuse(scene[0], scene[2], model, image_size=(100, 141))


def test_boxes_that_are_no_numbers_are_refused(model, scene):
    with pytest.raises(DataError, match="NaN"):
        fuse(scene[0], Boxes(np.array([[0, 0, np.nan, 5]]), np.array([0.9])), model)


def expected_floor(net, score, inside, floor):
    """S_n of the score that the floor stands for, in both regions, in float64."""
    standardised = (score.astype(np.float64) + 6) / 2
    slopes = np.log1p(np.exp(net.raw_slopes.detach().double().numpy()))
    means = np.array([standardised[inside].mean(), standardised[~inside].mean()])
    return 0.3 + 0.5 / (1 + np.exp(-slopes * (np.log(floor / (1 - floor)) - means)))


@pytest.mark.parametrize("floor", [0.3, 0.5, 0.8])
def test_the_floor_raises_thresholds_to_the_score_that_it_stands_for(model, scene, floor):
    score, _, boxes = scene
    free, got = fuse(score, boxes, model), fuse(score, boxes, model, FusionRule(mask_floor=floor))
    inside = boxes.mask(score.shape)
    least = np.where(inside, *expected_floor(model.net, score, inside, floor))
    np.testing.assert_allclose(got.threshold, np.maximum(free.threshold, least), atol=1e-5)
    unit = 1 / (1 + np.exp(-(score.astype(np.float64) + 6) / 2))
    np.testing.assert_array_equal(got.mask, got.decision >= got.threshold)
    np.testing.assert_array_equal(got.mask, free.mask & (unit >= floor))
    above = 1 / (1 + np.exp(-(got.decision - got.threshold.astype(np.float64)) / 0.05))
    expected = unit * (0.6 + 0.4 * above) + 0.1 * boxes.coverage(score.shape)
    np.testing.assert_allclose(got.score, expected, atol=1e-4)


def test_with_a_floor_an_image_without_boxes_keeps_the_order_of_its_scores(model, scene):
    score = scene[0]
    got = fuse(score, Boxes.empty(), model, FusionRule(k=0.2, mask_floor=0.7)).score
    np.testing.assert_array_equal(np.argsort(got, axis=None), np.argsort(score, axis=None))


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "best"},
        {"k": 1.5},
        {"b": -1},
        {"box_score": 1.5},
        {"box_score": float("nan")},
        {"mask_floor": 1.0},
        {"mask_floor": -0.1},
    ],
)
def test_impossible_rules_are_refused(changes):
    with pytest.raises(ConfigError):
        FusionRule(**changes)


@pytest.fixture
def photo(scene):
    """A photo of the scene, its two blobs in a colour of their own."""
    _, label, _ = scene
    image = np.full((*label.shape, 3), (90, 95, 100), np.uint8)
    image[label == 1] = (200, 60, 30)
    noise = np.random.default_rng(0).integers(0, 12, image.shape).astype(np.uint8)
    return image + noise


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("sign", [1, -1])
def test_outlines_against_their_formulas(model, scene, photo, output, sign):
    """P~ and mask take the outline in, and b counts inside it, times the confidence of its box."""
    score, _, boxes = scene
    net = AdtNet(model.net.architecture, ScoreStatistics(-6.0, 2.0, sign)).eval()
    net.load_state_dict(model.net.state_dict(), strict=False)
    net.statistics = ScoreStatistics(-6.0, 2.0, sign)
    rule = FusionRule(output=output, k=0.4, b=0.2, outline=True)
    got = fuse(sign * score, boxes, AdtModel(net), rule, image=photo)
    before = fuse(sign * score, boxes, AdtModel(net), FusionRule(output=output, k=0.4, b=0.2))
    drawn = draw_outlines(photo, score, boxes.kept(0.3).clipped(score.shape), before.mask)
    assert (drawn.shape >= 0.5).sum() > 50
    unit = 1 / (1 + np.exp(-(score.astype(np.float64) + 6) / 2))
    soft_p = 1 / (1 + np.exp(-(got.decision.astype(np.float64) - got.threshold) / 0.05))
    soft = unit * (0.4 + 0.6 * np.maximum(soft_p, drawn.shape))
    inside = boxes.kept(0.3).mask(score.shape)
    expected = {
        "raw": score,
        "hard": unit * inside,
        "soft": soft,
        "boost": unit + 0.2 * inside,
        "fused": soft + 0.2 * drawn.confidence,
    }[output]
    np.testing.assert_allclose(got.score, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(got.mask, before.mask | (drawn.shape >= 0.5))


def test_no_outline_without_the_rule_or_the_photo_or_a_box(model, scene, photo):
    score, _, boxes = scene
    plain, outlined = FusionRule(), FusionRule(outline=True)
    expected = fuse(score, boxes, model, plain)
    for got in (fuse(score, boxes, model, plain, image=photo), fuse(score, boxes, model, outlined)):
        np.testing.assert_array_equal(got.score, expected.score)
        np.testing.assert_array_equal(got.mask, expected.mask)
    alone = fuse(score, Boxes.empty(), model, outlined, image=photo)
    assert same_order(score, alone.score)
    with pytest.raises(DataError, match="image: has the shape"):
        fuse(score, boxes, model, outlined, image=photo[:-1])


def test_a_box_covers_the_pixels_whose_centres_it_holds_the_surest_box_on_top(model):
    score = np.random.default_rng(0).normal(-6, 2, (9, 12)).astype(np.float32)
    corners = np.array(
        [[1.5, 2.4, 5.5, 6.6], [3.2, 0.0, 9.51, 4.5], [11.6, 8.4, 12.0, 9.0], [4.0, 3.0, 8.0, 6.0]]
    )
    boxes = Boxes(corners, np.array([0.9, 0.5, 0.8, 0.7]))
    expected = np.zeros(score.shape)
    for (x0, y0, x1, y1), confidence in zip(corners, boxes.scores, strict=True):
        for y, x in np.ndindex(*score.shape):
            if x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1:
                expected[y, x] = max(expected[y, x], confidence)
    surfaces = compute_surfaces(score, boxes, model.net, 0.3)
    np.testing.assert_array_equal(surfaces.coverage, expected)
    np.testing.assert_array_equal(surfaces.inside, expected > 0)
