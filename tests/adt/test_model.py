import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from anomdino.adt.model import (
    AdtNet,
    Architecture,
    ScoreStatistics,
    masked_mean,
    ramp_probability,
    soft_probability,
    surrogate_logits,
)
from anomdino.errors import ConfigError


def make_net(**changes):
    torch.manual_seed(1)
    return AdtNet(Architecture(**changes), ScoreStatistics(0.0, 1.0)).eval()


def random_batch(count=2, size=(40, 56), seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, 1, *size, generator=generator) * 2
    inside = torch.zeros(count, 1, *size, dtype=torch.bool)
    inside[:, :, 8:20, 10:31] = True
    return scores, inside


def test_size_is_the_published_one():
    assert sum(p.numel() for p in make_net().parameters()) == pytest.approx(90_000, rel=0.02)


def test_region_normalisation_by_hand():
    net = make_net(slope_fg=5, slope_bg=3)
    scores = torch.tensor([[[[0.0, 2.0, 10.0, 14.0]]]])
    inside = torch.tensor([[[[False, False, True, True]]]])
    decision = net.decision_surface(scores, net.regions(scores, inside))
    expected = [
        0.3 + 0.5 / (1 + np.exp(-k * (s - mu)))
        for s, mu, k in ((0, 1, 3), (2, 1, 3), (10, 12, 5), (14, 12, 5))
    ]
    np.testing.assert_allclose(decision.detach().flatten(), expected, rtol=1e-6)


def test_mean_of_a_region_goes_to_055_and_the_order_inside_is_kept():
    net = make_net()
    scores, inside = random_batch(1)
    regions = net.regions(scores, inside)
    for where, mean in ((inside, regions.mean_fg), (~inside, regions.mean_bg)):
        np.testing.assert_allclose(mean.item(), scores[where].mean(), rtol=1e-4, atol=1e-5)
        at_mean = net.decision_surface(torch.where(where, mean, scores), regions)
        np.testing.assert_allclose(at_mean[where].detach(), 0.55, atol=1e-6)
        values, decision = scores[where], net.decision_surface(scores, regions)[where]
        order = values.argsort()
        assert (decision[order].diff() >= 0).all()


@pytest.mark.parametrize("filled", [True, False])
def test_an_empty_region_has_the_global_mean(filled):
    net = make_net()
    scores, inside = random_batch(1)
    regions = net.regions(scores, torch.full_like(inside, filled))
    assert regions.mean_fg.item() == pytest.approx(scores.mean().item(), abs=1e-6)
    assert regions.mean_bg.item() == pytest.approx(scores.mean().item(), abs=1e-6)


@given(st.floats(0.25, 0.75, width=32), st.floats(0.25, 0.75, width=32), st.floats(0.01, 0.5))
@settings(max_examples=200, deadline=None)
def test_probability_is_a_probability_and_half_exactly_at_the_threshold(decision, threshold, ramp):
    d, t = torch.tensor(decision), torch.tensor(threshold)
    probability = ramp_probability(d, t, ramp).item()
    assert 0 <= probability <= 1
    assert (probability >= 0.5) == (decision >= threshold)
    assert (surrogate_logits(d, t, ramp).item() >= 0) == (decision >= threshold)


def test_probability_never_falls_and_reaches_both_ends():
    decision = torch.linspace(0.3, 0.8, 1001)
    probability = ramp_probability(decision, torch.tensor(0.5), 0.1)
    assert (probability.diff() >= 0).all()
    assert probability[decision <= 0.4499].max() == 0
    assert probability[decision >= 0.5501].min() == 1
    assert ramp_probability(torch.tensor(0.5), torch.tensor(0.5), 0.1) == 0.5


@pytest.mark.parametrize("thresholds", ["dense", "scalar"])
@pytest.mark.parametrize("resolution", [1, 8, 16])
def test_ranges_and_shapes(thresholds, resolution):
    scores, inside = random_batch(2, (37, 53))
    output = make_net(thresholds=thresholds, resolution=resolution)(scores, inside)
    for values in output:
        assert values.shape == scores.shape
        assert values.dtype == torch.float32
        assert values.min() >= 0.3
        assert values.max() <= 0.8
    np.testing.assert_array_equal(
        output.threshold.detach(), torch.where(inside, output.threshold_fg, output.threshold_bg).detach()
    )


def test_scalar_thresholds_are_one_number_a_region():
    scores, inside = random_batch(1)
    output = make_net(thresholds="scalar")(scores, inside)
    assert output.threshold_fg.max() - output.threshold_fg.min() < 1e-6
    assert output.threshold_bg.max() - output.threshold_bg.min() < 1e-6


def test_gradient_reaches_every_parameter():
    net = make_net().train()
    scores, inside = random_batch()
    output = net(scores, inside)
    surrogate_logits(output.decision, output.threshold, 0.1).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_fixed_slopes_do_not_learn():
    net = make_net(learn_slopes=False)
    assert not net.raw_slopes.requires_grad
    np.testing.assert_allclose(net.slopes.detach(), [5, 3], rtol=1e-6)


def test_an_image_without_boxes_has_one_threshold():
    net = make_net()
    scores, inside = random_batch(1)
    output = net(scores, torch.zeros_like(inside))
    assert output.threshold.unique().numel() == 1
    with_boxes = net(scores, inside).threshold
    assert with_boxes.unique().numel() > 1


