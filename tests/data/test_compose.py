"""The composed set: labels, annotations, split, determinism, resumption."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from anomdino.config.compose import ComposeConfig
from anomdino.data import compose as module
from anomdino.data.compose import compose, objects_of_part, paste_rules, plan_items
from anomdino.data.mixing import OUTLIER, PasteRules
from anomdino.detector.records import read_records
from anomdino.errors import DataError, ProtocolError
from anomdino.io import locking
from anomdino.io.boxes import Boxes, image_id, write_box_results
from anomdino.io.locking import exclusive
from anomdino.protocol import MARKER, mark_evaluation_only

HEIGHT, WIDTH = 64, 96
FOLDERS = ("offline_dataset", "offline_dataset_label")


@pytest.fixture
def sources(tmp_path):
    """Six scenes (road below, sky above, void foot) and five objects."""
    rng = np.random.default_rng(0)
    for folder in ("inlier/images", "inlier/labels", "outliers/images", "outliers/masks"):
        (tmp_path / folder).mkdir(parents=True)
    for index in range(6):
        label = np.full((HEIGHT, WIDTH), 10, np.uint8)
        label[24:] = 0
        label[60:] = 255
        save(
            tmp_path / f"inlier/images/s{index}.png",
            rng.integers(60, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        )
        save(tmp_path / f"inlier/labels/s{index}.png", label)
    for index in range(5):
        mask = np.zeros((40, 40), np.uint8)
        mask[5:35, 8 : 30 - index] = 255
        image = rng.integers(150, 255, (40, 40, 3), dtype=np.uint8)
        save(tmp_path / f"outliers/images/o{index}.png", image)
        save(tmp_path / f"outliers/masks/o{index}.png", mask)
    return tmp_path


def save(path, array):
    Image.fromarray(array).save(path)


def run(sources, out="out", seed=3, **changes):
    settings = {"count": 14, "workers": 1, "objects_min": 1, "objects_max": 3, **changes}
    return compose(ComposeConfig(**settings), seed, sources / "inlier", sources / "outliers", sources / out)


def tree(root):
    """Digest of every file below a folder."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def plane(path):
    return np.array(Image.open(path))


def slow_components(mask):
    """Boxes of 8-connected components by flood fill."""
    todo, boxes = {tuple(p) for p in np.argwhere(mask).tolist()}, []
    while todo:
        stack = [todo.pop()]
        piece = list(stack)
        while stack:
            y, x = stack.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & todo
            todo -= near
            stack += near
            piece += near
        ys, xs = zip(*piece, strict=True)
        boxes.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return boxes


def test_files_labels_and_annotations_agree(sources):
    counts = run(sources, objects_max=1, empty=0.3, edges="hard")
    content = json.loads((sources / "out/ood.json").read_text())
    images = content["images"]
    assert counts["images"] == len(images) == 14
    assert content["categories"] == [{"id": 1, "name": "ood-object"}]
    assert len({image["id"] for image in images}) == 14
    empty = 0
    for image in images:
        found = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        pixels = plane(sources / "out/offline_dataset" / image["file_name"])
        label = plane(sources / "out/offline_dataset_label" / image["file_name"])
        assert pixels.shape == (image["height"], image["width"], 3) == (HEIGHT, WIDTH, 3)
        assert label.shape == (HEIGHT, WIDTH)
        assert set(np.unique(label).tolist()) <= {0, 1, 255}
        scene = plane(sources / f"inlier/labels/{image['source']}.png")
        assert ((label == 255) == ((scene == 255) & (label != 1))).all()
        boxes = slow_components(label == 1)
        empty += not boxes
        assert len(found) == len(boxes) <= 1
        for annotation, (x0, y0, x1, y1) in zip(found, boxes, strict=True):
            assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
            assert annotation["area"] == (label == 1).sum()
    assert counts["images_without_objects"] == empty > 0
    assert counts["objects"] == len(content["annotations"])


def test_pycocotools_reads_the_annotations(sources):
    coco = pytest.importorskip("pycocotools.coco")
    run(sources)
    found = coco.COCO(str(sources / "out/ood.json"))
    assert len(found.getImgIds()) == 14
    assert found.loadCats(1)[0]["name"] == "ood-object"


