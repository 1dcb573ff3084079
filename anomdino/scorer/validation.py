"""How good a scorer is on held-out images of the training domain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anomdino.scorer.base import pixel_score, resize, to_input
from anomdino.scorer.batches import Batch, network_input, on_device
from anomdino.scorer.dataset import ImagePairs
from anomdino.scorer.losses import OUTLIER, VOID
from anomdino.scorer.residual import DecoderScorer

CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip


@dataclass(frozen=True)
class ClosedSetQuality:
    """Closed-set quality over a set of images.

    Attributes:
        loss: Mean cross-entropy of all labelled pixels.
        confusion: int64 (C, C), pixels by true (row) and predicted (column) class.
    """

    loss: float
    confusion: Tensor

    @property
    def iou(self) -> list[float | None]:
        """Intersection over union of each class; ``None`` for one that neither occurs nor is predicted."""
        hits = self.confusion.diag()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return [float(hit) / float(all_) if all_ else None for hit, all_ in zip(hits, union, strict=True)]

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in the labels."""
        occurring = (self.confusion.sum(1) > 0).tolist()
        values = [iou or 0.0 for iou, occurs in zip(self.iou, occurring, strict=True) if occurs]
        return sum(values) / len(values) if values else 0.0

    def report(self) -> dict[str, Any]:
        """Give the figures for a JSON file: mIoU, loss, IoU and pixel count of each class."""
        iou = self.iou
        names = (
            CITYSCAPES_CLASSES if len(iou) == len(CITYSCAPES_CLASSES) else [str(i) for i in range(len(iou))]
        )
        pixels = self.confusion.sum(1).tolist()
        return {
            "miou": self.miou,
            "loss": self.loss,
            "classes_that_occur": sum(count > 0 for count in pixels),
            "iou": dict(zip(names, iou, strict=True)),
            "pixels": dict(zip(names, pixels, strict=True)),
        }


@torch.inference_mode()
def closed_set_quality(scorer: DecoderScorer, scenes: ImagePairs, device: torch.device) -> ClosedSetQuality:
    """Measure Z on whole images, one at a time, at their own size.

    Args:
        scorer: Put in evaluation mode.
        scenes: Images with closed-set labels.
        device: Where the scorer lies.
    """
    scorer.eval()
    classes = scorer.spec.num_classes
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for index in range(len(scenes)):
        image, label = scenes[index]
        target = torch.from_numpy(label).to(device).long()
        logits = resize(scorer.closed_set_logits(to_input(image).to(device)), target.shape)[0].float()
        known = target < classes
        truth, predicted = target[known], logits.argmax(dim=0)[known]
        confusion += torch.bincount(truth * classes + predicted, minlength=classes * classes)
        log_p = logits.log_softmax(dim=0)[:, known]
        loss -= log_p.gather(0, truth[None]).double().sum()
    total = max(int(confusion.sum()), 1)
    return ClosedSetQuality(float(loss) / total, confusion.reshape(classes, classes).cpu())


@torch.inference_mode()
def composed_quality(
    scorer: DecoderScorer, batches: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """Measure how well the residual energy finds pasted outliers, at the decoder's resolution.

    Returns:
        ``ap``: average precision of outlier (254) against labelled inlier pixels, pooled over all images.
        ``ap_closed``: the same for the energy of the closed-set logits.
    """
    scorer.eval()
    scores: dict[str, list[Tensor]] = {"ap": [], "ap_closed": []}
    truths = []
    for batch in batches:
        moved = on_device(batch, device)
        output = scorer.decode(network_input(moved.images))
        size = output.logits.shape[-2:]
        labels = moved.labels[:, :: max(1, moved.labels.shape[1] // size[0])]
        labels = labels[:, :, :: max(1, moved.labels.shape[2] // size[1])]
        known = labels != VOID
        truths.append((labels == OUTLIER)[known].cpu())
        for name, logits in (("ap", output.residual_logits), ("ap_closed", output.logits)):
            energy = resize(pixel_score(logits, "energy")[:, None], labels.shape[-2:])[:, 0]
            scores[name].append(energy[known].cpu())
    truth = torch.cat(truths)
    return {name: average_precision(torch.cat(parts), truth) for name, parts in scores.items()}


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Average precision by the step sum over distinct scores; 0 without positives.

    Args:
        scores: float (N,).
        truth: bool (N,).
    """
    order = scores.argsort(descending=True)
    ordered, hits = scores[order], truth[order].double().cumsum(0)
    last_of_tie = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    true_positives = hits[last_of_tie]
    predicted = torch.arange(1, len(scores) + 1, dtype=torch.float64)[last_of_tie]
    gains = torch.diff(true_positives, prepend=torch.zeros(1, dtype=torch.float64))
    positives = float(truth.sum())
    return float((gains * true_positives / predicted).sum()) / positives if positives else 0.0
