"""Stage score_view: scores that a person can look at.

Usage: python -m pipeline.score_view train | benchmark NAME
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from anomdino.config.score_view import ScoreViewConfig
from pipeline import _stage

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train() -> None:
    """Draw the scores of the composed training images."""
    from anomdino.io.listing import list_images

    with _stage.stage("score_view", "score_view") as params:
        draw_views(
            list_images(_stage.TRAIN_IMAGES), _stage.TRAIN_SCORES, _stage.TRAIN_VIEWS, params.score_view
        )


@app.command()
def benchmark(name: Annotated[str, typer.Argument(help="A name of benchmark.sets")]) -> None:
    """Draw the scores of a benchmark."""
    with _stage.stage("score_view", "score_view", "benchmark") as params:
        samples = _stage.open_benchmark(params, name).samples
        images = {sample.key: sample.image for sample in samples}
        draw_views(images, _stage.SCORES / name / "score", _stage.VIEWS / name, params.score_view)


def draw_views(images: dict[str, Path], scores: Path, out: Path, config: ScoreViewConfig) -> None:
    """Draw one PNG an image, all on the score range of the whole set."""
    from anomdino.io.images import read_image, write_png
    from anomdino.io.scores import read_score
    from anomdino.progress import track
    from anomdino.viz.overlay import draw_overlay
    from anomdino.viz.score_views import common_range

    shutil.rmtree(out, ignore_errors=True)
    files = {key: scores / f"{key}.npz" for key in images}
    span = common_range(
        (read_score(f) for f in files.values()), config.low_percentile, config.high_percentile
    )
    _stage.log.info("score range %.4g .. %.4g (%s)", span.low, span.high, span.origin)
    for key, path in track(images.items(), "score_view", total=len(images)):
        image = read_image(path)
        view = draw_overlay(
            image,
            read_score(files[key], size=image.shape[:2]),
            span,
            title=key,
            colormap=config.colormap,
            blend=config.blend,
            max_side=config.max_side,
        )
        write_png(out / f"{key}.png", view)
    _stage.done("score_view", views=len(images))


if __name__ == "__main__":
    app()
