"""Small untrained networks saved to disk as a trained pipeline would."""

import pytest
import torch

from anomdino.adt.fusion import AdtModel, FusionRule
from anomdino.adt.model import AdtNet, Architecture, ScoreStatistics
from anomdino.adt.store import save_adt
from anomdino.scorer.base import ScorerSpec, build_scorer, save_scorer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    save_scorer(build_scorer(ScorerSpec("small")), folder / "models" / "rpl")
    net = AdtNet(Architecture(), ScoreStatistics(mean=-3.0, std=1.0))
    save_adt(AdtModel(net, FusionRule(output="fused")), folder / "models" / "adt")
    (folder / "params.yaml").write_text("score: {}\n")
    return folder
