"""The light scorer's network, against an independent slow formulation of its arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anomdino.errors import BackendMissing, CheckpointError
from anomdino.scorer import efficientnet_lite
from anomdino.scorer.base import IMAGENET_MEAN, IMAGENET_STD, load_scorer, save_scorer
from anomdino.scorer.efficientnet_lite import EfficientNetLite0, LightScorer, build, imagenet_weights_path

BLOCK_TABLE = (  # (kernel, stride, expansion) of the 16 blocks, written out by hand
    (3, 1, 1),
    *((3, 2, 6), (3, 1, 6)),
    *((5, 2, 6), (5, 1, 6)),
    *((3, 2, 6), (3, 1, 6), (3, 1, 6)),
    *((5, 1, 6), (5, 1, 6), (5, 1, 6)),
    *((5, 2, 6), (5, 1, 6), (5, 1, 6), (5, 1, 6)),
    (3, 1, 6),
)
LAST_BLOCK_OF_STRIDE = {4: 2, 8: 4, 16: 10, 32: 15}


def randomised(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every batch normalisation statistics and affine parameters that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


def slow_same_convolution(image: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """TensorFlow's SAME convolution as a sum over kernel taps; output (1, out, ceil(h / s), ceil(w / s))."""
    kernel = weight.shape[-1]
    height, width = image.shape[-2:]
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    above = max((rows - 1) * stride + kernel - height, 0) // 2
    left = max((columns - 1) * stride + kernel - width, 0) // 2
    padded = ((rows - 1) * stride + kernel, (columns - 1) * stride + kernel)
    canvas = torch.zeros(1, image.shape[1], *padded).double()
    canvas[..., above : above + height, left : left + width] = image[
        ..., : canvas.shape[2] - above, : canvas.shape[3] - left
    ]
    total = torch.zeros(1, weight.shape[0], rows, columns).double()
    for i in range(kernel):
        for j in range(kernel):
            patch = canvas[0, :, i::stride, j::stride][:, :rows, :columns]
            if groups == 1:
                total[0] += torch.einsum("oc,chw->ohw", weight[:, :, i, j], patch)
            else:
                total[0] += weight[:, 0, i, j, None, None] * patch
    return total


def slow_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    shape = (1, -1, 1, 1)
    mean, variance = state[f"{name}.running_mean"].view(shape), state[f"{name}.running_var"].view(shape)
    return (x - mean) / torch.sqrt(variance + 1e-3) * state[f"{name}.weight"].view(shape) + state[
        f"{name}.bias"
    ].view(shape)


