"""Distil a model's scorer, which looks at an image at several widths, into one that looks once.

Usage: python -m pipeline.distil --images FOLDER [--images FOLDER ...] [--of MODEL] [--to FOLDER] [--width 1280]

The model's scorer scores all images in the folders (no labels are needed; photos of many places, with foreign objects
and without, teach most), and a copy of it learns to give the same scores and the same class probabilities in one pass
at `--width`. Every folder teaches equally often; name one twice to have it twice as often. `--to` becomes a whole model,
its parameters with `score.widths: [width]`, detector and ADT-Net as they were, which `anomdino predict --models` and
`pipeline.measure --models` read. Several `--width` teach a student that scores by their mean, each of them what the
teacher's mean is. `--share 0.5` writes the mean of the student's weights and the teacher's; `--from MODEL` begins with
the scorer of another model, one distilled before, say. A killed training goes on where it stopped when called again.
`torchrun --nproc-per-node 2 -m pipeline.distil ...` scores and trains with two processes.
"""

from __future__ import annotations

import itertools
import shutil
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from anomdino.config.params import Params, check_params, load_params, render_params, with_changes
from anomdino.errors import ConfigError
from anomdino.io.atomic import atomic_write_text
from anomdino.io.listing import list_images
from anomdino.release.build import put_folder
from anomdino.seeding import seed_everything
from pipeline._release import TARGET, command

if TYPE_CHECKING:
    from anomdino.scorer.distillation import DistillationPlan, Distilled, ScoredImage
    from anomdino.scorer.distributed import World

SCORING = timedelta(hours=12)
"""How long processes wait for one another while images are composed and scored."""
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    images: Annotated[list[Path], typer.Option(help="Folder of images of the training domain.")],
    of: Annotated[Path, typer.Option(help="The model whose scorer teaches.")] = TARGET,
    to: Annotated[Path, typer.Option(help="The model with the student.")] = Path("out/distil/model"),
    work: Annotated[Path, typer.Option(help="Where the teacher's results and resume points lie.")] = Path(
        "out/distil"
    ),
    width: Annotated[
        list[int] | None,
        typer.Option(min=16, help="Width in pixels at which the student looks (1280); again for another."),
    ] = None,
    crop: Annotated[
        tuple[int, int],
        typer.Option(help="Height and width of the windows it learns from; no wider than the width."),
    ] = (608, 800),
    steps: Annotated[int, typer.Option(min=1, help="Steps of the training.")] = 1200,
    batch: Annotated[int, typer.Option(min=1, help="Windows a step.")] = 4,
    lr: Annotated[float, typer.Option(min=0, help="Of the residual block; the rest has a tenth.")] = 3e-4,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Student's share in the weights; the rest is the teacher's.")
    ] = 1.0,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="The model whose scorer the student starts as, if not the teacher."),
    ] = None,
) -> None:
    """Score, distil, write the model."""
    from anomdino.device import resolve_device
    from anomdino.scorer.distillation import DistillationPlan
    from anomdino.scorer.distributed import joined_processes

    with command("distil", *images):
        if to.resolve() == of.resolve():
            raise ConfigError("--to", f"is {to}, the teacher itself", "name another folder")
        check_folders(images)
        params = load_params(of / "params.yaml")
        if params.score.source == "transformers":
            raise ConfigError(
                "--of", f"{of} scores by a network of transformers", "name a model of this project"
            )
        plan = DistillationPlan(
            widths=check_widths(width or [1280]), crop=check_crop(crop), steps=steps, batch=batch, lr=lr
        )
        begun = check_start(of / "models" / "rpl", start / "models" / "rpl") if start else None
        seed_everything(params.seed)
        with joined_processes(resolve_device(params.device), SCORING) as world:
            done = distilled(params, of / "models" / "rpl", images, plan, work, world, begun)
            if world.leads:
                write_model(of, to, params, plan, done, share)
                typer.echo(
                    f"distil: the score at {' + '.join(map(str, plan.widths))} differs from the teacher's by "
                    f"{done.before['distance_score']:.3f} before, {done.after['distance_score']:.3f} now "
                    f"(held-out images, mean); {to}"
                )
            world.wait()


def check_folders(folders: list[Path]) -> None:
    """Look whether every folder has an image to learn from and one to keep back.

    Raises:
        ConfigError: One has fewer than two images.
        DataError: One does not exist.
    """
    for folder in folders:
        count = len(list_images(folder))
        if count < 2:
            raise ConfigError("--images", f"{folder} has {count} images", "give at least two in each folder")


