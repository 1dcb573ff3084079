"""The objects of a video: lines, pictures, page."""

import io
import json
import re
from html import unescape
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
import pytest

from anomdino.errors import DiskError
from anomdino.io.video import Frame
from anomdino.prediction import objects as module
from anomdino.prediction.objects import ObjectLog, logging_objects, remove_objects, told_of
from anomdino.tracking.objects import FrameObjects
from anomdino.tracking.tracker import Track

IMAGE = np.full((120, 160, 3), 120, np.uint8)
MASK = np.zeros((120, 160), bool)
MASK[40:60, 50:80] = True


def told(number, box=(50, 40, 80, 60), score=1.0, pixels=600, look=1):
    return {"id": number, "xyxy": list(box), "score": score, "pixels": pixels, "look": look}


def track(number, looks=1):
    return Track(number, np.zeros(4), looks)


def frame(index):
    return Frame(index, index / 10, IMAGE)


def add(log, index, *told_):
    log.add(frame(index), MASK, list(told_))


def written(lines):
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_what_is_told_of_the_objects_of_a_frame():
    xyxy = np.array([[1, 2, 5, 9], [0, 0, 3, 4]], np.float32)
    inside = FrameObjects(xyxy, np.array([0.123456, 2], np.float32), np.array([20, 7]))
    assert told_of(inside, [track(7, 3), track(2)]) == [
        {"id": 7, "xyxy": [1, 2, 5, 9], "score": 0.1235, "pixels": 20, "look": 3},
        {"id": 2, "xyxy": [0, 0, 3, 4], "score": 2.0, "pixels": 7, "look": 1},
    ]


def test_an_object_is_written_when_it_is_gone():
    lines = io.StringIO()
    log = ObjectLog(lines, None, "drive")
    for index, pixels in enumerate((10, 30, 20)):
        add(log, 5 * index, told(4, pixels=pixels, score=0.5 + index, look=index + 1))
        log.close([track(4)])
    assert written(lines) == []
    add(log, 20, told(9))
    log.close([track(9)])
    assert written(lines) == [
        {
            "id": 4,
            "first": 0.0,
            "last": 1.0,
            "frames": [0, 10],
            "looks": 3,
            "best": {"frame": 5, "time": 0.5, "xyxy": [50, 40, 80, 60], "score": 1.5, "pixels": 30},
            "picture": None,
        }
    ]
    log.close()
    assert [line["id"] for line in written(lines)] == [4, 9]
    assert (log.looks, log.objects, log.again) == (4, 2, 1)


@pytest.mark.parametrize("cut", [(0, 40, 80, 60), (50, 0, 80, 60), (50, 40, 160, 60), (50, 40, 80, 120)])
def test_the_best_look_shows_the_whole_object(cut):
    lines = io.StringIO()
    log = ObjectLog(lines, None, "drive")
    add(log, 0, told(1, cut, pixels=900))
    add(log, 1, told(1, (1, 1, 159, 119), pixels=100))
    add(log, 2, told(1, cut, pixels=2000))
    log.close()
    (line,) = written(lines)
    assert line["best"]["frame"] == 1
    assert line["frames"] == [0, 2]


def rewritten(folder, key, *objects, pictures=True, title="drive.mp4"):
    with logging_objects(folder, key, title, pictures=pictures) as log:
        for index, one in enumerate(objects):
            add(log, index, one)
            log.close()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_lines_pictures_and_the_page(tmp_path):
    rewritten(tmp_path, "town/drive", told(1, look=3), told(2), told(3, look=2), title="drive <1>.mp4")
    names = [f"objects/town/drive/000{number}.jpg" for number in (1, 2, 3)]
    assert files(tmp_path) == ["objects/town/drive.html", "objects/town/drive.jsonl", *names]
    lines = (tmp_path / "objects/town/drive.jsonl").read_text().splitlines()
    assert [json.loads(line)["picture"] for line in lines] == [
        f"drive/000{number}.jpg" for number in (1, 2, 3)
    ]
    picture = cv2.imread(str(tmp_path / names[0]))
    assert picture.shape == (240, 320, 3)
    page = (tmp_path / "objects/town/drive.html").read_text()
    assert "<h1>drive &lt;1&gt;.mp4</h1>" in page
    again, once = page.split("<details>")
    assert re.findall(r"<b>#(\d+)</b>", again) == ["1", "3"]
    assert re.findall(r"<b>#(\d+)</b>", once) == ["2"]
    assert "3 looks, score 1.00, 600 pixels" in again
    assert [re.search(rf"<b>{name}</b> (\d+)", page)[1] for name in ("frames", "objects", "seen again")] == [
        "3", "3", "2",
    ]  # fmt: skip
    base = tmp_path / "objects/town"
    sources = [unquote(unescape(name)) for name in re.findall(r'src="([^"]*)"', page)]
    assert [(base / name).is_file() for name in sources] == [True] * 3
    films = [urlsplit(unescape(name)) for name in re.findall(r'href="([^"]*mp4[^"]*)"', page)]
    assert [(base / unquote(film.path)).resolve() for film in films] == [
        tmp_path / "overlay/town/drive.mp4"
    ] * 3
    assert [film.fragment for film in films] == ["t=0.0", "t=0.2", "t=0.1"]


