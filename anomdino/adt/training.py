"""Training of ADT-Net, readable from top to bottom.

One process runs on one device. Under ``torchrun`` each process takes its share of every epoch, gradients are
averaged, and the first process writes. Memory does not grow with the training set: crops are read when they
are needed.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from anomdino.adt.box_score import choose_box_score, choose_for_objects
from anomdino.adt.dataset import (
    Crop,
    CropDataset,
    CropRules,
    Item,
    TrainingFiles,
    digest,
    hold_out,
    list_items,
    measure_scores,
    read_item,
    read_photo,
)
from anomdino.adt.evidence import fit, weighed
from anomdino.adt.fusion import AdtModel, FusionRule, compute_surfaces, final_score
from anomdino.adt.histogram import ScoreHistogram
from anomdino.adt.losses import LossParts, LossWeights, adt_loss, mask_loss
from anomdino.adt.model import AdtNet, Architecture, Regions, surrogate_logits
from anomdino.adt.store import save_adt
from anomdino.errors import TrainingError
from anomdino.io.atomic import atomic_path, atomic_write_text
from anomdino.io.digest import json_sha256
from anomdino.io.maps import read_map
from anomdino.progress import track
from anomdino.seeding import derive_seed, seed_everything

log = logging.getLogger(__name__)

Select = Literal["ap", "f1", "loss"]
Row = dict[str, float]


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the result of a training run beside the data and the seed.

    The fields are those of the `adt` block (`anomdino.config.adt`), grouped by the part that reads them. With
    ``auto_box_score`` the ``box_score`` of rule and crops is chosen on the training images.
    """

    architecture: Architecture = field(default_factory=Architecture)
    loss: LossWeights = field(default_factory=LossWeights)
    crops: CropRules = field(default_factory=CropRules)
    rule: FusionRule = field(default_factory=FusionRule)
    lr: float = 3e-3
    slope_lr: float = 100.0
    weight_decay: float = 1e-4
    epochs: int = 12
    samples_per_epoch: int = 0
    batch: int = 8
    warmup: float = 0.1
    clip: float = 5.0
    holdout: float = 0.2
    auto_box_score: bool = True
    select: Select = "f1"
    patience: int = 6


@dataclass(frozen=True)
class TrainingHost:
    """Where and how a run is carried out; nothing here changes the result on a CPU.

    Args:
        device: Where the network trains.
        amp: bfloat16 convolutions where the device is a GPU that has them.
        workers: Processes that read crops.
        state: File that an interrupted run continues from; removed when training ends. None keeps no state.
        dvclive: Log curves with DVCLive into ``<out>/dvclive``.
        pictures_every: Epochs between pictures of held-out images; 0 draws none.
    """

    device: str = "cpu"
    amp: bool = True
    workers: int = 0
    state: Path | None = None
    dvclive: bool = False
    pictures_every: int = 0


@dataclass
class Progress:
    """What changes from epoch to epoch, beside network and optimiser."""

    epoch: int = 0
    best_value: float = -math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)


