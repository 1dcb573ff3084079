"""The ablation's script: what differs between its rows, and its table."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.detector.conftest import small_config

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "detector_ablation.py"


@pytest.fixture(scope="module")
def ablation():
    spec = importlib.util.spec_from_file_location("detector_ablation", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_differ_in_the_fusion_alone(ablation):
    base = small_config(image_dropout=0.3)
    fixed = {"fusion", "image_dropout"}
    for name in ablation.VARIANTS:
        config = ablation.variant_of(base, name)
        assert config.model_dump(exclude=fixed) == base.model_dump(exclude=fixed)
        sees_maps = bool(config.fusion.maps or config.fusion.score_map)
        assert sees_maps == (name != "none")
        assert config.image_dropout == (0.3 if sees_maps else 0.0)
    assert ablation.variant_of(base, "+entropy").fusion.maps == ["semantic", "entropy"]
    assert ablation.variant_of(base, "+distance").fusion.orth == "none"
    assert ablation.variant_of(base, "all").fusion.score_map


def test_changes_are_checked_like_params_yaml(ablation):
    config = ablation.changed(small_config(), ["detector.steps=7", "fusion.orth=none"])
    assert (config.steps, config.fusion.orth) == (7, "none")
    with pytest.raises(ValueError, match="stesp"):
        ablation.changed(small_config(), ["stesp=7"])


def test_boxes_of_components_leave_out_small_ones_and_void(ablation):
    label = np.zeros((10, 12), np.uint8)
    label[1:4, 2:6] = 1
    label[8, 8] = 1
    label[5:7, 0:3] = 255
    assert ablation.component_boxes(label, 2).tolist() == [[2, 1, 6, 4]]
    assert ablation.component_boxes(label, 1).tolist() == [[2, 1, 6, 4], [8, 8, 9, 9]]
    assert ablation.component_boxes(np.zeros((4, 4), np.uint8), 1).shape == (0, 4)


def test_table_has_mean_and_spread(ablation, tmp_path):
    for seed, value in enumerate((0.2, 0.4)):
        numbers = dict.fromkeys(ablation.COLUMNS, value) | {"AP50": None}
        (tmp_path / f"none-{seed}.json").write_text(json.dumps({"sets": {"held-out": numbers}}))
    lines = ablation.render(tmp_path, ["none", "all"], [0, 1, 2]).splitlines()
    assert len(lines) == 4 - 1
    assert lines[2].startswith("| none | 2 | 30.0 +- 14.1 |")
    assert "| - |" in lines[2]
