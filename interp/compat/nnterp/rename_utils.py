"""nnterp's `rename_utils`: where things are in a model, what interp is told of it, and the check of shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from nnsight import NNsight
from torch import Tensor

from interp import passes
from interp.architectures import Architecture, candidates
from interp.architectures import RenameConfig as _RenameConfig
from interp.compat.nnterp.layer_accessors import (
    AttentionProbabilitiesAccessor,
    AttnProbFunction,
    IOType,
    LayerAccessor,
    bloom_attention_prob_source,
    default_attention_prob_source,
    gpt2_attention_prob_source,
    gptj_attention_prob_source,
)
from interp.compat.nnterp.utils import RenamingError, dummy_inputs, try_with_scan
from interp.errors import InterpError
from interp.model.accessors import aliases, merged

__all__ = [
    "ATTENTION_NAMES",
    "EMBED_TOKENS_NAMES",
    "LAYER_NAMES",
    "LM_HEAD_NAMES",
    "LN_NAMES",
    "MLP_NAMES",
    "MODEL_NAMES",
    "AttentionProbabilitiesAccessor",
    "AttnProbFunction",
    "IOType",
    "IgnoreType",
    "LayerAccessor",
    "RenameConfig",
    "RenamingError",
    "bloom_attention_prob_source",
    "check_io",
    "check_model_renaming",
    "default_attention_prob_source",
    "default_attn_head_config_keys",
    "default_hidden_size_config_keys",
    "default_vocab_size_config_keys",
    "expand_path_with_model",
    "get_hidden_size",
    "get_ignores",
    "get_num_attention_heads",
    "get_rename_dict",
    "get_vocab_size",
    "gpt2_attention_prob_source",
    "gptj_attention_prob_source",
    "mlp_returns_tuple",
    "renamed_nnsight",
    "text_config",
]


IgnoreType = Literal["mlp", "attention"]
Names = str | Sequence[str]
Key = str | Sequence[str] | int


@dataclass
class RenameConfig:
    """Where things are in a model, in nnterp's order of arguments; see `interp.architectures.RenameConfig`.

    Arguments:
        attn_prob_source: an `AttnProbFunction`, or any function of an attention envoy.
        mlp_returns_tuple: of nnterp 1.0; what a module returns is seen on reading, so it is of no use.
    """

    attn_name: Names | None = None
    mlp_name: Names | None = None
    ln_final_name: Names | None = None
    lm_head_name: Names | None = None
    model_name: Names | None = None
    layers_name: Names | None = None
    attn_prob_source: Any | None = None
    ignore_mlp: bool | None = None
    ignore_attn: bool | None = None
    attn_head_config_key: Key | None = None
    hidden_size_config_key: Key | None = None
    vocab_size_config_key: Key | None = None
    embed_tokens_name: Names | None = None
    mlp_returns_tuple: bool | None = None

    def to_interp(self) -> _RenameConfig:
        """The same for `interp.StandardizedTransformer`; a dot before a path, which means the root, is left out."""
        names = {
            field: _without_dot(getattr(self, field))
            for field in (
                "attn_name", "mlp_name", "ln_final_name", "lm_head_name", "model_name", "layers_name",
                "embed_tokens_name",
            )
        }  # fmt: skip
        return _RenameConfig(
            **names,
            ignore_mlp=self.ignore_mlp,
            ignore_attn=self.ignore_attn,
            attn_head_config_key=self.attn_head_config_key,
            hidden_size_config_key=self.hidden_size_config_key,
            vocab_size_config_key=self.vocab_size_config_key,
            attn_prob_source=self.attn_prob_source,
        )


def _without_dot(names: Names | None) -> Any:
    if names is None:
        return None
    return names.removeprefix(".") if isinstance(names, str) else [name.removeprefix(".") for name in names]


AnyRenameConfig = RenameConfig | _RenameConfig


def for_interp(rename_config: AnyRenameConfig | None) -> _RenameConfig | None:
    """interp's `RenameConfig` from either one."""
    return rename_config.to_interp() if isinstance(rename_config, RenameConfig) else rename_config


# Names ------------------------------------------------------------------------------------------------------------

MODEL_NAMES = ["transformer", "gpt_neox", "decoder", "language_model"]


def expand_path_with_model(paths: Sequence[str]) -> list[str]:
    """Paths, and those that begin with `model.` once more inside each kind of backbone."""
    inner = [path.removeprefix("model.") for path in paths if path.startswith("model.")]
    return [*paths, *(f"model.{name}.{path}" for name in MODEL_NAMES for path in inner)]