def train_adt(
    files: TrainingFiles, plan: TrainingPlan, out: Path, *, seed: int = 0, host: TrainingHost | None = None
) -> AdtModel:
    """Train an ADT-Net and write it.

    Args:
        files: Score maps, labels and out-of-fold boxes of the composed images.
        plan: What is trained, and how.
        out: Folder for ``model.safetensors``, ``config.json`` and ``history.csv``.
        seed: Root seed; the same seed gives the same files on the same machine (CPU).
        host: Device, precision, resume state and logging.

    Returns:
        The model of the best epoch by ``plan.select`` on held-out images, on ``host.device``.

    Raises:
        ProtocolError: The data is evaluation data.
        DataError: The data cannot be used.
        TrainingError: The loss is not finite; model files of an earlier run stay as they were.
    """
    host = host or TrainingHost()
    rank, world = _join_processes(host.device)
    seed_everything(derive_seed(seed, "adt"))
    training, held_out = hold_out(list_items(files), plan.holdout, seed)
    inputs = digest(training + held_out)
    device = torch.device(f"cuda:{rank}" if world > 1 and host.device.startswith("cuda") else host.device)
    net = AdtNet(plan.architecture, measure_scores(read_map(item.score) for item in training))
    if plan.architecture.box_evidence:
        training = with_evidence(net, training)
    plan = with_box_score(plan, training) if plan.auto_box_score else plan
    net = net.to(device)
    optimiser = make_optimiser(net, plan)
    samples = plan.samples_per_epoch or len(training)
    steps = max(1, samples // (plan.batch * world))
    fingerprint = _fingerprint(plan, seed, inputs, len(held_out), world)
    progress = _load_state(host.state, fingerprint, net, optimiser) or Progress()
    wrapped: nn.Module = DistributedDataParallel(net) if world > 1 else net
    logger = _curve_logger(out, host, rank, progress.history)

    for epoch in range(progress.epoch, plan.epochs):
        if progress.epoch - progress.best_epoch >= plan.patience:
            log.info("no better %s for %d epochs: stopped", plan.select, plan.patience)
            break
        dataset = CropDataset(training, plan.crops, steps * plan.batch * world, seed, epoch)
        share = Subset(dataset, range(rank, len(dataset), world))
        loader = DataLoader(share, plan.batch, num_workers=host.workers)
        row = train_epoch(wrapped, loader, optimiser, plan, epoch, amp=host.amp)
        row |= validate(net.eval(), held_out[rank::world], plan)
        row |= dict(zip(("slope_fg", "slope_bg"), net.slopes.tolist(), strict=True))
        progress.history.append(row)
        progress.epoch = epoch + 1
        value = -row["val_loss"] if plan.select == "loss" else row[f"val_{plan.select}"]
        if value > progress.best_value:
            progress.best_value, progress.best_epoch = value, epoch + 1
            progress.best_weights = {name: value.detach().clone() for name, value in net.state_dict().items()}
        logger(row)
        if rank == 0:
            _save_state(host.state, fingerprint, net, optimiser, progress)
            if host.pictures_every and (epoch + 1) % host.pictures_every == 0:
                _draw(AdtModel(net, plan.rule), held_out, out / "pictures" / f"epoch_{epoch + 1:03d}")

    net.load_state_dict(progress.best_weights)
    best = progress.history[progress.best_epoch - 1]
    provenance = {
        "seed": seed,
        "inputs_sha256": inputs,
        "images": {"training": len(training), "held_out": len(held_out)},
        "plan": asdict(plan),
        "best_epoch": progress.best_epoch,
        "held_out": {name: value for name, value in best.items() if name.startswith("val_")},
    }
    model = AdtModel(net.eval(), plan.rule, provenance=provenance)
    if rank == 0:
        save_adt(model, out)
        atomic_write_text(out / "history.csv", _as_csv(progress.history))
        if host.state is not None:
            host.state.unlink(missing_ok=True)
    if world > 1:
        dist.barrier()
    return model


def with_evidence(net: AdtNet, items: Sequence[Item]) -> list[Item]:
    """Fit the weights of the boxes' confidences on training images, and give these with the weighed confidences."""
    fitted = fit(((*read_item(item), item.boxes) for item in items), net)
    if fitted is None:
        log.warning("all boxes hold an object, or none: the detector's confidences stay as they are")
    else:
        log.info("confidences: %.3g + %.3g logit(p) + %.3g inside + %.3g around", *fitted)
        assert net.box_weights is not None
        net.box_weights.copy_(torch.from_numpy(fitted))
    known = []
    for item in items:
        score, label = read_item(item)
        boxes = item.boxes.clipped((label.shape[0], label.shape[1]))
        known.append(replace(item, boxes=weighed(boxes, score, net)))
    return known


def with_box_score(plan: TrainingPlan, items: Sequence[Item]) -> TrainingPlan:
    """Give the plan with the box score that suits the detector's boxes on the training images."""
    choose = choose_for_objects if plan.architecture.box_evidence else choose_box_score
    chosen = choose((item.boxes, read_item(item)[1]) for item in items)
    log.info("boxes are kept from a confidence of %g", chosen)
    return replace(
        plan, rule=replace(plan.rule, box_score=chosen), crops=replace(plan.crops, box_score=chosen)
    )


def train_epoch(
    net: nn.Module,
    loader: DataLoader[Crop],
    optimiser: torch.optim.Optimizer,
    plan: TrainingPlan,
    epoch: int,
    *,
    amp: bool,
) -> Row:
    """Take one step a batch, and give the epoch's number, last rate and mean loss parts.

    Raises:
        TrainingError: A loss is not finite; the message has step, epoch, rate and the batch's images.
    """
    steps, sums = len(loader), np.zeros(len(LossParts._fields))
    net.train()
    bar = track(loader, f"train_adt {epoch + 1}/{plan.epochs}", total=steps, unit="step")
    for step, crop in enumerate(bar):
        _set_learning_rate(optimiser, plan, epoch * steps + step, plan.epochs * steps)
        parts = _loss_of(net, crop, plan, amp)
        if not torch.isfinite(parts.total):
            rate = _rate(optimiser)
            raise TrainingError(
                "train_adt",
                f"the loss is {parts.total.item()} at step {step + 1} of epoch {epoch + 1}, lr {rate:.3g}, "
                f"images {', '.join(_images_of(loader, step))}",
                "look at the maps of these images, or lower adt.lr, with which training starts anew",
            )
        optimiser.zero_grad(set_to_none=True)
        parts.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
        optimiser.step()
        sums += [part.item() for part in parts]
    means = {
        f"train_{name}": value / steps for name, value in zip(LossParts._fields, sums.tolist(), strict=True)
    }
    return {"epoch": epoch + 1, "lr": _rate(optimiser), **means}


def _images_of(loader: DataLoader[Crop], step: int) -> list[str]:
    share: Any = loader.dataset
    size = loader.batch_size or 1
    return [share.dataset.item(index).key for index in share.indices[step * size : (step + 1) * size]]


def make_optimiser(net: AdtNet, plan: TrainingPlan) -> torch.optim.AdamW:
    """Give AdamW over the predictors and, at ``slope_lr`` times the rate and without decay, the slopes."""
    rest = [p for name, p in net.named_parameters() if name != "raw_slopes" and p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": rest, "factor": 1.0, "weight_decay": plan.weight_decay}]
    if net.raw_slopes.requires_grad:
        groups.append({"params": [net.raw_slopes], "factor": plan.slope_lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=plan.lr)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Give the learning rate's factor: linear rise over ``warmup`` of the steps, then half a cosine to 0."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def validate(net: AdtNet, items: Sequence[Item], plan: TrainingPlan) -> Row:
    """Measure a network on whole held-out images, one at a time, with the detector's boxes as they are.

    Under ``torchrun`` each process brings its images and all get the result over all.

    Returns:
        ``val_loss`` (mean over images, without the regulariser), ``val_ap`` and ``val_fpr95`` of the final
        score, ``val_f1``, ``val_precision``, ``val_recall`` of the mask's pixels, and the mean thresholds
        ``val_t_fg`` (pixels inside boxes) and ``val_t_bg``.
    """
    histogram = ScoreHistogram(bits=18)
    sums = np.zeros(9)
    for item in items:
        score, label = read_item(item)
        surfaces = compute_surfaces(score, item.boxes, net, plan.rule.box_score, plan.rule.mask_floor)
        labels = torch.from_numpy(label).to(surfaces.unit.device)
        logits = surrogate_logits(surfaces.decision, surfaces.threshold, net.architecture.ramp)
        mask = surfaces.decision >= surfaces.threshold
        anomaly, normal = labels == 1, labels == 0
        histogram.add(final_score(surfaces, plan.rule), label)
        sums += [
            1,
            float(mask_loss(logits, labels, surfaces.inside, plan.loss).total),
            int((mask & anomaly).sum()),
            int((mask & normal).sum()),
            int(anomaly.sum()),
            float(surfaces.threshold[surfaces.inside].sum()),
            int(surfaces.inside.sum()),
            float(surfaces.threshold[~surfaces.inside].sum()),
            int((~surfaces.inside).sum()),
        ]
    sums, histogram = _over_processes(sums, histogram)
    images, loss, hits, alarms, anomalous, fg, n_fg, bg, n_bg = sums.tolist()
    return {
        "val_loss": loss / images,
        "val_ap": histogram.average_precision(),
        "val_fpr95": histogram.fpr_at_recall(0.95),
        "val_f1": 2 * hits / max(1, hits + alarms + anomalous),
        "val_precision": hits / max(1, hits + alarms),
        "val_recall": hits / max(1, anomalous),
        "val_t_fg": fg / max(1, n_fg),
        "val_t_bg": bg / max(1, n_bg),
    }


def _loss_of(net: nn.Module, crop: Crop, plan: TrainingPlan, amp: bool) -> LossParts:
    core: AdtNet = net.module if isinstance(net, DistributedDataParallel) else net  # type: ignore[assignment]
    device = core.mean.device
    scores, labels, inside, mean_fg, mean_bg, has_boxes = (tensor.to(device) for tensor in crop)
    regions = Regions(inside, core.standardise(mean_fg), core.standardise(mean_bg), has_boxes)
    mixed = amp and device.type == "cuda" and torch.cuda.is_bf16_supported()
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        output = net(scores, inside, regions)
    return adt_loss(output, labels, inside, plan.architecture.ramp, plan.loss)


def _set_learning_rate(optimiser: torch.optim.Optimizer, plan: TrainingPlan, step: int, steps: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = plan.lr * group["factor"] * schedule(step, steps, plan.warmup)


def _rate(optimiser: torch.optim.Optimizer) -> float:
    return float(optimiser.param_groups[0]["lr"])


def _join_processes(device: str) -> tuple[int, int]:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return (dist.get_rank(), world) if world > 1 else (0, 1)


def _over_processes(
    sums: np.ndarray[Any, np.dtype[np.float64]], histogram: ScoreHistogram
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], ScoreHistogram]:
    if not dist.is_initialized():
        return sums, histogram
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.from_numpy(np.concatenate([sums, histogram.positive, histogram.negative])).to(device)
    dist.all_reduce(total)
    merged = ScoreHistogram(histogram.bits)
    cuts = [len(sums), len(sums) + (1 << merged.bits)]
    sums, merged.positive, merged.negative = np.split(total.cpu().numpy(), cuts)
    return sums, merged


def _fingerprint(plan: TrainingPlan, seed: int, inputs: str, held_out: int, world: int) -> str:
    """Digest what a run must agree with: ``inputs`` are those of all images, of which so many at the end are held out."""
    return json_sha256([asdict(plan), seed, inputs, held_out, world])


def _save_state(
    path: Path | None, fingerprint: str, net: AdtNet, optimiser: torch.optim.Optimizer, progress: Progress
) -> None:
    if path is None:
        return
    content = {
        "fingerprint": fingerprint,
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "progress": {name: getattr(progress, name) for name in Progress.__dataclass_fields__},
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _load_state(
    path: Path | None, fingerprint: str, net: AdtNet, optimiser: torch.optim.Optimizer
) -> Progress | None:
    """Continue an interrupted run of the same plan, seed and inputs; anything else starts anew."""
    if path is None or not path.is_file():
        return None
    try:
        content = torch.load(path, map_location=net.mean.device, weights_only=True)
    except Exception as error:
        log.warning("%s is damaged (%s): training starts anew", path, error)
        return None
    if content.get("fingerprint") != fingerprint:
        log.info("%s belongs to other parameters or data: training starts anew", path)
        return None
    net.load_state_dict(content["net"])
    optimiser.load_state_dict(content["optimiser"])
    log.info("continued after epoch %d", content["progress"]["epoch"])
    return Progress(**content["progress"])


def _curve_logger(out: Path, host: TrainingHost, rank: int, earlier: Sequence[Row]) -> Callable[[Row], None]:
    """Log to the terminal, or draw curves, of which a run that continues draws the epochs before again."""
    if not host.dvclive or rank:
        return lambda row: log.info(" ".join(f"{name} {value:.4g}" for name, value in row.items()))
    from dvclive import Live

    live = Live(str(out / "dvclive"), report=None, save_dvc_exp=False, monitor_system=False, dvcyaml=None)

    def to_dvclive(row: Row) -> None:
        for name, value in row.items():
            if name != "epoch":
                live.log_metric(name.replace("_", "/", 1), value)
        live.next_step()

    for row in earlier:
        to_dvclive(row)
    return to_dvclive


def _draw(model: AdtModel, items: Sequence[Item], folder: Path) -> None:
    from anomdino.adt.pictures import draw_decision

    for item in items[:4]:
        score, label = read_item(item)
        draw_decision(
            folder / f"{item.key}.png", score, label, item.boxes, model, read_photo(item, label.shape)
        )


def _as_csv(history: Sequence[Row]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return stream.getvalue()


def plan_from(config: Any) -> TrainingPlan:
    """Group the fields of the `adt` block (`anomdino.config.adt.AdtConfig`) into a plan."""
    values = config.model_dump()
    values["auto_box_score"] = values["box_score"] == "auto"
    if values["auto_box_score"]:
        del values["box_score"]
    if values["mask_floor"] == "auto":
        del values["mask_floor"]  # chosen after training
    values["learn_slopes"] = values.pop("slopes") == "learned"

    def group(kind: type[Any]) -> Any:
        return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})

    plan = TrainingPlan(group(Architecture), group(LossWeights), group(CropRules), group(FusionRule))
    own = {name: values[name] for name in TrainingPlan.__dataclass_fields__ if name in values}
    return replace(plan, **own)
