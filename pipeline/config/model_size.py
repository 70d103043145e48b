"""How large a model is, as far as a config or a local folder tells: what is checked before the model is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.base import ConfigError
from pipeline.config.model import ModelConfig
from pipeline.config.paths import HUB_MODEL, located

__all__ = ["CONTEXT_KEYS", "HUB_ID", "ModelSize", "model_size"]

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HEAD_KEYS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
# What the families call the longest text that they read.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")


class ModelSize(NamedTuple):
    """What bounds a config's numbers; None: not known before the model is there.

    Arguments:
        num_layers: of the model.
        vocab_size: tokens that its readout tells apart.
        context_length: tokens that it reads at most.
        num_heads, num_kv_heads: attention heads, and key-value heads, of a layer.
    """

    num_layers: int | None = None
    vocab_size: int | None = None
    context_length: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None


def model_size(model: ModelConfig) -> ModelSize:
    """Check where the model comes from, and read how large it is.

    Arguments:
        model: section `model`, localized.

    Returns:
        Its size, as far as the section or a local folder tells.

    Raises:
        ConfigError: a local folder that is missing or is no model, or that has another depth than the config says.
    """
    if model.depends_on == HUB_MODEL:
        if not HUB_ID.fullmatch(model.source):
            raise ConfigError(
                f"model.source: expected a hub id such as 'openai-community/gpt2' or a folder, got {model.source!r}."
            )
        return ModelSize(model.num_layers)
    folder = located(model.source)
    if not folder.is_dir():
        remedy = "Give a folder with config.json, weights and a tokenizer, or a hub id."
        if model.source == "pipeline/demo/model":
            remedy = f"It belongs to the repository: `git restore {model.source}`."
        raise ConfigError(f"model.source: expected a model folder at {folder}, found none. {remedy}")
    config = _read_json(
        folder / "config.json", "model.source", "a model folder holds config.json; `save_pretrained` writes it"
    )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model.source: expected weights (*.safetensors) in {folder}, found none. Convert others with "
            "`AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)`."
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise ConfigError(
            f"model.source: expected a tokenizer (tokenizer.json) in {folder}, found none. Save it there with "
            "`tokenizer.save_pretrained(FOLDER)`."
        )
    text = config.get("text_config")  # of a model for images and text
    layers = text if isinstance(text, dict) else config
    depth = _first(layers, DEPTH_KEYS)
    if model.num_layers is not None and depth is not None and model.num_layers != depth:
        raise ConfigError(
            f"model.num_layers: {model.num_layers}, but {folder / 'config.json'} says {depth}. Set "
            "model.num_layers=null, and it is read from there."
        )
    return ModelSize(
        depth if model.num_layers is None else model.num_layers,
        _first(layers, ("vocab_size",)),
        _first(layers, CONTEXT_KEYS),
        _first(layers, HEAD_KEYS),
        _first(layers, ("num_key_value_heads",)),
    )


def _first(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """The first of some keys that a config has a whole number for."""
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)


def _read_json(path: Path, where: str, remedy: str) -> dict[str, Any]:
    """A JSON file's mapping.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"{where}: expected a file {path}, found none; {remedy}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{where}: expected JSON in {path}, got a syntax error: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected a JSON object in {path}, got {type(content).__name__}.")
    return content