ATTENTION_NAMES = ["attn", "self_attention", "attention", "norm_attn_norm"]
LAYER_NAMES = expand_path_with_model(["h", "blocks", "model.layers"])
LN_NAMES = expand_path_with_model(
    ["final_layer_norm", "final_layernorm", "ln_f", "norm_f", "norm", "embedding_norm", "model.ln_final"]
)
LM_HEAD_NAMES = ["embed_out"]
MLP_NAMES = ["block_sparse_moe", "ffn"]
EMBED_TOKENS_NAMES = expand_path_with_model(["wte", "embed_in", "word_embeddings", "model.embed_tokens"])
_DEFAULT_NAMES = {
    "model": MODEL_NAMES,
    "layers": LAYER_NAMES,
    "self_attn": ATTENTION_NAMES,
    "mlp": MLP_NAMES,
    "ln_final": LN_NAMES,
    "lm_head": LM_HEAD_NAMES,
    "embed_tokens": EMBED_TOKENS_NAMES,
}


def get_rename_dict(rename_config: RenameConfig | None = None) -> dict[str, str]:
    """nnterp's table of names, own name -> standard name; the user's entries win over the defaults.

    interp does not go by it: it knows where things are by family (`interp.architectures`).
    """
    names = {name: standard for standard, own in _DEFAULT_NAMES.items() for name in own}
    given = rename_config or RenameConfig()
    for field, standard in (
        ("model_name", "model"),
        ("layers_name", "layers"),
        ("attn_name", "self_attn"),
        ("mlp_name", "mlp"),
        ("ln_final_name", "ln_final"),
        ("lm_head_name", "lm_head"),
        ("embed_tokens_name", "embed_tokens"),
    ):
        chosen = getattr(given, field) or []
        names |= dict.fromkeys([chosen] if isinstance(chosen, str) else chosen, standard)
    return names


def record_of(module: Any, rename_config: AnyRenameConfig | None = None) -> Architecture:
    """The record by which a transformers model goes: its family's, or the first layout that fits.

    Raises:
        RenamingError: none fits.
    """
    try:
        return candidates(module.config, module, for_interp(rename_config)).records[0]
    except InterpError as error:
        raise RenamingError(str(error)) from error


def renamed_nnsight(
    module: Any, rename_config: AnyRenameConfig | None = None, rename: Mapping[Any, Any] | None = None
) -> NNsight:
    """A transformers model in nnsight, under the standard names and the user's further ones."""
    return NNsight(module, rename=merged(aliases(record_of(module, rename_config), module, every_depth=True), rename))


# Sizes ------------------------------------------------------------------------------------------------------------


def default_attn_head_config_keys() -> list[str]:
    """Fields of a config that hold the number of attention heads."""
    return ["n_heads", "num_attention_heads", "n_head", "num_heads"]


def default_hidden_size_config_keys() -> list[str]:
    """Fields of a config that hold the hidden size."""
    return ["hidden_size", "d_model", "n_embd"]


def default_vocab_size_config_keys() -> list[str]:
    """Fields of a config that hold the size of the vocabulary."""
    return ["vocab_size", "n_vocab"]


def text_config(model: Any) -> Any:
    """The config of a model's language part."""
    return model.config.get_text_config()


def get_num_attention_heads(
    model: Any, raise_error: bool = True, rename_config: RenameConfig | None = None
) -> int | None:
    """The number of attention heads, by a model's config; the user's key is tried before the usual ones.

    Returns:
        The number; None where there is none and `raise_error` is off.

    Raises:
        InterpError: there is none, or the key is of a wrong type.
    """
    return _size(model, "attn_head_config_key", rename_config, default_attn_head_config_keys(), raise_error)


def get_hidden_size(model: Any, raise_error: bool = True, rename_config: RenameConfig | None = None) -> int | None:
    """The width of the residual stream; as `get_num_attention_heads`."""
    return _size(model, "hidden_size_config_key", rename_config, default_hidden_size_config_keys(), raise_error)


def get_vocab_size(model: Any, raise_error: bool = True, rename_config: RenameConfig | None = None) -> int | None:
    """The size of the vocabulary; as `get_num_attention_heads`."""
    return _size(model, "vocab_size_config_key", rename_config, default_vocab_size_config_keys(), raise_error)


def _size(model: Any, argument: str, rename_config: Any, usual: list[str], raise_error: bool) -> int | None:
    given = getattr(rename_config, argument, None)
    if isinstance(given, int):
        return given
    if given is not None and not isinstance(given, str | list | tuple):
        raise InterpError(f"{argument}: expected None, a field of the config, several, or a number, got {given!r}.")
    own = [] if given is None else [given] if isinstance(given, str) else list(given)
    config = text_config(model)
    for key in [*own, *usual]:
        value = getattr(config, key, None)
        if isinstance(value, int):
            return value
    if not raise_error:
        return None
    raise InterpError(
        f"{type(config).__name__} has none of {', '.join([*own, *usual])}. Pass RenameConfig({argument}=...), a field "
        "of the config or the number itself."
    )


