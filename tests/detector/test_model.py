import copy

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from safetensors.torch import save_file

from anomdino.detector.architecture import build_detector, describe_grounding_dino
from anomdino.detector.mmdet_parts import MODELS, ConfigDict, DetDataSample
from anomdino.detector.model import pad_maps
from anomdino.detector.training import load_backbone, new_detector
from anomdino.detector.weights import (
    load_detector,
    load_pretrained,
    read_checkpoint,
    save_detector,
    set_score_statistics,
)
from anomdino.errors import CheckpointError, ConfigError
from tests.detector.conftest import CLASSES, small_config


def sample(size, boxes, batch_size, text="ood-object"):
    from mmengine.structures import InstanceData

    meta = {
        "img_shape": size,
        "batch_input_shape": batch_size,
        "ori_shape": size,
        "scale_factor": (1.0, 1.0),
        "text": text,
    }
    data = DetDataSample(metainfo=meta)
    data.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.long),
    )
    data.maps = torch.rand(CLASSES + 3, -(-size[0] // 8), -(-size[1] // 8))
    return data


def batch_of(sizes, boxes):
    height, width = max(s[0] for s in sizes), max(s[1] for s in sizes)
    images = torch.zeros(len(sizes), 3, height, width)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = torch.randn(3, h, w)
    return images, [sample(size, b, (height, width)) for size, b in zip(sizes, boxes, strict=True)]


def total(losses):
    return sum(value for name, value in losses.items() if "loss" in name)


def stock_like(config, detector):
    """mmdet's own GroundingDINO with the weights of ``detector``."""
    description = describe_grounding_dino(config)
    stock = MODELS.build(ConfigDict(type="GroundingDINO", **description, _scope_="mmdet")).eval()
    state = {name: value for name, value in detector.state_dict().items() if not name.startswith("ouafs.")}
    stock.load_state_dict(state)
    return stock


def published_width(**changes):
    return small_config(
        embed_dims=256, fusion_dims=64, feedforward=64, queries=20, levels=4, heads=8, decoder_layers=2, encoder_layers=2,
        backbone="resnet18", image_dropout=0.0, **changes,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_zero_gates_equal_mmdets_grounding_dino(gate):
    config = published_width(fusion={"gate_init": gate})
    detector = build_detector(config, CLASSES).eval()
    stock = stock_like(config, detector)
    images, samples = batch_of([(64, 96), (50, 70)], [[], []])
    with torch.no_grad():
        ours = detector.predict(images, copy.deepcopy(samples))
        theirs = stock.predict(images, [with_entities(s) for s in copy.deepcopy(samples)])
    same = all(
        torch.allclose(a.pred_instances.bboxes, b.pred_instances.bboxes, atol=1e-4)
        and torch.allclose(a.pred_instances.scores, b.pred_instances.scores, atol=1e-6)
        for a, b in zip(ours, theirs, strict=True)
    )
    assert same == (gate == 0.0)


def with_entities(data):
    data.set_metainfo({"custom_entities": True})
    return data


@pytest.mark.slow
def test_loads_what_mmengine_saves_of_mmdets_own_model(tmp_path):
    """A checkpoint in mmengine's form, history objects included, gives equal boxes and scores."""
    from mmengine.logging import MessageHub

    config = published_width()
    torch.manual_seed(7)
    stock = MODELS.build(ConfigDict(type="GroundingDINO", **describe_grounding_dino(config), _scope_="mmdet"))
    stock.init_weights()
    stock.eval()
    hub = MessageHub.get_instance("test_checkpoint")
    hub.update_scalar("train/loss", 3.0)
    hub.update_scalar("train/lr", np.float64(1e-4))
    state = {f"module.{name}": value for name, value in stock.state_dict().items()}
    state["module.language_model.language_backbone.body.model.embeddings.position_ids"] = torch.arange(512)[
        None
    ]
    path = tmp_path / "published.pth"
    meta = {
        "epoch": 1,
        "iter": 7,
        "seed": 0,
        "experiment_name": "x",
        "cfg": "model = dict()",
        "classes": ("a",),
    }
    torch.save(
        {"meta": meta, "state_dict": state, "message_hub": hub.state_dict(), "param_schedulers": []}, path
    )

    detector = build_detector(config, CLASSES).eval()
    load_pretrained(detector, path)
    images, samples = batch_of([(64, 96)], [[]])
    with torch.no_grad():
        ours = detector.predict(images, copy.deepcopy(samples))[0].pred_instances
        theirs = stock.predict(images, [with_entities(copy.deepcopy(samples[0]))])[0].pred_instances
    torch.testing.assert_close(ours.bboxes, theirs.bboxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-5)


def test_training_starts_from_a_detector_that_was_saved_here(tmp_path, config):
    torch.manual_seed(3)
    trained = build_detector(config, CLASSES)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    save_detector(trained, config, CLASSES, tmp_path, {})
    start = config.model_copy(update={"init_checkpoint": str(tmp_path / "model.safetensors")})
    detector = new_detector(start, CLASSES, mean=2.0, std=3.0)
    expected = trained.state_dict() | {
        "ouafs.score_mean": torch.tensor(2.0),
        "ouafs.score_std": torch.tensor(3.0),
    }
    found = detector.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_checkpoints_that_do_not_fit_are_explained(tmp_path, config):
    detector = build_detector(config, CLASSES)
    state = {name: value for name, value in detector.state_dict().items() if not name.startswith("neck.")}
    state["stranger.weight"] = torch.zeros(2)
    state["level_embed"] = torch.zeros(9, 9)
    torch.save({"state_dict": state}, tmp_path / "odd.pth")
    with pytest.raises(
        CheckpointError, match=r"missing: neck.*unexpected: stranger\.weight.*level_embed: \(9, 9\)"
    ):
        load_pretrained(detector, tmp_path / "odd.pth")


def test_single_bytes_that_are_damaged_raise_what_names_the_file(tmp_path):
    """In the pickles of both of torch's formats, byte by byte; a number that changes may leave a checkpoint whole."""
    path, named = tmp_path / "x.pth", []
    for zipped in (True, False):
        weights = {f"layer{index}.weight": torch.zeros(2) for index in range(3)}
        torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for place in range(0, min(len(whole), 500), 9):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xC3]) + whole[place + 1 :])
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                named.append(error.what)
    assert len(named) > 20
    assert set(named) == {str(path)}


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