def slow_features(images: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
    """The output of every block, in float64, from the parameters alone."""
    mean, std = torch.tensor(IMAGENET_MEAN).double(), torch.tensor(IMAGENET_STD).double()
    bytes_ = (images.double() * std.view(1, 3, 1, 1) + mean.view(1, 3, 1, 1)) * 255
    x = (bytes_ - 127) / 128
    x = slow_norm(slow_same_convolution(x, state["_conv_stem.weight"], 2, 1), state, "_bn0").clamp(0, 6)
    outputs = []
    for index, (_, stride, expansion) in enumerate(BLOCK_TABLE):
        name, block = f"_blocks.{index}", x
        if expansion != 1:
            block = slow_same_convolution(block, state[f"{name}._expand_conv.weight"], 1, 1)
            block = slow_norm(block, state, f"{name}._bn0").clamp(0, 6)
        block = slow_same_convolution(block, state[f"{name}._depthwise_conv.weight"], stride, block.shape[1])
        block = slow_norm(block, state, f"{name}._bn1").clamp(0, 6)
        block = slow_same_convolution(block, state[f"{name}._project_conv.weight"], 1, 1)
        block = slow_norm(block, state, f"{name}._bn2")
        x = block + x if stride == 1 and block.shape == x.shape else block
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("size", [(64, 96), (65, 47)])
def test_encoder_agrees_with_the_slow_formulation(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    encoder = randomised(EfficientNetLite0())
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        pyramid = encoder(images)
    slow = slow_features(images, {name: value.double() for name, value in encoder.state_dict().items()})
    assert set(pyramid) == {4, 8, 16, 32}
    for stride, block in LAST_BLOCK_OF_STRIDE.items():
        want = slow[block]
        assert pyramid[stride].shape == want.shape
        assert want.shape[-2:] == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        error = (pyramid[stride].double() - want).norm() / want.norm()
        assert error < 1e-4, (stride, float(error))


def test_kernels_are_those_of_the_table() -> None:
    blocks = EfficientNetLite0()._blocks
    sides = [block._depthwise_conv.kernel_size[0] for block in blocks]
    assert sides == [kernel for kernel, *_ in BLOCK_TABLE]


def test_parameter_counts() -> None:
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == 2_958_848
    scorer = build()
    residual = sum(p.numel() for p in scorer.residual_parameters())
    assert residual == 1_732_016
    assert sum(p.numel() for p in scorer.parameters()) - residual == pytest.approx(5.0e6, rel=0.01)


def test_decoder_follows_deeplab(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    scorer = randomised(build(num_classes=5))
    assert isinstance(scorer, LightScorer)
    images = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        output = scorer(images)
        pyramid = scorer.encoder(images)
        coarse = F.interpolate(pyramid[32], size=pyramid[16].shape[-2:], mode="bilinear", align_corners=True)
        deep = torch.cat([pyramid[16], coarse], dim=1)
        size = pyramid[4].shape[-2:]

        def up(maps: Tensor) -> Tensor:
            return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)

        decoder = torch.cat([scorer.bot_fine(pyramid[4]), up(scorer.bot_aspp(scorer.aspp(deep)))], dim=1)
        block = scorer.residual_block
        residual = block.atten_aspp_final(up(block.bot_atten_aspp(block.atten_aspp(deep))))
        wanted = [
            F.interpolate(scorer.final(d), size=(70, 90), mode="bilinear", align_corners=True)
            for d in (decoder, decoder + residual)
        ]
    torch.testing.assert_close(output.logits, wanted[0])
    torch.testing.assert_close(output.residual_logits, wanted[1])
    assert output.logits.shape == (2, 5, 70, 90)


def test_residual_starts_as_the_twin_or_drawn() -> None:
    twin = build()
    twin.start_residual(copy_context=True)
    torch.testing.assert_close(twin.residual_block.atten_aspp.state_dict(), twin.aspp.state_dict())
    wide = build(residual_channels=96)
    wide.start_residual(copy_context=True)
    assert wide.residual_block.bot_atten_aspp.weight.shape == (96, 480, 1, 1)


def test_saved_in_half_precision_and_read_again(tmp_path: Path) -> None:
    from anomdino.scorer.base import ScorerSpec, build_scorer

    torch.manual_seed(3)
    options = {"residual_channels": 64, "dilations": [2, 4]}
    scorer = build_scorer(ScorerSpec("efficientnet_lite0", 19, options))
    randomised(scorer)
    save_scorer(scorer, tmp_path, dtype=torch.float16)
    read = load_scorer(tmp_path)
    assert all(p.dtype == torch.float32 for p in read.parameters())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before, after = scorer(images), read(images)
    assert (before.residual_logits - after.residual_logits).norm() / before.residual_logits.norm() < 5e-3


def test_package_weights_load_strictly() -> None:
    try:
        path = imagenet_weights_path()
    except BackendMissing:
        pytest.skip("the optional package with the weights is not installed")
    state = torch.load(path, weights_only=True)
    encoder = EfficientNetLite0()
    encoder.load_imagenet()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "WEIGHTS_PACKAGE", "no_such_package_at_all")
    with pytest.raises(BackendMissing, match=r"anomdino\[light\]"):
        EfficientNetLite0().load_imagenet()


def test_foreign_or_damaged_weights_are_refused(tmp_path: Path) -> None:
    damaged, foreign = tmp_path / "damaged.pth", tmp_path / "foreign.pth"
    damaged.write_bytes(b"not weights")
    torch.save({"weight": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="cannot be read"):
        EfficientNetLite0().load_imagenet(damaged)
    with pytest.raises(CheckpointError, match="does not fit"):
        EfficientNetLite0().load_imagenet(foreign)
