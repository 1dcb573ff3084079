"""The training loop of both phases: readable from top to bottom, resumable, stopped by the first loss or weight that
is not finite.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from anomdino.device import cpu_has_bfloat16
from anomdino.errors import CheckpointError, TrainingError
from anomdino.io.atomic import atomic_path
from anomdino.progress import track
from anomdino.scorer.averaging import WeightAverage
from anomdino.scorer.batches import B, on_device
from anomdino.scorer.distributed import World
from anomdino.scorer.live import Live
from anomdino.scorer.objectives import Objective
from anomdino.scorer.schedule import PolySchedule

log = logging.getLogger(__name__)

CHECK_EVERY = {"cpu": 1, "cuda": 20}
"""Steps between looks at the loss; a look makes the CPU wait for the GPU."""

Loader = Callable[[int], Iterable[B]]
Validation = Callable[[], Mapping[str, float]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How a phase is trained.

    Attributes:
        name: Name of the phase in history and messages.
        schedule: Learning rates; its total is the number of steps.
        precision: See :func:`low_precision`.
        clip: Largest gradient norm, 0 for none.
        log_every: Steps between records of the losses.
        validate_every: Steps between validations, 0 for one at the end.
        checkpoint_every: Steps between resume points.
        criterion: Name of the validation value that chooses the best weights; ``None`` keeps the last.
        higher_is_better: Direction of the criterion.
        average: Decay of the running average of the weights, 0 for none.
        fingerprint: What a resume point must agree with; anything that changes the result.
    """

    name: str
    schedule: PolySchedule
    precision: str = "float32"
    clip: float = 0.0
    log_every: int = 20
    validate_every: int = 0
    checkpoint_every: int = 500
    criterion: str | None = None
    higher_is_better: bool = False
    average: float = 0.0
    fingerprint: str = ""

    @property
    def say_every(self) -> int:
        """Steps between lines in the log: some ten in a training, at records of the losses."""
        return self.log_every * max(1, round(self.schedule.total / (10 * self.log_every)))


