import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomdino.detector.compiled_ops import (
    MissingOperator,
    SubstituteExtension,
    compiled_mmcv_installed,
    provide_compiled_ops,
)
from anomdino.detector.deformable_attention import bag_attention, deformable_attention, grid_attention
from anomdino.errors import BackendMissing


def slow_attention(value, sizes, locations, weights):
    """Deformable DETR, equation 3, one corner at a time."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = torch.zeros(batch, queries, heads, channels, dtype=value.dtype)
    for b in range(batch):
        for q in range(queries):
            for head in range(heads):
                start = 0
                for level, (h, w) in enumerate(sizes):
                    for point in range(points):
                        x = locations[b, q, head, level, point, 0].item() * w - 0.5
                        y = locations[b, q, head, level, point, 1].item() * h - 0.5
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < h and 0 <= column < w:
                                    share = (1 - abs(x - column)) * (1 - abs(y - row))
                                    pixel = value[b, start + row * w + column, head]
                                    out[b, q, head] += weights[b, q, head, level, point] * share * pixel
                    start += h * w
    return out.flatten(2)


def make_inputs(seed, sizes, batch=2, queries=5, heads=2, channels=4, points=3):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(h * w for h, w in sizes)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=torch.float64)
    locations = (
        torch.rand(batch, queries, heads, len(sizes), points, 2, generator=generator, dtype=torch.float64)
        * 1.6
        - 0.3
    )
    weights = torch.rand(batch, queries, heads, len(sizes), points, generator=generator, dtype=torch.float64)
    return value, torch.tensor(sizes), locations, weights


@pytest.mark.parametrize("operator", [grid_attention, bag_attention, deformable_attention])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
)
def test_equals_slow_formulation(operator, seed, sizes):
    value, shapes, locations, weights = make_inputs(seed, sizes)
    with torch.no_grad():
        fast = operator(value, shapes, locations, weights)
    torch.testing.assert_close(fast, slow_attention(value, sizes, locations, weights))


def test_gradients_equal_finite_differences():
    value, shapes, locations, weights = make_inputs(
        3, [(3, 4), (2, 2)], batch=1, queries=2, heads=1, channels=2, points=2
    )
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, x, a: deformable_attention(v, shapes, x, a), inputs)


def test_mmcv_module_uses_the_substitute():
    if compiled_mmcv_installed():
        pytest.skip("the compiled mmcv is installed")
    provide_compiled_ops()
    from mmcv.ops import MultiScaleDeformableAttention, multi_scale_deform_attn

    assert multi_scale_deform_attn.multi_scale_deformable_attn_pytorch is deformable_attention
    module = MultiScaleDeformableAttention(
        embed_dims=16, num_heads=2, num_levels=2, num_points=2, batch_first=True
    )
    query = torch.randn(1, 20, 16)
    shapes = torch.tensor([(4, 4), (2, 2)])
    assert module(query, reference_points=torch.rand(1, 20, 2, 2), spatial_shapes=shapes).shape == query.shape


@pytest.mark.gpu
@pytest.mark.skipif(not compiled_mmcv_installed(), reason="only mmcv-lite is installed")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="mmcv compiles this operator for CUDA alone")
def test_compiled_operator_equals_the_substitute():
    """Values and gradients of mmcv's CUDA kernel."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    value, shapes, locations, weights = (part.cuda() for part in make_inputs(5, [(4, 6), (2, 3)]))
    inputs = [part.float().requires_grad_() for part in (value, locations, weights)]
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    compiled = MultiScaleDeformableAttnFunction.apply(inputs[0], shapes, starts, inputs[1], inputs[2], 64)
    ours = deformable_attention(inputs[0], shapes, inputs[1], inputs[2])
    torch.testing.assert_close(ours, compiled, atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((compiled * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_missing_operator_names_itself_and_the_cure():
    with pytest.raises(BackendMissing, match="roi_align_forward") as caught:
        SubstituteExtension().roi_align_forward(1, 2)
    assert "mmcv==2.1.0" in caught.value.cure
    assert isinstance(SubstituteExtension().nms, MissingOperator)
    with pytest.raises(AttributeError):
        _ = SubstituteExtension().__wrapped__


def test_calling_an_operator_of_mmdet_that_is_not_provided_explains():
    if compiled_mmcv_installed():
        pytest.skip("the compiled mmcv is installed")
    provide_compiled_ops()
    from mmcv.ops import nms

    with pytest.raises(BackendMissing, match="operator 'nms'"):
        nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([0.5]), 0.5)


def test_library_imports_without_mmdet():
    code = (
        "import sys, anomdino.detector, anomdino.detector.records, anomdino.detector.quality, "
        "anomdino.config.detector, anomdino.config.detect; "
        "assert 'mmdet' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_values_in_half_precision_are_sampled_at_exact_places():
    """In bfloat16 a place on a level of 300 columns would be a pixel off."""
    value, shapes, locations, weights = make_inputs(4, [(3, 300)])
    expected = slow_attention(value.bfloat16().double(), [(3, 300)], locations, weights)
    found = grid_attention(value.bfloat16(), shapes, locations.float(), weights.float())
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.01)
