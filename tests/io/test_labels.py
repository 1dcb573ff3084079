"""Label values against counts by a loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomdino.errors import DataError
from anomdino.io.labels import check_train_ids, check_values


def test_values_that_are_not_allowed_are_counted():
    values = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    flat = values.ravel().tolist()
    strange = [value for value in sorted(set(flat)) if value not in {1, 5}][:8]
    counts = {value: flat.count(value) for value in strange}
    with pytest.raises(DataError) as caught:
        check_values(Path("a.png"), values, frozenset({1, 5}), "ones and fives")
    assert str(caught.value).startswith(f"a.png: has label values that are not ones and fives: {counts}")
    check_values(Path("a.png"), values, frozenset(flat), "anything")


@pytest.mark.parametrize("value", range(256))
def test_train_ids_are_0_to_18_and_255(value):
    label = np.full((2, 2), value, np.uint8)
    if value <= 18 or value == 255:
        check_train_ids(Path("a.png"), label)
    else:
        with pytest.raises(DataError, match=f"{{{value}: 4}}"):
            check_train_ids(Path("a.png"), label)
