"""``anomdino data list | get | verify | where``."""

from __future__ import annotations

import hashlib
from pathlib import Path

import acquisition_miniature as miniature
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from anomdino.acquisition.registry import load_registry
from anomdino.cli.data import app
from anomdino.errors import AnomdinoError
from anomdino.io.locking import exclusive


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
        if isinstance(result.exception, AnomdinoError):
            raise result.exception
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    return call


@pytest.fixture
def mini_params(tmp_path) -> Path:
    """A params.yaml that names a registry file of its own."""
    registry = miniature.miniature_registry().model_dump(exclude_defaults=True)
    with (tmp_path / "registry.yaml").open("w") as stream:
        YAML().dump(registry, stream)
    (tmp_path / "params.yaml").write_text(
        "data:\n  registry:\n    file: registry.yaml\n    items: [camvid]\n"
    )
    miniature.write_published(tmp_path / "hand")
    return tmp_path / "params.yaml"


def test_list_shows_every_item_with_state_and_size(run):
    text = run("list")
    for name in load_registry().items:
        assert name in text
    assert "absent" in text
    assert "19.6 GB" in text
    assert "cityscapes*" in text


def test_list_of_one_item_shows_terms_files_and_addresses(run):
    text = run("list", "lost_and_found")
    for words in ("307f66002023", "5.8 GB", "dhbw-stuttgart.de", "Pinggera", "licence:"):
        assert words in text


def test_list_sees_what_a_person_put_in_place(run, mini_params, tmp_path):
    assert "nothing was downloaded yet" in run("verify")
    mini_params.write_text("data:\n  registry:\n    file: registry.yaml\n    from_dir: hand\n")
    rows = [
        line for line in run("list").splitlines() if line.split("*")[0].split(" ")[0] in load_registry().items
    ]
    assert len(rows) == len(load_registry().items)
    assert all("by hand" in row for row in rows)
    (tmp_path / "hand/rev3.pth").unlink()
    assert "absent" in run("list").split("rpl_corocl")[1].splitlines()[0]


def test_a_parameter_file_that_is_named_must_be_there(run):
    with pytest.raises(AnomdinoError, match=r"other\.yaml"):
        run("list", "--params", "other.yaml")


def test_list_refuses_an_unknown_item(run):
    with pytest.raises(AnomdinoError, match="'cityscape' is unknown"):
        run("list", "cityscape")


def test_get_verify_where(run, mini_params, tmp_path):
    assert "camvid: 1 file\n" in run("get", "camvid", "--from-dir", "hand", "--offline")
    assert "downloaded" in run("list")
    stored = tmp_path / "data/downloads/camvid.tgz"
    assert str(stored) in run("where", "camvid")
    assert "not there" in run("where", "cityscapes")
    assert "good     camvid.tgz" in run("verify")
    stored.write_bytes(stored.read_bytes()[:-100] + bytes(100))
    with pytest.raises(AnomdinoError, match="hold 1 damaged file"):
        run("verify", "camvid")


def test_list_says_how_far_an_item_has_come(run, mini_params, tmp_path):
    def state(name: str) -> str:
        return run("list", name).splitlines()[0].rpartition("(")[2]

    store, hand = tmp_path / "data/downloads", tmp_path / "hand"
    store.mkdir(parents=True)
    assert state("cityscapes") == "absent)"
    (store / "gtFine_trainvaltest.zip.part").write_bytes(b"PK")
    assert state("cityscapes") == "begun)"
    for name, found in (
        ("leftImg8bit_trainvaltest.zip", "1 of 2 files)"),
        ("gtFine_trainvaltest.zip", "downloaded)"),
    ):
        (store / name).write_bytes((hand / name).read_bytes())
        assert state("cityscapes") == found


def test_nothing_is_recorded_while_another_run_holds_the_store(run, mini_params, tmp_path):
    """A download may take hours: its records are its own, and what is there can be looked at all the same."""
    run("get", "camvid", "--from-dir", "hand", "--offline")
    stamps = tmp_path / "data/downloads/.verified.json"
    stamps.unlink()
    with exclusive(tmp_path / "data/downloads/.lock"):
        assert "downloaded" in run("list", "camvid")
        assert "good     camvid.tgz" in run("verify")
        assert not stamps.exists()
    assert "downloaded" in run("list", "camvid")
    assert "camvid.tgz" in stamps.read_text()


def test_get_lays_out_beside_what_is_there(run, mini_params, tmp_path):
    for names in (["rpl_corocl"], ["bert_base_uncased", "camvid"]):
        run("get", *names, "--from-dir", "hand", "--offline", "--into", "laid")
    assert (tmp_path / "laid/weights/rev3.pth").is_file()
    assert (tmp_path / "laid/weights/bert-base-uncased/config.json").is_file()
    assert (tmp_path / "laid/inlier/val/labels/0016E5_07959.png").is_file()
    run("get", "rpl_corocl", "--from-dir", "hand", "--offline", "--into", "laid")
    (tmp_path / "laid/weights/rev3.pth").unlink()
    (tmp_path / "laid/weights/rev3.pth").write_bytes(b"mine")
    with pytest.raises(AnomdinoError, match=r"other files under the same names: weights/rev3.pth"):
        run("get", "rpl_corocl", "--from-dir", "hand", "--offline", "--into", "laid")
    assert (tmp_path / "laid/weights/rev3.pth").read_bytes() == b"mine"


def test_a_single_file_is_never_ignored(run, mini_params, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hand/rev3.pth").rename(tmp_path / "mine.pth")
    run("get", "rpl_corocl", "--offline", "--from-file", "rev3.pth=~/mine.pth")
    with pytest.raises(AnomdinoError, match=r"rev3\.pth, which camvid does not have"):
        run("get", "camvid", "--from-dir", "hand", "--offline", "--from-file", "rev3.pth=~/mine.pth")
    run("get", "rpl_corocl", "--offline", "--from-file", "rev3.pth=~/mine.pth")
    (tmp_path / "mine.pth").write_bytes(b"other")
    with pytest.raises(AnomdinoError, match="differs from .* there already"):
        run("get", "rpl_corocl", "--offline", "--from-file", "rev3.pth=~/mine.pth")


def test_get_takes_single_files_by_their_own_or_the_registered_name(run, mini_params, tmp_path):
    (tmp_path / "hand/rev3.pth").rename(tmp_path / "my weights.pth")
    run("get", "rpl_corocl", "--offline", "--from-file", "rev3.pth=my weights.pth")
    stored = tmp_path / "data/downloads/rev3.pth"
    assert hashlib.sha256(stored.read_bytes()).digest() == hashlib.sha256(miniature.checkpoint()).digest()
    run("get", "camvid", "--offline", "--from-file", "hand/camvid.tgz")
    with pytest.raises(AnomdinoError, match="no registered file name"):
        run("get", "rpl_corocl", "--offline", "--from-file", "my weights.pth")


def test_get_without_anything_says_what_to_do(run):
    with pytest.raises(AnomdinoError, match="register on the web site"):
        run("get", "cityscapes", "--offline")
