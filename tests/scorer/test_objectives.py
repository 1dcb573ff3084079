"""The two objectives of a step against float64 formulas, gradient included."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anomdino.config.rpl import ClosedSetConfig, ResidualConfig
from anomdino.scorer.base import ScorerSpec, build_scorer
from anomdino.scorer.batches import Batch, network_input
from anomdino.scorer.distributed import World
from anomdino.scorer.objectives import ClosedSetObjective, ResidualObjective
from tests.scorer.test_losses import slow_contrast
from tests.scorer.test_training import OPTIONS

ALONE = World(0, 1, torch.device("cpu"))
CLASSES, H, W = 4, 16, 24  # decoder: 4 x 6
WEIGHT, TEMPERATURE = 0.7, 0.3


@pytest.fixture
def scorer():
    torch.manual_seed(2)
    return build_scorer(ScorerSpec("small", CLASSES, OPTIONS))


def quarters(*rows):
    """Enlarge labels at the decoder's resolution to the image's, so that they survive the way back."""
    return np.kron(np.array(rows, np.uint8), np.ones((4, 4), np.uint8))


INLIER, NOTHING = quarters(*[[1] * 6] * 4), quarters(*[[255] * 6] * 4)
OBJECT = quarters(*[[254, 254, 254, 0, 0, 0]] * 2, *[[255] * 6] * 2)  # six of each kind, six of neither
PHOTO = quarters([0, 254] * 3, [254, 0] * 3, [255] * 6, [255] * 6)


def batch_of(scenes, photos):
    source = np.random.default_rng(3)
    images, photo_images = source.integers(0, 256, (2, len(scenes), H, W, 3), dtype=np.uint8)
    return Batch(
        torch.from_numpy(images),
        torch.from_numpy(np.stack(scenes)),
        [f"s{index}" for index in range(len(scenes))],
        torch.from_numpy(photo_images),
        torch.from_numpy(np.stack(photos)),
    )


def pools_of(projection, labels):
    """Outlier and inlier vectors of unit length, pixel by pixel."""
    vectors = projection.permute(0, 2, 3, 1).detach().numpy()
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    small = labels.numpy()[:, ::4, ::4]
    return vectors[small == 254], vectors[(small != 254) & (small != 255)]


def slow_corocl(network, batch, kept):
    """CoroCL of a float64 network where the four pools have one size: then no order of pixels matters."""
    images = torch.cat([network_input(batch.images), network_input(batch.outlier_images)]).double()
    with torch.no_grad():
        projection = network.decode(images).projection
    scenes, photos = projection[: len(batch.labels)][kept], projection[len(batch.labels) :][kept]
    pools = [*pools_of(scenes, batch.labels[kept]), *pools_of(photos, batch.outlier_labels[kept])]
    size = len(pools[0])
    assert {len(pool) for pool in pools} == {size}
    vectors, labels = np.concatenate(pools), np.repeat([1, 0, 1, 0], size)
    return slow_contrast(vectors[: 2 * size], labels[: 2 * size], vectors, labels, TEMPERATURE)


def residual_config(min_images=2):
    corocl = {"weight": WEIGHT, "temperature": TEMPERATURE, "min_images": min_images}
    return ResidualConfig.model_validate({"corocl": corocl})


@pytest.mark.parametrize(
    ("scenes", "min_images", "kept"),
    [([OBJECT, INLIER, OBJECT], 2, [0, 2]), ([INLIER, OBJECT], 1, [1])],
)
def test_corocl_of_a_step_is_that_of_a_float64_loop(scorer, scenes, min_images, kept):
    # photos of scenes without an outlier hold other numbers of pixels: they must not be read
    batch = batch_of(scenes, [PHOTO if index in kept else OBJECT * 0 for index in range(len(scenes))])
    objective = ResidualObjective(scorer, ALONE, residual_config(min_images), 0)
    objective.start_step()
    exact = copy.deepcopy(scorer).double()
    losses = objective(batch, **objective.hints(batch, 5))
    assert losses["corocl"].item() == pytest.approx(slow_corocl(exact, batch, kept), rel=1e-4)

    losses["loss"].backward()  # nothing but CoroCL reads the projection
    gradient = scorer.residual_block.proj_head.proj[0].weight.grad
    weight = exact.residual_block.proj_head.proj[0].weight.data
    assert gradient.abs().max() > 1e-2
    for place in [(0, 0), (3, 4), (5, 1), (9, 5)]:
        values = []
        for step in (1e-5, -2e-5):
            weight[place] += step
            values.append(slow_corocl(exact, batch, kept))
        weight[place] += 1e-5
        slope = WEIGHT * (values[0] - values[1]) / 2e-5
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-3, abs=1e-5), place


@pytest.mark.parametrize(("scenes", "applies"), [([OBJECT, INLIER], False), ([OBJECT, OBJECT], True)])
def test_corocl_needs_two_scenes_with_an_outlier(scorer, scenes, applies):
    batch = batch_of(scenes, [PHOTO, PHOTO])
    objective = ResidualObjective(scorer, ALONE, residual_config(), 0)
    objective.start_step()
    losses = objective(batch, **objective.hints(batch, 0))
    assert (losses["corocl"].item() > 0) is applies
    losses["loss"].backward()
    gradient = scorer.residual_block.proj_head.proj[0].weight.grad
    assert (gradient is not None and bool(gradient.any())) is applies


@pytest.mark.parametrize("loss_at", ["decoder", "input"])
def test_rpl_of_a_step_reads_both_paths_at_its_resolution(scorer, loss_at):
    config = ResidualConfig.model_validate({"loss_at": loss_at, "corocl": {"enabled": False}})
    batch = batch_of([OBJECT, INLIER], [PHOTO, PHOTO])
    objective = ResidualObjective(scorer, ALONE, config, 0)
    objective.start_step()
    exact = copy.deepcopy(scorer).double()
    with torch.no_grad():
        output = exact.decode(network_input(batch.images).double())
    closed, residual, labels = output.logits, output.residual_logits, batch.labels.long()
    if loss_at == "input":
        closed, residual = (
            F.interpolate(logits, (H, W), mode="bilinear", align_corners=True)
            for logits in (closed, residual)
        )
    else:  # rows 0, 5, 10, 15 and columns 0, 4.6, 9.2, 13.8, 18.4, 23
        labels = labels[:, [0, 5, 10, 15]][:, :, [0, 5, 9, 14, 18, 23]]
    inlier = (labels != 254) & (labels != 255)
    p, q = residual.softmax(1).clamp(min=1e-7), closed.softmax(1).clamp(min=1e-7)
    difference = (p * p.log()).sum(1) - (q * q.log()).sum(1)
    expected = {
        "entropy": F.cross_entropy(residual, closed.argmax(1), reduction="none")[inlier].mean(),
        "regularisation": difference.square()[inlier].mean(),
        "energy": residual.exp().sum(1).log().clamp(min=0)[labels == 254].mean(),
    }
    losses = objective(batch, **objective.hints(batch, 0))
    assert {name: losses[name].item() for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-4
    )
    total = expected["entropy"] + expected["regularisation"] + 0.05 * expected["energy"]
    assert losses["loss"].item() == pytest.approx(float(total), rel=1e-4)


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 3.0]])
@pytest.mark.parametrize("loss_at", ["decoder", "input"])
def test_closed_set_loss_of_a_step_is_torchs_cross_entropy(scorer, loss_at, weights):
    source = np.random.default_rng(8)
    labels = torch.from_numpy(source.choice([0, 1, 2, 3, 254, 255], (2, H, W)).astype(np.uint8))
    batch = Batch(torch.from_numpy(source.integers(0, 256, (2, H, W, 3), dtype=np.uint8)), labels, ["a", "b"])
    given = None if weights is None else torch.tensor(weights)
    objective = ClosedSetObjective(scorer, ALONE, ClosedSetConfig.model_validate({"loss_at": loss_at}), given)
    objective.start_step()
    exact = copy.deepcopy(scorer).double()
    logits, target = exact.closed_set_logits(network_input(batch.images).double()), labels.long()
    if loss_at == "input":
        logits = F.interpolate(logits, (H, W), mode="bilinear", align_corners=True)
    else:
        target = target[:, [0, 5, 10, 15]][:, :, [0, 5, 9, 14, 18, 23]]
    target = torch.where(target >= CLASSES, -100, target)
    weight = None if given is None else given.double()
    expected = F.cross_entropy(logits, target, weight=weight, ignore_index=-100)
    loss = objective(batch)["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    expected.backward()
    for name, parameter in exact.named_parameters():
        if parameter.grad is not None:
            found = dict(scorer.named_parameters())[name].grad
            assert torch.allclose(found.double(), parameter.grad, rtol=1e-2, atol=1e-4), name


def test_every_training_puts_the_modules_it_changes_in_training_mode_and_no_other(scorer):
    block = set(scorer.residual_block.modules())
    rest = [module for module in scorer.modules() if module not in block]
    scorer.train_residual()
    assert all(module.training for module in block)
    assert rest
    assert not any(module.training for module in rest)
    assert all(p.requires_grad for p in scorer.residual_block.parameters())
    assert sum(p.requires_grad for p in scorer.parameters()) == len(list(scorer.residual_block.parameters()))
    scorer.train_closed_set()
    assert not any(module.training for module in block)
    assert all(module.training for module in rest)
    assert not any(p.requires_grad for p in scorer.residual_block.parameters())
    scorer.eval().train_residual()
    assert not any(module.training for module in rest)
