"""`python -m pipeline.release`, from folders of data to a model that predicts, at tiny size: every stage really runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anomdino.cascade import Cascade
from anomdino.config.data import SyntheticConfig
from anomdino.config.params import load_params
from anomdino.scorer.base import load_scorer
from anomdino.synthetic import scene, write_synthetic
from pipeline import _steps, release
from tests.forked import ModuleProcess

TINY = [
    "seed=3",
    "rpl.architecture=small",
    "rpl.closed_set.pretrained=false",
    "rpl.closed_set.encoder_norms=train",
    *(
        f"rpl.{phase}.{key}"
        for phase in ("closed_set", "residual")
        for key in ("schedule.steps=2", "schedule.warmup=0", "augment.crop=[48, 64]", "batch=2")
    ),
    "rpl.residual.validation_images=2",
    "rpl.outlier_photos.steps=2",
    "rpl.outlier_photos.batch=2",
    "compose.count=8",
    "compose.workers=1",
    "score.widths=[128, 96]",
    "detector.steps=2",
    "detector.batch_size=2",
    "detector.workers=0",
    "detector.short_sides=[64]",
    "detector.test_short_side=64",
    "detector.long_side=128",
    "detector.embed_dims=32",
    "detector.fusion_dims=32",
    "detector.feedforward=64",
    "detector.heads=2",
    "detector.queries=12",
    "detector.encoder_layers=1",
    "detector.decoder_layers=2",
    "detect.max_boxes=4",
    "adt.epochs=1",
    "adt.samples_per_epoch=4",
    "adt.crop=64",
    "adt.workers=0",
    "benchmark.bootstrap=10",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    size = {"height": 96, "width": 128}
    write_synthetic(
        SyntheticConfig(**size, train=6, val=4, outliers=12, benchmark=2, workers=1), folder / "data"
    )
    data = folder / "data"
    given = {
        "--inlier": data / "inlier",
        "--outliers": data / "outliers",
        "--benchmark": f"AnomalyTrack={data / 'val' / 'synthetic_track'}",
        "--work": folder / "work",
        "--to": folder / "light",
    }
    changes = [text for change in TINY for text in ("--set", change)]
    arguments = [str(text) for pair in given.items() for text in pair]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_steps, "subprocess", SimpleNamespace(Popen=ModuleProcess))
        result = CliRunner().invoke(release.app, [*arguments, *changes])
    assert result.exit_code == 0, result.output
    assert f"model in {folder / 'light'}" in result.output
    return folder


def test_the_scorer_went_through_its_three_phases(released: Path) -> None:
    history = json.loads((released / "work/data/models/rpl/history.json").read_text())
    assert list(dict.fromkeys(record["phase"] for record in history)) == [
        "closed_set",
        "residual",
        "outlier_photos",
    ]
    loaded = load_scorer(released / "light/models/rpl").state_dict()
    for name, trained in load_scorer(released / "work/data/models/rpl").state_dict().items():
        np.testing.assert_allclose(loaded[name], trained, rtol=1e-3, atol=1e-6)


def test_the_benchmark_was_measured(released: Path) -> None:
    measured = json.loads((released / "work/metrics.json").read_text())["AnomalyTrack"]
    assert (measured["images"], measured["protocol"]) == (2, "smiyc")
    assert 0 < measured["raw"]["AP"] < 1


def test_the_model_predicts(released: Path) -> None:
    params = load_params(released / "light/params.yaml")
    assert (params.seed, params.data.source, params.rpl.outlier_photos.steps) == (3, "registry", 2)
    cascade = Cascade.load(released / "light/models", params, torch.device("cpu"))
    frame = scene("val", 0, size=(96, 128))
    prediction = cascade.predict(frame.image)
    assert prediction.score.shape == prediction.mask.shape == (96, 128)
    assert np.isfinite(prediction.score).all()