def check_widths(widths: list[int]) -> tuple[int, ...]:
    """Give the student's widths.

    Raises:
        ConfigError: One stands there twice.
    """
    if len(set(widths)) < len(widths):
        raise ConfigError("--width", f"is {widths}", "name each width once")
    return tuple(widths)


def check_crop(crop: tuple[int, int]) -> tuple[int, int]:
    """Give the size of the windows.

    Raises:
        ConfigError: A side is shorter than 16 pixels.
    """
    if min(crop) < 16:
        raise ConfigError("--crop", f"is {crop[0]} {crop[1]}", "both sides need 16 pixels and more")
    return crop


def check_start(teacher: Path, start: Path) -> Path:
    """Give the scorer that the student starts as.

    Raises:
        ConfigError: It is not of the teacher's architecture.
        CheckpointError: One of them cannot be loaded.
    """
    from anomdino.scorer.base import load_scorer

    theirs, own = load_scorer(teacher).spec, load_scorer(start).spec
    if own != theirs:
        raise ConfigError(
            "--from", f"{start} is {own}, the teacher {theirs}", "name a model trained from the teacher"
        )
    return start


def distilled(
    params: Params,
    teacher: Path,
    folders: list[Path],
    plan: DistillationPlan,
    work: Path,
    world: World,
    start: Path | None = None,
    state: Path | None = None,
) -> Distilled:
    """Score the folders by the teacher and train the student; its resume points lie in ``state`` (``work``/state).

    What `score.refine` does after a network is not taught: it follows the student as it followed the teacher.
    """
    from anomdino.scorer.distillation import distil
    from anomdino.scorer.setup import scoring_options

    params = with_changes(params, "score", refine=[], refine_net=False)
    for folder in dict.fromkeys(folders):
        score_folder(params, teacher, folder, work, world)
    world.wait()
    scored = [list_scored(folder, work) for folder in folders]
    options = scoring_options(params.score)
    return distil(
        teacher, options, scored, plan, state or work / "state", seed=params.seed, world=world, start=start
    )


def score_folder(params: Params, teacher: Path, folder: Path, work: Path, world: World) -> None:
    """Write the teacher's scores and maps of a folder, every process its share; those that are valid are kept."""
    from anomdino.scorer.run import Outputs
    from anomdino.scorer.setup import set_scorer

    results, images = results_of(folder, work), list_images(folder)
    outputs = Outputs(results / "scores", results / "maps")
    scorer = set_scorer(params.score, teacher, world.device, outputs, f"score {folder}")
    if world.leads:
        scorer.remove_strangers(images)
    world.wait()
    scorer.score(dict(itertools.islice(images.items(), world.rank, None, world.size)))


def list_scored(folder: Path, work: Path) -> list[ScoredImage]:
    """List a folder's images with the teacher's results; images that could not be read have none and are left out."""
    from anomdino.scorer.distillation import ScoredImage

    results = results_of(folder, work)
    files = {
        key: (path, results / "scores" / f"{key}.npz", results / "maps" / f"{key}.npz")
        for key, path in list_images(folder).items()
    }
    return [ScoredImage(key, *paths) for key, paths in files.items() if paths[1].is_file()]


def results_of(folder: Path, work: Path) -> Path:
    """Give where the teacher's results of a folder lie: below ``work``, by the folder's whole path."""
    return work / "teacher" / Path(*folder.resolve().parts[1:])


def write_model(
    of: Path, to: Path, params: Params, plan: DistillationPlan, done: Distilled, share: float
) -> None:
    """Write the model with the student in half precision; what lay in ``to`` before is replaced.

    With a ``share`` below 1 the weights are ``share`` times the student's plus the rest of the teacher's (Wortsman et
    al., "Robust fine-tuning of zero-shot models", 2022).
    """
    import torch

    from anomdino.scorer.base import load_scorer, save_scorer

    teacher = load_scorer(of / "models" / "rpl").state_dict()
    for name, tensor in done.scorer.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(teacher[name].to(tensor), tensor, share))
    content = params.model_dump(mode="json")
    content["score"] |= {"widths": list(plan.widths), "fusion": "mean", "refine_net": False}
    changed = check_params(content, str(to))
    details = {"trained by": "python -m pipeline.distil", "share": share}
    details |= {"student before": done.before, "student after": done.after}
    with TemporaryDirectory() as temporary:
        models = Path(temporary) / "models"
        shutil.copytree(of / "models", models, ignore=shutil.ignore_patterns("rpl"))
        save_scorer(done.scorer, models / "rpl", details, dtype=torch.float16)
        put_folder(models, to / "models")
    atomic_write_text(to / "params.yaml", render_params(changed))


if __name__ == "__main__":
    app()
