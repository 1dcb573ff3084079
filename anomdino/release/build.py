"""From a trained pipeline to the model that is released with the package."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
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
    left out.

    Args:
        models: Folder with ``rpl`` and, where they were trained, ``detector`` and ``adt``.
        params: The parameters that they were trained with, without the user's own paths.
        target: Folder of the release; parts of it that are replaced are replaced whole.
        details: What the scorer's ``config.json`` should say about its origin.

    Returns:
        Bytes of the weights by part.

    Raises:
        CheckpointError: A model is missing or does not load, or the scorer is larger than 14 MB.
    """
    import torch

    from anomdino.scorer.base import load_scorer, save_scorer

    scorer = load_scorer(models / "rpl")
    rpl = target / "models" / "rpl"
    save_scorer(scorer, rpl, details, dtype=torch.float16)
    sizes = {"rpl": (rpl / WEIGHTS).stat().st_size}
    if sizes["rpl"] > SCORER_LIMIT:
        raise CheckpointError(
            rpl, f"has {sizes['rpl']} bytes, {SCORER_LIMIT} are allowed", "make the network smaller"
        )
    for part in ("detector", "adt"):
        source, folder = models / part, target / "models" / part
        if not (source / CONFIG).is_file():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if part == "detector":
            halve_detector(source, folder)
        else:
            for file in [*sorted(source.glob("*.safetensors")), source / CONFIG]:
                shutil.copyfile(file, folder / file.name)
        sizes[part] = (folder / WEIGHTS).stat().st_size
    atomic_write_text(target / "params.yaml", render_params(params))
    return sizes


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
