"""The engine against the plain path, tiles, widths, resumption after a kill, and what goes wrong."""

import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from anomdino import uncertainty
from anomdino.config.score import ScoreConfig
from anomdino.errors import BackendMissing, CheckpointError, DataError
from anomdino.io.images import write_png
from anomdino.io.scores import read_score
from anomdino.scorer import inference
from anomdino.scorer.base import (
    Scorer,
    ScorerOutput,
    ScorerSpec,
    anomaly_score,
    build_scorer,
    save_scorer,
    to_input,
)
from anomdino.scorer.folding import fold_batch_norms
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.maps_source import MapsSource
from anomdino.scorer.options import ScoringOptions
from anomdino.scorer.refinement import Refinement
from anomdino.scorer.run import DONE_FOLDER, SKIPPED_FILE, Outputs, RunOptions, SetScorer, content_digest
from anomdino.scorer.setup import engine_from
from anomdino.scorer.tiling import Tile, blend_weights, tiles
from anomdino.scorer.wide_resnet38 import WideResNet38Scorer
from anomdino.uncertainty import UncertaintyMaps, uncertainty_maps


def with_statistics(network, seed=0):
    """Give every batch norm parameters and statistics that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.6, 1.4),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.6, 1.5),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(0)
    return with_statistics(WideResNet38Scorer(channel_divisor=16))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return with_statistics(build_scorer(ScorerSpec("small")))


def photo(height=60, width=84, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    return np.ascontiguousarray(coarse[rows][:, columns])


class PixelScorer(Scorer):
    """Logits that depend on their own pixel alone, so that tiling must change nothing."""

    def __init__(self):
        super().__init__()
        self.spec = ScorerSpec("pixel", 3)
        self.mix = nn.Conv2d(3, 3, 1)
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape))
        logits = self.mix(images)
        return ScorerOutput(logits, 2 * logits + 1)


@pytest.fixture
def pixel():
    torch.manual_seed(3)
    return PixelScorer().eval()


@pytest.mark.parametrize("size", [(60, 84), (33, 47), (1, 1), (7, 200)])
@pytest.mark.parametrize("name", ["wide", "small"])
def test_engine_equals_the_plain_path(request, name, size):
    scorer = request.getfixturevalue(name)
    image = photo(*size)
    with torch.inference_mode():
        output = scorer(to_input(image))
        expected = anomaly_score(output)[0].numpy()
        semantic, entropy, distance = uncertainty_maps(output.logits)
    scored = ScoringEngine(scorer).score(image)
    assert scored.score.dtype == np.float32
    assert scored.score.shape == size
    np.testing.assert_allclose(scored.score, expected, rtol=1e-4, atol=1e-4)
    assert scored.maps.image_size == size
    grid = (-(-size[0] // 4), -(-size[1] // 4))
    assert scored.maps.semantic.shape == (19, *grid)
    for ours, full in (
        (scored.maps.semantic, semantic[0].numpy()),
        (scored.maps.entropy, entropy.numpy()),
        (scored.maps.distance, distance.numpy()),
        (scored.maps.score, expected[None]),
    ):
        cell = full[:, :4, :4].mean((1, 2))
        np.testing.assert_allclose(np.atleast_3d(ours.T).T[:, 0, 0], cell, rtol=2e-3, atol=2e-3)
        last = full[:, 4 * (grid[0] - 1) :, 4 * (grid[1] - 1) :].mean((1, 2))
        np.testing.assert_allclose(np.atleast_3d(ours.T).T[:, -1, -1], last, rtol=2e-3, atol=2e-3)


def test_engine_leaves_the_scorer_alone_unless_told_to_consume_it(wide):
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    engine = ScoringEngine(wide)
    engine.score(photo())
    assert all(torch.equal(before[name], value) for name, value in wide.state_dict().items())
    assert engine.network is not wide
    assert any(isinstance(module, nn.BatchNorm2d) for module in wide.branch1.aspp.modules())
    copy = PixelScorer()
    assert ScoringEngine(copy, consume=True).network is copy
    assert ScoringEngine(copy).network is not copy


def test_one_forward_pass_per_width(pixel):
    engine = ScoringEngine(pixel, ScoringOptions(widths=(40, 84, 168)), consume=True)
    engine.score(photo())
    assert pixel.sizes == [(1, 3, 29, 40), (1, 3, 60, 84), (1, 3, 120, 168)]


@pytest.fixture(scope="module")
def light():
    torch.manual_seed(0)
    return with_statistics(build_scorer(ScorerSpec("efficientnet_lite0")))


@pytest.mark.parametrize("name", ["wide", "small", "light"])
def test_folding_keeps_the_function_and_removes_the_norms(request, name):
    scorer = request.getfixturevalue(name)
    import copy

    folded = copy.deepcopy(scorer)
    count = fold_batch_norms(folded)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in scorer.modules())
    left = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert count == norms - left
    # only the pre-activations of the 17 blocks of the wide network follow a sum
    assert left == {"wide": 17, "small": 0, "light": 0}[name]
    images = torch.randn(1, 3, 41, 57, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before, after = scorer(images), folded(images)
    for a, b in zip(before[:2], after[:2], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def test_folding_refuses_training_mode():
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_batch_norms(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))


def test_folding_leaves_norms_that_follow_no_convolution():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)).eval()
    assert fold_batch_norms(network) == 0


def test_scores_of_widths_are_averaged(small):
    image = photo(64, 96)
    expected = []
    for width in (48, 96):
        inputs = F.interpolate(
            to_input(image), (64 * width // 96, width), mode="bilinear", align_corners=False, antialias=True
        )
        with torch.inference_mode():
            score = anomaly_score(small(inputs))[:, None]
        expected.append(F.interpolate(score, (64, 96), mode="bilinear", align_corners=False, antialias=True))
    scored = ScoringEngine(small, ScoringOptions(widths=(48, 96))).score(image)
    np.testing.assert_allclose(
        scored.score, torch.stack(expected).mean(0)[0, 0].numpy(), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(scored.maps.semantic.astype(np.float32).sum(0), 1, atol=5e-3)


def by_cells(maps, stride):
    """Average (..., H, W) over the cells of a grid, one by one."""
    rows, columns = (range(0, side, stride) for side in maps.shape[-2:])
    cells = [[maps[..., y : y + stride, x : x + stride].mean((-2, -1)) for x in columns] for y in rows]
    return np.moveaxis(np.array(cells), (0, 1), (-2, -1))


def resampled(maps, size):
    found = F.interpolate(
        torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False, antialias=True
    )
    return found[0].numpy()


@pytest.mark.parametrize("distance", ["margin1", "one_minus_p1", "margin"])
def test_maps_and_score_of_several_widths_are_those_of_the_formulas(pixel, distance, monkeypatch):
    monkeypatch.setattr(inference, "STRIP_PIXELS", 700)  # a few rows at a time, in whole cells
    pixel.mix.weight.data *= 3
    pixel.mix.bias.data.zero_()
    image, scores, maps = photo(45, 62), [], []
    for width, rows, stride in ((124, 90, 8), (62, 45, 4), (44, 32, 3)):
        output = pixel(to_input(image)) if width == 62 else pixel(
            F.interpolate(to_input(image), (rows, width), mode="bilinear", align_corners=False, antialias=True)
        )  # fmt: skip
        logits, residual = (part.detach().double()[0].numpy() for part in output[:2])
        p = np.exp(logits) / np.exp(logits).sum(0)
        entropy = -(p * np.log(p)).sum(0) / np.log(3)
        second, first = np.sort(p, axis=0)[1:]
        gap = {"margin1": 1 - first + second, "one_minus_p1": 1 - first, "margin": first - second}[distance]
        maps.append(resampled(by_cells(np.stack([*p, entropy, gap]), stride), (12, 16)))
        scores.append(resampled(-np.log(np.exp(residual).sum(0))[None], (45, 62))[0])
    options = ScoringOptions(widths=(124, 62, 44), blur=False, distance=distance, refine=(8, 40))
    found = ScoringEngine(pixel, options).score(image)
    expected = np.mean(maps, axis=0)
    assert expected.std((1, 2)).min() > 0.02
    assert abs(expected[3] - expected[4]).mean() > 0.02
    np.testing.assert_allclose(found.maps.semantic, expected[:3], atol=5e-4)
    np.testing.assert_allclose(found.maps.entropy, expected[3], atol=5e-4)
    np.testing.assert_allclose(found.maps.distance, expected[4], atol=5e-4)
    plain = np.mean(scores, axis=0)
    np.testing.assert_allclose(found.maps.score, by_cells(plain, 4), atol=1e-4)
    assert abs(found.score - plain).max() > 0.01  # refined by the photo, which the pooled one is not
    unrefined = ScoringEngine(pixel, ScoringOptions(widths=(124, 62, 44), blur=False)).score(image)
    np.testing.assert_allclose(unrefined.score, plain, atol=1e-4)


def test_kinds_and_logits_are_those_of_the_parameters(wide):
    image = photo()
    with torch.inference_mode():
        output = wide(to_input(image))
    for kind in ("energy", "entropy", "max_softmax", "max_logit"):
        for logits in ("residual", "closed"):
            for blur in (None, True, False):
                scored = ScoringEngine(wide, ScoringOptions(kind=kind, logits=logits, blur=blur)).score(image)
                expected = anomaly_score(output, kind, logits, blur)[0].numpy()
                scale = max(1.0, float(np.abs(expected).max()))
                np.testing.assert_allclose(scored.score, expected, atol=1e-4 * scale)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(400, 200_000), st.integers(0, 80))
def test_tiles_cover_within_the_limit_and_overlap(height, width, limit, overlap):
    parts = tiles(height, width, limit, overlap, align=8)
    cover = np.zeros((height, width), int)
    for part in parts:
        cover[part.rows, part.columns] += 1
        assert part.top % 8 == part.left % 8 == 0
        assert 0 <= part.top < part.bottom <= height
        assert 0 <= part.left < part.right <= width
        assert (blend_weights(part, height, width, overlap) > 0).all()
    assert cover.min() >= 1
    if height * width <= limit:
        assert len(parts) == 1
    else:
        assert max(part.pixels for part in parts) <= max(limit, 32**2)


@pytest.mark.parametrize("overlap", [0, 16, 64])
def test_tiled_equals_untiled_where_pixels_are_independent(pixel, overlap):
    image = photo(203, 317)
    whole = ScoringEngine(pixel, ScoringOptions(blur=True)).score(image)
    engine = ScoringEngine(
        pixel, ScoringOptions(blur=True, max_pixels=9_000, tile_overlap=overlap), consume=True
    )
    pixel.sizes.clear()
    cut = engine.score(image)
    assert len(pixel.sizes) > 6
    np.testing.assert_allclose(cut.score, whole.score, atol=1e-4)
    for name in ("semantic", "entropy", "distance"):
        np.testing.assert_allclose(
            getattr(cut.maps, name).astype(np.float32),
            getattr(whole.maps, name).astype(np.float32),
            atol=2e-3,
        )


@pytest.mark.parametrize("overlap", [0, 5, 40])
def test_weights_fall_in_a_line_towards_inner_edges_alone(overlap):
    height, width = 40, 48
    for tile in (Tile(0, 0, 24, 48), Tile(16, 8, 40, 40), Tile(0, 16, 40, 48)):
        tall, wide = tile.bottom - tile.top, tile.right - tile.left
        expected = np.ones((tall, wide))
        for y, x in np.ndindex(tall, wide):
            down = [y + 1] * (tile.top > 0) + [tall - y] * (tile.bottom < height)
            across = [x + 1] * (tile.left > 0) + [wide - x] * (tile.right < width)
            for steps in (down, across):
                expected[y, x] *= min([1, *(step / (overlap + 1) for step in steps)])
        np.testing.assert_allclose(blend_weights(tile, height, width, overlap), expected, rtol=1e-6)


def test_tiles_are_as_square_as_their_number_allows_and_a_large_overlap_is_halved():
    square = tiles(800, 800, 200_000, 0)
    assert [(part.top > 0, part.left > 0) for part in square] == list(
        itertools.product([False, True], repeat=2)
    )
    narrow = tiles(40, 2000, 2880, 64)  # tiles of 72 columns cannot share 64
    assert all(part.pixels <= 2880 for part in narrow)
    assert 32 <= min(left.right - right.left for left, right in itertools.pairwise(narrow)) < 64


def test_below_the_limit_nothing_is_cut(wide):
    image = photo(64, 96)
    exact = ScoringEngine(wide, ScoringOptions(max_pixels=64 * 96)).score(image)
    large = ScoringEngine(wide, ScoringOptions(max_pixels=10**9)).score(image)
    assert np.array_equal(exact.score, large.score)


@pytest.mark.parametrize(
    "options",
    [
        ScoringOptions(),
        ScoringOptions(kind="entropy", logits="closed"),
        ScoringOptions(widths=(48, 64)),
        ScoringOptions(max_pixels=2000, tile_overlap=16),
    ],
)
@pytest.mark.parametrize("name", ["wide", "light", "small"])
def test_a_score_alone_is_the_score_and_makes_no_maps(request, name, options, monkeypatch):
    engine = ScoringEngine(request.getfixturevalue(name), options)
    expected = engine.score(photo()).score

    def forbidden(*_):
        raise AssertionError("maps are made")

    monkeypatch.setattr(inference, "uncertainty_maps", forbidden)
    np.testing.assert_allclose(engine.score_alone(photo()), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError, match="maps are made"):
        engine.score(photo())


@pytest.mark.parametrize("name", ["wide", "light"])
def test_a_residual_score_alone_leaves_the_closed_set_s_head_out(request, name):
    engine = ScoringEngine(request.getfixturevalue(name))
    head = engine.network.rest if name == "light" else engine.network.head
    calls = []
    head[-1].register_forward_hook(lambda *_: calls.append(1))
    engine.score_alone(photo())
    assert len(calls) == 1
    engine.score(photo())
    assert len(calls) == 3


def test_batch_gives_what_single_images_give(wide):
    images = [photo(seed=seed) for seed in range(3)]
    engine = ScoringEngine(wide, ScoringOptions(batch=3))
    together = engine.score_batch(images)
    for image, scored in zip(images, together, strict=True):
        np.testing.assert_allclose(scored.score, engine.score(image).score, rtol=1e-4, atol=1e-4)


class Hungry(PixelScorer):
    """Runs out of memory above a number of pixels in a batch."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, images):
        if images.shape[0] * images.shape[2] * images.shape[3] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
        return super().forward(images)


