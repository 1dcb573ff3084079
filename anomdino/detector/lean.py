"""Prediction for single images without needless work: geometry and text once, no host synchronisation, CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from anomdino.cuda_graphs import record
from anomdino.detector.deformable_attention import deformable_attention

Prompts = tuple[str, ...]
ORIGIN = ("level", "proposal_score", "feature_norm", "fusion_share")
SIZES_KEPT = 4
"""Sizes of images, those asked for last, whose geometry and CUDA graph are kept: a geometry takes some 15 MB."""

K = TypeVar("K")
V = TypeVar("V")
Sizes = tuple[tuple[int, int], ...]


class Prediction(NamedTuple):
    """What the network predicts for an image, query by query.

    Attributes:
        scores: float32 (queries, prompts), confidence in [0, 1].
        boxes: float32 (queries, 4), (cx, cy, w, h) in shares of the image.
        origin: float32 (queries, 4): the pyramid level of the token that the query comes from, 0 the finest; that
            token's own score in [0, 1]; the root mean square of its feature over channels before OUAFS; and, with D
            what OUAFS adds to the feature F, the share |D| / (|F| + |D|) in [0, 1].
    """

    scores: Tensor
    boxes: Tensor
    origin: Tensor


@dataclass(frozen=True, eq=False)
class Geometry:
    """What depends on the sizes of the pyramid's levels alone.

    Attributes:
        sizes: (h, w) of every level.
        shapes: The same as an int64 tensor on the CPU, so that reading it never waits for the device.
        extent: float32 (levels, 2), (w, h) of every level.
        ends: int64 (levels,), the number of the first token after each level.
        positions: float (1, N, C), position and level embedding of every token.
        references: float32 (1, N, levels, 2), the tokens' own places.
        proposals: float32 (1, N, 4), the tokens' boxes before the sigmoid, inf where there is none.
    """

    sizes: Sizes
    shapes: Tensor
    extent: Tensor
    ends: Tensor
    positions: Tensor
    references: Tensor
    proposals: Tensor


class LeanPredictor:
    """A detector's prediction for one image at a time, equal to ``network.predict``.

    Memory does not grow with the sizes of the images: what belongs to a size is kept for the last four.

    Args:
        network: An :class:`~anomdino.detector.model.OuafsGroundingDINO` in evaluation mode.
        half: Use float16 where it is safe, on CUDA; the CPU stays exact.
        graphs: Replay CUDA graphs, one for a size of image (CUDA).
    """

    def __init__(self, network: Any, half: bool = False, graphs: bool = False) -> None:
        self.network, self.half, self.graphs = network, half, graphs
        self._geometry: OrderedDict[Sizes, Geometry] = OrderedDict()
        self._captured: OrderedDict[Any, tuple[Callable[[Tensor, Tensor], Prediction], Geometry]] = (
            OrderedDict()
        )

    @torch.inference_mode()
    def __call__(self, image: Tensor, maps: Tensor, prompts: Prompts) -> Prediction:
        """Predict.

        Args:
            image: float32 (1, 3, H, W), normalised, on the network's device.
            maps: float32 (1, classes + 3, h, w) on the grid of the image at the network's map stride.
            prompts: Texts of the classes.
        """
        text, mapping = self.network._text([prompts], None)
        tokens = [mapping[0][index + 1] for index in range(len(prompts))]
        if not (self.graphs and image.is_cuda):
            return self._predict(image, maps, text, tokens)
        key = (tuple(image.shape), tuple(maps.shape), prompts)
        replay, _ = kept(self._captured, key, lambda: self._capture(image, maps, text, tokens))
        return replay(image, maps)

    def _capture(
        self, image: Tensor, maps: Tensor, text: dict[str, Tensor], tokens: list[list[int]]
    ) -> tuple[Callable[[Tensor, Tensor], Prediction], Geometry]:
        """Record a graph, and give it with the geometry whose memory it reads: the two have to live equally long."""
        replay = record(lambda i, m: self._predict(i, m, text, tokens), image, maps)
        return replay, next(reversed(self._geometry.values()))

    def _predict(
        self, image: Tensor, maps: Tensor, text: dict[str, Tensor], tokens: list[list[int]]
    ) -> Prediction:
        network = self.network
        half = self.half and image.is_cuda
        with torch.autocast(image.device.type, torch.float16, enabled=half, cache_enabled=False):
            plain = list(network.extract_feat(image))
            fused = network.ouafs(plain, maps, None, with_loss=False)
            features = fused.features
            geometry = self._geometry_of(features)
            memory, memory_text = self._encode(features, text, geometry)
            query, reference, chosen, proposed = self._propose(memory, memory_text, text, geometry)
            origin = _origin(plain, features, chosen, proposed, geometry.ends)
            hidden, reference = self._decode(query, reference, memory, memory_text, text, geometry)
            head = network.bbox_head
            last = network.decoder.num_layers - 1
            scores = (
                head.cls_branches[last](hidden, memory_text, text["text_token_mask"])[0].float().sigmoid()
            )
            boxes = (head.reg_branches[last](hidden).float() + _logit(reference, 1e-5)).sigmoid()[0]
        classes = torch.stack([sum(scores[:, t] for t in members) / len(members) for members in tokens], -1)
        return Prediction(classes, boxes, origin)

    def _geometry_of(self, features: list[Tensor]) -> Geometry:
        sizes = tuple((feature.shape[2], feature.shape[3]) for feature in features)
        return kept(self._geometry, sizes, lambda: build_geometry(self.network, features, sizes))

    def _encode(
        self, features: list[Tensor], text: dict[str, Tensor], geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        from anomdino.detector.mmdet_parts import get_text_sine_pos_embed

        encoder = self.network.encoder
        memory = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], 1)
        language = text["embedded"]
        places = get_text_sine_pos_embed(
            text["position_ids"][..., None], num_pos_feats=self.network.embed_dims, exchange_xy=False
        )
        hidden_from = ~text["masks"]
        for layer, text_layer, fusion in zip(
            encoder.layers, encoder.text_layers, encoder.fusion_layers, strict=True
        ):
            memory, language = fusion(visual_feature=memory, lang_feature=language)
            heads = text_layer.self_attn_cfg.num_heads
            language = text_layer(
                query=language,
                query_pos=places,
                attn_mask=hidden_from.repeat(heads, 1, 1),
                key_padding_mask=None,
            )
            memory = _sample(
                layer.self_attn, memory, geometry.positions, memory, geometry.references, geometry
            )
            memory = layer.norms[1](layer.ffn(layer.norms[0](memory)))
        return memory, language

    def _propose(
        self, memory: Tensor, memory_text: Tensor, text: dict[str, Tensor], geometry: Geometry
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        network = self.network
        valid = torch.isfinite(geometry.proposals[..., :1])
        output = network.memory_trans_norm(network.memory_trans_fc(memory * valid))
        branch = network.bbox_head.cls_branches[network.decoder.num_layers]
        best = branch(output, memory_text, text["text_token_mask"]).amax(-1)
        count = min(network.num_queries, best.shape[1])
        proposed, tokens = best.topk(count, dim=1)
        chosen = tokens.unsqueeze(-1)
        picked = output.gather(1, chosen.expand(-1, -1, output.shape[-1]))
        offsets = network.bbox_head.reg_branches[network.decoder.num_layers](picked).float()
        reference = (offsets + geometry.proposals.gather(1, chosen.expand(-1, -1, 4))).sigmoid()
        return (
            network.query_embedding.weight[:count].unsqueeze(0),
            reference,
            tokens[0],
            proposed[0].float().sigmoid(),
        )

    def _decode(
        self,
        query: Tensor,
        reference: Tensor,
        memory: Tensor,
        memory_text: Tensor,
        text: dict[str, Tensor],
        geometry: Geometry,
    ) -> tuple[Tensor, Tensor]:
        from anomdino.detector.mmdet_parts import coordinate_to_encoding

        decoder, branches = self.network.decoder, self.network.bbox_head.reg_branches
        padded = ~text["text_token_mask"]
        for index, layer in enumerate(decoder.layers):
            place = decoder.ref_point_head(coordinate_to_encoding(reference))
            query = layer.norms[0](
                layer.self_attn(query=query, key=query, value=query, query_pos=place, key_pos=place)
            )
            query = layer.norms[1](
                layer.cross_attn_text(
                    query=query, query_pos=place, key=memory_text, value=memory_text, key_padding_mask=padded
                )
            )
            wide = reference.unsqueeze(2).expand(-1, -1, len(geometry.sizes), -1)
            query = layer.norms[2](_sample(layer.cross_attn, query, place, memory, wide, geometry))
            query = layer.norms[3](layer.ffn(query))
            if index + 1 < len(decoder.layers):
                reference = (branches[index](query).float() + _logit(reference, 1e-3)).sigmoid()
        return decoder.norm(query), reference


def kept(store: OrderedDict[K, V], key: K, make: Callable[[], V]) -> V:
    """Give what is stored under a key, made if it is not there; only what was asked for last stays (SIZES_KEPT)."""
    if key not in store:
        while len(store) >= SIZES_KEPT:
            store.popitem(last=False)
        store[key] = make()
    store.move_to_end(key)
    return store[key]


def build_geometry(network: Any, features: list[Tensor], sizes: Sizes) -> Geometry:
    """Compute the geometry of an unpadded image by the network's own functions."""
    device, dims = features[0].device, network.embed_dims
    with torch.autocast(device.type, enabled=False):
        shapes = torch.tensor(sizes)
        places = [network.positional_encoding(None, input=feature.float()) for feature in features]
        positions = torch.cat(
            [
                place.flatten(2).transpose(1, 2) + network.level_embed[level].view(1, 1, -1)
                for level, place in enumerate(places)
            ],
            1,
        )
        ratios = torch.ones(1, len(sizes), 2, device=device)
        references = network.encoder.get_encoder_reference_points(shapes, ratios, device)
        blank = torch.zeros(1, positions.shape[1], dims, device=device)
        _, proposals = network.gen_encoder_output_proposals(blank, None, shapes.to(device))
        extent = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32, device=device)
        ends = shapes.prod(1).cumsum(0).to(device)
    return Geometry(sizes, shapes, extent, ends, positions.float(), references.float(), proposals.float())


