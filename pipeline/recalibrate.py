"""Fit detector and ADT-Net of a model to another scorer: their standardisation moves, nothing is trained.

Usage: python -m pipeline.recalibrate --before SCORER --inlier SCENES --outliers OBJECTS [--to FOLDER]

A scorer that was trained on, or whose widths are joined in another way, gives scores of another mean and spread, and
what reads them by fixed statistics then takes objects for background. SCORER is the one that detector and ADT-Net
learned from; the model's own, in its place now, scores the same composed images, and the stored statistics move as mean
and spread of the scores did. Both note for which scorer, so that a second run, or one after a run that was killed, does
not move them again. SCENES (`images/`, `labels/`) and OBJECTS (`images/`, `masks/`) are any of the training domain:
nothing is learned from them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomdino.config.params import Params, with_changes
from anomdino.errors import CheckpointError, ConfigError
from anomdino.io.listing import list_images
from pipeline import _release
from pipeline._material import IMAGES, held_out_objects, score_images

if TYPE_CHECKING:
    from anomdino.adt.model import ScoreStatistics

NOTE = "recalibrated_for"
"""Under this name detector and ADT-Net say which scorer they are fitted to: the digest of its weights."""
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    before: Annotated[Path, typer.Option(help="The scorer that detector and ADT-Net learned from.")],
    inlier: _release.Scenes,
    outliers: _release.Objects,
    work: _release.ComposedWork = Path("out/recalibrate"),
    to: Annotated[Path, typer.Option(help="The model.")] = _release.TARGET,
    count: Annotated[int, typer.Option(min=1, help="Composed images.")] = 40,
) -> None:
    """Compose, score twice, move the statistics."""
    from anomdino.adt.model import ScoreStatistics
    from anomdino.adt.store import load_adt, save_adt
    from anomdino.data.compose import compose
    from anomdino.detector.weights import score_statistics, set_score_statistics

    models = to / "models"
    with _release.training_command("recalibrate", to, inlier, outliers) as params:
        adt, now = load_adt(models / "adt"), weights_digest(models / "rpl", params)
        if adt.provenance.get(NOTE) == now:
            raise ConfigError("--to", f"{to} is fitted to its scorer already", "nothing is left to do")
        objects = held_out_objects(params, outliers, work / "outliers")
        compose(
            params.compose.model_copy(update={"count": count}), params.seed, inlier, objects, work / "train"
        )
        old = scored(params, before, work, "before")
        new = scored(params, models / "rpl", work, "now")
        adt.net.statistics = moved(adt.net.statistics, old, new)
        detector = moved_before(models / "detector", now) or moved(
            ScoreStatistics(*score_statistics(models / "detector")), old, new
        )
        set_score_statistics(models / "detector", detector.mean, detector.std, {NOTE: now})
        adt.provenance[NOTE] = now
        save_adt(adt, models / "adt")
    typer.echo(
        f"recalibrate: scores {old.mean:.3f} +- {old.std:.3f} before, {new.mean:.3f} +- {new.std:.3f} now; "
        f"detector {detector.mean:.3f}, {detector.std:.3f}; ADT-Net {adt.net.statistics.mean:.3f}, "
        f"{adt.net.statistics.std:.3f}"
    )


def weights_digest(scorer: Path, params: Params) -> str:
    """Give the SHA-256 of a scorer's weight file, and of its fusion of widths where it has one, in hexadecimal digits.

    Raises:
        CheckpointError: There is none.
    """
    from anomdino.scorer.base import WEIGHTS_FILE
    from anomdino.scorer.width_fusion import fusion_file

    digest, files = hashlib.sha256(), [scorer / WEIGHTS_FILE]
    if params.score.fusion == "learned":
        files.append(fusion_file(scorer, params.score.widths))
    for file in files:
        if not file.is_file():
            raise CheckpointError(file, "does not exist", "name the folder of a trained scorer")
        digest.update(file.read_bytes())
    return digest.hexdigest()


def scored(params: Params, scorer: Path, work: Path, name: str) -> ScoreStatistics:
    """Score the composed images and give mean and standard deviation of all their pixels.

    A scorer without a fusion of widths beside it scores by their mean. What `score.refine_net` takes away
    stays in: the detector reads the score without it.
    """
    from anomdino.adt.dataset import measure_scores
    from anomdino.io.scores import read_score
    from anomdino.scorer.width_fusion import fusion_file

    images = work / "train" / IMAGES
    fusion = params.score.fusion if fusion_file(scorer, params.score.widths).is_file() else "mean"
    plain = with_changes(params, "score", fusion=fusion, refine_net=False)
    score_images(plain, scorer, images, work / name)
    return measure_scores(read_score(work / name / "scores" / f"{key}.npz") for key in list_images(images))


def moved_before(detector: Path, now: str) -> ScoreStatistics | None:
    """Give the statistics that a call that was killed before its end moved a detector's to; None if there was none."""
    from anomdino.adt.model import ScoreStatistics
    from anomdino.detector.weights import CONFIG_FILE

    try:
        content = json.loads((detector / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return ScoreStatistics(**content["score"]) if content.get(NOTE) == now else None


def moved(statistics: ScoreStatistics, old: ScoreStatistics, new: ScoreStatistics) -> ScoreStatistics:
    """Move statistics so that a score stands to them as it stood before.

    Args:
        statistics: Those that scores are standardised with.
        old: Of the scores that they were made for.
        new: Of the scores of the other scorer on the same images.
    """
    from anomdino.adt.model import ScoreStatistics

    gain = new.std / old.std
    mean = new.mean + gain * (statistics.mean - old.mean)
    return ScoreStatistics(mean, gain * statistics.std, statistics.sign)


if __name__ == "__main__":
    app()