class Sneaky:
    def __init__(self, owner, name):
        self.looked_up = owner, name

    def __reduce__(self):
        return getattr, self.looked_up


@pytest.mark.parametrize(
    "looked_up",
    [(torch.nn.Module, "register_forward_hook"), (HistoryBuffer, "register_statistics"), (np.ndarray, "max")],
)
def test_attribute_lookups_in_a_checkpoint_are_refused(tmp_path, looked_up):
    torch.save({"state_dict": {}, "meta": Sneaky(*looked_up)}, tmp_path / "sneaky.pth", pickle_protocol=2)
    with pytest.raises(CheckpointError, match="may run code"):
        read_checkpoint(tmp_path / "sneaky.pth")


def test_code_in_a_checkpoint_is_refused(tmp_path, capsys):
    torch.save({"state_dict": {}, "meta": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="may run code"):
        read_checkpoint(tmp_path / "evil.pth")
    assert "executed" not in capsys.readouterr().out
    (tmp_path / "cut.pth").write_bytes((tmp_path / "evil.pth").read_bytes()[:100])
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "cut.pth")


@pytest.mark.parametrize("boxes", [[[[5, 5, 30, 40]], []], [[], []]], ids=["objects", "no_objects"])
@pytest.mark.parametrize("backbone", ["tiny", "none"])
def test_losses_and_gradients_of_unequal_batches(boxes, backbone):
    config = small_config(backbone=backbone, image_dropout=0.0)
    detector = build_detector(config, CLASSES).train()
    images, samples = batch_of([(64, 96), (50, 70)], boxes)
    losses = detector.loss(images, samples)
    assert {"loss_cls", "loss_bbox", "loss_iou", "loss_orth", "enc_loss_cls", "dn_loss_cls"} <= set(losses)
    total(losses).backward()
    trained = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in trained.values())
    assert not any(name.startswith("language_model") for name in trained)
    if boxes[0]:
        assert all(detector.ouafs.gates[name].grad.abs().sum() > 0 for name in detector.ouafs.gates)


def test_orth_none_leaves_no_loss():
    detector = build_detector(small_config(fusion={"orth": "none"}), CLASSES).train()
    images, samples = batch_of([(64, 96)], [[[5, 5, 30, 40]]])
    assert "loss_orth" not in detector.loss(images, samples)


