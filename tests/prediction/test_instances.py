"""The COCO file of what was found, read by pycocotools."""

import contextlib
import errno
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy import ndimage

from anomdino.errors import DiskError
from anomdino.io.boxes import image_id
from anomdino.prediction.instances import InstanceFile


def loaded(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_pycocotools_gives_back_every_component_with_its_place_and_mean_score(tmp_path):
    rng = np.random.default_rng(0)
    photos = {"a/one": (rng.random((37, 53)) < 0.3, ".png"), "b.jpg": (rng.random((20, 31)) < 0.1, ".jpg")}
    photos["a/one"][0][0, 0] = photos["b.jpg"][0][-1, -1] = True  # first and last pixel
    scores = {key: rng.normal(size=mask.shape).astype(np.float32) for key, (mask, _) in photos.items()}
    file = InstanceFile(tmp_path / "out" / "instances.json")
    for key, (mask, suffix) in photos.items():
        file.add(key, Path(f"photo{suffix}"), mask, scores[key])
    file.write()
    read = loaded(tmp_path / "out" / "instances.json")
    assert [image["file_name"] for image in read.dataset["images"]] == ["a/one.png", "b.jpg"]
    assert len({one["id"] for one in read.dataset["annotations"]}) == len(read.dataset["annotations"])
    for key, (mask, _) in photos.items():
        parts, count = ndimage.label(mask, np.ones((3, 3)))
        found = read.loadAnns(read.getAnnIds(imgIds=[image_id(key)]))
        assert len(found) == count > 1
        for annotation in found:
            one = read.annToMask(annotation).astype(bool)
            (number,) = np.unique(parts[one])
            np.testing.assert_array_equal(one, parts == number)
            rows, columns = np.nonzero(one)
            x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
            assert annotation["area"] == one.sum()
            assert annotation["score"] == pytest.approx(scores[key][one].mean(), abs=1e-6)


def test_a_full_folder_of_temporary_files_is_named(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a file does, without its name

    file = InstanceFile(tmp_path / "instances.json")
    monkeypatch.setattr(file._annotations, "writelines", full)
    with pytest.raises(DiskError, match=f"{tempfile.gettempdir()}: the disk is full"):
        file.add("a", Path("a.png"), np.ones((4, 6), bool), np.ones((4, 6), np.float32))


def test_photos_without_an_anomaly_are_there_and_no_photo_is_a_file_too(tmp_path):
    file = InstanceFile(tmp_path / "none.json")
    file.write()
    assert json.loads((tmp_path / "none.json").read_text())["images"] == []
    file = InstanceFile(tmp_path / "clean.json")
    file.add("clean", Path("clean.png"), np.zeros((4, 6), bool), np.zeros((4, 6), np.float32))
    file.add("no\udcff", Path("no\udcff.png"), np.zeros((4, 6), bool), np.zeros((4, 6), np.float32))
    file.write()
    read = loaded(tmp_path / "clean.json")
    assert read.dataset["annotations"] == []
    assert read.dataset["images"] == [
        {"id": image_id(key), "file_name": f"{key}.png", "height": 4, "width": 6}
        for key in ("clean", "no\udcff")
    ]
    assert len(read.getImgIds()) == 2
