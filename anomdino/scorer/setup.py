"""From the parameters of the stage ``score`` to an engine, a source of maps and the settings of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anomdino.errors import ConfigError
from anomdino.io.digest import file_sha256
from anomdino.scorer.base import WEIGHTS_FILE, load_scorer
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.maps_source import MapsSource
from anomdino.scorer.options import ScoringOptions
from anomdino.scorer.refinement import load_refinement, refinement_file
from anomdino.scorer.run import Outputs, RunOptions, SetScorer, content_digest
from anomdino.scorer.width_fusion import fusion_file, load_fusion

if TYPE_CHECKING:
    import torch

    from anomdino.config.score import ScoreConfig

BLUR = {"auto": None, "on": True, "off": False}


def scoring_options(config: ScoreConfig) -> ScoringOptions:
    """Give the options of the engine."""
    return ScoringOptions(
        kind=config.kind,
        logits=config.logits,
        blur=BLUR[config.blur],
        widths=tuple(config.widths),
        fusion=config.fusion,
        refine=tuple(config.refine),
        refine_net=config.refine_net,
        window=config.window,
        semantic=config.semantic,
        distance=config.distance,
        map_stride=config.map_stride,
        max_pixels=config.max_pixels,
        tile_overlap=config.tile_overlap,
        precision=config.precision,
        compile=config.compile,
        compile_mode=config.compile_mode,
        batch=config.batch,
    )


def run_options(config: ScoreConfig) -> RunOptions:
    """Give the settings of a run over a set."""
    return RunOptions(
        workers=config.workers,
        max_image_pixels=config.max_image_pixels,
        skip_bad=config.on_bad_input == "skip",
        max_bad=config.max_bad,
    )


def engine_from(
    config: ScoreConfig, trained: Path | str, device: torch.device | str = "cpu", *, portable: bool = False
) -> tuple[ScoringEngine, str]:
    """Load the scorer that the parameters name.

    Args:
        config: Block ``score``.
        trained: Folder of the trained scorer, used unless ``source`` is ``transformers``, whose networks have closed-set
            logits alone: ``logits: residual`` reads them, too.
        device: Where it runs.
        portable: Leave its network in plain operators (:class:`anomdino.scorer.inference.ScoringEngine`), in float32,
            whatever ``precision`` and ``compile`` say.

    Returns:
        The engine, and the digest of all that its results depend on besides the image, the kind of device included.

    Raises:
        CheckpointError: The scorer is missing, damaged or does not fit.
        ConfigError: ``source`` is ``transformers`` without a name; ``refine_net`` with another score than the one it was
            trained for.
    """
    options = scoring_options(config)
    if portable:
        options = replace(options, precision="fp32", compile=False)
    if config.refine_net:
        _check_refined(config)
    if config.source != "transformers":
        scorer = load_scorer(trained)
        fusion, refinement, extra = None, None, [str(config.source)]
        if config.fusion == "learned":
            fusion = load_fusion(trained, config.widths)
            extra.append(file_sha256(fusion_file(trained, config.widths)))
        if config.refine_net:
            refinement = load_refinement(trained)
            extra.append(file_sha256(refinement_file(trained)))
        engine = ScoringEngine(
            scorer,
            options,
            device,
            consume=True,
            fusion=fusion,
            refinement=refinement,
            portable=portable,
        )
        digest = content_digest(options, Path(trained) / WEIGHTS_FILE, engine.device.type, *extra)
        return engine, digest
    if not config.transformers:
        raise ConfigError("score.transformers", "is empty", "give a local folder or a hub name")
    from anomdino.scorer.transformers_scorer import load_transformers

    network = load_transformers(config.transformers)
    fingerprint = network.fingerprint()
    engine = ScoringEngine(network, options, device, consume=True, portable=portable)
    names = (config.source, config.transformers, fingerprint)
    return engine, content_digest(options, None, engine.device.type, *names)


def set_scorer(
    config: ScoreConfig, trained: Path | str, device: torch.device | str, outputs: Outputs, what: str
) -> SetScorer:
    """Load what scores whole sets as the parameters say.

    Args:
        config: Block ``score``.
        trained: Folder of the trained scorer (see :func:`engine_from`, which says what is raised).
        device: Where it runs.
        outputs: Where results go.
        what: Name for the progress bar.
    """
    engine, digest = engine_from(config, trained, device)
    return SetScorer(engine, outputs, digest, run_options(config), what=what)


def _check_refined(config: ScoreConfig) -> None:
    asked = f"{config.kind} of {config.logits} logits"
    if config.source == "transformers":
        asked = "that of another network"
    elif config.kind == "energy" and config.logits == "residual":
        return
    raise ConfigError(
        "score.refine_net", f"lowers the residual energy alone, and the score is {asked}", "set it to false"
    )


def maps_from(config: ScoreConfig, name: str, keys: Iterable[str]) -> MapsSource | None:
    """Open the folder of score maps of a set, where the parameters ask for maps.

    Args:
        config: Block ``score``.
        name: ``train`` or the name of a benchmark.
        keys: Keys of the images.

    Raises:
        ConfigError: There is no folder for this set.
        DataError: Maps and images are not one to one.
    """
    if config.source != "maps":
        return None
    if name not in config.maps:
        known = ", ".join(config.maps) or "nothing"
        raise ConfigError(
            f"score.maps.{name}",
            f"is not given, only {known}",
            f"give the folder of score maps: `-S score.maps.{name}=<folder>`",
        )
    return MapsSource(config.maps[name], keys)
