"""From the parameters of the detector to mmdet's description of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from anomdino.config.detector import DetectorConfig
from anomdino.errors import ConfigError

SHORT_TEXT, LONG_TEXT = 64, 256
RGB_MEAN = [123.675, 116.28, 103.53]
RGB_STD = [58.395, 57.12, 57.375]

_SWIN: dict[str, dict[str, Any]] = {
    "swin_t": {"embed_dims": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_b": {
        "embed_dims": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "window_size": 12,
        "pretrain_img_size": 384,
    },
    "swin_l": {
        "embed_dims": 192,
        "depths": [2, 2, 18, 2],
        "num_heads": [6, 12, 24, 48],
        "window_size": 12,
        "pretrain_img_size": 384,
    },
}


def build_detector(
    config: DetectorConfig, classes: int, scorer_folder: Path | str | None = None
) -> nn.Module:
    """Build the detector with fresh weights.

    Args:
        config: The detector's parameters.
        classes: C, channels of the semantic map.
        scorer_folder: The trained scorer, for ``backbone: scorer``.

    Raises:
        ConfigError: ``backbone: scorer`` without a scorer.
    """
    from anomdino.detector import backbones as _backbones  # noqa: F401
    from anomdino.detector import model as _model  # noqa: F401
    from anomdino.detector import text as _text  # noqa: F401
    from anomdino.detector.mmdet_parts import MODELS, ConfigDict

    description = ConfigDict(describe(config, classes, scorer_folder), _scope_="mmdet")
    detector: Any = MODELS.build(description)
    with quiet():
        detector.init_weights()
    network: nn.Module = detector
    return network


def describe(config: DetectorConfig, classes: int, scorer_folder: Path | str | None = None) -> dict[str, Any]:
    """Describe the detector as mmdet's registry reads it; arguments as :func:`build_detector`."""
    fusion = config.fusion.model_dump(exclude={"map_stride"})
    return {
        "type": "OuafsGroundingDINO",
        "fusion": {**fusion, "classes": classes},
        "map_stride": config.fusion.map_stride,
        "image_dropout": config.image_dropout,
        "checkpointing": config.checkpointing,
        "dense_loss": config.dense_loss,
        **describe_grounding_dino(config, scorer_folder),
    }


