import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anomdino.adt import outline
from anomdino.adt.outline import draw_outlines, first_guess
from anomdino.errors import DataError
from anomdino.io.boxes import Boxes


def road_with_discs(size, discs, seed=0, noise=6):
    """A grey road with noise, and discs in colours of their own: image, truth, and the boxes around the discs."""
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), (110, 112, 115), np.float64)
    truth = np.zeros(size, np.uint8)
    rows, columns = np.indices(size)
    for (x, y, radius), colour in zip(discs, ((170, 60, 40), (50, 90, 160)), strict=False):
        inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
        image[inside], truth[inside] = colour, 1
    image = (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)
    boxes = [[x - r, y - r, x + r + 1, y + r + 1] for x, y, r in discs]
    return image, truth == 1, Boxes(np.array(boxes, np.float32), np.linspace(0.9, 0.6, len(discs)))


def seeds_in(discs, size):
    """What a score finds: the middle third of every disc, highest in the centre."""
    rows, columns = np.indices(size)
    score = np.full(size, -9.0, np.float32)
    for x, y, radius in discs:
        score = np.maximum(score, -2 - 9 * np.hypot(columns - x, rows - y) / radius)
    return score.astype(np.float32), score > -5


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(
    ("size", "discs"),
    [
        ((120, 160), [(50, 60, 24)]),
        ((120, 160), [(30, 40, 14), (110, 80, 22)]),
        ((900, 1200), [(500, 430, 260)]),
        ((60, 300), [(2, 30, 20)]),
    ],
)
def test_an_object_that_the_score_covers_in_part_is_outlined_in_whole(size, discs):
    image, truth, boxes = road_with_discs(size, discs)
    score, mask = seeds_in(discs, size)
    assert overlap(mask, truth) < 0.3
    drawn = draw_outlines(image, score, boxes, mask)
    assert drawn.shape.dtype == drawn.confidence.dtype == np.float32
    assert overlap(drawn.shape >= 0.5, truth) > 0.9


def test_the_confidence_is_that_of_the_best_box_of_each_outline():
    discs = [(40, 60, 22), (58, 60, 22)]
    image, _, boxes = road_with_discs((120, 160), discs)
    score, mask = seeds_in(discs, (120, 160))
    both = draw_outlines(image, score, boxes, mask)
    alone = [draw_outlines(image, score, boxes.subset(np.array([i])), mask) for i in range(2)]
    np.testing.assert_array_equal(both.shape, np.maximum(alone[0].shape, alone[1].shape))
    expected = np.maximum(alone[0].shape * np.float32(0.9), alone[1].shape * np.float32(0.6))
    np.testing.assert_allclose(both.confidence, expected, atol=1e-6)


def test_it_is_grabcut_with_the_trimap_that_is_described():
    """A window that is not shrunk, its trimap filled pixel by pixel; in the noise all of it decides the result."""
    discs = [(70, 60, 20)]
    image, _, boxes = road_with_discs((140, 150), discs, noise=60)
    image[:, :26] = image[60, 70]  # the colour of the disc, at the end of what surrounds it
    score, mask = seeds_in(discs, (140, 150))
    drawn = draw_outlines(image, score, boxes, mask).shape
    x0, y0, x1, y1 = (float(side) for side in boxes.xyxy[0])
    left, right = int(max(0, x0 - 41 - 2)), int(min(150, x1 + 41 + 3))
    top, bottom = int(max(0, y0 - 41 - 2)), int(min(140, y1 + 41 + 3))
    trimap = np.full((bottom - top, right - left), cv2.GC_BGD, np.uint8)
    half = np.median(score[mask])
    for row in range(top, bottom):
        for column in range(left, right):
            if not (
                y0 - 2.05 < row + 1 and row < y1 + 2.05 and x0 - 2.05 < column + 1 and column < x1 + 2.05
            ):
                continue
            kind = cv2.GC_PR_BGD
            if mask[row, column]:
                kind = cv2.GC_FGD if score[row, column] >= half else cv2.GC_PR_FGD
            trimap[row - top, column - left] = kind
    window = np.ascontiguousarray(image[top:bottom, left:right])
    cv2.setRNGSeed(0)
    cv2.grabCut(window, trimap, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    found = ((trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)).astype(np.float32)
    expected = np.zeros_like(score)
    expected[top:bottom, left:right] = cv2.GaussianBlur(found, (0, 0), 1.0)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)