def test_out_of_memory_halves_the_batch_then_the_tiles(caplog):
    images = [photo(200, 300, seed) for seed in range(4)]
    engine = ScoringEngine(Hungry(60_000), ScoringOptions(tile_overlap=16), consume=True)
    plain = ScoringEngine(engine.network, ScoringOptions(tile_overlap=16))
    for image, found in zip(images, engine.score_batch(images), strict=True):
        np.testing.assert_allclose(found.score, plain.score(image).score, atol=1e-5)
    assert "2 images" in caplog.text.replace("with 2:", "2 images")
    engine = ScoringEngine(Hungry(40_000), ScoringOptions(tile_overlap=16), consume=True)
    assert engine.score(images[0]).score.shape == (200, 300)
    assert engine.max_pixels == 30_000
    assert "tiles of 30000 pixels" in caplog.text
    alone = ScoringEngine(Hungry(40_000), ScoringOptions(tile_overlap=16), consume=True)
    assert alone.score_alone(images[0]).shape == (200, 300)
    with pytest.raises(BackendMissing, match="does not fit in the memory"):
        ScoringEngine(Hungry(500), ScoringOptions(tile_overlap=16), consume=True).score(images[0], "x.png")


def test_other_errors_are_not_taken_for_memory(pixel):
    pixel.mix = nn.Conv2d(4, 3, 1)
    with pytest.raises(RuntimeError, match="channels"):
        ScoringEngine(pixel).score(photo())


