"""The network that outlines objects: windows, what it is shown, what becomes of its outlines, and its file."""

from collections import deque

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from anomdino.adt import outline_net
from anomdino.adt.fusion import AdtModel, FusionRule, compute_surfaces, fuse
from anomdino.adt.outline import Outlines, draw_outlines
from anomdino.adt.outline_net import (
    FILE,
    SIDE,
    OutlineNet,
    Window,
    box_map,
    cut,
    draw,
    load_outline_net,
    parts_of_box,
    put,
    save_outline_net,
    tightened,
    view,
    window_of,
)
from anomdino.adt.store import load_adt, save_adt
from anomdino.errors import CheckpointError, DataError
from anomdino.io.boxes import Boxes
from anomdino.scorer.efficientnet_lite import EfficientNetLite0


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    net = OutlineNet().eval()
    with torch.no_grad():
        net.head.weight.mul_(20)  # outlines that differ from a half
    return net


class ByScore(OutlineNet):
    """Outlines what scores above the mean."""

    def forward(self, images, context):
        return 12 * context[:, 0] + 0 * images[:, 0]


@pytest.fixture(scope="module")
def by_score():
    return ByScore().eval()


def photo(size=(90, 130), seed=0):
    """Noise in all colours, and a score with hills and valleys."""
    rng = np.random.default_rng(seed)
    score = cv2.resize(rng.normal(0, 2, (5, 7)), size[::-1], interpolation=cv2.INTER_CUBIC)
    return rng.integers(0, 256, (*size, 3)).astype(np.uint8), score.astype(np.float32)


BOXES = Boxes(
    np.array([[20, 30, 60, 70], [50, 10, 128, 60], [0, 0, 9, 9]], np.float32), np.array([0.9, 0.5, 0.7])
)


@given(st.tuples(*[st.floats(0, 400)] * 4))
def test_a_window_holds_its_box_in_the_middle_with_three_quarters_of_it_around(ends):
    box = np.array(
        [min(ends[0], ends[2]), min(ends[1], ends[3]), max(ends[0], ends[2]), max(ends[1], ends[3])]
    )
    window = window_of(box)
    longer = max(box[2] - box[0], box[3] - box[1])
    assert abs(window.side - max(8, 2.5 * longer + 4)) <= 1
    assert window.x <= box[0]
    assert window.y <= box[1]
    assert window.x + window.side >= box[2]
    assert window.y + window.side >= box[3]
    assert abs(window.x + window.side / 2 - (box[0] + box[2]) / 2) <= 1
    assert abs(window.y + window.side / 2 - (box[1] + box[3]) / 2) <= 1


def stands_out(*parts, size=(100, 140)):
    """A standardised score that is 3 in parts (x0, y0, x1, y1) and 1 elsewhere."""
    score = np.ones(size, np.float32)
    for x0, y0, x1, y1 in parts:
        score[y0:y1, x0:x1] = 3
    return score


def test_a_loose_box_is_drawn_around_what_stands_out_in_it():
    box = np.array([10.0, 20, 90, 80])
    found = tightened(box, stands_out((30, 40, 50, 50), (100, 0, 140, 20)))
    np.testing.assert_allclose(found, [30 - 4, 40 - 2.5, 50 + 4, 50 + 2.5])  # 0.15 of each side and a pixel
    both = tightened(box, stands_out((30, 40, 50, 50), (60, 30, 64, 34)))
    np.testing.assert_allclose(both, [30 - 6.1, 30 - 4, 64 + 6.1, 50 + 4])
    at_the_edge = tightened(box, stands_out((0, 0, 20, 30)))
    np.testing.assert_allclose(at_the_edge, [10, 20, 20 + 2.5, 30 + 2.5])


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(30, 40, 32, 43)],  # six pixels
        [(100, 0, 140, 20)],  # beside the box
        [(10, 20, 90, 41)],  # 0.35 of the box
        [(12, 22, 20, 30), (80, 70, 88, 78)],  # two parts that span it
    ],
)
def test_other_boxes_stay(parts):
    box = np.array([10.0, 20, 90, 80])
    np.testing.assert_array_equal(tightened(box, stands_out(*parts)), box)


def test_a_speck_beside_an_object_does_not_count():
    box = np.array([10.0, 20, 90, 80])
    alone = tightened(box, stands_out((30, 40, 50, 50)))
    np.testing.assert_array_equal(tightened(box, stands_out((30, 40, 50, 50), (85, 75, 88, 78))), alone)


