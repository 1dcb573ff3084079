"""Stage train_adt: train ADT-Net on the scores and out-of-fold boxes of the composed images.

Usage: python -m pipeline.train_adt, or torchrun --nproc-per-node N -m pipeline.train_adt
An interrupted run continues where it stopped when it is started again with the same parameters and inputs.
"""

from __future__ import annotations

import typer

from pipeline import _stage

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
STATE = _stage.DATA / "state" / "adt.pt"


@app.command()
def main() -> None:
    """Train, choose the epoch and the fusion's weights on held-out composed images, and write the model."""
    with _stage.stage("train_adt", "adt") as params:
        from anomdino.adt.dataset import TrainingFiles
        from anomdino.adt.training import TrainingHost, plan_from, train_adt
        from anomdino.adt.tuning import tune_trained
        from anomdino.device import resolve_device

        config = params.adt
        files = TrainingFiles(
            scores=_stage.TRAIN_SCORES,
            labels=_stage.TRAIN_LABELS,
            boxes=_stage.BOXES / "train.json",
            index=_stage.OOD_JSON,
            images=_stage.TRAIN_IMAGES if config.outline else None,
        )
        host = TrainingHost(
            device=str(resolve_device(params.device)),
            amp=config.amp,
            workers=config.workers,
            state=STATE,
            dvclive=config.dvclive,
            pictures_every=config.pictures_every,
        )
        plan = plan_from(config)
        model = train_adt(files, plan, _stage.ADT, seed=params.seed, host=host)
        if config.tune:
            model = tune_trained(
                model,
                files,
                plan,
                _stage.ADT,
                seed=params.seed,
                objective=config.tune_objective,
                tolerance=config.tune_tolerance,
                floor=config.mask_floor == "auto",
            )
        held_out = model.provenance["held_out"]
        _stage.done(
            "train_adt",
            images=sum(model.provenance["images"].values()),
            best_epoch=model.provenance["best_epoch"],
            AP_held_out=round(held_out["val_ap"], 4),
            F1_held_out=round(held_out["val_f1"], 4),
            box_score=model.rule.box_score,
            k=model.rule.k,
            b=model.rule.b,
            mask_floor=model.rule.mask_floor,
        )


if __name__ == "__main__":
    app()
