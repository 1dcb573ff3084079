r"""A dress rehearsal of profile `paper`: time, memory and disk of every stage, from measured unit costs.

    python benchmarks/paper_rehearsal.py measure --device cpu --scale 0.4 --out benchmarks/results/rehearsal_cpu.json
    python benchmarks/paper_rehearsal.py measure --device cuda --out benchmarks/results/rehearsal_h100.json
    python benchmarks/paper_rehearsal.py table benchmarks/results/rehearsal_{cpu,h100}.json \
        > benchmarks/paper_rehearsal.md

``measure`` runs the real stages, with the paper's networks and random weights, on two small projects that differ in
the number of items; the difference over the number is the cost of an item, what remains is the cost of starting.
On a CPU a cost is the processor time of the stage over the number of cores, so that what else the machine does counts
little; on a GPU it is wall time. ``--scale`` shrinks the sides of images for the scorer (for a CPU); its costs are
then divided by the square, which holds for convolutions, and the table says so. The detector enlarges what it gets to
its own sizes, and the parts of `download` and `compose` are measured at full size, so that these are not scaled.
``table`` multiplies by the counts of the published data. What a result file lacks is not guessed: times come from the
first file and are marked, memory is called not measured; disk does not depend on the device.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from anomdino.acquisition.normalise.outliers import union_mask  # noqa: E402
from anomdino.acquisition.pairs import copy_closed_set, copy_outliers  # noqa: E402
from anomdino.acquisition.registry import load_registry  # noqa: E402
from anomdino.acquisition.space import in_words  # noqa: E402
from anomdino.acquisition.verify import digests  # noqa: E402
from anomdino.config.params import profile_params  # noqa: E402
from anomdino.io.images import write_png  # noqa: E402

SCENE, PHOTO, BENCHMARK = (1024, 2048), (480, 640), (720, 1280)
CITYSCAPES, OUTLIERS = 2975 + 500, 2975
FRAMES = {
    "RoadAnomaly": (60, (720, 1280)),
    "AnomalyTrack": (10, (720, 1280)),
    "ObstacleTrack": (30, (1080, 1920)),
}
NETWORK_BYTES_A_SECOND = 12.5e6
CORES = os.cpu_count() or 1
COMPOSED = 24
ANNOTATIONS, ANNOTATED, CORNERS = 860_001, 118_287, 28
RUNNER = """
import atexit, runpy, sys
def report():
    torch = sys.modules.get("torch")
    peak = torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0
    print(f"PEAK_CUDA {peak}", file=sys.stderr)
atexit.register(report)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Cost:
    """What running something took: seconds, peak resident and CUDA bytes, bytes left on disk."""

    seconds: float
    resident: int = 0
    cuda: int = 0
    disk: int = 0


@dataclass(frozen=True)
class Unit:
    """Cost of a stage: once, and for each item (an image, a step or a megapixel)."""

    stage: str
    item: str
    once: float
    each: float
    resident: int
    cuda: int
    disk: float
    disk_once: float = 0
    basis: str = "measured"
    note: str = ""


@dataclass(frozen=True)
class Size:
    """How much one of the two rehearsals does."""

    composed: int
    frames: int
    rpl_steps: int
    detector_steps: int
    adt_samples: int