@pytest.mark.parametrize(
    ("shape", "widths", "refused"),
    [
        ((400, 6), (1600,), True),  # 106,667 rows
        ((400, 6), (), False),
        ((240, 6), (1600,), True),  # 64,000 rows
        ((150, 6), (1600,), False),  # 40,000 rows: 64 megapixels to the pixel
        ((9000, 8000), (), False),  # 72 megapixels of its own are the reader's to judge
        ((9000, 8000), (1600,), False),
        ((40_000, 1600), (), False),  # exactly 64
        ((20_001, 800), (512, 1600), True),
        ((20_000, 800), (512, 1600), False),
        ((720, 1280), (12_000,), True),  # an ordinary photo, at an extraordinary width
    ],
)
def test_an_image_that_would_be_enlarged_beyond_the_limit_is_refused(pixel, shape, widths, refused):
    engine = ScoringEngine(pixel, ScoringOptions(widths=widths))
    if not refused:
        return engine.check_size(shape, "thin.png")
    with pytest.raises(DataError, match=rf"thin.png.*{shape[1]} x {shape[0]}.*{max(widths)}.*64 megapixels"):
        engine.check_size(shape, "thin.png")
    with pytest.raises(DataError, match="thin.png"):
        engine.launch([np.zeros((*shape, 3), np.uint8)], ["thin.png"])
    return None


