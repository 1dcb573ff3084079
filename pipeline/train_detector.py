"""Stage train_detector: the detector on composed images, and one a fold for honest boxes of the training set.

Usage: python -m pipeline.train_detector, or torchrun --nproc-per-node N -m pipeline.train_detector (launcher: pytorch)
"""

from __future__ import annotations

import shutil

import typer

from pipeline import _stage

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
WORK = _stage.DATA / "state" / "detector"


@app.command()
def main() -> None:
    """Train every detector that the folds ask for; the final one goes to data/models/detector itself.

    The state of each stays until all are trained: DVC removes those that are, when the stage runs again.
    """
    with _stage.stage("train_detector", "detector", "detect") as params:
        from mmengine.dist import get_rank

        from anomdino.detector.records import read_records, split_folds
        from anomdino.detector.training import train_detector
        from anomdino.device import resolve_device

        records = read_records(_stage.OOD_JSON, _stage.TRAIN_IMAGES, _stage.TRAIN_MAPS, _stage.TRAIN_LABELS)
        folds = split_folds(records, params.detect.folds, params.detect.holdout, params.seed)
        device = resolve_device(params.device)
        for fold in folds:
            folder = _stage.DETECTOR if fold.name == "final" else _stage.DETECTOR / fold.name
            trained = train_detector(
                params.detector, fold, folder, WORK, params.seed, device, _stage.RPL, keep_state=True
            )
        if get_rank() == 0:
            shutil.rmtree(WORK)
        _stage.done(
            "train_detector",
            detectors=len(folds),
            training_images=len(folds[-1].train),
            steps=trained.steps,
            AR100_held_out=round(trained.best_ar100, 4),
        )


if __name__ == "__main__":
    app()
