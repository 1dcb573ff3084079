import json
import math
import re
import shutil
from functools import partial
from itertools import chain

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import average_precision_score

from anomdino.config.params import profile_params
from anomdino.config.rpl import RplConfig
from anomdino.errors import CheckpointError, ConfigError, ProtocolError, TrainingError
from anomdino.protocol import mark_evaluation_only
from anomdino.scorer import training
from anomdino.scorer.augment import PAD_COLOUR
from anomdino.scorer.base import ScorerSpec, build_scorer, load_scorer, to_input
from anomdino.scorer.convert import convert_checkpoint
from anomdino.scorer.dataset import ImagePairs, split_outliers
from anomdino.scorer.objectives import ClosedSetObjective, ResidualObjective
from anomdino.scorer.recipe import class_weights, train_scorer
from anomdino.scorer.schedule import PolySchedule
from anomdino.scorer.training import steps_of
from anomdino.scorer.wide_resnet38 import WideResNet38Scorer
from tests.scorer.conftest import write_scenes
from tests.scorer.watching import frozen_state

OPTIONS = {
    "channels": [4, 6, 8, 8],
    "deep_channels": 8,
    "context_channels": 6,
    "skip_channels": 4,
    "head_channels": 8,
    "dilations": [1],
}


def config(**changes):
    crop = {"crop": (32, 48), "scale": (0.8, 1.2)}
    base = {
        "options": OPTIONS,
        "num_classes": 4,
        "log_every": 1,
        "checkpoint_every": 3,
        "closed_set": {"schedule": {"steps": 6}, "batch": 4, "augment": crop, "validate_every": 3},
        "residual": {
            "schedule": {"steps": 6},
            "batch": 4,
            "augment": crop,
            "rule": "objects",
            "lr": 3e-4,
            "validate_every": 3,
            "validation_images": 4,
        },
    }
    merged = {
        key: base.get(key, {}) | value if isinstance(value, dict) and key != "options" else value
        for key, value in changes.items()
    }
    return RplConfig.model_validate(base | merged)


def train(data, out, settings=None, **arguments):
    return train_scorer(settings or config(), data / "inlier", data / "outliers", out, **arguments)


