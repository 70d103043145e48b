"""What a model is, in TransformerLens's words."""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from interp.errors import InterpError, nearest
from interp.model.model_spec import ModelSpec

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["TransformerBridgeConfig"]

# Families that were trained without a token before the text; TransformerLens prepends none by default.
_NO_BOS = {
    "bloom", "ernie4_5", "ernie4_5_moe", "exaone4", "glm", "glm4_moe", "gpt_neox", "granite", "minimax_m2", "mpt",
    "phi", "phimoe", "qwen2", "qwen3", "qwen3_moe", "recurrent_gemma", "seed_oss", "smollm3", "starcoder2",
}  # fmt: skip
_SAID: dict[str, tuple[object, ...]] = {
    "default_padding_side": (None, "left", "right"),
    "normalization_type": (None, "LN", "LNPre", "RMS", "RMSPre"),
    "attention_dir": ("causal", "bidirectional"),
}


@dataclass(repr=False)
class TransformerBridgeConfig:
    """A model's config with TransformerLens's fields; `model.cfg` of a bridge says what the model itself says.

    By hand, the first four fields are enough. A field that there is not is refused, in the call and later: nothing
    takes it (TransformerLens keeps it unread).

    Arguments:
        d_model: width of the residual stream. d_head: of a query. n_layers, n_ctx: layers, positions.
        n_heads: query heads; -1: d_model / d_head. n_key_value_heads: None: as many.
        d_mlp: neurons; None: 4 d_model. d_vocab, d_vocab_out: width of embedding and logits; -1: unsaid.
        act_fn: of the MLP, in transformers' words. eps: of the norms, whose module calls it `eps_attr`.
        attn_scale: what scores are divided by; -1: the root of d_head. attn_scores_soft_cap, output_logits_soft_cap: c
            of c tanh(x / c); -1: none.
        use_attn_result, use_split_qkv_input, use_attn_in, use_hook_mlp_in: whether these hook points pass tensors.
        attn_types: "global" or "local" by layer, where some layer is local, with `window_size`.
        positional_embedding_type: "standard" (learned), "rotary", "alibi", ...; rotary_base of several: the full
            layers'.
        default_prepend_bos: `to_tokens` puts the BOS token first unless it is told otherwise.
        use_NTK_by_parts_rope: rotation stretched as Llama 3.1 does it, with the three factors.
        The others are named for what they are, in TransformerLens's documentation of TransformerBridgeConfig.

    Raises:
        InterpError: an unknown field, with the nearest; heads that do not fit; a word that a field does not have.
    """

    d_model: int
    d_head: int
    n_layers: int
    n_ctx: int
    n_heads: int = -1
    d_vocab: int = -1
    architecture: str | None = None
    tokenizer_prepends_bos: bool = True
    tokenizer_appends_eos: bool = False
    default_padding_side: str | None = None
    model_name: str = "custom"
    act_fn: str = "relu"
    eps: float = 1e-5
    use_attn_scale: bool = True
    attn_scale: float = -1.0
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False
    use_qk_norm: bool = False
    use_local_attn: bool = False
    ungroup_grouped_query_attention: bool = False
    original_architecture: str | None = None
    from_checkpoint: bool = False
    checkpoint_index: int | None = None
    checkpoint_label_type: str | None = None
    checkpoint_value: int | None = None
    tokenizer_name: str | None = None
    window_size: int | None = None
    attn_types: list[str] | None = None
    init_mode: str = "gpt2"
    normalization_type: str | None = "LN"
    n_devices: int = 1
    attention_dir: str = "causal"
    attn_only: bool = False
    seed: int | None = None
    initializer_range: float = -1.0
    init_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    final_rms: bool = False
    d_vocab_out: int = -1
    parallel_attn_mlp: bool = False
    rotary_dim: int | None = None
    n_params: int | None = None
    use_hook_tokens: bool = False
    gated_mlp: bool = False
    dtype: torch.dtype | None = torch.float32
    post_embedding_ln: bool = False
    rotary_base: int | float = 10000
    trust_remote_code: bool = False
    rotary_adjacent_pairs: bool = False
    load_in_4bit: bool = False
    num_experts: int | None = None
    experts_per_token: int | None = None
    n_key_value_heads: int | None = None
    relative_attention_max_distance: int | None = None
    relative_attention_num_buckets: int | None = None
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_normalization_before_and_after: bool = False
    attn_scores_soft_cap: float = -1.0
    output_logits_soft_cap: float = -1.0
    use_NTK_by_parts_rope: bool = False
    NTK_by_parts_low_freq_factor: float = 1.0
    NTK_by_parts_high_freq_factor: float = 4.0
    NTK_by_parts_factor: float = 8.0
    eps_attr: str = "eps"
    rmsnorm_uses_offset: bool = False
    attn_implementation: str | None = None
    is_audio_model: bool = False
    is_stateful: bool = False
    is_multimodal: bool = False
    vision_hidden_size: int | None = None
    vision_num_layers: int | None = None
    vision_num_heads: int | None = None
    mm_tokens_per_image: int | None = None
    # What TransformerLens takes as further keywords.
    d_mlp: int | None = None
    device: str | None = None
    use_attn_result: bool = False
    use_split_qkv_input: bool = False
    default_prepend_bos: bool = True
    positional_embedding_type: str = "standard"
    uses_rms_norm: bool = False
    layer_norm_folding: bool = False
    split_attention_weights: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    # What version 4.3 has more than the documentation.
    qk_norm_after_rope: bool = False
    rotary_interleaved_cos_sin: bool = False
    per_layer_head_dim: list[int | None] | None = None
    per_layer_num_key_value_heads: list[int | None] | None = None
    scale_embedding: bool | None = None
    is_visual_model: bool = False

    def __new__(cls, *args: Any, **fields_by_name: Any) -> Self:
        for name in fields_by_name:
            _check_field(name)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("d_model", "d_head", "n_layers", "n_ctx"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InterpError(f"{name} is a positive integer, got {value!r}")
        for name, known in _SAID.items():
            if getattr(self, name) not in known:
                raise InterpError(
                    f"{name} is one of {', '.join(repr(each) for each in known)}; got {getattr(self, name)!r}"
                )
        if self.n_heads == -1:
            if self.d_model % self.d_head:
                raise InterpError(
                    f"d_model {self.d_model} is no multiple of d_head {self.d_head}: n_heads must be given"
                )
            self.n_heads = self.d_model // self.d_head
        if self.n_key_value_heads is not None and self.n_heads % self.n_key_value_heads:
            raise InterpError(f"n_heads {self.n_heads} is no multiple of n_key_value_heads {self.n_key_value_heads}")
        for name in ("attn_types", "per_layer_head_dim", "per_layer_num_key_value_heads"):
            by_layer = getattr(self, name)
            if by_layer is not None and len(by_layer) != self.n_layers:
                raise InterpError(f"{name} has {len(by_layer)} entries for {self.n_layers} layers")
        if self.d_mlp is None:
            self.d_mlp = 4 * self.d_model
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.dtype is None:
            self.dtype = torch.float32
        if self.initializer_range < 0:
            self.initializer_range = 0.8 / self.d_model**0.5 if self.init_mode == "gpt2" else 1.0
        if isinstance(self.rotary_base, float) and self.rotary_base.is_integer():
            self.rotary_base = int(self.rotary_base)

    def __setattr__(self, name: str, value: Any) -> None:
        _check_field(name)
        object.__setattr__(self, name, value)

    @property
    def head_dim(self) -> int:
        """`d_head`, as transformers calls it."""
        return self.d_head

    @head_dim.setter
    def head_dim(self, value: int) -> None:
        self.d_head = value

    @classmethod
    def from_model(cls, model: StandardizedTransformer, **known: Any) -> Self:
        """What one of our models says of itself.

        Arguments:
            model: the model.
            known: fields that the caller knows better.

        Raises:
            InterpError: an unknown field among these.
        """
        module: nn.Module = model._module
        config: Any = module.config
        said: dict[str, Any] = {
            **_from_spec(model.spec),
            **_from_tokenizer(model.tokenizer),
            "model_name": getattr(config, "_name_or_path", "") or "custom",
            "eps_attr": _eps_name(module),
            "attn_implementation": getattr(config, "_attn_implementation", None),
            "load_in_4bit": bool(getattr(getattr(config, "quantization_config", None), "load_in_4bit", False)),
        }
        devices = {parameter.device for parameter in module.parameters()} or {torch.device("cpu")}
        said |= {"device": str(min(devices, key=str)), "n_devices": len(devices)}
        rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
        if rope.get("rope_type") == "llama3":
            said["use_NTK_by_parts_rope"] = True
            for part in ("low_freq_factor", "high_freq_factor", "factor"):
                said[f"NTK_by_parts_{part}"] = float(rope[part])
        return cls(**{**said, **known})

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """The config whose fields these are.

        Raises:
            InterpError: an unknown field, with the nearest.
        """
        return cls(**config_dict)

    @classmethod
    def unwrap(cls, config: Mapping[str, Any] | TransformerBridgeConfig) -> TransformerBridgeConfig:
        """A config as it is, or made of a dictionary."""
        return config if isinstance(config, TransformerBridgeConfig) else cls.from_dict(config)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}:\n{pprint.pformat(self.to_dict())}"