def _sample(
    attention: nn.Module, query: Tensor, place: Tensor, memory: Tensor, reference: Tensor, geometry: Geometry
) -> Tensor:
    """Run mmcv's MultiScaleDeformableAttention on unpadded input, with its residual connection."""
    module: Any = attention
    asked = query + place
    batch, queries, _ = query.shape
    shape = (batch, queries, module.num_heads, module.num_levels, module.num_points)
    value = module.value_proj(memory).view(batch, memory.shape[1], module.num_heads, -1)
    offsets = module.sampling_offsets(asked).float().view(*shape, 2)
    weights = module.attention_weights(asked).float().view(*shape[:3], -1).softmax(-1).view(shape)
    reference = reference[:, :, None, :, None, :]
    if reference.shape[-1] == 2:
        locations = reference + offsets / geometry.extent[None, None, None, :, None, :]
    else:
        locations = reference[..., :2] + offsets / module.num_points * reference[..., 2:] * 0.5
    mixed = deformable_attention(value, geometry.shapes, locations, weights)
    updated: Tensor = module.output_proj(mixed) + query
    return updated


def _logit(x: Tensor, eps: float) -> Tensor:
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def _origin(
    plain: list[Tensor], fused: list[Tensor], chosen: Tensor, proposed: Tensor, ends: Tensor
) -> Tensor:
    """Gather :attr:`Prediction.origin` of the tokens ``chosen``, int64 (queries,), with scores ``proposed``; ``ends``
    are those of the geometry.
    """
    before, after = (
        torch.cat([feature.flatten(2)[0] for feature in features], 1)[:, chosen].float()
        for features in (plain, fused)
    )
    norm, added = before.square().mean(0).sqrt(), (after - before).square().mean(0).sqrt()
    share = added / (norm + added).clamp(min=1e-12)
    level = (chosen.unsqueeze(1) >= ends).sum(1).float()
    return torch.stack([level, proposed, norm, share], 1)