def test_the_same_input_gives_the_same_outlines_whatever_was_drawn_before():
    discs = [(50, 60, 24)]
    image, _, boxes = road_with_discs((120, 160), discs)
    score, mask = seeds_in(discs, (120, 160))
    first = draw_outlines(image, score, boxes, mask)
    cv2.setRNGSeed(77)
    cv2.randu(np.zeros((5, 5)), 0, 1)
    second = draw_outlines(image, score, boxes, mask)
    np.testing.assert_array_equal(first.shape, second.shape)


def test_threads_change_nothing():
    discs = [(40, 60, 14), (110, 60, 22)]
    image, _, around = road_with_discs((120, 160), discs, noise=60)
    score, mask = seeds_in(discs, (120, 160))
    boxes = Boxes(
        np.concatenate([around.xyxy + shift for shift in (-2, 0, 2)]), np.linspace(0.4, 0.9, 3 * len(around))
    )
    threads, drawn = cv2.getNumThreads(), []
    for number in (1, 4, 4):
        cv2.setNumThreads(number)
        try:
            drawn.append(draw_outlines(image, score, boxes, mask))
        finally:
            cv2.setNumThreads(threads)
    assert drawn[0].shape.max() > 0.9
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0].shape, other.shape)
        np.testing.assert_array_equal(drawn[0].confidence, other.confidence)


def test_outlines_that_are_known_are_those_that_would_be_drawn(monkeypatch):
    discs = [(40, 60, 14), (110, 60, 22)]
    image, _, boxes = road_with_discs((120, 160), discs)
    score, mask = seeds_in(discs, (120, 160))
    calls, known = [], outline.Known()
    separate = outline.separate
    monkeypatch.setattr(outline, "separate", lambda *given: calls.append(given) or separate(*given))
    narrower = mask.copy()
    narrower[:, 80:] &= score[:, 80:] > -4  # another mask for the second disc alone
    for one in (mask, mask, narrower, mask & False):
        plain, saved = (draw_outlines(image, score, boxes, one, cache) for cache in (None, known))
        np.testing.assert_array_equal(plain.shape, saved.shape)
        np.testing.assert_array_equal(plain.confidence, saved.confidence)
    assert len(calls) == 8 + (2 + 0 + 1 + 2)  # twice a mask without what is known


def test_boxes_that_tell_nothing_have_no_outline():
    discs = [(50, 60, 24)]
    image, _, boxes = road_with_discs((120, 160), discs)
    score, mask = seeds_in(discs, (120, 160))
    frame = Boxes(np.array([[0, 0, 160, 120]], np.float32), np.array([0.9]))
    empty = np.zeros_like(mask)
    for given_boxes, given_mask in ((boxes, empty), (frame, mask), (Boxes.empty(), mask)):
        drawn = draw_outlines(image, score, given_boxes, given_mask)
        assert not drawn.shape.any()
        assert not drawn.confidence.any()


def slow_guess(score, box, mask):
    """The first guess of one box, pixel by pixel."""
    (x0, y0), (x1, y1) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    wide, high = int(0.25 * (x1 - x0)) + 3, int(0.25 * (y1 - y0)) + 3
    inside, around, covered = [], [], 0
    for y in range(max(0, y0 - high), min(score.shape[0], y1 + high)):
        for x in range(max(0, x0 - wide), min(score.shape[1], x1 + wide)):
            within = x0 <= x < x1 and y0 <= y < y1
            (inside if within else around).append((float(score[y, x]), y, x))
            covered += within and bool(mask[y, x])
    guess = mask.copy()
    if covered < 8:
        level = float(np.mean([value for value, _, _ in around or inside]))
        for value, y, x in inside:
            if value >= (max(inside)[0] + level) / 2:
                guess[y, x] = True
    return guess


