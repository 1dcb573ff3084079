"""Winograd convolutions and the rearranged network against the plain ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomdino.scorer import dilated, wide_resnet38_fused, winograd
from anomdino.scorer.base import resize
from anomdino.scorer.dilated import TapwiseConv2d, use_taps
from anomdino.scorer.efficientnet_lite import LightScorer
from anomdino.scorer.efficientnet_lite_fused import FusedLightScorer
from anomdino.scorer.folding import fold_batch_norms
from anomdino.scorer.wide_resnet38 import WideResNet38Scorer
from anomdino.scorer.wide_resnet38_fused import FusedWideResNet38, resized_rows
from anomdino.scorer.winograd import POINTS, WinogradConv2d, suits, toom_cook, use_winograd


@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (23, 40), (37, 30), (3, 50)])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_direct_convolution(monkeypatch, dilation, size, stored, bias):
    monkeypatch.setattr(winograd, "STORED_WEIGHTS", 10**9 if stored else 90)
    monkeypatch.setattr(winograd, "TRANSFORMED_AT_ONCE", 40)
    monkeypatch.setattr(winograd, "SPECTRUM_AT_ONCE", 6000)
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", 20)
    generator = torch.Generator().manual_seed(0)
    convolution = nn.Conv2d(8, 12, 3, padding=dilation, dilation=dilation, bias=bias)
    maps = torch.randn(2, 8, *size, generator=generator)
    fast = WinogradConv2d(convolution)
    assert fast.stored == stored
    with torch.inference_mode():
        expected = F.conv2d(
            maps.double(),
            convolution.weight.double(),
            None if convolution.bias is None else convolution.bias.double(),
            padding=dilation,
            dilation=dilation,
        )
        ours = fast(maps.contiguous(memory_format=torch.channels_last))
    assert ours.shape == expected.shape
    assert (ours.double() - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"dilation": 4, "padding": 4}, True),
        ({"dilation": 12, "padding": 12}, False),
        ({"stride": 2}, False),
        ({"padding": 0}, False),
        ({"groups": 2}, False),
        ({"kernel_size": 1, "padding": 0}, False),
        ({"in_channels": 128}, True),
        ({"in_channels": 127}, False),
        ({"in_channels": 128, "dilation": 2, "padding": 2}, False),
        ({"padding_mode": "reflect"}, False),
        ({"dtype": torch.float64}, False),
    ],
)
def test_what_is_replaced(options, expected):
    settings = {"in_channels": 256, "out_channels": 256, "kernel_size": 3, "padding": 1, **options}
    convolution = nn.Conv2d(**settings)
    assert suits(convolution) == expected
    network = nn.Sequential(nn.Sequential(convolution), nn.ReLU())
    assert use_winograd(network) == int(expected)
    assert isinstance(network[0][0], WinogradConv2d) == expected


def wide_network():
    return WideResNet38Scorer(channel_divisor=16), FusedWideResNet38


def light_network():
    return LightScorer(context_channels=16, residual_channels=12, skip_channels=8), FusedLightScorer


def narrow_winograd(monkeypatch):
    for name in ("LEAST_CHANNELS", "LEAST_DILATED_CHANNELS"):
        monkeypatch.setattr(winograd, name, 4)


@pytest.mark.parametrize("size", [(64, 96), (33, 50), (1, 1)])
@pytest.mark.parametrize(("build", "least", "taps"), [(wide_network, 30, 3), (light_network, 5, 4)])
@pytest.mark.parametrize("wide_winograd", [False, True])
def test_the_rearranged_network_is_the_same_function(monkeypatch, size, build, least, taps, wide_winograd):
    torch.manual_seed(0)
    network, rearranged = build()
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.6, 1.5)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(images)
    fold_batch_norms(network.requires_grad_(False))
    fused = rearranged(network)
    if wide_winograd:
        narrow_winograd(monkeypatch)
        assert use_winograd(fused) >= least
        assert use_taps(fused) >= taps
    with torch.inference_mode():
        ours = fused(images)
    for a, b in zip(expected[:2], ours[:2], strict=True):
        assert (a - b).abs().max() < 1e-4 * a.abs().max()


@pytest.mark.parametrize("dilation", [5, 12, 40])
@pytest.mark.parametrize("size", [(1, 1), (13, 30), (37, 12), (60, 90), (3, 100)])
@pytest.mark.parametrize("bias", [True, False])
def test_tap_by_tap_equals_the_direct_convolution(monkeypatch, dilation, size, bias):
    monkeypatch.setattr(dilated, "PIXELS_AT_ONCE", 700)
    convolution = nn.Conv2d(6, 10, 3, padding=dilation, dilation=dilation, bias=bias)
    maps = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = convolution.double()(maps.double())
        ours = TapwiseConv2d(convolution.float())(maps.contiguous(memory_format=torch.channels_last))
    assert ours.shape == expected.shape
    assert (ours.double() - expected).abs().max() < 1e-5


def test_wide_convolutions_of_large_dilation_alone_go_tap_by_tap():
    def network(**options):
        settings = {"in_channels": 256, "out_channels": 256, "kernel_size": 3, **options}
        return nn.Sequential(nn.Sequential(nn.Conv2d(**settings)))

    for options, expected in (
        ({"dilation": 12, "padding": 12}, 1),
        ({"dilation": 4, "padding": 4}, 0),
        ({"dilation": 12, "padding": 11}, 0),
        ({"dilation": 12, "padding": 12, "in_channels": 128}, 0),
        ({"dilation": 12, "padding": 12, "stride": 2}, 0),
    ):
        changed = network(**options)
        assert use_taps(changed) == expected
        assert isinstance(changed[0][0], TapwiseConv2d) == bool(expected)


def test_transforms_multiply_polynomials_exactly():
    output, kernel, inputs = toom_cook()
    rng = torch.Generator().manual_seed(0)
    signal, taps = (torch.randint(-9, 10, (n,), generator=rng).double() for n in (6, 3))
    expected = [sum(signal[i + k] * taps[k] for k in range(3)) for i in range(4)]
    assert torch.allclose(output @ ((kernel @ taps) * (inputs @ signal)), torch.stack(expected), atol=1e-12)


def test_chosen_points_round_less_than_the_usual_ones():
    generator = torch.Generator().manual_seed(1)
    signal = torch.randn(60, 128, 6, 6, generator=generator).relu()
    taps = torch.randn(128, 3, 3, generator=generator)
    exact = F.conv2d(signal.double(), taps.double()[None])[:, 0]

    def error(points):
        output, kernel, inputs = (matrix.float() for matrix in toom_cook(points))
        products = ((inputs @ signal @ inputs.T) * (kernel @ taps @ kernel.T)).sum(1)
        return (output @ products @ output.T - exact).square().mean().sqrt()

    assert error(POINTS) < 0.6 * error((0, 1, -1, 2, -2))


@pytest.mark.parametrize("pixels", [200, 10**9])
def test_the_head_in_strips_is_the_head(monkeypatch, pixels):
    torch.manual_seed(0)
    network = WideResNet38Scorer(channel_divisor=16).eval()
    images = torch.randn(1, 3, 150, 61, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = network(images)
    fold_batch_norms(network.requires_grad_(False))
    monkeypatch.setattr(wide_resnet38_fused, "STRIP_PIXELS", pixels)
    monkeypatch.setattr(wide_resnet38_fused, "LEAST_STRIP", 12)
    with torch.inference_mode():
        ours = FusedWideResNet38(network)(images)
    for a, b in zip(expected[:2], ours[:2], strict=True):
        assert (a - b).abs().max() < 1e-5 * a.abs().max()


def test_rows_are_those_of_the_whole_resized_map():
    maps = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(3))
    whole = resize(maps, (40, 25))
    for first, last in ((0, 13), (13, 27), (27, 40), (39, 40)):
        assert torch.allclose(resized_rows(maps, (40, 25), first, last), whole[:, :, first:last], atol=1e-5)
    assert torch.allclose(
        resized_rows(maps[:, :, :1], (40, 25), 3, 9), resize(maps[:, :, :1], (40, 25))[:, :, 3:9]
    )
