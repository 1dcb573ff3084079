"""Overlays: what is drawn where."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomdino.io.boxes import Boxes
from anomdino.viz.overlay import (
    BOX_COLOUR,
    FOOTER,
    MASK_COLOUR,
    NARROWEST,
    TRUTH_COLOUR,
    ScoreRange,
    colour_table,
    draw_overlay,
    heat_overlay,
)
from anomdino.viz.score_views import common_range


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=30), st.floats(-10, 10), st.floats(0.01, 10)
)
def test_unit_is_monotone_and_bounded(values, low, width):
    score = np.sort(np.array(values, np.float32))[None]
    unit = ScoreRange(low, low + width).unit(score)
    assert unit.min() >= 0
    assert unit.max() <= 1
    assert (np.diff(unit[0]) >= 0).all()


def test_a_range_without_width_is_black():
    assert (ScoreRange(3, 3).unit(np.full((2, 2), 3, np.float32)) == 0).all()


def test_heat_at_the_ends_follows_the_formula():
    image = np.full((1, 2, 3), 100, np.uint8)
    got = heat_overlay(image, np.array([[0, 1]], np.float32), ScoreRange(0, 1), blend=0.6)
    table = colour_table("inferno").astype(float)
    expected = [100 * 0.85 + table[0] * 0.15, 100 * 0.4 + table[255] * 0.6]
    np.testing.assert_allclose(got[0], expected, atol=1)


def changed_region(with_it, without):
    rows, columns = np.nonzero((with_it != without).any(axis=2)[:-FOOTER])
    return rows.min(), rows.max(), columns.min(), columns.max()


@pytest.mark.parametrize(
    ("element", "colour"), [("mask", MASK_COLOUR), ("truth", TRUTH_COLOUR), ("boxes", BOX_COLOUR)]
)
def test_elements_are_drawn_where_they_are(element, colour):
    image = np.full((200, 400, 3), 60, np.uint8)
    score, span = np.zeros((200, 400), np.float32), ScoreRange(0, 1)
    region = np.zeros((200, 400), np.uint8)
    region[60:120, 40:100] = 1
    value = {
        "mask": region > 0,
        "truth": region,
        "boxes": Boxes(np.array([[40, 60, 100, 120]]), np.array([0.5])),
    }
    bare = draw_overlay(image, score, span)
    drawn = draw_overlay(image, score, span, **{element: value[element]})
    assert drawn.shape == (200 + FOOTER, 400, 3)
    top, bottom, left, right = changed_region(drawn, bare)
    label = 20 if element == "boxes" else 0
    assert 60 - 3 - label <= top <= 62
    assert 117 <= bottom <= 122
    assert 37 <= left <= 42
    assert 97 <= right <= 102
    towards = np.abs(drawn.astype(int) - colour).sum(axis=2) < np.abs(bare.astype(int) - colour).sum(axis=2)
    assert towards[60:120, 38:43].sum() > 50


def test_boxes_and_outlines_follow_a_photo_that_is_shrunk():
    image, score = np.full((400, 1600, 3), 60, np.uint8), np.zeros((400, 1600), np.float32)
    region = np.zeros((400, 1600), bool)
    region[160:320, 400:800] = True
    boxes = Boxes(np.array([[400, 160, 800, 320], [400, 160, 800, 320]]), np.array([0.9, 0.1]))
    bare, whole = (draw_overlay(image, score, ScoreRange(0, 1), mask=m, max_side=400) for m in (None, region))
    np.testing.assert_allclose(changed_region(whole, bare), (40, 80, 100, 200), atol=3)
    boxed = draw_overlay(image, score, ScoreRange(0, 1), boxes=boxes, max_side=400)
    assert changed_region(boxed, bare)[1:] == (79, 100, 199)
    sure = draw_overlay(image, score, ScoreRange(0, 1), boxes=boxes.subset(slice(0, 1)), max_side=400)
    np.testing.assert_array_equal(boxed[:-FOOTER], sure[:-FOOTER])  # the surest box is drawn last


@pytest.mark.parametrize(
    ("box", "rows"),
    [((100, 40, 200, 90), (45, 57)), ((100, 40, 200, 200), (8, 20)), ((100, 0, 200, 200), (0, 12))],
)
def test_numbers_stand_below_their_object_or_above_it_where_there_is_no_room(box, rows):
    image, score = np.full((200, 1200, 3), 60, np.uint8), np.zeros((200, 1200), np.float32)
    bare = draw_overlay(image, score, ScoreRange(0, 1), max_side=600)
    wide, short = (
        changed_region(
            draw_overlay(image, score, ScoreRange(0, 1), numbers=[(number, box)], max_side=600), bare
        )
        for number in (12, 1)
    )
    top, bottom, left, right = wide
    assert abs(top - rows[0]) <= 3
    assert abs(bottom - rows[1]) <= 3
    assert (left, short[2]) == (50, 50)
    assert 65 <= right <= 85
    assert (short[:2], short[3] < right) == ((top, bottom), True)


@pytest.mark.parametrize("side", ["mask", "truth"])
def test_small_things_of_a_large_photo_are_seen(side):
    """Three columns of the photo are one of the picture: of each place, none may fall between."""
    image, score = np.full((90, 1800, 3), 60, np.uint8), np.zeros((90, 1800), np.float32)
    bare = draw_overlay(
        image, score, ScoreRange(0, 1), max_side=600, **{side: np.zeros((90, 1800), np.uint8)}
    )
    for at in range(40, 46):
        region = np.zeros((90, 1800), np.uint8)
        region[at, 20 * at] = 1
        picture = draw_overlay(image, score, ScoreRange(0, 1), max_side=600, **{side: region})
        top, bottom, left, right = changed_region(picture, bare)
        assert top <= at // 3 <= bottom
        assert left <= 20 * at // 3 <= right


def test_void_is_darkened():
    truth = np.zeros((50, 60), np.uint8)
    truth[:20] = 255
    picture = draw_overlay(
        np.full((50, 60, 3), 120, np.uint8), np.zeros((50, 60), np.float32), ScoreRange(0, 1), truth=truth
    )
    assert picture[:20, :60].mean() < 0.6 * picture[20:50, :60].mean()


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (2000, 3000)])
def test_any_size_is_drawn(size):
    picture = draw_overlay(
        np.zeros((*size, 3), np.uint8),
        np.zeros(size, np.float32),
        ScoreRange(0, 1),
        boxes=Boxes(np.array([[0, 0, size[1], size[0]]]), np.ones(1)),
        mask=np.ones(size, bool),
        max_side=640,
    )
    assert max(picture.shape[0] - FOOTER, picture.shape[1]) <= 640


def footer(width, title=""):
    picture = draw_overlay(
        np.zeros((40, width, 3), np.uint8),
        np.zeros((40, width), np.float32),
        ScoreRange(0.123, 1.4, "fused, above median"),
        boxes=Boxes.empty(),
        mask=np.zeros((40, width), bool),
        title=title,
    )
    return picture[-FOOTER:]


def test_the_footer_of_a_narrow_photo_has_room_for_its_words():
    narrow, wide = footer(40), footer(NARROWEST)
    np.testing.assert_array_equal(narrow, wide)
    inked = (wide[24:] != wide[-1, -1]).any(axis=(0, 2))
    assert inked[100:120].any()  # the end of "mask"
    assert not inked[130:180].any()
    assert inked[180:200].any()  # the lower end of the range


def test_names_with_accents_are_written():
    shown = [footer(400, name)[:20, :100] for name in ("\ufffe\ufffe", "üß", "жж")]
    assert all((one != other).any() for one, other in ((shown[0], shown[1]), (shown[1], shown[2])))
    np.testing.assert_array_equal(footer(400, "a\nb\udcff"), footer(400, "a?b?"))
    assert (footer(400, "ü")[:20, :100] != footer(400, "é")[:20, :100]).any()


def test_signs_that_no_font_here_has_are_told_by_question_marks():
    """Pillow would draw an empty frame for each, which says less, and looks like a fault."""
    np.testing.assert_array_equal(footer(400, "日本 a🦌"), footer(400, "?? a?"))
    np.testing.assert_array_equal(footer(400, "日é"), footer(400, "?é"))
    shown = [footer(400, name)[:20, :100] for name in ("é", "?")]
    assert (shown[0] != shown[1]).any()


def drawn(span=(0.25, 1.5), score=0.5, title=""):
    """A picture with a box at its lower left, and its footer."""
    boxes = Boxes(np.array([[0, 30, 60, 60]]), np.array([score]))
    photo, heat = np.zeros((60, 400, 3), np.uint8), np.zeros((60, 400), np.float32)
    return np.split(draw_overlay(photo, heat, ScoreRange(*span), boxes=boxes, title=title), [60])


def test_the_colour_bar_rises_and_its_ends_are_written_below_them():
    _, whole = drawn()
    bar = whole[12]
    left, right = 400 - 12 - 133, 400 - 12 - 1  # a third of the width, twelve pixels from the edge
    table = colour_table("inferno")
    np.testing.assert_array_equal([bar[left], bar[right]], [table[0], table[255]])
    for span, low, high in (((0.75, 1.5), True, False), ((0.25, 2.5), False, True)):
        changed = (drawn(span)[1] != whole).any(axis=(0, 2))
        assert (changed[left : left + 60].any(), changed[right - 60 :].any()) == (low, high)
        assert not changed[: left - 1].any()


def test_a_box_has_its_confidence_beside_it():
    one, other = drawn(score=0.25)[0], drawn(score=0.75)[0]
    rows, columns = np.nonzero((one != other).any(axis=2))
    assert rows.max() < 30
    assert columns.max() < 40


def test_of_a_long_title_the_end_is_written():
    """Frames and photos of one drive differ at the end of their names."""
    np.testing.assert_array_equal(drawn(title="a" * 90 + "c" * 90)[1], drawn(title="b" * 90 + "c" * 90)[1])
    assert (drawn(title="a" * 90 + "17")[1] != drawn(title="a" * 90 + "18")[1]).any()


def test_the_legend_names_what_was_looked_for():
    def legend(**found):
        picture = draw_overlay(
            np.zeros((40, 400, 3), np.uint8), np.zeros((40, 400), np.float32), ScoreRange(0, 1), **found
        )
        return {tuple(colour) for colour in picture[-FOOTER + 24 :, :130].reshape(-1, 3)}

    mask = np.zeros((40, 400), bool)
    assert {BOX_COLOUR, MASK_COLOUR} <= legend(boxes=Boxes.empty(), mask=mask)
    assert not {BOX_COLOUR, TRUTH_COLOUR} & legend(mask=mask)
    assert TRUTH_COLOUR in legend(truth=mask.astype(np.uint8))


def test_common_range_is_that_of_the_whole_set():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(50, 60)).astype(np.float32) for _ in range(5)]
    span = common_range(iter(maps), 2, 98)
    low, high = np.percentile(np.stack(maps).astype(np.float64), [2, 98])
    assert (span.low, span.high) == pytest.approx((low, high))