def test_a_box_over_the_whole_frame_uses_the_foreground_alone():
    net = make_net()
    scores, inside = random_batch(1)
    output = net(scores, torch.ones_like(inside))
    np.testing.assert_array_equal(output.threshold.detach(), output.threshold_fg.detach())
    assert torch.isfinite(output.threshold_bg).all()


def test_an_image_gets_the_same_in_any_batch():
    net = make_net()
    scores, inside = random_batch(3)
    inside[1] = False
    inside[2] = True
    together = net(scores, inside)
    for number in range(3):
        alone = net(scores[number : number + 1], inside[number : number + 1])
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0].detach(), many[number].detach(), atol=1e-5)


def test_regions_of_the_whole_image_serve_a_crop():
    net = make_net()
    scores, inside = random_batch(1)
    whole = net.regions(scores, inside)
    crop = np.s_[:, :, :24, :32]
    regions = whole._replace(inside=inside[crop])
    cropped = net(scores[crop], inside[crop], regions)
    expected = net.decision_surface(scores, whole)[crop]
    np.testing.assert_allclose(cropped.decision.detach(), expected.detach(), atol=1e-6)


def test_standardisation_is_fixed_and_oriented():
    statistics = ScoreStatistics(mean=-3.0, std=2.0, sign=-1)
    net = AdtNet(Architecture(), statistics)
    assert net.statistics == statistics
    np.testing.assert_allclose(net.standardise(torch.tensor([3.0, 5.0])), [0.0, -1.0])


def test_masked_mean_against_numpy():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(2, 3, 5, 7)), rng.random((2, 1, 5, 7)) > 0.5
    weights[1] = False
    result = masked_mean(torch.from_numpy(values), torch.from_numpy(weights))
    for channel in range(3):
        assert result[0, channel].item() == pytest.approx(values[0, channel][weights[0, 0]].mean())
        assert result[1, channel].item() == pytest.approx(values[1, channel].mean())


@pytest.mark.parametrize(
    "changes", [{"thresholds": "none"}, {"resolution": 0}, {"ramp": 0.0}, {"slope_fg": -1}]
)
def test_impossible_architectures_are_refused(changes):
    with pytest.raises(ConfigError, match="adt"):
        Architecture(**changes)


@pytest.mark.parametrize(("mean", "std"), [(float("nan"), 1), (0, 0), (0, float("inf"))])
def test_impossible_statistics_are_refused(mean, std):
    with pytest.raises(ConfigError, match="statistics"):
        ScoreStatistics(mean, std)


def slow_threshold(part, weights, decision, region, context):
    """A predictor by the layers that docs/method.md lists, from its weights by name."""

    def convolved(maps, name, **where):
        return F.conv2d(maps, weights[f"{part}.{name}.weight"], weights[f"{part}.{name}.bias"], **where)

    def layer(maps, name):
        maps = convolved(maps, f"{name}.0", padding=1)
        maps = F.group_norm(maps, 8, weights[f"{part}.{name}.1.weight"], weights[f"{part}.{name}.1.bias"])
        return maps.clamp(min=0)

    maps = layer(torch.cat([decision, region], 1), "stem")
    if context == "local":
        maps = maps + convolved(maps, "local", padding=2, dilation=2)
    else:
        mean = (maps * region).sum((2, 3)) / region.sum((2, 3))
        gate = mean @ weights[f"{part}.gate.weight"].T + weights[f"{part}.gate.bias"]
        maps = maps / (1 + torch.exp(-gate))[:, :, None, None]
    last = convolved(layer(layer(maps, "head.0"), "head.1"), "head.2")
    return 0.3 + 0.5 / (1 + torch.exp(-last))


@pytest.mark.parametrize("thresholds", ["dense", "scalar"])
@pytest.mark.parametrize("boxes", [True, False])
def test_thresholds_are_those_of_the_published_layers(thresholds, boxes):
    net = make_net(thresholds=thresholds)
    for parameter in net.parameters():  # normalisations and biases that matter, thresholds that vary
        parameter.data.add_(
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)), alpha=0.1
        )
    scores, inside = random_batch(1)
    inside = inside & boxes
    weights, output = dict(net.state_dict()), net(scores, inside)
    small = F.avg_pool2d(output.decision.detach(), 8)
    share = F.avg_pool2d(inside.float(), 8)
    fg = slow_threshold("foreground", weights, small, share, "local")
    bg = slow_threshold("background", weights, small, 1 - share, "global")
    if thresholds == "scalar":
        over = share if boxes else torch.ones_like(share)
        fg = ((fg * over).sum() / over.sum()).expand_as(fg)
        bg = ((bg * (1 - share)).sum() / (1 - share).sum()).expand_as(bg)
    if not boxes:
        bg = bg.mean().expand_as(bg)
    whole = (F.interpolate(maps, (40, 56), mode="bilinear", align_corners=False) for maps in (fg, bg))
    for found, expected in zip((output.threshold_fg, output.threshold_bg), whole, strict=True):
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    assert fg.std() > 1e-4 or thresholds == "scalar"


def test_both_smooth_probabilities_have_the_slopes_of_the_formulas():
    decision, threshold = torch.tensor([0.52, 0.47]), torch.tensor([0.5, 0.5])
    soft, training = soft_probability(decision, threshold, 0.1), surrogate_logits(decision, threshold, 0.1)
    np.testing.assert_allclose(soft, 1 / (1 + np.exp([-0.02 / 0.05, 0.03 / 0.05])), rtol=1e-5)
    np.testing.assert_allclose(training, [0.02 / 0.025, -0.03 / 0.025], rtol=1e-5)
