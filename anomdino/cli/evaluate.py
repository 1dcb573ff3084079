"""Commands that score maps, compare runs and write submissions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomdino.words import counted

PARAMS = Path("params.yaml")

submit_app = typer.Typer(no_args_is_help=True)


def evaluate(
    *,
    scores: Annotated[
        Path, typer.Option(help="Folder of score maps: <key>.npz (arr_0), .npy, .tif or .hdf5 (value).")
    ],
    benchmark: Annotated[
        str, typer.Option(help="A name of benchmark.sets, a published set such as AnomalyTrack, or a layout.")
    ],
    root: Annotated[Path | None, typer.Option(help="Folder that holds the set.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the set.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Folder of labels <key>.png, 0/1/255, in place of the set's.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of the method's own masks <key>.png.")] = None,
    name: Annotated[str, typer.Option(help="Name of the method in the results.")] = "score",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results.")] = Path("evaluation"),
    params: Annotated[Path, typer.Option(help="Parameter file that names benchmarks.")] = PARAMS,
    seed: Annotated[int, typer.Option(help="Seed of the intervals.")] = 0,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamplings for 95 % intervals; 0 for none.")] = 1000,
    threshold: Annotated[
        float | None,
        typer.Option(help="Masks are score > THRESHOLD; the best F1 on these labels by default."),
    ] = None,
) -> None:
    """Score any method's maps on a benchmark, without the pipeline."""
    import math

    from anomdino.errors import ConfigError
    from anomdino.evaluation import (
        EvaluationSettings,
        ScoreFolder,
        evaluate_benchmark,
        write_metrics,
        write_plots,
        write_results,
    )
    from anomdino.evaluation.console import print_summary
    from anomdino.evaluation.memory import share_one_heap
    from anomdino.evaluation.opening import find_benchmark
    from anomdino.evaluation.summary import RESERVED
    from anomdino.io.atomic import require_folder
    from anomdino.io.locking import one_run_in

    if threshold is not None and not math.isfinite(threshold):
        raise ConfigError("--threshold", f"is {threshold}", "give a number")
    if name in RESERVED or not name.strip():
        raise ConfigError(
            "--name", f"cannot be '{name}': metrics.json has other uses for it", "choose another name"
        )
    require_folder(out)
    if params != PARAMS and not params.is_file():
        raise ConfigError(
            "--params", f"{params} is no file", f"name a parameter file; {PARAMS} may be absent"
        )
    share_one_heap()
    opened = find_benchmark(benchmark, root, split, labels, params)
    source = ScoreFolder(scores, name, masks)
    source.require(opened.samples)
    settings = EvaluationSettings(
        seed=seed, bootstrap=bootstrap, own_mask=f"{name}_mask", threshold=threshold
    )
    with one_run_in(out):
        result = evaluate_benchmark(opened, source, settings)
        write_results(out, result)
        write_plots(out / "plots", [result])
        metrics = write_metrics(out / "metrics.json", [result], seed)
    print_summary(metrics)
    typer.echo(f"results: {out}")


def compare(
    first: Annotated[str, typer.Argument(help="Folder of an evaluation, or a git revision.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    *,
    benchmark: Annotated[
        str | None, typer.Option(help="One benchmark; all that both have by default.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Output to compare; all that both have by default.")
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Images that changed most to list.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the intervals and of p.")] = 0,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamplings for 95 % intervals and swaps for p; 0 for neither.")
    ] = 1000,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the comparison as JSON too.")
    ] = None,
) -> None:
    """Compare two evaluations image by image: paired differences with 95 % intervals and p by swapping images."""
    from anomdino.errors import ConfigError
    from anomdino.evaluation.compare import compare_runs
    from anomdino.evaluation.console import print_comparison
    from anomdino.io.atomic import atomic_write_json

    if json_path is not None and json_path.is_dir():
        raise ConfigError("--json", f"{json_path} is a folder", "name a file")
    comparison = compare_runs(
        first, second, benchmark=benchmark, output=output, images=images, seed=seed, bootstrap=bootstrap
    )
    print_comparison(comparison, first, second)
    if json_path is not None:
        atomic_write_json(json_path, comparison)


@submit_app.command()
def smiyc(
    *,
    scores: Annotated[
        Path, typer.Option(help="Folder of score maps: <key>.npz (arr_0), .npy, .tif or .hdf5 (value).")
    ],
    root: Annotated[Path, typer.Option(help="Folder that holds the data set.")],
    method: Annotated[str, typer.Option(help="Name of the method.")],
    track: Annotated[str, typer.Option(help="anomaly or obstacle.")] = "anomaly",
    split: Annotated[str, typer.Option(help="Frames to write.")] = "all",
    expected_count: Annotated[
        int | None, typer.Option(min=0, help="Number of frames; the benchmark's by default, 0 for any.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the submission.")] = Path("outputs"),
) -> None:
    """Write the HDF5 files that SegmentMeIfYouCan evaluates, and check them."""
    from anomdino.benchmarks import REGISTRY, open_benchmark
    from anomdino.errors import ConfigError
    from anomdino.evaluation import ScoreFolder
    from anomdino.io.atomic import require_folder
    from anomdino.io.locking import one_run_in
    from anomdino.submission import write_submission

    require_folder(out)
    entries = {"anomaly": "AnomalyTrack", "obstacle": "ObstacleTrack"}
    if track not in entries:
        raise ConfigError("--track", f"'{track}' is unknown", "use anomaly or obstacle")
    entry = REGISTRY[entries[track]]
    benchmark = open_benchmark(entry.layout, root, split, name=entries[track])
    source = ScoreFolder(scores)
    source.require(benchmark.samples)
    expected = entry.counts.get(split) if expected_count is None else expected_count or None
    with one_run_in(out):
        paths = write_submission(
            benchmark,
            lambda sample: source.predictions(sample)[source.name].score,
            out,
            method,
            expected_count=expected,
        )
    typer.echo(f"{counted(len(paths), 'file')} in {paths[0].parent}")
