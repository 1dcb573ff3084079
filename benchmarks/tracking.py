"""How well objects are followed, on drives made of labelled photos, against boxes that are compared where they stand.

Usage: python benchmarks/tracking.py --benchmark NAME=FOLDER [--benchmark ...] --work FOLDER [--models released]

A drive is a photo seen through a window that closes in on a point near the horizon and shakes a little: 3 seconds, 30
frames a second, 1280 x 720, to 0.45 of the first width. Objects grow, move outwards and leave the frame, and their
labels and numbers go with them. What a photo cannot show is missing: other sides, what lies behind, objects that move.
The cascade looks at every 15th frame, half a second apart, and every third of these looks, one and a half seconds apart,
stands for a slower machine. What it finds is kept in the work folder, so that a second run waits for no network.

Printed for each way of moving boxes between looks: tracks of found objects (one an object is right), changes of the
number from look to look, IDF1 (Ristani et al. 2016), and how many objects and how many false ones have been seen in 1,
2, 3 looks; the time of a frame that is passed over.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.benchmarks import REGISTRY, Benchmark, open_benchmark, open_registered
from anomdino.cascade import Cascade, find_models
from anomdino.config.params import load_params
from anomdino.device import resolve_device
from anomdino.io.atomic import atomic_write_json
from anomdino.io.images import read_image
from anomdino.memory import keep_freed_memory
from anomdino.progress import track
from anomdino.tracking.motion import thumbnail
from anomdino.tracking.objects import objects_of
from anomdino.tracking.tracker import Tracker, assigned, overlaps

SIZE = (720, 1280)
RATE, SECONDS, EVERY = 30, 3, 15
FIRST, LAST = 0.94, 0.94 * 0.45
HORIZON = (0.5, 0.42)
SHAKE = 0.003
FEWEST = 50
"""Pixels that an object shows at least, in a look, to count there."""
MATCH = 0.25
"""IoU of the boxes from which on a found object is a true one."""

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Drive:
    """A photo and the numbers of its objects, seen through a moving window.

    Attributes:
        photo: uint8 (H, W, 3), RGB.
        numbers: int32 (H, W), 0 no object, 1 .. objects, -1 void.
        phase: Of the shaking.
    """

    photo: UInt8Array
    numbers: npt.NDArray[np.int32]
    phase: float

    def at(self, index: int) -> npt.NDArray[np.float64]:
        """The map from the photo to frame ``index``, float64 (2, 3)."""
        height, width = self.photo.shape[:2]
        fit = min(width / SIZE[1], height / SIZE[0])
        share = FIRST * (LAST / FIRST) ** (index / (RATE * SECONDS))
        seconds = index / RATE
        shake = np.array([np.sin(8.2 * seconds + self.phase), np.sin(11.9 * seconds + 2 * self.phase)])
        focus = np.array(HORIZON) * (width, height) + SHAKE * width * share * shake
        scale = 1 / (fit * share)
        return np.array([[scale, 0, 0], [0, scale, 0]]) + np.array([[0, 0, 1]]) * (
            np.array(HORIZON) * SIZE[::-1] - scale * focus
        ).reshape(2, 1)

    def picture(self, index: int) -> UInt8Array:
        """Frame ``index``, uint8 (720, 1280, 3), RGB."""
        shown = cv2.warpAffine(self.photo, self.at(index), SIZE[::-1], flags=cv2.INTER_LINEAR)
        return np.asarray(shown, np.uint8)

    def label(self, index: int) -> npt.NDArray[np.int32]:
        """The numbers in frame ``index``, int32 (720, 1280); beyond the photo is void."""
        raised = (self.numbers + 1).astype(np.float32)
        shown = cv2.warpAffine(raised, self.at(index), SIZE[::-1], flags=cv2.INTER_NEAREST, borderValue=0)
        return shown.astype(np.int32) - 1


def drives(benchmark: Benchmark) -> Iterator[tuple[str, Drive]]:
    """Make a drive of each photo of a set that shows an object."""
    for sample in benchmark:
        label = benchmark.read_label(sample)
        numbers = cv2.connectedComponents((label == 1).astype(np.uint8), connectivity=8)[1]
        if not numbers.any():
            continue
        numbers = np.where(label == 255, -1, numbers).astype(np.int32)
        phase = zlib.crc32(sample.key.encode()) % 628 / 100
        yield sample.key, Drive(read_image(sample.image), numbers, phase)


@dataclass
class Look:
    """What is there in a frame, and what the cascade finds; boxes are xyxy."""

    frame: int
    truth: dict[str, list[float]]
    found: list[list[float]]


def looked(cascade: Cascade, drive: Drive, index: int) -> Look:
    """Look at a frame; what lies on void by more than half is left out."""
    numbers, image = drive.label(index), drive.picture(index)
    truth = {}
    for number in np.unique(numbers[numbers > 0]):
        rows, columns = np.nonzero(numbers == number)
        if len(rows) >= FEWEST:
            corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            truth[str(number)] = [float(corner) for corner in corners]
    found = cascade.predict(image)
    on_void = objects_of(found.mask, (numbers == -1).astype(np.float32), found.boxes)
    return Look(index, truth, on_void.xyxy[on_void.scores <= 0.5].tolist())


def looks_of(cascade: Cascade | None, drive: Drive, file: Path) -> list[Look]:
    """Look at every 15th frame of a drive, or read what was found before."""
    if not file.exists():
        assert cascade is not None
        looks = [looked(cascade, drive, index) for index in range(0, RATE * SECONDS + 1, EVERY)]
        atomic_write_json(file, [vars(look) for look in looks])
    return [Look(**look) for look in json.loads(file.read_text())]


@dataclass
class Tally:
    """What is counted over drives."""

    objects: int = 0
    found: int = 0
    tracks: int = 0
    switches: int = 0
    idtp: int = 0
    truths: int = 0
    boxes: int = 0
    seen: list[int] = field(default_factory=lambda: [0, 0, 0])
    false: list[int] = field(default_factory=lambda: [0, 0, 0])
    seconds: float = 0.0
    passed: int = 0

    @property
    def idf1(self) -> float:
        """IDF1, in [0, 1]."""
        return 2 * self.idtp / max(1, self.truths + self.boxes)


def follow(drive: Drive, looks: list[Look], way: str, tally: Tally) -> None:
    """Follow the objects of a drive, and count.

    Args:
        drive: The drive.
        looks: What was found, in looks as far apart as each other.
        way: ``nowhere``: boxes stay where they were; ``from look to look``; ``through all frames``.
        tally: Is added to.
    """
    tracker = Tracker()
    hits: dict[tuple[str, int], int] = {}
    last: dict[str, int] = {}
    counts: dict[int, int] = {}
    grey, before = np.zeros((*SIZE, 3), np.uint8), 0
    for look in looks:
        if way == "through all frames":
            for index in range(before + 1, look.frame):
                picture = drive.picture(index)
                started = time.perf_counter()
                tracker.follow(thumbnail(picture))
                tally.seconds += time.perf_counter() - started
                tally.passed += 1
        before, boxes = look.frame, np.array(look.found, np.float32).reshape(-1, 4)
        image = grey if way == "nowhere" else drive.picture(look.frame)
        numbers = [one.number for one in tracker.look(image, boxes)]
        counts |= {number: counts.get(number, 0) + 1 for number in numbers}
        names = list(look.truth)
        truth = np.array([look.truth[name] for name in names], np.float64).reshape(-1, 4)
        for row, column in assigned(overlaps(truth, boxes.astype(np.float64)), MATCH):
            name, number = names[row], numbers[column]
            hits[name, number] = hits.get((name, number), 0) + 1
            tally.switches += last.get(name, number) != number
            last[name] = number
        tally.truths, tally.boxes = tally.truths + len(names), tally.boxes + len(boxes)
    names, numbers = sorted({name for name, _ in hits}), sorted({number for _, number in hits})
    shared = np.array([[hits.get((name, number), 0) for number in numbers] for name in names]).reshape(
        len(names), len(numbers)
    )
    tally.objects += len({name for look in looks for name in look.truth})
    tally.found, tally.tracks = tally.found + len(names), tally.tracks + len(hits)
    tally.idtp += sum(int(shared[pair]) for pair in assigned(shared.astype(np.float64), 1))
    for least in range(3):
        kept = {number for number, count in counts.items() if count > least}
        tally.seen[least] += len({name for name, number in hits if number in kept})
        tally.false[least] += len(kept - set(numbers))


WAYS = ("nowhere", "from look to look", "through all frames")
APART = (1, 3)
"""Looks are taken at every 15th frame, and at every 45th."""


def main() -> None:
    """Print a table a set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--benchmark", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("released"))
    arguments = parser.parse_args()
    keep_freed_memory()
    models, file = find_models(arguments.models, None)
    params = load_params(file)
    cascade = Cascade.load(models, params, resolve_device(params.device))
    for setting in arguments.benchmark:
        name, _, folder = setting.partition("=")
        opened = open_registered(name, folder) if name in REGISTRY else open_benchmark("folder", folder)
        tallies = {(apart, way): Tally() for apart in APART for way in WAYS}
        for key, drive in track(drives(opened), name, len(opened)):
            looks = looks_of(cascade, drive, arguments.work / name / f"{key}.json")
            for (apart, way), tally in tallies.items():
                follow(drive, looks[::apart], way, tally)
        for apart in APART:
            report(f"{name}, every {apart * EVERY}th frame", {way: tallies[apart, way] for way in WAYS})


def report(name: str, tallies: dict[str, Tally]) -> None:
    """Print the table of a set."""
    reference = tallies[WAYS[0]]
    print(f"\n{name}: {reference.objects} objects, {reference.found} found in a look at least")
    print(
        f"{'boxes move':20} tracks  switches  ratio   IDF1   seen 1, 2, 3 looks   false 1, 2, 3   ms a frame"
    )
    for way, tally in tallies.items():
        ratio = tally.switches / max(1, reference.switches)
        spent = f"{1000 * tally.seconds / tally.passed:8.1f}" if tally.passed else "       -"
        seen, false = (", ".join(map(str, counts)) for counts in (tally.seen, tally.false))
        counts = f"{tally.tracks:6} {tally.switches:9} {ratio:6.2f} {100 * tally.idf1:6.1f}"
        print(f"{way:20} {counts} {seen:>20} {false:>15} {spent}")


if __name__ == "__main__":
    main()
