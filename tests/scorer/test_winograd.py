"""Winograd convolutions and the rearranged network against the plain ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomdino.scorer import winograd
from anomdino.scorer.folding import fold_batch_norms
from anomdino.scorer.wide_resnet38 import WideResNet38Scorer
from anomdino.scorer.wide_resnet38_fused import FusedWideResNet38
from anomdino.scorer.winograd import WinogradConv2d, suits, use_winograd


@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (23, 40), (37, 30), (3, 50)])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_direct_convolution(monkeypatch, dilation, size, stored, bias):
    monkeypatch.setattr(winograd, "STORED_WEIGHTS", 10**9 if stored else 90)
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
        ({"in_channels": 128}, False),
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


@pytest.mark.parametrize("size", [(64, 96), (33, 50), (1, 1)])
@pytest.mark.parametrize("wide_winograd", [False, True])
def test_the_rearranged_network_is_the_same_function(monkeypatch, size, wide_winograd):
    torch.manual_seed(0)
    network = WideResNet38Scorer(channel_divisor=16).eval()
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
    fused = FusedWideResNet38(network)
    if wide_winograd:
        monkeypatch.setattr(winograd, "LEAST_CHANNELS", 4)
        assert use_winograd(fused) >= 30
    with torch.inference_mode():
        ours = fused(images)
    for a, b in zip(expected[:2], ours[:2], strict=True):
        assert (a - b).abs().max() < 1e-4 * a.abs().max()
