"""From a trained pipeline to the model that is released with the package."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anomdino.config.params import Params, render_params
from anomdino.errors import CheckpointError
from anomdino.io.atomic import atomic_path, atomic_write_text

SCORER_LIMIT = 14_000_000
WEIGHTS, CONFIG, TEXT_ENCODER = "model.safetensors", "config.json", "text_encoder"


def build_release(
    models: Path, params: Params, target: Path, details: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Lay out a released model: ``params.yaml`` and ``models/{rpl,detector,adt}``.

    Scorer and detector are stored in half precision, the small ADT-Net as it is. Parts that were not trained are
    left out. Nothing is replaced before all parts are made.

    Args:
        models: Folder with ``rpl`` and, where they were trained, ``detector`` and ``adt``.
        params: The parameters that they were trained with, without the user's own paths.
        target: Folder of the release; of a part that is replaced nothing stays (:func:`put_folder`).
        details: What the scorer's ``config.json`` should say about its origin.

    Returns:
        Bytes of the weights by part.

    Raises:
        CheckpointError: A model is missing or does not load, or the scorer is larger than 14 MB.
    """
    import torch

    from anomdino.scorer.base import load_scorer, save_scorer

    scorer = load_scorer(models / "rpl")
    with TemporaryDirectory() as temporary:
        made = {part: Path(temporary) / part for part in ("rpl", "detector", "adt")}
        save_scorer(scorer, made["rpl"], details, dtype=torch.float16)
        if (models / "detector" / CONFIG).is_file():
            halve_detector(models / "detector", made["detector"])
        if (models / "adt" / CONFIG).is_file():
            made["adt"].mkdir()
            for file in [*sorted((models / "adt").glob("*.safetensors")), models / "adt" / CONFIG]:
                shutil.copyfile(file, made["adt"] / file.name)
        sizes = {part: (folder / WEIGHTS).stat().st_size for part, folder in made.items() if folder.is_dir()}
        if sizes["rpl"] > SCORER_LIMIT:
            cause = f"has {sizes['rpl']} bytes in half precision, {SCORER_LIMIT} are allowed"
            raise CheckpointError(models / "rpl", cause, "make the network smaller")
        for part in sizes:
            put_folder(made[part], target / "models" / part)
    atomic_write_text(target / "params.yaml", render_params(params))
    return sizes


def put_folder(source: Path, target: Path) -> None:
    """Put the files of a folder in the place of another's, each whole or not at all; files that it lacks go.

    Raises:
        CheckpointError: There is none; nothing goes then.
    """
    files = {file.relative_to(source) for file in source.rglob("*") if file.is_file()}
    if not files:
        raise CheckpointError(source, "holds no file", "train it again")
    for name in sorted(files):
        with atomic_path(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
    for file in sorted(target.rglob("*")):
        if file.is_file() and file.relative_to(target) not in files:
            file.unlink()


def halve_detector(source: Path, folder: Path) -> None:
    """Put the detector of one folder into another, its weights in half precision; each file whole or not at all."""
    from safetensors.torch import load_file

    from anomdino.io.tensors import write_tensors

    tensors = load_file(source / WEIGHTS)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    write_tensors(folder / WEIGHTS, halved)
    for file in [source / CONFIG, *(source / TEXT_ENCODER).glob("*")]:
        with atomic_path(folder / file.relative_to(source)) as temporary:
            shutil.copyfile(file, temporary)


def half_agrees(models: Path, target: Path, images: int = 2) -> float:
    """Measure the relative error that half precision brings to the residual logits, on random images.

    Args:
        models: Folder with the trained ``rpl``.
        target: Folder of the release.
        images: How many images of 128 x 256 pixels.

    Returns:
        Norm of the difference over norm of the trained scorer's residual logits.
    """
    import torch

    from anomdino.scorer.base import load_scorer

    inputs = torch.randn(images, 3, 128, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        trained = load_scorer(models / "rpl")(inputs).residual_logits
        released = load_scorer(target / "models" / "rpl")(inputs).residual_logits
    return float((released - trained).norm() / trained.norm())
