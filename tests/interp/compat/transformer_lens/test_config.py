"""`TransformerBridgeConfig`: by hand as TransformerLens's, and of a model what the model says."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from interp import InterpError, StandardizedTransformer
from interp.compat.transformer_lens import TransformerBridgeConfig
from tests.interp.compat.transformer_lens.ours import done
from tests.interp.compat.transformer_lens.recorded_models import FAMILIES, made, recorded, scenario, words

# What TransformerLens has wrong of these models: its value, and the config's.
WRONG: dict[str, dict[str, tuple[object, object]]] = {
    "gemma2": {
        "use_local_attn": (False, True),
        "window_size": (None, 3),
        "use_normalization_before_and_after": (False, True),
    },
    "olmo2": {"use_qk_norm": (False, True)},
    "qwen3": {"use_qk_norm": (False, True)},
    "mixtral": {"rotary_base": (10000, 1000000), "final_rms": (False, True)},
    "falcon": {"act_fn": ("relu", "gelu"), "d_mlp": (64, 24)},
    "bloom": {"act_fn": ("relu", "gelu_pytorch_tanh"), "post_embedding_ln": (False, True)},
}
# What TransformerLens leaves at "unsaid", and where it loads a model otherwise.
OPEN = {
    "attn_scale", "attn_types", "n_params", "original_architecture", "rotary_dim", "model_name", "attn_implementation",
    "default_padding_side", "split_attention_weights",
}  # fmt: skip


def test_by_hand_it_has_the_fields_and_values_of_transformer_lens() -> None:
    ours = done("config")
    for name, (told, *more) in scenario("config").items():
        fields, *rest = ours[name]
        assert rest == more
        assert {field: fields[field] for field in told} == told
        assert {"ungroup_grouped_query_attention": False, "eps_attr": "eps"}.items() <= fields.items()


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_model_it_says_what_the_model_says(family: str) -> None:
    model = StandardizedTransformer(made(family), tokenizer=words(), verify=False)
    cfg = TransformerBridgeConfig.from_model(model, model_name="tiny")
    told, ours = recorded(family)[1]["cfg"], cfg.to_dict() | {"dtype": str(cfg.dtype)}
    shared = (told.keys() & ours.keys()) - OPEN
    assert len(shared) > 75
    assert {name: (told[name], ours[name]) for name in shared if told[name] != ours[name]} == WRONG.get(family, {})
    module = model._module
    assert cfg.n_params == sum(parameter.numel() for parameter in module.parameters())
    assert cfg.eps_attr in ("eps", "variance_epsilon") and cfg.model_name == "tiny"
    if family == "gemma2":
        assert cfg.attn_types == ["local", "global"] and cfg.attn_scale == pytest.approx(3.0)  # root of 9
    if family == "gpt_neox":
        assert cfg.rotary_dim == 2


def test_wrong_fields_are_eleven() -> None:
    assert sum(map(len, WRONG.values())) == 11


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (dict(d_modle=3), "'d_model'"),
        (dict(use_atn_result=True), "'use_attn_result'"),
        (dict(d_head=0), "d_head is a positive integer"),
        (dict(d_head=7), "n_heads must be given"),
        (dict(n_heads=4, n_key_value_heads=3), "no multiple"),
        (dict(attn_types=["local"]), "1 entries for 2 layers"),
        (dict(normalization_type="LayerNorm"), "'LNPre'"),
        (dict(default_padding_side="middle"), "'left'"),
    ],
)
def test_fields_that_no_model_has_are_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(InterpError) as error:
        TransformerBridgeConfig(**{**dict(d_model=64, d_head=16, n_layers=2, n_ctx=8), **fields})  # type: ignore[arg-type]
    assert told in str(error.value)


def test_it_is_copied_and_set_by_its_fields_only() -> None:
    cfg = TransformerBridgeConfig(64, 16, 2, 8, dtype=torch.bfloat16)
    assert copy.deepcopy(cfg) == pickle.loads(pickle.dumps(cfg)) == TransformerBridgeConfig.unwrap(cfg.to_dict()) == cfg
    cfg.use_attn_result = True
    cfg.head_dim = 8
    assert (cfg.d_head, cfg.n_heads, cfg.use_attn_result) == (8, 4, True)
    with pytest.raises(InterpError, match="'use_attn_in'"):
        cfg.use_atn_in = True