@dataclass
class Progress:
    """Where a training stands: steps done, the best validation value with its weights, and the history."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    history: list[Record] = field(default_factory=list)


def fit(
    objective: Objective[B],
    load: Loader[B],
    validate: Validation,
    plan: Plan,
    *,
    world: World,
    folder: Path,
    live: Live | None = None,
) -> list[Record]:
    """Train until the schedule ends and leave the chosen weights in the objective's scorer.

    A resume point in ``folder`` with the same fingerprint is taken up; on a CPU the result is then bit for
    bit that of an unbroken training. Resume points and best weights appear whole or not at all.

    Args:
        objective: Scorer and loss, on the world's device.
        load: Gives the batches from a step on.
        validate: Measures the scorer on held-out data.
        plan: Length, schedule, precision and intervals.
        world: Training processes.
        folder: Where resume point and best weights lie; kept when training stops early. The first process alone reads
            and writes it, so that machines need no common disk.
        live: Receives curves.

    Returns:
        History: records of losses and validations in order.

    Raises:
        TrainingError: The loss, a weight or the criterion of a validation is not finite; the message has step, and
            learning rate and images of a loss.
        CheckpointError: The best weights, which this training wrote, can no longer be read.
    """
    objective.start_step()
    optimiser = objective.optimiser()
    scaler = torch.amp.GradScaler(
        world.device.type, enabled=low_precision(plan.precision, world.device) == torch.float16
    )
    average = WeightAverage(objective.scorer, plan.average)
    meter = Meter()
    moving = Moving(objective.scorer, optimiser, scaler, average, meter)
    keeper = Keeper(folder, moving, plan, world)
    progress = keeper.resume()
    for record in progress.history:
        tell(live, record)
    runner = world.parallel(objective)
    guard = FiniteGuard(plan.name, CHECK_EVERY.get(world.device.type, 1), keeper, objective.scorer)
    total = plan.schedule.total

    for batch in track(load(progress.step), plan.name, total=total - progress.step, unit="step"):
        step = progress.step
        lr = plan.schedule.apply(optimiser, step)
        objective.start_step()
        hints = objective.hints(batch, step)
        with _autocast(plan, world):
            losses = runner(on_device(batch, world.device), **hints)
        guard.look(losses["loss"], step, lr, batch.keys)
        optimiser.zero_grad(set_to_none=True)
        scaler.scale(losses["loss"]).backward()
        if plan.clip:
            scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(_trained(optimiser), plan.clip)
        scaler.step(optimiser)
        scaler.update()
        average.update()
        meter.add(losses)
        progress.step = step + 1

        if _due(progress.step, plan.log_every, total):
            record = {"phase": plan.name, "step": progress.step, "lr": lr, **meter.average(world)}
            progress.history.append(record)
            tell(live, record)
            if world.leads and progress.step % plan.say_every == 0:
                log.info("%s step %d of %d: loss %.4g", plan.name, progress.step, total, record["loss"])
        if _due(progress.step, plan.validate_every, total):
            guard.check_all(progress.step)
            with average.in_place():
                record = {"phase": plan.name, "step": progress.step, **_validated(validate, world)}
                keeper.keep_if_best(record, progress)
            progress.history.append(record)
            tell(live, record)
        if progress.step % plan.checkpoint_every == 0 and progress.step < total:
            guard.check_all(progress.step)
            keeper.save(progress)

    average.apply()
    keeper.restore_best(progress)
    return progress.history


class FiniteGuard:
    """Stops a training at the first loss that is not finite, and before weights that are not are kept or validated."""

    def __init__(self, phase: str, every: int, keeper: Keeper, scorer: nn.Module) -> None:
        self.phase, self.every, self.keeper, self.scorer = phase, every, keeper, scorer
        self._waiting: list[tuple[Tensor, int, float, list[str]]] = []

    def look(self, loss: Tensor, step: int, lr: float, keys: list[str]) -> None:
        """Note the loss of a step; look at the noted ones when enough have come together."""
        self._waiting.append((loss.detach(), step, lr, keys))
        if len(self._waiting) >= self.every:
            self.check()

    def check(self) -> None:
        """Look at all noted losses.

        Raises:
            TrainingError: One is not finite.
        """
        if not self._waiting:
            return
        finite = torch.stack([loss for loss, *_ in self._waiting]).isfinite().tolist()
        for good, (loss, step, lr, keys) in zip(finite, self._waiting, strict=True):
            if not good:
                raise TrainingError(
                    f"{self.phase} step {step}",
                    f"the loss is {float(loss)} (learning rate {lr:.3g}; images {', '.join(keys)})",
                    f"lower the learning rate or look at these images; {self.keeper.last_good()}",
                )
        self._waiting.clear()

    def check_all(self, step: int) -> None:
        """Look at all noted losses, and at the weights and statistics after ``step`` steps: a gradient can overflow
        where the loss does not.

        Raises:
            TrainingError: One is not finite.
        """
        self.check()
        state = {name: value for name, value in self.scorer.state_dict().items() if value.is_floating_point()}
        finite = torch.stack([value.isfinite().all() for value in state.values()]).tolist()
        bad = [name for name, good in zip(state, finite, strict=True) if not good]
        if bad:
            raise TrainingError(
                f"{self.phase} step {step}",
                f"{len(bad)} of {len(state)} weights are not finite, though every loss was: {', '.join(bad[:3])}"
                f"{' ...' if len(bad) > 3 else ''}",
                f"lower the learning rate or limit the gradient (clip); {self.keeper.last_good()}",
            )


@dataclass(frozen=True)
class Moving:
    """Everything that a step changes, and a resume point has to hold."""

    scorer: nn.Module
    optimiser: optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage
    meter: Meter

    def state(self) -> dict[str, Any]:
        """Give the content of a resume point."""
        return {
            "scorer": self.scorer.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state(),
            "meter": self.meter.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up the content of a resume point."""
        self.scorer.load_state_dict(state["scorer"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.average.load_state(state["average"])
        self.meter.load_state(state["meter"])


class Keeper:
    """Keeps resume points and the best weights in a folder of the first process."""

    def __init__(
        self,
        folder: Path,
        moving: Moving,
        plan: Plan,
        world: World,
    ) -> None:
        self.moving, self.scorer, self.plan, self.world = moving, moving.scorer, plan, world
        self.state_file, self.best_file = folder / "state.pt", folder / "best.pt"

    def save(self, progress: Progress) -> None:
        """Write a resume point: weights, optimiser, scaler, random state, progress."""
        if not self.world.leads:
            return
        state = {
            "fingerprint": self.plan.fingerprint,
            **self.moving.state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.world.device.type == "cuda" else [],
            "progress": dict(vars(progress)),
        }
        with atomic_path(self.state_file) as temporary:
            torch.save(state, temporary)

    def resume(self) -> Progress:
        """Take up the resume point, if there is one of the same fingerprint; else start afresh."""
        state = read_state(self.state_file, self.world, "training starts afresh", self.plan.fingerprint)
        if state is None or not self._has_best(state["progress"]):
            return Progress()
        self.moving.load_state(state)
        torch.set_rng_state(state["random"].cpu())
        for index, item in enumerate(state["random_cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(item.cpu(), index)
        progress = Progress(**state["progress"])
        log.info("%s goes on from step %d", self.plan.name, progress.step)
        return progress

    def keep_if_best(self, record: Record, progress: Progress) -> None:
        """Write the weights if the record's criterion is better than ever."""
        if self.plan.criterion is None:
            return
        value = float(record[self.plan.criterion])
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.plan.name} step {record['step']}",
                f"the validation's {self.plan.criterion} is {value}, so that no weights can be chosen by it",
                f"lower the learning rate or look at the validation images; {self.last_good()}",
            )
        if progress.best is not None:
            better = value > progress.best if self.plan.higher_is_better else value < progress.best
            if not better:
                return
        progress.best, progress.best_step = value, int(record["step"])
        if self.world.leads:
            with atomic_path(self.best_file) as temporary:
                torch.save(self.scorer.state_dict(), temporary)

    def restore_best(self, progress: Progress) -> None:
        """Load the best weights into the scorer, if there are any."""
        self.world.wait()
        if progress.best is not None and progress.best_step != progress.step:
            weights = read_state(self.best_file, self.world, "the best weights are lost")
            if weights is None:
                raise CheckpointError(
                    self.best_file, "is missing or damaged", "train again: the phase then starts afresh"
                )
            self.scorer.load_state_dict(weights)

    def _has_best(self, progress: Mapping[str, Any]) -> bool:
        """Tell whether the best weights, which a resume point speaks of, are there."""
        if progress["best"] is None:
            return True
        otherwise = "training starts afresh"
        if self.world.leads and not self.best_file.is_file():
            log.warning("%s is missing: %s", self.best_file, otherwise)
        found = self.world.leads and read_file(self.best_file, self.world, otherwise) is not None
        return bool(self.world.share_content(found))

    def last_good(self) -> str:
        """Say, for a message, which weights were kept."""
        kept = [str(path) for path in (self.state_file, self.best_file) if path.is_file()]
        if not kept:
            return "no checkpoint was due before"
        return f"the last good checkpoint is kept: {', '.join(kept)}"


def read_state(
    path: Path, world: World, otherwise: str, fingerprint: str | None = None
) -> dict[str, Any] | None:
    """Read a file of a training's state folder on the first process, and give it to all.

    Args:
        path: A file that :func:`torch.save` wrote; only the first process has to see it.
        world: Training processes; tensors come to the device of each.
        otherwise: What follows when it cannot be read, for the log.
        fingerprint: What the file must agree with; ``None``: any.

    Returns:
        The content; ``None`` where there is no such file, it is damaged, or of another fingerprint.
    """
    content = read_file(path, world, otherwise) if world.leads else None
    if content is not None and fingerprint is not None and content.get("fingerprint") != fingerprint:
        log.info("%s is of other parameters or data: %s", path, otherwise)
        content = None
    if world.size == 1:
        return content
    shared = world.share_content(None if content is None else path.read_bytes())
    if content is not None or shared is None:
        return content
    return dict(torch.load(io.BytesIO(shared), map_location=world.device, weights_only=True))


def read_file(path: Path, world: World, otherwise: str) -> dict[str, Any] | None:
    """Read a file of a training's state folder on this process alone (see :func:`read_state`)."""
    if not path.is_file():
        return None
    try:
        return dict(torch.load(path, map_location=world.device, weights_only=True))
    except Exception as error:  # damaged in ways that torch reports by many types
        log.warning("%s cannot be read (%s): %s", path, error, otherwise)
        return None


class Meter:
    """Averages scalars over steps without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the scalars of a step."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value.detach())) + value.detach()
        self._count += 1

    def average(self, world: World) -> dict[str, float]:
        """Give the means over steps and processes since the last call."""
        means = {name: float(world.average(total / self._count)) for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Give what a resume point needs."""
        return {"sums": dict(self._sums), "count": self._count}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a resume point."""
        self._sums, self._count = dict(state["sums"]), int(state["count"])


def steps_of(steps: int, epochs: float, images: int, batch: int) -> int:
    """Give the steps of a training: ``steps``, or ``epochs`` of ``images // batch`` steps (at least one)."""
    return steps or max(1, math.ceil(epochs * max(1, images // batch)))


def _validated(validate: Validation, world: World) -> dict[str, float]:
    measured = {name: float(value) for name, value in validate().items()} if world.leads else None
    return dict(world.share_content(measured))


def _due(step: int, every: int, total: int) -> bool:
    return step == total or (every > 0 and step % every == 0)


def low_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Give the type of a mixed-precision forward pass, or ``None`` for float32.

    Args:
        name: ``float32``; ``bf16`` or ``fp16``, which mean float32 on a CPU; or ``auto``: bfloat16 where the
            device
            computes in it natively.
        device: Where the training runs.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else None
        return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else None
    if device.type != "cuda":
        return None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)


def _autocast(plan: Plan, world: World) -> AbstractContextManager[Any]:
    dtype = low_precision(plan.precision, world.device)
    return torch.autocast(world.device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def _trained(optimiser: optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimiser.param_groups:
        yield from group["params"]


def tell(live: Live | None, record: Record) -> None:
    """Give a record to the curves, where some are drawn."""
    if live is not None:
        live.record(record)
