"""The block `benchmark` of params.yaml."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from anomdino.config.benchmark import BenchmarkConfig, BenchmarkSet


@pytest.mark.parametrize("name", ["train", "seed", "closed_set", "with space", "a/b", "über"])
def test_names_that_would_collide_on_disk_are_refused(name):
    with pytest.raises(ValidationError, match="cannot be used"):
        BenchmarkConfig(sets={name: {"root": "data"}})


def test_label_meanings_are_checked():
    with pytest.raises(ValidationError, match="meanings are 0, 1 and 255"):
        BenchmarkSet(root="x", labels={1: 2})
    with pytest.raises(ValidationError, match="other_labels"):
        BenchmarkSet(root="x", other_labels=7)
    with pytest.raises(ValidationError):
        BenchmarkSet(root="x", protocol="invented")


def test_numbers_given_as_text_are_read():
    assert BenchmarkConfig(sets={"a": {"root": "x", "min_gt": "10"}}).sets["a"].min_gt == 10