_FIELDS = tuple(field.name for field in fields(TransformerBridgeConfig))


def _check_field(name: str) -> None:
    if name not in _FIELDS and name != "head_dim":
        raise InterpError(f"TransformerBridgeConfig has no field {name!r}.{nearest(name, _FIELDS)}")


def _from_spec(spec: ModelSpec) -> dict[str, Any]:
    """Our names and words into theirs. What the spec leaves open keeps TransformerLens's default."""
    said: dict[str, Any] = {
        "d_model": spec.hidden_size,
        "d_head": spec.head_dim,
        "n_layers": spec.num_layers,
        "n_ctx": spec.max_positions or 2048,  # a model without a limit (ALiBi): TransformerLens's number
        "n_heads": spec.num_heads,
        "d_vocab": spec.vocab_size,
        "d_vocab_out": spec.vocab_size,
        "d_mlp": spec.mlp_size,
        "architecture": spec.architecture,
        "original_architecture": spec.architecture,
        "act_fn": spec.activation,
        "eps": spec.norm_eps,
        "attn_scale": None if spec.attention_scale is None else 1 / spec.attention_scale,
        "use_attn_scale": None if spec.attention_scale is None else spec.attention_scale != 1,
        "use_qk_norm": spec.qk_norm,
        "qk_norm_after_rope": spec.qk_norm_after_rotary,
        "use_local_attn": spec.uses_local_attention,
        "window_size": spec.sliding_window if spec.uses_local_attention else None,
        "normalization_type": None if spec.normalization is None else "RMS" if spec.uses_rms_norm else "LN",
        "uses_rms_norm": spec.uses_rms_norm,
        "final_rms": spec.uses_rms_norm,
        "rmsnorm_uses_offset": spec.norm_weight_offset,
        "use_normalization_before_and_after": spec.normalizes_before_and_after,
        "post_embedding_ln": spec.embedding_norm,
        "attn_only": spec.attention_only,
        "initializer_range": spec.initializer_range,
        "scale_attn_by_inverse_layer_idx": spec.attention_scale_by_inverse_layer,
        "parallel_attn_mlp": spec.parallel_residual,
        "positional_embedding_type": {"absolute": "standard"}.get(
            spec.positional_embedding or "", spec.positional_embedding
        ),
        "rotary_base": spec.rotary_base,
        "rotary_dim": spec.rotary_dim,
        "rotary_adjacent_pairs": spec.rotary_adjacent_pairs,
        "n_params": spec.num_parameters,
        "gated_mlp": spec.gated_mlp,
        "dtype": spec.dtype,
        "num_experts": spec.num_experts,
        "experts_per_token": spec.experts_per_token,
        "n_key_value_heads": None if spec.num_kv_heads == spec.num_heads else spec.num_kv_heads,
        "per_layer_head_dim": _listed(spec.head_dim_by_layer),
        "per_layer_num_key_value_heads": _listed(spec.num_kv_heads_by_layer),
        "tie_word_embeddings": spec.tied_embeddings,
        "attn_scores_soft_cap": spec.attention_softcap,
        "output_logits_soft_cap": spec.final_softcap,
        "is_stateful": spec.is_stateful,
        "is_multimodal": spec.is_multimodal,
        "vision_hidden_size": spec.vision_hidden_size,
        "vision_num_layers": spec.vision_num_layers,
        "vision_num_heads": spec.vision_num_heads,
        "mm_tokens_per_image": spec.tokens_per_image,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": spec.eos_token_id[0] if isinstance(spec.eos_token_id, tuple) else spec.eos_token_id,
        "pad_token_id": spec.pad_token_id,
        "default_prepend_bos": spec.model_type not in _NO_BOS,
    }
    if spec.uses_local_attention and spec.attention_types is not None:
        said["attn_types"] = ["global" if kind in (None, "full") else "local" for kind in spec.attention_types]
    return {name: value for name, value in said.items() if value is not None}


def _from_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer does to a text, seen on one."""
    ids = list(tokenizer("a")["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return {
        "tokenizer_name": getattr(tokenizer, "name_or_path", "") or None,
        "tokenizer_prepends_bos": bos is not None and ids[:1] == [bos],
        "tokenizer_appends_eos": eos is not None and len(ids) > 1 and ids[-1] == eos,
        "default_padding_side": tokenizer.padding_side,
    }


def _eps_name(module: nn.Module) -> str:
    """What the model's norms call what they add to the variance."""
    for part in module.modules():
        if type(part).__name__.endswith(("Norm", "LayerNorm")):
            for name in ("eps", "variance_epsilon", "epsilon"):
                if hasattr(part, name):
                    return name
    return "eps"


def _listed(by_layer: tuple[int | None, ...] | None) -> list[int | None] | None:
    return None if by_layer is None else list(by_layer)
