"""Speed and memory of RPL's network at the size of the paper, as ratios against the same network run plainly.

Plainly means: fp32, eval, default memory format, one image at a time, score by ``-logsumexp``, then the blur. Weights
are random, with batch statistics measured on noise, so that activations have the size of a trained network's.

    python benchmarks/scorer.py cpu [--repeats 3] [--size 720 1280] [--threads 2] [--scorer FOLDER]
    python benchmarks/scorer.py cuda [--out FOLDER]

``cpu`` runs each variant in a process of its own, by turns, and compares median time, peak resident memory and result;
``--scorer`` names the folder of a trained scorer to take instead, such as anomdino/release/light/models/rpl.
``cuda`` measures one process: network and score, batch 1 and 8, compiled; error of the residual logits; AP on a
realistic score map; and the images per second of the whole score stage against the network's alone. Every variant,
plain as well, starts from the normalised image in the GPU's memory and ends with the score there.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from anomdino.scorer.base import ScorerOutput, gaussian_blur, load_scorer, to_input  # noqa: E402
from anomdino.scorer.inference import ScoringEngine  # noqa: E402
from anomdino.scorer.options import ScoringOptions  # noqa: E402
from anomdino.scorer.wide_resnet38 import WideResNet38Scorer  # noqa: E402


def network(device: str = "cpu") -> WideResNet38Scorer:
    """Build the network with random weights whose activations and logits have realistic sizes."""
    torch.manual_seed(0)
    with torch.device(device):
        scorer = WideResNet38Scorer()
    for module in scorer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    scorer.branch1.train()
    with torch.inference_mode():
        scorer(torch.randn(2, 3, 128, 256, device=device))
    scorer.eval()
    with torch.inference_mode():
        spread = scorer(torch.randn(1, 3, 128, 256, device=device)).logits.std()
    scorer.branch1.final[6].weight.data *= 3 / spread
    return scorer


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw smooth coloured noise, uint8 (H, W, 3): compressible like a photo, busy like a street."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cell in (4, 16, 64):
        coarse = torch.from_numpy(rng.normal(size=(1, 3, -(-height // cell), -(-width // cell))))
        fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        image += fine[0].permute(1, 2, 0).numpy() * (12 + cell / 2)
    return np.clip(image + 110, 0, 255).astype(np.uint8)


def plain_score(scorer: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, ScorerOutput]:
    """Score one normalised image (1, 3, H, W) on the network's device as a straightforward script would."""
    with torch.inference_mode():
        output = scorer(inputs)
        return gaussian_blur(-output.residual_logits.float().logsumexp(dim=1)), output


def plain_input(image: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """Normalise an image, uint8 (H, W, 3), for :func:`plain_score`: float32 (1, 3, H, W) in default memory format."""
    return to_input(image).contiguous().to(device)


def child(
    variant: str, repeats: int, size: tuple[int, int], threads: int, folder: Path | None, out: Path
) -> None:
    """Measure one variant on the CPU and leave times, peak memory and the score."""
    torch.set_num_threads(threads)
    image = photo(*size)
    scorer = network() if folder is None else load_scorer(folder)
    engine = None
    if variant == "engine":
        engine, scorer = ScoringEngine(scorer, ScoringOptions(precision="fp32"), consume=True), None
    times, work = [], []
    for _ in range(repeats):
        started, busy = time.perf_counter(), time.process_time()
        score = engine.score(image).score if engine else plain_score(scorer, plain_input(image))[0][0].numpy()
        times.append(time.perf_counter() - started)
        work.append(time.process_time() - busy)
    np.save(out, score)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"times": times, "work": work, "peak": peak}))


