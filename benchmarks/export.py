"""Time of an exported ONNX file by ONNX Runtime, against `anomdino predict --no-boxes` on the same model and drawn scene.

Usage: python benchmarks/export.py [--models released] [--size 720 1280] [--width 1280 ...] [--rounds 5]

The model is exported for the size; the cascade without its detector and the file then run in turn in this process, on as
many threads as torch has. The medians, their ratio, and how far the scores agree are printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch

from anomdino.cascade import Cascade, at_widths, find_models
from anomdino.config.params import load_params
from anomdino.export import draw_picture, export_onnx
from anomdino.memory import keep_freed_memory
from anomdino.scorer.setup import engine_from


def main() -> None:
    arguments = _arguments()
    keep_freed_memory()
    folder, file = find_models(arguments.models, None)
    params = load_params(file, only=("score", "detect"))
    if arguments.width:
        params = at_widths(params, arguments.width, folder)
    cascade = Cascade.load(folder, params, torch.device("cpu"), boxes=False).with_rule(min_component=0)
    picture = draw_picture(tuple(arguments.size))
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        engine, _ = engine_from(params.score, folder / "rpl", "cpu", portable=True)
        export_onnx(engine, cascade.adt, tuple(arguments.size), path)
        megabytes = path.stat().st_size / 1e6
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    times: dict[str, list[float]] = {"here": [], "onnx": []}
    for _ in range(arguments.rounds + 1):
        start = time.perf_counter()
        prediction = cascade.predict(picture)
        middle = time.perf_counter()
        score, mask = session.run(["score", "mask"], {"image": picture})
        times["here"].append(middle - start)
        times["onnx"].append(time.perf_counter() - middle)
    here, there = (float(np.median(part[1:])) for part in times.values())  # the first round warms up
    height, width = arguments.size
    widths = list(params.score.widths) or [width]
    print(
        f"{width} x {height}, widths {widths}, {torch.get_num_threads()} threads, file of {megabytes:.1f} MB"
    )
    print(f"here   {here:7.3f} s median of {arguments.rounds}, torch {torch.__version__}")
    print(f"onnx   {there:7.3f} s median of {arguments.rounds}, onnxruntime {onnxruntime.__version__}")
    print(
        f"ratio  {here / there:7.2f} (here / onnx); scores differ by {np.abs(score - prediction.raw).max():.1g}, "
        f"masks, {prediction.mask.mean():.1%} of the scene, on {(mask != prediction.mask).mean():.3%} of its pixels"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=Path("released"))
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), metavar=("H", "W"))
    parser.add_argument("--width", type=int, nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
