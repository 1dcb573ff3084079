"""``anomdino show``: the metrics of the last evaluation, and where its report is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    metrics: Annotated[Path, typer.Argument(help="The file that the stage evaluate wrote.")] = Path(
        "metrics.json"
    ),
) -> None:
    """Print the metrics of the last evaluation and where its report is."""
    import json

    from anomdino.errors import DataError
    from anomdino.evaluation.console import print_summary

    metrics = metrics / "metrics.json" if metrics.is_dir() else metrics
    try:
        content = json.loads(metrics.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(metrics, "does not exist", "run the pipeline first: `dvc repro`") from error
    except (ValueError, OSError) as error:
        raise DataError(metrics, f"is no JSON ({error})", "run `dvc repro evaluate`") from error
    blocks = content.values() if isinstance(content, dict) else ()
    if not any(isinstance(block, dict) and "protocol" in block for block in blocks):
        raise DataError(metrics, "holds no metrics", "give the metrics.json of an evaluation")
    print_summary(content)
    page = metrics.parent / "report" / "index.html"
    print(
        f"report: {page}"
        if page.is_file()
        else "report: none here, `dvc repro evaluate` writes report/index.html"
    )
