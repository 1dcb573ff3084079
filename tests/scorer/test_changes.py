"""Random changes of scores and colours."""

import numpy as np

from anomdino.scorer.changes import changed_colours, changed_score, uneven


def test_changed_scores_keep_what_stands_out_on_the_whole():
    score = np.full((160, 160), -2, np.float32)
    score[60:100, 60:100] = 4
    source, higher = np.random.default_rng(0), 0
    for _ in range(60):
        changed = changed_score(source, score, score < 0)
        assert changed.dtype == np.float32
        assert np.isfinite(changed).all()
        higher += changed[60:100, 60:100].mean() > changed[:40].mean() + 1
    assert higher >= 54
    assert np.isfinite(changed_score(source, score, np.zeros_like(score, bool))).all()


def test_changed_colours_stay_colours():
    image = np.random.default_rng(0).integers(0, 256, (160, 160, 3)).astype(np.uint8)
    source, grey = np.random.default_rng(0), 0
    for _ in range(60):
        changed = changed_colours(source, image)
        assert changed.dtype == np.uint8
        assert changed.shape == image.shape
        grey += np.ptp(changed.astype(int), axis=2).max() == 0
    assert 1 <= grey <= 20


def test_an_uneven_field_is_smooth_and_has_the_size_that_is_asked_for():
    field = uneven(np.random.default_rng(0), 4, 96)
    assert field.shape == (96, 96)
    assert field.dtype == np.float32
    assert np.abs(np.diff(field, axis=0)).max() < 0.2
    assert 0.2 < field.std() < 1.5
