"""Fast scoring of images: one forward pass a width yields the anomaly score and the uncertainty maps."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomdino.device import cpu_has_bfloat16, settle_vector_maths
from anomdino.errors import BackendMissing, ConfigError, DataError
from anomdino.io.images import MAX_PIXELS
from anomdino.scorer.base import (
    Scorer,
    ScorerOutput,
    gaussian_blur,
    normalise,
    pixel_score,
)
from anomdino.scorer.dilated import use_taps
from anomdino.scorer.efficientnet_lite import LightScorer
from anomdino.scorer.efficientnet_lite_fused import FusedLightScorer
from anomdino.scorer.folding import fold_batch_norms
from anomdino.scorer.guided import refine
from anomdino.scorer.options import ScoringOptions
from anomdino.scorer.refinement import GRID_WIDTH, Refinement
from anomdino.scorer.scored import Part, PendingScores, Scored, pooled, resized
from anomdino.scorer.tiling import Tile, blend_weights, tiles
from anomdino.scorer.wide_resnet38 import WideResNet38Scorer
from anomdino.scorer.wide_resnet38_fused import FusedWideResNet38
from anomdino.scorer.width_fusion import WidthFusion
from anomdino.scorer.window import joined, middle_window, pooled_weights, window_weights
from anomdino.scorer.winograd import use_winograd
from anomdino.uncertainty import uncertainty_maps

log = logging.getLogger(__name__)

STRIP_PIXELS = 1 << 18
HALVINGS = 2


class Fields(NamedTuple):
    """What a batch (B, 3, h, w) yields at its own size: score (B, h, w), pooled maps (B, C + 2, gh, gw) if asked for."""

    score: Tensor
    maps: Tensor | None


class Result(NamedTuple):
    """What images of one size yield, on the device.

    Attributes:
        score: S, (B, H, W), higher = more anomalous.
        maps: Uncertainty maps (B, C + 2, ceil(H / stride), ceil(W / stride)); None where they were not asked for.
        pooled: The score before it was refined, pooled alike, (B, ...).
    """

    score: Tensor
    maps: Tensor | None
    pooled: Tensor


class ScoringEngine:
    """A scorer made ready for many images.

    Batch normalisations are folded, memory is laid out channels-last, and on CUDA the network runs in half
    precision.

    Args:
        scorer: Any scorer.
        options: How images are scored.
        device: Where the network runs.
        consume: Change the scorer itself instead of a copy, which saves the memory of one.
        fusion: The network that joins the scores of all widths, for the option ``fusion: learned``.
        refinement: The network that lowers the score by the image, for the option ``refine_net``.
        portable: Leave the network in plain operators, which other runtimes have too: slower here, the same results.

    Raises:
        BackendMissing: fp16 was asked for on a CPU.
        ConfigError: The options ask for a learned fusion that is not given, or belongs to other widths, or for a
            refinement that is not given.
    """

    def __init__(
        self,
        scorer: Scorer,
        options: ScoringOptions | None = None,
        device: torch.device | str = "cpu",
        consume: bool = False,
        fusion: WidthFusion | None = None,
        refinement: Refinement | None = None,
        portable: bool = False,
    ) -> None:
        settle_vector_maths()
        self.options = options or ScoringOptions()
        self.device = torch.device(device)
        self.fusion = _fusion(self.options, fusion, self.device)
        self.refinement = _refinement(self.options, refinement, self.device)
        self.dtype, self.portable = self._dtype(), portable
        own = scorer if consume else copy.deepcopy(scorer)
        self.network = (
            folded(own).to(device=self.device, dtype=self.dtype)
            if portable
            else prepared(own, self.device, self.dtype)
        )
        self._whole: Callable[[Tensor, int, bool], Fields] = self._network_and_fields
        if self.options.compile:
            mode = None if self.options.compile_mode == "default" else self.options.compile_mode
            self._whole = torch.compile(self._network_and_fields, dynamic=False, mode=mode)
        self.max_pixels = self.options.max_pixels

    def score(self, image: npt.NDArray[np.uint8], name: object = "image") -> Scored:
        """Score one image, uint8 (H, W, 3) RGB (see :meth:`score_batch`)."""
        return self.score_batch([image], [name])[0]

    def score_alone(self, image: npt.NDArray[np.uint8], name: object = "image") -> npt.NDArray[np.float32]:
        """Score one image, uint8 (H, W, 3) RGB, as :meth:`score` does, without the maps, in less time.

        Returns:
            float32 (H, W), higher = more anomalous.

        Raises:
            DataError: A score is NaN or infinite; otherwise as :meth:`launch`.
        """
        return self.launch([image], [name], maps=False).scores()[0]

    def score_batch(
        self, images: Sequence[npt.NDArray[np.uint8]], names: Sequence[object] = ()
    ) -> list[Scored]:
        """Score images of one size and wait for the results (see :meth:`launch`)."""
        return self.launch(images, names).results()

    def launch(
        self, images: Sequence[npt.NDArray[np.uint8]], names: Sequence[object] = (), *, maps: bool = True
    ) -> PendingScores:
        """Start scoring images of one size; on CUDA the results come while the caller goes on.

        When memory runs out, the batch is halved, then the tiles, twice at most.

        Args:
            images: uint8 (H, W, 3), RGB.
            names: What messages call the images, usually their paths.
            maps: Make the uncertainty maps too.

        Raises:
            BackendMissing: Memory does not suffice even for small tiles.
            DataError: The images are far too tall for the widths at which they are scored (:meth:`check_size`).
        """
        names = list(names) or [f"image {index}" for index in range(len(images))]
        self.check_size(images[0].shape, names[0])
        halvings = 0
        while True:
            try:
                return self._launch(images, names, maps)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(images) > 1:
                half = len(images) // 2
                log.warning("out of memory with %d images at once: going on with %d", len(images), half)
                first = self.launch(images[:half], names[:half], maps=maps)
                second = self.launch(images[half:], names[half:], maps=maps)
                return PendingScores(first.parts + second.parts)
            if halvings == HALVINGS:
                raise BackendMissing(
                    names[0],
                    f"does not fit in the memory of {self.device}, not even in tiles of {self.max_pixels} pixels",
                    "lower score.max_pixels or score.widths, or use device: cpu",
                )
            halvings += 1
            self.max_pixels = min(self.max_pixels, _largest(images[0], self.options.widths)) // 2
            log.warning("out of memory on %s: going on with tiles of %d pixels", names[0], self.max_pixels)

    def check_size(self, shape: Sequence[int], name: object) -> None:
        """Refuse an image that would be enlarged to more than 64 megapixels: one of few columns and many rows, say.

        Args:
            shape: (H, W, ...) of the image.
            name: What the message calls it, usually its path.

        Raises:
            DataError: It would be.
        """
        height, width = shape[:2]
        widest = max(*(self.options.widths or (width,)), GRID_WIDTH if self.refinement is not None else 0)
        rows = round(height * widest / width)
        if rows * widest > max(MAX_PIXELS, height * width):
            raise DataError(
                name,
                f"is {width} x {height}; at a width of {widest}, at which it is scored, it would have {rows} rows, "
                f"more than {MAX_PIXELS // 1_000_000} megapixels",
                "lower score.widths (--width), or crop it to the shape of a photo",
            )

    def inputs(self, images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Give images of one size, uint8 (H, W, 3), as the network's input (B, 3, H, W) on its device."""
        return normalise(self._stacked(images).to(self.device, non_blocking=True))

    def _stacked(self, images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Stack images; for CUDA in pinned memory, from which a copy does not wait for the batch before."""
        pinned = self.device.type == "cuda"
        stacked = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=pinned)
        np.stack(images, out=stacked.numpy())
        return stacked

    def layout(self, inputs: Tensor) -> Tensor:
        """Give inputs in the network's precision and memory format."""
        return inputs.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def fields(self, inputs: Tensor, stride: int, maps: bool = True) -> Fields:
        """Run the network once and give score and maps at the size of the inputs, without blur.

        Args:
            inputs: float32 (B, 3, h, w) of :meth:`inputs`.
            stride: Factor by which the maps are pooled.
            maps: Make the maps; without them the closed set's logits are not finished.
        """
        return self._whole(self.layout(inputs), stride, maps)

    @torch.inference_mode()
    def _launch(
        self, images: Sequence[npt.NDArray[np.uint8]], names: Sequence[object], maps: bool
    ) -> PendingScores:
        size = (images[0].shape[0], images[0].shape[1])
        result = self.evaluate(self.inputs(images), maps)
        halves = None if result.maps is None else result.maps.half().to("cpu", non_blocking=True)
        scores, small = (tensor.to("cpu", non_blocking=True) for tensor in (result.score, result.pooled))
        arrived = torch.cuda.current_stream().record_event() if self.device.type == "cuda" else None
        return PendingScores([Part(scores, halves, small, size, tuple(names), arrived)])

    def evaluate(self, inputs: Tensor, maps: bool = True) -> Result:
        """Score inputs at every width, join, filter and lower the scores, all as the options say.

        Args:
            inputs: float32 (B, 3, H, W) of :meth:`inputs`.
            maps: Make the uncertainty maps too.
        """
        whole = self._look(inputs, maps)
        height, width = inputs.shape[-2:]
        stride = self.options.map_stride
        window = middle_window(height, width, self.options.window, stride) if self.options.window else None
        if window is None:
            return whole
        closer = self._look(inputs[..., window.rows, window.columns], maps)
        weights = window_weights(window, height, width).to(inputs.device)
        cells, shares = window.shrunk(stride), pooled_weights(weights, stride)
        return Result(
            joined(whole.score, closer.score, window, weights),
            None
            if whole.maps is None or closer.maps is None
            else joined(whole.maps, closer.maps, cells, shares),
            joined(whole.pooled, closer.pooled, cells, shares),
        )

    def _look(self, inputs: Tensor, maps: bool) -> Result:
        height, width = inputs.shape[-2:]
        stride = self.options.map_stride
        fields = [self._at_width(inputs, target, maps) for target in self.options.widths or (width,)]
        score = self._fused([field.score for field in fields], (height, width))
        grid = (-(-height // stride), -(-width // stride))
        found = [resized(field.maps, grid) for field in fields if field.maps is not None]
        pooled_score = pooled(score[:, None], stride)[:, 0]
        score = refine(score, inputs, self.options.refine)
        if self.refinement is not None:
            score = self.refinement(score, inputs)
        return Result(score, _mean(found) if found else None, pooled_score)

    @torch.inference_mode()
    def score_widths(self, image: npt.NDArray[np.uint8]) -> list[Tensor]:
        """Score one image, uint8 (H, W, 3) RGB, at every width: float (1, h, w), each at its own size, not fused.

        The order is that of the widths; higher is more anomalous.
        """
        inputs = self.inputs([image])
        widths = self.options.widths or (image.shape[1],)
        return [self._at_width(inputs, target, maps=False).score for target in widths]

    def _fused(self, scores: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        if self.fusion is not None:
            return self.fusion([score.float() for score in scores], size)  # type: ignore[no-any-return]
        return _mean(resized(score[:, None], size)[:, 0] for score in scores)

    def _at_width(self, inputs: Tensor, target: int, maps: bool) -> Fields:
        height, width = inputs.shape[-2:]
        if target != width:
            size = (max(1, round(height * target / width)), target)
            inputs = F.interpolate(inputs, size=size, mode="bilinear", align_corners=False, antialias=True)
        stride = max(1, round(self.options.map_stride * target / width))
        fields = self._tiled(inputs, stride, maps)
        return Fields(gaussian_blur(fields.score) if self.options.blurs else fields.score, fields.maps)

    def _tiled(self, inputs: Tensor, stride: int, maps: bool) -> Fields:
        height, width = inputs.shape[-2:]
        overlap = self.options.tile_overlap
        parts = tiles(height, width, self.max_pixels, overlap, align=8 * stride)
        if len(parts) == 1:
            return self.fields(inputs, stride, maps)
        score = inputs.new_zeros(inputs.shape[0], height, width)
        weight = inputs.new_zeros(height, width)
        grid = Tile(0, 0, height, width).shrunk(stride)
        blended: Tensor | None = None
        grid_weight = inputs.new_zeros(grid.bottom, grid.right)
        for tile in parts:
            fields = self.fields(inputs[..., tile.rows, tile.columns], stride, maps)
            share = blend_weights(tile, height, width, overlap).to(self.device)
            score[:, tile.rows, tile.columns] += fields.score * share
            weight[tile.rows, tile.columns] += share
            if fields.maps is None:
                continue
            cells, pooled_share = tile.shrunk(stride), pooled(share[None, None], stride)[0, 0]
            if blended is None:
                blended = inputs.new_zeros(*fields.maps.shape[:2], grid.bottom, grid.right)
            blended[..., cells.rows, cells.columns] += fields.maps * pooled_share
            grid_weight[cells.rows, cells.columns] += pooled_share
        return Fields(score / weight, None if blended is None else blended / grid_weight)

    def _network_and_fields(self, inputs: Tensor, stride: int, with_maps: bool = True) -> Fields:
        scored, closed = self._logits(inputs, with_maps)
        height, width = inputs.shape[-2:]
        rows = height
        if self.device.type == "cpu":
            rows = max(1, STRIP_PIXELS // (width * stride)) * stride
        scores, maps = [], []
        for top in range(0, height, rows):
            strip = slice(top, top + rows)
            scores.append(pixel_score(scored[..., strip, :].contiguous(), self.options.kind))
            if closed is None:
                continue
            semantic, entropy, distance = uncertainty_maps(
                closed[..., strip, :].contiguous(), self.options.semantic, self.options.distance
            )
            parts = (semantic, entropy[:, None], distance[:, None])
            maps.append(torch.cat([pooled(part, stride) for part in parts], dim=1))
        return Fields(torch.cat(scores, dim=1), torch.cat(maps, dim=2) if maps else None)

    def _logits(self, inputs: Tensor, maps: bool) -> tuple[Tensor, Tensor | None]:
        """Give the logits that are scored, and those that the maps are made of, if these are wanted."""
        residual = self.options.logits == "residual"
        if residual and not maps and isinstance(self.network, FusedLightScorer | FusedWideResNet38):
            return self.network.residual_logits(inputs), None
        output: ScorerOutput = self.network(inputs)
        return output.residual_logits if residual else output.logits, output.logits if maps else None

    def _dtype(self) -> torch.dtype:
        if self.options.precision == "fp16" and self.device.type == "cpu":
            raise BackendMissing(
                "score.precision", "fp16 is not available on the CPU", "use precision: auto or fp32"
            )
        if self.options.precision == "bf16":
            if self.device.type == "cpu" and not cpu_has_bfloat16():
                log.warning("score.precision: bf16 is slow on this processor, which does not compute in it")
            return torch.bfloat16
        half = self.device.type == "cuda" and self.options.precision in {"auto", "fp16"}
        return torch.float16 if half else torch.float32


def folded(scorer: Scorer) -> nn.Module:
    """Fold a scorer's batch normalisations into its convolutions, using up the one given."""
    fold_batch_norms(scorer.requires_grad_(False).eval())
    return scorer


def prepared(scorer: Scorer, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Make a scorer fast, using up the one given.

    Batch normalisations are folded, RPL's network and the light one are rearranged. On CUDA, and in bfloat16, weights are
    channels-last; in float32 on the CPU, which lays them out for every call anyway, wide 3x3 convolutions use Winograd's
    algorithm, and those of large dilation skip the products with their padding.
    """
    network = folded(scorer)
    if isinstance(scorer, WideResNet38Scorer):
        network = FusedWideResNet38(scorer)
    elif isinstance(scorer, LightScorer):
        network = FusedLightScorer(scorer)
    network = network.eval().to(device=device, dtype=dtype)
    if device.type == "cuda" or dtype == torch.bfloat16:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dtype != torch.bfloat16:
        use_winograd(network)
        use_taps(network)
    return network


def _fusion(options: ScoringOptions, fusion: WidthFusion | None, device: torch.device) -> WidthFusion | None:
    if options.fusion == "mean":
        return None
    if fusion is None or fusion.widths != options.widths:
        belongs = "none is given" if fusion is None else f"the one given is for {fusion.widths}"
        raise ConfigError(
            "score.fusion",
            f"is learned at the widths {options.widths}, but {belongs}",
            "use score.fusion: mean",
        )
    return fusion.to(device).eval()


def _refinement(
    options: ScoringOptions, refinement: Refinement | None, device: torch.device
) -> Refinement | None:
    if not options.refine_net:
        return None
    if refinement is None:
        raise ConfigError("score.refine_net", "is true, but no network is given", "set it to false")
    return refinement.to(device).eval()


def _mean(maps: Iterable[Tensor]) -> Tensor:
    total, count = None, 0
    for one in maps:
        total, count = one if total is None else total + one, count + 1
    assert total is not None
    return total / count


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _largest(image: npt.NDArray[np.uint8], widths: Sequence[int]) -> int:
    height, width = image.shape[:2]
    target = max(widths, default=width)
    return int(max(1, round(height * target / width)) * target)
