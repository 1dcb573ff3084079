"""Stage score: anomaly scores and uncertainty maps, of the composed training images or of a benchmark.

Usage: python -m pipeline.score train | benchmark NAME
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from anomdino.config.params import Params
from pipeline import _stage

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train() -> None:
    """Score the composed training images."""
    from anomdino.io.listing import list_images

    with _stage.stage("score train", "score") as params:
        images = list_images(_stage.TRAIN_IMAGES)
        score_set("train", images, _stage.TRAIN_SCORES, _stage.TRAIN_MAPS, params)


@app.command()
def benchmark(name: Annotated[str, typer.Argument(help="A name of benchmark.sets")]) -> None:
    """Score a benchmark."""
    with _stage.stage(f"score {name}", "score", "benchmark") as params:
        images = {sample.key: sample.image for sample in _stage.open_benchmark(params, name).samples}
        score_set(name, images, _stage.SCORES / name / "score", _stage.SCORES / name / "maps", params)


def score_set(name: str, images: dict[str, Path], scores: Path, maps: Path, params: Params) -> None:
    """Score one set of images with what the parameters name."""
    from anomdino.scorer.run import Outputs
    from anomdino.scorer.setup import maps_from, set_scorer

    device, outputs = _stage.device_of(params), Outputs(scores, maps)
    scorer = set_scorer(params.score, _stage.RPL, device, outputs, f"score {name}")
    report = replace(scorer, source=maps_from(params.score, name, images)).run(images)
    _stage.done(f"score {name}", scored=report.scored, kept=report.reused, skipped=len(report.skipped))


if __name__ == "__main__":
    app()
