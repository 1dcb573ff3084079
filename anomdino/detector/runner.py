"""The glue between the detector and mmengine's Runner: loaders, metric, hooks, optimiser."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler, pseudo_collate
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

from anomdino.config.detector import DetectorConfig
from anomdino.detector.architecture import quiet
from anomdino.detector.dataset import ComposedDataset, test_transforms, train_transforms
from anomdino.detector.mmdet_parts import Chain
from anomdino.detector.quality import coco_metrics
from anomdino.detector.records import Fold, Record
from anomdino.detector.resuming import ResumableLoop, random_states, set_random_states
from anomdino.detector.weights import read_checkpoint
from anomdino.errors import CheckpointError, ConfigError, TrainingError
from anomdino.io.atomic import atomic_path, atomic_write_json
from anomdino.io.boxes import Boxes
from anomdino.scorer.distributed import synchronise_batch_norm
from anomdino.seeding import derive_seed, seed_everything

log = logging.getLogger("anomdino.detector")
CHOSEN_BY = "ar100"
BEST_WEIGHTS, EVALUATIONS, RANDOM_STATES = "best.pth", "evaluations.json", "random.pth"


class BoxRecall(BaseMetric):  # type: ignore[misc]
    """AR at 1, 10 and 100 boxes and AP50 of the held-out images.

    Args:
        records: The held-out images.
    """

    default_prefix = "anomdino"

    def __init__(self, records: Sequence[Record]) -> None:
        super().__init__()
        self.truth = {record.key: record.boxes for record in records}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the boxes of a batch of samples."""
        for sample in data_samples:
            instances = sample["pred_instances"]
            wanted = instances["labels"] == 0
            boxes = (
                instances["bboxes"][wanted].float().cpu().numpy(),
                instances["scores"][wanted].float().cpu().numpy(),
            )
            self.results.append((sample["key"], *boxes))

    def compute_metrics(self, results: list[tuple[str, Any, Any]]) -> dict[str, float]:
        """Evaluate all kept boxes."""
        predicted = {key: Boxes(xyxy, scores) for key, xyxy, scores in results}
        metrics = coco_metrics(predicted, self.truth)
        return {
            **{f"ar{limit}": value or 0.0 for limit, value in metrics.ar.items()},
            "ap50": metrics.ap50 or 0.0,
        }