def test_pictures_lead_to_moments_of_a_film_that_begins_later_than_the_video(tmp_path):
    with logging_objects(tmp_path, "drive", "drive.mp4", pictures=True) as log:
        add(log, 600)  # second 60, as with --start 60
        add(log, 605, told(1))
        add(log, 610, told(1, pixels=700, look=2))
    page = (tmp_path / "objects/drive.html").read_text()
    assert re.findall(r"mp4#t=([\d.]+)", page) == ["1.0"]
    assert "1:00.5 - 1:01.0" in page


def test_a_file_where_the_folder_of_pictures_must_be(tmp_path):
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects/drive").write_text("of the user")
    with pytest.raises(DiskError, match="a part of its path is a file"):
        rewritten(tmp_path, "drive", told(1))
    assert files(tmp_path) == ["objects/drive"]


def test_names_that_addresses_must_escape(tmp_path):
    key = "a #1 100% 'ü'?"
    rewritten(tmp_path, key, told(1, look=2))
    page = (tmp_path / f"objects/{key}.html").read_text()
    (source,) = re.findall(r'src="([^"]*)"', page)
    address = urlsplit(unescape(source))
    assert (tmp_path / "objects" / unquote(address.path)).is_file()
    assert (address.query, address.fragment) == ("", "")


def test_a_name_that_is_no_unicode(tmp_path):
    key = "caf\udce9"
    rewritten(tmp_path, key, told(1, look=2), title=f"{key}.mp4")
    assert (tmp_path / f"objects/{key}/0001.jpg").is_file()
    assert "caf%E9/0001.jpg" in (tmp_path / f"objects/{key}.html").read_text()
    assert json.loads((tmp_path / f"objects/{key}.jsonl").read_text())["picture"] == f"{key}/0001.jpg"


def test_without_objects_the_page_says_so(tmp_path):
    rewritten(tmp_path, "drive")
    assert files(tmp_path) == ["objects/drive.html", "objects/drive.jsonl"]
    assert (tmp_path / "objects/drive.html").read_text().count("None.") == 2


def test_without_pictures_there_are_lines_alone(tmp_path):
    rewritten(tmp_path, "drive", told(1), told(2))
    rewritten(tmp_path, "drive", told(1), pictures=False)
    assert files(tmp_path) == ["objects/drive.jsonl"]


def test_a_run_that_fails_leaves_the_one_before(tmp_path):
    rewritten(tmp_path, "drive", told(1), told(2))
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(KeyError), logging_objects(tmp_path, "drive", "x", pictures=True) as log:
        add(log, 0, told(1))
        log.close()
        raise KeyError
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_a_second_run_takes_the_place_of_the_first(tmp_path):
    rewritten(tmp_path, "drive", *(told(number) for number in range(1, 6)))
    (tmp_path / "objects/drive/notes.txt").write_text("of the user")
    rewritten(tmp_path, "drive", told(1))
    assert files(tmp_path) == [
        "objects/drive.html", "objects/drive.jsonl", "objects/drive/0001.jpg", "objects/drive/notes.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"{", b"[1]\n", b'{"id": "x"}\n', b"\xff\n", b'{"no": 1}\n'])
def test_damaged_lines_of_a_run_before_are_no_trouble(tmp_path, content):
    rewritten(tmp_path, "drive", told(1))
    (tmp_path / "objects/drive.jsonl").write_bytes(content)
    remove_objects(tmp_path, "drive")
    assert files(tmp_path) == ["objects/drive/0001.jpg"]
    rewritten(tmp_path, "drive", told(1))
    assert len(files(tmp_path)) == 3


def test_only_objects_in_view_are_in_memory(tmp_path):
    with logging_objects(tmp_path, "drive", "drive", pictures=False) as log:
        for number in range(1, 500):
            add(log, number, told(number))
            log.close([track(number)])
            assert len(log._open) == 1
    assert len((tmp_path / "objects/drive.jsonl").read_text().splitlines()) == 499


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00.0"), (59.96, "1:00.0"), (75.25, "1:15.2"), (3723.4, "1:02:03.4")]
)
def test_times_as_people_read_them(seconds, text):
    assert module._clock(seconds) == text
