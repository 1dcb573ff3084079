"""Losses and gradients against formulas written independently, in float64, pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anomdino.scorer.losses import (
    aligned_labels,
    closed_set_loss,
    contrast_loss,
    corocl_loss,
    masked_mean,
    nearest_labels,
    rpl_losses,
)

CLASSES, H, W = 5, 4, 6


def random_case(seed, low=-4.0, high=4.0):
    rng = np.random.default_rng(seed)
    residual, closed = rng.uniform(low, high, (2, 2, CLASSES, H, W))
    target = rng.choice([0, 1, 4, 254, 255], (2, H, W))
    return residual, closed, target


def slow_rpl(residual, closed, target):
    """Loop over pixels; plain log(sum(exp)), as published."""
    cross, regular, energy, kept = [], [], [], []
    for b in range(len(target)):
        for y in range(H):
            for x in range(W):
                zr, z = residual[b, :, y, x], closed[b, :, y, x]
                p, q = np.exp(zr) / np.exp(zr).sum(), np.exp(z) / np.exp(z).sum()
                if target[b, y, x] == 254:
                    energy.append(max(0.0, math.log(np.exp(zr).sum())))
                elif target[b, y, x] != 255:
                    cross.append(-math.log(p[int(np.argmax(z))]))
                    hp = -sum(max(v, 1e-7) * math.log(max(v, 1e-7)) for v in p)
                    hq = -sum(max(v, 1e-7) * math.log(max(v, 1e-7)) for v in q)
                    regular.append((hp - hq) ** 2)
                    kept.append((math.log(np.exp(zr).sum()) - math.log(np.exp(z).sum())) ** 2)
    return tuple(float(np.mean(v)) if v else 0.0 for v in (cross, regular, energy, kept))


@pytest.mark.parametrize("seed", range(4))
def test_rpl_losses_match_a_loop_in_float64(seed):
    residual, closed, target = random_case(seed, -20 * (seed % 2) - 4, 4)
    losses = rpl_losses(torch.from_numpy(residual), torch.from_numpy(closed), torch.from_numpy(target))
    np.testing.assert_allclose(
        [float(v) for v in losses], slow_rpl(residual, closed, target), rtol=2e-5, atol=1e-6
    )
    weighted = losses.entropy + losses.regularisation + 0.05 * losses.energy
    assert float(losses.total()) == pytest.approx(float(weighted))
    assert float(losses.total(0.05, 0.2)) == pytest.approx(float(weighted + 0.2 * losses.preservation))


def test_rpl_gradient_matches_finite_differences():
    residual, closed, target = random_case(7)
    tensor = torch.from_numpy(residual).float().requires_grad_()
    rpl_losses(tensor, torch.from_numpy(closed), torch.from_numpy(target)).total(0.05, 0.1).backward()

    def value(array):
        cross, regular, energy, kept = slow_rpl(array, closed, target)
        return cross + regular + 0.05 * energy + 0.1 * kept

    step = 1e-5
    for place in [(0, 0, 0, 0), (0, 3, 2, 5), (1, 4, 3, 1), (1, 1, 1, 1), (0, 2, 3, 3)]:
        up, down = residual.copy(), residual.copy()
        up[place] += step
        down[place] -= step
        slope = (value(up) - value(down)) / (2 * step)
        assert float(tensor.grad[place]) == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_no_gradient_reaches_the_closed_set_logits():
    residual, closed, target = random_case(3)
    tensor = torch.from_numpy(closed).requires_grad_()
    losses = rpl_losses(torch.from_numpy(residual).requires_grad_(), tensor, torch.from_numpy(target))
    losses.total().backward()
    assert tensor.grad is None


def test_published_losses_do_not_see_a_shift_of_the_inliers_but_preservation_does():
    logits = torch.randn(1, CLASSES, H, W, dtype=torch.float64)
    losses = rpl_losses(logits - 3, logits, torch.zeros(1, H, W, dtype=torch.long))
    same = rpl_losses(logits, logits, torch.zeros(1, H, W, dtype=torch.long))
    assert float(losses.total()) == pytest.approx(float(same.total()), abs=1e-5)
    assert float(losses.preservation) == pytest.approx(9, rel=1e-5)


def test_ground_truth_classes_are_never_used():
    residual, closed, target = random_case(4)
    other = np.where(target < 254, (target + 3) % CLASSES, target)
    arguments = torch.from_numpy(residual), torch.from_numpy(closed)
    first = rpl_losses(*arguments, torch.from_numpy(target))
    second = rpl_losses(*arguments, torch.from_numpy(other))
    assert [float(v) for v in first] == [float(v) for v in second]


def test_stable_where_the_published_form_overflows():
    logits = torch.full((1, CLASSES, 2, 2), 1000.0)
    assert math.isinf(float(logits.exp().sum(1).log().mean()))
    losses = rpl_losses(logits, logits, torch.tensor([[[254, 254], [0, 255]]]))
    assert float(losses.energy) == pytest.approx(1000 + math.log(CLASSES))
    assert all(bool(v.isfinite()) for v in losses)


@pytest.mark.parametrize(("target", "zero"), [(0, "energy"), (254, "entropy"), (255, "entropy")])
def test_an_empty_selection_gives_zero(target, zero):
    logits = torch.randn(1, CLASSES, 3, 3, requires_grad=True)
    losses = rpl_losses(logits, torch.randn(1, CLASSES, 3, 3), torch.full((1, 3, 3), target))
    assert getattr(losses, zero).item() == 0
    losses.total().backward()
    assert logits.grad.isfinite().all()


def test_closed_set_loss_is_torchs_weighted_cross_entropy():
    logits = torch.randn(2, CLASSES, H, W, dtype=torch.float64)
    target = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, 4, 254, 255], (2, H, W)))
    weight = torch.rand(CLASSES, dtype=torch.float64) + 0.1
    ignored = torch.where(target >= CLASSES, torch.full_like(target, -100), target)
    for weights in (None, weight):
        expected = F.cross_entropy(logits, ignored, weight=weights, ignore_index=-100)
        assert float(closed_set_loss(logits, target, weights)) == pytest.approx(float(expected), rel=1e-5)
    nothing = torch.full_like(target, 255)
    assert float(closed_set_loss(logits, nothing, weight)) == 0


def test_masked_mean_ignores_non_finite_values_outside_the_mask():
    values = torch.tensor([1.0, float("inf"), 3.0])
    assert float(masked_mean(values, torch.tensor([True, False, True]))) == 2


def slow_contrast(anchors, anchor_labels, contrast, contrast_labels, temperature):
    """Specification b.2, step 5, one anchor and one positive at a time."""
    losses = []
    for i, anchor in enumerate(anchors):
        similarity = [float(np.dot(anchor, other)) / temperature for other in contrast]
        negatives = sum(
            math.exp(s)
            for s, label in zip(similarity, contrast_labels, strict=True)
            if label != anchor_labels[i]
        )
        positives = [j for j, label in enumerate(contrast_labels) if label == anchor_labels[i] and j != i]
        terms = [similarity[j] - math.log(math.exp(similarity[j]) + negatives) for j in positives]
        losses.append(sum(terms) / len(terms))
    return -sum(losses) / len(losses)


def test_contrast_loss_matches_a_loop():
    rng = np.random.default_rng(5)
    contrast = rng.normal(size=(12, 7))
    contrast /= np.linalg.norm(contrast, axis=1, keepdims=True)
    labels = np.repeat([1, 0, 1, 0], 3)
    expected = slow_contrast(contrast[:6], labels[:6], contrast, labels, 0.1)
    tensors = torch.from_numpy(contrast), torch.from_numpy(labels)
    value = contrast_loss(tensors[0][:6], tensors[1][:6], tensors[0], tensors[1], 0.1)
    assert float(value) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_contrast_gradient_matches_finite_differences(seed):
    contrast = torch.from_numpy(np.random.default_rng(seed).normal(size=(8, 3))).requires_grad_()
    labels = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0])
    assert torch.autograd.gradcheck(
        lambda rows: contrast_loss(rows[:4], labels[:4], rows, labels, 0.5), contrast, eps=1e-6, atol=1e-6
    )


def slow_corocl(scene, scene_target, photo, photo_target, limit, generator):
    """The whole of b.2 with python lists: batch-major, row-major pools, permuted in the published order."""
    pools = []
    for projection, target in ((scene, scene_target), (photo, photo_target)):
        small = F.interpolate(target[:, None].float(), size=projection.shape[-2:])[:, 0].long()
        for is_outlier in (True, False):
            pool = []
            for b in range(len(small)):
                for y in range(small.shape[1]):
                    for x in range(small.shape[2]):
                        label = int(small[b, y, x])
                        if label != 255 and (label == 254) is is_outlier:
                            vector = projection[b, :, y, x].double().numpy()
                            pool.append(vector / max(np.linalg.norm(vector), 1e-12))
            pools.append(pool)
    size = min(limit, *map(len, pools))
    drawn = []
    for pool in pools:
        order = torch.randperm(len(pool), generator=generator)[:size]
        drawn += [pool[int(i)] for i in order]
    labels = [1] * size + [0] * size + [1] * size + [0] * size
    return slow_contrast(drawn[: 2 * size], labels[: 2 * size], drawn, labels, 0.1)


@pytest.mark.parametrize("limit", [3, 512])
def test_corocl_matches_a_loop(limit):
    rng = np.random.default_rng(11)
    scene, photo = torch.from_numpy(rng.normal(size=(2, 3, 6, 5, 4))).float()
    scene_target = torch.from_numpy(rng.choice([0, 3, 254, 255], (3, 10, 8)))
    photo_target = torch.from_numpy(rng.choice([0, 254, 255], (3, 10, 8)))
    expected = slow_corocl(scene, scene_target, photo, photo_target, limit, torch.Generator().manual_seed(4))
    value = corocl_loss(
        scene,
        scene_target,
        photo,
        photo_target,
        max_samples=limit,
        generator=torch.Generator().manual_seed(4),
    )
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_corocl_draws_from_torchs_own_generator_by_default():
    scene = torch.randn(2, 4, 3, 3)
    target = torch.tensor([0, 254, 0]).repeat(2, 3, 1)
    torch.manual_seed(3)
    first = corocl_loss(scene, target, scene, target, max_samples=2)
    second = corocl_loss(
        scene, target, scene, target, max_samples=2, generator=torch.Generator().manual_seed(3)
    )
    assert float(first) == float(second)


def test_corocl_without_a_pool_is_zero_and_differentiable():
    scene = torch.randn(1, 4, 3, 3, requires_grad=True)
    target = torch.zeros(1, 3, 3, dtype=torch.long)
    loss = corocl_loss(scene, target, scene, target)
    loss.backward()
    assert float(loss) == 0
    assert not scene.grad.any()


def test_labels_are_read_where_aligned_logits_lie():
    target = torch.arange(7 * 9).reshape(1, 7, 9)
    small = aligned_labels(target, (3, 5))
    assert small[0].tolist() == [[0, 2, 4, 6, 8], [27, 29, 31, 33, 35], [54, 56, 58, 60, 62]]
    assert torch.equal(aligned_labels(target, (7, 9)), target)


def test_nearest_labels_keep_254_and_255():
    target = torch.tensor([[[254, 255], [3, 18]]])
    assert nearest_labels(target, (1, 2)).tolist() == [[[254, 255]]]
    assert set(nearest_labels(target, (4, 4)).unique().tolist()) == {3, 18, 254, 255}


def test_probabilities_that_float32_cannot_hold_give_a_finite_loss():
    """Logits far apart: p is 0 in float32, where 0 log 0 would be NaN; the published code floors it at 1e-7."""
    residual, closed = torch.zeros(1, CLASSES, 1, 2), torch.zeros(1, CLASSES, 1, 2)
    residual[:, 0] = 300.0
    residual.requires_grad_()
    losses = rpl_losses(residual, closed, torch.tensor([[[0, 1]]]))
    floored = -(CLASSES - 1) * 1e-7 * math.log(1e-7)
    assert float(losses.regularisation) == pytest.approx((floored - math.log(CLASSES)) ** 2, rel=1e-5)
    losses.total().backward()
    assert torch.isfinite(residual.grad).all()


def test_the_first_number_beyond_the_classes_is_no_class():
    logits = torch.randn(1, CLASSES, 1, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[[0, CLASSES, CLASSES - 1]]])
    log_p = logits[0, :, 0].log_softmax(0)
    expected = -(log_p[0, 0] + log_p[CLASSES - 1, 2]) / 2
    assert float(closed_set_loss(logits, target)) == pytest.approx(float(expected), rel=1e-6)
