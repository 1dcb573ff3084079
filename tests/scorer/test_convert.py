"""Published checkpoints: unwrapping, naming rules, strict fit, and no code run while loading."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from anomdino.errors import CheckpointError
from anomdino.io.digest import file_sha256
from anomdino.scorer import convert as module
from anomdino.scorer.base import load_strictly
from anomdino.scorer.convert import (
    closed_set_to_rpl,
    convert_checkpoint,
    is_closed_set,
    read_checkpoint,
    rpl_state,
    with_counters,
)
from anomdino.scorer.wide_resnet38 import WideResNet38Scorer


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return WideResNet38Scorer(channel_divisor=16).eval()


@pytest.fixture
def small_target(monkeypatch):
    """Let the converter build the narrow network where it would build the published one."""
    monkeypatch.setattr(
        "anomdino.scorer.wide_resnet38.WideResNet38Scorer", lambda: WideResNet38Scorer(channel_divisor=16)
    )


def closed_set_state(network):
    """What NVIDIA's file holds, made from a network by hand."""
    state = {
        f"module.{name.removeprefix('branch1.')}": value.clone()
        for name, value in network.state_dict().items()
        if "residual_block" not in name
    }
    state["module.criterion.nll_loss.weight"] = torch.ones(19)
    return state


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3, "iteration": np.float64(0.5)},
        lambda s: {"model_state": s},
        lambda s: {"state_dict": s},
        lambda s: {"model": {"model_state": {"state_dict": s}}},
        lambda s: {"model": {f"module.{name}": value for name, value in s.items()}},
    ],
)
def test_wrapped_forms_are_unwrapped(tmp_path, network, wrap):
    path = tmp_path / "rev3.pth"
    torch.save(wrap(network.state_dict()), path)
    state = read_checkpoint(path)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_old_file_format_and_safetensors_are_read(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(network.state_dict(), str(tmp_path / "new.safetensors"))
    for name in ("old.pth", "new.safetensors"):
        assert read_checkpoint(tmp_path / name).keys() == network.state_dict().keys()


def test_closed_set_rules(network):
    state = {name.removeprefix("module."): value for name, value in closed_set_state(network).items()}
    assert is_closed_set(state)
    assert not is_closed_set(network.state_dict())
    converted = closed_set_to_rpl(state, seed=4)
    fresh = WideResNet38Scorer(channel_divisor=16)
    load_strictly(fresh, converted, "test")
    block = fresh.residual_module()
    for name, value in fresh.branch1.aspp.state_dict().items():
        assert torch.equal(block.atten_aspp.state_dict()[name], value)
        assert torch.equal(value, network.branch1.aspp.state_dict()[name])
    assert torch.equal(block.bot_atten_aspp.weight, network.branch1.bot_aspp.weight)
    assert torch.equal(fresh.branch1.final[6].weight, network.branch1.final[6].weight)
    assert block.proj_head.proj[0].bias.abs().max() == 0
    expected_std = (2 / block.atten_aspp_final.weight.shape[1]) ** 0.5
    assert block.atten_aspp_final.weight.std().item() == pytest.approx(expected_std, rel=0.2)
    again = closed_set_to_rpl(state, seed=4)
    other = closed_set_to_rpl(state, seed=5)
    key = "branch1.residual_block.atten_aspp_final.weight"
    assert torch.equal(converted[key], again[key])
    assert not torch.equal(converted[key], other[key])


def test_closed_set_file_of_the_published_size_fits_by_name_and_shape():
    with torch.device("meta"):
        network = WideResNet38Scorer()
    meta = {name.removeprefix("module."): value for name, value in closed_set_state(network).items()}
    drawn = {k: v for k, v in meta.items() if k in {"bot_aspp.weight", "final.0.weight"}}
    assert {k: tuple(v.shape) for k, v in drawn.items()} == {
        "bot_aspp.weight": (256, 1280, 1, 1),
        "final.0.weight": (256, 304, 3, 3),
    }
    converted = closed_set_to_rpl(meta)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in converted.items()} == expected
    assert len(expected) == 302


