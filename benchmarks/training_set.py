"""Where the scripts that train ADT-Net find composed images: in the project, or in a folder of pipeline.release_adt."""

from __future__ import annotations

from pathlib import Path

from anomdino.adt.dataset import TrainingFiles

DATA = Path("data")
HELP = "the --work folder of pipeline.release_adt, whose composed images train; absent: the project's own"


def training_files(folder: Path | None) -> TrainingFiles:
    """Give the composed training set with scores and boxes: the project's, or that of ``pipeline.release_adt``."""
    train = folder / "train" if folder else DATA / "train_dataset"
    return TrainingFiles(
        folder / "scores" if folder else train / "offline_dataset_score",
        train / "offline_dataset_label",
        folder / "boxes.json" if folder else DATA / "boxes" / "train.json",
        train / "ood.json",
        train / "offline_dataset",
    )
