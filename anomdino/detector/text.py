"""The frozen text encoder: BERT from a local folder, or a small one with the packaged vocabulary. No network, ever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomdino.detector.mmdet_parts import MODELS, generate_masks_with_special_tokens_and_transfer_map
from anomdino.detector.weights import other_shapes, read_checkpoint
from anomdino.errors import CheckpointError

PACKAGED_VOCABULARY = Path(__file__).with_name("vocabulary.txt")
TINY_BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SPECIAL_TOKENS = ("[CLS]", "[SEP]", ".", "?")
VOCABULARY, CONFIG = "vocab.txt", "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
BERT_SOURCE = "https://huggingface.co/bert-base-uncased"


class _Body(nn.Module):
    def __init__(self, model: nn.Module, language_dim: int) -> None:
        super().__init__()
        self.model = model
        self.language_dim = language_dim


@MODELS.register_module()
class LocalBert(nn.Module):
    """BERT features of prompts, computed once a prompt and kept.

    Parameter names are those of mmdet's ``BertModel``, so that its checkpoints fit. The encoder is frozen and always
    in evaluation mode.

    Args:
        folder: ``tiny`` for the packaged vocabulary and random weights, or a folder with ``config.json``,
            ``vocab.txt`` and, unless a detector checkpoint brings them, ``model.safetensors`` or
            ``pytorch_model.bin``.
        max_tokens: Longer prompts are refused.

    Attributes:
        files: Content of the folder's vocabulary and configuration by file name; empty for ``tiny``.

    Raises:
        CheckpointError: A file is missing or damaged, or they do not fit each other.
    """

    pad_to_max = False

    def __init__(self, folder: str = "tiny", max_tokens: int = 256) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel, BertTokenizerFast

        self.max_tokens = max_tokens
        self.files: dict[str, bytes] = {}
        vocabulary = PACKAGED_VOCABULARY
        if folder == "tiny":
            settings: dict[str, Any] = {**TINY_BERT, "vocab_size": len(vocabulary.read_text().split())}
            config = BertConfig(**settings)
            model = BertModel(config, add_pooling_layer=False)
        else:
            vocabulary, file = (_required(Path(folder), name) for name in (VOCABULARY, CONFIG))
            config, model = _described(file)
            _check_vocabulary(vocabulary, config.vocab_size)
            _load_bert(model, Path(folder))
            self.files = {path.name: path.read_bytes() for path in (vocabulary, file)}
        self.tokenizer = BertTokenizerFast(vocab_file=str(vocabulary), do_lower_case=True)
        self.language_backbone = nn.Sequential()
        self.language_backbone.add_module("body", _Body(model, config.hidden_size))
        self._special = self.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
        self._known: dict[tuple[str, ...], dict[str, Tensor]] = {}
        self.requires_grad_(False).eval()
        self.register_load_state_dict_post_hook(lambda module, _: module.forget())  # type: ignore[no-untyped-call]

    def init_weights(self) -> None:
        """Nothing to do: the weights are set when the encoder is built."""

    def train(self, mode: bool = True) -> LocalBert:
        """Stay in evaluation mode: the encoder is frozen."""
        return super().train(False)

    def forget(self) -> None:
        """Drop the kept features, as after new weights."""
        self._known.clear()

    def forward(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Encode prompts.

        Args:
            captions: One text an image; classes end with ``. ``.

        Returns:
            ``embedded`` float (B, T, hidden), ``masks`` bool (B, T, T) of tokens that belong to one class,
            ``position_ids`` int (B, T) inside the class, ``text_token_mask`` bool (B, T), ``hidden`` as ``embedded``.
        """
        device = next(self.parameters()).device
        wanted = tuple(captions)
        unique = tuple(dict.fromkeys(wanted))
        known = self._known.get(unique)
        if known is None or known["embedded"].device != device:
            known = self._encode(unique, device)
            self._known = {**self._known, unique: known} if len(self._known) < 8 else {unique: known}
        if len(unique) == 1:
            return {name: value.expand(len(wanted), *value.shape[1:]) for name, value in known.items()}
        index = torch.tensor([unique.index(caption) for caption in wanted], device=device)
        return {name: value[index] for name, value in known.items()}

    @torch.no_grad()
    def _encode(self, captions: tuple[str, ...], device: torch.device) -> dict[str, Tensor]:
        tokens = self.tokenizer(list(captions), padding="longest", return_tensors="pt").to(device)
        if tokens.input_ids.shape[1] > self.max_tokens:
            raise CheckpointError(
                "detector.prompt",
                f"the prompts have {tokens.input_ids.shape[1]} tokens, the detector takes {self.max_tokens}",
                "use fewer or shorter class names",
            )
        mask, positions = generate_masks_with_special_tokens_and_transfer_map(tokens, self._special)
        with torch.autocast(device.type, enabled=False):
            hidden = self.language_backbone.body.model(  # type: ignore[union-attr,operator]
                input_ids=tokens.input_ids,
                attention_mask=mask,
                position_ids=positions,
                token_type_ids=tokens.token_type_ids,
                output_hidden_states=True,
            ).hidden_states[-1]
        return {
            "embedded": hidden,
            "hidden": hidden,
            "masks": mask,
            "position_ids": positions,
            "text_token_mask": tokens.attention_mask.bool(),
        }