class History(Hook):  # type: ignore[misc]
    """Log losses and speed, keep both for ``history.json``, and stop at a loss that is not finite.

    It comes before mmengine's CheckpointHook, so that a checkpoint holds the losses of its own step, and none is
    written at a step that is logged with a loss that is not finite. Losses are means over all processes.

    Args:
        config: The detector's parameters.
        images: Images a step, of all processes.
        work: The Runner's folder.

    Attributes:
        losses: One entry every ``interval`` steps: the means since the last.
        evaluations: One entry an evaluation; also kept in the work folder, with the best weights so far.
        images_per_second: Training speed without evaluations, of all processes.
    """

    priority = "LOW"

    def __init__(self, config: DetectorConfig, images: int, work: Path) -> None:
        self.interval, self.kept_every, self.steps = config.log_interval, _interval(config), config.steps
        self.images = images
        self.losses: list[dict[str, float]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.images_per_second = 0.0
        self.work = work
        self._sums: dict[str, torch.Tensor] = {}
        self._states: list[dict[str, Any]] = []
        self._images, self._seconds, self._started = 0, 0.0, 0.0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Start the clock of a step."""
        self._started = self._started or time.perf_counter()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Sum the losses; every ``interval`` steps log their means and the speed."""
        for name, value in (outputs or {}).items():
            if name.startswith("loss"):
                self._sums[name] = self._sums.get(name, torch.zeros(())) + value.detach().float().cpu()
        self._images += self.images
        step = runner.iter + 1
        if step % self.interval == 0 or step == self.steps:
            self._log_means(step)
        if step % self.kept_every == 0 or step == self.steps:
            self._states = all_gather_object({"sums": self._sums, "random": random_states()})

    def _log_means(self, step: int) -> None:
        self._pause()
        count = self.interval if step % self.interval == 0 else step % self.interval
        summed = _mean_of_processes(self._sums)
        means = {name: round(value / count, 6) for name, value in summed.items()}
        self._sums = {}
        if not all(math.isfinite(value) for value in means.values()):
            raise TrainingError(
                "detector", f"the loss is not finite at step {step}: {means}", "lower detector.lr"
            )
        self.losses.append({"step": step, **means})
        log.info("step %d/%d: %s, %.1f images/s", step, self.steps, _words(means), self.images_per_second)

    def before_val(self, runner: Runner) -> None:
        """Stop the clock: evaluations do not count as training time."""
        self._pause()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep an evaluation."""
        row = {name.removeprefix("anomdino/"): round(value, 6) for name, value in (metrics or {}).items()}
        self.evaluations.append({"step": runner.iter, **row})
        log.info("step %d/%d: held-out %s", runner.iter, self.steps, _words(row))
        states = all_gather_object(random_states())
        if runner.rank == 0:
            if row[CHOSEN_BY] >= self.best():  # of equal ones the later
                with atomic_path(self.work / BEST_WEIGHTS) as temporary:
                    torch.save({"state_dict": _unwrapped(runner.model).state_dict()}, temporary)
            with atomic_path(self.work / RANDOM_STATES) as temporary:
                torch.save({"state_dict": {"step": runner.iter, "random": states}}, temporary)
            atomic_write_json(self.work / EVALUATIONS, self.evaluations)
        self._started = 0.0

    def best(self) -> float:
        """Give the best AR at 100 boxes of all evaluations but the last, -1 before the second."""
        return max((float(row[CHOSEN_BY]) for row in self.evaluations[:-1]), default=-1.0)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint free of configuration text, which mmengine would execute when it resumes."""
        checkpoint["meta"] = {
            name: value
            for name, value in checkpoint["meta"].items()
            if name in {"epoch", "iter", "seed", "time"}
        }
        checkpoint["anomdino"] = {"losses": self.losses, "processes": self._states}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Continue the history of the run that is resumed."""
        own = checkpoint["anomdino"]
        self.losses, self._states = list(own["losses"]), own["processes"]
        self._sums = dict(self._states[get_rank()]["sums"]) if len(self._states) == get_world_size() else {}
        stored = self.work / EVALUATIONS
        rows = json.loads(stored.read_text()) if stored.is_file() else []
        self.evaluations = [row for row in rows if row["step"] <= checkpoint["meta"]["iter"]]
        checkpoint["meta"].pop("config", None)

    def evaluated(self, step: int) -> bool:
        """Tell whether the evaluation of a step is known."""
        return any(row["step"] == step for row in self.evaluations)

    def restore_random_states(self, step: int) -> None:
        """Set all random numbers to where the interrupted run was after a step, and its evaluation if it is known.

        With another number of processes than before they stay as they are.
        """
        states = [kept["random"] for kept in self._states]
        later = self.work / RANDOM_STATES
        if self.evaluated(step) and later.is_file():
            state = read_checkpoint(later)["state_dict"]
            states = state["random"] if state["step"] == step else states
        if len(states) == get_world_size():
            set_random_states(states[get_rank()])

    def _pause(self) -> None:
        if self._started:
            self._seconds += time.perf_counter() - self._started
        self._started = time.perf_counter()
        self.images_per_second = self._images / max(self._seconds, 1e-9)


class SafeRunner(Runner):  # type: ignore[misc]
    """mmengine's Runner that reads checkpoints weights-only and trains the weights that the model came with.

    Attributes:
        history: The hook that keeps losses, evaluations and what resuming needs.
    """

    history: History

    def _init_model_weights(self) -> None:
        """Leave the weights alone: GroundingDINO would draw encoder and decoder anew over a loaded checkpoint."""

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Set up without mmengine's setting of threads, which are shared out already, and its advice on them."""
        unset = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} - os.environ.keys()
        with _unadvised():
            super().setup_env(env_cfg)
        for name in unset:
            os.environ.pop(name, None)

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        """Wrap for several processes, without a search for unused parameters; a single process stays as it is.

        Batch normalisation goes by the images of all processes.
        """
        if not self.distributed:
            return model
        synchronise_batch_norm(model)
        wrapped: nn.Module
        with _unadvised():
            if torch.distributed.get_backend() == "gloo":
                wrapped = MMDistributedDataParallel(module=model, broadcast_buffers=False)
            else:
                wrapped = super().wrap_model(model_wrapper_cfg, model)
        return wrapped

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", **_: Any) -> dict[str, Any]:
        """Load a checkpoint of this training into the model and return it.

        Raises:
            CheckpointError: It is damaged.
        """
        try:
            checkpoint = read_checkpoint(filename)
        except CheckpointError as error:
            cure = f"remove {Path(filename).parent}: the training then starts anew"
            raise CheckpointError(error.what, error.cause, cure) from error
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        _unwrapped(self.model).load_state_dict(checkpoint["state_dict"])
        self._has_loaded = True
        return checkpoint


