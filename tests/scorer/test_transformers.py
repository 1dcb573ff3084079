"""Networks of transformers, tiny and randomly initialised, saved to disk and scored."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

transformers = pytest.importorskip("transformers")

from anomdino.config.score import ScoreConfig  # noqa: E402
from anomdino.errors import CheckpointError, ConfigError  # noqa: E402
from anomdino.scorer.base import anomaly_score, load_scorer, save_scorer, to_input  # noqa: E402
from anomdino.scorer.inference import ScoringEngine  # noqa: E402
from anomdino.scorer.setup import engine_from  # noqa: E402
from anomdino.scorer.transformers_scorer import load_transformers  # noqa: E402

CLASSES = 7


def tiny_segformer():
    return transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            num_labels=CLASSES, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], decoder_hidden_size=16,
            num_attention_heads=[1, 1, 2, 2],
        )
    )  # fmt: skip


def tiny_mask2former():
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=backbone, num_labels=CLASSES, feature_size=32, mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_queries=5,
            num_attention_heads=2,
        )
    )  # fmt: skip


NETWORKS = {"segformer": tiny_segformer, "mask2former": tiny_mask2former}


@pytest.fixture(scope="module", params=NETWORKS)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hub") / request.param
    NETWORKS[request.param]().save_pretrained(path)
    return path


def photo(height=45, width=70):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(45, 70), (64, 64), (5, 130), (1, 1)])
def test_loads_from_disk_and_scores_at_any_size(folder, size):
    scorer = load_transformers(folder)
    assert not scorer.training
    with torch.inference_mode():
        output = scorer(to_input(photo(*size)))
    assert output.logits.shape == (1, CLASSES, *size)
    assert output.residual_logits is output.logits
    for kind in ("energy", "entropy", "max_softmax", "max_logit"):
        assert anomaly_score(output, kind).isfinite().all()


def test_segformer_logits_are_the_networks_own(tmp_path):
    torch.manual_seed(1)
    network = tiny_segformer().eval()
    network.save_pretrained(tmp_path)
    images = to_input(photo(64, 96))
    with torch.inference_mode():
        expected = F.interpolate(network(images).logits, (64, 96), mode="bilinear", align_corners=False)
        ours = load_transformers(tmp_path)(images).logits
    assert torch.allclose(ours, expected, atol=1e-5)


def test_mask_evidence_is_the_usual_semantic_inference(tmp_path):
    torch.manual_seed(2)
    network = tiny_mask2former().eval()
    network.save_pretrained(tmp_path)
    images = to_input(photo(64, 64))
    with torch.inference_mode():
        output = network(pixel_values=images)
        ours = load_transformers(tmp_path)
        evidence = ours._mask_evidence(ours.network(pixel_values=images)).exp()[0]
    classes = torch.softmax(output.class_queries_logits[0].double(), -1)
    masks = torch.sigmoid(output.masks_queries_logits[0].double())
    slow = torch.stack([sum(classes[q, c] * masks[q] for q in range(len(masks))) for c in range(CLASSES)])
    assert torch.allclose(evidence.double(), slow, atol=1e-5)


def test_normalisation_of_the_processor_is_followed(tmp_path):
    torch.manual_seed(3)
    network = tiny_segformer().eval()
    network.save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    image = photo(64, 96)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = network((pixels - 0.5) / 0.25).logits
        expected = F.interpolate(expected, (64, 96), mode="bilinear", align_corners=False)
        ours = load_transformers(tmp_path)(to_input(image)).logits
    assert torch.allclose(ours, expected, atol=1e-4)


def test_saved_and_loaded_as_a_scorer(folder, tmp_path):
    scorer = load_transformers(folder)
    save_scorer(scorer, tmp_path / "rpl")
    again = load_scorer(tmp_path / "rpl")
    images = to_input(photo())
    with torch.inference_mode():
        assert torch.equal(scorer(images).logits, again(images).logits)
    assert scorer.fingerprint() == again.fingerprint()


def test_the_engine_scores_with_it(folder):
    scored = ScoringEngine(load_transformers(folder)).score(photo())
    assert scored.score.shape == (45, 70)
    assert scored.maps.semantic.shape == (CLASSES, 12, 18)
    engine, digest = engine_from(ScoreConfig(source="transformers", transformers=str(folder)), "unused")
    assert np.array_equal(engine.score(photo()).score, scored.score)
    assert len(digest) == 64


def test_a_folder_whose_weights_do_not_fill_the_network_is_refused(tmp_path):
    def saved(name, change):
        tiny_segformer().save_pretrained(tmp_path / name)
        change(tmp_path / name / "model.safetensors")
        return tmp_path / name

    def drop_decoder(path):
        kept = {key: value for key, value in load_file(path).items() if not key.startswith("decode_head")}
        save_file(kept, path, {"format": "pt"})

    def narrow_classifier(path):
        weights = load_file(path)
        weights["decode_head.classifier.weight"] = torch.zeros(CLASSES - 2, 16, 1, 1)
        save_file(weights, path, {"format": "pt"})

    for name, change, reason in (
        ("none", lambda path: path.unlink(), "no file named"),
        ("cut", lambda path: path.write_bytes(path.read_bytes()[:3000]), "header"),
        ("backbone", drop_decoder, r"lacks \d+ weights of its network: decode_head\."),
        ("classes", narrow_classifier, "no segmentation network"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            load_transformers(saved(name, change))


class Evil:
    def __reduce__(self):
        return (os.system, ("touch HACKED",))


def test_code_in_a_folder_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_segformer().save_pretrained("pickled")
    Path("pickled/model.safetensors").unlink()
    torch.save({"a": Evil()}, "pickled/pytorch_model.bin")
    with pytest.raises(CheckpointError):
        load_transformers("pickled")
    tiny_segformer().save_pretrained("remote")
    settings = json.loads(Path("remote/config.json").read_text())
    settings["auto_map"] = {"AutoModelForSemanticSegmentation": "evil.Network"}
    Path("remote/config.json").write_text(json.dumps(settings))
    Path("remote/evil.py").write_text("open('HACKED', 'w')\nclass Network: pass\n")
    assert load_transformers("remote").spec.num_classes == CLASSES
    assert not Path("HACKED").exists()


def test_what_is_no_network_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no segmentation network"):
        load_transformers(tmp_path)
    with pytest.raises(ConfigError, match=r"score\.transformers"):
        engine_from(ScoreConfig(source="transformers"), tmp_path)