def test_missing_counters_of_old_files_are_filled(network):
    state = {name: v for name, v in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    fresh = WideResNet38Scorer(channel_divisor=16)
    load_strictly(fresh, with_counters(state, fresh), "old.pth")
    assert torch.equal(fresh.branch1.final[3].weight, network.branch1.final[3].weight)


def test_a_file_that_does_not_fit_lists_the_first_ten_of_each(tmp_path, network, small_target):
    state = dict(network.state_dict())
    names = [name for name in state if name.endswith("weight")]
    for name in names[:14]:
        del state[name]
    state["branch1.final.6.weight"] = torch.zeros(11, 16, 1, 1)
    state.update({f"extra.{index:02}": torch.zeros(1) for index in range(12)})
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(tmp_path / "other.pth", tmp_path / "x.safetensors")
    text = str(caught.value)
    assert "14 missing" in text
    assert names[9] in text
    assert names[10] not in text
    assert "12 unexpected" in text
    assert "extra.09" in text
    assert "extra.10" not in text
    assert "1 of another shape: branch1.final.6.weight (11, 16, 1, 1) instead of (19, 16, 1, 1)" in text


class Evil:
    def __reduce__(self):
        return (os.system, ("touch HACKED",))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_named(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"posix\.system|os\.system|nt\.system") as caught:
        read_checkpoint("evil.pth")
    assert "weights_only" in str(caught.value)
    assert not Path("HACKED").exists()


def test_pickled_training_objects_are_named(tmp_path):
    import fractions

    torch.save({"model": {"a": torch.zeros(1)}, "args": fractions.Fraction(1, 2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"fractions\.Fraction"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "content", [b"", b"<html>quota exceeded</html>", pickle.dumps([1, 2]), b"PK\x03\x04junk"]
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        read_checkpoint(path)


def test_truncated_files_are_refused(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "a.pth")
    save_file(network.state_dict(), str(tmp_path / "a.safetensors"))
    for name in ("a.pth", "a.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_byte_that_is_damaged_is_named_or_changes_a_number(tmp_path):
    path, named = tmp_path / "x.pth", []
    for zipped in (True, False):
        weights = {f"layer{index}.weight": torch.zeros(2) for index in range(3)}
        torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for place in range(0, len(whole), 5):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xC3]) + whole[place + 1 :])
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                named.append(error.what)
    assert len(named) > 30
    assert set(named) == {str(path)}


def test_convert_writes_safetensors_with_the_sha256_of_the_source(tmp_path, network, small_target):
    source, target = tmp_path / "rev3.pth", tmp_path / "out" / "rpl.safetensors"
    torch.save({"model": network.state_dict(), "epoch": 1}, source)
    metadata = convert_checkpoint(source, target)
    with safe_open(str(target), "pt") as stored:
        assert stored.metadata() == metadata
    assert metadata["source_sha256"] == file_sha256(source)
    assert metadata["origin"] == "trained"
    assert target.stat().st_mode & 0o044 == 0o044
    loaded = load_file(target)
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    image = torch.randn(1, 3, 24, 40)
    fresh = WideResNet38Scorer(channel_divisor=16).eval()
    load_strictly(fresh, rpl_state(target)[0], target)
    assert torch.equal(fresh(image).residual_logits, network(image).residual_logits)


def test_command_line(tmp_path, network, small_target):
    from anomdino.cli.weights import app

    source, target = tmp_path / "cityscapes_best.pth", tmp_path / "start.safetensors"
    torch.save({"state_dict": closed_set_state(network)}, source)
    result = CliRunner().invoke(app, ["convert", str(source), str(target)])
    assert result.exit_code == 0, result.output
    assert "closed-set" in result.output
    assert file_sha256(source) in result.output.replace("\n", "")
    assert load_file(target).keys() == network.state_dict().keys()
    with pytest.raises(CheckpointError, match="safetensors"):
        convert_checkpoint(source, tmp_path / "start.pth")


def test_a_failed_conversion_leaves_no_file(tmp_path, network, small_target):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="254 missing"):
        convert_checkpoint(tmp_path / "other.pth", tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pth"]


def test_module_does_not_unpickle_freely():
    assert "weights_only=True" in Path(module.__file__).read_text(encoding="utf-8")