def files_of(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


AVERAGED = {"log_every": 4, "closed_set": {"average": 0.9}, "residual": {"average": 0.9}}


@pytest.fixture(scope="module")
def unbroken(tiny_data, tmp_path_factory):
    """An unbroken run of the default settings: its folder and result."""
    out = tmp_path_factory.mktemp("unbroken") / "rpl"
    return out, train(tiny_data, out)


@pytest.fixture(scope="module")
def unbroken_average(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken_average") / "rpl"
    train(tiny_data, out, config(**AVERAGED))
    return files_of(out)


class Killed(Exception):
    """Stands for SIGKILL: nothing in the code catches it."""


@pytest.fixture
def kill_at(monkeypatch):
    """Stop the training inside a step of a phase, before its parameters change."""

    def arm(objective, step):
        original = objective.hints

        def hints(self, batch, current):
            if current == step:
                raise Killed
            return original(self, batch, current)

        monkeypatch.setattr(objective, "hints", hints)

    yield arm
    monkeypatch.undo()


def test_result_is_whole_and_loads(unbroken):
    out, trained = unbroken
    names = {"model.safetensors", "config.json", "history.json", "closed_set_miou.json"}
    assert {path.name for path in out.iterdir()} == names
    assert [path.name for path in out.parent.iterdir()] == ["rpl"]
    loaded = load_scorer(out)
    for name, tensor in trained.scorer.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    history = json.loads((out / "history.json").read_text())
    assert [r["step"] for r in history if "lr" in r] == [*range(1, 7), *range(1, 7)]
    assert {"entropy", "regularisation", "energy", "corocl"} <= history[-2].keys()
    report = json.loads((out / "closed_set_miou.json").read_text())
    assert report["miou"] == trained.quality.miou
    assert len(report["iou"]) == 4


def test_learning_rates_of_the_history_are_the_published_ones(unbroken):
    """Rate of step i: base * (1 - it / total) ^ 0.9 with it = max(i - 1, 0); the first group has factor 10 in RPL."""
    for phase, base in (("closed_set", 1e-3), ("residual", 10 * 3e-4)):
        rates = [r["lr"] for r in unbroken[1].history if r["phase"] == phase and "lr" in r]
        assert rates == pytest.approx([base * (1 - it / 6) ** 0.9 for it in (0, 0, 1, 2, 3, 4)], rel=1e-9)
        assert len(set(rates)) == 5


def batches_of(data, out, monkeypatch, **residual):
    """Train and give the scenes of every step of the residual phase, with whether they carry outliers."""
    seen, original = [], ResidualObjective.hints

    def hints(self, batch, step):
        seen.append((batch.keys, (batch.labels == 254).flatten(1).any(1).tolist()))
        return original(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(ResidualObjective, "hints", hints)
        short = {"batch": 2, "without_outliers": "scene", "validate_every": 0, "validation_images": 2}
        train(
            data,
            out,
            config(closed_set={"schedule": {"steps": 1}, "validate_every": 0}, residual=short | residual),
        )
    return seen


FILES = [["s0", "s1"], ["s2", "s3"], ["s4", "s5"]]


def test_the_residual_phase_sees_scenes_in_the_order_and_outliers_in_the_share_that_are_asked_for(
    tiny_data, tmp_path, monkeypatch
):
    sparse = {"order": "files", "outlier_probability": 0.4, "schedule": {"steps": 12}}
    seen = batches_of(tiny_data, tmp_path / "x", monkeypatch, **sparse)
    assert [keys for keys, _ in seen] == FILES * 4
    carrying = [any(outliers) for _, outliers in seen]
    assert [sum(carrying[first : first + 3]) for first in (0, 3, 6, 9)] == [1] * 4  # int(0.4 * 3) an epoch
    seen = batches_of(tiny_data, tmp_path / "y", monkeypatch, order="shuffled")
    assert all(all(outliers) for _, outliers in seen)
    epochs = [[keys for keys, _ in seen[:3]], [keys for keys, _ in seen[3:]]]
    assert [sorted(chain(*epoch)) for epoch in epochs] == [[f"s{index}" for index in range(6)]] * 2
    assert epochs[0] != epochs[1]  # with seed 0 the first permutation happens to be the identity


def test_a_network_with_dropout_resumes_to_the_result_of_an_unbroken_run(
    tiny_data, tmp_path, kill_at, monkeypatch
):
    short = {"schedule": {"steps": 3}, "batch": 2, "validate_every": 0}
    settings = config(
        **WIDE,
        checkpoint_every=2,
        closed_set=short,
        residual=short | {"schedule": {"steps": 1}, "validation_images": 2},
    )
    train(tiny_data, tmp_path / "whole", settings)
    kill_at(ClosedSetObjective, 2)
    with pytest.raises(Killed):
        train(tiny_data, tmp_path / "cut", settings)
    monkeypatch.undo()
    train(tiny_data, tmp_path / "cut", settings)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_same_seed_same_bytes_and_another_seed_others(tiny_data, tmp_path, unbroken):
    for name, seed in (("same", 0), ("other", 1)):
        train(tiny_data, tmp_path / name, seed=seed)
    whole = files_of(unbroken[0])
    assert files_of(tmp_path / "same") == whole
    assert files_of(tmp_path / "other")["model.safetensors"] != whole["model.safetensors"]


def test_loading_processes_change_nothing(tiny_data, tmp_path, unbroken):
    train(tiny_data, tmp_path / "x", config(workers=2, cache_mb=0))
    assert files_of(tmp_path / "x") == files_of(unbroken[0])


@pytest.mark.parametrize(
    ("objective", "step"), [(ClosedSetObjective, 4), (ResidualObjective, 1), (ResidualObjective, 5)]
)
def test_resume_gives_the_result_of_an_unbroken_run(
    tiny_data, tmp_path, kill_at, monkeypatch, unbroken_average, objective, step
):
    settings = config(**AVERAGED)
    kill_at(objective, step)
    with pytest.raises(Killed):
        train(tiny_data, tmp_path / "cut", settings)
    assert not (tmp_path / "cut").exists()
    monkeypatch.undo()
    torch.manual_seed(12345)
    done = []
    original = objective.hints
    monkeypatch.setattr(objective, "hints", lambda self, b, s: (done.append(s), original(self, b, s))[1])
    train(tiny_data, tmp_path / "cut", settings)
    assert done[0] == step - step % 3
    assert files_of(tmp_path / "cut") == unbroken_average
    assert not (tmp_path / ".cut.training").exists()


def test_resume_point_of_other_parameters_is_not_taken_up(tiny_data, tmp_path, kill_at, monkeypatch):
    kill_at(ClosedSetObjective, 4)
    with pytest.raises(Killed):
        train(tiny_data, tmp_path / "x")
    monkeypatch.undo()
    other = config(closed_set={"lr": 2e-3})
    train(tiny_data, tmp_path / "x", other)
    train(tiny_data, tmp_path / "y", other)
    assert files_of(tmp_path / "x") == files_of(tmp_path / "y")


def test_a_resume_point_of_other_images_of_as_many_bytes_is_not_taken_up(tiny_data, tmp_path, monkeypatch):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    image, taken = data / "inlier/train/images/s0.png", []

    def hints(self, batch, step):
        taken.append(step)
        if step == 4:
            raise Killed
        return {}

    monkeypatch.setattr(ClosedSetObjective, "hints", hints)
    sizes = set()
    for grey in (90, 150, 150):
        cv2.imwrite(str(image), np.full((48, 64, 3), grey, np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 0])
        sizes.add(image.stat().st_size)
        with pytest.raises(Killed):
            train(data, tmp_path / "x")
    assert len(sizes) == 1
    assert taken == [0, 1, 2, 3, 4] * 2 + [3, 4]


def spoil(path, damage):
    """Put other bytes in place of a file, cut it in half (``None``) or remove it (a word)."""
    content = path.read_bytes()
    if isinstance(damage, str):
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage is None else damage)


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_damaged_resume_point_starts_afresh(tiny_data, tmp_path, kill_at, monkeypatch, unbroken, damage):
    kill_at(ClosedSetObjective, 4)
    with pytest.raises(Killed):
        train(tiny_data, tmp_path / "x")
    monkeypatch.undo()
    spoil(tmp_path / ".x.training" / "closed_set" / "state.pt", damage)
    train(tiny_data, tmp_path / "x")
    assert files_of(tmp_path / "x") == files_of(unbroken[0])


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_note_of_a_finished_phase_does_not_stop_a_restart(
    tiny_data, tmp_path, kill_at, monkeypatch, caplog, unbroken, damage
):
    kill_at(ResidualObjective, 1)
    with pytest.raises(Killed):
        train(tiny_data, tmp_path / "x")
    monkeypatch.undo()
    spoil(tmp_path / ".x.training" / "closed_set" / "finished.pt", damage)
    train(tiny_data, tmp_path / "x")
    assert "finished.pt cannot be read" in caplog.text
    assert files_of(tmp_path / "x") == files_of(unbroken[0])


@pytest.mark.parametrize("damage", [b"", None, "removed"])
def test_a_resume_point_without_its_best_weights_is_not_taken_up(
    tiny_data, tmp_path, kill_at, monkeypatch, caplog, unbroken, damage
):
    kill_at(ResidualObjective, 4)
    with pytest.raises(Killed):
        train(tiny_data, tmp_path / "x")
    monkeypatch.undo()
    spoil(tmp_path / ".x.training" / "residual" / "best.pt", damage)
    train(tiny_data, tmp_path / "x")
    assert re.search(r"residual/best\.pt (cannot be read .*|is missing): training starts afresh", caplog.text)
    assert files_of(tmp_path / "x") == files_of(unbroken[0])


def test_best_weights_lost_during_a_training_are_named_and_cost_that_phase_alone(
    tiny_data, tmp_path, monkeypatch, unbroken
):
    values = iter([0.9, 0.1])
    monkeypatch.setattr("anomdino.scorer.recipe.composed_quality", lambda *_: {"ap": next(values)})
    restore = training.Keeper.restore_best

    def spoilt(self, progress):
        if self.plan.name == "residual":
            spoil(self.best_file, None)
        restore(self, progress)

    monkeypatch.setattr(training.Keeper, "restore_best", spoilt)
    with pytest.raises(CheckpointError, match=r"(?s)residual/best\.pt: is missing or damaged.*train again"):
        train(tiny_data, tmp_path / "x")
    monkeypatch.undo()
    train(tiny_data, tmp_path / "x")
    assert files_of(tmp_path / "x") == files_of(unbroken[0])


def test_frozen_parts_stay_bit_identical_and_the_residual_block_moves(tiny_data, tmp_path):
    base = train(tiny_data, tmp_path / "closed", config(residual={"schedule": {"steps": 1}, "lr": 1e-30}))
    settings = config(closed_set={"source": "checkpoint", "checkpoint": str(tmp_path / "closed")})
    trained = train(tiny_data, tmp_path / "full", settings)
    after = frozen_state(trained.scorer)
    frozen = frozen_state(base.scorer)
    assert len(frozen) > 50
    assert any("running_mean" in name for name in frozen)
    for name, tensor in frozen.items():
        assert torch.equal(tensor, after[name]), name
    block, start = trained.scorer.residual_block, base.scorer.residual_block
    for name, tensor in block.state_dict().items():
        assert not torch.equal(tensor, start.state_dict()[name]), name


def test_closed_set_training_leaves_the_residual_block_alone(tiny_data, tmp_path, kill_at):
    torch.manual_seed(0)
    kill_at(ResidualObjective, 0)
    with pytest.raises(Killed):
        train(tiny_data, tmp_path / "x")
    finished = torch.load(tmp_path / ".x.training" / "closed_set" / "finished.pt", weights_only=True)
    buffers = finished["scorer"]
    assert int(buffers["residual_block.atten_aspp.features.0.1.num_batches_tracked"]) == 0
    assert int(buffers["aspp.features.0.1.num_batches_tracked"]) > 0


def test_kept_encoder_statistics_stay_while_its_weights_train(tiny_data, tmp_path):
    def after(steps):
        settings = config(closed_set={"encoder_norms": "keep", "schedule": {"steps": steps}})
        return train(tiny_data, tmp_path / f"{steps}", settings).scorer

    short, long = after(2), after(6)
    learned = dict(short.encoder.named_parameters())
    assert all(not torch.equal(learned[name], p) for name, p in long.encoder.named_parameters())
    for module in long.encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as built: mean 0, variance 1
            assert int(module.num_batches_tracked) == 0
            assert (module.running_mean == 0).all()
            assert (module.running_var == 1).all()
    assert int(long.aspp.features[0][1].num_batches_tracked) == 6


def test_whole_photos_are_validated_on_photos_that_training_did_not_see(tiny_data, tmp_path):
    crop = {"crop": (48, 48), "scale": (0.8, 1.2)}  # a photo is 40 x 30: padded, not shrunk
    settings = config(residual={"whole_photos": 0.5, "outlier_holdout": 0.4, "augment": crop})
    trained = train(tiny_data, tmp_path / "x", settings)
    outliers = ImagePairs(tiny_data / "outliers", "masks")
    scores, truths = [], []
    for index in split_outliers(outliers, 0.4, 0)[1]:
        photo, mask = outliers[index]
        around = ((4, 4), (9, 9))
        label = np.pad(np.where(mask > 0, 254, 0), around, constant_values=255)
        photo = np.stack([np.pad(photo[..., c], around, constant_values=PAD_COLOUR[c]) for c in range(3)], -1)
        with torch.inference_mode():
            logits = trained.scorer.decode(to_input(photo)).residual_logits[0]
        small = label[::4, ::4]
        scores.append((-logits.logsumexp(dim=0)).numpy()[small != 255])
        truths.append(small[small != 255] == 254)
    expected = average_precision_score(np.concatenate(truths), np.concatenate(scores))
    assert 0.05 < expected < 0.95
    assert trained.composed["ap_photos"] == pytest.approx(expected, abs=1e-6)
    details = json.loads((tmp_path / "x" / "config.json").read_text())["details"]
    assert details["composed"] == trained.composed
    plain = train(tiny_data, tmp_path / "y", config(residual={"outlier_holdout": 0.4}))
    assert set(plain.composed) == {"ap", "ap_closed"}


PHOTOS = {"steps": 4, "share": 0.5, "batch": 6}


@pytest.fixture(scope="module")
def with_photos(tiny_data, tmp_path_factory):
    """An unbroken run of three phases: its folder and result."""
    out = tmp_path_factory.mktemp("with_photos") / "rpl"
    return out, train(tiny_data, out, config(outlier_photos=PHOTOS))


def test_the_third_phase_is_a_training_that_goes_on_from_the_result_of_the_second(
    tiny_data, unbroken, with_photos, tmp_path
):
    going_on = config(
        closed_set={"source": "checkpoint", "checkpoint": str(unbroken[0])},
        residual={
            "start": "checkpoint",
            "schedule": {"steps": 4},
            "whole_photos": 0.5,
            "batch": 6,
            "loss_at": "decoder",
        },
    )
    separate, together = train(tiny_data, tmp_path / "x", going_on), with_photos[1]
    for name, tensor in separate.scorer.state_dict().items():
        assert torch.equal(tensor, together.scorer.state_dict()[name]), name
    assert together.composed == separate.composed
    assert set(together.composed) == {"ap", "ap_closed", "ap_photos", "ap_closed_photos"}
    phases = [record["phase"] for record in together.history if "lr" in record]
    assert phases == ["closed_set"] * 6 + ["residual"] * 6 + ["outlier_photos"] * 4


@pytest.mark.parametrize(("killed", "resumed"), [(1, 0), (3, 3)])
def test_a_kill_in_the_third_phase_costs_neither_of_the_others(
    tiny_data, tmp_path, monkeypatch, with_photos, killed, resumed
):
    settings, original, done = config(outlier_photos=PHOTOS), ResidualObjective.hints, []

    def dies(self, batch, step):
        if self.config.whole_photos and step == killed:
            raise Killed
        return original(self, batch, step)

    def notes(self, batch, step):
        done.append((bool(self.config.whole_photos), step))
        return original(self, batch, step)

    monkeypatch.setattr(ResidualObjective, "hints", dies)
    with pytest.raises(Killed):
        train(tiny_data, tmp_path / "x", settings)
    monkeypatch.setattr(ResidualObjective, "hints", notes)
    train(tiny_data, tmp_path / "x", settings)
    assert done == [(True, step) for step in range(resumed, 4)]
    assert files_of(tmp_path / "x") == files_of(with_photos[0])


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("third", [False, True])
def test_corocl_can_join_in_the_third_phase(second, third):
    settings = config(
        residual={"corocl": {"enabled": second, "temperature": 0.3}},
        outlier_photos={"steps": 2, "corocl": third},
    )
    phases = settings.residual_phases()
    assert [phase.corocl.enabled for phase in phases.values()] == [second, second or third]
    assert phases["outlier_photos"].corocl.temperature == 0.3
    assert list(config().residual_phases()) == ["residual"]


def test_photos_in_whole_need_rule_objects():
    expected = r"outlier_photos\.steps is 5, but rule rpl .* set residual\.rule: objects"
    with pytest.raises(ValidationError, match=expected):
        config(outlier_photos={"steps": 5}, residual={"rule": "rpl"})


def test_a_residual_block_can_be_trained_on(tiny_data, unbroken, tmp_path):
    trained = unbroken[1].scorer
    given = {"source": "checkpoint", "checkpoint": str(unbroken[0])}

    def after(start):
        residual = {"start": start, "lr": 1e-9, "copy_context": False}
        settings = config(closed_set=given, residual=residual)
        return train(tiny_data, tmp_path / start, settings, seed=5).scorer

    fresh, further = after("fresh").residual_block, after("checkpoint").residual_block
    for name, before in trained.residual_block.named_parameters():
        torch.testing.assert_close(further.get_parameter(name), before, atol=1e-6, rtol=0)
    drawn = "atten_aspp_final.weight"
    assert (fresh.get_parameter(drawn) - trained.residual_block.get_parameter(drawn)).abs().max() > 1e-2


def test_a_block_without_the_network_it_was_trained_with_is_refused():
    with pytest.raises(ValidationError, match="residual.start is checkpoint, but closed_set.source is train"):
        config(residual={"start": "checkpoint"})


def test_loss_falls(tiny_data, tmp_path):
    trained = train(
        tiny_data, tmp_path / "x", config(closed_set={"schedule": {"steps": 40}, "validate_every": 0})
    )
    losses = [r["loss"] for r in trained.history if r["phase"] == "closed_set" and "lr" in r]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_images(tiny_data, tmp_path, monkeypatch):
    original = ClosedSetObjective.forward

    def forward(self, batch, **hints):
        losses = original(self, batch, **hints)
        forward.calls += 1
        return {"loss": losses["loss"] * math.nan} if forward.calls == 5 else losses

    forward.calls = 0
    monkeypatch.setattr(ClosedSetObjective, "forward", forward)
    with pytest.raises(
        TrainingError, match=r"closed_set step 4: the loss is nan \(learning rate .*images s\d"
    ) as caught:
        train(tiny_data, tmp_path / "x")
    assert "state.pt" in str(caught.value)
    state = torch.load(tmp_path / ".x.training" / "closed_set" / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 3
    assert all(tensor.isfinite().all() for tensor in state["scorer"].values())
    assert not (tmp_path / "x").exists()


class NaNGradient(torch.autograd.Function):
    """The identity, with a gradient that is not a number."""

    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * math.nan


@pytest.mark.parametrize(("step", "stops", "kept"), [(2, 3, None), (4, 6, 3), (5, 6, 3)])
@pytest.mark.parametrize("validate_every", [0, 3])
def test_a_gradient_that_is_not_finite_spoils_no_checkpoint(
    tiny_data, tmp_path, monkeypatch, step, stops, kept, validate_every
):
    original = ClosedSetObjective.forward
    calls = []

    def forward(self, batch, **hints):
        losses = original(self, batch, **hints)
        calls.append(None)
        return {"loss": NaNGradient.apply(losses["loss"])} if len(calls) == step + 1 else losses

    monkeypatch.setattr(ClosedSetObjective, "forward", forward)
    if step != 5:  # later losses are nan of themselves: the weights alone have to tell
        monkeypatch.setattr(training.FiniteGuard, "check", lambda self: None)
    found = rf"(?s)closed_set step {stops}: \d+ of \d+ weights are not finite.*encoder\..*clip"
    with pytest.raises(TrainingError, match=found) as caught:
        train(tiny_data, tmp_path / "x", config(closed_set={"validate_every": validate_every}))
    point = tmp_path / ".x.training" / "closed_set" / "state.pt"
    assert point.exists() is ("state.pt" in str(caught.value)) is (kept is not None)
    if kept:
        state = torch.load(point, weights_only=True)
        assert state["progress"]["step"] == kept
        assert all(tensor.isfinite().all() for tensor in state["scorer"].values())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_validation_that_is_not_finite_chooses_no_weights(tiny_data, tmp_path, monkeypatch, value):
    values = iter([0.5, value])
    monkeypatch.setattr("anomdino.scorer.recipe.composed_quality", lambda *_: {"ap": next(values)})
    with pytest.raises(
        TrainingError, match=r"(?s)residual step 6: the validation's ap is .*residual/state\.pt"
    ):
        train(tiny_data, tmp_path / "x")
    progress = torch.load(tmp_path / ".x.training" / "residual" / "state.pt", weights_only=True)["progress"]
    assert (progress["step"], progress["best"], progress["best_step"]) == (3, 0.5, 3)


def test_late_look_names_the_first_bad_step(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setitem(training.CHECK_EVERY, "cpu", 100)
    original = ClosedSetObjective.forward

    def forward(self, batch, **hints):
        losses = original(self, batch, **hints)
        forward.calls += 1
        return {"loss": losses["loss"] * (math.inf if forward.calls == 2 else 1)}

    forward.calls = 0
    monkeypatch.setattr(ClosedSetObjective, "forward", forward)
    with pytest.raises(TrainingError, match="closed_set step 1: the loss is inf"):
        train(tiny_data, tmp_path / "x")
    assert not (tmp_path / ".x.training" / "closed_set" / "state.pt").exists()


def test_best_weights_are_those_of_the_best_validation(tiny_data, tmp_path, monkeypatch):
    values = iter([0.2, 0.9, 0.4, 0.4])
    monkeypatch.setattr(
        "anomdino.scorer.recipe.composed_quality", lambda *_: {"ap": next(values), "ap_closed": 0.0}
    )
    seen = {}
    original = training.Keeper.keep_if_best

    def spy(self, record, progress):
        seen[record["phase"], record["step"]] = {k: v.clone() for k, v in self.scorer.state_dict().items()}
        original(self, record, progress)

    monkeypatch.setattr(training.Keeper, "keep_if_best", spy)
    settings = config(residual={"validate_every": 2})
    trained = train(tiny_data, tmp_path / "x", settings)
    for name, tensor in trained.scorer.state_dict().items():
        assert torch.equal(tensor, seen["residual", 4][name]), name


def test_evaluation_data_is_refused(tmp_path):
    data = write_scenes(tmp_path / "d")
    mark_evaluation_only(data / "inlier" / "val")
    with pytest.raises(ProtocolError, match="evaluation data"):
        train(data, tmp_path / "x")


def test_a_checkpoint_is_taken_as_it_is(tiny_data, tmp_path, unbroken):
    out, first = unbroken
    settings = config(source="checkpoint", checkpoint=str(out))
    second = train(tiny_data, tmp_path / "b", settings)
    assert second.history == []
    assert second.quality.miou == first.quality.miou
    assert files_of(out)["model.safetensors"] == files_of(tmp_path / "b")["model.safetensors"]


def test_batch_has_to_divide_by_the_processes(tiny_data, tmp_path, monkeypatch):
    from anomdino.scorer import recipe
    from anomdino.scorer.distributed import World

    trainer = recipe.Trainer(
        config(), tiny_data / "inlier", tiny_data / "outliers", seed=0, world=World(0, 3, torch.device("cpu"))
    )
    with pytest.raises(ConfigError, match="4 does not divide by 3"):
        trainer.train(tmp_path / "x", tmp_path / "s")


def test_paste_rules_are_looked_at_before_anything_is_trained(tiny_data, tmp_path):
    wrong = config(residual={"paste": {"rules": {"softness": [2, 1]}}})
    with pytest.raises(ConfigError, match="softness"):
        train(tiny_data, tmp_path / "x", wrong)
    assert not (tmp_path / ".x.training").exists()


def test_precision_of_each_device(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert training.low_precision("auto", cpu) is (torch.bfloat16 if native else None)
    for capability, expected in (((9, 0), torch.bfloat16), ((7, 5), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, value=capability: value)
        assert training.low_precision("auto", cuda) is expected
    assert [training.low_precision(name, cpu) for name in ("float32", "bf16", "fp16")] == [None] * 3
    assert training.low_precision("fp16", cuda) is torch.float16
    assert training.low_precision("bf16", cuda) is torch.bfloat16
    assert training.low_precision("float32", cuda) is None


def test_bfloat16_trains_close_to_float32(tiny_data, tmp_path, monkeypatch, unbroken):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    full = unbroken[1].history
    mixed = train(tiny_data, tmp_path / "b", config(precision="auto")).history
    losses = [(a["loss"], b["loss"]) for a, b in zip(full, mixed, strict=True) if "loss" in a]
    assert [a for a, _ in losses] == pytest.approx([b for _, b in losses], rel=0.1)
    assert all(a != b for a, b in losses)


def test_class_weights_by_hand():
    class Labels(list):
        pass

    counts = {0: 800, 1: 100, 2: 50, 255: 74}
    flat = torch.cat([torch.full((n,), value) for value, n in counts.items()]).reshape(32, 32)
    scenes = Labels([(None, flat.numpy().astype("uint8"))])
    assert class_weights(scenes, 4, 1.0).tolist() == pytest.approx([100 / 800, 1.0, 2.0, 1.0])
    assert class_weights(scenes, 4, 0.5).tolist() == pytest.approx([(1 / 8) ** 0.5, 1.0, 2**0.5, 1.0])
    assert class_weights(scenes, 4, 0.0).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("steps", "epochs", "images", "batch", "expected"),
    [(0, 40, 2975, 8, 14840), (500, 40, 2975, 8, 500), (0, 1.5, 10, 4, 3), (0, 2, 3, 8, 2)],
)
def test_length_of_a_training(steps, epochs, images, batch, expected):
    assert steps_of(steps, epochs, images, batch) == expected


def test_live_curves_and_overlays(tiny_data, tmp_path):
    pytest.importorskip("dvclive")
    train(tiny_data, tmp_path / "x", config(live=True))
    live = tmp_path / "x" / "live"
    assert (live / "plots" / "metrics" / "residual" / "loss.tsv").is_file()
    assert (live / "plots" / "metrics" / "closed_set" / "validation_loss.tsv").is_file()
    overlays = sorted((live / "plots" / "images").iterdir())
    assert [path.name for path in overlays] == [f"composed_{number}.png" for number in range(4)]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("dvc")]


def test_curves_of_a_finished_phase_are_drawn_again_after_a_kill(tiny_data, tmp_path, kill_at, monkeypatch):
    pytest.importorskip("dvclive")
    kill_at(ResidualObjective, 1)
    with pytest.raises(Killed):
        train(tiny_data, tmp_path / "x", config(live=True))
    monkeypatch.undo()
    train(tiny_data, tmp_path / "x", config(live=True))
    for name in ("loss", "validation_loss"):
        rows = (tmp_path / f"x/live/plots/metrics/closed_set/{name}.tsv").read_text().splitlines()
        assert len(rows) == {"loss": 7, "validation_loss": 3}[name]


def test_published_training_is_the_default_of_the_residual_block():
    residual = profile_params("paper").rpl.residual
    schedule = residual.schedule
    assert (residual.batch, residual.lr, residual.final_factor, residual.weight_decay) == (8, 7.5e-5, 10, 0)
    assert (residual.energy_weight, residual.corocl.samples, residual.corocl.temperature) == (0.05, 512, 0.1)
    assert (residual.rule, residual.rpl_size, residual.order, residual.loss_at) == (
        "rpl",
        700,
        "files",
        "input",
    )
    assert (schedule.epochs, schedule.power, schedule.minimum, schedule.lag) == (40, 0.9, 1e-8, 1)
    assert steps_of(schedule.steps, schedule.epochs, 2975, residual.batch) == 14840
    assert (residual.clip, residual.average, residual.corocl.min_images, residual.outlier_probability) == (
        0,
        0,
        2,
        1,
    )


WIDE = {"architecture": "wide_resnet38", "options": {"channel_divisor": 16}}
RPL_RULE = {"schedule": {"steps": 1}, "batch": 2, "rule": "rpl", "rpl_size": 40, "validation_images": 2}


def closed_set_file(path):
    """Write a narrow network as NVIDIA's file holds it, and give the network."""
    torch.manual_seed(5)
    network = build_scorer(ScorerSpec("wide_resnet38", 4, WIDE["options"]))
    closed = {
        "module." + name.removeprefix("branch1."): tensor
        for name, tensor in network.state_dict().items()
        if ".residual_block." not in name
    }
    torch.save({"state_dict": closed, "epoch": 3}, path)
    return network


def test_published_checkpoints_start_the_training(tiny_data, tmp_path):
    network = closed_set_file(tmp_path / "cityscapes_best.pth")
    given = {"source": "checkpoint", "checkpoint": str(tmp_path / "cityscapes_best.pth")}
    settings = config(**WIDE, closed_set=given, residual=RPL_RULE)
    going_on = settings.model_copy(
        update={"residual": settings.residual.model_copy(update={"start": "checkpoint"})}
    )
    with pytest.raises(CheckpointError, match=r"(?s)cityscapes_best\.pth.*no residual block.*start: fresh"):
        train(tiny_data, tmp_path / "refused", going_on)
    trained = train(tiny_data, tmp_path / "x", settings)
    for name, tensor in frozen_state(trained.scorer).items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    torch.save({"model": trained.scorer.state_dict()}, tmp_path / "rev3.pth")
    given = {"source": "checkpoint", "checkpoint": str(tmp_path / "rev3.pth")}
    again = train(tiny_data, tmp_path / "y", config(**WIDE, **given, residual=RPL_RULE))
    assert again.composed == trained.composed


@pytest.mark.parametrize("converted", [False, True])
def test_a_closed_set_file_is_no_trained_scorer(tiny_data, tmp_path, monkeypatch, converted):
    path = tmp_path / "cityscapes_best.pth"
    network = closed_set_file(path)
    if converted:  # the converter draws a block, so that names alone do not tell
        narrow = partial(WideResNet38Scorer, 4, 16)
        monkeypatch.setattr("anomdino.scorer.wide_resnet38.WideResNet38Scorer", narrow)
        for source, target in (
            (path, tmp_path / "a.safetensors"),
            (tmp_path / "a.safetensors", tmp_path / "b.safetensors"),
        ):
            assert convert_checkpoint(source, target)["origin"] == "closed-set"
        monkeypatch.undo()
        path = tmp_path / "b.safetensors"
    given = {"source": "checkpoint", "checkpoint": str(path)}
    with pytest.raises(
        CheckpointError, match=rf"(?s){path.name}.*no residual block.*rpl\.closed_set\.checkpoint: "
    ):
        train(tiny_data, tmp_path / "x", config(**WIDE, **given, residual=RPL_RULE))
    with pytest.raises(CheckpointError, match=rf"(?s){path.name}.*no residual block.*start: fresh"):
        going_on = config(**WIDE, closed_set=given, residual=RPL_RULE | {"start": "checkpoint"})
        train(tiny_data, tmp_path / "x", going_on)
    assert not (tmp_path / "x").exists()
    trained = train(tiny_data, tmp_path / "x", config(**WIDE, closed_set=given, residual=RPL_RULE))
    for name, tensor in frozen_state(trained.scorer).items():
        assert torch.equal(tensor, network.state_dict()[name]), name


@pytest.mark.parametrize(
    ("total", "every", "expected"), [(1200, 20, 120), (6, 1, 1), (100, 20, 20), (1000, 30, 90)]
)
def test_a_training_says_some_ten_times_where_it_stands(total, every, expected):
    plan = training.Plan("x", PolySchedule(total), log_every=every)
    assert plan.say_every == expected
    assert plan.say_every % every == 0


def test_the_lines_of_a_training_name_phase_step_and_loss(tiny_data, tmp_path, caplog):
    with caplog.at_level("INFO", logger="anomdino"):
        trained = train(tiny_data, tmp_path / "x")
    lines = [record.getMessage() for record in caplog.records]
    for phase in ("closed_set", "residual"):
        losses = [
            record["loss"] for record in trained.history if record["phase"] == phase and "loss" in record
        ]
        assert [line for line in lines if line.startswith(f"{phase} step")] == [
            f"{phase} step {step} of 6: loss {loss:.4g}" for step, loss in enumerate(losses, 1)
        ]
