"""The whole cascade on one image: scorer, detector, ADT-Net (docs/method.md 1)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from anomdino.adt.fusion import AdtModel, FusionRule, Output, fuse
from anomdino.adt.plugin import with_threshold
from anomdino.adt.store import load_adt
from anomdino.errors import CheckpointError, ConfigError
from anomdino.io.boxes import Boxes
from anomdino.release import released_folder
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.setup import engine_from
from anomdino.scorer.width_fusion import fusion_file
from anomdino.uncertainty import UncertaintyMaps

if TYPE_CHECKING:
    import torch

    from anomdino.config.params import Params

log = logging.getLogger(__name__)

RELEASED = "released"
TRAINED_HERE = Path("data/models")


class BoxDetector(Protocol):
    """What the cascade asks of a detector."""

    def detect(self, image: npt.NDArray[np.uint8], maps: UncertaintyMaps) -> Boxes:
        """Find boxes in an image, uint8 (H, W, 3) RGB, with the maps of its score."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the cascade says of one image.

    Attributes:
        raw: S, the scorer's anomaly score, float32 (H, W).
        score: The final score A, float32 (H, W), higher = more anomalous.
        mask: bool (H, W), the anomaly.
        boxes: The boxes that were kept.
        threshold: float32 (H, W), ADT-Net's threshold of each pixel on its decision surface.
    """

    raw: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    boxes: Boxes
    threshold: npt.NDArray[np.float32]


class Cascade:
    """Scorer, detector and ADT-Net, loaded once and used for many images.

    Args:
        engine: The scorer.
        detector: The detector, or ``None`` to go without boxes: the final score then keeps the score's order.
        adt: ADT-Net with its rule.
    """

    def __init__(self, engine: ScoringEngine, detector: BoxDetector | None, adt: AdtModel) -> None:
        self.engine, self.detector, self.adt = engine, detector, adt

    @staticmethod
    def load(models: Path, params: Params, device: torch.device, boxes: bool = True) -> Cascade:
        """Load a trained pipeline.

        Args:
            models: Folder with ``rpl``, ``detector`` and ``adt``.
            params: Its parameters; the blocks ``score`` and ``detect`` are read.
            device: Where the networks run.
            boxes: Load the detector too.

        Raises:
            CheckpointError: A model is missing, damaged or of another architecture.
            BackendMissing: The detector's packages are not installed.
        """
        engine, _ = engine_from(params.score, models / "rpl", device)
        detector: BoxDetector | None = None
        if boxes:
            from anomdino.detector.infer import Detector

            detector = Detector.load(models / "detector", device, params.detect)
        return Cascade(engine, detector, load_adt(models / "adt", str(device)))

    def with_rule(
        self, output: Output | None = None, min_component: int | None = None, threshold: str | None = None
    ) -> Cascade:
        """The same cascade with another output rule, component limit or threshold.

        Args:
            output: The output; the model's own if absent.
            min_component: Mask components with fewer pixels are removed; the model's own if absent.
            threshold: See :func:`anomdino.adt.plugin.with_threshold`.

        Raises:
            ConfigError: The threshold was calibrated for another rule, or with boxes where there is no detector, or the
                reverse.
        """
        rule: FusionRule = self.adt.rule
        if output is not None:
            rule = replace(rule, output=output)
        if min_component is not None:
            rule = replace(rule, min_component=min_component)
        adt = with_threshold(self.adt, threshold, rule)
        if adt.threshold is not None:
            adt.threshold.require(asdict(rule), self.detector is not None)
        return Cascade(self.engine, self.detector, replace(adt, rule=rule))

    def description(self) -> dict[str, Any]:
        """What decides masks and final scores besides the rule, for JSON: threshold and statistics of ADT-Net."""
        threshold = self.adt.threshold
        return {
            "threshold": threshold.as_dict() if threshold else {"kind": "adt"},
            "statistics": asdict(self.adt.net.statistics),
        }

    def predict(self, image: npt.NDArray[np.uint8], name: object = "image") -> Prediction:
        """Find the anomalies of an image.

        Args:
            image: uint8 (H, W, 3), RGB.
            name: What messages call the image.

        Raises:
            DataError: A score is NaN or infinite.
        """
        if self.detector is None:
            score, boxes = self.engine.score_alone(image, name), Boxes.empty()
        else:
            scored = self.engine.score(image, name)
            score, boxes = scored.score, self.detector.detect(image, scored.maps)
        fused = fuse(score, boxes, self.adt, image=image, image_size=(image.shape[0], image.shape[1]))
        return Prediction(score, fused.score, fused.mask, fused.boxes, fused.threshold)


def at_widths(params: Params, widths: Iterable[int], models: Path) -> Params:
    """Give parameters that score at other widths, joined by a network if the model has one for them, else by their mean.

    Args:
        params: The model's parameters.
        widths: In pixels, in any order.
        models: Folder with ``rpl``.
    """
    from anomdino.config.params import with_changes

    ordered = sorted(set(widths))
    learned = params.score.fusion == "learned" and fusion_file(models / "rpl", ordered).is_file()
    return with_changes(params, "score", widths=ordered, fusion="learned" if learned else "mean")


def with_window(params: Params, window: float) -> Params:
    """Give parameters that look a second time at the middle of the image (``score.window``).

    Raises:
        ConfigError: ``window`` is not in [0, 1).
    """
    from anomdino.config.params import with_changes

    if not 0 <= window < 1:
        raise ConfigError("--window", f"is {window:g}", "give a share of the sides below 1, 0.5 for instance")
    return with_changes(params, "score", window=window)


def warn_of_drawn_scenes(models: Path, params: Params) -> None:
    """Say so where models that nobody asked for by name were trained by the demo, and know drawn scenes alone."""
    if models == TRAINED_HERE and params.data.source == "synthetic":
        log.warning("%s learned drawn scenes; for photos use `--models released`", models)


def find_models(models: Path | None, params: Path | None) -> tuple[Path, Path]:
    """Find the trained pipeline to use: the one asked for, else ``data/models`` here, else the released model.

    Args:
        models: Folder with ``rpl``, ``detector`` and ``adt``, or a folder that holds ``models/`` and ``params.yaml``;
            ``released``, where no folder is called so, is the released model.
        params: The parameter file that belongs to it.

    Returns:
        Folder of models, and parameter file.

    Raises:
        CheckpointError: The folder that was asked for does not exist or holds no models, or there is no trained pipeline.
        ConfigError: There is no parameter file beside the folder that was asked for, nor here.
    """
    asked = models is not None and models.as_posix() == RELEASED and not models.exists()
    if models is not None and not asked:
        if not models.is_dir():
            raise CheckpointError(models, "is no folder", f"name a folder of trained models, or `{RELEASED}`")
        inner = models / "models" if (models / "models").is_dir() else models
        if not (inner / "adt").is_dir():
            raise CheckpointError(
                models, "holds no trained models", f"name a folder with rpl/ and adt/, or `{RELEASED}`"
            )
        beside = [inner.parent / "params.yaml", Path("params.yaml")]
        found = params or next((path for path in beside if path.is_file()), None)
        if found is None:
            raise ConfigError(
                "--params", f"is needed: no params.yaml lies beside {inner}", "name the models' own"
            )
        return inner, found
    if not asked and all((TRAINED_HERE / part / "config.json").is_file() for part in ("rpl", "adt")):
        return TRAINED_HERE, params or Path("params.yaml")
    released = released_folder()
    if released is None:
        if asked:
            raise CheckpointError(RELEASED, "is not part of this installation", "name a folder of models")
        raise CheckpointError(
            "data/models",
            "holds no trained pipeline, and this installation has no released model",
            "run `dvc repro`",
        )
    log.info("using the released model %s", released)
    return released / "models", params or released / "params.yaml"
