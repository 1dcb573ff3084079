"""Stage train_rpl: the scorer, closed-set first, then RPL's residual block.

Usage: python -m pipeline.train_rpl, or torchrun --nproc-per-node N -m pipeline.train_rpl
"""

from __future__ import annotations

import typer

from pipeline import _stage

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main() -> None:
    """Train the scorer, or take it from a checkpoint, as the block `rpl` says."""
    from anomdino.scorer.recipe import train_scorer

    with _stage.stage("train_rpl", "rpl") as params:
        trained = train_scorer(
            params.rpl,
            _stage.INLIER,
            _stage.OUTLIERS,
            _stage.RPL,
            seed=params.seed,
            device=_stage.device_of(params),
        )
        figures = {"AP on composed images": f"{trained.composed['ap']:.3f}"} if trained.composed else {}
        if trained.quality is not None:
            figures["closed-set mIoU"] = f"{trained.quality.miou:.3f}"
        parameters = sum(parameter.numel() for parameter in trained.scorer.parameters())
        _stage.done("train_rpl", parameters=parameters, **figures)


if __name__ == "__main__":
    app()
