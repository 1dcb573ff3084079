"""mmdet's GroundingDINO with OUAFS between neck and transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anomdino.detector.dense import dense_losses
from anomdino.detector.mmdet_parts import MLP, MODELS, GroundingDINO, get_text_sine_pos_embed
from anomdino.detector.ouafs import Fused, Ouafs
from anomdino.detector.text_fusion import LeanBiAttention
from anomdino.errors import ConfigError

_PUBLISHED_WIDTH = 256


@MODELS.register_module()
class OuafsGroundingDINO(GroundingDINO):  # type: ignore[misc]
    """GroundingDINO that reads uncertainty maps beside the image.

    Every data sample carries ``maps``, float (classes + 3, h, w): the stacked maps on the grid of the sample's own
    image at ``map_stride``. With OUAFS' gates at zero the outputs equal mmdet's GroundingDINO on the same weights.
    Widths other than the published 256 are possible, text features are computed once a prompt, activations can be
    recomputed in the backward pass without further packages.

    Args:
        fusion: Arguments of :class:`~anomdino.detector.ouafs.Ouafs` except ``dims`` and ``levels``.
        map_stride: Pixels of the input a map cell covers.
        image_dropout: Share of training samples whose image features are replaced by zeros.
        checkpointing: Recompute the transformer's activations in the backward pass.
        dense_loss: Weight of the dense loss on the proposals, which replaces their one-to-one loss; 0 for none.
        *args: Arguments of mmdet's GroundingDINO.
        **kwargs: Arguments of mmdet's GroundingDINO.
    """

    def __init__(
        self,
        *args: Any,
        fusion: dict[str, Any],
        map_stride: int = 8,
        image_dropout: float = 0.0,
        checkpointing: bool = False,
        dense_loss: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.map_stride, self.image_dropout, self.dense_loss = map_stride, image_dropout, dense_loss
        self.ouafs = Ouafs(dims=self.embed_dims, levels=self.num_feature_levels, **fusion)
        if checkpointing:
            for layer in (*self.encoder.layers, *self.encoder.fusion_layers, *self.decoder.layers):
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def _init_layers(self) -> None:
        super()._init_layers()
        for layer in self.encoder.fusion_layers:
            layer.attn = LeanBiAttention.like(layer.attn)
        if self.embed_dims != _PUBLISHED_WIDTH:
            self.decoder.ref_point_head = MLP(2 * _PUBLISHED_WIDTH, self.embed_dims, self.embed_dims, 2)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[Any]) -> dict[str, Tensor]:
        """Compute GroundingDINO's losses and ``loss_orth``.

        Args:
            batch_inputs: float (B, 3, H, W), normalised, padded.
            batch_data_samples: Samples with ``gt_instances``, ``text`` and ``maps``.
        """
        text, _ = self._text([sample.text for sample in batch_data_samples], batch_data_samples)
        for index, sample in enumerate(batch_data_samples):
            positive = sample.gt_instances.positive_maps.to(batch_inputs.device)
            sample.gt_instances.positive_maps = positive
            sample.gt_instances.text_token_mask = text["text_token_mask"][index].expand(len(positive), -1)
        fused = self.extract_fused(batch_inputs, batch_data_samples)
        head_inputs = self.forward_transformer(tuple(fused.features), text, batch_data_samples)
        dense = head_inputs.pop("dense", {})
        losses: dict[str, Tensor] = self.bbox_head.loss(**head_inputs, batch_data_samples=batch_data_samples)
        if dense:
            losses |= {name: self.dense_loss * value for name, value in dense.items()}
        if self.ouafs.orth != "none":
            losses["loss_orth"] = fused.loss_orth
        return losses

    def predict(self, batch_inputs: Tensor, batch_data_samples: list[Any], rescale: bool = True) -> list[Any]:
        """Predict boxes; every sample gets ``pred_instances`` with bboxes, scores and labels (index of the prompt)."""
        text, maps = self._text([sample.text for sample in batch_data_samples], None)
        for sample, positive in zip(batch_data_samples, maps, strict=True):
            sample.token_positive_map = positive
        fused = self.extract_fused(batch_inputs, batch_data_samples)
        head_inputs = self.forward_transformer(tuple(fused.features), text, batch_data_samples)
        results = self.bbox_head.predict(
            **head_inputs, rescale=rescale, batch_data_samples=batch_data_samples
        )
        for sample, instances in zip(batch_data_samples, results, strict=True):
            sample.pred_instances = instances
        return batch_data_samples

    def extract_fused(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any]) -> Fused:
        """Compute the pyramid of a padded batch with the uncertainty maps fused in."""
        features = list(self.extract_feat(batch_inputs))
        if self.training and self.image_dropout:
            keep = torch.rand(len(batch_inputs), 1, 1, 1, device=batch_inputs.device) >= self.image_dropout
            features = [feature * keep.to(feature.dtype) for feature in features]
        if not self.ouafs.stages:
            return Fused(features, batch_inputs.new_zeros(()))
        height, width = batch_inputs.shape[-2:]
        size = (-(-height // self.map_stride), -(-width // self.map_stride))
        maps, valid = pad_maps([sample.maps.to(batch_inputs.device) for sample in batch_data_samples], size)
        fused: Fused = self.ouafs(features, maps, valid)
        return fused

    def forward_encoder(
        self,
        feat: Tensor,
        feat_mask: Tensor | None,
        feat_pos: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        valid_ratios: Tensor,
        text_dict: dict[str, Tensor],
    ) -> dict[str, Any]:
        """Run the encoder on image and text; as mmdet's, with the text's positions at this detector's width."""
        memory, memory_text = self.encoder(
            query=feat,
            query_pos=feat_pos,
            key_padding_mask=feat_mask,
            spatial_shapes=spatial_shapes,
            level_start_index=level_start_index,
            valid_ratios=valid_ratios,
            memory_text=text_dict["embedded"],
            text_attention_mask=~text_dict["text_token_mask"],
            pos_text=get_text_sine_pos_embed(
                text_dict["position_ids"][..., None], num_pos_feats=self.embed_dims, exchange_xy=False
            ),
            position_ids=None,
            text_self_attention_masks=text_dict["masks"],
        )
        return {
            "memory": memory,
            "memory_mask": feat_mask,
            "spatial_shapes": spatial_shapes,
            "memory_text": memory_text,
            "text_token_mask": text_dict["text_token_mask"],
        }

    def pre_decoder(
        self,
        memory: Tensor,
        memory_mask: Tensor | None,
        spatial_shapes: Tensor,
        memory_text: Tensor,
        text_token_mask: Tensor,
        batch_data_samples: Sequence[Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Choose the proposals, as mmdet does; in training with ``dense_loss`` also compute their dense losses.

        Raises:
            ConfigError: The images have fewer cells than there are queries.
        """
        if memory.shape[1] < self.num_queries:
            cause = f"is {self.num_queries}, but the images have only {memory.shape[1]} cells on all levels together"
            raise ConfigError("detector.queries", cause, "lower it, or raise detector.short_sides")
        choose: Callable[[], tuple[dict[str, Any], dict[str, Any]]] = partial(
            super().pre_decoder,
            memory,
            memory_mask,
            spatial_shapes,
            memory_text,
            text_token_mask,
            batch_data_samples,
        )
        if not (self.training and self.dense_loss and batch_data_samples is not None):
            return choose()
        last = self.decoder.num_layers
        branches = (self.bbox_head.cls_branches[last], self.bbox_head.reg_branches[last])
        with _outputs_kept(*branches) as kept:
            decoder_inputs, head_inputs = choose()
        logits, offsets = kept
        proposals = self.__dict__.pop("_proposals")
        boxes = (offsets + proposals).float().sigmoid()
        anchors = torch.where(torch.isfinite(proposals), proposals.sigmoid(), proposals)
        head_inputs["dense"] = dense_losses(
            self.bbox_head, logits.float(), boxes, anchors, text_token_mask, batch_data_samples
        )
        head_inputs["enc_outputs_class"] = (
            None  # no one-to-one loss of the proposals: the dense one replaces it
        )
        return decoder_inputs, head_inputs

    def gen_encoder_output_proposals(
        self, memory: Tensor, memory_mask: Tensor | None, spatial_shapes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Give every token's features and anchor, as mmdet does; in training the anchors stay for the dense losses."""
        features, proposals = super().gen_encoder_output_proposals(memory, memory_mask, spatial_shapes)
        if self.training and self.dense_loss:
            self.__dict__["_proposals"] = proposals
        return features, proposals

    def _text(
        self, prompts: Sequence[Any], targets: Sequence[Any] | None
    ) -> tuple[dict[str, Tensor], list[dict[int, list[int]]]]:
        """Encode the prompts; with ``targets``, set each sample's ``positive_maps`` of its labels."""
        captions, positive_maps = [], []
        for index, prompt in enumerate(prompts):
            names = (prompt,) if isinstance(prompt, str) else tuple(prompt)
            caption, spans, tokenized = self._prompt(names)
            captions.append(caption)
            if targets is None:
                positive_maps.append(self.get_positive_map(tokenized, spans)[0])
            else:
                instances = targets[index].gt_instances
                wanted = [spans[label] for label in instances.labels.tolist()]
                dense = self.get_positive_map(tokenized, wanted)[1] if wanted else self._no_positive()
                instances.positive_maps = dense.bool().float()
        features = dict(self.language_model(captions))
        features["embedded"] = self.text_feat_map(features["embedded"])
        return features, positive_maps

    def _prompt(self, names: tuple[str, ...]) -> tuple[str, list[Any], Any]:
        known: dict[tuple[str, ...], Any] = self.__dict__.setdefault("_prompts", {})
        if names not in known:
            tokenized, caption, spans, texts = self.get_tokens_and_prompts(list(names), True)
            blank = [name for name, text in zip(names, texts, strict=True) if not text.strip()]
            if blank:
                which = "detector.prompt" if names[0] in blank else "detect.negatives.names"
                raise ConfigError(which, f"is or holds {blank[0]!r}, which leaves no word", "name a thing")
            known[names] = (caption, spans, tokenized)
        result: tuple[str, list[Any], Any] = known[names]
        return result

    def _no_positive(self) -> Tensor:
        return torch.zeros(0, self.bbox_head.max_text_len)


@contextmanager
def _outputs_kept(*modules: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the modules give while the context lasts, in the order of their calls."""
    kept: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _, __, output: kept.append(output)) for module in modules]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def pad_maps(maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Stack maps of unequal sizes, zero-padded at the right and the bottom.

    Args:
        maps: float (K, h, w) each, at most ``size``.
        size: (h, w) of the result.

    Returns:
        float (B, K, h, w), and the mask float (B, 1, h, w) of valid positions, ``None`` where all are valid.
    """
    padded = [F.pad(m, (0, size[1] - m.shape[2], 0, size[0] - m.shape[1])) for m in maps]
    stacked = torch.stack(padded)
    if all(tuple(m.shape[1:]) == size for m in maps):
        return stacked, None
    valid = stacked.new_zeros(len(maps), 1, *size)
    for index, m in enumerate(maps):
        valid[index, :, : m.shape[1], : m.shape[2]] = 1
    return stacked, valid


def freeze(module: nn.Module) -> None:
    """Stop the training of a module's weights and of its normalisation statistics."""
    module.requires_grad_(False)
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]