def test_the_grid_of_the_refinement_counts_as_a_width(pixel):
    engine = ScoringEngine(pixel, ScoringOptions(refine_net=True), refinement=Refinement())
    engine.check_size((100, 1), "thin.png")  # 640 x 64,000
    with pytest.raises(DataError, match=r"width of 640.*100352 rows"):
        engine.check_size((784, 5), "thin.png")


def test_half_precision_on_a_cpu_is_refused(pixel):
    with pytest.raises(BackendMissing, match="fp16"):
        ScoringEngine(pixel, ScoringOptions(precision="fp16"))


@pytest.mark.parametrize("name", ["wide", "small", "light"])
def test_bfloat16_is_close_and_leaves_no_steps(request, name):
    scorer, image = request.getfixturevalue(name), photo(96, 128)
    plain = ScoringEngine(scorer).score(image)
    engine = ScoringEngine(scorer, ScoringOptions(precision="bf16"))
    assert {parameter.dtype for parameter in engine.network.parameters()} == {torch.bfloat16}
    low = engine.score(image)
    assert low.score.dtype == np.float32
    off = np.abs(low.score - plain.score)
    assert 0 < off.mean() < 0.05 * plain.score.std()
    assert np.corrcoef(low.score.ravel(), plain.score.ravel())[0, 1] > 0.99
    assert len(np.unique(low.score)) > 0.9 * len(np.unique(plain.score))
    np.testing.assert_allclose(
        low.maps.semantic.astype(np.float32), plain.maps.semantic.astype(np.float32), atol=0.1
    )


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_says_where_it_is_slow(pixel, monkeypatch, caplog, native):
    monkeypatch.setattr(inference, "cpu_has_bfloat16", lambda: native)
    ScoringEngine(pixel, ScoringOptions(precision="bf16"))
    assert ("slow on this processor" in caplog.text) is not native


