import json
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import nn

from anomdino.errors import CheckpointError, ConfigError
from anomdino.scorer.base import (
    ScorerOutput,
    ScorerSpec,
    anomaly_score,
    build_scorer,
    enlarged,
    gaussian_blur,
    load_scorer,
    load_strictly,
    normalise,
    pixel_score,
    save_scorer,
    to_bytes,
    to_input,
)

TINY = ScorerSpec(
    "small",
    5,
    {
        "channels": [4, 6, 8, 8],
        "deep_channels": 8,
        "context_channels": 6,
        "skip_channels": 4,
        "head_channels": 8,
        "dilations": [1, 2],
    },
)


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return build_scorer(TINY).eval()


def test_normalise_matches_the_formula_of_each_channel():
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    tensor = to_input(image)
    assert tensor.shape == (1, 3, 3, 4)
    expected = (image[2, 1] / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(tensor[0, :, 2, 1].numpy(), expected, rtol=1e-5)
    assert normalise(torch.zeros(2, 3, 4, 3, dtype=torch.uint8)).dtype == torch.float32


def test_bytes_come_back_from_the_normalised_image():
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    assert np.array_equal(to_bytes(normalise(torch.from_numpy(image))), image)


def test_scores_match_numpy_in_float64():
    logits = np.random.default_rng(1).normal(0, 4, (2, 5, 3, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    tensor = torch.from_numpy(logits)
    expected = {
        "energy": -np.log(np.exp(logits).sum(1)),
        "entropy": -(p * np.log(p)).sum(1) / math.log(5),
        "max_softmax": 1 - p.max(1),
        "max_logit": -logits.max(1),
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(pixel_score(tensor, kind).numpy(), values, atol=2e-6, rtol=1e-5)


def test_unknown_score_is_refused():
    with pytest.raises(ConfigError, match="energy, entropy"):
        pixel_score(torch.zeros(1, 2, 3, 3), "enregy")


def test_energy_stays_finite_for_huge_logits():
    assert pixel_score(torch.full((1, 19, 2, 2), 500.0), "energy").isfinite().all()


def test_blur_has_the_published_kernel():
    impulse = torch.zeros(1, 15, 15)
    impulse[0, 7, 7] = 1
    kernel = [0.00443305, 0.05400558, 0.24203622, 0.39905027, 0.24203622, 0.05400558, 0.00443305]
    blurred = gaussian_blur(impulse)[0]
    np.testing.assert_allclose(blurred[7, 4:11].numpy() / 0.39905027, kernel, atol=1e-6)
    assert blurred[7, 3] == 0


def test_blur_reflects_without_repeating_the_edge():
    maps = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 9, 6)))
    expected = maps.numpy()
    for axis in (1, 2):
        expected = gaussian_filter1d(expected, 1.0, axis=axis, mode="mirror", radius=3)
    np.testing.assert_allclose(gaussian_blur(maps).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 3), (4, 2)])
def test_blur_of_a_tiny_map_keeps_size_and_constant(size):
    blurred = gaussian_blur(torch.full((1, *size), 2.5))
    assert blurred.shape == (1, *size)
    assert torch.allclose(blurred, torch.tensor(2.5))


def test_score_reads_the_logits_it_is_told_to():
    closed, residual = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    output = ScorerOutput(closed, residual)
    assert torch.equal(anomaly_score(output, "max_logit", "closed"), -closed.amax(1))
    assert torch.equal(anomaly_score(output, "max_logit"), -residual.amax(1))
    raw = anomaly_score(output, "energy", blur=False)
    assert torch.equal(raw, -residual.logsumexp(1))
    assert torch.equal(anomaly_score(output), gaussian_blur(raw))
    assert torch.equal(
        anomaly_score(output, "entropy"), gaussian_blur(anomaly_score(output, "entropy", blur=False))
    )


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_saved_and_loaded_scorer_gives_the_same_output(scorer, tmp_path, dtype):
    if dtype is torch.float16:
        scorer.half().float()
    save_scorer(scorer, tmp_path / "m", {"note": "x"}, dtype)
    loaded = load_scorer(tmp_path / "m")
    images = torch.randn(2, 3, 33, 47)
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == scorer.state_dict()[name].dtype
    assert torch.equal(loaded(images).residual_logits, scorer(images).residual_logits)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["details"] == {"note": "x"}


def test_saving_twice_gives_the_same_bytes(scorer, tmp_path):
    for name in "ab":
        save_scorer(scorer, tmp_path / name)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_missing_damaged_and_foreign_checkpoints_are_refused(scorer, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_scorer(tmp_path)
    save_scorer(scorer, tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_scorer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_classes": 7}))
    with pytest.raises(
        CheckpointError, match=r"of another shape: final\.\d\.weight \(5, 8, 1, 1\) instead of \(7, 8, 1, 1\)"
    ):
        load_scorer(tmp_path)
    for text in ("{", "[]", json.dumps(config | {"num_classes": 1}), json.dumps(config | {"format": 9})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="no scorer's config"):
            load_scorer(tmp_path)


def test_unknown_architecture_and_option_are_refused():
    with pytest.raises(ConfigError, match="small, efficientnet_lite0"):
        build_scorer(ScorerSpec("smal"))
    with pytest.raises(ConfigError, match="depth"):
        build_scorer(ScorerSpec("small", 19, {"depth": 3}))
    with pytest.raises(ConfigError, match="2 classes or more"):
        build_scorer(ScorerSpec("small", 1))


def test_weights_of_turned_shapes_and_other_prefixes_are_refused_with_the_cure():
    module = nn.Linear(3, 5)
    turned = {"weight": module.weight.T, "bias": module.bias}
    with pytest.raises(CheckpointError, match=r"weight \(3, 5\) instead of \(5, 3\)"):
        load_strictly(module, turned, "turned.pth")
    parallel = {f"module.{name}": value for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"(?s)2 missing: weight, bias; 2 unexpected.*weights convert"):
        load_strictly(module, parallel, "parallel.pth")


def test_logits_in_bfloat16_are_enlarged_without_steps():
    logits = torch.tensor([[[[100.0, 101.0]]]])
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32)):
        found = enlarged(logits.to(dtype), (1, 9))
        assert found.dtype == expected
        np.testing.assert_allclose(found.flatten(), np.linspace(100, 101, 9), atol=1e-5)


