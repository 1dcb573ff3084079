"""The stage `download`: own folders, published items, one screen when something is missing, nothing twice."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import acquisition_miniature as miniature
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from anomdino.acquisition import acquire as acquire_module
from anomdino.acquisition import fill as fill_module
from anomdino.acquisition import folder as folder_module
from anomdino.acquisition.acquire import Plan, acquire, fetch_items, plan, require_room, store_of
from anomdino.acquisition.fill import fill
from anomdino.acquisition.folder import OwnFolders, import_folders, listing_digest
from anomdino.acquisition.registry import Registry, Source, load_registry
from anomdino.acquisition.space import RESERVE
from anomdino.acquisition.staging import merge_tree, scratch_folder, staged_folder, staged_parts
from anomdino.config.acquisition import PAPER_ITEMS, RegistryConfig
from anomdino.config.data import DataConfig, FolderConfig
from anomdino.errors import ConfigError, DataError, DiskError, ProtocolError
from anomdino.io import locking
from anomdino.io.images import read_label
from anomdino.io.listing import list_images, pair_by_key
from anomdino.io.locking import exclusive
from anomdino.protocol import mark_evaluation_only

SIZE = (24, 32)


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino)
        for path in root.rglob("*")
        if path.is_file() and ".download.lock" not in path.name
    }


def write_pair(root: Path, key: str, values: np.ndarray, labels: str = "labels") -> None:
    for name, array in (("images", np.full((*SIZE, 3), 90, np.uint8)), (labels, values)):
        path = root / name / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    root = tmp_path / "own"
    for number in range(12):
        write_pair(root / "inlier/train", f"a/{number:02d}", np.full(SIZE, number % 19, np.uint8))
    mask = np.zeros(SIZE, np.uint8)
    mask[4:9, 4:9] = 1
    write_pair(root / "outliers", "cup", mask, "masks")
    write_pair(root / "bench", "frame", np.zeros(SIZE, np.uint8))
    return root


def folder_config(own: Path, **changes: object) -> DataConfig:
    block = {
        "inlier": str(own / "inlier"),
        "outliers": str(own / "outliers"),
        "benchmarks": {"mine": str(own / "bench")},
    }
    return DataConfig(source="folder", folder={**block, **changes})


class TestFolder:
    def test_everything_in_its_place(self, own, tmp_path):
        counts = fill(folder_config(own), tmp_path / "data")
        assert counts["inlier/train"] + counts["inlier/val"] == 12
        assert counts["inlier/val"] >= 1
        assert counts["outliers"] == 1
        data = tmp_path / "data"
        train, val = (set(list_images(data / "inlier" / split / "images")) for split in ("train", "val"))
        assert not train & val
        assert train == set(list_images(data / "inlier/train/labels"))
        assert set(np.unique(read_label(data / "outliers/masks/cup.png"))) == {0, 255}
        assert (data / "val/mine/EVALUATION_ONLY").is_file()
        assert (data / "weights").is_dir()

    def test_a_given_validation_part_is_used(self, own, tmp_path):
        write_pair(own / "inlier/val", "v", np.zeros(SIZE, np.uint8))
        counts = fill(folder_config(own), tmp_path / "data")
        assert (counts["inlier/train"], counts["inlier/val"]) == (12, 1)

    @pytest.mark.parametrize("count", [2, 3, 9])
    def test_neither_part_of_the_training_pairs_stays_empty(self, tmp_path, count, monkeypatch):
        for fraction in (0.0, 1.0):  # every key would be held out, or none
            monkeypatch.setattr(folder_module, "_fraction", lambda key, all_of=fraction: all_of)
            root = tmp_path / f"own{fraction}"
            for number in range(count):
                write_pair(root / "train", f"{number}", np.zeros(SIZE, np.uint8))
            counts = import_folders(OwnFolders(train=root / "train"), tmp_path / f"out{fraction}")
            assert counts["inlier/train"] == (1 if fraction == 0.0 else count - 1)
            assert counts["inlier/val"] == count - counts["inlier/train"]

    def test_a_name_may_be_no_unicode(self, own, tmp_path):
        write_pair(own / "inlier/train", os.fsdecode(b"\xff"), np.zeros(SIZE, np.uint8))
        counts = fill(folder_config(own), tmp_path / "data")
        assert counts["inlier/train"] + counts["inlier/val"] == 13

    def test_one_training_pair_alone_cannot_be_split(self, tmp_path):
        write_pair(tmp_path / "train", "a", np.zeros(SIZE, np.uint8))
        with pytest.raises(DataError, match=r"holds one pair.*\n.*give the held-out ones in val/"):
            import_folders(OwnFolders(train=tmp_path / "train"), tmp_path / "out")

    def test_a_benchmark_without_a_folder_is_absent_and_home_is_expanded(self, own, monkeypatch):
        """An empty path would be the folder that the program runs in."""
        monkeypatch.setenv("HOME", str(own))
        named = {"mine": "~/bench", "later": ""}
        found = OwnFolders.of(inlier="~/inlier", outliers="", benchmarks=named, weights="")
        assert found == OwnFolders(train=own / "inlier/train", benchmarks={"mine": own / "bench"})

    @pytest.mark.parametrize("name", ["", "..", "../weights", "a/b", "/etc", ".hidden"])
    def test_a_benchmark_stays_in_the_folder_of_benchmarks(self, name):
        with pytest.raises(ValidationError, match="cannot be used"):
            FolderConfig(benchmarks={name: "somewhere"})

    def test_a_second_run_touches_nothing(self, own, tmp_path):
        first = fill(folder_config(own), tmp_path / "data")
        before = snapshot(tmp_path / "data")
        assert fill(folder_config(own), tmp_path / "data") == first
        assert snapshot(tmp_path / "data") == before

    def test_a_changed_source_is_imported_again(self, own, tmp_path):
        fill(folder_config(own), tmp_path / "data")
        write_pair(own / "inlier/train", "new", np.zeros(SIZE, np.uint8))
        assert (
            sum(fill(folder_config(own), tmp_path / "data")[f"inlier/{one}"] for one in ("train", "val"))
            == 13
        )

    def test_linked_folders_are_read_and_their_changes_seen(self, own, tmp_path):
        for folder in ("inlier/train/images", "inlier/train/labels", "bench/labels"):
            (own / folder).rename(own / folder.replace("/", "-"))
            (own / folder).symlink_to(own / folder.replace("/", "-"))
        counts = fill(folder_config(own), tmp_path / "data")
        assert (counts["inlier/train"] + counts["inlier/val"], counts["val/mine"]) == (12, 2)
        assert (tmp_path / "data/val/mine/labels/frame.png").is_file()
        write_pair(own / "inlier/train", "new", np.zeros(SIZE, np.uint8))
        counts = fill(folder_config(own), tmp_path / "data")
        assert counts["inlier/train"] + counts["inlier/val"] == 13

    @pytest.mark.parametrize("linked", ["folder", "file"])
    def test_links_do_not_hide_evaluation_data(self, own, tmp_path, linked):
        write_pair(tmp_path / "eval", "e", np.zeros(SIZE, np.uint8))
        mark_evaluation_only(tmp_path / "eval")
        name = "more" if linked == "folder" else "more.png"
        for part in ("images", "labels"):
            (own / "inlier/train" / part / name).symlink_to(
                tmp_path / "eval" / part / ("" if linked == "folder" else "e.png")
            )
        with pytest.raises(ProtocolError, match="evaluation data"):
            fill(folder_config(own), tmp_path / "data")

    def test_what_the_user_or_someone_else_changed_is_made_again(self, own, tmp_path, monkeypatch):
        """A label of the same size, a weight file, an output of as many files, and the program itself."""
        (own / "weights").mkdir()
        (own / "weights/w.pth").write_bytes(b"one")
        config, data = folder_config(own, weights=str(own / "weights")), tmp_path / "data"
        fill(config, data)
        label = own / "inlier/train/labels/a/01.png"
        content = label.read_bytes()
        Image.fromarray(np.full(SIZE, 7, np.uint8)).save(label)
        assert len(content) == label.stat().st_size
        fill(config, data)
        assert (read_label(next((data / "inlier").rglob("labels/a/01.png"))) == 7).all()
        (own / "weights/w.pth").write_bytes(b"other")
        fill(config, data)
        assert (data / "weights/w.pth").read_bytes() == b"other"
        (data / "weights/w.pth").write_bytes(b"")
        fill(config, data)
        assert (data / "weights/w.pth").read_bytes() == b"other"
        before = snapshot(data)
        monkeypatch.setattr(fill_module, "__version__", "another")
        fill(config, data)
        assert snapshot(data) != before

    def test_suffixes_are_written_small(self, own, tmp_path):
        """The same image under two names in two sets would not be found to be one."""
        for part in ("inlier/train/images/a/00", "outliers/images/cup"):
            (own / f"{part}.png").rename(own / f"{part}.PNG")
        fill(folder_config(own), tmp_path / "data")
        assert not list((tmp_path / "data").rglob("*.PNG"))
        assert (tmp_path / "data/outliers/images/cup.png").is_file()

    def test_a_name_that_is_no_unicode_is_no_reason_to_stop(self, own):
        (own / "bench/images" / os.fsdecode(b"caf\xe9.txt")).write_text("x")
        assert listing_digest(OwnFolders(benchmarks={"mine": own / "bench"}))

    def test_lost_outputs_are_made_again(self, own, tmp_path):
        fill(folder_config(own), tmp_path / "data")
        shutil.rmtree(tmp_path / "data/inlier")
        fill(folder_config(own), tmp_path / "data")
        assert (tmp_path / "data/inlier/train/images").is_dir()

    def test_the_users_files_are_copied_not_linked(self, own, tmp_path):
        before = snapshot(own)
        fill(folder_config(own), tmp_path / "data")
        assert snapshot(own) == before
        assert all(path.stat().st_nlink == 1 for path in (tmp_path / "data").rglob("*.png"))

    def test_read_only_outputs_are_replaced(self, own, tmp_path):
        """DVC makes outputs that it linked from its cache read-only."""
        fill(folder_config(own), tmp_path / "data")
        for path in (tmp_path / "data").rglob("*.png"):
            path.chmod(0o444)
        write_pair(own / "inlier/train", "new", np.zeros(SIZE, np.uint8))
        fill(folder_config(own), tmp_path / "data")

    @pytest.mark.parametrize("value", [19, 33, 254])
    def test_labels_that_are_no_train_ids(self, own, tmp_path, value):
        write_pair(own / "inlier/train", "bad", np.full(SIZE, value, np.uint8))
        with pytest.raises(DataError, match=rf"bad.png: has label values .*{{{value}: {SIZE[0] * SIZE[1]}}}"):
            fill(folder_config(own), tmp_path / "data")

    def test_all_bad_files_are_listed_and_nothing_is_written(self, own, tmp_path):
        fill(folder_config(own), tmp_path / "data")
        before = snapshot(tmp_path / "data")
        (own / "inlier/train/images/a/01.png").write_bytes(b"")
        path = own / "inlier/train/images/a/02.png"
        path.write_bytes(path.read_bytes()[:-30])
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(own / "inlier/train/labels/a/03.png")
        photo = (own / "inlier/train/images/a/04.png").with_suffix(".jpg")
        noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photo)
        photo.write_bytes(photo.read_bytes()[:-200])
        photo.with_suffix(".png").unlink()
        with pytest.raises(DataError) as caught:
            fill(folder_config(own), tmp_path / "data")
        text = str(caught.value)
        for words in (
            "4 files cannot be used",
            "04.jpg: is trunc",
            "01.png: is empty",
            "02.png: is truncated",
            "03.png: is (5, 5)",
        ):
            assert words in text
        assert snapshot(tmp_path / "data") == before

    def test_missing_partners(self, own, tmp_path):
        (own / "inlier/train/labels/a/05.png").unlink()
        with pytest.raises(DataError, match="1 image without label: a/05"):
            fill(folder_config(own), tmp_path / "data")

    def test_an_empty_mask(self, own, tmp_path):
        write_pair(own / "outliers", "nothing", np.zeros(SIZE, np.uint8), "masks")
        with pytest.raises(DataError, match="no object mask"):
            fill(folder_config(own), tmp_path / "data")

    def test_a_mask_of_another_size_and_one_of_three_values(self, own, tmp_path):
        for name, values in (("small", np.ones((5, 5))), ("three", np.arange(SIZE[0] * SIZE[1]) % 3)):
            write_pair(own / "outliers", name, np.zeros(SIZE, np.uint8), "masks")
            mask = np.asarray(values, np.uint8).reshape((5, 5) if name == "small" else SIZE)
            Image.fromarray(mask).save(own / f"outliers/masks/{name}.png")
        with pytest.raises(
            DataError, match=r"(?s)2 files cannot.*small.png: is \(5, 5\).*three.png: is no obj"
        ):
            fill(folder_config(own), tmp_path / "data")

    @pytest.mark.parametrize("part", ["inlier", "inlier/train", "inlier/val", "outliers"])
    def test_evaluation_data_is_refused_for_training(self, own, tmp_path, part):
        write_pair(own / "inlier/val", "v", np.zeros(SIZE, np.uint8))
        mark_evaluation_only(own / part)
        with pytest.raises(ProtocolError):
            fill(folder_config(own), tmp_path / "data")

    @pytest.mark.parametrize("change", [{"inlier": "/nowhere"}, {"benchmarks": {"b": "/nowhere"}}])
    def test_a_folder_that_is_not_there(self, own, tmp_path, change):
        with pytest.raises(DataError, match="/nowhere is not a folder"):
            fill(folder_config(own, **change), tmp_path / "data")

    def test_no_folder_at_all(self, tmp_path):
        with pytest.raises(DataError, match="names no folder"):
            fill(DataConfig(source="folder"), tmp_path / "data")

    def test_a_full_disk_keeps_what_was_there(self, own, tmp_path, monkeypatch):
        fill(folder_config(own), tmp_path / "data")
        before = snapshot(tmp_path / "data")
        write_pair(own / "inlier/train", "new", np.zeros(SIZE, np.uint8))
        calls = iter(range(10_000))
        original = os.replace

        def full(source, target):
            if next(calls) == 7:
                raise OSError(errno.ENOSPC, "No space left on device")
            original(source, target)

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(DiskError) as caught:
            fill(folder_config(own), tmp_path / "data")
        assert caught.value.exit_code == 3
        monkeypatch.undo()
        assert snapshot(tmp_path / "data") == before
        assert not list((tmp_path / "data").glob(".*.staging"))

    @pytest.mark.parametrize(
        ("number", "words"),
        [
            (errno.ENOSPC, "the disk is full"),
            (errno.EDQUOT, "the disk is full"),
            (errno.EROFS, "the file system is read-only"),
            (errno.EPERM, "permission denied"),
        ],
    )
    def test_a_disk_that_takes_nothing_while_copying(self, own, tmp_path, monkeypatch, number, words):
        def full(*_):
            raise OSError(number, os.strerror(number), "somewhere")

        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(DiskError, match=f"somewhere: {words}"):
            fill(folder_config(own), tmp_path / "data")
        assert not list((tmp_path / "data").glob(".*.staging"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_without_permission(self, own, tmp_path):
        (tmp_path / "data").mkdir(mode=0o500)
        with pytest.raises(DiskError, match="no permission"):
            fill(folder_config(own), tmp_path / "data")

    def test_leftovers_of_a_killed_run_are_removed(self, own, tmp_path):
        for name in ("parts", "inlier"):  # killed while it filled, and between the two renames
            (tmp_path / f"data/.{name}.0123456789ab.staging/inlier").mkdir(parents=True)
        fill(folder_config(own), tmp_path / "data")
        assert not list((tmp_path / "data").glob(".*.staging"))


class TestSynthetic:
    def test_scenes_objects_and_two_benchmarks(self, tmp_path):
        sizes = {
            "height": 96,
            "width": 128,
            "train": 2,
            "val": 1,
            "outliers": 2,
            "benchmark": 1,
            "workers": 1,
        }
        fill(DataConfig(source="synthetic", synthetic=sizes), tmp_path / "data")
        data = tmp_path / "data"
        pairs = pair_by_key(
            list_images(data / "inlier/train/images"), list_images(data / "inlier/train/labels")
        )
        assert len(pairs) == 2
        assert len(list_images(data / "outliers/masks")) == 2
        for name in ("synthetic_road", "synthetic_track"):
            assert (data / "val" / name / "EVALUATION_ONLY").is_file()
        before = snapshot(data)
        fill(DataConfig(source="synthetic", synthetic=sizes), data)
        assert snapshot(data) == before


class TestRegistry:
    @pytest.fixture(autouse=True)
    def _there(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    @pytest.fixture
    def published(self, tmp_path) -> Path:
        miniature.write_published(tmp_path / "hand")
        return tmp_path / "hand"

    @pytest.fixture
    def mini(self, monkeypatch):
        registry = miniature.miniature_registry()
        monkeypatch.setattr(acquire_module, "load_registry", lambda *_: registry)
        return registry

    def config(self, **changes: object) -> DataConfig:
        block = {"from_dir": "hand", "downloads": "data/downloads", "offline": True}
        return DataConfig(source="registry", registry={**block, **changes})

    def test_the_paper_profile_from_files_got_by_hand(self, published, mini, tmp_path):
        counts = fill(self.config(), tmp_path / "data")
        assert counts["inlier/train"] == miniature.TRAIN
        assert counts["outliers"] == 3
        assert counts["val/AnomalyTrack"] == 4
        assert counts["weights"] == 3
        weights = {path.name for path in (tmp_path / "data/weights").iterdir()}
        assert {"rev3.pth", "cityscapes_best.pth", "bert-base-uncased"} <= weights
        assert not list((tmp_path / "data/downloads").glob("*.unpacked"))

    def test_a_second_run_touches_nothing(self, published, mini, tmp_path):
        fill(self.config(), tmp_path / "data")
        before = snapshot(tmp_path / "data")
        fill(self.config(), tmp_path / "data")
        assert snapshot(tmp_path / "data") == before

    def test_outputs_removed_by_dvc_come_back_from_the_downloads(self, published, mini, tmp_path):
        fill(self.config(), tmp_path / "data")
        shutil.rmtree(published)
        published.mkdir()
        shutil.rmtree(tmp_path / "data/outliers")
        assert fill(self.config(), tmp_path / "data")["outliers"] == 3

    def test_a_kept_archive_that_changed_is_unpacked_again(self, published, mini, tmp_path):
        fill(self.config(items=["camvid"], keep_unpacked=True), tmp_path / "data")
        folder = tmp_path / "data/downloads/camvid_indexed.unpacked"
        before = snapshot(folder)
        os.utime(next((tmp_path / "data/downloads").glob("camvid*.tgz")), (1, 1))
        shutil.rmtree(tmp_path / "data/inlier")
        fill(self.config(items=["camvid"], keep_unpacked=True), tmp_path / "data")
        times = [{name: one[0] for name, one in found.items()} for found in (before, snapshot(folder))]
        assert times[0].keys() == times[1].keys()
        assert all(times[0][name] < times[1][name] for name in times[0])  # numbers of files are used again

    def test_another_registry_under_the_same_name_is_noticed(self, published, mini, tmp_path):
        own = tmp_path / "own.yaml"
        own.write_text("items: {}")
        asked = self.config(items=["camvid"], file=str(own))
        states = []
        for text in ("items: {}", "items: {}", "items: {}  # another digest"):
            own.write_text(text)
            fill(asked, tmp_path / "data")
            states.append(snapshot(tmp_path / "data/inlier"))
        assert states[0] == states[1] != states[2]

    def test_kept_archives_are_not_unpacked_again(self, published, mini, tmp_path):
        fill(self.config(items=["camvid"], keep_unpacked=True), tmp_path / "data")
        folder = tmp_path / "data/downloads/camvid_indexed.unpacked"
        before = snapshot(folder)
        shutil.rmtree(tmp_path / "data/inlier")
        fill(self.config(items=["camvid"], keep_unpacked=True), tmp_path / "data")
        assert {name: one[:2] for name, one in snapshot(folder).items()} == {
            n: o[:2] for n, o in before.items()
        }

    def test_without_network_one_screen_says_what_is_missing(self, tmp_path):
        started = time.monotonic()
        with pytest.raises(DataError) as caught:
            fill(DataConfig(source="registry", registry={"offline": True}), tmp_path / "data")
        assert time.monotonic() - started < 30
        text = str(caught.value)
        for name in PAPER_ITEMS:
            assert f"  {name} (" in text
        assert "vocab.txt and model.safetensors into FOLDER/bert_base_uncased/" in " ".join(text.split())
        for words in (
            "11.2 GB",
            "19.6 GB",
            "register on the web site",
            "cityscapes-dataset.com/downloads",
            "from_dir",
        ):
            assert words in text
        assert len(text.splitlines()) <= 40
        assert all(len(line) <= 100 or "https://" in line for line in text.splitlines())
        assert not (tmp_path / "data/inlier").exists()

    def test_only_what_is_missing_is_listed(self, published, mini, tmp_path):
        (published / "rev3.pth").unlink()
        with pytest.raises(DataError) as caught:
            fill(self.config(), tmp_path / "data")
        assert "1 item cannot be had" in str(caught.value)
        assert "rpl_corocl" in str(caught.value)
        assert "Not missing: cityscapes" in str(caught.value)

    @pytest.mark.parametrize("columns", [72, 80])
    def test_the_screen_fits_the_terminal(self, tmp_path, monkeypatch, columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(DataError) as caught:
            fill(DataConfig(source="registry", registry={"offline": True}), tmp_path / "data")
        long = [line.strip() for line in caught.value.cause.splitlines() if len(line) > columns]
        assert all(" " not in line and line.startswith(("http://", "https://")) for line in long)

    def test_a_web_page_saved_as_an_archive_is_seen_before_anything_is_downloaded(
        self, shelf, published, tmp_path
    ):
        registry = miniature.miniature_registry(shelf.address)
        pages = [
            shelf.put(f"/{registry.files[file].name}", content)
            for file, content in miniature.published_files().items()
        ]
        for path in published.iterdir():
            if path.name != "gtFine_trainvaltest.zip":
                path.unlink()
        (published / "gtFine_trainvaltest.zip").write_text("<!DOCTYPE html><html>Please log in</html>")
        with pytest.raises(DataError) as caught:
            acquire(RegistryConfig(from_dir="hand", downloads="store"), tmp_path / "out", registry)
        words = " ".join(str(caught.value).split())
        assert "hand/gtFine_trainvaltest.zip is no data but a web page" in words
        assert not any(page.requests for page in pages)

    def test_an_unpacked_set_that_is_half_there_is_named_with_what_it_lacks(self, mini, tmp_path):
        root = tmp_path / "hand/cityscapes"
        miniature.write_unpacked(root, miniature.cityscapes_images())
        miniature.write_unpacked(root, miniature.cityscapes_labels())
        next(root.rglob("gtFine/train/*/*_labelIds.png")).unlink()
        with pytest.raises(DataError) as caught:
            fill(self.config(items=["cityscapes"]), tmp_path / "data")
        words = " ".join(str(caught.value).split())
        assert "hand/cityscapes is not complete: 3 files match gtFine/train/*/*_gtFine_labelIds.png" in words
        assert "expected 4" in words

    @pytest.mark.parametrize("outer", ["", "Cityscapes"])
    def test_the_unpacked_set_itself_may_be_given(self, mini, tmp_path, outer):
        miniature.write_unpacked(tmp_path / "hand" / outer, miniature.cityscapes_images())
        miniature.write_unpacked(tmp_path / "hand" / outer, miniature.cityscapes_labels())
        counts = fill(self.config(items=["cityscapes"]), tmp_path / "data")
        assert counts["inlier/train"] == miniature.TRAIN

    def test_a_folder_of_the_name_with_nothing_of_the_set_is_not_called_incomplete(self, mini, tmp_path):
        (tmp_path / "hand/cityscapes").mkdir(parents=True)
        (tmp_path / "hand/cityscapes/notes.txt").write_text("to do")
        with pytest.raises(DataError, match="cityscapes") as caught:
            fill(self.config(items=["cityscapes"]), tmp_path / "data")
        assert "is not complete" not in str(caught.value)

    def test_a_folder_with_half_of_coco_is_not_taken_for_all_of_it(self, mini, tmp_path):
        miniature.write_unpacked(tmp_path / "hand", miniature.coco_annotations())
        with pytest.raises(DataError, match="coco_outliers"):
            fill(self.config(items=["coco_outliers"]), tmp_path / "data")
        miniature.write_unpacked(tmp_path / "hand", miniature.coco_images())
        assert fill(self.config(items=["coco_outliers"]), tmp_path / "data")["outliers"] == 3

    def test_a_folder_with_other_things_is_described(self, mini, tmp_path):
        (tmp_path / "hand/holiday").mkdir(parents=True)
        (tmp_path / "hand/leftImg8bit_trainvaltest (1).zip").write_bytes(b"PK")
        with pytest.raises(DataError) as caught:
            fill(self.config(items=["cityscapes"]), tmp_path / "data")
        words = " ".join(str(caught.value).split())
        assert "hand holds only holiday/, leftImg8bit_trainvaltest (1).zip, none of it" in words

    def test_the_hubs_files_are_taken_as_they_are_named_there(self, mini, tmp_path):
        files = {name: content for name, content in miniature.published_files().items() if "bert" in name}
        for file, content in files.items():
            path = tmp_path / "hand/bert_base_uncased" / mini.files[file].published
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        assert fill(self.config(items=["bert_base_uncased"]), tmp_path / "data") == {
            "weights/bert-base-uncased": 5
        }
        (tmp_path / "hand/bert_base_uncased/config.json").write_text("<html>404</html>")
        shutil.rmtree(tmp_path / "data")
        with pytest.raises(DataError, match="web page"):
            fill(self.config(items=["bert_base_uncased"]), tmp_path / "data")

    def test_nothing_is_downloaded_while_something_is_missing(self, shelf, tmp_path):
        registry = miniature.miniature_registry(shelf.address)
        pages = [
            shelf.put(f"/{registry.files[file].name}", content)
            for file, content in miniature.published_files().items()
        ]
        shelf.pages.pop("/rev3.pth")
        sources = load_registry().files["cityscapes_images"].sources
        by_hand = registry.files["rpl_corocl"].model_copy(update={"sources": sources})
        registry = registry.model_copy(update={"files": {**registry.files, "rpl_corocl": by_hand}})
        with pytest.raises(DataError, match="rpl_corocl"):
            acquire(RegistryConfig(downloads="store"), tmp_path / "out", registry)
        assert not any(page.requests for page in pages)

    def test_too_little_room_for_all_of_it_is_found_before_the_first_byte(self, shelf, tmp_path, monkeypatch):
        registry = miniature.miniature_registry(shelf.address, size=1_000_000, about=None)
        pages = [
            shelf.put(f"/{registry.files[file].name}", content)
            for file, content in miniature.published_files().items()
        ]
        files = [registry.files[one] for name in PAPER_ITEMS for one in registry.item(name).bundles[0]]
        unpacked = sum(file.archive for file in files) - len(registry.item("coco_outliers").pick)
        needed = 1_000_000 * (len(files) + unpacked)
        for free, enough in ((needed - 1, False), (needed, True)):
            usage = SimpleNamespace(free=free + RESERVE)
            monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
            config = RegistryConfig(downloads="store")
            with pytest.raises(DataError if enough else DiskError):
                acquire(config, tmp_path / "out", registry)
            assert any(page.requests for page in pages) == enough

    def test_what_an_interrupted_download_left_needs_no_room(self, tmp_path, monkeypatch):
        registry = miniature.miniature_registry(size=1000, about=None)
        store = store_of(RegistryConfig(downloads="store"))
        file, (one,) = registry.files["rpl_corocl"], registry.item("rpl_corocl").bundles[0]
        plans = [Plan("rpl_corocl", registry.item("rpl_corocl"), 0, {one: "online"})]
        store.folder.mkdir()
        store.path(file).with_name(f"{file.name}.part").write_bytes(bytes(400))
        for free, enough in ((600, True), (599, False)):
            usage = SimpleNamespace(free=free + RESERVE)
            monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
            if enough:
                require_room(registry, plans, store)
            else:
                with pytest.raises(DiskError):
                    require_room(registry, plans, store)

    def test_servers_are_asked_for_what_is_not_here_alone_and_never_offline(self, tmp_path, monkeypatch):
        asked: list[set[str]] = []
        monkeypatch.setattr(acquire_module, "unreachable", lambda found: asked.append(set(found)) or set())
        registry = miniature.miniature_registry("http://127.0.0.1:9")
        miniature.write_published(tmp_path / "hand", {"rpl_corocl"})
        store = store_of(RegistryConfig(downloads="store", from_dir="hand"))
        store.get(registry.files["rpl_corocl"])
        wanted = ["rpl_corocl", "road_anomaly"]
        first, second = plan(registry, wanted, store)
        assert (set(first.files.values()), set(second.files.values())) == ({"here"}, {"online"})
        assert asked == [{f"http://127.0.0.1:9/{registry.files['road_anomaly'].name}"}]
        assert set(plan(registry, wanted, store, offline=True)[1].files.values()) == {"missing"}
        assert len(asked) == 1

    def test_a_path_on_this_machine_is_no_network(self, tmp_path):
        content = miniature.published_files()["rpl_corocl"]
        (tmp_path / "share.pth").write_bytes(content)
        registry = miniature.miniature_registry()
        file = registry.files["rpl_corocl"].model_copy(update={"sources": [Source(path="share.pth")]})
        registry = registry.model_copy(update={"files": {**registry.files, "rpl_corocl": file}})
        config = RegistryConfig(items=["rpl_corocl"], downloads="store", offline=True)
        acquire(config, tmp_path / "out", registry)
        assert (tmp_path / "out/weights" / file.name).read_bytes() == content

    def test_half_of_a_set_that_is_here_is_no_reason_to_get_the_other_half(self, shelf, tmp_path):
        """CamVid in one file is the first choice, and two files of which one is here are no less to get."""
        miniature.write_published(tmp_path / "hand", {"camvid_images"})
        store = store_of(RegistryConfig(downloads="store", from_dir="hand"))
        (one,) = plan(miniature.miniature_registry(shelf.address), ["camvid"], store)
        assert one.files == {"camvid_indexed": "online"}

    def test_an_archive_from_which_members_are_picked_is_not_unpacked(self, published, mini, tmp_path):
        fill(self.config(items=["coco_outliers"], keep_unpacked=True), tmp_path / "data")
        unpacked = {path.name for path in (tmp_path / "data/downloads").glob("*.unpacked")}
        assert unpacked == {"coco_annotations.unpacked"}

    def test_what_is_kept_unpacked_needs_no_room(self, published, tmp_path):
        registry = miniature.miniature_registry(about=10**18)
        store = store_of(RegistryConfig(from_dir="hand", downloads="store"))
        plans = plan(registry, ["camvid"], store, offline=True)
        with pytest.raises(DiskError):
            require_room(registry, plans, store)
        (tmp_path / "store/camvid_indexed.unpacked").mkdir(parents=True)
        require_room(registry, plans, store)

    def test_everything_over_http(self, shelf, tmp_path):
        registry = miniature.miniature_registry(shelf.address)
        for file, content in miniature.published_files().items():
            cuts = [len(content) // 2] if file == "cityscapes_images" else []
            shelf.put(f"/{registry.files[file].name}", content, cuts=cuts)
        counts = acquire(RegistryConfig(downloads="store"), tmp_path / "out", registry)
        assert counts["inlier/train"] == miniature.TRAIN
        assert counts["weights/bert-base-uncased"] == 5

    @pytest.mark.parametrize("offline", [True, False])
    def test_a_set_with_two_forms_is_taken_in_the_form_that_is_here(self, shelf, tmp_path, offline):
        miniature.write_published(tmp_path / "hand", {"camvid_images", "camvid_labels"})
        config = RegistryConfig(items=["camvid"], from_dir="hand")
        (one,) = plan(miniature.miniature_registry(shelf.address), ["camvid"], store_of(config), offline)
        assert one.bundle == 1
        assert set(one.files.values()) == {"by hand"}

    def test_a_run_killed_while_it_removes_what_it_unpacked_leaves_no_half_that_passes_for_all(
        self, published, mini, tmp_path, monkeypatch
    ):
        def killed(folder: Path) -> None:
            for path in sorted(folder.rglob("0016E5*")):
                path.unlink()
            if folder.is_dir():
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(acquire_module, "remove_tree", killed)
            with pytest.raises(KeyboardInterrupt):
                fill(self.config(items=["camvid"]), tmp_path / "data")
        assert list((tmp_path / "data/downloads").glob("*.unpacked"))
        assert fill(self.config(items=["camvid"]), tmp_path / "data") == {"inlier/train": 3, "inlier/val": 2}

    def test_two_items_that_give_the_same_set_are_refused(self, published, mini, tmp_path):
        with pytest.raises(DataError, match="given by two items"):
            fill(self.config(items=["s2m_val", "road_anomaly"]), tmp_path / "data")

    def test_a_failing_item_leaves_the_earlier_outputs(self, published, mini, tmp_path):
        fill(self.config(items=["camvid"]), tmp_path / "data")
        before = snapshot(tmp_path / "data/inlier")
        (published / "gtFine_trainvaltest.zip").write_bytes(b"PK\x05\x06" + bytes(18))
        with pytest.raises(DataError):
            fill(self.config(items=["cityscapes"]), tmp_path / "data")
        assert snapshot(tmp_path / "data/inlier") == before


def test_a_folder_that_cannot_be_put_in_place_leaves_the_one_before(tmp_path, monkeypatch):
    (tmp_path / "inlier").mkdir()
    (tmp_path / "inlier/old").write_text("old")
    original = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if ".parts." in str(self):
            raise OSError(errno.EBUSY, "busy")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="busy"), staged_parts(tmp_path, ["inlier"]) as staging:
        (staging / "inlier/new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["inlier", "old"]


@pytest.mark.parametrize("there", [True, False])
def test_an_output_that_is_a_link_is_replaced_and_what_it_led_to_stays(tmp_path, there):
    elsewhere, root = tmp_path / "disk", tmp_path / "data"
    root.mkdir()
    if there:
        elsewhere.mkdir()
        (elsewhere / "old").write_text("old")
    (root / "inlier").symlink_to(elsewhere, target_is_directory=True)
    with staged_parts(root, ["inlier"]) as staging:
        (staging / "inlier/new").write_text("new")
    assert [path.name for path in root.rglob("*")] == ["inlier", "new"]
    assert not there or (elsewhere / "old").read_text() == "old"


def test_an_output_that_is_a_file_is_refused_before_any_work(own, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/val").write_text("notes")
    with pytest.raises(DataError, match=r"val: is a file where a folder is needed"):
        fill(folder_config(own), tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").rglob("*") if "lock" not in path.name] == ["val"]
    assert (tmp_path / "data/val").read_text() == "notes"


def test_folders_begin_empty_whatever_a_killed_run_left(tmp_path):
    for left in (".work.0123456789ab.staging", "scratch", "work"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "left").write_text("left")
    with scratch_folder(tmp_path / "scratch") as folder:
        assert not list(folder.iterdir())
    with staged_folder(tmp_path / "work") as folder:
        assert [path.name for path in tmp_path.iterdir() if path != folder] == ["work"]
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["work", "new"]


def test_other_bytes_of_the_same_size_and_time_are_another_file(tmp_path):
    for folder in ("work", "into"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_text(folder)
        os.utime(tmp_path / folder / "a", (1, 1))
    with pytest.raises(DataError, match="holds 1 other files"):
        merge_tree(tmp_path / "work", tmp_path / "into")
    assert (tmp_path / "into/a").read_text() == "into"


def test_a_file_in_the_place_of_a_folder_lets_nothing_be_moved(tmp_path):
    for name in ("work/a", "work/val/set/b", "into/val"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.raises(DataError, match="holds 1 other files under the same names: val"):
        merge_tree(tmp_path / "work", tmp_path / "into")
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["val"]


@pytest.mark.parametrize("into", ["file", "file/below"])
def test_items_are_not_laid_out_below_a_file(tmp_path, into):
    (tmp_path / "file").write_text("")
    config = RegistryConfig(downloads=str(tmp_path / "store"), offline=True)
    with pytest.raises(ConfigError, match="--into: .*file is a file"):
        fetch_items(miniature.miniature_registry(), ["camvid"], config, into=tmp_path / into)
    assert not (tmp_path / "store").exists()


class TestLock:
    def test_a_second_run_is_told_who_holds_the_lock(self, own, tmp_path, monkeypatch):
        monkeypatch.setattr(locking, "WAIT", 0.1)
        with exclusive(tmp_path / "data/.download.lock"), pytest.raises(DataError) as caught:
            fill(folder_config(own), tmp_path / "data")
        assert f"process {os.getpid()} on " in str(caught.value)

    def test_the_lock_of_a_killed_process_is_free(self, tmp_path):
        lock = tmp_path / "lock"
        code = (
            "import sys, time\nfrom pathlib import Path\nfrom anomdino.io.locking import exclusive\n"
            "with exclusive(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
        )
        root = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True, cwd=root
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=f"process {process.pid} on"), exclusive(lock, wait=0.1):
            pass
        process.kill()
        process.wait()
        process.stdout.close()
        with exclusive(lock, wait=1):
            pass

    def test_a_waiting_run_goes_on_when_the_lock_is_free(self, tmp_path):
        lock = tmp_path / "lock"
        entered = threading.Event()
        ready = threading.Event()

        def hold() -> None:
            with exclusive(lock):
                ready.set()
                entered.wait(0.3)

        thread = threading.Thread(target=hold)
        thread.start()
        ready.wait()
        with exclusive(lock, wait=5):
            pass
        thread.join()


def test_the_schema_names_the_registered_items():
    assert set(load_registry().items) == set(
        RegistryConfig.model_fields["items"].annotation.__args__[0].__args__
    )


@pytest.mark.parametrize("mirror", ["example.org/x", "ftp://example.org/x", "http://host:port", "http://"])
def test_a_mirror_that_is_no_address_is_refused(mirror):
    with pytest.raises(ValidationError, match="mirror"):
        RegistryConfig(mirror=mirror)
    assert RegistryConfig(mirror="https://example.org:8080/x").mirror


def test_a_store_has_the_mirror_and_the_patience_of_its_parameters():
    store = store_of(RegistryConfig(mirror="https://example.org/x", time_limit=5))
    assert (store.mirror, store.patience.total) == ("https://example.org/x", 5)


def test_two_files_of_one_name_are_refused():
    registry = miniature.miniature_registry().model_dump()
    registry["files"]["another"] = registry["files"]["camvid_indexed"]
    with pytest.raises(ValidationError, match="same name"):
        Registry.model_validate(registry)


def test_the_folder_of_downloads_may_be_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_of(RegistryConfig(downloads="~/kept")).folder == tmp_path / "kept"
    (tmp_path / "r.yaml").write_text("files: {}\nitems: {}\n")
    assert load_registry("~/r.yaml").items == {}


@pytest.mark.parametrize("name", ["../camvid", "/tmp/camvid", ".hidden", ""])
def test_a_registrys_files_stay_in_the_folder_of_downloads(name):
    """An archive is unpacked, and removed, under its id."""
    registry = miniature.miniature_registry().model_dump()
    registry["files"][name] = registry["files"]["camvid_indexed"] | {"name": "other.zip"}
    with pytest.raises(ValidationError, match="files"):
        Registry.model_validate(registry)


@pytest.mark.parametrize("change", [{"bundles": [[]]}, {"bundles": []}, {"pick": ["nothing"]}])
def test_a_registry_whose_item_has_no_file_is_refused(change):
    registry = miniature.miniature_registry().model_dump()
    registry["items"]["camvid"] |= change
    with pytest.raises(ValidationError):
        Registry.model_validate(registry)


def test_an_unknown_way_to_normalise_is_refused_before_anything_is_had(tmp_path):
    registry = miniature.miniature_registry()
    item = registry.item("camvid").model_copy(update={"normalise": "camvit"})
    registry = registry.model_copy(update={"items": {"camvid": item}})
    config = RegistryConfig(items=["camvid"], downloads=str(tmp_path / "store"), offline=True)
    with pytest.raises(ConfigError, match=r"items\.camvid\.normalise: 'camvit' is unknown"):
        acquire(config, tmp_path / "out", registry)


def test_unknown_items_are_refused():
    with pytest.raises(ConfigError, match="'nothing' is unknown"):
        load_registry().item("nothing")


def test_a_damaged_registry_file_is_refused(tmp_path):
    for number, text in enumerate((b"files: {}\nitems: {a: 1}\n", b"files: [", b"a: 1\na: 1\n", b"\xff\xfe")):
        (tmp_path / f"{number}.yaml").write_bytes(text)
        with pytest.raises(ConfigError, match=f"{number}.yaml: is no registry"):
            load_registry(tmp_path / f"{number}.yaml")
        own = {"file": str(tmp_path / f"{number}.yaml"), "offline": True}
        with pytest.raises(ConfigError, match=f"{number}.yaml: is no registry"):
            fill(DataConfig(source="registry", registry=own), tmp_path / "data")
    with pytest.raises(ConfigError):
        load_registry(tmp_path / "absent.yaml")