def cpu(repeats: int, size: tuple[int, int], rounds: int, threads: int, trained: Path | None) -> None:
    """Compare the engine with the plain run on the CPU."""
    results: dict[str, list[dict]] = {"plain": [], "engine": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for variant, found in results.items():
                command = [sys.executable, __file__, "child", variant, "--repeats", str(repeats)]
                command += ["--size", *map(str, size), "--threads", str(threads)]
                command += ["--out", f"{folder}/{variant}.npy"]
                command += ["--scorer", str(trained)] if trained else []
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.append(json.loads(printed.splitlines()[-1]))
        plain, ours = (np.load(f"{folder}/{variant}.npy").astype(np.float64) for variant in results)
    seconds = {name: min(t for r in found for t in r["times"]) for name, found in results.items()}
    middle = {
        name: statistics.median(t for r in found for t in r["times"]) for name, found in results.items()
    }
    work = {name: min(t for r in found for t in r["work"]) for name, found in results.items()}
    peak = {name: max(r["peak"] for r in found) / 1e9 for name, found in results.items()}
    error = np.abs(plain - ours).max()
    print(
        f"{trained or 'RPL, WideResNet-38'}, {size[0]} x {size[1]}, CPU, {threads} threads, torch {torch.__version__}, "
        f"{machine()}\n"
    )
    print("| | plain | engine | ratio |\n|---|---|---|---|")
    ratio = seconds["engine"] / seconds["plain"]
    print(f"| seconds an image (best of {repeats * rounds}) | {seconds['plain']:.2f} | "
          f"{seconds['engine']:.2f} | **{ratio:.3f}** |")  # fmt: skip
    ratio = middle["engine"] / middle["plain"]
    print(f"| seconds an image (median) | {middle['plain']:.2f} | {middle['engine']:.2f} | {ratio:.3f} |")
    ratio = work["engine"] / work["plain"]
    print(f"| processor seconds an image (best) | {work['plain']:.2f} | {work['engine']:.2f} | {ratio:.3f} |")
    print(f"| peak resident memory, GB | {peak['plain']:.2f} | {peak['engine']:.2f} | "
          f"{peak['engine'] / peak['plain']:.3f} |")  # fmt: skip
    print(f"\nLargest difference of the score: {error:.1e}, of scores {plain.min():.2f} .. {plain.max():.2f} "
          f"(relative {error / np.abs(plain).max():.1e}).")  # fmt: skip


def machine() -> str:
    """Name the processor and the system."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, Python {platform.python_version()}"
    return platform.platform()


def milliseconds(run: Callable[[], object], repeats: int = 20, warm: int = 6) -> float:
    """Give the median time of a call on CUDA by events."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last))
    return statistics.median(times)


def cuda(size: tuple[int, int], images: int, mode: str | None, batches: tuple[int, ...]) -> None:
    """Compare the engine with the plain run on one GPU."""
    name = torch.cuda.get_device_name()
    print(f"RPL, WideResNet-38, {size[0]} x {size[1]}, {name}, torch {torch.__version__}\n", flush=True)
    picture = photo(*size)
    scorer = network("cuda")
    resident = plain_input(picture, "cuda")
    plain = milliseconds(lambda: plain_score(scorer, resident), repeats=15)
    torch.backends.cudnn.allow_tf32 = False
    exact_score, exact = plain_score(scorer, resident)
    torch.backends.cudnn.allow_tf32 = True
    exact_logits = exact.residual_logits.float().cpu()
    rows = [("plain, fp32 with torch's defaults, batch 1: network and score", plain)]
    options = ScoringOptions(compile=True, compile_mode=mode or "default", batch=max(batches))
    eager = ScoringEngine(scorer, ScoringOptions(), "cuda")
    engine = ScoringEngine(scorer, options, "cuda")
    for batch in batches:
        inputs = engine.inputs([photo(*size, seed) for seed in range(batch)])
        rows += cuda_rows(eager, engine, inputs)
        if batch == batches[0]:
            report_errors(eager, engine, picture, exact_logits, exact_score[0].cpu().numpy())
    print("\n| variant | ms an image | ratio to plain |\n|---|---|---|")
    for label, taken in rows:
        print(f"| {label} | {taken:.2f} | {taken / plain:.3f} |", flush=True)
    stage(engine, size, images)


@torch.inference_mode()
def cuda_rows(eager: ScoringEngine, engine: ScoringEngine, inputs: torch.Tensor) -> list[tuple[str, float]]:
    """Time network alone, and network with score and maps, for one batch."""
    batch, rows = len(inputs), []
    layout = eager.layout(inputs)
    name = f"fp16, folded, rearranged, channels-last, batch {batch}"
    for label, call in (
        (f"{name}: network alone", lambda: eager.network(layout)),
        (f"{name}: network, score and maps", lambda: eager.fields(inputs, 4)),
        (f"the same, compiled, batch {batch}: network, score and maps", lambda: engine.fields(inputs, 4)),
    ):
        rows.append((label, milliseconds(call) / batch))
        print(rows[-1], flush=True)
    return rows


def report_errors(
    eager: ScoringEngine,
    engine: ScoringEngine,
    picture: np.ndarray,
    exact: torch.Tensor,
    truth: np.ndarray,
) -> None:
    """Print the error of the residual logits, and AP on labels that follow the exact score with noise."""
    from sklearn.metrics import average_precision_score

    with torch.inference_mode():
        ours = eager.network(eager.layout(eager.inputs([picture]))).residual_logits.float().cpu()
    error = float((ours - exact).norm() / exact.norm())
    largest = float((ours - exact).abs().max() / exact.abs().max())
    print(f"\nRelative error of the residual logits: {error:.1e} (norm), {largest:.1e} (largest / largest).")
    score = engine.score(picture).score
    noisy = truth + np.random.default_rng(0).normal(scale=truth.std(), size=truth.shape)
    label = (noisy > np.quantile(noisy, 0.97)).ravel()
    ap = [average_precision_score(label, values.ravel()) for values in (truth, score)]
    print(f"AP on a noisy label of 3 % of the pixels: exact {ap[0]:.5f}, engine {ap[1]:.5f}.", flush=True)


def stage(engine: ScoringEngine, size: tuple[int, int], count: int) -> None:
    """Compare the images per second of the score stage with those of the network alone."""
    import cv2

    from anomdino.scorer.run import Outputs, RunOptions, SetScorer

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        pictures = [photo(*size, seed) for seed in range(8)]
        files = {}
        for index in range(count):
            files[f"{index:04}"] = root / "images" / f"{index:04}.jpg"
            cv2.imwrite(str(files[f"{index:04}"]), pictures[index % 8], [cv2.IMWRITE_JPEG_QUALITY, 92])
        batch = engine.options.batch
        with torch.inference_mode():
            inputs = engine.inputs(pictures[:batch])
            alone = milliseconds(lambda: engine.fields(inputs, 4)) / batch
        for workers in (6, 12):
            outputs = Outputs(root / f"score{workers}", root / f"maps{workers}")
            run = SetScorer(engine, outputs, "benchmark", RunOptions(workers=workers))
            started = time.perf_counter()
            run.run(files)
            rate = count / (time.perf_counter() - started)
            print(
                f"Score stage, {count} JPEG files, batch {batch}, {workers} readers and writers: {rate:.1f} images/s; "
                f"network, score and maps alone {1e3 / alone:.1f} images/s; ratio {rate * alone / 1e3:.2f}.",
                flush=True,
            )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["cpu", "cuda", "child"])
    parser.add_argument("variant", nargs="?", default="engine")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--mode", default=None)
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--scorer", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    size = (given.size[0], given.size[1])
    if given.what == "child":
        child(given.variant, given.repeats, size, given.threads, given.scorer, given.out)
    elif given.what == "cpu":
        cpu(given.repeats, size, given.rounds, given.threads, given.scorer)
    else:
        cuda(size, given.images, given.mode, tuple(given.batches))


if __name__ == "__main__":
    main()
