"""The table of ADT-Net's ablation over seeds."""

import importlib
from pathlib import Path

import numpy as np


def test_spread_is_that_of_a_sample_and_what_was_not_measured_is_a_dash(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    table = importlib.import_module("adt_ablation").table
    runs = [[value, 0.1, 0.2, missed, 3, np.nan, 1, 0] for value, missed in ((0.5, 1), (0.6, 2), (0.7, 6))]
    row = table({"all": runs}).splitlines()[-1]
    assert (
        row
        == "| all | 60.0 +- 10.0 | 10.0 +- 0.0 | 20.0 +- 0.0 | 3.0 +- 2.6 | 3.0 +- 0.0 | - | 1.0 +- 0.0 | 0.0 +- 0.0 |"
    )
    assert table({"one": runs[:1]}).splitlines()[-1] == "| one | 50.0 | 10.0 | 20.0 | 1 | 3 | - | 1 | 0 |"
