"""Boxes that move along with pictures whose motion is known."""

import cv2
import numpy as np
import pytest

from anomdino.tracking.motion import SIDE, BoxFlow, thumbnail

SIZE = (360, 640)
BOXES = np.array([[100, 80, 180, 140], [400, 200, 416, 212], [300, 250, 420, 330]], np.float64)


def scene(seed=0, size=SIZE):
    """Noise on several scales, so that every place can be found again."""
    rng, height, width = np.random.default_rng(seed), *size
    layers = [
        cv2.resize(
            rng.normal(size=(height // step, width // step, 3)),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        for step in (4, 8, 16, 40)
    ]
    return np.clip(sum(layers) * 25 + 120, 0, 255).astype(np.uint8)


def warped(image, matrix):
    return cv2.warpAffine(
        image, np.asarray(matrix, np.float64), image.shape[1::-1], borderMode=cv2.BORDER_REFLECT
    )


def mapped(boxes, matrix):
    ends = boxes.reshape(-1, 2, 2) @ np.asarray(matrix)[:, :2].T + np.asarray(matrix)[:, 2]
    return ends.reshape(-1, 4)


def advance(flow, image, boxes):
    return flow.advance(thumbnail(image), boxes)


def by(boxes, x, y):
    return boxes + np.array([x, y, x, y])


@pytest.mark.parametrize(
    "matrix",
    [
        [[1, 0, 9.5], [0, 1, -6.25]],
        [[1.08, 0, -25], [0, 1.08, -14]],  # closing in on the middle
        [[0.94, 0, 20], [0, 0.94, 10]],
    ],
)
def test_boxes_follow_shifts_and_zooms(matrix):
    flow, image = BoxFlow(), scene()
    advance(flow, image, BOXES)
    moved = advance(flow, warped(image, matrix), BOXES)
    np.testing.assert_allclose(moved, mapped(BOXES, matrix), atol=1.2)


def test_large_pictures_are_followed_in_their_own_pixels():
    image = cv2.resize(scene(), None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    flow, matrix = BoxFlow(), [[1, 0, 30.0], [0, 1, 21.0]]
    advance(flow, image, 3 * BOXES)
    moved = advance(flow, warped(image, matrix), 3 * BOXES)
    np.testing.assert_allclose(moved, mapped(3 * BOXES, matrix), atol=2)


def test_a_box_moves_with_what_it_shows_and_not_with_the_camera():
    image, flow = scene(), BoxFlow()
    advance(flow, image, BOXES)
    after = warped(image, [[1, 0, 4], [0, 1, 0]])
    after[88:148, 90:170] = image[80:140, 100:180]  # the first box: ten to the left, eight down
    moved = advance(flow, after, BOXES)
    np.testing.assert_allclose(moved[0], by(BOXES[0], -10, 8), atol=1.5)
    np.testing.assert_allclose(moved[1:], by(BOXES[1:], 4, 0), atol=1)


def test_a_box_without_anything_to_follow_takes_the_motion_of_the_camera():
    image = scene()
    image[60:170, 70:220] = 90  # bare asphalt all round the first box
    matrix = [[1.05, 0, -10], [0, 1.05, -5]]
    flow = BoxFlow()
    advance(flow, image, BOXES)
    moved = advance(flow, warped(image, matrix), BOXES)
    np.testing.assert_allclose(moved[0], mapped(BOXES, matrix)[0], atol=2.5)


def test_a_picture_without_anything_to_follow_moves_nothing():
    flow, bare = BoxFlow(), np.full((*SIZE, 3), 90, np.uint8)
    advance(flow, bare, BOXES)
    np.testing.assert_array_equal(advance(flow, bare, BOXES), BOXES)


def test_the_first_picture_and_one_of_another_size_move_nothing():
    flow, image = BoxFlow(), scene()
    np.testing.assert_array_equal(advance(flow, image, BOXES), BOXES)
    other = scene(size=(300, 640))
    np.testing.assert_array_equal(advance(flow, other, BOXES), BOXES)
    moved = advance(flow, warped(other, [[1, 0, 6], [0, 1, 0]]), BOXES)
    np.testing.assert_allclose(moved[0], by(BOXES[0], 6, 0), atol=1)


def test_no_box_is_no_trouble_and_the_picture_is_kept():
    flow, image = BoxFlow(), scene()
    assert advance(flow, image, np.empty((0, 4))).shape == (0, 4)
    moved = advance(flow, warped(image, [[1, 0, 5], [0, 1, 0]]), BOXES)
    np.testing.assert_allclose(moved, by(BOXES, 5, 0), atol=1)


def test_boxes_at_and_beyond_the_edge_are_no_trouble():
    flow, image = BoxFlow(), scene()
    edge = np.array([[-30, -20, 20, 20], [630, 340, 700, 400], [-90, 10, -20, 60]], np.float64)
    advance(flow, image, edge)
    moved = advance(flow, warped(image, [[1, 0, 5], [0, 1, 3]]), edge)
    assert np.isfinite(moved).all()
    np.testing.assert_allclose(moved, by(edge, 5, 3), atol=6)


def test_a_cut_to_another_scene_lets_no_box_explode():
    flow = BoxFlow()
    advance(flow, scene(0), BOXES)
    moved = advance(flow, scene(1), BOXES)
    sides, before = moved[:, 2:] - moved[:, :2], BOXES[:, 2:] - BOXES[:, :2]
    assert (sides >= 0.79 * before).all()
    assert (sides <= 1.26 * before).all()


def test_a_small_picture():
    flow = BoxFlow()
    for _ in range(2):
        moved = advance(flow, np.zeros((3, 2, 3), np.uint8), np.array([[0.0, 0, 2, 3]]))
    np.testing.assert_array_equal(moved, [[0, 0, 2, 3]])


@pytest.mark.parametrize("size", [(1080, 1920), (360, 640), (1920, 1080), (3, 5000), (20, 30)])
def test_thumbnails_are_small_and_know_their_scale(size):
    image = np.full((*size, 3), (200, 100, 50), np.uint8)
    found = thumbnail(image)
    assert max(found.grey.shape) == min(SIDE, max(size))
    assert found.scale == min(1, SIDE / max(size))
    assert found.grey.shape == tuple(max(1, round(side * found.scale)) for side in size)
    assert abs(int(found.grey[0, 0]) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) < 2