# Modules ----------------------------------------------------------------------------------------------------------


def get_ignores(model: Any, rename_config: AnyRenameConfig | None = None) -> list[IgnoreType]:
    """What is not checked: `mlp` or `attention` that is to be ignored, or has no module (OPT's lies on the layer)."""
    record = record_of(model, rename_config)
    ignores: list[IgnoreType] = []
    if getattr(rename_config, "ignore_mlp", None) or record.mlp is None or record.mlp.is_spread:
        ignores.append("mlp")
    if getattr(rename_config, "ignore_attn", None) or record.attention is None:
        ignores.append("attention")
    return ignores


def mlp_returns_tuple(model: Any, rename_config: RenameConfig | None = None) -> bool:
    """Whether the MLP of the first layer that has one returns a tuple; of nnterp 1.0. The model is run on three tokens.

    Arguments:
        model: a transformers model.
        rename_config: what it says counts.
    """
    if rename_config is not None and rename_config.mlp_returns_tuple is not None:
        return rename_config.mlp_returns_tuple
    record = record_of(model, rename_config)
    sublayers = [dict(record.sublayers(layer)).get("mlp") for layer in model.get_submodule(record.layers)]
    paths = [
        f"{record.layers}.{layer}.{sublayer.module}"
        for layer, sublayer in enumerate(sublayers)
        if sublayer is not None and not sublayer.is_spread
    ]
    if not paths:
        return False
    seen: list[bool] = []
    handle = passes.after(
        model.get_submodule(paths[0]), lambda _module, _inputs, output: seen.append(isinstance(output, tuple))
    )
    try:
        with torch.no_grad():
            model(input_ids=dummy_inputs()["input_ids"].to(model.device), use_cache=False)
    finally:
        handle.remove()
    return seen[0]


def check_io(std_model: Any, model_name: str, ignores: Sequence[IgnoreType]) -> None:
    """Check the shape of what every layer, its attention and its MLP take and give; inside a trace or a scan.

    Arguments:
        std_model: a `StandardizedTransformer`.
        model_name: what it is called in a message.
        ignores: what it has no module for.

    Raises:
        RenamingError: the first value that is not (batch, position, hidden).
    """
    rows, positions = std_model.input_size
    expected = (rows, positions, std_model.hidden_size)

    def check(name: str, value: Any, shape: tuple[int, ...] = expected) -> None:
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if came != shape:
            raise RenamingError(
                f"{model_name}: expected {name} to be {shape}, got {came}. Say where it is in rename_config=."
            )

    embeddings = std_model.token_embeddings  # some models project them to the hidden size afterwards
    check("token_embeddings", embeddings, (rows, positions, embeddings.shape[-1]))
    for layer in range(std_model.num_layers):
        check(f"layers_input[{layer}]", std_model.layers_input[layer])
        for part, role, site in (("attentions", "attention", "attn_in"), ("mlps", "mlp", "mlp_in")):
            if role not in ignores and std_model.has(f"{site}.{layer}"):
                check(f"{part}_input[{layer}]", getattr(std_model, f"{part}_input")[layer])
                check(f"{part}_output[{layer}]", getattr(std_model, f"{part}_output")[layer])
        check(f"layers_output[{layer}]", std_model.layers_output[layer])
    head = std_model.get(std_model.architecture.head)  # `lm_head` is another module in ModernBERT's decoder
    check("lm_head.output", head.output, (rows, positions, std_model.vocab_size))


def check_model_renaming(
    std_model: Any,
    model_name: str,
    ignores: Sequence[IgnoreType],
    allow_dispatch: bool,
    allow_multimodal: bool = False,
) -> None:
    """`check_io` in a scan, or where that fails in a trace of three tokens.

    Layers may be of different kinds: each is checked for what it has.

    Arguments:
        std_model, model_name, ignores: as in `check_io`.
        allow_dispatch: as in `try_with_scan`.
        allow_multimodal: of nnterp, and of no use here.

    Raises:
        RenamingError: a value is not what its name says.
    """
    error = RenamingError(f"{model_name}: what its layers take and give cannot be reached.")
    raised = (RenamingError, InterpError)
    try_with_scan(
        std_model,
        lambda: check_io(std_model, model_name, ignores),
        error,
        allow_dispatch,
        warn_if_scan_fails=False,
        errors_to_raise=raised,
    )