def test_files_of_boxes_are_coco_results_of_the_set(sources):
    """A detector that finds every object where it is has a recall of one, by COCO's own rule for whose box is whose."""
    coco, cocoeval = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    run(sources)
    folders = (sources / "out" / name for name in ("offline_dataset", "maps", "offline_dataset_label"))
    records = read_records(sources / "out/ood.json", *folders)
    assert [record.key for record in records] == [f"{number:05d}" for number in range(14)]
    boxes = {record.key: Boxes(record.boxes, np.full(len(record.boxes), 0.5)) for record in records}
    write_box_results(sources / "boxes.json", boxes, {record.key: record.size for record in records})
    truth = coco.COCO(str(sources / "out/ood.json"))
    assert list(truth.imgs) == [image_id(record.key) for record in records]
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(str(sources / "boxes.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval["recall"][:, 0, 0, -1].min() == 1.0


def test_soft_edges_leave_a_void_ring(sources):
    run(sources, objects_max=1, empty=0, edges="soft", scale="log_uniform", height_min=0.4, height_max=0.5)
    rings = 0
    for path in sorted((sources / "out/offline_dataset_label").iterdir()):
        label = plane(path)[:58]
        ys, xs = np.nonzero(label == 1)
        void = np.argwhere(label == 255)
        rings += len(void) > 0
        for y, x in void.tolist():
            assert np.hypot(ys - y, xs - x).min() < 6
    assert rings >= 12


def test_no_source_scene_is_in_both_parts(sources):
    run(sources)
    images = json.loads((sources / "out/ood.json").read_text())["images"]
    parts = {split: {i["source"] for i in images if i["split"] == split} for split in ("train", "val")}
    assert parts["train"]
    assert parts["val"]
    assert not parts["train"] & parts["val"]


def test_scenes_are_used_evenly():
    items = plan_items(ComposeConfig(count=20, val_fraction=0.25), 8, 0)
    uses = np.bincount([item.scene for item in items], minlength=8)
    assert uses.max() - uses.min() <= 1
    assert len({item.scene for item in items if item.split == "val"}) == 2
    seven = plan_items(ComposeConfig(count=20, val_fraction=0.25), 7, 0)
    assert len({item.scene for item in seven if item.split == "val"}) == 2  # 1.75


def test_the_held_out_part_is_neither_empty_nor_all():
    """However small its share of scenes, however small or large that of objects; one scene alone is for training."""
    for scenes, fraction, parts in ((3, 0.01, {"train", "val"}), (1, 0.5, {"train"})):
        config = ComposeConfig(count=20, val_fraction=fraction)
        assert {item.split for item in plan_items(config, scenes, 0)} == parts
    for fraction in (0.01, 0.99):
        config = ComposeConfig(val_fraction=fraction)
        assert {bool(objects_of_part(config, 6, 0, split)) for split in ("train", "val")} == {True}


def test_an_object_is_pasted_twice_only_where_there_are_too_few(sources, monkeypatch):
    given = []
    original = module.paste_objects

    def seen(scene, label, objects, *rest):
        given.append([id(image) for image, _ in objects])
        return original(scene, label, objects, *rest)

    monkeypatch.setattr(module, "paste_objects", seen)
    run(sources, objects_min=5, objects_max=5, empty=0, split_objects=False)
    assert {len(set(numbers)) for numbers in given} == {5}
    given.clear()
    run(sources, objects_min=6, objects_max=6, empty=0, split_objects=False)
    assert {len(numbers) for numbers in given} == {6}


def test_objects_are_pasted_by_the_parameters():
    config = ComposeConfig(
        scale="ground_row", height_min=0.1, height_max=0.3, ground_height_min=0.2, ground_height_max=0.9,
        edges="hard", match=0.4, jitter=0.15, shadow=0.7,
    )  # fmt: skip
    own = {
        "scale": "ground_row", "height": (0.1, 0.3), "ground_height": (0.2, 0.9), "edges": "hard",
        "match": (0.0, 0.4), "jitter": 0.15, "shadow": 0.7,
    }  # fmt: skip
    assert asdict(paste_rules(config)) == asdict(PasteRules()) | own


@pytest.mark.parametrize("objects", [1, 3, 4, 9])
def test_objects_of_the_parts_are_disjoint_where_there_are_enough(objects):
    config = ComposeConfig(val_fraction=0.3)
    train, val = (set(objects_of_part(config, objects, 0, split)) for split in ("train", "val"))
    assert train | val == set(range(objects))
    assert train
    assert val
    assert bool(train & val) == (objects < 4)
    shared = config.model_copy(update={"split_objects": False})
    assert objects_of_part(shared, objects, 0, "val") == tuple(range(objects))


def test_the_number_of_processes_changes_nothing(sources):
    run(sources, "one", workers=1)
    run(sources, "three", workers=3)
    assert tree(sources / "one") == tree(sources / "three")


def test_another_seed_gives_other_images(sources):
    run(sources, "one")
    run(sources, "two", seed=4)
    assert tree(sources / "one") != tree(sources / "two")


def test_fewer_images_are_the_first_of_more(sources):
    run(sources, "few", count=5)
    run(sources, "many", count=14)
    few, many = tree(sources / "few/offline_dataset"), tree(sources / "many/offline_dataset")
    assert few == {name: many[name] for name in few}


@pytest.fixture
def break_off(sources, monkeypatch):
    """Compose until the disk is full, with four images finished and the label of the fifth missing."""

    def broken(**changes):
        write, written = module.write_png, []

        def failing(path, *rest):
            written.append(path)
            if len(written) == 10:
                raise OSError(28, "No space left on device")
            write(path, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_png", failing)
            with pytest.raises(OSError, match="No space"):
                run(sources, "broken", **changes)
        return sources / "broken"

    return broken


def test_a_broken_off_run_is_taken_up_and_ends_the_same(sources, break_off):
    run(sources, "whole")
    assert not (break_off() / "ood.json").exists()
    counts = run(sources, "broken")
    assert counts["kept"] == 4
    assert tree(sources / "broken") == tree(sources / "whole")


def test_a_run_is_taken_up_by_another_number_of_processes(sources, break_off, monkeypatch):
    break_off()
    monkeypatch.setattr(module, "_in_processes", lambda work, items, _: [work(item) for item in items])
    assert run(sources, "broken", workers=2)["kept"] == 4


@pytest.mark.parametrize("others", [{"jitter": 0.2}, {"seed": 4}, {"count": 60}])
def test_other_parameters_do_not_take_up_a_broken_off_run(sources, break_off, others):
    run(sources, "whole")
    break_off(**others)
    assert run(sources, "broken")["kept"] == 0
    assert tree(sources / "broken") == tree(sources / "whole")


def test_a_source_that_was_written_again_is_composed_again(sources, break_off):
    run(sources, "whole")
    break_off()
    os.utime(sources / "outliers/masks/o3.png", ns=(0, 0))
    assert run(sources, "broken")["kept"] == 0


def test_masks_of_one_and_of_bytes_with_a_rim_say_what_is_object():
    for mask, expected in (([0, 1, 0], [0, 1, 0]), ([0, 127, 128, 255], [0, 0, 1, 1]), ([0, 0], [0, 0])):
        found = module.object_pixels(np.array([mask], np.uint8))
        np.testing.assert_array_equal(found, np.array([expected], bool))


def test_parts_of_a_group_touch_by_corners_and_count_from_a_hundredth_on():
    mask = np.zeros((12, 30), bool)
    mask[1:10, 1:12] = True  # 99 pixels
    mask[0, 20] = True  # one of 100
    assert module._objects_of_group(mask) == (
        [[1, 1, 12, 10], [20, 0, 21, 1]],
        [99, 1],
    )  # in the order of labels
    mask[10, 12] = True  # touches a corner of the large one
    assert module._objects_of_group(mask) == ([[1, 1, 13, 11]], [100])


def test_crops_lie_everywhere():
    image = np.arange(10 * 12 * 3, dtype=np.uint16).astype(np.uint8).reshape(10, 12, 3)
    label = np.arange(120, dtype=np.uint8).reshape(10, 12)
    rng = np.random.default_rng(0)
    corners = {int(module._random_crop(image, label, 8, rng)[1][0, 0]) for _ in range(300)}
    assert corners == {int(label[top, left]) for top in range(3) for left in range(5)}


def test_a_scene_smaller_than_the_crop_is_enlarged_as_it_is():
    """Twice as high and as wide: a ramp along its rows rises half as fast."""
    ramp = np.repeat(np.tile(np.arange(0, 200, 10, dtype=np.uint8), (10, 1))[..., None], 3, axis=2)
    image, label = module._random_crop(ramp, ramp[..., 0] // 10, 20, np.random.default_rng(0))
    assert image.shape == (20, 20, 3)
    assert np.diff(image[..., 0].astype(int), axis=1).mean() == pytest.approx(5, abs=0.5)
    assert set(np.unique(label).tolist()) <= set(range(20))


def test_what_was_damaged_since_a_run_broke_off_is_composed_again(sources, break_off):
    run(sources, "whole")
    broken = break_off()
    notes = sorted(finished(broken))
    notes[0].write_bytes(b"")
    notes[1].write_text('["no note"]')
    image, label = (broken / folder / f"{notes[2 + place].stem}.png" for place, folder in enumerate(FOLDERS))
    image.write_bytes(image.read_bytes()[:100])
    label.write_bytes(image.read_bytes())
    assert run(sources, "broken")["kept"] == 0
    assert tree(sources / "broken") == tree(sources / "whole")


def test_files_of_others_among_the_notes_do_not_stop_a_run(sources, break_off):
    run(sources, "whole")
    (break_off() / ".compose" / ".DS_Store").write_text("Finder was here")
    (sources / "broken/.compose/another run").mkdir()
    (sources / "broken/.compose/another run/thumbs.db").write_text("so was Explorer")
    assert run(sources, "broken")["kept"] == 4
    assert tree(sources / "broken") == tree(sources / "whole")


SCRIPT = """
import sys, time
from pathlib import Path
from anomdino.config.compose import ComposeConfig
from anomdino.data import compose as module
write = module.write_png
def slow(path, *rest):
    write(path, *rest)
    time.sleep(0.05)
module.write_png = slow
root = Path(sys.argv[1])
config = ComposeConfig(count=14, workers=1, objects_max=3)
module.compose(config, 3, root / "inlier", root / "outliers", root / "killed")
"""


def finished(out: Path) -> list[Path]:
    """Give the notes of finished images; one that is being written has a dot before its name."""
    return [note for note in out.glob(".compose/*/*.json") if not note.name.startswith(".")]


def test_a_killed_run_is_taken_up_and_ends_the_same(sources):
    run(sources, "whole")
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(sources)], env=environment)
    deadline = time.monotonic() + 60
    while len(finished(sources / "killed")) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (sources / "killed/ood.json").exists()
    assert run(sources, "killed")["kept"] >= 4
    assert visible(sources / "killed") == visible(sources / "whole")


def visible(folder):
    return {name: digest for name, digest in tree(folder).items() if not Path(name).name.startswith(".")}


def test_one_composes_at_a_time(sources, monkeypatch):
    monkeypatch.setattr(locking, "WAIT", 0.1)
    with exclusive(sources / "out/.compose.lock"), pytest.raises(DataError, match="is held by process"):
        run(sources, "out")
    assert run(sources, "out")["images"]


def test_evaluation_data_are_refused(sources):
    for part in ("inlier", "outliers"):
        mark_evaluation_only(sources / part)
        with pytest.raises(ProtocolError, match=rf"{part}.*evaluation data"):
            run(sources)
        (sources / part / MARKER).unlink()


def test_a_label_of_another_size_is_refused_with_both_sizes(sources):
    save(sources / "inlier/labels/s2.png", np.zeros((10, 12), np.uint8))
    with pytest.raises(DataError, match=r"\(10, 12\).*\(64, 96\)"):
        run(sources)


@pytest.mark.parametrize("value", [OUTLIER, 33])
def test_a_label_with_other_values_than_train_ids_is_refused(sources, value):
    """254 would be taken for an object that was pasted, and ids of another kind for no ground."""
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[:2, :3] = value
    save(sources / "inlier/labels/s2.png", label)
    with pytest.raises(DataError, match=rf"s2\.png: has label values that are not .*{{{value}: 6}}"):
        run(sources)


def test_a_missing_mask_is_named(sources):
    (sources / "outliers/masks/o1.png").unlink()
    with pytest.raises(DataError, match="o1"):
        run(sources)


def test_a_worker_that_dies_ends_the_stage(monkeypatch):
    class Dying:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def map(self, *_, **__):
            raise BrokenProcessPool

    monkeypatch.setattr(module, "ProcessPoolExecutor", Dying)
    with pytest.raises(DataError, match="worker process died"):
        module._in_processes(lambda item: {}, [], 2)


def test_the_published_rule_gives_square_crops_and_a_box_for_each_part(sources):
    for index in range(5):
        mask = np.zeros((40, 40), np.uint8)
        mask[4:30, 3 : 14 - index] = 255
        mask[10:36, 20:38] = 255
        mask[2, 30] = 255  # a splinter
        save(sources / f"outliers/masks/o{index}.png", mask)
    run(sources, rule="rpl", size=48, empty=0.2, count=30)
    content = json.loads((sources / "out/ood.json").read_text())
    several, splinters = 0, 0
    for image in content["images"]:
        label = plane(sources / "out/offline_dataset_label" / image["file_name"])
        assert label.shape == (48, 48)
        total = int((label == 1).sum())
        parts = {}
        for x0, y0, x1, y1 in slow_components(label == 1):
            parts[x0, y0, x1 - x0, y1 - y0] = int((label[y0:y1, x0:x1] == 1).sum())
        kept = {box: area for box, area in parts.items() if area >= total / 100}
        found = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert {tuple(a["bbox"]): a["area"] for a in found} == kept
        assert len(found) == len(kept)
        several += len(kept) > 1
        splinters += len(parts) > len(kept)
    assert several >= 5
    assert splinters >= 1


@pytest.mark.parametrize("rule", ["rpl", "improved"])
def test_images_without_objects_have_none(sources, rule):
    counts = run(sources, rule=rule, size=40, empty=1.0, count=4)
    assert counts["images_without_objects"] == 4
    assert not any((plane(path) == 1).any() for path in (sources / "out/offline_dataset_label").glob("*.png"))


def test_crops_have_the_size_asked_for(sources):
    run(sources, size=40, count=4)
    run(sources, "large", size=80, count=4)
    assert {plane(p).shape for p in (sources / "out/offline_dataset").iterdir()} == {(40, 40, 3)}
    assert {plane(p).shape for p in (sources / "large/offline_dataset").iterdir()} == {(80, 80, 3)}


def test_objects_that_never_fit_stop_the_stage(sources):
    for path in (sources / "outliers/masks").iterdir():
        save(path, np.zeros((40, 40), np.uint8))
    with pytest.raises(DataError, match="none of its 5 objects found a place in any of 14 images"):
        run(sources)
    assert not (sources / "out" / "ood.json").exists()


def test_enlarged_scenes_keep_their_content_and_take_smaller_objects(sources):
    run(sources, "plain", empty=1.0)
    run(sources, "large", empty=1.0, enlarge=2.5)
    for item in range(14):
        plain, large = (
            [np.array(Image.open(sources / out / folder / f"{item:05d}.png")) for folder in FOLDERS]
            for out in ("plain", "large")
        )
        assert large[0].shape == (160, 240, 3)
        assert large[1].shape == (160, 240)
        rows, columns = (np.arange(side) * 2 // 5 for side in large[1].shape)
        assert np.array_equal(large[1], plain[1][np.ix_(rows, columns)])  # labels: nearest neighbour
        assert abs(large[0].astype(float).mean() - plain[0].mean()) < 0.5

    smallest = {}
    for factor in (1, 4):
        out = f"small{factor}"
        run(sources, out, enlarge=factor, scale="log_uniform", height_min=0.05, height_max=0.06, empty=0.0)
        content = json.loads((sources / out / "ood.json").read_text())
        sides = [annotation["bbox"][3] / (HEIGHT * factor) for annotation in content["annotations"]]
        smallest[factor] = min(sides)
    assert smallest[4] < 0.06 < smallest[1]  # 3 pixels are too few to paste, 12 are not


@pytest.mark.parametrize("factor", [0.5, 0, 9, "two"])
def test_factors_out_of_range_are_refused(factor):
    with pytest.raises(ValidationError, match="enlarge"):
        ComposeConfig(enlarge=factor)
