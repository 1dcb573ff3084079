"""`benchmarks/tracking.py`: the drives that it makes of photos, and what it counts, by hand."""

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tracking.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("tracking_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def drive(script):
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 255, (108 // step, 192 // step, 3), dtype=np.uint8) for step in (2, 6)]
    photo = sum(cv2.resize(one, (1920, 1080), interpolation=cv2.INTER_CUBIC) // 2 for one in coarse)
    numbers = np.zeros((1080, 1920), np.int32)
    numbers[500:560, 1000:1080], numbers[:300] = 1, -1
    return script.Drive(photo, numbers, 0.5)


def test_pictures_and_labels_of_a_drive_go_together(script, drive):
    drive.photo[500:560, 1000:1080] = (255, 0, 0)
    sides = []
    for index in (0, 45, 90):
        label, picture = drive.label(index), drive.picture(index)
        assert (label.shape, picture.shape) == ((720, 1280), (720, 1280, 3))
        inside = cv2.erode((label == 1).astype(np.uint8), np.ones((5, 5))) > 0
        assert (picture[inside] == (255, 0, 0)).all()
        columns = np.nonzero(label == 1)[1]
        sides.append(columns.max() - columns.min() + 1)
    assert (drive.label(0) == -1).mean() == pytest.approx(
        0.27, abs=0.03
    )  # 300 of 1080 rows, seen from nearer
    assert sides[0] == pytest.approx(80 * 1280 / 1920 / 0.94, abs=1.5)
    assert sides[2] / sides[0] == pytest.approx(1 / 0.45, rel=0.03)
    assert sides[1] / sides[0] == pytest.approx(1 / 0.45**0.5, rel=0.03)  # as steady as a drive


def looks(script, *found, truth=True):
    boxes = [[100.0 + 90 * step, 100, 160 + 90 * step, 150] for step in range(len(found))]
    return [
        script.Look(15 * step, {"1": box} if truth else {}, [box] if there else [])
        for step, (box, there) in enumerate(zip(boxes, found, strict=True))
    ]


def test_what_is_counted(script, drive):
    tally = script.Tally()
    script.follow(
        drive, looks(script, True, True, False, True), "nowhere", tally
    )  # 90 columns a look: all are new
    assert (tally.objects, tally.found, tally.tracks, tally.switches) == (1, 1, 3, 2)
    assert tally.idf1 == pytest.approx(2 * 1 / (4 + 3))
    assert (tally.seen, tally.false) == ([1, 0, 0], [0, 0, 0])
    script.follow(drive, looks(script, True, False, True, truth=False), "nowhere", tally)
    assert (tally.objects, tally.seen, tally.false) == (1, [1, 0, 0], [2, 0, 0])
    assert tally.idf1 == pytest.approx(2 * 1 / (4 + 3 + 2))


def test_one_number_all_along(script, drive):
    tally, box = script.Tally(), [100.0, 100, 160, 150]
    still = [script.Look(15 * step, {"1": box, "2": [600.0, 300, 700, 400]}, [box]) for step in range(3)]
    script.follow(drive, still, "nowhere", tally)
    assert (tally.objects, tally.found, tally.tracks, tally.switches) == (2, 1, 1, 0)
    assert tally.idf1 == pytest.approx(2 * 3 / (6 + 3))
    assert (tally.seen, tally.false) == ([1, 1, 1], [0, 0, 0])


def test_frames_between_looks_are_shown_where_that_is_asked_for(script, drive):
    first, second = (np.argwhere(drive.label(index) == 1) for index in (0, 15))
    boxes = [[*map(float, (*here.min(0)[::-1], *(here.max(0)[::-1] + 1)))] for here in (first, second)]
    seen = [script.Look(15 * step, {"1": box}, [box]) for step, box in enumerate(boxes)]
    tally = script.Tally()
    script.follow(drive, seen, "through all frames", tally)
    assert (tally.passed, tally.tracks) == (14, 1)
    assert tally.seconds > 0