@given(
    st.lists(
        st.tuples(st.integers(0, 130), st.integers(0, 90), st.integers(1, 9), st.integers(1, 9)), max_size=4
    )
)
@settings(deadline=None)
def test_a_tighter_box_lies_in_the_box(parts):
    box = np.array([10.4, 20.6, 90.2, 79.5])
    x0, y0, x1, y1 = tightened(box, stands_out(*((x, y, x + w, y + h) for x, y, w, h in parts)))
    assert box[0] <= x0 < x1 <= box[2]
    assert box[1] <= y0 < y1 <= box[3]


def test_an_outline_is_drawn_around_the_tighter_box(by_score):
    score = stands_out((60, 45, 76, 61), size=(100, 140))
    image = photo(score.shape)[0]
    loose = Boxes(np.array([[10, 10, 130, 90]], np.float32), np.array([0.5]))
    tight = Boxes(tightened(loose.xyxy[0], score)[None].astype(np.float32), np.array([0.5]))
    assert (tight.xyxy[0, 2] - tight.xyxy[0, 0]) < 30
    for found, expected in zip(
        draw(by_score, image, score, loose), draw(by_score, image, score, tight), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@given(st.integers(-30, 30), st.integers(-30, 30), st.integers(1, 60), st.booleans())
@settings(deadline=None)
def test_a_window_is_cut_pixel_by_pixel(x, y, side, colours):
    values = np.random.default_rng(0).integers(1, 255, (20, 31, 3) if colours else (20, 31)).astype(np.uint8)
    found = cut(values, Window(x, y, side), 7)
    for row in range(side):
        for column in range(side):
            v, u = y + row, x + column
            expected = values[v, u] if 0 <= v < 20 and 0 <= u < 31 else 7
            assert (found[row, column] == expected).all()


def test_the_network_sees_a_window_of_its_own_size_as_it_is():
    image, score = photo((260, 300))
    box = np.array([90.0, 100.0, 152.4, 150.0])  # 2.5 x 62.4 + 4 = 160
    window = window_of(box)
    assert window.side == SIDE
    shown = view(image, score, box, window)
    part = np.s_[window.y : window.y + SIDE, window.x : window.x + SIDE]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((image[part] / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(shown.image.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(shown.context[0].numpy(), np.clip(score[part] / 3, -3, 3), atol=1e-6)
    far = view(image, 9 * score, box, window).context[0].numpy()
    np.testing.assert_allclose(far, np.clip(3 * score[part], -3, 3), atol=1e-5)
    assert far.max() > 2
    area = np.zeros((SIDE, SIDE))
    area[100 - window.y : 150 - window.y, 90 - window.x : 152 - window.x] = 1
    np.testing.assert_array_equal(shown.context[1].numpy(), area)


def test_a_window_of_three_times_the_size_is_shown_by_means_of_nine_pixels():
    image, score = photo((500, 500))
    box = np.array([150.0, 180.0, 340.4, 320.0])  # 2.5 x 190.4 + 4 = 480
    window = window_of(box)
    assert window.side == 3 * SIDE
    shown = view(image, score, box, window).context[0].numpy()
    part = score[window.y : window.y + 3 * SIDE, window.x : window.x + 3 * SIDE]
    means = part.reshape(SIDE, 3, SIDE, 3).mean((1, 3))
    np.testing.assert_allclose(shown, np.clip(means / 3, -3, 3), atol=1e-5)


def test_what_lies_beyond_the_image_is_nothing_to_the_network():
    image, score = photo((40, 40))
    box = np.array([0.0, 0.0, 20.0, 20.0])
    window = window_of(box)
    shown = view(image + np.uint8(1), score + 9, box, window)
    beyond = box_map(np.array([0.0, 0, 40, 40]), window) == 0
    assert beyond.any()
    assert not shown.image.numpy()[:, beyond].any()
    assert not shown.context.numpy()[:, beyond].any()


@pytest.mark.parametrize("side", [40, 160, 400])
def test_an_outline_lands_where_its_window_lies(side):
    """A disc drawn into a window, against the same disc drawn into the image."""
    drawn = Outlines(np.zeros((300, 420), np.float32), np.zeros((300, 420), np.float32))
    window = Window(200, 100, side)
    rows, columns = (np.indices((SIDE, SIDE)) + 0.5) / SIDE * side
    outline = (np.hypot(rows - 0.5 * side, columns - 0.4 * side) < 0.3 * side).astype(np.float32)
    put(drawn, outline, window, 0.5)
    rows, columns = np.indices((300, 420)) + 0.5
    truth = np.hypot(rows - 100 - 0.5 * side, columns - 200 - 0.4 * side) < 0.3 * side
    truth[:, 200 + side :] = False
    found = drawn.shape >= 0.5
    assert (found & truth).sum() / (found | truth).sum() > 0.97
    np.testing.assert_allclose(drawn.confidence, drawn.shape * 0.5)


def flooded(outline, in_box):
    """Parts by flood filling, one pixel after the other."""
    solid, seen, result = outline >= 0.5, np.zeros(outline.shape, bool), outline.copy()
    parts = []
    for start in zip(*np.nonzero(solid), strict=True):
        if seen[start]:
            continue
        queue, part = deque([start]), []
        seen[start] = True
        while queue:
            row, column = queue.popleft()
            part.append((row, column))
            for v in range(max(0, row - 1), min(outline.shape[0], row + 2)):
                for u in range(max(0, column - 1), min(outline.shape[1], column + 2)):
                    if solid[v, u] and not seen[v, u]:
                        seen[v, u] = True
                        queue.append((v, u))
        parts.append(part)
    largest = max(map(len, parts), default=0)
    kept = np.zeros(outline.shape, bool)
    gone = []
    for part in parts:
        own = sum(in_box[cell] for cell in part)
        if own >= 0.2 * len(part) and len(part) >= 0.1 * largest:
            kept[tuple(np.transpose(part))] = True
        else:
            gone.append(part)
    for row, column in (cell for part in gone for cell in part):
        around = np.s_[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        result[around] = np.where(kept[around], result[around], 0)
    return result


@given(st.integers(0, 2**16), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_parts_of_other_objects_and_crumbs_leave_an_outline(seed, parts):
    rng = np.random.default_rng(seed)
    outline = rng.uniform(0, 0.4, (40, 40)).astype(np.float32)
    for _ in range(parts):
        row, column, side = rng.integers(0, 36), rng.integers(0, 36), rng.integers(1, 16)
        outline[row : row + side, column : column + side] = rng.uniform(0.5, 1)
    in_box = np.zeros((40, 40), bool)
    in_box[10:30, 10:30] = True
    np.testing.assert_array_equal(parts_of_box(outline, in_box), flooded(outline, in_box))


def test_every_box_has_its_own_outline_whatever_the_others_are(by_score, monkeypatch):
    network = by_score
    image, score = photo()
    together = draw(network, image, score, BOXES)
    assert 0.1 < (together.shape > 0.5).mean() < 0.7
    alone = [draw(network, image, score, BOXES.subset(np.array([i]))) for i in range(3)]
    np.testing.assert_allclose(together.shape, np.maximum.reduce([one.shape for one in alone]), atol=1e-4)
    confidence = np.maximum.reduce([one.shape * c for one, c in zip(alone, BOXES.scores, strict=True)])
    np.testing.assert_allclose(together.confidence, confidence, atol=1e-4)
    monkeypatch.setattr(outline_net, "BATCH", 2)
    np.testing.assert_allclose(draw(network, image, score, BOXES).shape, together.shape, atol=1e-4)


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.lists(st.tuples(*[st.floats(-20, 110)] * 4), max_size=3),
    st.integers(0, 2**16),
)
@settings(max_examples=15, deadline=None)
def test_outlines_are_finite_in_range_and_near_their_boxes(network, size, corners, seed):
    image, score = photo(size, seed)
    boxes = Boxes(np.array(corners, np.float32).reshape(-1, 4), np.full(len(corners), 0.7)).clipped(size)
    drawn = draw(network, image, score, boxes)
    assert drawn.shape.shape == drawn.confidence.shape == size
    assert drawn.shape.dtype == np.float32
    assert 0 <= drawn.shape.min() <= drawn.shape.max() <= 1
    near = np.zeros(size, bool)
    for x, y, side in map(window_of, boxes.xyxy):
        near[max(0, y) : max(0, y + side), max(0, x) : max(0, x + side)] = True
    assert not drawn.shape[~near].any()


def test_an_image_of_another_size_is_refused(network):
    image, score = photo()
    for wrong in (image[:-1], image[..., 0]):
        with pytest.raises(DataError, match="image: has the shape"):
            draw(network, wrong, score, BOXES)


def test_the_encoder_is_the_beginning_of_the_whole_one():
    torch.manual_seed(0)
    whole = EfficientNetLite0().eval()
    part = EfficientNetLite0(deepest=16).eval()
    missing = part.load_state_dict(whole.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all(key.startswith("_blocks.1") for key in missing.unexpected_keys)
    images = torch.randn(1, 3, 65, 70)
    expected, found = whole(images), part.pyramid(images, (2, 4, 8, 16))
    assert list(found) == [2, 4, 8, 16]
    assert [tuple(found[s].shape[1:]) for s in found] == [(16, 33, 35), (24, 17, 18), (40, 9, 9), (112, 5, 5)]
    for stride in (4, 8, 16):
        torch.testing.assert_close(found[stride], expected[stride])


def test_imagenets_weights_go_into_the_encoder(tmp_path):
    torch.manual_seed(0)
    whole = EfficientNetLite0()
    torch.save({**whole.state_dict(), "_fc.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    part = EfficientNetLite0(deepest=16)
    part.load_imagenet(tmp_path / "weights.pth")
    for name, value in part.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name])


def test_every_weight_has_a_gradient_and_the_encoder_keeps_its_statistics():
    net = OutlineNet().train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 2, SIDE, SIDE)).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    for name, value in net.named_buffers():
        torch.testing.assert_close(value, before[name])


def test_the_file_beside_an_adt_net_holds_the_network(network, model, tmp_path):
    network.details = {"steps": 3}
    save_adt(AdtModel(model.net, model.rule, outliner=network), tmp_path)
    read = load_adt(tmp_path).outliner
    assert read.details == {"steps": 3}
    assert not read.training
    for name, value in network.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    save_adt(load_adt(tmp_path), tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / FILE).read_bytes()
    save_adt(model, tmp_path)  # a model without one
    assert load_adt(tmp_path).outliner is None
    assert not (tmp_path / FILE).exists()


def test_files_that_are_no_outline_network_are_refused(network, tmp_path):
    save_outline_net(network, tmp_path)
    path, whole = tmp_path / FILE, (tmp_path / FILE).read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_outline_net(tmp_path)
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="is no outline network"):
        load_outline_net(tmp_path)
    del tensors["head.bias"]
    save_file(tensors, path, metadata={"config": '{"format": "anomdino-outline-1"}'})
    with pytest.raises(CheckpointError, match=r"does not fit(.|\n)*head.bias"):
        load_outline_net(tmp_path)


def test_score_and_mask_take_the_mean_of_both_outlines(by_score, model, scene):
    score, label, boxes = scene
    image = photo(label.shape)[0]
    rule = FusionRule(k=0.6, b=0.1, box_score=0.3, outline=True)
    fused = fuse(score, boxes, AdtModel(model.net, rule, outliner=by_score), image=image)
    surfaces = compute_surfaces(score, boxes, model.net, 0.3)
    before = (surfaces.decision >= surfaces.threshold).numpy()
    standardised = (score - float(model.net.mean)) / float(model.net.std)
    by_network = draw(by_score, image, standardised, boxes)
    by_colours = draw_outlines(image, score, boxes, before)
    o, confidence = ((one + other) / 2 for one, other in zip(by_network, by_colours, strict=True))
    assert ((o > 0) & (o < 0.5)).any()
    np.testing.assert_array_equal(fused.mask, before | (o >= 0.5))
    soft = np.maximum(surfaces.soft_probability.numpy(), o)
    expected = surfaces.unit.numpy() * (0.6 + 0.4 * soft) + 0.1 * confidence
    np.testing.assert_allclose(fused.score, expected, atol=1e-4)


def test_without_boxes_and_without_a_photo_there_are_no_outlines(network, model, scene):
    score, label, boxes = scene
    with_network = AdtModel(model.net, FusionRule(outline=True), outliner=network)
    plain = AdtModel(model.net, FusionRule())
    image = photo(label.shape)[0]
    for given_boxes, given_image in ((Boxes.empty(), image), (boxes, None)):
        a = fuse(score, given_boxes, with_network, image=given_image)
        b = fuse(score, given_boxes, plain)
        np.testing.assert_array_equal(a.score, b.score)
        np.testing.assert_array_equal(a.mask, b.mask)
