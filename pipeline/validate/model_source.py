"""Check section `model` without torch: its source and size, its device, its implementation of attention.

What this machine lacks is asked where a run starts, for a config may be checked on another machine.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.model import CONTEXT_KEYS, HUB_ID, ModelConfig
from pipeline.config.paths import HUB_MODEL, located
from pipeline.config.section import ConfigError, nearest

__all__ = [
    "ModelSize",
    "check_attention",
    "check_device_map",
    "check_machine",
    "check_processor",
    "model_size",
    "nvidia_gpus",
]


PROCESSORS = ("processor_config.json", "preprocessor_config.json")
PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
DEVICES = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa")
DEVICE = re.compile(rf"({'|'.join(DEVICES)})(?::(\d{{1,4}}))?")
FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}  # -> the package that has it
# The attribute by which a model class of transformers says that it can, by what the config calls it.
SUPPORTS = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flash_attention_3": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}


def check_device_map(device_map: str) -> None:
    """Check how a device is spelled.

    Raises:
        ConfigError: it names none that can hold weights.
    """
    if device_map in PLACEMENTS:
        return
    if device_map == "meta":
        raise ConfigError("model.device_map: 'meta' holds no weights, so nothing can be computed there. Choose auto.")
    match = DEVICE.fullmatch(device_map)
    if match is None or (match[1] in ("cpu", "mps") and match[2] not in (None, "0")):
        known = (*PLACEMENTS, *DEVICES)
        raise ConfigError(
            f"model.device_map: expected auto, cpu, cuda:0 or the like, got {device_map!r}.{nearest(device_map, known)}"
        )


def check_attention(model: ModelConfig) -> None:
    """Check an implementation of attention against the section, and against what the model's family has.

    Arguments:
        model: section `model`, localized, with an implementation that exists.

    Raises:
        ConfigError: the model cannot be run with it anywhere.
    """
    asked = model.attention_implementation
    if asked in FLASH and model.dtype == "float32":
        raise ConfigError(
            f"model.attention_implementation: {asked} computes in bfloat16 or float16, and model.dtype is float32. "
            "Set model.dtype=bfloat16, or choose sdpa."
        )
    if asked in FLASH and model.device_map.split(":")[0] in ("cpu", "mps"):
        raise ConfigError(
            f"model.attention_implementation: {asked} runs on a GPU, and model.device_map is {model.device_map}. "
            "Choose sdpa."
        )
    family = None if model.trust_remote_code else _family(model)
    if asked in SUPPORTS and family is not None and _supports(family, SUPPORTS[asked]) is False:
        raise ConfigError(
            f"model.attention_implementation: transformers has no {asked} for {family} models. Choose eager."
        )


def check_machine(model: ModelConfig) -> None:
    """Check that this machine has what the section asks for, as far as it can be told without torch.

    Arguments:
        model: section `model`.

    Raises:
        ConfigError: it has not.
    """
    kind, _, number = model.device_map.partition(":")
    if kind == "mps" and sys.platform != "darwin":
        raise ConfigError(f"model.device_map: mps is Apple's, and this machine runs {sys.platform}. Choose auto.")
    gpus = nvidia_gpus()
    if kind == "cuda" and gpus is not None and int(number or 0) >= gpus:
        has = "no GPU that torch can use" if gpus == 0 else f"{gpus} of them, cuda:0 to cuda:{gpus - 1}"
        raise ConfigError(
            f"model.device_map: expected a device of this machine, got {model.device_map}; it has {has}. "
            "Choose auto or cpu."
        )
    package = FLASH.get(model.attention_implementation)
    if package is None:
        return
    if gpus == 0 and kind in ("cuda", *PLACEMENTS):
        raise ConfigError(
            f"model.attention_implementation: {model.attention_implementation} runs on a GPU, and this machine has "
            "none that torch can use. Choose sdpa."
        )
    if importlib.util.find_spec(package) is None and importlib.util.find_spec("kernels") is None:
        raise ConfigError(
            f"model.attention_implementation: {model.attention_implementation} needs the package {package}, which is "
            "not installed. Choose sdpa."
        )


def check_processor(model: ModelConfig, task: str) -> None:
    """Check that a local model has a processor of images, as one that sees does.

    Arguments:
        model: section `model`, localized; one of the hub is not looked at.
        task: kind of the task whose prompts have images.

    Raises:
        ConfigError: it has none.
    """
    if model.depends_on == HUB_MODEL:
        return
    folder = located(model.source)
    if not any((folder / name).is_file() for name in PROCESSORS):
        raise ConfigError(
            f"model.source: the prompts of the task {task} have images, and {folder} holds no "
            f"{' and no '.join(PROCESSORS)}: the model does not see, or its processor is missing. Choose another, "
            "such as model=shapes, or save its processor there with `processor.save_pretrained(FOLDER)`."
        )


def nvidia_gpus() -> int | None:
    """How many GPUs torch can use as `cuda` here; None: that cannot be told without asking it."""
    try:
        if metadata.version("torch").endswith("+cpu"):
            return 0
    except metadata.PackageNotFoundError:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = visible.split(",") if visible.strip() else []
        shown = next((index for index, name in enumerate(named) if name.strip() in ("", "-1")), len(named))
        if shown == 0:
            return 0
    if sys.platform != "linux" or any(Path(other).exists() for other in ("/dev/kfd", "/dev/dxg")):
        return None  # AMD's, or Windows's own way to the GPU
    devices = [name for name in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", name)]
    return len(devices) if visible is None else min(len(devices), shown)


def _family(model: ModelConfig) -> str | None:
    """`model_type` of a local folder's config.json."""
    if model.depends_on == HUB_MODEL:
        return None
    try:
        kind = json.loads((located(model.source) / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None  # `model_size` says what is wrong with it
    return kind if isinstance(kind, str) and kind.isidentifier() else None


def _supports(family: str, attribute: str) -> bool | None:
    """What transformers' source says that a family's classes can; None: it does not say it in one word.

    Asking the class itself would import torch.
    """
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        return None
    source = Path(found.origin).parent / "models" / family / f"modeling_{family}.py"
    if not source.is_file():
        return None
    text = source.read_text(encoding="utf-8")
    said = set(re.findall(rf"^    {attribute} = (True|False)\b", text, re.MULTILINE))
    if not said and re.search(r"^class \w+\(PreTrainedModel[,)]", text, re.MULTILINE):
        return False  # the default of PreTrainedModel
    return said.pop() == "True" if len(said) == 1 else None


DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HEAD_KEYS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
# What the families call the longest text that they read.


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
