"""What the two trainings minimise: closed-set cross-entropy, and RPL with CoroCL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor, nn, optim

from anomdino.scorer.base import ScorerOutput, resize
from anomdino.scorer.batches import B, Batch, network_input
from anomdino.scorer.distributed import World
from anomdino.scorer.losses import OUTLIER, aligned_labels, closed_set_loss, corocl_loss, rpl_losses
from anomdino.scorer.residual import DecoderScorer
from anomdino.scorer.schedule import closed_set_groups, residual_groups
from anomdino.seeding import derive_seed

if TYPE_CHECKING:
    from anomdino.config.rpl import ClosedSetConfig, ResidualConfig


class Objective(nn.Module, ABC, Generic[B]):
    """A scorer together with the loss it is trained by.

    Calling it with a batch of type B gives scalars by name; ``loss`` is the one to minimise.

    Args:
        scorer: The network.
        world: Training processes; losses are means over the pixels of all.
    """

    scorer: nn.Module

    def __init__(self, scorer: nn.Module, world: World) -> None:
        super().__init__()
        self.scorer = scorer
        self.world = world

    @abstractmethod
    def forward(self, batch: B, **hints: Any) -> dict[str, Tensor]:
        """Compute the losses of a batch that lies on the network's device."""

    @abstractmethod
    def start_step(self) -> None:
        """Put every module in the mode that this training needs."""

    @abstractmethod
    def optimiser(self) -> optim.Optimizer:
        """Build the optimiser over the parameters that this training changes."""

    def hints(self, batch: B, step: int) -> dict[str, Any]:
        """Decide, on the CPU and before the batch moves, what :meth:`forward` needs to know about it."""
        del batch, step
        return {}


class ClosedSetObjective(Objective[Batch]):
    """Cross-entropy of Z, 254 and 255 ignored.

    Args:
        scorer: The network; its residual block is left alone.
        world: Training processes.
        config: Learning rates and the loss's resolution.
        class_weights: (C,) or ``None``.
    """

    scorer: DecoderScorer

    def __init__(
        self, scorer: DecoderScorer, world: World, config: ClosedSetConfig, class_weights: Tensor | None
    ) -> None:
        super().__init__(scorer, world)
        self.config, self.class_weights = config, class_weights

    def start_step(self) -> None:
        """Train everything but the residual block."""
        self.scorer.train_closed_set()
        if self.config.encoder_norms == "keep":
            self.scorer.keep_encoder_statistics()

    def optimiser(self) -> optim.Optimizer:
        """AdamW over the encoder's and the other parameters, each with a learning rate of its own."""
        config = self.config
        groups = closed_set_groups(self.scorer, config.lr, config.encoder_lr, config.weight_decay)
        return optim.AdamW(groups, fused=self.world.device.type == "cuda")

    def forward(self, batch: Batch, **hints: Any) -> dict[str, Tensor]:
        """Give ``loss``."""
        logits = self.scorer.closed_set_logits(network_input(batch.images))
        labels = batch.labels.long()
        if self.config.loss_at == "decoder":
            labels = aligned_labels(labels, logits.shape[-2:])
        else:
            logits = resize(logits.float(), labels.shape[-2:])
        return {"loss": closed_set_loss(logits, labels, self.class_weights, self.world.count)}


class ResidualObjective(Objective[Batch]):
    """RPL's losses and CoroCL's (:mod:`anomdino.scorer.losses`).

    Args:
        scorer: The network; all but its residual block stays as it is.
        world: Training processes.
        config: Weights, learning rates and CoroCL's parameters.
        seed: Seed of CoroCL's permutations.
    """

    scorer: DecoderScorer

    def __init__(self, scorer: DecoderScorer, world: World, config: ResidualConfig, seed: int) -> None:
        super().__init__(scorer, world)
        self.config, self.seed = config, seed

    def start_step(self) -> None:
        """Train the residual block, evaluate the rest."""
        self.scorer.train_residual()

    def optimiser(self) -> optim.Optimizer:
        """Adam over the residual block in the published groups."""
        config = self.config
        groups = residual_groups(self.scorer, config.lr, config.final_factor, config.weight_decay)
        return optim.Adam(groups, fused=self.world.device.type == "cuda")

    def hints(self, batch: Batch, step: int) -> dict[str, Any]:
        """Decide whether CoroCL applies: enough scenes with an outlier on every process."""
        corocl = self.config.corocl
        if not corocl.enabled or batch.outlier_images is None:
            return {"scenes": None, "step": step}
        scenes = (batch.labels == OUTLIER).flatten(1).any(dim=1).nonzero()[:, 0]
        enough = self.world.minimum(len(scenes)) >= corocl.min_images
        return {"scenes": scenes if enough else None, "step": step}

    def forward(self, batch: Batch, **hints: Any) -> dict[str, Tensor]:
        """Give ``loss``, the parts of :class:`anomdino.scorer.losses.RplLosses` by name, and ``corocl``."""
        scenes: Tensor | None = hints.get("scenes")
        images, labels = network_input(batch.images), batch.labels.long()
        if scenes is not None and batch.outlier_images is not None:
            images = torch.cat([images, network_input(batch.outlier_images)])
        output = self.scorer.decode(images, with_logits=len(labels))
        closed, residual, targets = self._at_loss_resolution(output, labels)
        parts = rpl_losses(residual, closed, targets, self.world.count)
        contrast = self._contrast(output, labels, batch, scenes, int(hints.get("step", 0)))
        loss = (
            parts.total(self.config.energy_weight, self.config.preservation_weight)
            + self.config.corocl.weight * contrast
        )
        return {"loss": loss, **parts._asdict(), "corocl": contrast}

    def _at_loss_resolution(self, output: ScorerOutput, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        closed, residual = output.logits, output.residual_logits
        if self.config.loss_at == "decoder":
            return closed, residual, aligned_labels(labels, closed.shape[-2:])
        size = labels.shape[-2:]
        return resize(closed.float(), size), resize(residual.float(), size), labels

    def _contrast(
        self, output: ScorerOutput, labels: Tensor, batch: Batch, scenes: Tensor | None, step: int
    ) -> Tensor:
        if scenes is None or output.projection is None or batch.outlier_labels is None:
            return output.residual_logits.new_zeros((), dtype=torch.float32)
        kept = scenes.to(labels.device)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "corocl", self.world.rank, step))
        with torch.autocast(labels.device.type, enabled=False):
            return corocl_loss(
                output.projection[kept],
                labels[kept],
                output.projection[len(labels) + kept],
                batch.outlier_labels.long()[kept],
                max_samples=self.config.corocl.samples,
                temperature=self.config.corocl.temperature,
                generator=generator,
            )
