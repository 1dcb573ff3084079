"""The published MM-Grounding-DINO networks, built from mmdet's own configuration files, against ours."""

from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config

from anomdino.config.detector import DetectorConfig
from anomdino.config.params import profile_params
from anomdino.detector import backbones, model, text  # noqa: F401 - they register their classes
from anomdino.detector.architecture import describe, describe_grounding_dino
from anomdino.detector.mmdet_parts import MODELS, ConfigDict
from anomdino.detector.text import PACKAGED_VOCABULARY

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs" / "mm_grounding_dino"
SWIN_B = {"embed_dims": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}
FILES = {
    "swin_t": "grounding_dino_swin-t_pretrain_obj365_goldg_grit9m_v3det.py",
    "swin_b": "grounding_dino_swin-t_pretrain_obj365_goldg_grit9m_v3det.py",
    "swin_l": "grounding_dino_swin-l_pretrain_all.py",
}
CHANGES = {
    "swin_t": {},
    "swin_b": {"backbone": "swin_b"},
    "swin_l": {"backbone": "swin_l", "levels": 5, "fusion": {"map_stride": 4}},
}


@pytest.fixture(autouse=True)
def numbers_on_the_meta_device(monkeypatch):
    """Swin reads its drop rates from a tensor, which the meta device has no numbers for."""
    linspace = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *args, **_: linspace(*args, device="cpu"))


@pytest.fixture
def bert(tmp_path):
    """The configuration of BERT-base, as `bert-base-uncased` ships it, and a vocabulary."""
    from transformers import BertConfig

    BertConfig(vocab_size=30522).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text(PACKAGED_VOCABULARY.read_text())
    return tmp_path


def published_state(name, bert):
    """Names and shapes of mmdet's own network."""
    if not CONFIGS.is_dir():
        pytest.skip("this installation of mmdet has no configuration files")
    from transformers import BertConfig, BertModel

    description = Config.fromfile(CONFIGS / FILES[name]).model
    if name == "swin_b":
        description.backbone.update(SWIN_B, pretrain_img_size=384)
        description.neck.in_channels = [256, 512, 1024]
    description.backbone.init_cfg, description.encoder.num_cp = None, 0
    description.language_model = {"type": "LocalBert", "folder": str(bert)}
    with torch.device("meta"):
        network = MODELS.build(ConfigDict(description, _scope_="mmdet"))
        encoder = BertModel(BertConfig.from_pretrained(bert), add_pooling_layer=False)
    prefix = "language_model."
    state = {key: tuple(v.shape) for key, v in network.state_dict().items() if not key.startswith(prefix)}
    body = f"{prefix}language_backbone.body.model."
    return state | {body + key: tuple(value.shape) for key, value in encoder.state_dict().items()}


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_key_of_a_published_network_has_its_place(name, bert):
    settings = profile_params("paper").detector.model_dump(mode="json")
    fusion = {**settings["fusion"], **CHANGES[name].get("fusion", {})}
    config = DetectorConfig(**{**settings, **CHANGES[name], "fusion": fusion, "text_encoder": str(bert)})
    description = describe(config, 19)
    with torch.device("meta"):
        ours = MODELS.build(ConfigDict(description, _scope_="mmdet"))
    state = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    theirs = published_state(name, bert)
    assert {key for key in state if not key.startswith("ouafs.")} == set(theirs)
    assert {key: state[key] for key in theirs} == theirs
    assert any(key.startswith("ouafs.") for key in state)


OURS = {
    "type", "num_feature_levels", "test_cfg.max_per_img", "data_preprocessor.bgr_to_rgb", "bbox_head.embed_dims",
    "encoder.num_cp", "encoder.fusion_layer_cfg.dropout", "backbone.frozen_stages", "backbone.convert_weights",
}  # fmt: skip
"""What of the paper profile is meant to differ: images are RGB here, the backbone is frozen, ..."""
SIZES = {f"{part}.num_{what}" for part in ("encoder.layer_cfg.self_attn_cfg", "decoder.layer_cfg.cross_attn_cfg")
         for what in ("heads", "levels", "points")}  # fmt: skip


def leaves(value, place=""):
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in leaves(part, f"{place}.{name}").items()}
    return {place[1:]: list(value) if isinstance(value, tuple) else value}


@pytest.mark.parametrize("name", ["swin_t", "swin_l"])
def test_settings_are_those_of_the_published_configuration(name):
    """Losses, matching, noise, normalisation, initial values and widths, leaf by leaf of mmdet's file."""
    if not CONFIGS.is_dir():
        pytest.skip("this installation of mmdet has no configuration files")
    settings = profile_params("paper").detector.model_dump(mode="json")
    fusion = {**settings["fusion"], **CHANGES[name].get("fusion", {})}
    config = DetectorConfig(**{**settings, **CHANGES[name], "fusion": fusion})
    ours = leaves(describe_grounding_dino(config))
    theirs = leaves(Config.fromfile(CONFIGS / FILES[name]).model.to_dict())
    same = {leaf for leaf, value in ours.items() if leaf in theirs and theirs[leaf] == value}
    named = {leaf for leaf in {*ours, *theirs} if leaf.startswith("language_model.")}
    assert ours.keys() - same - named <= OURS | SIZES
    unset = {"backbone.init_cfg.type", "backbone.init_cfg.checkpoint"}
    unset |= {"backbone.drop_rate", "backbone.attn_drop_rate", "backbone.qk_scale"}  # mmdet's defaults
    assert theirs.keys() - same - named <= OURS | unset
    assert {"bbox_head.loss_bbox.loss_weight", "data_preprocessor.mean", "backbone.drop_path_rate"} < same
    assert not ours["data_preprocessor.bgr_to_rgb"]
    assert ours["backbone.frozen_stages"] == 4