@pytest.mark.parametrize("score", [ScoringEngine.score, ScoringEngine.score_alone])
def test_nan_stops_with_the_name_of_the_image(pixel, score):
    pixel.mix.weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"street\.png.*5040 NaN or infinite pixels of 5040"):
        score(ScoringEngine(pixel), photo(), "street.png")


class Blind(Hungry):
    """Has no number for dark images."""

    def forward(self, images):
        output = super().forward(images)
        return output._replace(
            residual_logits=output.residual_logits + images.mean((1, 2, 3), keepdim=True).log()
        )


@pytest.mark.parametrize("most", [10_000, 128])
def test_nan_in_a_batch_stops_with_the_name_of_its_image(most):
    dark, light = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    engine = ScoringEngine(Blind(most), consume=True)
    for place, name in enumerate(("first.png", "second.png", "third.png")):
        images = [light] * place + [dark] + [light] * (2 - place)
        with pytest.raises(DataError, match=rf"{name}.*64 NaN"):
            engine.score_batch(images, ["first.png", "second.png", "third.png"])


def tree_digest(*folders):
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "images"
    images = {}
    for index in range(6):
        key = f"set {index % 2}/bild_{index}"
        images[key] = folder / f"{key}.png"
        write_png(images[key], photo(40 + 4 * (index % 3), 60, index))
    return images


def scorer_for(pixel, root, digest="d", **options):
    engine = ScoringEngine(pixel, ScoringOptions(batch=2))
    return SetScorer(engine, Outputs(root / "score", root / "maps"), digest, RunOptions(workers=2, **options))