@settings(max_examples=40, deadline=None)
@given(
    corners=st.tuples(*[st.floats(0, 20)] * 2, *[st.floats(21, 24)] * 2),
    confidence=st.sampled_from([0.0, 0.49, 0.5, 1.0]),
    share=st.sampled_from([0.0, 0.01, 0.3]),
    seed=st.integers(0, 99),
)
@example(corners=(0, 0, 24, 24), confidence=1.0, share=0.0, seed=0)
def test_outlines_start_in_likely_boxes_that_the_mask_leaves_empty(corners, confidence, share, seed):
    rng = np.random.default_rng(seed)
    score = rng.integers(-8, 8, (24, 24)).astype(np.float32)
    mask = rng.random((24, 24)) < share
    before = mask.copy()
    guess = first_guess(score, Boxes(np.array([corners], np.float32), np.array([confidence])), mask)
    box = np.array(corners, np.float32)
    np.testing.assert_array_equal(guess, slow_guess(score, box, mask) if confidence >= 0.5 else mask)
    np.testing.assert_array_equal(mask, before)


def test_a_likely_box_has_an_outline_however_low_its_object_scores():
    discs = [(40, 60, 9), (120, 60, 9)]
    image, truth, boxes = road_with_discs((120, 160), discs)
    score, _ = seeds_in(discs, (120, 160))
    empty = np.zeros_like(truth)
    given = Boxes(boxes.xyxy, np.array([0.9, 0.4]))
    drawn = draw_outlines(image, score, given, first_guess(score, given, empty))
    left = truth & (np.indices(truth.shape)[1] < 80)
    assert overlap(drawn.shape >= 0.5, left) > 0.8


def test_an_image_of_another_size_or_without_colours_is_refused():
    image, _, boxes = road_with_discs((60, 80), [(30, 30, 10)])
    score, mask = seeds_in([(30, 30, 10)], (60, 80))
    for wrong in (image[:-1], image[..., 0], np.dstack([image, image[..., :1]])):
        with pytest.raises(DataError, match="image: has the shape"):
            draw_outlines(wrong, score, boxes, mask)
    with pytest.raises(DataError, match="its mask"):
        draw_outlines(image, score, boxes, mask[:, :-1])


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.lists(st.tuples(*[st.floats(-20, 110)] * 4), max_size=4),
    st.integers(0, 2**16),
)
@example((40, 1), [(0.0, 0.0, 1.0, 15.0)], 0)
@settings(max_examples=60, deadline=None)
def test_outlines_stay_in_their_boxes_and_in_range(size, corners, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    score, mask = rng.normal(size=size).astype(np.float32), rng.random(size) < rng.random()
    boxes = Boxes(np.array(corners, np.float32).reshape(-1, 4), np.full(len(corners), 0.7)).clipped(size)
    drawn = draw_outlines(image, score, boxes, mask)
    assert drawn.shape.shape == size
    assert drawn.shape.min() >= 0
    assert drawn.shape.max() <= 1
    assert (drawn.confidence <= drawn.shape).all()
    allowed = np.zeros(size, bool)
    for x0, y0, x1, y1 in boxes.xyxy:
        wide, high = 0.05 * (x1 - x0) + 6, 0.05 * (y1 - y0) + 6  # and what the blur spreads
        rows, columns = (
            slice(max(0, int(y0 - high)), int(y1 + high) + 1),
            slice(max(0, int(x0 - wide)), int(x1 + wide) + 1),
        )
        allowed[rows, columns] = True
    assert not drawn.shape[~allowed].any()


@pytest.mark.parametrize("colour", [0, 128, 255])
@pytest.mark.parametrize("size", [(60, 80), (3, 500), (700, 4)])
def test_images_of_one_colour_or_of_a_few_rows_are_fine(colour, size):
    score, mask = seeds_in([(size[1] // 2, size[0] // 2, 12)], size)
    boxes = Boxes(
        np.array([[size[1] / 2 - 8, size[0] / 2 - 8, size[1] / 2 + 8, size[0] / 2 + 8]]), np.ones(1)
    )
    drawn = draw_outlines(np.full((*size, 3), colour, np.uint8), score, boxes.clipped(size), mask)
    assert np.isfinite(drawn.shape).all()
    assert drawn.shape.shape == size


def test_large_windows_are_shrunk_and_enlarged_again(monkeypatch):
    discs = [(150, 140, 70)]
    image, truth, boxes = road_with_discs((300, 320), discs)
    score, mask = seeds_in(discs, (300, 320))
    whole = draw_outlines(image, score, boxes, mask).shape
    monkeypatch.setattr(outline, "SIDE", 48)
    small = draw_outlines(image, score, boxes, mask).shape
    assert overlap(whole >= 0.5, truth) > overlap(small >= 0.5, truth) > 0.85
