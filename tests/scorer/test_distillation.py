"""A student's windows, loss and training against the teacher's results, coordinates, and formulas by hand."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anomdino.errors import ConfigError, DataError, TrainingError
from anomdino.io.images import write_png
from anomdino.io.scores import write_score
from anomdino.scorer import training
from anomdino.scorer.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Scorer,
    ScorerOutput,
    ScorerSpec,
    build_scorer,
    load_scorer,
    save_scorer,
)
from anomdino.scorer.batches import SampleId
from anomdino.scorer.distillation import (
    DistillationObjective,
    DistillationPlan,
    ScoredImage,
    WindowBatch,
    Windows,
    at_cells,
    distance,
    distil,
    high_score,
    join,
    split,
)
from anomdino.scorer.distributed import World
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.options import ScoringOptions
from anomdino.uncertainty import UncertaintyMaps
from tests.scorer.test_training import OPTIONS

ALONE = World(0, 1, torch.device("cpu"))
STRIDE = ScoringOptions().map_stride


def network(seed=0, classes=4):
    torch.manual_seed(seed)
    scorer = build_scorer(ScorerSpec("small", classes, OPTIONS))
    for parameter in scorer.parameters():
        if parameter.ndim > 1:  # a network whose scores differ from place to place
            parameter.data.mul_(2)
    return scorer.eval()


def texture(seed, height=48, width=64):
    """Three waves, the same ones from another place."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [
        np.sin(f * rows + g * columns + rng.uniform(0, 6)) for f, g in ((0.1, 0.2), (0.25, -0.1), (0.05, 0.3))
    ]
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


def scored_folder(folder, scorer, options, count=6, size=(48, 64)):
    """Write textures and what a scorer says of them."""
    engine = ScoringEngine(scorer, options)
    found = []
    for index in range(count):
        image = texture(index, *size)
        entry = ScoredImage(f"i{index}", *(folder / f"{kind}/{index}.{end}" for kind, end in KINDS.items()))
        result = engine.score(image)
        write_png(entry.image, image)
        write_score(entry.score, result.score)
        result.maps.save(entry.maps)
        found.append(entry)
    return found


KINDS = {"images": "png", "scores": "npz", "maps": "npz"}


def objective(scorer, plan, options, high=1e9):
    found = DistillationObjective(scorer, ALONE, plan, options, high)
    found.start_step()
    return found


