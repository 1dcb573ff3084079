import numpy as np
import pytest
import torch

from anomdino.adt.losses import LossWeights, adt_loss, mask_loss, region_loss, threshold_regulariser
from anomdino.adt.model import AdtNet, AdtOutput, Architecture, ScoreStatistics

RAMP = 0.1
SIZE = (1, 1, 24, 30)


def scene():
    labels = torch.zeros(SIZE, dtype=torch.uint8)
    labels[..., 4:10, 5:12] = 1
    labels[..., 15:18, 20:25] = 1
    labels[..., -2:, :] = 255
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[..., 3:11, 4:13] = True
    return labels, inside


def output_of(mask):
    """What a network would give that is as sure of ``mask`` as S_n and T allow."""
    mask = torch.as_tensor(mask).float()
    decision, threshold = 0.3 + 0.5 * mask, torch.full(mask.shape, 0.55)
    return AdtOutput(decision, threshold, threshold, threshold)


def total(mask, labels, inside, weights=None):
    return adt_loss(output_of(mask), labels, inside, RAMP, weights or LossWeights()).total.item()


def test_a_perfect_mask_costs_nearly_nothing_and_beats_everything_else():
    labels, inside = scene()
    perfect = total(labels == 1, labels, inside)
    assert perfect < 0.01
    others = {
        "everything outside the boxes": ~inside,
        "the boxes": inside,
        "everything": torch.ones(SIZE),
        "nothing": torch.zeros(SIZE),
        "the opposite": labels == 0,
    }
    for name, mask in others.items():
        assert total(mask, labels, inside) > 100 * perfect + 0.1, name
    assert total(~inside, labels, inside) > total(inside, labels, inside)


def test_region_loss_by_hand():
    logits = torch.tensor([0.0, 2.0, -1.0, 3.0])
    target = torch.tensor([1.0, 1.0, 0.0, 0.0])
    where = torch.tensor([True, True, True, False])
    p = 1 / (1 + np.exp(-np.array([0.0, 2.0, -1.0])))
    cross_entropy = -(np.log(p[0]) + np.log(p[1]) + np.log(1 - p[2])) / 3
    hits, alarms, misses = p[0] + p[1], p[2], 2 - p[0] - p[1]
    index = (hits + 1) / (hits + 0.7 * alarms + 0.3 * misses + 1)
    assert region_loss(logits, target, where, 0.7).item() == pytest.approx(
        cross_entropy + 1 - index, rel=1e-5
    )


def test_half_alpha_is_dice():
    torch.manual_seed(0)
    logits, target = torch.randn(500), (torch.rand(500) > 0.8).float()
    p = torch.sigmoid(logits)
    dice = 1 - (2 * (p * target).sum() + 2) / (p.sum() + target.sum() + 2)
    expected = torch.nn.functional.binary_cross_entropy(p, target) + dice
    got = region_loss(logits, target, torch.ones(500, dtype=torch.bool), 0.5)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_false_positives_weigh_more_than_misses_where_alpha_says_so():
    labels, inside = scene()
    wrong_more, wrong_less = (labels == 1).clone(), (labels == 1).clone()
    wrong_more[..., 12:14, 0:10] = True
    wrong_less[..., 4:7, 5:12] = False
    wrong_less[..., 5, 5] = True
    spatially_equal = abs(int(wrong_more.sum()) - int((labels == 1).sum())) - abs(
        int(wrong_less.sum()) - int((labels == 1).sum())
    )
    assert spatially_equal == 0
    empty = torch.zeros_like(inside)
    high, low = LossWeights(false_positive=0.9), LossWeights(false_positive=0.1)
    assert total(wrong_more, labels, empty, high) > total(wrong_less, labels, empty, high)
    assert total(wrong_more, labels, empty, low) < total(wrong_less, labels, empty, low)


def test_void_pixels_cost_nothing():
    labels, inside = scene()
    mask = (labels == 1).float()
    wrong_in_void = mask.clone()
    wrong_in_void[..., -2:, :] = 1
    assert total(wrong_in_void, labels, inside) == pytest.approx(total(mask, labels, inside), abs=1e-7)


def test_all_void_costs_nothing_and_still_has_a_gradient():
    labels, inside = torch.full(SIZE, 255, dtype=torch.uint8), scene()[1]
    net = AdtNet(Architecture(), ScoreStatistics(0, 1))
    parts = adt_loss(net(torch.randn(SIZE), inside), labels, inside, RAMP, LossWeights())
    assert parts.total.item() == 0
    parts.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_no_anomaly_and_nothing_predicted_costs_nothing():
    labels, inside = torch.zeros(SIZE, dtype=torch.uint8), scene()[1]
    assert total(torch.zeros(SIZE), labels, inside) < 0.1
    assert total(inside, labels, inside) > 1


@pytest.mark.parametrize("filled", [True, False])
def test_a_missing_region_costs_nothing(filled):
    labels, _ = scene()
    inside = torch.full(SIZE, filled)
    parts = mask_loss(torch.randn(SIZE), labels, inside, LossWeights())
    missing, present = (parts.outside, parts.inside) if filled else (parts.inside, parts.outside)
    assert missing.item() == 0
    assert present.item() == pytest.approx(parts.overall.item(), rel=1e-6)


def test_gradient_reaches_every_parameter_through_the_objective():
    labels, inside = scene()
    net = AdtNet(Architecture(resolution=2), ScoreStatistics(0, 1))
    adt_loss(net(torch.randn(SIZE), inside), labels, inside, RAMP, LossWeights()).total.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_regularisers_by_hand():
    fg, bg = torch.tensor([[[[0.4, 0.7, 0.5]]]]), torch.tensor([[[[0.5, 0.5, 0.3]]]])
    valid = torch.tensor([[[[True, True, False]]]])

    def cost(**changes):
        return threshold_regulariser(fg, bg, valid, LossWeights(**changes)).item()

    assert cost(regulariser="gap") == pytest.approx((0.01 + 0.04) / 2, rel=1e-5)
    assert cost(regulariser="ordering", margin=0.05) == pytest.approx((0 + 0.25) / 2, rel=1e-5)
    assert cost(regulariser="none") == 0


def test_weights_of_the_parts():
    labels, inside = scene()
    output = output_of(torch.rand(SIZE) > 0.5)
    output = output._replace(
        threshold_fg=output.threshold_fg - 0.2
    )  # without a gap its weight would not matter
    parts = adt_loss(output, labels, inside, RAMP, LossWeights(inside=2, outside=3, regulariser_weight=5))
    expected = 2 * parts.inside + 3 * parts.outside + parts.overall + 5 * parts.regulariser
    assert parts.regulariser.item() == pytest.approx(0.04, rel=1e-5)
    assert parts.total.item() == pytest.approx(expected.item(), rel=1e-6)
