"""Stage `download`: inlier images, outlier objects, benchmarks and weights, from the chosen source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomdino.acquisition.fill import fill
from pipeline._stage import DATA, done, stage


def main(
    params: Annotated[Path, typer.Option(help="The parameter file.")] = Path("params.yaml"),
    root: Annotated[Path, typer.Option(help="The folder to fill.")] = DATA,
) -> None:
    """Fill data/inlier, data/outliers, data/val and data/weights."""
    with stage("download", "data", params=params) as checked:
        counts = fill(checked.data, root)
        done("download", **counts)


if __name__ == "__main__":
    typer.run(main)
