"""Photos and boxes as COCO has them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from anomdino.adt.fusion import FusionRule
from anomdino.io.boxes import Boxes, read_box_results
from anomdino.io.images import write_png
from anomdino.prediction.inputs import collect
from anomdino.prediction.run import predict_all
from anomdino.prediction.writing import PredictionWriter

BOXES = {"a": [[1.5, 2, 11.25, 7]], "b/c ü": [[0, 0, 3, 4], [5, 5, 6.1, 9]], "none": []}


class Finds:
    """Finds the boxes of a photo by its name."""

    def predict(self, image, name):
        boxes = BOXES[Path(name).relative_to(self.folder).with_suffix("").as_posix()]
        found = Boxes(np.array(boxes, np.float32), np.linspace(0.5, 0.25, len(boxes)))
        score = np.zeros(image.shape[:2], np.float32)
        return SimpleNamespace(score=score, mask=score > 1, boxes=found)


@pytest.fixture
def out(tmp_path):
    finds = Finds()
    finds.folder = tmp_path / "photos"
    for key in BOXES:
        write_png(finds.folder / f"{key}.png", np.zeros((20, 30, 3), np.uint8))
    writer = PredictionWriter(tmp_path / "out", FusionRule(), overlay=False)
    predict_all(finds, collect([str(finds.folder)]), writer, max_pixels=10_000)
    return tmp_path / "out"


def test_pycocotools_reads_it(out):
    coco = pytest.importorskip("pycocotools.coco").COCO(str(out / "coco.json"))
    names = {image["file_name"]: image for image in coco.dataset["images"]}
    assert sorted(names) == ["a.png", "b/c ü.png", "none.png"]
    assert (names["a.png"]["height"], names["a.png"]["width"]) == (20, 30)
    (found,) = coco.loadAnns(coco.getAnnIds(imgIds=names["a.png"]["id"]))
    assert (found["bbox"], found["area"], found["score"]) == ([1.5, 2.0, 9.75, 5.0], 48.75, 0.5)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["ood-object"]


def test_it_is_what_fuse_takes_for_boxes(out):
    found = read_box_results(out / "coco.json", BOXES)
    for key, boxes in BOXES.items():
        np.testing.assert_allclose(found[key].xyxy, np.reshape(boxes, (-1, 4)), atol=1e-5)


def test_that_of_a_run_before_goes(out):
    text = json.loads((out / "coco.json").read_text())
    assert [one["id"] for one in text["annotations"]] == [1, 2, 3]  # pycocotools takes 0 for none
    (out / "bad.png").write_text("no image")
    predict_all(Finds(), collect([str(out / "bad.png")]), PredictionWriter(out, FusionRule()), max_pixels=9)
    assert not (out / "coco.json").exists()
