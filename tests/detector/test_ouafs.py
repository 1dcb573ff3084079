import math

import pytest
import torch
from torch.nn import functional as F

from anomdino.detector.ouafs import MapStem, MaskedGroupNorm, Ouafs, area_halved, orthogonality_loss

DIMS, CLASSES, LEVELS = 16, 5, 3


def levels_of(h, w, batch=2, dims=DIMS):
    return [torch.randn(batch, dims, -(-h // 2**i), -(-w // 2**i)) for i in range(LEVELS)]


def fusion(**changes):
    settings = {"score_map": True, "heads": 2, "key_pool": 2, "dropout": 0.0, "gate_init": 0.7}
    return Ouafs(DIMS, CLASSES, LEVELS, **{**settings, **changes})


def test_zero_gates_are_the_identity():
    features = levels_of(9, 14)
    fused = fusion(gate_init=0.0)(features, torch.rand(2, CLASSES + 3, 9, 14))
    assert all(torch.equal(a, b) for a, b in zip(features, fused.features, strict=True))
    assert fused.loss_orth == 0


def test_zero_gates_get_finite_gradients_from_both_losses():
    module = fusion(gate_init=0.0)
    fused = module(levels_of(8, 8), torch.rand(2, CLASSES + 3, 8, 8))
    (sum(f.square().sum() for f in fused.features) + fused.loss_orth).backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    assert all(
        module.gates[name].grad.abs().sum() > 0 for name in ("semantic", "entropy", "distance", "score")
    )


@pytest.mark.parametrize(
    "maps", [[], ["semantic"], ["semantic", "entropy"], ["semantic", "entropy", "distance"], ["distance"]]
)
@pytest.mark.parametrize("score_map", [True, False])
def test_every_parameter_gets_a_gradient(maps, score_map):
    module = fusion(maps=maps, score_map=score_map)
    fused = module(levels_of(9, 14), torch.rand(2, CLASSES + 3, 9, 14))
    if not (maps or score_map):
        assert not list(module.parameters())
        return
    (sum(f.square().sum() for f in fused.features) + fused.loss_orth).backward()
    without = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias of the keys shifts all scores of a softmax alike: its gradient is zero by construction.
    assert [name for name in without if not name.endswith("attention.key.bias")] == []


def test_stages_follow_the_specification():
    """Recompute F1, F2, F3, F4 of one level from the module's own weights, with attention spelled out."""
    module = fusion(key_pool=1).eval()
    for name in module.gates:
        torch.nn.init.normal_(module.gates[name])
    features, maps = levels_of(4, 6, batch=1), torch.rand(1, CLASSES + 3, 4, 6)
    e = {
        "semantic": module.stems["semantic"](maps[:, :CLASSES], None),
        "entropy": module.stems["entropy"](maps[:, CLASSES : CLASSES + 1], None),
        "distance": module.stems["distance"](maps[:, CLASSES + 1 : CLASSES + 2], None),
        "score": module.stems["score"](maps[:, CLASSES + 2 :], None),
    }

    def gate(name):
        return module.gates[name][0].view(1, -1, 1, 1)

    f0 = features[0]
    d_s = gate("semantic") * module.join[0](torch.cat([f0, e["semantic"]], 1))
    d_e = gate("entropy") * (module.entropy_weight[0] * e["entropy"])
    f2 = f0 + d_s + d_e
    attention = module.attention
    q = attention.query(f2.flatten(2).transpose(1, 2))[0]
    source = e["distance"].flatten(2).transpose(1, 2)
    k = attention.key(source + attention.level_embedding[0])[0]
    v = attention.value(source)[0]
    mixed = []
    for head in range(2):
        part = slice(head * DIMS // 2, (head + 1) * DIMS // 2)
        mixed.append(((q[:, part] @ k[:, part].T) / math.sqrt(DIMS // 2)).softmax(-1) @ v[:, part])
    attended = attention.out(torch.cat(mixed, 1)).T.reshape(1, DIMS, 4, 6)
    expected = f2 + gate("distance") * attended + gate("score") * e["score"]
    torch.testing.assert_close(module(features, maps).features[0], expected)
    assert module.entropy_weight[0] == 0.5


def test_predictions_do_without_the_loss():
    module, features, maps = fusion().eval(), levels_of(8, 8), torch.rand(2, CLASSES + 3, 8, 8)
    with_loss, without = module(features, maps), module(features, maps, with_loss=False)
    assert with_loss.loss_orth > 0
    assert without.loss_orth == 0
    assert all(torch.equal(a, b) for a, b in zip(with_loss.features, without.features, strict=True))


def test_padding_changes_nothing():
    module = fusion().eval()
    small, maps = levels_of(7, 10, batch=1), torch.rand(1, CLASSES + 3, 7, 10)
    alone = module(small, maps)
    padded = [
        F.pad(f, (0, -(-14 // 2**i) - f.shape[3], 0, -(-9 // 2**i) - f.shape[2])) for i, f in enumerate(small)
    ]
    wide = F.pad(maps, (0, 4, 0, 2), value=3.0)
    valid = torch.zeros(1, 1, 9, 14)
    valid[..., :7, :10] = 1
    together = module(padded, wide, valid)
    for a, b in zip(alone.features, together.features, strict=True):
        torch.testing.assert_close(b[..., : a.shape[2], : a.shape[3]], a, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone.loss_orth, together.loss_orth)


def test_finer_maps_are_pooled_to_the_finest_level():
    module = fusion()
    assert module(levels_of(8, 8), torch.rand(2, CLASSES + 3, 16, 16)).features[0].shape == (2, DIMS, 8, 8)
    with pytest.raises(ValueError, match="wrong strides"):
        module(levels_of(8, 8), torch.rand(2, CLASSES + 3, 8, 5))


def test_orthogonality_by_hand():
    a = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2) * 100  # vectors (300, 400) and (0, 200)
    b = (
        torch.tensor([[4.0, 5.0], [-3.0, 0.0]]).view(1, 2, 1, 2) * 100
    )  # (400, -300): orthogonal, (500, 0): orthogonal
    assert orthogonality_loss(a, b, "cosine") == pytest.approx(0.0, abs=1e-6)
    assert orthogonality_loss(a, a, "cosine", 0.1, 0.1) == pytest.approx(0.2, abs=1e-6)
    c = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2) * 100  # cosines 0.6 and 0
    assert orthogonality_loss(a, c, "cosine", 1.0, 0.0) == pytest.approx(0.3, abs=1e-5)
    assert orthogonality_loss(a, c, "cosine", 0.0, 1.0) == pytest.approx(0.18, abs=1e-5)
    x, y = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1), torch.tensor([3.0, 1.0]).view(1, 2, 1, 1)
    assert orthogonality_loss(x, y, "hadamard", 1.0, 0.0) == pytest.approx(2.5)
    assert orthogonality_loss(x, y, "hadamard", 0.0, 1.0) == pytest.approx(6.5)


def test_orthogonality_ignores_padding():
    a, b = torch.randn(1, 4, 2, 3), torch.randn(1, 4, 2, 3)
    mask = torch.ones(1, 1, 2, 3)
    mask[..., 2] = 0
    for form in ("cosine", "hadamard"):
        part = orthogonality_loss(a[..., :2], b[..., :2], form)
        torch.testing.assert_close(orthogonality_loss(a, b, form, mask=mask), part)


def test_orth_none_has_no_loss_and_pairs_are_those_of_the_specification():
    features, maps = levels_of(8, 8), torch.rand(2, CLASSES + 3, 8, 8)
    assert fusion(orth="none")(features, maps).loss_orth == 0
    module = fusion(maps=["semantic", "entropy", "distance"]).eval()
    seen = {}
    original = module._fuse_level

    def spy(level, feature, embedded, mask):
        total, increments = original(level, feature, embedded, mask)
        seen[level] = increments
        return total, increments

    module._fuse_level = spy
    loss = module(features, maps).loss_orth
    pairs = [("semantic", "entropy"), ("entropy", "distance"), ("semantic", "distance")]
    each = [orthogonality_loss(seen[i][a], seen[i][b], "cosine") for i in range(LEVELS) for a, b in pairs]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_masked_group_norm_equals_torch_without_padding():
    norm = MaskedGroupNorm(4, 16)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 16, 3, 5)
    reference = F.group_norm(x, 4, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(x, torch.ones(2, 1, 3, 5)), reference)


def test_area_halving_averages_what_is_there():
    x = torch.tensor([[1.0, 3.0, 10.0], [5.0, 7.0, 20.0], [2.0, 4.0, 30.0]]).view(1, 1, 3, 3)
    assert area_halved(x, None).flatten().tolist() == [4.0, 15.0, 3.0, 30.0]
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).view(1, 1, 3, 3)
    assert area_halved(x * mask, mask).flatten().tolist() == [3.0, 0.0, 0.0, 0.0]


def slow_pool(x, size):
    """Area means of windows of ``size`` a side; those at the end are smaller."""
    b, c, h, w = x.shape
    out = x.new_zeros(b, c, -(-h // size), -(-w // size))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            out[:, :, i, j] = x[:, :, i * size : (i + 1) * size, j * size : (j + 1) * size].mean((2, 3))
    return out


@pytest.mark.parametrize("form", ["cosine", "hadamard"])
def test_all_levels_equal_the_formulas(form):
    """Every weight differs from level to level and map to map; features, loss and statistics by hand."""
    weights = {"orth": form, "orth_l1": 0.3, "orth_l2": 0.7}
    module = Ouafs(DIMS, CLASSES, LEVELS, score_map=True, heads=2, key_pool=3, dropout=0.5, **weights).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    module.score_mean.fill_(2.0)
    module.score_std.fill_(3.0)
    features, maps = levels_of(9, 14, batch=1), torch.rand(1, CLASSES + 3, 9, 14)
    maps[:, CLASSES + 2] = torch.linspace(-40.0, 60.0, 9 * 14).view(9, 14)
    first = {"semantic": 0, "entropy": CLASSES, "distance": CLASSES + 1, "score": CLASSES + 2}
    e = {}
    for name, start in first.items():
        part = maps[:, start : start + (CLASSES if name == "semantic" else 1)]
        if name == "score":
            part = ((part - 2.0) / 3.0).clamp(-5.0, 10.0)
        stem = module.stems[name]
        hidden = F.conv2d(part, stem.project.weight, stem.project.bias)
        hidden = F.gelu(F.group_norm(hidden, 4, stem.norm.weight, stem.norm.bias))
        e[name] = F.conv2d(hidden, stem.mix.weight, stem.mix.bias, padding=1)
    fused, penalties, attention = module(features, maps), [], module.attention
    for level, f0 in enumerate(features):
        if level:
            e = {name: slow_pool(value, 2) for name, value in e.items()}
        gate = {name: value[level].view(1, -1, 1, 1) for name, value in module.gates.items()}
        joined = F.conv2d(
            torch.cat([f0, e["semantic"]], 1), module.join[level].weight, module.join[level].bias
        )
        d_s, d_e = gate["semantic"] * joined, gate["entropy"] * module.entropy_weight[level] * e["entropy"]
        f2 = f0 + d_s + d_e
        keys = (e["distance"] if level else slow_pool(e["distance"], 3)).flatten(2).transpose(1, 2)
        q, k, v = (
            layer(x)[0].view(-1, 2, DIMS // 2).transpose(0, 1)
            for layer, x in (
                (attention.query, f2.flatten(2).transpose(1, 2)),
                (attention.key, keys + attention.level_embedding[level]),
                (attention.value, keys),
            )
        )
        mixed = (q @ k.transpose(1, 2) / math.sqrt(DIMS // 2)).softmax(-1) @ v
        attended = attention.out(mixed.transpose(0, 1).reshape(-1, DIMS)).T.view_as(f0)
        d_d = gate["distance"] * attended
        expected = f2 + d_d + gate["score"] * e["score"]
        torch.testing.assert_close(fused.features[level], expected, rtol=1e-4, atol=1e-4)
        for a, b in ((d_s, d_e), (d_e, d_d), (d_s, d_d)):
            product = a * b
            if form == "cosine":
                squares = [x.square().sum(1) + 1e-3 for x in (a, b)]
                product = product.sum(1) / (squares[0] * squares[1]).sqrt()
            penalties.append(0.3 * product.abs().mean() + 0.7 * product.square().mean())
    torch.testing.assert_close(fused.loss_orth, torch.stack(penalties).mean(), rtol=1e-4, atol=1e-4)


def test_dropout_is_for_training_alone():
    module, features, maps = fusion(dropout=0.5), levels_of(8, 8), torch.rand(2, CLASSES + 3, 8, 8)
    first, second = (module(features, maps).features[0] for _ in range(2))
    assert not torch.equal(first, second)
    module.eval()
    without = fusion(dropout=0.0).eval()
    without.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(features, maps).features[0], without(features, maps).features[0])


def test_stems_of_the_published_width_have_as_many_groups_as_the_neck():
    assert MapStem(1, 256).norm.num_groups == 32
