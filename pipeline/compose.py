"""Stage compose: training images with outlier objects pasted into inlier scenes.

Usage: python -m pipeline.compose
"""

from __future__ import annotations

import typer

from pipeline import _stage

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main() -> None:
    """Compose the training set."""
    from anomdino.data.compose import compose

    with _stage.stage("compose", "compose") as params:
        counts = compose(
            params.compose, params.seed, _stage.INLIER / "train", _stage.OUTLIERS, _stage.TRAIN_SET
        )
        _stage.done("compose", **counts)


if __name__ == "__main__":
    app()