def test_checkpointing_gives_the_same_gradients():
    images, samples = batch_of([(64, 96)], [[[5, 5, 30, 40]]])
    gradients = []
    for checkpointing in (False, True):
        runs = []
        torch.manual_seed(1)
        detector = build_detector(
            small_config(checkpointing=checkpointing, image_dropout=0.0), CLASSES
        ).train()
        for layer in (*detector.encoder.layers, *detector.decoder.layers):
            layer.ffn.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(2)
        total(detector.loss(images, copy.deepcopy(samples))).backward()
        assert len(runs) == 3 * (1 + checkpointing)  # each of three layers runs again for the gradients
        gradients.append({name: p.grad for name, p in detector.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_mixed_precision_trains():
    detector = build_detector(small_config(fusion={"gate_init": 1.0}), CLASSES).train()
    images, samples = batch_of([(64, 96), (50, 70)], [[[5, 5, 30, 40]], []])
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.loss(images, samples)
    total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def test_dropped_image_features_leave_the_maps():
    detector = build_detector(small_config(image_dropout=1.0, fusion={"gate_init": 1.0}), CLASSES).train()
    _, samples = batch_of([(64, 96)], [[[5, 5, 30, 40]]])
    first, second = (detector.extract_fused(torch.randn(1, 3, 64, 96), samples).features for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].abs().sum() > 0


def test_text_is_encoded_once_a_prompt(monkeypatch):
    detector = build_detector(small_config(), CLASSES).eval()
    calls = []
    original = detector.language_model._encode
    monkeypatch.setattr(detector.language_model, "_encode", lambda *a: calls.append(a) or original(*a))
    images, samples = batch_of([(64, 96)], [[]])
    with torch.no_grad():
        for _ in range(3):
            detector.predict(images, copy.deepcopy(samples))
    assert len(calls) == 1
    detector.load_state_dict(detector.state_dict())
    with torch.no_grad():
        detector.predict(images, samples)
    assert len(calls) == 2


def test_text_encoder_equals_mmdets_bert(tmp_path):
    from transformers import BertConfig, BertModel

    from anomdino.detector.text import PACKAGED_VOCABULARY, LocalBert

    words = PACKAGED_VOCABULARY.read_text()
    bert = BertModel(BertConfig(vocab_size=len(words.split()), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                intermediate_size=64), add_pooling_layer=False)  # fmt: skip
    bert.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text(words)
    stock = MODELS.build(
        {"type": "BertModel", "name": str(tmp_path), "pad_to_max": False, "use_sub_sentence_represent": True,
         "special_tokens_list": ["[CLS]", "[SEP]", ".", "?"]}
    ).eval()  # fmt: skip
    captions = ["ood-object. ", "car. person. "]
    with torch.no_grad():
        expected = stock(captions)
    ours = LocalBert(str(tmp_path))(captions)
    torch.testing.assert_close(ours["embedded"], expected["embedded"])
    for name in ("position_ids", "text_token_mask", "masks"):
        assert torch.equal(ours[name], expected[name])


def test_missing_text_encoder_names_files_source_and_place(tmp_path):
    from anomdino.detector.text import LocalBert

    with pytest.raises(CheckpointError, match=r"vocab\.txt") as caught:
        LocalBert(str(tmp_path))
    assert "bert-base-uncased" in caught.value.cure
    assert str(tmp_path) in caught.value.cure


def test_maps_of_unequal_sizes_are_padded_with_a_mask():
    stacked, valid = pad_maps([torch.ones(2, 3, 4), torch.ones(2, 2, 5)], (3, 5))
    assert stacked.shape == (2, 2, 3, 5)
    assert valid[:, 0].sum((1, 2)).tolist() == [12, 10]
    assert pad_maps([torch.ones(2, 3, 5)], (3, 5))[1] is None


def test_zero_gates_have_mmdets_losses_and_gradients():
    """Two classes, two images of unequal sizes, one of several objects; denoising draws the same numbers."""
    config = small_config(embed_dims=256, heads=8, image_dropout=0.0)
    detector = build_detector(config, CLASSES).train()
    stock = stock_like(config, detector).train()
    images, samples = batch_of([(64, 96), (50, 70)], [[[5, 5, 30, 40], [40, 20, 50, 30]], [[3, 3, 20, 20]]])
    for data in samples:
        data.set_metainfo({"text": ("car", "traffic light")})
        data.gt_instances.labels += torch.arange(len(data.gt_instances)) % 2
    found = []
    for network, text in ((detector, ("car", "traffic light")), (stock, "car. traffic light. ")):
        given = [with_entities(copy.deepcopy(data)) for data in samples]
        for data in given:
            data.set_metainfo({"text": text})
        torch.manual_seed(3)
        losses = network.loss(images, given)
        total({name: v for name, v in losses.items() if name != "loss_orth"}).backward()
        found.append((losses, {name: p.grad for name, p in network.named_parameters()}))
    (ours, gradients), (theirs, expected) = found
    assert set(ours) - set(theirs) == {"loss_orth"}
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name, gradient in expected.items():
        if gradient is not None and name in gradients:
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-3, msg=name)


def test_weights_of_the_losses_reach_them():
    images, samples = batch_of([(64, 96)], [[[5, 5, 30, 40]]])
    seen = []
    for weight in (0.25, 1.0):
        torch.manual_seed(1)
        settings = {"dense_loss": weight, "image_dropout": 0.0, "fusion": {"gate_init": 1.0}}
        detector = build_detector(small_config(**settings), CLASSES).train()
        torch.manual_seed(2)
        seen.append(detector.loss(images, copy.deepcopy(samples)))
        expected = detector.extract_fused(images, samples).loss_orth
        torch.testing.assert_close(seen[-1]["loss_orth"], expected)
        assert expected > 0
    for name in ("dense_loss_cls", "dense_loss_bbox", "dense_loss_iou"):
        torch.testing.assert_close(4 * seen[0][name], seen[1][name])


def test_image_features_are_dropped_image_by_image_and_never_in_prediction(monkeypatch):
    detector = build_detector(small_config(image_dropout=0.25), CLASSES).train()
    images, samples = torch.zeros(200, 3, 8, 8), [sample((8, 8), [], (8, 8)) for _ in range(200)]
    monkeypatch.setattr(
        detector, "extract_feat", lambda x: tuple(torch.ones(len(x), 32, 1, 1) for _ in range(3))
    )
    features = detector.extract_fused(images, samples).features
    dropped = features[0].flatten(1).amax(1) == 0
    assert 0.15 < dropped.float().mean() < 0.35
    assert all(torch.equal(level.flatten(1).amin(1) == 0, dropped) for level in features)
    assert all((level == 1).all() for level in detector.eval().extract_fused(images, samples).features)


def test_a_frozen_backbone_keeps_weights_and_statistics():
    images, samples = batch_of([(64, 96)], [[[5, 5, 30, 40]]])
    for frozen in (False, True):
        config = small_config(freeze_backbone=frozen, image_dropout=0.0)
        detector = new_detector(config, CLASSES, 0.0, 1.0).train()
        before = copy.deepcopy(detector.backbone.state_dict())
        total(detector.loss(images, copy.deepcopy(samples))).backward()
        kept = all(torch.equal(value, before[name]) for name, value in detector.backbone.state_dict().items())
        assert kept == frozen
        assert any(p.grad is not None for p in detector.backbone.parameters()) != frozen


def test_weights_of_a_backbone_are_loaded_by_name(tmp_path):
    source, detector = (build_detector(small_config(), CLASSES) for _ in range(2))
    own = source.backbone.state_dict()
    state = {f"backbone.{name}": value + 1 for name, value in own.items()}
    torch.save({"state_dict": {**state, "head.fc.weight": torch.zeros(1000, 3)}}, tmp_path / "net.pth")
    load_backbone(detector, tmp_path / "net.pth")
    assert all(torch.equal(value, own[name] + 1) for name, value in detector.backbone.state_dict().items())
    odd = {**state, "backbone.stem.0.0.weight": torch.zeros(16, 1, 3, 3)}
    lacking = {name: value for name, value in state.items() if "stem" not in name}
    for content, cause in ((odd, r"stem\.0\.0\.weight: \(16, 1, 3, 3\) in the file"), (lacking, "lacks")):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(CheckpointError, match=cause) as caught:
            load_backbone(detector, tmp_path / "odd.pth")
        assert caught.value.cure


def test_what_holds_no_weights_is_refused(tmp_path, config):
    detector = build_detector(config, CLASSES)
    for content, cause in (
        ({"state_dict": [1]}, "holds list"),
        ({"model": 3}, "holds int"),
        ({"state_dict": {1: torch.zeros(1)}}, "by name"),
        ([torch.zeros(1)], "holds list"),
        ({"level_embed": 3}, r"level_embed: int in the file, \(3, 32\) here"),
    ):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=cause):
            load_pretrained(detector, tmp_path / "x.pth")


