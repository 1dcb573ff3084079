"""The same object, the same number."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomdino.errors import BackendMissing
from anomdino.tracking.motion import thumbnail
from anomdino.tracking.tracker import Tracker, assigned, grown, overlaps
from tests.tracking.test_motion import scene, warped

BARE = np.full((360, 640, 3), 90, np.uint8)
CAR = [100, 100, 160, 140]
BOX = [400, 220, 440, 250]


def look(tracker, *boxes, image=BARE):
    found = tracker.look(image, np.array(boxes, np.float32).reshape(-1, 4))
    return [track.number for track in found]


def shifted(box, x, y=0):
    return [box[0] + x, box[1] + y, box[2] + x, box[3] + y]


def test_numbers_count_up_and_stay():
    tracker = Tracker()
    assert look(tracker, CAR, BOX) == [1, 2]
    assert look(tracker, shifted(BOX, 3), shifted(CAR, 4)) == [2, 1]
    assert look(tracker, [10, 10, 40, 30], CAR) == [3, 1]
    assert [(track.number, track.looks, track.missed) for track in tracker.tracks] == [
        (1, 3, 0), (2, 2, 1), (3, 1, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("patience", [1, 3])
def test_an_object_may_be_missing_for_a_while(patience):
    tracker = Tracker(patience)
    assert look(tracker, CAR) == [1]
    for _ in range(patience):
        assert look(tracker) == []
    assert look(tracker, CAR) == [1]
    for _ in range(patience + 1):
        assert look(tracker) == []
    assert tracker.tracks == []
    assert look(tracker, CAR) == [2]


def test_boxes_move_along_while_nothing_is_looked_for():
    image = scene()
    pictures = [warped(image, [[1, 0, 14 * step], [0, 1, 0]]) for step in range(7)]
    tracker = Tracker()
    assert look(tracker, CAR, image=pictures[0]) == [1]
    for picture in pictures[1:6]:
        tracker.follow(thumbnail(picture))
    (track,) = tracker.tracks
    np.testing.assert_allclose(track.box, shifted(CAR, 70), atol=2)
    assert look(tracker, shifted(CAR, 84), image=pictures[6]) == [1]
    assert look(Tracker(), CAR) == [1]  # in a bare picture nothing shows that it moved
    still = Tracker()
    look(still, CAR)
    assert look(still, shifted(CAR, 84)) == [2]


def test_cuts_one_behind_the_other_lead_to_no_box_that_is_no_number():
    tracker, rng = Tracker(), np.random.default_rng(0)
    look(tracker, CAR, BOX, [0, 0, 640, 360])
    for _ in range(60):
        tracker.follow(thumbnail(rng.integers(0, 256, (360, 640, 3), dtype=np.uint8)))
    assert len(look(tracker, CAR)) == 1
    tracker.tracks[0].box = np.array([-1e30, -1e30, 1e30, 1e30])
    tracker.tracks.append(type(tracker.tracks[0])(99, np.full(4, np.nan)))
    tracker.follow(thumbnail(BARE))
    assert not {99} & {track.number for track in tracker.tracks}
    assert all(np.abs(track.box).max() < 1e4 for track in tracker.tracks)
    assert len(look(tracker, CAR, BOX)) == 2


def test_an_object_that_left_the_frame_is_forgotten():
    image = scene()
    pictures = [warped(image, [[1, 0, -30 * step], [0, 1, 0]]) for step in range(5)]
    tracker = Tracker()
    box = [20, 100, 60, 140]
    assert look(tracker, box, image=pictures[0]) == [1]
    for picture in pictures[1:4]:
        tracker.follow(thumbnail(picture))
    assert look(tracker, image=pictures[4]) == []
    assert tracker.tracks == []


def test_the_sum_of_the_overlaps_decides():
    tracker = Tracker()
    first, second = [100, 100, 160, 140], [120, 100, 180, 140]
    assert look(tracker, first, second) == [1, 2]
    # the nearest of the new boxes to the first is right of the middle, but both pairs together say otherwise
    assert look(tracker, shifted(first, 12), shifted(second, 12)) == [1, 2]


def test_small_objects_need_not_touch():
    tracker = Tracker()
    assert look(tracker, [300, 200, 304, 203]) == [1]
    assert look(tracker, [305, 200, 309, 203]) == [1]
    assert look(tracker, [330, 200, 334, 203]) == [2]


def test_a_frame_of_another_size():
    tracker = Tracker()
    look(tracker, CAR)
    assert look(tracker, CAR, image=np.full((300, 500, 3), 90, np.uint8)) == [1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 600), st.integers(0, 330)), max_size=5, unique=True), max_size=8
    )
)
def test_one_number_an_object_and_no_number_twice(looks):
    tracker, before, forgotten = Tracker(1), set(), set()
    for places in looks:
        numbers = look(tracker, *[[x, y, x + 20, y + 20] for x, y in places])
        assert len(set(numbers)) == len(places)
        assert not forgotten & set(numbers)
        alive = {track.number for track in tracker.tracks}
        assert set(numbers) <= alive
        forgotten |= before - alive
        before = alive


coordinates = st.floats(0, 100, allow_nan=False, width=32)
some_boxes = st.lists(
    st.tuples(coordinates, coordinates, st.floats(1, 40), st.floats(1, 40)), max_size=4
).map(lambda rows: np.array([[x, y, x + w, y + h] for x, y, w, h in rows], np.float64).reshape(-1, 4))


@settings(max_examples=60, deadline=None)
@given(some_boxes, some_boxes)
def test_overlaps_are_intersection_over_union(first, second):
    found = overlaps(first, second)
    assert found.shape == (len(first), len(second))
    for (i, a), (j, b) in itertools.product(enumerate(first), enumerate(second)):
        wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        both = max(wide, 0) * max(high, 0)
        either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
        assert found[i, j] == pytest.approx(both / either, abs=1e-9)


def test_boxes_grow_by_a_quarter_or_by_the_margin():
    np.testing.assert_allclose(grown(np.array([[10.0, 20, 50, 24]]), 3), [[10 - 10, 20 - 3, 50 + 10, 24 + 3]])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2**31))
def test_assignment_has_the_largest_sum_of_all(rows, columns, seed):
    benefit = np.random.default_rng(seed).uniform(size=(rows, columns)).round(2)
    pairs = assigned(benefit, 0.4)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(benefit[pair] >= 0.4 for pair in pairs)
    useful = np.where(benefit >= 0.4, benefit, 0)
    short, long = (useful, columns) if rows <= columns else (useful.T, rows)
    best = max(
        sum(short[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(long), len(short))
    )
    assert sum(useful[pair] for pair in pairs) == pytest.approx(best)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(BackendMissing, match=r"anomdino\[video\]"):
        Tracker()
