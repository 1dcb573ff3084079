"""Networks of transformers, tiny and randomly initialised, saved to disk and scored."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

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
from anomdino.scorer.transformers_scorer import TransformersScorer, load_transformers  # noqa: E402

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


def tiny_dpt():
    return transformers.DPTForSemanticSegmentation(
        transformers.DPTConfig(
            num_labels=CLASSES, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
            intermediate_size=32, image_size=64, backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
        )
    )  # fmt: skip


def tiny_beit():
    return transformers.BeitForSemanticSegmentation(
        transformers.BeitConfig(
            num_labels=CLASSES, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
            intermediate_size=32, image_size=64, out_indices=[1, 2, 3, 4], use_relative_position_bias=True,
            use_auxiliary_head=False,
        )
    )  # fmt: skip


def tiny_eomt():
    return transformers.EomtForUniversalSegmentation(
        transformers.EomtConfig(
            num_labels=CLASSES, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=64,
            patch_size=16, num_blocks=1, num_queries=5,
        )
    )  # fmt: skip


def tiny_oneformer():
    return transformers.OneFormerForUniversalSegmentation(
        transformers.OneFormerConfig(
            backbone_config=transformers.SwinConfig(
                embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64,
                out_features=["stage1", "stage2", "stage3", "stage4"],
            ),
            num_labels=CLASSES, hidden_dim=32, conv_dim=32, mask_dim=32, encoder_feedforward_dim=16,
            dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_queries=5, num_attention_heads=2,
            text_encoder_width=32, text_encoder_num_layers=1, is_training=False,
        )
    )  # fmt: skip


NETWORKS = {
    "segformer": tiny_segformer,
    "mask2former": tiny_mask2former,
    "dpt": tiny_dpt,
    "beit": tiny_beit,
    "eomt": tiny_eomt,
}


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


PROCESSORS = {
    "no normalisation": ("SegformerImageProcessor", {"do_normalize": False}),
    "statistics of bytes": (
        "SegformerImageProcessor",
        {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 60.0, 80.0]},
    ),
    "bytes as they are": ("SegformerImageProcessor", {"do_rescale": False, "do_normalize": False}),
    "another factor": (
        "SegformerImageProcessor",
        {"rescale_factor": 1 / 100, "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0]},
    ),
    "BGR": ("MobileViTImageProcessor", {"do_flip_channel_order": True}),
    "RGB of a kind that does not normalise": ("MobileViTImageProcessor", {"do_flip_channel_order": False}),
    "the kind's own defaults": ("BeitImageProcessor", {}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_the_processor_does_to_colours_is_followed(tmp_path, name):
    torch.manual_seed(3)
    network = tiny_segformer().eval()
    with torch.no_grad():  # a random network hardly sees colours: let it see them
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.weight.mul_(10)
    network.save_pretrained(tmp_path)
    kind, settings = PROCESSORS[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **settings}))
    image = photo(64, 96)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    uncut = {"do_center_crop": False} if kind != "SegformerImageProcessor" else {}
    pixels = processor(image, do_resize=False, return_tensors="pt", **uncut)["pixel_values"].float()
    with torch.inference_mode():
        expected = F.interpolate(network(pixels).logits, (64, 96), mode="bilinear", align_corners=False)
        other = F.interpolate(network(to_input(image)).logits, (64, 96), mode="bilinear", align_corners=False)
        scorer = load_transformers(tmp_path)
        ours = scorer(to_input(image)).logits
    tolerance = 1e-3 * float(expected.std())
    assert float((ours - expected).abs().max()) < tolerance < float((other - expected).abs().max()) / 10
    save_scorer(scorer, tmp_path / "rpl")
    with torch.inference_mode():
        assert torch.equal(load_scorer(tmp_path / "rpl")(to_input(image)).logits, ours)


def test_results_of_another_processor_are_told_apart(tmp_path):
    torch.manual_seed(0)
    tiny_segformer().save_pretrained(tmp_path)
    seen = set()
    for settings in ({}, {"do_normalize": False}, {"do_rescale": False}, {"do_flip_channel_order": True}):
        future = {"image_processor_type": "FutureProcessor", "image_mean": 0.5, **settings}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(future))
        seen.add(engine_from(ScoreConfig(source="transformers", transformers=str(tmp_path)), "unused")[1])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    seen.add(engine_from(ScoreConfig(source="transformers", transformers=str(tmp_path)), "unused")[1])
    assert len(seen) == 5


def test_statistics_of_a_processor_that_turns_colours_are_those_of_bgr(tmp_path):
    tiny_segformer().save_pretrained(tmp_path)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 4.0], "do_flip_channel_order": True}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "FutureProcessor", **settings})
    )
    scorer, seen = load_transformers(tmp_path), []
    scorer.network.register_forward_pre_hook(
        lambda *arguments: seen.append(arguments[-1]["pixel_values"]), with_kwargs=True
    )
    image = photo(64, 96)
    scorer(to_input(image))
    expected = (image[..., ::-1] / 255 - settings["image_mean"]) / settings["image_std"]
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0), expected, atol=1e-5)


def test_small_images_are_continued_by_their_edge_and_evidence_has_a_floor(tmp_path):
    torch.manual_seed(4)
    tiny_segformer().save_pretrained(tmp_path)
    scorer, image = load_transformers(tmp_path), photo(20, 90)
    continued = np.pad(image, [(0, 44), (0, 0), (0, 0)], mode="edge")
    with torch.inference_mode():
        found, expected = scorer(to_input(image)).logits, scorer(to_input(continued)).logits[..., :20, :]
    torch.testing.assert_close(found, expected)
    masks = torch.tensor([0.0, -15.0, -40.0]).reshape(1, 1, 1, 3)
    output = SimpleNamespace(
        class_queries_logits=torch.tensor([[[0.0, -99, -99]]]), masks_queries_logits=masks
    )
    evidence = TransformersScorer._mask_evidence(output)[0, 0, 0]
    np.testing.assert_allclose(evidence, np.log([0.5, 1 / (1 + np.exp(15)), 1e-8]), rtol=1e-5)


def test_a_processor_of_an_unknown_kind_is_read_by_its_settings(tmp_path):
    tiny_segformer().save_pretrained(tmp_path)
    settings = {"image_processor_type": "FutureProcessor", "image_mean": 0.5, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    options = load_transformers(tmp_path).spec.options
    assert (options["mean"], options["std"], options["flip"]) == ([0.5] * 3, [0.25] * 3, False)


@pytest.mark.parametrize("step", ["do_grayscale", "rescale_offset"])
def test_a_processor_that_cannot_be_followed_is_refused(tmp_path, step):
    tiny_segformer().save_pretrained(tmp_path)
    settings = {"image_processor_type": "FutureProcessor", step: True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=rf"{step}, which is not done here"):
        load_transformers(tmp_path)


@pytest.mark.parametrize("name", ["beit", "dpt", "eomt"])
@pytest.mark.parametrize("size", [(64, 64), (45, 70), (128, 200)])
def test_a_network_of_one_size_sees_images_resized_to_it(tmp_path, name, size):
    torch.manual_seed(6)
    network = NETWORKS[name]().eval()
    network.save_pretrained(tmp_path)
    images = to_input(photo(*size))
    with pytest.raises(RuntimeError):
        network(to_input(photo(128, 200)))
    fitted = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    scorer = load_transformers(tmp_path)
    assert scorer.spec.options["size"] == [64, 64]
    with torch.inference_mode():
        output = network(pixel_values=fitted)
        if name != "eomt":
            logits = output.logits
        else:
            classes = output.class_queries_logits.softmax(-1)[..., :-1]
            masks = output.masks_queries_logits.sigmoid()
            logits = (classes[..., None, None] * masks[:, :, None]).sum(1).log()
        expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        assert torch.allclose(scorer(images).logits, expected, atol=1e-4)


def test_a_network_of_any_size_is_left_alone(tmp_path):
    for name in ("segformer", "mask2former"):
        NETWORKS[name]().save_pretrained(tmp_path / name)
        assert load_transformers(tmp_path / name).spec.options["size"] is None


def test_a_network_that_needs_more_than_an_image_is_refused(tmp_path, monkeypatch):
    tiny_oneformer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="oneformer, which reads a text of its task"):
        load_transformers(tmp_path)
    monkeypatch.setattr("anomdino.scorer.transformers_scorer.UNSUITED", {})
    with pytest.raises(CheckpointError, match=r"does not segment by the image alone .*task_inputs"):
        load_transformers(tmp_path)


def test_a_network_of_one_class_is_refused(tmp_path):
    network = tiny_segformer()
    network.config.num_labels = 1
    network.config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="knows 1 class, a closed set has two or more"):
        load_transformers(tmp_path)


def test_saved_and_loaded_as_a_scorer(folder, tmp_path):
    scorer = load_transformers(folder)
    save_scorer(scorer, tmp_path / "rpl")
    again = load_scorer(tmp_path / "rpl")
    images = to_input(photo())
    with torch.inference_mode():
        assert torch.equal(scorer(images).logits, again(images).logits)
    assert scorer.fingerprint() == again.fingerprint()
    save_scorer(again, tmp_path / "copy")
    assert load_scorer(tmp_path / "copy").fingerprint() == scorer.fingerprint()


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
