"""Protocols by name."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from anomdino.metrics import StreamingPixels, per_image_metrics, pixel_metrics


def frames():
    rng = np.random.default_rng(0)
    for index in range(5):
        label = rng.choice(np.array([0, 1, 255], np.uint8), (30, 40), p=[0.85, 0.1, 0.05])
        if index == 3:
            label[label == 1] = 0
        yield (rng.normal(size=(30, 40)) + 1.2 * (label == 1) + index).astype(np.float32), label


def test_pooled_protocols():
    score, label = (np.stack([frame[part] for frame in frames()]) for part in (0, 1))
    roi = label != 255
    pooled = pixel_metrics(frames(), "pooled")
    assert pooled.ap == pytest.approx(average_precision_score(label[roi], score[roi]), abs=1e-9)
    assert pooled.auroc == pytest.approx(roc_auc_score(label[roi], score[roi]), abs=1e-9)
    assert pixel_metrics(frames(), "fishyscapes") == pooled
    rpl = pixel_metrics(frames(), "rpl")
    assert (rpl.ap, rpl.auroc) == (pooled.ap, pooled.auroc)
    assert rpl.fpr95 == pytest.approx(pooled.fpr95, abs=0.01)


@pytest.mark.parametrize(("protocol", "rule"), [("pooled", "first"), ("rpl", "closest")])
def test_streaming_gives_the_same_numbers(protocol, rule):
    state = StreamingPixels()
    for frame in frames():
        state.update(*frame)
    expected, got = pixel_metrics(frames(), protocol), state.compute(rule)
    for name in ("ap", "auroc", "fpr95", "best_f1", "best_f1_threshold"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), abs=1e-12)


def test_per_image_means_leave_out_what_is_not_defined():
    result = per_image_metrics(frames())
    kept = [frame for frame in frames() if (frame[1] == 1).any()]
    aps = [average_precision_score(label[label != 255], score[label != 255]) for score, label in kept]
    assert result.ap == pytest.approx(np.mean(aps), abs=1e-9)
    assert result.images == 4
    assert list(result.left_out.values()) == [1]
    nothing = per_image_metrics([])
    assert (nothing.ap, nothing.images) == (None, 0)


def test_smiyc_is_its_own_approximation():
    assert pixel_metrics(frames(), "smiyc").ap == pytest.approx(pixel_metrics(frames()).ap, abs=0.02)


@pytest.mark.parametrize("protocol", ["pooled", "rpl", "smiyc"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_integers_are_scores_like_any_other(protocol, dtype):
    rng = np.random.default_rng(0)
    label = rng.choice(np.array([0, 1, 255], np.uint8), 500, p=[0.7, 0.2, 0.1])
    score = np.clip(rng.normal(3, 2, 500) + 2 * (label == 1), 0, 9).astype(dtype)
    assert pixel_metrics([(score, label)], protocol) == pixel_metrics(
        [(score.astype(float), label)], protocol
    )


def test_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="known: pooled"):
        pixel_metrics([], "invented")
