"""The scorer's own encoder as the detector's backbone: which scorers fit."""

import pytest
import torch

from anomdino.config.detect import DetectConfig
from anomdino.detector.architecture import build_detector
from anomdino.detector.backbones import SCORERS, STRIDES
from anomdino.detector.infer import Detector
from anomdino.detector.records import split_folds
from anomdino.detector.run import detect_one
from anomdino.detector.training import train_detector
from anomdino.errors import ConfigError
from anomdino.scorer.base import ARCHITECTURES, ScorerSpec, build_scorer, save_scorer
from tests.detector.conftest import CLASSES, read_set, small_config

OPTIONS = {"wide_resnet38": {"channel_divisor": 16}}


def scorer(tmp_path, architecture):
    network = build_scorer(ScorerSpec(architecture, CLASSES, OPTIONS.get(architecture, {})))
    save_scorer(network, tmp_path / "rpl")
    return network, tmp_path / "rpl"


@pytest.mark.slow
def test_a_detector_learns_and_predicts_with_the_scorers_encoder(composed, tmp_path):
    network, folder = scorer(tmp_path, "efficientnet_lite0")
    records, config = read_set(composed), small_config(backbone="scorer", steps=1)
    (fold,) = split_folds(records, 1, 0.4, 0)
    train_detector(config, fold, tmp_path / "detector", tmp_path / "work", 5, torch.device("cpu"), folder)
    detector = Detector.load(tmp_path / "detector", detect=DetectConfig(min_score=0.0), scorer_folder=folder)
    boxes, _ = detect_one(detector, records[0].image, records[0].maps)
    assert len(boxes) > 0
    images = torch.randn(1, 3, 64, 96)
    expected = network.eval().encoder_features(images)
    for feature, stride in zip(detector.network.backbone(images), STRIDES, strict=True):
        torch.testing.assert_close(feature, expected[stride])
        assert feature.shape[-2:] == (64 // stride, 96 // stride)


@pytest.mark.parametrize("architecture", ["small", "wide_resnet38"])
def test_a_scorer_without_features_at_its_strides_is_refused(tmp_path, architecture):
    _, folder = scorer(tmp_path, architecture)
    with pytest.raises(ConfigError, match=architecture) as caught:
        build_detector(small_config(backbone="scorer"), CLASSES, folder)
    assert caught.value.what == "detector.backbone"
    assert "efficientnet_lite0" in caught.value.cure
    assert set(SCORERS) < set(ARCHITECTURES)
