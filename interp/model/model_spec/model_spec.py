"""`ModelSpec`: one read-only view of any family's config."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from interp.architectures import Architecture
from interp.errors import InterpError, nearest
from interp.model.model_spec.dimensions import TRANSFORMER_LENS_NAMES, read_config
from interp.model.model_spec.modules_by_name import read_modules

__all__ = ["ModelSpec"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a model is, under the same names in every family. `spec["d_model"]` takes TransformerLens' names too.

    None: the model has no such thing, or nothing says. What is said by layer is a tuple over layers.

    Attributes:
        model_type: transformers' name of the family, of the text model where there is a vision tower beside it.
        architecture: name of the model's class (TransformerLens: `architecture`).
        hidden_size: width of the residual stream (`d_model`).
        num_layers: layers (`n_layers`).
        num_heads: query heads of a layer's attention (`n_heads`).
        num_kv_heads: key and value heads, as many as query heads without grouping (`n_key_value_heads`).
        head_dim: width of a query and of a key (`d_head`).
        value_head_dim: width of a value; with multi-head latent attention (DeepSeek) another than `head_dim`.
        num_heads_by_layer, num_kv_heads_by_layer, head_dim_by_layer: where layers differ; the three above then say what
            most layers have (`per_layer_head_dim`, `per_layer_num_key_value_heads`).
        mlp_size: neurons of a dense MLP; where all MLPs are mixtures of experts, of one expert (`d_mlp`).
        vocab_size: width of the logits (`d_vocab`, `d_vocab_out`).
        max_positions: positions that the model was made for (`n_ctx`).
        num_parameters: all parameters, tied ones once (`n_params`).
        normalization: "LayerNorm" or "RMSNorm" (`normalization_type`).
        norm_eps: what the norms add to the variance (`eps`).
        norm_weight_offset: norms multiply by 1 + weight, as Gemma's do (`rmsnorm_uses_offset`).
        norm_placement: norms of a layer stand "before" its sublayers, "after" them (OLMo 2), "both" (Gemma 2), or
            "mixed" where layers differ.
        embedding_norm: there is a norm behind the token embedding (`post_embedding_ln`).
        positional_embedding: "rotary", "absolute" (learned), "sinusoidal", "alibi", "relative" or "none"
            (`positional_embedding_type`).
        rotary_base: base of the rotation angles, in layers with full attention where others differ (`rotary_base`).
        rotary_base_by_layer: where layers differ; None in a layer that does not rotate, or has no attention.
        rotary_dim: dimensions of a head that are rotated (`rotary_dim`).
        rotary_adjacent_pairs: dimensions 2i and 2i + 1 are rotated together, as in GPT-J; otherwise i and i +
            rotary_dim / 2 (`rotary_adjacent_pairs`).
        rope_scaling: how the rotation is stretched to longer contexts: "linear", "yarn", "llama3", ...
        rope_scaling_factor: by how much.
        layer_types: what mixes tokens in each layer: "attention", "mamba", "linear_attention", "convolution",
            "recurrent", two of them joined with "+", or "none".
        attention_types: how far each layer's attention sees: "full", "sliding", "chunked", "indexed" (a learned choice
            of keys); None in a layer without attention (`attn_types`).
        sliding_window: tokens that a sliding layer sees (`window_size`).
        attention_chunk_size: tokens of a chunk, for chunked attention.
        attention_scale: what scores are multiplied by; mostly head_dim ** -0.5.
        attention_scale_by_inverse_layer: scores are also divided by the number of the layer, counted from 1
            (`scale_attn_by_inverse_layer_idx`).
        attention_softcap: c of scores = c tanh(scores / c) (`attn_scores_soft_cap`).
        attention_bias: the maps to queries, keys and values have biases.
        attention_output_bias: the map from heads to the residual stream has one.
        attention_sinks: softmax has one term more, so that a row of the pattern may sum to less than 1 (gpt-oss).
        qk_norm: queries and keys are normed (`use_qk_norm`).
        qk_norm_after_rotary: and that after the rotation (`qk_norm_after_rope`).
        activation: of the MLP, as transformers calls it (`act_fn`).
        gated_mlp: neurons are a product of two maps, one of them through the activation (`gated_mlp`).
        mlp_bias: the maps of the MLP, or of an expert, have biases.
        mlp_types: "dense", "experts" or "none", by layer.
        num_experts: routed experts of a layer (`num_experts`).
        experts_per_token: how many of them a token goes to (`experts_per_token`).
        num_shared_experts: experts that every token goes to, besides.
        expert_size: neurons of a routed expert.
        first_dense_layers: layers before the first with experts.
        parallel_residual: attention and MLP read the same residual stream (`parallel_attn_mlp`).
        embedding_scale: what token embeddings are multiplied by.
        residual_scale: what attention and MLP outputs are multiplied by before they are added (Granite).
        logit_scale: what the head's output is multiplied by.
        final_softcap: c of logits = c tanh(logits / c) (`output_logits_soft_cap`).
        head_bias: the head has a bias.
        tied_embeddings: embedding and head are one matrix (`tie_word_embeddings`).
        bos_token_id, eos_token_id, pad_token_id: special tokens; several ids are a tuple.
        dtype: of the weights (`dtype`).
        quantization: method by which the weights are quantized.
        initializer_range: standard deviation of the weights before training (`initializer_range`).
        is_multimodal: there is a vision or audio tower beside the text model (`is_multimodal`).
        vision_hidden_size, vision_num_layers, vision_num_heads: sizes of the vision tower.
        tokens_per_image: positions that an image takes (`mm_tokens_per_image`).
    """

    model_type: str
    architecture: str | None = None
    hidden_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    value_head_dim: int | None = None
    num_heads_by_layer: tuple[int | None, ...] | None = None
    num_kv_heads_by_layer: tuple[int | None, ...] | None = None
    head_dim_by_layer: tuple[int | None, ...] | None = None
    mlp_size: int | None = None
    vocab_size: int | None = None
    max_positions: int | None = None
    num_parameters: int | None = None
    normalization: str | None = None
    norm_eps: float | None = None
    norm_weight_offset: bool | None = None
    norm_placement: str | None = None
    embedding_norm: bool | None = None
    positional_embedding: str | None = None
    rotary_base: float | None = None
    rotary_base_by_layer: tuple[float | None, ...] | None = None
    rotary_dim: int | None = None
    rotary_adjacent_pairs: bool | None = None
    rope_scaling: str | None = None
    rope_scaling_factor: float | None = None
    layer_types: tuple[str, ...] | None = None
    attention_types: tuple[str | None, ...] | None = None
    sliding_window: int | None = None
    attention_chunk_size: int | None = None
    attention_scale: float | None = None
    attention_scale_by_inverse_layer: bool | None = None
    attention_softcap: float | None = None
    attention_bias: bool | None = None
    attention_output_bias: bool | None = None
    attention_sinks: bool | None = None
    qk_norm: bool | None = None
    qk_norm_after_rotary: bool | None = None
    activation: str | None = None
    gated_mlp: bool | None = None
    mlp_bias: bool | None = None
    mlp_types: tuple[str, ...] | None = None
    num_experts: int | None = None
    experts_per_token: int | None = None
    num_shared_experts: int | None = None
    expert_size: int | None = None
    first_dense_layers: int | None = None
    parallel_residual: bool | None = None
    embedding_scale: float | None = None
    residual_scale: float | None = None
    logit_scale: float | None = None
    final_softcap: float | None = None
    head_bias: bool | None = None
    tied_embeddings: bool | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    dtype: torch.dtype | None = None
    quantization: str | None = None
    initializer_range: float | None = None
    is_multimodal: bool | None = None
    vision_hidden_size: int | None = None
    vision_num_layers: int | None = None
    vision_num_heads: int | None = None
    tokens_per_image: int | None = None

    @classmethod
    def from_config(cls, config: Any, **known: Any) -> ModelSpec:
        """What a config says, and what the table of architectures says of its family.

        What only code decides (kind of norm, gate, biases, ...) stays None; `from_model` knows it, also of a model
        without weights, built under `torch.device("meta")`.

        Arguments:
            config: a transformers config; of a model with a vision or audio tower the whole one.
            known: fields that the caller knows better.

        Raises:
            InterpError: a field that a spec does not have.
        """
        return cls(**{**read_config(config), **_checked(known)})

    @classmethod
    def from_model(cls, module: nn.Module, architecture: Architecture | None = None, **known: Any) -> ModelSpec:
        """What a model's config says, and what its modules are; they win over the config.

        Arguments:
            module: a transformers model with its head; weights are not read, so they may be on any device.
            architecture: where things are in it; None: by the table, and of a family that it lacks by the first layout
                whose modules the model has.
            known: fields that the caller knows better.

        Raises:
            InterpError: a field that a spec does not have.
        """
        facts = read_config(module.config, architecture)
        return cls(**{**facts, **read_modules(module, facts, architecture), **_checked(known)})

    @property
    def uses_rms_norm(self) -> bool | None:
        """The norms are RMS norms (TransformerLens: `uses_rms_norm`, `final_rms`)."""
        return None if self.normalization is None else self.normalization == "RMSNorm"

    @property
    def normalizes_before_and_after(self) -> bool | None:
        """There are norms on both sides of a sublayer (TransformerLens: `use_normalization_before_and_after`)."""
        return None if self.norm_placement is None else self.norm_placement == "both"

    @property
    def uses_local_attention(self) -> bool | None:
        """Some layer sees less than all tokens before (TransformerLens: `use_local_attn`)."""
        if self.attention_types is None:
            return None
        return any(kind not in (None, "full") for kind in self.attention_types)

    @property
    def attention_only(self) -> bool | None:
        """No layer has an MLP, or another token mixer than attention (TransformerLens: `attn_only`)."""
        if self.mlp_types is None or self.layer_types is None:
            return None
        return set(self.mlp_types) == {"none"} and set(self.layer_types) == {"attention"}

    @property
    def is_stateful(self) -> bool | None:
        """Some layer keeps a state in place of keys and values (TransformerLens: `is_stateful`)."""
        if self.layer_types is None:
            return None
        return any(part not in ("attention", "none") for kind in self.layer_types for part in kind.split("+"))

    def __getitem__(self, name: str) -> Any:
        """A field by its name or by TransformerLens' name of it.

        Raises:
            InterpError: neither has such a field; the message names the nearest.
        """
        ours = TRANSFORMER_LENS_NAMES.get(name, name)
        known = {*_FIELDS, *TRANSFORMER_LENS_NAMES.values()}
        if ours not in known:
            raise InterpError(f"a model spec has no {name!r}.{nearest(name, known | set(TRANSFORMER_LENS_NAMES))}")
        return getattr(self, ours)

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, as plain values: the dtype as a word."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return {name: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for name, v in values.items()}

    def __str__(self) -> str:
        """A table of what is known: a line a field."""
        known = {name: value for name, value in self.as_dict().items() if value is not None}
        width = max(map(len, known))
        return "\n".join(f"{name:<{width}}  {_in_words(value)}" for name, value in known.items())


_FIELDS = tuple(field.name for field in fields(ModelSpec))


def _checked(known: dict[str, Any]) -> dict[str, Any]:
    for name in known:
        if name not in _FIELDS:
            raise InterpError(f"a model spec has no field {name!r}.{nearest(name, _FIELDS)}")
    return known


def _in_words(value: Any) -> str:
    """A value in a line; of a tuple, runs of one value are counted."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, tuple):
        return str(value)
    runs: list[tuple[Any, int]] = []
    for item in value:
        count = runs.pop()[1] if runs and runs[-1][0] == item else 0
        runs.append((item, count + 1))
    return ", ".join(_in_words(item) if count == 1 else f"{count} x {_in_words(item)}" for item, count in runs)