def test_a_set_is_scored_into_the_same_tree(pixel, photos, tmp_path):
    report = scorer_for(pixel, tmp_path).run(photos)
    assert (report.scored, report.reused, report.skipped) == (6, 0, {})
    engine = ScoringEngine(pixel)
    for key in photos:
        index = int(key[-1])
        image = photo(40 + 4 * (index % 3), 60, index)
        score = read_score(tmp_path / "score" / f"{key}.npz", image.shape[:2])
        np.testing.assert_allclose(score, engine.score(image).score, atol=1e-5)
        maps = UncertaintyMaps.load(tmp_path / "maps" / f"{key}.npz")
        assert maps.image_size == image.shape[:2]
        assert maps.score.shape == maps.entropy.shape == maps.semantic.shape[1:]


def test_a_second_run_keeps_what_is_finished_and_repairs_the_rest(pixel, photos, tmp_path, caplog):
    scorer_for(pixel, tmp_path).run(photos)
    before = tree_digest(tmp_path / "score", tmp_path / "maps")
    keys = list(photos)
    (tmp_path / "score" / f"{keys[0]}.npz").write_bytes(b"PK damaged")
    (tmp_path / "maps" / f"{keys[1]}.npz").unlink()
    (tmp_path / "maps" / DONE_FOLDER / f"{keys[2]}.json").write_text("{")
    (tmp_path / "maps" / f"{keys[3]}.npz").write_bytes((tmp_path / "maps" / f"{keys[4]}.npz").read_bytes())
    report = scorer_for(pixel, tmp_path).run(photos)
    assert (report.scored, report.reused) == (4, 2)
    assert "changed or damaged" in caplog.text
    assert tree_digest(tmp_path / "score", tmp_path / "maps") == before


def test_other_parameters_or_images_are_computed_again_and_strangers_removed(pixel, photos, tmp_path):
    scorer_for(pixel, tmp_path).run(photos)
    assert scorer_for(pixel, tmp_path, digest="other").run(photos).scored == 6
    key, path = next(iter(photos.items()))
    write_png(path, photo(40, 60, 99))
    rest = dict(list(photos.items())[:4])
    report = scorer_for(pixel, tmp_path, digest="other").run(rest)
    assert (report.scored, report.reused) == (1, 3)
    left = {
        p.relative_to(tmp_path / "score").with_suffix("").as_posix()
        for p in (tmp_path / "score").rglob("*.npz")
    }
    assert left == set(rest)
    assert key in left