SMALL = Size(composed=4, frames=1, rpl_steps=1, detector_steps=1, adt_samples=8)
LARGE = Size(composed=8, frames=4, rpl_steps=2, detector_steps=3, adt_samples=72)
LARGE_CUDA = Size(composed=40, frames=12, rpl_steps=6, detector_steps=21, adt_samples=240)


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """Draw smooth coloured noise, uint8 (H, W, 3): compressible like a photo."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 215, (max(2, height // 24), max(2, width // 24), 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def label_of(height: int, width: int) -> np.ndarray:
    """Draw a street's label: sky, buildings, road, a car."""
    values = np.full((height, width), 10, np.uint8)
    values[height // 3 :] = 2
    values[height // 2 :] = 0
    values[height // 2 : height * 5 // 8, : width // 8] = 13
    return values


def disc(height: int, width: int) -> np.ndarray:
    """Draw one object."""
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (width // 2, height // 2), height // 5, 255, -1)
    return mask


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Scale a size to multiples of 8."""
    return max(64, int(size[0] * scale) // 8 * 8), max(64, int(size[1] * scale) // 8 * 8)


def write_project(project: Path, size: Size, scale: float, device: str) -> None:
    """Write data, weights and params.yaml of a rehearsal."""
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            write_png(
                project / f"data/inlier/{split}/images/{number}.png", photo(*scaled(SCENE, scale), number)
            )
            write_png(project / f"data/inlier/{split}/labels/{number}.png", label_of(*scaled(SCENE, scale)))
    for number in range(8):
        write_png(project / f"data/outliers/images/{number}.png", photo(*scaled(PHOTO, scale), number))
        write_png(project / f"data/outliers/masks/{number}.png", disc(*scaled(PHOTO, scale)))
    for number in range(size.frames):
        height, width = scaled(BENCHMARK, scale)
        write_png(project / f"data/val/Bench/images/{number}.png", photo(height, width, number))
        write_png(project / f"data/val/Bench/labels/{number}.png", (disc(height, width) > 0).astype(np.uint8))
    params = params_of(size, scale, device)
    (project / "params.yaml").write_text(json.dumps(params))


def write_weights(folder: Path) -> None:
    """Write random weights of RPL's network and a random BERT-base, as the published ones lie."""
    import torch
    from transformers import BertConfig, BertModel

    from anomdino.scorer.base import ScorerSpec, build_scorer, save_scorer

    torch.manual_seed(0)
    save_scorer(build_scorer(ScorerSpec("wide_resnet38")), folder / "scorer")
    bert = BertConfig()
    BertModel(bert, add_pooling_layer=False).save_pretrained(folder / "bert")
    words = (ROOT / "anomdino/detector/vocabulary.txt").read_text()
    (folder / "bert/vocab.txt").write_text(words)


def params_of(size: Size, scale: float, device: str) -> dict:
    """Give the paper profile with the rehearsal's lengths, sizes and random weights."""
    content = profile_params("paper").model_dump(mode="json")
    content["device"] = device
    content["data"] = {"source": "synthetic"}
    large = {"rule": "improved", "empty": 0.0, "objects_min": 2, "scale": "log_uniform", "height_min": 0.3}
    content["compose"].update(count=size.composed, size=scaled((700, 700), scale)[0], workers=0, **large)
    content["rpl"].update(source="train", checkpoint="", workers=0, checkpoint_every=10_000)
    content["rpl"]["closed_set"].update(source="checkpoint", checkpoint="../weights/scorer")
    residual = content["rpl"]["residual"]
    residual.update(rpl_size=scaled((700, 700), scale)[0], validation_images=1, keep="last")
    residual["schedule"].update(steps=size.rpl_steps, epochs=0)
    detector = content["detector"]
    detector.update(text_encoder="../weights/bert", init_checkpoint="", warmup=1, steps=size.detector_steps)
    detector.update(val_images=1, val_interval=10_000, workers=0)
    if device == "cpu":
        residual.update(batch=2)
        detector.update(batch_size=1, amp=False)
    content["detect"].update(folds=1, holdout=0.5)
    content["adt"].update(epochs=1, samples_per_epoch=size.adt_samples, patience=1, tune=False)
    content["benchmark"]["sets"] = {"Bench": {"root": "data/val/Bench", "layout": "folder"}}
    return content


SCALED = ("train_rpl", "score_train", "score", "score_view", "evaluate")

STAGES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("compose", ("pipeline.compose",), ("data/train_dataset",)),
    ("train_rpl", ("pipeline.train_rpl",), ("data/models/rpl",)),
    ("score_train", ("pipeline.score", "train"), ("data/train_dataset",)),
    ("score", ("pipeline.score", "benchmark", "Bench"), ("data/scores",)),
    ("score_view", ("pipeline.score_view", "benchmark", "Bench"), ("data/score_views",)),
    ("train_detector", ("pipeline.train_detector",), ("data/models/detector",)),
    ("detect_train", ("pipeline.detect", "train"), ("data/boxes",)),
    ("detect", ("pipeline.detect", "benchmark", "Bench"), ("data/boxes",)),
    ("train_adt", ("pipeline.train_adt",), ("data/models/adt",)),
    ("evaluate", ("pipeline.evaluate",), ("data/predictions",)),
)


def run_stage(project: Path, command: tuple[str, ...], outs: tuple[str, ...], cpu: bool) -> Cost:
    """Run a stage in the project and measure it."""
    before = sum(bytes_below(project / out) for out in outs)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    log = project / "stage.log"
    started = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, *command],
            cwd=project,
            env=environment,
            stdout=stream,
            stderr=stream,
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if cpu:
        seconds = (usage.ru_utime + usage.ru_stime) / CORES
    text = log.read_text()
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    cuda = [int(line.split()[1]) for line in text.splitlines() if line.startswith("PEAK_CUDA")]
    left = sum(bytes_below(project / out) for out in outs) - before
    return Cost(seconds, usage.ru_maxrss * 1024, max(cuda, default=0), max(left, 0))


def bytes_below(folder: Path) -> int:
    """Sum the sizes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rehearse(work: Path, size: Size, scale: float, device: str) -> dict[str, Cost]:
    """Run every stage once in a new project."""
    write_project(work, size, scale, device)
    costs = {}
    for name, command, outs in STAGES:
        costs[name] = run_stage(work, command, outs, device == "cpu")
        print(
            f"{name}: {costs[name].seconds:.1f} s, {in_words(costs[name].resident)}",
            file=sys.stderr,
            flush=True,
        )
    return costs


def units_of(
    small: dict[str, Cost], large: dict[str, Cost], sizes: tuple[Size, Size], scale: float, cpu: bool
) -> list[Unit]:
    """Turn two rehearsals into costs an item."""
    pixels = scale**2
    counts = {
        "train_rpl": ("step of 8 + 8 crops of 700 x 700", "rpl_steps", pixels / (4 if cpu else 1)),
        "score_train": ("image of 700 x 700", "composed", pixels),
        "score": ("image of 720 x 1280", "frames", pixels),
        "score_view": ("image of 720 x 1280", "frames", pixels),
        "train_detector": ("step of 4 images", "detector_steps", 1 / (4 if cpu else 1)),
        "detect_train": ("image", "composed", 0.5),
        "detect": ("image", "frames", 1.0),
        "train_adt": ("crop", "adt_samples", 1.0),
        "evaluate": ("image of 720 x 1280", "frames", pixels),
    }
    units = []
    for stage, (item, field, factor) in counts.items():
        one, two = small[stage], large[stage]
        difference = getattr(sizes[1], field) - getattr(sizes[0], field)
        each = max(two.seconds - one.seconds, 0) / difference
        once = max(one.seconds - each * getattr(sizes[0], field), 0)
        disk = 0.0 if stage.startswith("train_") else max(two.disk - one.disk, 0) / difference
        disk_once = max(one.disk - disk * getattr(sizes[0], field), 0)
        peak = max(one.resident, two.resident), max(one.cuda, two.cuda)
        note = ""
        if scale != 1 and stage in SCALED:
            note = f"at {scale:g} of the sides; time and disk of an image by pixels, memory as it was there"
        units.append(Unit(stage, item, once, each / factor, *peak, disk / factor, disk_once, note=note))
    return units


def compose_unit(work: Path) -> Unit:
    """Compose by the published rule at full size; every image has a scene and a photo of its own."""
    from anomdino.config.compose import ComposeConfig
    from anomdino.data.compose import compose

    for number in range(COMPOSED):
        write_png(work / f"inlier/images/{number}.png", photo(*SCENE, number))
        write_png(work / f"inlier/labels/{number}.png", label_of(*SCENE))
        (work / "outliers/images").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(work / f"outliers/images/{number}.jpg"), photo(*PHOTO, number))
        write_png(work / f"outliers/masks/{number}.png", disc(*PHOTO))
    config = ComposeConfig(rule="rpl", count=COMPOSED, size=700, workers=1)
    seconds = timed(lambda: compose(config, 0, work / "inlier", work / "outliers", work / "set"))
    disk = bytes_below(work / "set") / COMPOSED
    return Unit("compose", "image of 700 x 700", 0, seconds / COMPOSED / CORES, peak_bytes(), 0, disk)


def annotation_unit(work: Path) -> Unit:
    """Read annotations of the number and length of COCO's, as choosing the outlier photos does."""
    path = work / "instances.json"
    polygon = [round(100 + 0.37 * number, 2) for number in range(2 * CORNERS)]
    with path.open("w") as stream:
        images = [
            {"id": n, "height": 480, "width": 640, "file_name": f"{n:012d}.jpg"} for n in range(ANNOTATED)
        ]
        stream.write(f'{{"images": {json.dumps(images)}, "categories": [], "annotations": [')
        for number in range(ANNOTATIONS):
            entry = {
                "id": number,
                "image_id": number % ANNOTATED,
                "category_id": 1,
                "iscrowd": 0,
                "area": 5.5,
            }
            entry |= {"bbox": [1.5, 2.5, 30.25, 40.5], "segmentation": [polygon]}
            stream.write(("," if number else "") + json.dumps(entry))
        stream.write("]}")
    reader = (
        "import sys, pathlib; from anomdino.acquisition.normalise.outliers import _read;"
        "_read(pathlib.Path(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", reader, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit("reading the annotations failed")
    seconds = (usage.ru_utime + usage.ru_stime) / CORES
    size = in_words(path.stat().st_size)
    note = f"a file of {size} with {ANNOTATIONS:,} polygons of {CORNERS} corners; COCO's has 449 MB"
    return Unit("download: annotations", "file", 0, seconds, usage.ru_maxrss * 1024, 0, 0, note=note)


def peak_bytes() -> int:
    """Give the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def download_units(work: Path) -> list[Unit]:
    """Measure hashing, unpacking and normalising at full size."""
    big = work / "big.bin"
    piece = os.urandom(1 << 20)
    with big.open("wb") as stream:
        stream.writelines(piece for _ in range(256))
    hashing = timed(lambda: digests(big)) / big.stat().st_size
    pairs = []
    for number in range(8):
        write_png(work / f"s/i/{number}.png", photo(*SCENE, number))
        write_png(work / f"s/l/{number}.png", label_of(*SCENE))
        pairs.append((str(number), work / f"s/i/{number}.png", work / f"s/l/{number}.png"))
    archive = work / "scenes.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for key, image, _ in pairs:
            packed.write(image, f"{key}.png")

    def unpacked() -> None:
        from anomdino.acquisition.archives import unpack

        (work / "unpacked").mkdir()
        unpack(archive, work / "unpacked")

    unpacking = timed(unpacked) / archive.stat().st_size
    scenes = timed(lambda: copy_closed_set(pairs, work / "inlier", "scenes")) / len(pairs) / CORES
    objects = []
    square = [{"segmentation": [[float(v) for v in (50, 50, 400, 60, 300, 400, 60, 350)]]}]
    entry = {"height": PHOTO[0], "width": PHOTO[1]}

    def outliers() -> None:
        for number in range(16):
            write_png(work / f"o/m/{number}.png", union_mask(entry, square))
            objects.append((str(number), work / f"o/i/{number}.jpg", work / f"o/m/{number}.png"))
        copy_outliers(objects, work / "outliers", "objects")

    for number in range(16):
        (work / "o/i").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(work / f"o/i/{number}.jpg"), photo(*PHOTO, number))
    drawing = timed(outliers) / 16 / CORES
    labels, masks = (bytes_below(work / part) for part in ("inlier/labels", "outliers/masks"))
    photos = bytes_below(work / "outliers/images")
    peak = peak_bytes()
    linked = "images are links to the unpacked ones"
    return [
        Unit("download: verify", "byte", 0, hashing, peak, 0, 1, note="one core; the downloads stay"),
        Unit(
            "download: unpack",
            "byte",
            0,
            unpacking,
            peak,
            0,
            1,
            note="one core, PNG files in a zip; removed in the end but for what the next rows keep",
        ),
        Unit("download: scenes", "pair of 1024 x 2048", 0, scenes, peak, 0, labels / len(pairs), note=linked),
        Unit("download: objects", "photo", 0, drawing, peak, 0, (masks + photos) / 16),
    ]


def timed(function) -> float:
    """Run a function once and give its processor seconds over the cores that it can use."""
    started = time.process_time()
    function()
    return time.process_time() - started


def measure(options: argparse.Namespace) -> None:
    """Rehearse twice and write the unit costs."""
    cpu = options.device == "cpu"
    sizes = (SMALL, LARGE if cpu else LARGE_CUDA)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        (work / "d").mkdir()
        units = [*download_units(work / "d"), annotation_unit(work / "d"), compose_unit(work / "d/c")]
        shutil.rmtree(work / "d")
        write_weights(work / "weights")
        runs = [
            rehearse(work / f"project{n}", size, options.scale, options.device)
            for n, size in enumerate(sizes)
        ]
    units += units_of(runs[0], runs[1], sizes, options.scale, cpu)
    content = {
        "device": describe(options.device),
        "scale": options.scale,
        "taken": time.strftime("%Y-%m-%d"),
        "units": [asdict(unit) for unit in units],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n")


def describe(device: str) -> str:
    """Name the machine."""
    if device == "cpu":
        return f"{os.cpu_count()} CPU cores ({platform.machine()})"
    import torch

    return f"1 x {torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores"


def amounts() -> dict[str, tuple[float, str]]:
    """How many items each stage of profile `paper` has, and how that number comes about."""
    params = profile_params("paper")
    registry = load_registry()
    files = [file for name in params.data.registry.items for file in registry.item(name).bundles[0]]
    size, _ = registry.sizes(files)
    archives = sum(registry.files[one].expected_size or 0 for one in files if registry.files[one].archive)
    archives -= registry.files["coco_train_images"].expected_size or 0
    frames = sum(count for count, _ in FRAMES.values())
    pixels = sum(count * height * width for count, (height, width) in FRAMES.values()) / (
        BENCHMARK[0] * BENCHMARK[1]
    )
    composed = params.compose.count
    detectors = params.detect.folds + 1 if params.detect.folds > 1 else 1
    adt = params.adt.epochs * (params.adt.samples_per_epoch or composed)
    steps = params.rpl.residual.schedule.steps or int(params.rpl.residual.schedule.epochs * (2975 // 8))
    return {
        "download: verify": (size, f"{in_words(size)} of known size"),
        "download: unpack": (archives, in_words(archives)),
        "download: scenes": (CITYSCAPES, "Cityscapes train and val"),
        "download: objects": (OUTLIERS, "COCO photos"),
        "download: annotations": (1, "COCO's instances_train2017.json"),
        "compose": (composed, f"{composed} images"),
        "train_rpl": (steps, f"{steps} steps; none with the published checkpoint"),
        "score_train": (composed, f"{composed} images"),
        "score": (pixels, f"{frames} frames of three benchmarks"),
        "score_view": (pixels, f"{frames} frames"),
        "train_detector": (
            params.detector.steps * detectors,
            f"{detectors} detectors of {params.detector.steps} steps",
        ),
        "detect_train": (composed, f"{composed} images"),
        "detect": (frames, f"{frames} frames"),
        "train_adt": (adt, f"{params.adt.epochs} epochs, {adt} crops"),
        "evaluate": (pixels, f"{frames} frames"),
    }


def table(options: argparse.Namespace) -> None:
    """Print the table for one or several measured machines."""
    runs = [json.loads(path.read_text()) for path in options.results]
    work = amounts()
    folds = profile_params("paper").detect.folds
    detectors = folds + 1 if folds > 1 else 1
    first = {one["stage"]: Unit(**one) for one in runs[0]["units"]}
    print("# Dress rehearsal of profile `paper`\n")
    print("What every stage is expected to take with the published data: time and disk are unit costs that")
    print(
        "`python benchmarks/paper_rehearsal.py measure` took from the real stages, times the counts of the data."
    )
    print("Printed by `python benchmarks/paper_rehearsal.py table`. Nobody has run the whole profile.")
    print(
        "Scores were still compressed when disk was measured: stored as they are now, they take an eighth more.\n"
    )
    print(
        "`extrapolated`: computed from a measurement of a part, see the notes below the table. `not measured, CPU's`:"
    )
    print(
        f"the time is that of {runs[0]['device']}, which is an upper bound where the stage can use the GPU.\n"
    )
    for number, run in enumerate(runs):
        gpu = number > 0
        print(f"## {run['device']}\n")
        print(f"Taken {run['taken']}.\n")
        print(f"| stage | work | a unit | in all | time | memory |{' GPU memory |' if gpu else ''} disk |")
        print(f"|---|---|---:|---:|---|---:|{'---:|' if gpu else ''}---:|")
        own = {one["stage"]: Unit(**one) for one in run["units"]}
        total, disk = 0.0, 0.0
        for stage, reference in first.items():
            unit = own.get(stage, reference)
            count, words = work[stage]
            seconds = unit.once + unit.each * count
            copies = detectors if stage == "train_detector" else 1
            left = copies * reference.disk_once + reference.disk * count
            total += 0 if stage == "train_rpl" else seconds
            disk += 0 if stage in {"train_rpl", "download: unpack"} else left
            each = f"{1e9 * unit.each:.2f} s/GB" if unit.item == "byte" else duration(unit.each)
            item = "" if unit.item == "byte" else f" / {unit.item}"
            basis = unit.basis if stage in own else "not measured, CPU's"
            cells = [
                f"`{stage}`",
                words,
                each + item,
                duration(seconds),
                basis,
                *memory(unit, reference, gpu),
            ]
            print(f"| {' | '.join([*cells, in_words(int(left)) if left else '-'])} |")
        print(f"\nIn all without `train_rpl`: {duration(total)}, {in_words(int(disk))} of disk", end="")
        print(f" and {in_words(int(work['download: unpack'][0]))} more while unpacking. ", end="")
        print(
            f"Downloading at 100 Mbit/s: {duration(work['download: verify'][0] / NETWORK_BYTES_A_SECOND)}.\n"
        )
        for stage, unit in own.items():
            if unit.note:
                print(f"- `{stage}`: {unit.note}.")
        print()


def memory(unit: Unit, reference: Unit, gpu: bool) -> list[str]:
    """Give the cells of the peak memory, and of the GPU's; stages without a network take the same anywhere."""
    without_network = unit.stage.startswith(("download", "compose", "score_view", "evaluate"))
    resident = (
        reference.resident if without_network else unit.resident if unit is not reference or not gpu else 0
    )
    cells = [in_words(resident) if resident else "not measured"]
    if gpu:
        cells.append("-" if without_network else in_words(unit.cuda) if unit.cuda else "not measured")
    return cells


def duration(seconds: float) -> str:
    """Write a time for a person."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("--device", default="cpu")
    one.add_argument("--scale", type=float, default=1.0)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--work", help="a folder with room for about 5 GB; the system's by default")
    one.set_defaults(run=measure)
    two = commands.add_parser("table")
    two.add_argument("results", type=Path, nargs="+")
    two.set_defaults(run=table)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
