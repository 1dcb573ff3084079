import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score

from anomdino.scorer.base import ScorerSpec, build_scorer, to_input
from anomdino.scorer.batches import Batch
from anomdino.scorer.dataset import ImagePairs
from anomdino.scorer.validation import (
    ClosedSetQuality,
    average_precision,
    closed_set_quality,
    composed_quality,
)

OPTIONS = {
    "channels": [4, 6, 8, 8],
    "deep_channels": 8,
    "context_channels": 6,
    "skip_channels": 4,
    "head_channels": 8,
    "dilations": [1],
}


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_scikit_learns(levels):
    rng = np.random.default_rng(levels)
    truth = rng.random(500) < 0.1
    scores = (rng.integers(0, levels, 500) + truth).astype(np.float32)
    value = average_precision(torch.from_numpy(scores), torch.from_numpy(truth))
    assert value == pytest.approx(average_precision_score(truth, scores), rel=1e-12)


def test_average_precision_without_positives_is_zero():
    assert average_precision(torch.rand(5), torch.zeros(5, dtype=torch.bool)) == 0


def test_iou_by_hand():
    quality = ClosedSetQuality(0.5, torch.tensor([[3, 1, 0, 0], [2, 4, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert quality.iou == [3 / 6, 4 / 8, 0.0, None]
    assert quality.miou == pytest.approx(0.5)
    assert quality.report()["classes_that_occur"] == 2


def test_quality_matches_scikit_learn_and_torch_on_whole_images(tiny_data):
    torch.manual_seed(0)
    scorer = build_scorer(ScorerSpec("small", 4, OPTIONS)).eval()
    scenes = ImagePairs(tiny_data / "inlier" / "val", "labels")
    quality = closed_set_quality(scorer, scenes, torch.device("cpu"))
    truths, predictions, losses = [], [], []
    for index in range(len(scenes)):
        image, label = scenes[index]
        with torch.no_grad():
            logits = scorer(to_input(image)).logits[0]
        known = torch.from_numpy(label) < 4
        truths.append(label[known.numpy()])
        predictions.append(logits.argmax(0)[known].numpy())
        target = torch.from_numpy(label).long()[known]
        losses.append(torch.nn.functional.cross_entropy(logits[:, known].T, target, reduction="none"))
    truth, predicted = np.concatenate(truths), np.concatenate(predictions)
    expected = jaccard_score(truth, predicted, average=None, labels=range(4), zero_division=0)
    assert [iou or 0.0 for iou in quality.iou] == pytest.approx(list(expected))
    assert quality.miou == pytest.approx(expected[np.unique(truth)].mean())
    assert quality.loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_composed_quality_ranks_254_against_known_pixels():
    class Fake(torch.nn.Module):
        def decode(self, images):
            from anomdino.scorer.base import ScorerOutput

            sure = torch.stack([images[:, 0], -images[:, 0]], dim=1)[:, :, ::2, ::2]
            return ScorerOutput(torch.zeros_like(sure), sure)

    images = torch.full((1, 8, 8, 3), 3.0)
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    images[0, 4:, 4:] = 0.0
    labels[0, 4:, 4:] = 254
    images[0, :2] = 0.0
    labels[0, :2] = 255
    quality = composed_quality(Fake(), [Batch(images, labels, ["a"])], torch.device("cpu"))
    assert quality["ap"] == 1.0
    assert quality["ap_closed"] == pytest.approx(4 / 12)
