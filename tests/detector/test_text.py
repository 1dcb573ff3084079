"""A text encoder from a folder: what it needs, what is said of damaged files, and that a detector takes it along."""

import json
import shutil

import numpy as np
import pytest
import torch

from anomdino.config.detect import DetectConfig
from anomdino.detector.infer import Detector
from anomdino.detector.text import PACKAGED_VOCABULARY
from anomdino.detector.training import new_detector
from anomdino.detector.weights import save_detector
from anomdino.errors import CheckpointError
from tests.detector.conftest import CLASSES, make_maps, small_config

WORDS = PACKAGED_VOCABULARY.read_text()


@pytest.fixture
def bert(tmp_path):
    """A folder as `bert-base-uncased` is one, of a small BERT with random weights."""
    from transformers import BertConfig, BertModel

    folder = tmp_path / "weights/bert"
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    network = BertModel(BertConfig(vocab_size=len(WORDS.split()), **settings), add_pooling_layer=False)
    network.save_pretrained(folder)
    (folder / "vocab.txt").write_text(WORDS)
    return folder


def start(folder, **changes):
    return new_detector(small_config(text_encoder=str(folder), **changes), CLASSES, 0.0, 1.0)


def encoder_of(detector):
    prefix = "language_model."
    return {name: value for name, value in detector.state_dict().items() if name.startswith(prefix)}


def test_a_training_from_scratch_needs_the_encoders_weights(bert, tmp_path):
    trained = start(bert)
    config = small_config(text_encoder=str(bert))
    save_detector(trained, config, CLASSES, tmp_path / "detector", {})
    (bert / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is missing") as caught:
        start(bert)
    assert "anomdino data get bert_base_uncased" in caught.value.cure
    started = start(bert, init_checkpoint=str(tmp_path / "detector/model.safetensors"))  # they come with it
    for name, value in encoder_of(trained).items():
        assert torch.equal(encoder_of(started)[name], value), name


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("model.safetensors", b"x" * 100, "is damaged"),
        ("pytorch_model.bin", b"x" * 100, "damaged"),
        ("config.json", b'{"hidden_size": 3', "no configuration"),
        ("config.json", b"[1]", "no configuration"),
        ("config.json", b'{"hidden_size": 30, "num_attention_heads": 7}', "no configuration"),
        ("config.json", b'{"hidden_size": "wide"}', "no configuration"),
        ("vocab.txt", b"\xff\xfe\x00", "is no text"),
        ("vocab.txt", b"<html>404</html>", "lacks the tokens"),
        ("vocab.txt", (WORDS + "\nfurther").encode(), "tokens, config.json beside it says"),
    ],
)
def test_damaged_files_are_named_with_cause_and_cure(bert, file, content, match):
    if file == "pytorch_model.bin":
        (bert / "model.safetensors").unlink()
    (bert / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        start(bert)
    assert caught.value.what == str(bert / file)
    assert caught.value.cure


def test_weights_of_another_network_are_explained(bert):
    content = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(content | {"intermediate_size": 48}))
    with pytest.raises(
        CheckpointError, match=r"another shape: encoder\.layer.*\(64, 32\) in the file, \(48, 32\)"
    ):
        start(bert)


def test_a_trained_detector_takes_its_text_encoder_along(bert, tmp_path, monkeypatch):
    """Saved with a relative path, moved, loaded from elsewhere, the source gone: the same boxes."""
    monkeypatch.chdir(tmp_path)
    detector, config = start("weights/bert").eval(), small_config(text_encoder="weights/bert")
    rng, detect = np.random.default_rng(1), DetectConfig(min_score=0.0, nms_iou=1.0)
    image, maps = rng.integers(0, 255, (64, 96, 3)).astype(np.uint8), make_maps(rng, (64, 96))
    expected = Detector(detector, config, CLASSES, detect).detect(image, maps)
    save_detector(detector, config, CLASSES, "models/detector", {})
    shutil.copytree("models/detector", "old/detector", ignore=shutil.ignore_patterns("text_encoder"))
    found = Detector.load("old/detector", detect=detect).detect(image, maps)  # as saved by earlier versions
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)

    shutil.move("models", "moved")
    shutil.rmtree("weights")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = Detector.load(tmp_path / "moved/detector", detect=detect).detect(image, maps)
    assert len(found) > 0
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)
    np.testing.assert_array_equal(found.scores, expected.scores)
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        Detector.load(tmp_path / "old/detector")


def test_a_released_detector_keeps_it(bert, tmp_path):
    from anomdino.release.build import halve_detector

    save_detector(start(bert), small_config(text_encoder=str(bert)), CLASSES, tmp_path / "detector", {})
    halve_detector(tmp_path / "detector", tmp_path / "released")
    shutil.rmtree(bert)
    assert Detector.load(tmp_path / "released").classes == CLASSES


def test_captions_of_a_batch_are_encoded_each_as_alone():
    from anomdino.detector.text import LocalBert

    encoder = LocalBert().train()
    assert not any(module.training for module in encoder.modules())  # frozen: nothing is dropped
    torch.testing.assert_close(
        encoder(["Traffic Light. "])["embedded"], encoder(["traffic light. "])["embedded"]
    )
    captions = ["car. ", "traffic light. person. ", "car. "]
    together = encoder(captions)
    for index, caption in enumerate(captions):
        alone = encoder([caption])
        count = alone["text_token_mask"].sum()
        assert together["text_token_mask"][index].sum() == count
        torch.testing.assert_close(together["embedded"][index, :count], alone["embedded"][0])


def test_prompts_of_too_many_words_are_refused():
    from anomdino.detector.text import LocalBert

    with pytest.raises(CheckpointError, match="have 43 tokens, the detector takes 42"):
        LocalBert(max_tokens=42)(["car. " * 20 + "bus"])
    assert LocalBert(max_tokens=43)(["car. " * 20 + "bus"])["embedded"].shape[1] == 43