def test_scorer_parameters_stay_below_three_million():
    assert sum(p.numel() for p in build_scorer(ScorerSpec("small")).parameters()) < 3_000_000


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (37, 61), (64, 48)])
def test_output_has_the_size_of_the_input(scorer, size):
    output = scorer(torch.randn(1, 3, *size))
    assert output.logits.shape == output.residual_logits.shape == (1, 5, *size)
    assert output.projection is None


def test_closed_path_ignores_the_residual_block(scorer):
    images = torch.randn(2, 3, 32, 48)
    before = scorer(images)
    for parameter in scorer.residual_parameters():
        nn.init.normal_(parameter)
    after = scorer(images)
    assert torch.equal(before.logits, after.logits)
    assert not torch.allclose(before.residual_logits, after.residual_logits)


def test_residual_logits_are_the_head_of_the_sum(scorer):
    images = torch.randn(2, 3, 32, 48)
    deep, decoder = scorer.closed_set_features(images)
    q = nn.functional.interpolate(
        scorer.residual_block.bot_atten_aspp(scorer.residual_block.atten_aspp(deep)),
        decoder.shape[-2:],
        mode="bilinear",
        align_corners=True,
    )
    logits = scorer.final(decoder + scorer.residual_block.atten_aspp_final(q))
    assert torch.allclose(scorer.decode(images).residual_logits, logits, atol=1e-6)
    assert torch.allclose(scorer.closed_set_logits(images), scorer.final(decoder), atol=1e-6)


def test_images_without_logits_change_neither_the_others_nor_a_gradient(scorer):
    scorer.train_residual()
    images, gradients = torch.randn(5, 3, 32, 48), []
    whole, part = scorer.decode(images), scorer.decode(images, with_logits=3)
    assert (len(part.logits), len(part.residual_logits), len(part.projection)) == (3, 3, 5)
    for output in (whole, part):
        loss = output.residual_logits[:3].logsumexp(dim=1).mean() + output.projection.square().mean()
        gradients.append(torch.autograd.grad(loss, scorer.residual_parameters()))
        torch.testing.assert_close(output.logits[:3], whole.logits[:3], atol=1e-6, rtol=0)
        torch.testing.assert_close(output.residual_logits[:3], whole.residual_logits[:3], atol=1e-6, rtol=0)
        torch.testing.assert_close(output.projection, whole.projection, atol=1e-6, rtol=0)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_projection_exists_in_residual_training_alone(scorer):
    images = torch.randn(2, 3, 32, 48)
    scorer.train_residual()
    assert scorer(images).projection.shape == (2, 10, 8, 12)
    scorer.train_closed_set()
    assert scorer(images).projection is None


def test_parameters_split_in_two_and_modes_follow(scorer):
    residual, closed = scorer.residual_parameters(), scorer.closed_set_parameters()
    assert len(residual) + len(closed) == len(list(scorer.parameters()))
    scorer.train_residual()
    assert all(p.requires_grad for p in residual)
    assert not any(p.requires_grad for p in closed)
    training = {name for name, module in scorer.named_modules() if module.training}
    assert training
    assert all(name.startswith("residual_block") for name in training)
    scorer.train_closed_set()
    assert not any(p.requires_grad for p in residual)
    assert all(p.requires_grad for p in closed)


def test_residual_starts_as_a_copy_of_the_context(scorer):
    scorer.start_residual(copy_context=True)
    for name, tensor in scorer.aspp.state_dict().items():
        assert torch.equal(tensor, scorer.residual_block.atten_aspp.state_dict()[name])
    assert torch.equal(scorer.bot_aspp.weight, scorer.residual_block.bot_atten_aspp.weight)
    assert not scorer.residual_block.proj_head.proj[0].bias.any()


def test_aspp_concatenates_image_pooling_first(scorer):
    maps = torch.randn(2, 8, 4, 5)
    out = scorer.aspp(maps)
    pooled = scorer.aspp.img_conv(maps.mean((2, 3), keepdim=True))
    assert torch.allclose(out[:, :6], pooled.expand(-1, -1, 4, 5))
    assert torch.allclose(out[:, 6:12], scorer.aspp.features[0](maps))
    assert out.shape[1] == scorer.aspp.out_channels == 24


def test_colours_beyond_black_and_white_are_cut_off_on_the_way_back_to_bytes():
    images = torch.tensor([-30.0, 30.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    np.testing.assert_array_equal(to_bytes(images), [[[[0] * 3, [255] * 3]]])
