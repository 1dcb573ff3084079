"""From labelled scenes and outlier objects to a trained scorer: closed-set training, then the residual
block, which may be trained on with outlier photos in whole.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from anomdino.errors import CheckpointError, ConfigError
from anomdino.io.atomic import atomic_path, atomic_write_json
from anomdino.io.digest import file_sha256, json_sha256
from anomdino.protocol import refuse_evaluation_data
from anomdino.scorer.base import (
    Scorer,
    ScorerSpec,
    anomaly_score,
    build_scorer,
    load_scorer,
    load_strictly,
    save_scorer,
    to_bytes,
)
from anomdino.scorer.batches import Batch, Sample, StepSampler, collate, load_batches, network_input
from anomdino.scorer.dataset import (
    ClosedSetCrops,
    ImagePairs,
    OutlierCrops,
    PhotoCrops,
    paste_rules,
    split_outliers,
)
from anomdino.scorer.distributed import World, joined_processes
from anomdino.scorer.live import Live, open_live
from anomdino.scorer.losses import OUTLIER, VOID
from anomdino.scorer.objectives import ClosedSetObjective, Objective, ResidualObjective
from anomdino.scorer.residual import DecoderScorer
from anomdino.scorer.schedule import PolySchedule
from anomdino.scorer.training import (
    Loader,
    Plan,
    Record,
    Validation,
    fit,
    read_state,
    steps_of,
    tell,
)
from anomdino.scorer.validation import ClosedSetQuality, closed_set_quality, composed_quality
from anomdino.seeding import seed_everything

if TYPE_CHECKING:
    from anomdino.config.rpl import ClosedSetConfig, ResidualConfig, RplConfig

log = logging.getLogger(__name__)

CRITERIA = {
    "closed_set": ("validation_loss", False),
    "residual": ("ap", True),
    "outlier_photos": ("ap", True),
}
"""Validation value that chooses the best weights of a phase, and whether higher is better."""


@dataclass(frozen=True)
class Trained:
    """Result of :func:`train_scorer`.

    Attributes:
        scorer: The scorer, in evaluation mode.
        quality: Closed-set quality on the held-out scenes; ``None`` for a scorer without a decoder.
        composed: AP of the residual (``ap``) and of the closed-set energy (``ap_closed``) on composed held-out
            images; where outlier photos in whole were trained on, also on held-out ones, ``ap_photos`` and
            ``ap_closed_photos``.
        history: Records of all phases.
    """

    scorer: Scorer
    quality: ClosedSetQuality | None
    composed: Mapping[str, float]
    history: list[Record]


def train_scorer(
    config: RplConfig,
    inlier: Path,
    outliers: Path,
    out: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    state: Path | None = None,
) -> Trained:
    """Train a scorer, or take one from a checkpoint, and write it to ``out``.

    Writes ``model.safetensors``, ``config.json``, ``history.json`` and ``closed_set_miou.json``. A training
    that was killed goes on from its last resume point when called again with the same arguments.

    Args:
        config: The block ``rpl``.
        inlier: Folder with ``train`` and ``val``, each with ``images`` and ``labels`` (train ids).
        outliers: Folder with ``images`` and ``masks`` of foreign objects.
        out: Folder of the result.
        seed: Seed of weights, crops and order.
        device: Where to train.
        state: Folder of resume points, removed at the end; default: a hidden folder beside ``out``.

    Raises:
        ProtocolError: A folder is marked as evaluation data.
        DataError: Scenes, labels or objects cannot be used.
        ConfigError: The architecture has no decoder and so cannot be trained here.
        TrainingError: A loss, a weight or a validation is not finite.
    """
    refuse_evaluation_data(inlier, outliers)
    state = state or out.parent / f".{out.name}.training"
    with joined_processes(torch.device(device)) as world:
        _prepare(world.device, seed)
        trainer = Trainer(config, inlier, outliers, seed=seed, world=world)
        trained = trainer.from_checkpoint() if config.source == "checkpoint" else trainer.train(out, state)
        if world.leads:
            _write(trained, config, out, seed)
            shutil.rmtree(state, ignore_errors=True)
        world.wait()
    return trained


class Trainer:
    """The phases and what they share."""

    def __init__(self, config: RplConfig, inlier: Path, outliers: Path, *, seed: int, world: World) -> None:
        self.config, self.seed, self.world = config, seed, world
        self._inlier, self._outliers = inlier, outliers

    @cached_property
    def scenes(self) -> ImagePairs:
        """Scenes that are trained on."""
        return self._labelled("train", self.config.cache_mb)

    @cached_property
    def held_out(self) -> ImagePairs:
        """Scenes of the training domain that are kept for validation."""
        return self._labelled("val", self.config.cache_mb // 4)

    @cached_property
    def outliers(self) -> ImagePairs:
        """Photos of foreign objects with their masks."""
        return ImagePairs(self._outliers, "masks", None, self.config.cache_mb // 2)

    def _labelled(self, split: str, cache_mb: int) -> ImagePairs:
        allowed = [*range(self.config.num_classes), VOID]
        return ImagePairs(self._inlier / split, "labels", allowed, cache_mb)

    def from_checkpoint(self) -> Trained:
        """Take a trained scorer as it is."""
        path = Path(self.config.checkpoint)
        cure = (
            "train the block: set rpl.source: train, rpl.closed_set.source: checkpoint and "
            f"rpl.closed_set.checkpoint: {path}"
        )
        scorer = open_checkpoint(path, self._spec(), self.seed, without_block=cure).to(self.world.device)
        if not isinstance(scorer, DecoderScorer):
            return Trained(scorer.eval(), None, {}, [])
        quality = closed_set_quality(scorer, self.held_out, self.world.device)
        return Trained(scorer.eval(), quality, self._composed(scorer, self._last_phase), [])

    def train(self, out: Path, state: Path) -> Trained:
        """Train closed-set, then the residual block in its phases; curves go to ``out``, resume points to ``state``."""
        self._check()
        scorer = self._new_scorer()
        live = open_live(out / "live", self.config.live and self.world.leads)
        history = [*self._train_closed_set(scorer, state / "closed_set", live)]
        quality = closed_set_quality(scorer, self.held_out, self.world.device)
        log.info("closed set: mIoU %.3f on %d held-out images", quality.miou, len(self.held_out))
        for phase, residual in self.config.residual_phases().items():
            history += self._train_residual(phase, residual, scorer, state / phase, live)
        composed = self._composed(scorer, self._last_phase)
        log.info(
            "residual: AP %.3f on composed images (closed set: %.3f)", composed["ap"], composed["ap_closed"]
        )
        if live is not None:
            self._show_samples(scorer, live)
            live.close()
        return Trained(scorer.eval(), quality, composed, history)

    def _check(self) -> None:
        """Refuse, before anything is trained, a batch that the processes cannot share equally, and wrong paste rules."""
        batches = {name: phase.batch for name, phase in self.config.residual_phases().items()}
        if self.config.closed_set.source == "train":
            batches["closed_set"] = self.config.closed_set.batch
        for name, batch in batches.items():
            if batch % self.world.size:
                cause = f"{batch} does not divide by {self.world.size} processes"
                raise ConfigError(f"rpl.{name}.batch", cause, "change one")
        for phase in self.config.residual_phases().values():
            paste_rules(phase.paste)

    def _new_scorer(self) -> DecoderScorer:
        config, goes_on = self.config.closed_set, self.config.residual.start == "checkpoint"
        cure = "set rpl.residual.start: fresh" if goes_on else ""
        scorer = (
            open_checkpoint(Path(config.checkpoint), self._spec(), self.seed, without_block=cure)
            if config.source == "checkpoint"
            else build_scorer(self._spec())
        )
        if not isinstance(scorer, DecoderScorer):
            raise ConfigError(
                "rpl.architecture",
                f"'{self.config.architecture}' has no decoder that a residual block could be trained on",
                "choose small, efficientnet_lite0 or wide_resnet38, or let score.source name the network",
            )
        if config.source == "train" and config.pretrained:
            log.info("encoder starts from %s", scorer.load_pretrained_encoder())
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        scorer.to(self.world.device)
        return scorer.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]

    def _train_closed_set(self, scorer: DecoderScorer, folder: Path, live: Live | None) -> list[Record]:
        config = self.config.closed_set
        if config.source == "checkpoint":
            return []
        plan = self._plan("closed_set", config)
        finished = _finished(folder, plan, scorer, self.world, live)
        if finished is not None:
            return finished
        weights = class_weights(self.scenes, self.config.num_classes, config.class_balance)
        objective = ClosedSetObjective(
            scorer, self.world, config, weights.to(self.world.device) if config.class_balance else None
        ).to(self.world.device)

        def validate() -> dict[str, float]:
            quality = closed_set_quality(scorer, self.held_out, self.world.device)
            return {"validation_loss": quality.loss, "miou": quality.miou}

        crops = ClosedSetCrops(self.scenes, config.augment, self.seed)
        load = self._loader(crops, config.batch, plan, shuffle=True)
        return self._fitted(objective, load, validate, plan, folder, live)

    def _train_residual(
        self, phase: str, config: ResidualConfig, scorer: DecoderScorer, folder: Path, live: Live | None
    ) -> list[Record]:
        torch.manual_seed(self.seed + 1)
        if config.start == "fresh":
            scorer.start_residual(config.copy_context)
        plan = self._plan(phase, config)
        finished = _finished(folder, plan, scorer, self.world, live)
        if finished is not None:
            return finished
        objective = ResidualObjective(scorer, self.world, config, self.seed)
        chosen, _ = split_outliers(self.outliers, config.outlier_holdout, self.seed)
        dataset = OutlierCrops(self.scenes, self.outliers, chosen, config, seed=self.seed)
        load = self._loader(
            dataset,
            config.batch,
            plan,
            shuffle=config.order == "shuffled",
            outlier_probability=config.outlier_probability,
        )
        return self._fitted(objective, load, lambda: self._composed(scorer, config), plan, folder, live)

    def _fitted(
        self,
        objective: Objective[Batch],
        load: Loader[Batch],
        validate: Validation,
        plan: Plan,
        folder: Path,
        live: Live | None,
    ) -> list[Record]:
        """Train a phase, and note that it is over."""
        history = fit(objective, load, validate, plan, world=self.world, folder=folder, live=live)
        _finish(folder, plan, objective.scorer, history, self.world)
        return history

    @property
    def _last_phase(self) -> ResidualConfig:
        return list(self.config.residual_phases().values())[-1]

    def _composed(self, scorer: DecoderScorer, config: ResidualConfig) -> dict[str, float]:
        quality = composed_quality(scorer, self._validation_batches(config), self.world.device)
        if config.whole_photos:
            photos = composed_quality(scorer, self._photo_batches(config), self.world.device)
            quality |= {f"{name}_photos": value for name, value in photos.items()}
        return quality

    def _photo_batches(self, config: ResidualConfig) -> Iterable[Batch]:
        _, held = split_outliers(self.outliers, config.outlier_holdout, self.seed)
        photos = PhotoCrops(self.outliers, held, config.augment.crop)
        for first in range(0, len(photos), config.batch):
            yield collate([photos[place] for place in range(first, min(first + config.batch, len(photos)))])

    def _validation_batches(self, config: ResidualConfig) -> Iterable[Batch]:
        _, held = split_outliers(self.outliers, config.outlier_holdout, self.seed)
        pasted = config.model_copy(update={"whole_photos": 0.0})
        dataset = OutlierCrops(
            self.held_out, self.outliers, held, pasted, seed=self.seed, stream="validation"
        )
        batch = min(config.batch, config.validation_images)
        sampler = StepSampler(len(self.held_out), batch, max(1, config.validation_images // batch), self.seed)
        return load_batches(dataset, sampler, 0)

    def _show_samples(self, scorer: DecoderScorer, live: Live) -> None:
        """Log overlays of the score on the first composed validation images."""
        from anomdino.viz.overlay import draw_overlay
        from anomdino.viz.score_views import common_range

        batch = next(iter(self._validation_batches(self._last_phase)))
        inputs = network_input(batch.images)
        with torch.inference_mode():
            scores = anomaly_score(scorer.eval()(inputs.to(self.world.device))).cpu().numpy()
        pictures = to_bytes(inputs)
        span = common_range(list(scores), 1.0, 99.0)
        for number, (picture, score, label) in enumerate(zip(pictures, scores, batch.labels, strict=True)):
            truth = np.where(label == VOID, VOID, label == OUTLIER).astype(np.uint8)
            live.image(f"composed_{number}", draw_overlay(picture, score, span, truth=truth))

    def _loader(
        self,
        dataset: Dataset[Sample],
        batch: int,
        plan: Plan,
        *,
        shuffle: bool,
        outlier_probability: float = 1.0,
    ) -> Loader[Batch]:
        def load(start: int) -> Iterable[Batch]:
            sampler = StepSampler(
                len(self.scenes),
                batch,
                plan.schedule.total,
                self.seed,
                start=start,
                rank=self.world.rank,
                world=self.world.size,
                shuffle=shuffle,
                outlier_probability=outlier_probability,
            )
            return load_batches(dataset, sampler, self._workers(), pin=self.world.device.type == "cuda")

        return load

    def _plan(self, name: str, config: ClosedSetConfig | ResidualConfig) -> Plan:
        schedule = config.schedule
        total = steps_of(schedule.steps, schedule.epochs, len(self.scenes), config.batch)
        criterion, higher = CRITERIA[name]
        return Plan(
            name=name,
            schedule=PolySchedule(total, schedule.power, schedule.minimum, schedule.lag, schedule.warmup),
            precision=self.config.precision,
            clip=config.clip,
            log_every=self.config.log_every,
            validate_every=config.validate_every,
            checkpoint_every=self.config.checkpoint_every,
            criterion=criterion if config.keep == "best" else None,
            higher_is_better=higher,
            average=config.average,
            fingerprint=self._fingerprint(name),
        )

    def _fingerprint(self, phase: str) -> str:
        relevant = _dump(self.config)
        later = {"closed_set": ("residual", "outlier_photos"), "residual": ("outlier_photos",)}
        for irrelevant in later.get(phase, ()):
            relevant.pop(irrelevant, None)
        for irrelevant in ("workers", "cache_mb", "checkpoint_every", "live"):
            relevant.pop(irrelevant, None)
        return json_sha256({"phase": phase, "config": relevant, "files": self._contents, "seed": self.seed})

    @cached_property
    def _contents(self) -> list[tuple[str, str, str]]:
        """Key and digests of every image and its label or mask."""
        return [
            (key, file_sha256(image), file_sha256(plane))
            for pairs in (self.scenes, self.held_out, self.outliers)
            for key, image, plane in pairs.files
        ]

    def _workers(self) -> int:
        if self.config.workers >= 0:
            return self.config.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.world.size) if self.world.device.type == "cuda" else 0

    def _spec(self) -> ScorerSpec:
        return ScorerSpec(self.config.architecture, self.config.num_classes, dict(self.config.options))


def open_checkpoint(path: Path, spec: ScorerSpec, seed: int, *, without_block: str = "") -> Scorer:
    """Open a scorer's folder, or a published checkpoint of wide_resnet38.

    Args:
        path: Folder or file.
        spec: The network that a file is for; a folder says itself what it holds.
        seed: Of the residual block that a closed-set file lacks.
        without_block: Refuse such a file, converted or not, with this as the cure; empty: take it.

    Raises:
        CheckpointError: There is no such file, it does not fit, or it has no trained residual block and needs one.
    """
    if path.is_dir():
        return load_scorer(path)
    if spec.architecture == "wide_resnet38":
        from anomdino.scorer.convert import CLOSED_SET, rpl_state, with_counters

        scorer = build_scorer(spec)
        state, origin = rpl_state(path, seed)
        if without_block and origin == CLOSED_SET:
            cause = "holds the closed-set network alone, no residual block that was trained"
            raise CheckpointError(path, cause, without_block)
        load_strictly(scorer, with_counters(state, scorer), path)
        log.info("%s: %s", path, origin)
        return scorer
    raise CheckpointError(
        path,
        f"is no folder, and '{spec.architecture}' has no published checkpoint files",
        "give the folder of a trained scorer (config.json and model.safetensors)",
    )


def class_weights(scenes: ImagePairs, classes: int, balance: float) -> Tensor:
    """Weigh classes by (median frequency / frequency) ^ balance, at most 10; classes that do not occur get 1.

    Returns:
        float32 (classes,).
    """
    counts = np.zeros(256, np.int64)
    for index in range(len(scenes)):
        counts += np.bincount(scenes[index][1].ravel(), minlength=256)
    seen = counts[:classes].astype(np.float64)
    occurring = seen > 0
    weights = np.ones(classes)
    if occurring.any():
        weights[occurring] = np.minimum((np.median(seen[occurring]) / seen[occurring]) ** balance, 10)
    return torch.from_numpy(weights).float()


def _prepare(device: torch.device, seed: int) -> None:
    seed_everything(seed, deterministic=device.type == "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def _finish(folder: Path, plan: Plan, scorer: nn.Module, history: list[Record], world: World) -> None:
    """Note that a phase is over, so that a later kill does not cost it again."""
    if world.leads:
        content = {"fingerprint": plan.fingerprint, "scorer": scorer.state_dict(), "history": history}
        with atomic_path(folder / "finished.pt") as temporary:
            torch.save(content, temporary)
    world.wait()


def _finished(
    folder: Path, plan: Plan, scorer: DecoderScorer, world: World, live: Live | None
) -> list[Record] | None:
    """Take up a phase that is over, and draw its curves again; None where it is not."""
    otherwise = "the phase is trained from its last resume point"
    content = read_state(folder / "finished.pt", world, otherwise, plan.fingerprint)
    if content is None:
        return None
    scorer.load_state_dict(content["scorer"])
    log.info("%s is done already", plan.name)
    history: list[Record] = list(content["history"])
    for record in history:
        tell(live, record)
    return history


def _write(trained: Trained, config: RplConfig, out: Path, seed: int) -> None:
    details: dict[str, Any] = {"source": config.source, "seed": seed, "composed": dict(trained.composed)}
    if trained.quality is not None:
        details["closed_set_miou"] = trained.quality.miou
        atomic_write_json(out / "closed_set_miou.json", trained.quality.report())
    atomic_write_json(out / "history.json", trained.history)
    save_scorer(trained.scorer, out, details)


def _dump(config: Any) -> dict[str, Any]:
    if hasattr(config, "model_dump"):
        return dict(config.model_dump(mode="json"))
    return {
        name: _dump(value) if hasattr(value, "__dict__") else value for name, value in vars(config).items()
    }