@pytest.mark.parametrize(("width", "most"), [(64, 0.003), (96, 0.015)])  # maps are those of 64 pixels
def test_a_teacher_of_one_width_has_nearly_nothing_to_learn(tmp_path, width, most):
    scorer, options = network(), ScoringOptions(widths=(width,))
    images = scored_folder(tmp_path, scorer, options, count=2)
    plan = DistillationPlan(widths=(width,), crop=(width * 3 // 4, width), flip=0)
    batch = join([Windows([images], plan, STRIDE, 0)[SampleId(n, 0)] for n in range(4)])
    spread = float(batch.score.std())
    losses = objective(scorer, plan, options)(batch)
    moved = batch._replace(score=batch.score.roll(3, -1), semantic=batch.semantic.roll(1, -1))
    elsewhere = objective(scorer, plan, options)(moved)
    assert spread > 0.1
    assert losses["score"] < 0.01 * spread**2
    assert losses["closed"] < most
    assert losses["score"] < elsewhere["score"] / 5  # a displacement of three pixels is seen
    assert losses["closed"] < elsewhere["closed"] / 2


@pytest.mark.parametrize("width", [64, 107, 40])
def test_windows_show_the_same_place_in_image_score_and_maps(tmp_path, width):
    height, full = 88, 116
    rows, columns = np.mgrid[:height, :full].astype(np.float32)
    image = np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)
    cells = torch.nn.functional.avg_pool2d(
        torch.from_numpy(np.stack([columns, rows, np.full_like(rows, 200)])), STRIDE, ceil_mode=True
    )
    semantic = (cells / cells.sum(0)).numpy()
    entry = ScoredImage("a", tmp_path / "a.png", tmp_path / "s.npz", tmp_path / "m.npz")
    write_png(entry.image, image)
    write_score(entry.score, columns + 1000 * rows)
    plane = np.zeros(semantic.shape[1:], np.float16)
    UncertaintyMaps(semantic.astype(np.float16), plane, plane, plane.astype(np.float32), (height, full)).save(
        entry.maps
    )
    plan = DistillationPlan(widths=(width,), crop=(24, 32))
    mirrored = 0
    for number in range(12):
        window = Windows([[entry]], plan, STRIDE, 3)[SampleId(number, 0)]
        std, mean = (torch.tensor(values)[:, None, None] for values in (IMAGENET_STD, IMAGENET_MEAN))
        x, y, _ = (window.image * std + mean) * 255
        inner = np.s_[2:-2, 2:-2]
        assert window.valid.min() == 1
        assert torch.allclose((y * 1000 + x)[inner], window.score[inner], atol=30, rtol=0)
        ratio = window.semantic / window.semantic[2] * 200
        for values, found in ((x, ratio[0]), (y, ratio[1])):
            in_cells = torch.nn.functional.avg_pool2d(values[None], 4)[0]
            assert torch.allclose(in_cells[1:-1, 1:-1], found[1:-1, 1:-1], atol=3)
        assert abs(float((x[:, 20] - x[:, 10]).mean()) / 10) == pytest.approx(full / width, rel=0.1)
        mirrored += int(x[0, 0] > x[0, -1])
    assert 0 < mirrored < 12


def test_windows_beyond_the_image_do_not_count(tmp_path):
    scorer, options = network(), ScoringOptions(widths=(64,))
    (entry, _) = scored_folder(tmp_path, scorer, options, count=2, size=(20, 64))
    plan = DistillationPlan(widths=(64,), crop=(32, 64), flip=0)
    window = Windows([[entry]], plan, STRIDE, 0)[SampleId(0, 0)]
    assert window.valid[:20].min() == 1
    assert window.valid[20:].max() == 0
    assert window.semantic[:, 5:].max() == 0
    loss = objective(scorer, plan, options)
    batch = join([window])
    changed = batch.score.clone()
    changed[:, 20:] = 50
    for name, value in loss(batch).items():
        assert loss(batch._replace(score=changed))[name] == value


def test_a_window_begins_with_a_cell_and_is_mirrored_as_a_whole(tmp_path):
    height, width = 48, 96
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    cells = np.stack([np.mgrid[:12, :24][1], np.mgrid[:12, :24][0]]).astype(np.float16)
    maps = UncertaintyMaps(cells, cells[0], cells[0], cells[0].astype(np.float32), (height, width))
    entry = ScoredImage("one", *(tmp_path / f"one.{kind}" for kind in ("png", "score.npz", "maps.npz")))
    write_png(entry.image, image)
    write_score(entry.score, columns.astype(np.float32))
    maps.save(entry.maps)
    corners = set()
    for number in range(30):
        plain, mirrored = (
            Windows([[entry]], DistillationPlan(widths=(width,), crop=(56, 40), flip=flip), 4, 5)[
                SampleId(number, 0)
            ]
            for flip in (0.0, 1.0)
        )
        left = round(float((plain.image[0, 0, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255))
        assert left == plain.score[0, 0] == 4 * plain.semantic[0, 0, 0]
        corners.add(left)
        assert plain.valid[:48].all()
        assert not plain.valid[48:].any()
        for one, other in zip(plain[:4], mirrored[:4], strict=True):
            torch.testing.assert_close(other, one.flip(-1))
    assert {0, 56} <= corners <= set(range(0, 57, 4))


@pytest.mark.parametrize("blur", [False, None])  # None: as RPL does, who smooths the energy
def test_the_loss_is_that_of_the_formula(blur):
    plan = DistillationPlan(emphasis=3.0, closed_weight=0.7)
    options = ScoringOptions(blur=blur)
    scorer = network()
    rng = np.random.default_rng(0)
    semantic = rng.dirichlet(np.ones(4), (2, 8, 12)).transpose(0, 3, 1, 2)
    semantic[0, :, 5:] = 0
    score = rng.normal(0, 2, (2, 32, 48))
    valid = np.ones((2, 32, 48))
    valid[0, 20:] = 0
    images = torch.from_numpy(rng.normal(size=(2, 3, 32, 48))).float()
    batch = WindowBatch(
        images, *(torch.from_numpy(values).float() for values in (score, valid, semantic)), ["a", "b"]
    )
    found = objective(scorer, plan, options, high=0.5)(batch)

    with torch.no_grad():
        output = scorer.decode(images)
    energy = -torch.logsumexp(output.residual_logits.double(), 1)
    energy = torch.nn.functional.interpolate(energy[:, None], (32, 48), mode="bilinear", align_corners=True)[
        :, 0
    ].numpy()
    if blur is None:
        energy = gaussian_filter(energy, (0, 1, 1), mode="mirror", radius=(0, 3, 3))
    gap = np.abs(energy - score)
    smooth = np.where(gap < 1, gap**2 / 2, gap - 0.5)
    counts = valid * np.where(score > 0.5, 3, 1)
    expected_score = (smooth * counts).sum() / counts.sum()
    log_q = at_cells(output.logits.double(), (32, 48)).log_softmax(1).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(semantic > 0, semantic * (np.log(semantic) - log_q), 0).sum(1)
    inside = semantic.sum(1) > 0
    expected_closed = divergence[inside].mean()
    found = {name: float(value.detach()) for name, value in found.items()}
    assert found["score"] == pytest.approx(expected_score, rel=1e-5)
    assert found["closed"] == pytest.approx(expected_closed, rel=1e-5)
    assert found["loss"] == pytest.approx(expected_score + 0.7 * expected_closed, rel=1e-5)


def test_cells_are_read_in_their_middles():
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(13.0), indexing="ij")
    values = at_cells(torch.stack([columns, rows])[None].double(), (33, 49))[0]
    # 49 pixels over 13 points: a point every 4 pixels; the middle of cell j is pixel 4 j + 1.5; the last is cut off
    torch.testing.assert_close(values[0, 0, :12], (4 * torch.arange(12.0) + 1.5).double() / 4)
    torch.testing.assert_close(values[1, :8, 0], (4 * torch.arange(8.0) + 1.5).double() / 4)
    assert values.shape == (2, 9, 13)
    assert values[0, 0, 12] == 12


def test_every_weight_learns_and_statistics_stay(tmp_path):
    scorer, options = network(), ScoringOptions(widths=(48, 96))
    images = scored_folder(tmp_path, scorer, options, count=2)
    plan = DistillationPlan(widths=(96,), crop=(72, 96))
    loss = objective(scorer, plan, options)
    buffers = {name: buffer.clone() for name, buffer in scorer.named_buffers()}
    loss(join([Windows([images], plan, STRIDE, 0)[SampleId(0, 0)]]))["loss"].backward()
    for name, parameter in scorer.named_parameters():
        if "proj_head" not in name:  # CoroCL's, which no score needs
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    for name, buffer in scorer.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    rates = {group["factor"] for group in loss.optimiser().param_groups}
    assert rates == {1.0, 0.1}
    grouped = sum(len(group["params"]) for group in loss.optimiser().param_groups)
    assert grouped == len(list(scorer.parameters()))


def learn(tmp_path, name="state", start=None, **changes):
    options = ScoringOptions(widths=(48, 96))
    folder = tmp_path / "teacher"
    if not folder.exists():
        save_scorer(network(), folder)
    images = scored_folder(tmp_path, load_scorer(folder), options)
    settings = {"widths": (96,), "crop": (72, 96), "steps": 40, "batch": 2, "lr": 1e-3, "warmup": 2} | changes
    plan = DistillationPlan(**settings)
    return distil(folder, options, [images], plan, tmp_path / name, seed=1, world=ALONE, start=start)


def test_a_student_comes_nearer_and_the_same_seed_gives_the_same_one(tmp_path):
    first = learn(tmp_path, rest_factor=1.0)
    assert first.after["distance_score"] < 0.7 * first.before["distance_score"]
    second = learn(tmp_path, "other", rest_factor=1.0)
    for name, tensor in first.scorer.state_dict().items():
        assert torch.equal(tensor, second.scorer.state_dict()[name]), name
    assert not any(parameter.requires_grad for parameter in first.scorer.parameters())
    assert not first.scorer.training


def test_a_student_learns_the_class_probabilities_too(tmp_path):
    student = learn(tmp_path, rest_factor=1.0, closed_weight=300.0)
    assert student.after["distance_closed"] < 0.9 * student.before["distance_closed"]


def test_a_student_of_two_widths_is_measured_at_both_and_may_start_as_another_scorer(tmp_path):
    save_scorer(network(1), tmp_path / "other")
    start = tmp_path / "other"
    changes = {"widths": (48, 96), "lr": 0.0, "steps": 2, "checkpoint_every": 1}
    unmoved = learn(tmp_path, **changes)
    assert unmoved.before["distance_score"] < 1e-6  # the teacher at the teacher's widths
    moved = learn(tmp_path, "moved", start=start, **changes)
    for name, tensor in load_scorer(start).state_dict().items():
        assert torch.equal(tensor, moved.scorer.state_dict()[name]), name
    images = scored_folder(tmp_path, load_scorer(tmp_path / "teacher"), ScoringOptions(widths=(48, 96)))
    kept = split([images], DistillationPlan())[1]
    alone = distance(load_scorer(start), ScoringOptions(widths=(48, 96)), kept, ALONE.device)
    assert moved.before == pytest.approx(alone)
    again = learn(tmp_path, "moved", **changes)  # a resume point of another start is not taken up
    assert torch.equal(next(again.scorer.parameters()), next(load_scorer(tmp_path / "teacher").parameters()))


def test_a_killed_training_goes_on_to_the_same_student(tmp_path, monkeypatch):
    whole = learn(tmp_path, "whole", steps=12, checkpoint_every=5)
    save = training.Keeper.save

    def killed(self, progress):
        save(self, progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Keeper, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, "cut", steps=12, checkpoint_every=5)
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(Windows, "cut", lambda self, *given: seen.append(1) or CUT(self, *given))
    resumed = learn(tmp_path, "cut", steps=12, checkpoint_every=5)
    assert len(seen) == 2 * 7  # the steps that were left
    for name, tensor in whole.scorer.state_dict().items():
        assert torch.equal(tensor, resumed.scorer.state_dict()[name]), name


CUT = Windows.cut


def test_a_resume_point_of_other_images_or_results_is_not_taken_up(tmp_path, monkeypatch):
    options = ScoringOptions(widths=(48,))
    save_scorer(network(), tmp_path / "teacher")
    images = scored_folder(tmp_path, network(), options, count=3)
    plan = DistillationPlan(widths=(48,), crop=(36, 48), steps=3, batch=1, checkpoint_every=2)
    seen = []
    monkeypatch.setattr(Windows, "cut", lambda self, *given: seen.append(1) or CUT(self, *given))

    def steps(options=options):
        seen.clear()
        distil(tmp_path / "teacher", options, [images], plan, tmp_path / "state", seed=1, world=ALONE)
        return len(seen)

    assert (steps(), steps()) == (3, 1)
    one, other = images[1:]
    for file, source in ((one.image, other.image), (one.score, other.score), (one.maps, other.maps)):
        file.write_bytes(source.read_bytes())
        assert steps() == 3, file
    assert steps(ScoringOptions(widths=(48,), kind="max_logit")) == 3


def test_a_loss_that_is_not_finite_names_the_images(tmp_path):
    with pytest.raises(TrainingError, match=r"distillation step \d+.*images i\d, i\d"):
        learn(tmp_path, lr=1e30, clip=0, precision="float32")


def test_widths_take_turns_step_by_step_and_a_small_one_has_smaller_windows(tmp_path):
    columns = np.broadcast_to(np.arange(120, dtype=np.float32), (90, 120))
    entry = scored_folder(tmp_path, network(), ScoringOptions(widths=(120,)), count=1, size=(90, 120))[0]
    write_score(entry.score, np.ascontiguousarray(columns))
    plan = DistillationPlan(widths=(40, 120, 60), crop=(36, 48), batch=2)
    windows = Windows([[entry]], plan, STRIDE, 0)
    for number in range(12):
        width = (40, 120, 60)[number // 2 % 3]
        window = windows[SampleId(number, 0)]
        size = (30, 40) if width == 40 else (36, 48)
        assert tuple(window.image.shape[1:]) == tuple(window.score.shape) == size
        step = np.abs(np.diff(window.score.numpy()[:, 4:-4], axis=1)).mean()
        assert step == pytest.approx(120 / width, rel=0.05)


def test_images_are_kept_back_in_every_folder():
    folders = [
        [ScoredImage(f"{k}{i}", *[f"{k}{i}"] * 3) for i in range(count)] for k, count in (("a", 9), ("b", 2))
    ]
    learned, kept = split([*folders, folders[0]], DistillationPlan(held_out=4, most_held_out=2))
    assert [image.key for image in kept] == ["a0", "a4", "b0"]
    assert [len(folder) for folder in learned] == [7, 1, 7]
    assert not {image.key for folder in learned for image in folder} & {image.key for image in kept}
    with pytest.raises(DataError, match="at least two"):
        split([folders[1][:1]], DistillationPlan())


def test_high_scores_are_those_above_mean_and_deviation(tmp_path):
    rng = np.random.default_rng(0)
    images, values = [], []
    for index, size in enumerate([(5, 7), (9, 4)]):
        score = rng.normal(-8, 3, size).astype(np.float32)
        plane = np.zeros(size, np.float16)
        maps = UncertaintyMaps(plane[None], plane, plane, score, (20, 28))
        maps.save(tmp_path / f"{index}.npz")
        images.append(ScoredImage("a", tmp_path, tmp_path, tmp_path / f"{index}.npz"))
        values.append(score.ravel())
    pooled = np.concatenate(values).astype(np.float64)
    assert high_score(images) == pytest.approx(pooled.mean() + pooled.std(), rel=1e-6)


def test_the_distance_is_measured_on_whole_images(tmp_path):
    scorer, options = network(), ScoringOptions(widths=(96,))
    images = scored_folder(tmp_path, scorer, options, count=2)
    same = distance(scorer, options, images, ALONE.device)
    assert same["distance_score"] < 1e-6
    assert same["distance_closed"] < 1e-3
    found = [ScoringEngine(network(1), options).score(texture(index)) for index in range(2)]
    own = [ScoringEngine(scorer, options).score(texture(index)) for index in range(2)]
    other = distance(network(1), options, images, ALONE.device)
    scores = [np.abs(a.score - b.score).mean() for a, b in zip(found, own, strict=True)]
    shares = [
        np.abs(a.maps.semantic.astype(float) - b.maps.semantic.astype(float)).sum(0).mean() / 2
        for a, b in zip(found, own, strict=True)
    ]
    assert other["distance_score"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert other["distance_closed"] == pytest.approx(np.mean(shares), rel=1e-3)


def test_results_of_another_image_are_refused(tmp_path):
    scorer, options = network(), ScoringOptions(widths=(64,))
    small = scored_folder(tmp_path / "a", scorer, options, count=2)[0]
    large = scored_folder(tmp_path / "b", scorer, options, count=2, size=(56, 64))[0]
    plan = DistillationPlan(widths=(64,), crop=(32, 32))
    for wrong in (
        ScoredImage("x", small.image, large.score, small.maps),
        ScoredImage("x", small.image, small.score, large.maps),
    ):
        with pytest.raises(DataError, match="npz"):
            Windows([[wrong]], plan, STRIDE, 0)[SampleId(0, 0)]


def test_a_network_without_a_decoder_is_refused(tmp_path, monkeypatch):
    class Plain(Scorer):
        spec = ScorerSpec("plain", 4, {})

        def forward(self, images):
            return ScorerOutput(images, images)

    monkeypatch.setattr("anomdino.scorer.distillation.load_scorer", lambda *_: Plain())
    with pytest.raises(ConfigError, match="no decoder"):
        distil(tmp_path, ScoringOptions(), [], DistillationPlan(), tmp_path, seed=0, world=ALONE)


def test_a_batch_that_does_not_divide_by_the_processes_is_refused(tmp_path):
    two = World(0, 2, torch.device("cpu"))
    with pytest.raises(ConfigError, match="3 does not divide by 2"):
        distil(tmp_path, ScoringOptions(), [], DistillationPlan(batch=3), tmp_path, seed=0, world=two)
