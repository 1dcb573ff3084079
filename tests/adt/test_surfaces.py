import numpy as np
import pytest
import torch

from anomdino.adt.fusion import AdtModel, FusionRule, check_map, compute_surfaces, fuse
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.adt.surfaces import SIZES_KEPT, SurfaceReplay, surface_tensors
from anomdino.errors import DataError
from anomdino.io.boxes import Boxes

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def model(device="cpu", **rule):
    torch.manual_seed(0)
    net = AdtNet(Architecture(), ScoreStatistics(-6.0, 2.0)).eval().to(device)
    return AdtModel(net, FusionRule(min_component=4, **rule))


def street(seed, height=48, width=80):
    rng = np.random.default_rng(seed)
    low = rng.uniform([0, 0], [width / 2, height / 2], (3, 2))
    boxes = np.hstack([low, low + rng.uniform(4, height / 3, (3, 2))])
    return rng.normal(-6, 2, (height, width)).astype(np.float32), Boxes(boxes, rng.uniform(0.3, 1, 3))


def test_span_tells_what_the_check_asks():
    net = model().net
    score, _ = street(0)
    coverage = torch.full(score.shape, -1.0)
    low, high = surface_tensors(net, torch.from_numpy(score), coverage).span.tolist()
    assert (low, high) == (score.min(), score.max())
    score[3, 4] = np.nan
    assert torch.isnan(surface_tensors(net, torch.from_numpy(score), coverage).span).all()
    with pytest.raises(DataError, match="1 NaN"):
        check_map(score)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("output", ["raw", "hard", "soft", "boost", "fused"])
def test_a_replayed_model_gives_what_the_cpu_gives(output):
    here, there = model(output=output), model("cuda", output=output)
    for seed in range(3):
        score, boxes = street(seed)
        for kept in (boxes, Boxes.empty()):
            ours, exact = fuse(score, kept, there), fuse(score, kept, here)
            np.testing.assert_allclose(ours.score, exact.score, atol=2e-5)
            assert (ours.mask != exact.mask).mean() < 1e-3
            np.testing.assert_allclose(ours.threshold, exact.threshold, atol=1e-4)


@pytest.mark.gpu
@needs_cuda
def test_replay_keeps_earlier_results_follows_the_weights_and_forgets_old_sizes():
    there = model("cuda")
    replay = SurfaceReplay(there.net)
    first = compute_surfaces(*street(1), there.net, 0.3, replay=replay)
    kept = first.decision.clone()
    compute_surfaces(*street(2), there.net, 0.3, replay=replay)
    assert torch.equal(first.decision, kept)
    with torch.no_grad():
        there.net.raw_slopes.add_(1)
    stepwise = compute_surfaces(*street(1), there.net, 0.3)
    torch.testing.assert_close(
        compute_surfaces(*street(1), there.net, 0.3, replay=replay).decision, stepwise.decision
    )
    for height in range(32, 32 + 2 * SIZES_KEPT):
        compute_surfaces(*street(3, height), there.net, 0.3, replay=replay)
    assert len(replay._recorded) == SIZES_KEPT


@pytest.mark.gpu
@needs_cuda
def test_a_bad_map_is_refused_as_on_the_cpu():
    there = model("cuda")
    score, boxes = street(4)
    score[0, 0] = np.inf
    with pytest.raises(DataError, match="1 NaN or infinite"):
        fuse(score, boxes, there)
    with pytest.raises(DataError, match="constant"):
        fuse(np.ones((8, 8), np.float32), boxes, there)
