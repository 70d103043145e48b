"""Where things are in each family of models: one record a family, all of them data.

A record says where the layers, norms, head, attention and MLP are, which modules' outputs are *added* to the
residual stream, and what the model does to its logits after the head. To add a family, add a record; the loader
proves it on the loaded weights (`interp.model.proof`).

Names of norms say little: `post_attention_layernorm` stands before the MLP in Llama and after attention in Gemma 2.
So a record names a module by what it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from interp.errors import InterpError

__all__ = [
    "ARCHITECTURES",
    "LLAMA_LAYOUT",
    "Architecture",
    "architecture_of",
    "find_architecture",
    "known_model_types",
    "missing_paths",
]


@dataclass(frozen=True)
class Architecture:
    """Where things are in one family. Paths are dotted, from the model or (where said) from a layer.

    Arguments:
        family: the family's name.
        model_types: the `model_type`s of configs that belong to it.
        layers: the list of layers.
        embedding: the token embedding.
        final_norm: the norm after the last layer.
        head: the projection onto the vocabulary.
        attention: in a layer, the attention module; what it receives is `attn_in`.
        mlp: in a layer, the MLP; what it receives is `mlp_in`.
        attention_added: in a layer, the module whose output is added to the residual stream after attention
            (`attn_out`): attention itself, or a norm behind it.
        mlp_added: the same for the MLP (`mlp_out`).
        middle: in a layer, the module whose input is the residual stream between attention and MLP (`resid_mid`).
        parallel: attention and MLP both read the residual stream at the layer's start, so there is no `resid_mid`;
            or the config field that says so.
        softcap: config field c of logits = c tanh(head / c); no cap where the field is absent or None.
        logit_scale: config field that multiplies the head's output.
    """

    family: str
    model_types: tuple[str, ...]
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attention: str = "self_attn"
    mlp: str = "mlp"
    attention_added: str = "self_attn"
    mlp_added: str = "mlp"
    middle: str = "post_attention_layernorm"
    parallel: bool | str = False
    softcap: str | None = None
    logit_scale: str | None = None

    def is_parallel(self, config: Any) -> bool:
        """Whether attention and MLP of this very model read the same residual stream."""
        return bool(getattr(config, self.parallel)) if isinstance(self.parallel, str) else self.parallel

    @property
    def root_paths(self) -> Mapping[str, str]:
        """What is looked for in the model: role -> path."""
        return {
            "layers": self.layers,
            "embedding": self.embedding,
            "final norm": self.final_norm,
            "head": self.head,
        }

    @property
    def layer_paths(self) -> Mapping[str, str]:
        """What is looked for in each layer: role -> path."""
        return {
            "attention": self.attention,
            "MLP": self.mlp,
            "what attention adds": self.attention_added,
            "what the MLP adds": self.mlp_added,
            "module between attention and MLP": self.middle,
        }


LLAMA_LAYOUT = Architecture(
    family="llama",
    model_types=("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "phi3", "smollm3"),
)

# A norm behind each sublayer as well as before it: what is added is that norm's output.
_SANDWICH = replace(
    LLAMA_LAYOUT,
    attention_added="post_attention_layernorm",
    mlp_added="post_feedforward_layernorm",
    middle="pre_feedforward_layernorm",
    softcap="final_logit_softcapping",
)

ARCHITECTURES: tuple[Architecture, ...] = (
    LLAMA_LAYOUT,
    replace(_SANDWICH, family="gemma2", model_types=("gemma2", "gemma3_text")),
    replace(
        _SANDWICH,
        family="gemma3",
        model_types=("gemma3",),
        layers="model.language_model.layers",
        embedding="model.language_model.embed_tokens",
        final_norm="model.language_model.norm",
        softcap=None,  # the model with images leaves the cap of its text config out
    ),
    # No norm before a sublayer: the MLP receives the residual stream itself.
    replace(
        LLAMA_LAYOUT,
        family="olmo2",
        model_types=("olmo2", "olmo3"),
        attention_added="post_attention_layernorm",
        mlp_added="post_feedforward_layernorm",
        middle="mlp",
    ),
    replace(
        LLAMA_LAYOUT,
        family="cohere",
        model_types=("cohere", "cohere2"),
        parallel=True,
        logit_scale="logit_scale",
        middle="mlp",
    ),
    Architecture(
        family="gpt2",
        model_types=("gpt2",),
        layers="transformer.h",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        attention="attn",
        attention_added="attn",
        middle="ln_2",
    ),
    Architecture(
        family="gpt_neox",
        model_types=("gpt_neox",),
        layers="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        attention_added="attention",
        parallel="use_parallel_residual",
    ),
)


def known_model_types() -> list[str]:
    """The `model_type`s that a record stands for."""
    return sorted(model_type for record in ARCHITECTURES for model_type in record.model_types)


def find_architecture(model_type: str) -> Architecture | None:
    """The record of a config's `model_type`; None where there is none."""
    for record in ARCHITECTURES:
        if model_type in record.model_types:
            return record
    return None


def missing_paths(architecture: Architecture, module: Any) -> list[str]:
    """What a model lacks of a record's paths, in words; nothing where all are there.

    Arguments:
        architecture: the record.
        module: the model, a torch module (duck-typed: anything with `get_submodule`).
    """
    missing = []
    for role, path in architecture.root_paths.items():
        if not _has(module, path):
            missing.append(f"{role} at {path!r}")
    if _has(module, architecture.layers):
        for index, layer in enumerate(module.get_submodule(architecture.layers)):
            absent = [(role, path) for role, path in architecture.layer_paths.items() if not _has(layer, path)]
            if absent:  # the first such layer says enough
                return missing + [f"{role} at '{architecture.layers}.{index}.{path}'" for role, path in absent]
    return missing


def architecture_of(model_type: str, module: Any) -> tuple[Architecture, bool]:
    """The record that fits a model, and whether it was written for its family.

    A family without a record is taken for Llama's layout where all of that layout's modules are there; that it also
    *computes* as Llama does has then to be proved.

    Arguments:
        model_type: of the model's config.
        module: the model.

    Returns:
        The record, and True where the table has the family, False where Llama's layout is a guess.

    Raises:
        InterpError: no record fits.
    """
    record = find_architecture(model_type)
    if record is not None:
        missing = missing_paths(record, module)
        if missing:
            raise InterpError(
                f"{type(module).__name__} has no {', no '.join(missing)}, which a causal language model of family "
                f"{record.family!r} has. Load it with its head (AutoModelForCausalLM)."
            )
        return record, True
    missing = missing_paths(LLAMA_LAYOUT, module)
    if missing:
        raise InterpError(
            f"unknown architecture {model_type!r}: no record of it, and it has not Llama's layout (no "
            f"{', no '.join(missing)}). Known: {', '.join(known_model_types())}. Add a record to "
            "interp.architectures."
        )
    return replace(LLAMA_LAYOUT, family=model_type, model_types=(model_type,)), False


def _has(module: Any, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