def test_shares_of_two_processes_make_what_one_writes(pixel, photos, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    scorer_for(pixel, alone).run(photos)
    names = list(photos)
    shares = [{name: photos[name] for name in names[part::2]} for part in (0, 1)]
    reports = [scorer_for(pixel, shared).score(share) for share in shares]
    assert [(report.scored, report.reused) for report in reports] == [(3, 0), (3, 0)]
    assert tree_digest(shared / "score", shared / "maps") == tree_digest(alone / "score", alone / "maps")
    assert scorer_for(pixel, shared).run(photos).reused == 6


def test_digest_covers_options_and_weights_but_not_speed(tmp_path):
    weights = tmp_path / "w"
    weights.write_bytes(b"1")
    base = content_digest(ScoringOptions(), weights, "x")
    assert base == content_digest(ScoringOptions(batch=8, compile=True), weights, "x")
    other = {
        "kind": "entropy", "logits": "closed", "widths": (8,), "refine": (4,), "refine_net": True, "map_stride": 2,
        "window": 0.5, "semantic": "onehot", "distance": "margin", "max_pixels": 9, "tile_overlap": 9,
        "precision": "bf16",
    }  # fmt: skip
    changed = [{name: value} for name, value in other.items()] + [{"blur": True}, {"blur": False}]
    assert len({content_digest(ScoringOptions(**one), weights, "x") for one in [{}, *changed]}) == 15
    named = {field.name for field in fields(ScoringOptions)}
    assert named == other.keys() | {"blur", "fusion", "batch", "compile", "compile_mode"}
    assert base != content_digest(ScoringOptions(), weights, "y")
    weights.write_bytes(b"2")
    assert base != content_digest(ScoringOptions(), weights, "x")


def test_a_bad_image_fails_or_is_listed(pixel, photos, tmp_path):
    bad = list(photos)[3]
    scorer_for(pixel, tmp_path).run(photos)
    photos[bad].write_bytes(photos[bad].read_bytes()[:40])
    with pytest.raises(DataError, match="bild_3"):
        scorer_for(pixel, tmp_path).run(photos)
    report = scorer_for(pixel, tmp_path, skip_bad=True, max_bad=1).run(photos)
    assert list(report.skipped) == [bad]
    assert list(json.loads((tmp_path / "maps" / SKIPPED_FILE).read_text())) == [bad]
    assert not any((tmp_path / folder / f"{bad}.npz").exists() for folder in ("score", "maps"))
    with pytest.raises(DataError, match="max_bad"):
        scorer_for(pixel, tmp_path, skip_bad=True).run(photos)
    write_png(photos[bad], photo())
    assert scorer_for(pixel, tmp_path, skip_bad=True).run(photos).scored == 1
    assert not (tmp_path / "maps" / SKIPPED_FILE).exists()


def test_an_image_that_may_not_be_read_is_listed(pixel, photos, tmp_path, monkeypatch):
    """As chmod 000 makes it, for all but the superuser."""
    locked, builtin = photos[list(photos)[2]], io.open

    def opened(file, *arguments, **options):
        if str(file) == str(locked):
            raise PermissionError(13, "Permission denied", str(file))
        return builtin(file, *arguments, **options)

    monkeypatch.setattr("io.open", opened)
    monkeypatch.setattr("builtins.open", opened)
    report = scorer_for(pixel, tmp_path, skip_bad=True, max_bad=1).run(photos)
    assert [*report.skipped] == [list(photos)[2]]
    assert "permission denied" in next(iter(report.skipped.values()))


def test_images_above_the_limit_of_pixels_are_listed(pixel, photos, tmp_path):
    report = scorer_for(pixel, tmp_path, skip_bad=True, max_bad=None, max_image_pixels=44 * 60).run(photos)
    assert sorted(report.skipped) == [key for key in sorted(photos) if int(key[-1]) % 3 == 2]
    assert all("the limit is 2,640" in reason for reason in report.skipped.values())


def test_an_image_far_too_tall_fails_or_is_listed(pixel, photos, tmp_path):
    tall, *others = photos
    write_png(photos[tall], photo(400, 6))
    strict, lenient = scorer_for(pixel, tmp_path), scorer_for(pixel, tmp_path, skip_bad=True, max_bad=1)
    for scorer in (strict, lenient):
        scorer.engine.options = ScoringOptions(widths=(1600,))
    with pytest.raises(DataError, match="bild_0"):
        strict.run({tall: photos[tall]})
    report = lenient.run({key: photos[key] for key in (tall, *others[:2])})
    assert list(report.skipped) == [tall]
    assert report.scored == 2


def test_nan_leaves_no_file_of_the_image(pixel, photos, tmp_path):
    pixel.mix.weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match="bild_0"):
        scorer_for(pixel, tmp_path).run(photos)
    assert not list(tmp_path.glob("score/**/*.npz"))


def test_maps_of_another_method_take_the_place_of_the_score(pixel, photos, tmp_path):
    for key in photos:
        height = 40 + 4 * (int(key[-1]) % 3)
        path = tmp_path / "rba" / f"{key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(int(key[-1])).normal(size=(height, 60)))
    source = MapsSource(tmp_path / "rba", photos)
    engine = ScoringEngine(pixel, ScoringOptions(map_stride=7))
    outputs = Outputs(tmp_path / "score", tmp_path / "maps")
    SetScorer(engine, outputs, "d", source=source).run(photos)
    for key in photos:
        given_map = np.load(tmp_path / "rba" / f"{key}.npy").astype(np.float32)
        np.testing.assert_array_equal(read_score(outputs.of(key)[0]), given_map)
        maps = UncertaintyMaps.load(outputs.of(key)[1])
        np.testing.assert_allclose(maps.score, by_cells(given_map, 7), atol=1e-6)
    np.save(tmp_path / "rba" / f"{next(iter(photos))}.npy", np.zeros((2, 2)))
    with pytest.raises(DataError, match="2 x 2"):
        SetScorer(engine, outputs, "new", source=source).run(photos)