def _required(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise CheckpointError(
            path,
            "is missing: the text encoder needs config.json, vocab.txt and model.safetensors (or pytorch_model.bin)",
            _cure(folder),
        )
    return path


def _cure(folder: Path) -> str:
    return (
        "`anomdino data get bert_base_uncased --into data` puts them into data/weights/bert-base-uncased (so does the "
        f"stage download where data.registry.items names it), or copy them from {BERT_SOURCE} to {folder}/"
    )


def weights_file(folder: Path | str) -> Path | None:
    """Give the file with the weights of a text encoder's folder; nothing for ``tiny``, or where there is none."""
    return next((path for name in WEIGHTS if (path := Path(folder) / name).is_file()), None)


def require_weights(folder: str) -> None:
    """Check that a text encoder has weights of its own, as a training needs that no checkpoint brings them to.

    Args:
        folder: ``tiny``, or the encoder's folder.

    Raises:
        CheckpointError: The folder holds no weights.
    """
    if folder != "tiny" and weights_file(folder) is None:
        _required(Path(folder), WEIGHTS[0])


def _described(path: Path) -> tuple[Any, nn.Module]:
    """Give BERT's configuration, and a network of it with random weights."""
    from transformers import BertConfig, BertModel

    try:
        config = BertConfig.from_json_file(str(path))
        return config, BertModel(config, add_pooling_layer=False)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        cause = f"is damaged, or no configuration of BERT ({error})"
        raise CheckpointError(path, cause, _cure(path.parent)) from error


def _check_vocabulary(path: Path, size: int) -> None:
    """Refuse a vocabulary without BERT's special tokens, or of more tokens than the network has."""
    try:
        tokens = [token for token in path.read_text(encoding="utf-8").split("\n") if token]
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"is no text ({error})", _cure(path.parent)) from error
    missing = sorted({"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(map(str.strip, tokens)))
    if missing:
        raise CheckpointError(path, f"lacks the tokens {', '.join(missing)}", _cure(path.parent))
    if len(tokens) > size:
        cause = f"has {len(tokens)} tokens, {CONFIG} beside it says {size}"
        raise CheckpointError(path, cause, _cure(path.parent))


def _load_bert(model: nn.Module, folder: Path) -> None:
    """Load the folder's weights, if it has any."""
    path = weights_file(folder)
    if path is None:
        return
    renamed = {
        name.removeprefix("bert.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in read_checkpoint(path)["state_dict"].items()
    }
    own = model.state_dict()
    missing = sorted(own.keys() - renamed.keys())
    if missing:
        cause = f"lacks {len(missing)} weights of BERT, such as {missing[:3]}"
        raise CheckpointError(path, cause, _cure(folder))
    odd = other_shapes(renamed, own)
    if odd:
        raise CheckpointError(path, f"has {len(odd)} weights of another shape: {odd[0]}", _cure(folder))
    model.load_state_dict({name: renamed[name] for name in own})