def build_runner(
    detector: nn.Module,
    config: DetectorConfig,
    fold: Fold,
    work: Path,
    seed: int,
    device: torch.device,
    score_std: float,
    resume_from: Path | None,
) -> tuple[SafeRunner, History]:
    """Build the Runner of a fold, and the hook that keeps its history.

    Args:
        detector: The network to train.
        config: The detector's parameters.
        fold: What it learns from and is chosen by.
        work: The Runner's folder.
        seed: Seed of the Runner's random numbers.
        device: Where to train; several processes each take their own CUDA device, or all the CPU.
        score_std: Standard deviation of the scores, for their jitter.
        resume_from: A checkpoint of an interrupted training.

    Raises:
        ConfigError: ``launcher`` asks for processes that nobody started.
    """
    _join_processes(config, device)
    chosen = fold.val[: config.val_images]
    train_set = ComposedDataset(
        fold.train, config.prompt, pipeline=[Chain(train_transforms(config, score_std, fold.train))]
    )
    val_set = ComposedDataset(
        chosen, config.prompt, pipeline=[Chain(test_transforms(config, 0))], test_mode=True
    )
    if not MMLogger.check_instance_created("mmengine"):
        MMLogger.get_instance("mmengine", log_level="ERROR")
    runner = SafeRunner(
        model=detector.to(device) if config.launcher == "none" else detector,
        work_dir=str(work),
        train_dataloader=_loader(train_set, config.batch_size, config.workers, True),
        val_dataloader=_loader(val_set, 1, min(config.workers, 2), False),
        val_evaluator=Evaluator(BoxRecall(chosen)),
        train_cfg={
            "type": ResumableLoop,
            "max_iters": config.steps,
            "val_interval": _interval(config),
        },
        val_cfg={"type": "ValLoop"},
        optim_wrapper=_optimiser(detector, config, device),
        param_scheduler=_schedule(config),
        default_hooks=_hooks(config),
        launcher=config.launcher,
        env_cfg={"cudnn_benchmark": False, "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
        log_level="ERROR",
        log_processor={"type": "LogProcessor", "by_epoch": False, "window_size": config.log_interval},
        load_from=str(resume_from) if resume_from else None,
        resume=resume_from is not None,
        randomness={"seed": seed},
        default_scope="mmdet",
        experiment_name=fold.name,
    )
    runner.history = history = History(config, config.batch_size * get_world_size(), work)
    runner.register_hook(history)
    if get_rank():
        seed_everything(derive_seed(seed, "process", get_rank()) % 2**31)
    return runner, history


def _join_processes(config: DetectorConfig, device: torch.device) -> None:
    """Check that the launcher did its work; join the others where mmengine cannot, on the CPU."""
    variable = {"pytorch": "RANK", "slurm": "SLURM_PROCID"}.get(config.launcher)
    if variable and variable not in os.environ:
        raise ConfigError(
            "detector.launcher",
            f"is '{config.launcher}' but {variable} is not set: this process was started alone",
            "start the stage with `torchrun --nproc-per-node N -m pipeline.train_detector` (pytorch) or `srun` "
            "(slurm), or set detector.launcher to none",
        )
    if config.launcher == "pytorch" and device.type == "cpu" and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")


@contextmanager
def _unadvised() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _mean_of_processes(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Average numbers over all processes."""
    every = all_gather_object({name: float(value) for name, value in values.items()})
    return {name: sum(each[name] for each in every) / len(every) for name in values}


def resumable(work: Path, config: DetectorConfig) -> Path | None:
    """Give the last checkpoint of an interrupted training in ``work``, if it may be resumed."""
    pointer = work / "last_checkpoint"
    if not (config.resume and pointer.is_file()):
        return None
    path = Path(pointer.read_text().strip())
    if not path.is_file():
        return None
    log.info("resuming from %s", path)
    return path


def _loader(dataset: ComposedDataset, batch_size: int, workers: int, train: bool) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "batch_size": batch_size,
        "num_workers": workers,
        "sampler": {"type": InfiniteSampler if train else DefaultSampler, "shuffle": train},
        "collate_fn": {"type": pseudo_collate},
        "pin_memory": torch.cuda.is_available(),
    }


def _interval(config: DetectorConfig) -> int:
    return min(config.val_interval, config.steps)


def _optimiser(detector: nn.Module, config: DetectorConfig, device: torch.device) -> OptimWrapper:
    """Build AdamW; parameters of the same settings are one group, where mmengine makes a group of each."""
    plain = {"decay_mult": 0.0}
    wrapper: dict[str, Any] = {
        "type": "OptimWrapper",
        "optimizer": {"type": "AdamW", "lr": config.lr, "weight_decay": config.weight_decay},
        "clip_grad": {"max_norm": config.clip, "norm_type": 2},
        "paramwise_cfg": {
            "norm_decay_mult": 0.0,
            "custom_keys": {
                "absolute_pos_embed": plain,
                "ouafs.gates": {"lr_mult": config.fusion_lr_factor, **plain},
                "ouafs": {"lr_mult": config.fusion_lr_factor},
                "backbone": {"lr_mult": config.backbone_lr_factor},
            },
        },
    }
    if config.amp and device.type == "cuda":
        wrapper |= {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": 1.0}
    if device.type == "cpu":
        wrapper["optimizer"]["fused"] = True
    with quiet():
        built: OptimWrapper = build_optim_wrapper(detector, wrapper)
    built.optimizer.param_groups[:] = _merged(built.optimizer.param_groups)
    return built


def _merged(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the groups of parameters whose settings are the same, in the order of their first."""
    merged: dict[str, dict[str, Any]] = {}
    for group in groups:
        settings = repr(sorted((name, value) for name, value in group.items() if name != "params"))
        known = merged.setdefault(settings, {**group, "params": []})
        known["params"] = [*known["params"], *group["params"]]
    return list(merged.values())


def _schedule(config: DetectorConfig) -> list[dict[str, Any]]:
    warmup = min(config.warmup, config.steps - 1)
    main: dict[str, Any] = {"type": "MultiStepLR", "milestones": [round(0.8 * config.steps)], "gamma": 0.1}
    if config.schedule == "cosine":
        main = {
            "type": "CosineAnnealingLR",
            "T_max": config.steps - warmup,
            "begin": warmup,
            "eta_min_ratio": 0.01,
        }
    start = (
        [{"type": "LinearLR", "start_factor": 0.05, "by_epoch": False, "begin": 0, "end": warmup}]
        if warmup
        else []
    )
    return [*start, {**main, "by_epoch": False, "end": config.steps}]


def _hooks(config: DetectorConfig) -> dict[str, Any]:
    return {
        "logger": None,
        "timer": None,
        "runtime_info": {"type": "RuntimeInfoHook"},
        "param_scheduler": {"type": "ParamSchedulerHook"},
        "sampler_seed": {"type": "DistSamplerSeedHook"},
        "checkpoint": {
            "type": "CheckpointHook",
            "by_epoch": False,
            "interval": _interval(config),
            "max_keep_ckpts": 2,  # the older goes before the newer is written: killed there, one must be left
        },
    }


def _unwrapped(model: nn.Module) -> nn.Module:
    inner = getattr(model, "module", model)
    return inner if isinstance(inner, nn.Module) else model


def _words(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


__all__ = ["BoxRecall", "History", "SafeRunner", "build_runner", "resumable"]