KILLED = """
import sys, time
from pathlib import Path
import anomdino.scorer.run as run
from anomdino.io.listing import list_images
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.base import load_scorer
root = Path(sys.argv[1])
slow = run.write_score
def write(path, score):
    slow(path, score)
    print(path, flush=True)
    time.sleep(float(sys.argv[2]))
run.write_score = write
engine = ScoringEngine(load_scorer(root / "rpl"))
outputs = run.Outputs(root / "score", root / "maps")
run.SetScorer(engine, outputs, "d", run.RunOptions(workers=1)).run(list_images(root / "images"))
"""


def test_a_killed_run_goes_on_and_ends_byte_for_byte_the_same(small, photos, tmp_path):
    save_scorer(small, tmp_path / "rpl")
    engine = ScoringEngine(small)
    whole = Outputs(tmp_path / "whole" / "score", tmp_path / "whole" / "maps")
    SetScorer(engine, whole, "d").run(photos)
    command = [sys.executable, "-c", KILLED, str(tmp_path), "0.3"]
    threads = str(torch.get_num_threads())  # matrix products round by how they are shared among threads
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": threads}
    )
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list((tmp_path / "maps" / DONE_FOLDER).rglob("*.json"))
    assert 1 <= len(finished) < 6
    report = SetScorer(engine, Outputs(tmp_path / "score", tmp_path / "maps"), "d").run(photos)
    assert report.reused >= 1
    assert report.scored + report.reused == 6
    assert tree_digest(tmp_path / "score") == tree_digest(whole.scores)
    assert tree_digest(tmp_path / "maps") == tree_digest(whole.maps)


def test_engine_from_parameters(small, tmp_path):
    save_scorer(small, tmp_path)
    engine, digest = engine_from(ScoreConfig(widths=[32, 64], blur="off"), tmp_path)
    assert engine.options.widths == (32, 64)
    assert not engine.options.blurs
    plain = engine_from(ScoreConfig(), tmp_path)[1]
    assert digest != plain == engine_from(ScoreConfig(), tmp_path)[1]
    assert plain != engine_from(ScoreConfig(), tmp_path, "meta")[1]  # on CUDA, auto means half precision
    with pytest.raises(CheckpointError, match="does not exist"):
        engine_from(ScoreConfig(), tmp_path / "none")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_on_cuda_is_close(wide):
    image = photo(128, 256)
    plain = ScoringEngine(wide).score(image)
    half = ScoringEngine(wide, device="cuda").score(image)
    scale = float(np.abs(plain.score).max())
    np.testing.assert_allclose(half.score, plain.score, atol=5e-3 * scale)
    both = ScoringEngine(wide, device="cuda").score_batch([image[::-1].copy(), image])
    np.testing.assert_allclose(both[1].score, half.score, atol=5e-3 * scale)


@pytest.mark.parametrize("overlap", [0, 16, 64, 256])
def test_neighbouring_tiles_share_the_overlap(overlap):
    parts = tiles(1024, 2048, 400_000, overlap, align=32)
    columns = sorted({(part.left, part.right) for part in parts})
    rows = sorted({(part.top, part.bottom) for part in parts})
    assert len(parts) == len(columns) * len(rows) > 4
    for spans in (rows, columns):
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end - start >= overlap


def test_maps_of_equal_logits_do_not_exceed_one_by_rounding():
    for classes in range(2, 40):
        maps = uncertainty_maps(torch.full((1, classes, 1, 2), 0.1))
        assert 1 - 1e-6 < float(maps.entropy.min()) <= float(maps.entropy.max()) <= 1
        assert float(maps.distance.max()) == 1


@pytest.mark.parametrize("classes", [2, 3, 19])
@pytest.mark.parametrize("find", [uncertainty.two_largest, uncertainty._two_largest_by_passes])
def test_the_two_largest_are_those_that_topk_finds(find, classes):
    p = torch.rand(2, classes, 7, 9, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    first, second = find(p)
    expected = p.topk(2, dim=1).values
    assert torch.equal(first, expected[:, 0])
    assert torch.equal(second, expected[:, 1])


def test_network_and_scores_compile_without_a_break(wide):
    engine = ScoringEngine(wide)
    whole = torch.compile(engine._network_and_fields, backend="eager", fullgraph=True, dynamic=False)
    with torch.inference_mode():
        inputs = engine.layout(engine.inputs([photo(64, 96)]))
        for ours, expected in zip(whole(inputs, 4), engine._network_and_fields(inputs, 4), strict=True):
            assert torch.equal(ours, expected)
