import copy
from collections import OrderedDict

import pytest
import torch

from anomdino.detector.architecture import build_detector
from anomdino.detector.lean import SIZES_KEPT, LeanPredictor, _origin, kept
from anomdino.errors import ConfigError
from tests.detector.conftest import CLASSES, small_config
from tests.detector.test_model import published_width, sample


@pytest.mark.parametrize("prompts", [("ood-object",), ("ood-object", "car", "traffic light")])
@pytest.mark.parametrize(
    ("size", "width"),
    [
        ((64, 96), "small"),
        ((16, 520), "whole"),  # all tokens become queries; of 65 columns the outer ones have no proposal
        ((64, 96), "published"),
        ((50, 71), "published"),
    ],
)
def test_equals_the_networks_own_prediction(prompts, size, width):
    config = (
        published_width(fusion={"gate_init": 1.0})
        if width == "published"
        else small_config(fusion={"gate_init": 1.0}, queries=12 if width == "small" else 2 * 65 + 33 + 17)
    )
    network = build_detector(config, CLASSES).eval()
    for name, parameter in network.named_parameters():
        if "reg_branches" in name or "sampling_offsets" in name or "attention_weights" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    image = torch.randn(1, 3, *size)
    data = sample(size, [], size, text=list(prompts))
    with torch.no_grad():
        expected = network.predict(image, [copy.deepcopy(data)])[0].pred_instances
    scores, boxes, _ = LeanPredictor(network)(image, data.maps[None], prompts)
    best = scores.flatten().topk(len(expected)).values
    torch.testing.assert_close(best, expected.scores, atol=1e-5, rtol=1e-4)
    order = scores.flatten().topk(len(expected)).indices
    picked = boxes[order // len(prompts)]
    xyxy = torch.cat([picked[:, :2] - picked[:, 2:] / 2, picked[:, :2] + picked[:, 2:] / 2], 1)
    pixels = (xyxy * torch.tensor([size[1], size[0], size[1], size[0]])).clamp(min=0)
    pixels = torch.minimum(pixels, torch.tensor([size[1], size[0], size[1], size[0]]).float())
    torch.testing.assert_close(pixels, expected.bboxes, atol=1e-2, rtol=1e-4)


def test_of_many_sizes_the_last_are_kept_and_the_others_made_again():
    network = build_detector(small_config(), CLASSES).eval()
    predictor = LeanPredictor(network)
    shapes = [(64, 64 + 8 * number) for number in range(SIZES_KEPT + 2)]
    images = {
        shape: (torch.randn(1, 3, *shape), torch.rand(1, CLASSES + 3, 8, shape[1] // 8)) for shape in shapes
    }
    found = {shape: predictor(*given, ("ood-object",)) for shape, given in images.items()}
    assert len(predictor._geometry) == SIZES_KEPT
    again = predictor(*images[shapes[0]], ("ood-object",))
    for one, other in zip(found[shapes[0]], again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_was_asked_for_last_stays():
    store = OrderedDict()
    made = []

    def ask(key):
        return kept(store, key, lambda: made.append(key) or key)

    assert [ask(key) for key in "abcdaea"] == [*"abcdaea"]
    assert made == [*"abcde"]  # `b` went for `e`: `a` was asked for after it
    assert [*store] == [*"cdea"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_graphs_and_half_precision_stay_close():
    network = build_detector(small_config(fusion={"gate_init": 1.0}), CLASSES).eval().cuda()
    image, maps = torch.randn(1, 3, 64, 96).cuda(), torch.rand(1, CLASSES + 3, 8, 12).cuda()
    exact, _, _ = LeanPredictor(network)(image, maps, ("ood-object",))
    fast = LeanPredictor(network, half=True, graphs=True)
    for _ in range(3):
        scores, _, _ = fast(image, maps, ("ood-object",))
        torch.testing.assert_close(scores.sort(0).values, exact.sort(0).values, atol=1e-2, rtol=0.0)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_origin_names_the_token_of_each_query(gate):
    """Norm and share of every query must be those of one cell of the level that it names."""
    network = build_detector(small_config(fusion={"gate_init": gate}), CLASSES).eval()
    image, maps = torch.randn(1, 3, 64, 96), torch.rand(1, CLASSES + 3, 8, 12)
    with torch.no_grad():
        plain = network.extract_feat(image)
        fused = network.ouafs(list(plain), maps, None).features
        origin = LeanPredictor(network)(image, maps, ("ood-object",)).origin
    assert (origin[:, 1].diff() <= 0).all(), "proposals come best first"
    for level, proposal, norm, share in origin.tolist():
        before, after = plain[int(level)][0], fused[int(level)][0]
        cells = []
        for y in range(before.shape[1]):
            for x in range(before.shape[2]):
                size = (before[:, y, x] ** 2).mean() ** 0.5
                added = ((after - before)[:, y, x] ** 2).mean() ** 0.5
                cells.append((size.item(), (added / (size + added)).item()))
        assert any(abs(norm - a) < 1e-5 and abs(share - b) < 1e-5 for a, b in cells)
        assert 0 < proposal < 1
        assert (share > 0) == (gate > 0)


def test_origin_of_every_token_by_hand():
    plain = [torch.randn(1, 4, 2, 3), torch.randn(1, 4, 1, 2)]
    fused = [feature + torch.randn_like(feature) for feature in plain]
    chosen, proposed = torch.tensor([7, 6, 5, 0]), torch.tensor([0.9, 0.5, 0.4, 0.1])
    origin = _origin(plain, fused, chosen, proposed, torch.tensor([6, 8]))
    places = [(1, 0, 1), (1, 0, 0), (0, 1, 2), (0, 0, 0)]
    for row, score, (level, y, x) in zip(origin, proposed, places, strict=True):
        before, after = (levels[level][0, :, y, x] for levels in (plain, fused))
        norm, added = ((v.square().sum() / 4).sqrt() for v in (before, after - before))
        torch.testing.assert_close(
            row, torch.stack([torch.tensor(level), score, norm, added / (norm + added)])
        )


def test_half_precision_and_graphs_are_for_cuda():
    network = build_detector(small_config(fusion={"gate_init": 1.0}), CLASSES).eval()
    given = torch.randn(1, 3, 64, 96), torch.rand(1, CLASSES + 3, 8, 12), ("ood-object",)
    fast = LeanPredictor(network, half=True, graphs=True)(*given)
    for one, other in zip(LeanPredictor(network)(*given), fast, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_maps_alone_have_no_image_feature():
    network = build_detector(small_config(backbone="none", fusion={"gate_init": 1.0}), CLASSES).eval()
    image, maps = torch.randn(1, 3, 64, 96), torch.rand(1, CLASSES + 3, 8, 12)
    origin = LeanPredictor(network)(image, maps, ("ood-object",)).origin
    assert origin[:, 2].abs().max() == 0
    torch.testing.assert_close(origin[:, 3], torch.ones(len(origin)))


def test_an_image_of_few_cells_has_fewer_queries():
    """64 x 96 pixels have 8 x 12 + 4 x 6 + 2 x 3 = 126 cells."""
    network = build_detector(small_config(queries=150, fusion={"gate_init": 1.0}), CLASSES).eval()
    scores, boxes, origin = LeanPredictor(network)(
        torch.randn(1, 3, 64, 96), torch.rand(1, CLASSES + 3, 8, 12), ("ood-object",)
    )
    assert len(scores) == len(boxes) == len(origin) == 126
    assert torch.isfinite(scores).all()
    assert torch.isfinite(boxes).all()


def test_training_on_images_of_few_cells_names_the_parameter():
    data = [sample((64, 96), [[2.0, 2.0, 12.0, 12.0]], (64, 96)) for _ in range(2)]
    just = build_detector(small_config(queries=126), CLASSES).train()
    assert just.loss(torch.randn(2, 3, 64, 96), copy.deepcopy(data))
    network = build_detector(small_config(queries=150), CLASSES).train()
    with pytest.raises(ConfigError, match=r"detector\.queries.*only 126 cells"):
        network.loss(torch.randn(2, 3, 64, 96), data)