def describe_grounding_dino(
    config: DetectorConfig, scorer_folder: Path | str | None = None
) -> dict[str, Any]:
    """Describe the parts that mmdet's own GroundingDINO has, too."""
    dims, heads, layers = config.embed_dims, config.heads, config.decoder_layers
    text_length = LONG_TEXT if config.text_encoder != "tiny" else SHORT_TEXT
    backbone, neck = _backbone_and_neck(config, scorer_folder)
    ffn = {"embed_dims": dims, "feedforward_channels": config.feedforward, "ffn_drop": 0.0}
    deformable = {
        "embed_dims": dims,
        "num_levels": config.levels,
        "num_heads": heads,
        "num_points": config.points,
        "dropout": 0.0,
    }
    attention = {"embed_dims": dims, "num_heads": heads, "dropout": 0.0}
    return {
        "num_queries": config.queries,
        "num_feature_levels": config.levels,
        "with_box_refine": True,
        "as_two_stage": True,
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": RGB_MEAN,
            "std": RGB_STD,
            "bgr_to_rgb": False,
            "pad_mask": False,
        },
        "language_model": {"type": "LocalBert", "folder": config.text_encoder, "max_tokens": text_length},
        "backbone": backbone,
        "neck": neck,
        "encoder": {
            "num_layers": config.encoder_layers,
            "num_cp": 0,
            "layer_cfg": {"self_attn_cfg": deformable, "ffn_cfg": ffn},
            "text_layer_cfg": {
                "self_attn_cfg": {"embed_dims": dims, "num_heads": 4, "dropout": 0.0},
                "ffn_cfg": {**ffn, "feedforward_channels": config.feedforward // 2},
            },
            "fusion_layer_cfg": {
                "v_dim": dims,
                "l_dim": dims,
                "embed_dim": config.fusion_dims,
                "num_heads": 4,
                "dropout": config.fusion.dropout,
                "init_values": 1e-4,
            },
        },
        "decoder": {
            "num_layers": layers,
            "return_intermediate": True,
            "layer_cfg": {
                "self_attn_cfg": attention,
                "cross_attn_text_cfg": attention,
                "cross_attn_cfg": deformable,
                "ffn_cfg": ffn,
            },
            "post_norm_cfg": None,
        },
        "positional_encoding": {"num_feats": dims // 2, "normalize": True, "offset": 0.0, "temperature": 20},
        "bbox_head": {
            "type": "GroundingDINOHead",
            "num_classes": text_length,
            "embed_dims": dims,
            "sync_cls_avg_factor": True,
            "contrastive_cfg": {"max_text_len": text_length, "log_scale": "auto", "bias": True},
            "loss_cls": {
                "type": "FocalLoss",
                "use_sigmoid": True,
                "gamma": 2.0,
                "alpha": 0.25,
                "loss_weight": 1.0,
            },
            "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
        },
        "dn_cfg": {
            "label_noise_scale": 0.5,
            "box_noise_scale": 1.0,
            "group_cfg": {"dynamic": True, "num_groups": None, "num_dn_queries": config.denoising_queries},
        },
        "train_cfg": {
            "assigner": {
                "type": "HungarianAssigner",
                "match_costs": [
                    {"type": "BinaryFocalLossCost", "weight": 2.0},
                    {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
                    {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
                ],
            }
        },
        "test_cfg": {"max_per_img": config.queries},
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Silence mmengine, which tells every parameter's settings."""
    from anomdino.detector.mmdet_parts import MMLogger

    logger = MMLogger.get_current_instance()
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _backbone_and_neck(
    config: DetectorConfig, scorer_folder: Path | str | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    name = config.backbone
    if name == "none":
        return {"type": "NoBackbone", "dims": config.embed_dims, "levels": config.levels}, None
    if name == "scorer":
        if scorer_folder is None:
            raise ConfigError(
                "detector.backbone", "is 'scorer' but there is no trained scorer", "run train_rpl first"
            )
        from anomdino.detector.backbones import ScorerBackbone

        backbone: dict[str, Any] = {"type": "ScorerBackbone", "folder": str(scorer_folder)}
        return backbone, _neck(config, ScorerBackbone(str(scorer_folder)).out_channels)
    if name == "tiny":
        return {"type": "TinyBackbone"}, _neck(config, (48, 64, 96))
    if name in _SWIN:
        return _swin(config)
    depth = int(name.removeprefix("resnet"))
    backbone = {
        "type": "ResNet",
        "depth": depth,
        "num_stages": 4,
        "out_indices": (1, 2, 3),
        "frozen_stages": 4 if config.freeze_backbone else -1,
        "norm_cfg": {"type": "BN", "requires_grad": not config.freeze_backbone},
        "norm_eval": config.freeze_backbone,
        "style": "pytorch",
        "with_cp": config.checkpointing,
    }
    return backbone, _neck(config, (128, 256, 512) if depth == 18 else (512, 1024, 2048))


def _swin(config: DetectorConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = _SWIN[config.backbone]
    indices = (1, 2, 3) if config.levels <= 4 else (0, 1, 2, 3)
    backbone = {
        "type": "SwinTransformer",
        **settings,
        "mlp_ratio": 4,
        "qkv_bias": True,
        "drop_path_rate": 0.2,
        "patch_norm": True,
        "out_indices": indices,
        "with_cp": config.checkpointing,
        "convert_weights": False,
        "frozen_stages": 4 if config.freeze_backbone else -1,
    }
    return backbone, _neck(config, tuple(settings["embed_dims"] * 2**i for i in indices))


def _neck(config: DetectorConfig, channels: tuple[int, ...]) -> dict[str, Any]:
    if config.levels < len(channels):
        raise ConfigError(
            "detector.levels",
            f"is {config.levels}, backbone '{config.backbone}' has {len(channels)} levels",
            "use at least as many",
        )
    return {
        "type": "ChannelMapper",
        "in_channels": list(channels),
        "kernel_size": 1,
        "out_channels": config.embed_dims,
        "act_cfg": None,
        "bias": True,
        "norm_cfg": {"type": "GN", "num_groups": 32},
        "num_outs": config.levels,
    }