def test_a_damaged_description_is_named(tmp_path, config):
    save_detector(build_detector(config, CLASSES), config, CLASSES, tmp_path, {})
    for content in ("[]", "3", "null", '{"detector": {}, "classes": null}', "{"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_detector(tmp_path)
        if "detector" not in content:
            with pytest.raises(CheckpointError, match=r"config\.json"):
                set_score_statistics(tmp_path, 1.0, 2.0)


def test_a_trained_detector_without_its_fusion_is_refused(tmp_path, config):
    save_detector(build_detector(config, CLASSES), config, CLASSES, tmp_path, {})
    assert not load_detector(tmp_path)[0].training
    state = read_checkpoint(tmp_path / "model.safetensors")["state_dict"]
    save_file({k: v for k, v in state.items() if "ouafs.gates" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"keys missing: ouafs\.gates"):
        load_detector(tmp_path)


@pytest.mark.parametrize("names", [(" ",), ("car", ""), ("car", "(s)", "bus")])
def test_a_prompt_without_a_word_is_explained(names):
    detector = build_detector(small_config(), CLASSES).eval()
    with pytest.raises(ConfigError, match="no word") as caught:
        detector._text([names], None)
    assert caught.value.what == ("detector.prompt" if names == (" ",) else "detect.negatives.names")
