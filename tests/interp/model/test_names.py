"""Standard names of modules, accessors by index, and models that the table does not know."""

from __future__ import annotations

from typing import Any

import nnsight
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from interp import StandardizedTransformer
from interp.architectures import RenameConfig
from interp.errors import InterpError
from tests.families import build
from tests.interp.reference import IDS, plain, wrapped
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("llama", "model.layers model.embed_tokens model.norm lm_head self_attn mlp"),
        ("gpt2", "transformer.h transformer.wte transformer.ln_f lm_head attn mlp"),
        ("gpt_neox", "gpt_neox.layers gpt_neox.embed_in gpt_neox.final_layer_norm lm_head attention mlp"),
        ("bloom", "transformer.h transformer.word_embeddings transformer.ln_f lm_head self_attention mlp"),
        ("mpt", "transformer.blocks transformer.wte transformer.norm_f lm_head attn ffn"),
        ("granitemoe", "model.layers model.embed_tokens model.norm lm_head self_attn block_sparse_moe"),
        ("biogpt", "biogpt.layers biogpt.embed_tokens biogpt.layer_norm output_projection self_attn"),
    ],
)
def test_standard_names_are_the_family_s_own_modules(name: str, paths: str) -> None:
    module = build(name)
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    layers, embedding, norm, head, attention, *mlp = paths.split()
    assert model.layers._module is module.get_submodule(layers)
    assert model.embed_tokens._module is module.get_submodule(embedding)
    assert model.ln_final._module is module.get_submodule(norm)
    assert model.lm_head._module is module.get_submodule(head)
    layer = module.get_submodule(layers)[1]  # type: ignore[index]
    assert model.layers[1]._module is layer
    assert model.layers[1].self_attn._module is layer.get_submodule(attention)
    assert model.attentions[1]._module is layer.get_submodule(attention)
    assert len(list(model.attentions)) == len(model.layers) == model.num_layers
    if not mlp:
        assert not hasattr(model.layers[1], "mlp")
    else:
        assert (
            model.layers[1].mlp._module is model.mlps[-1 - model.num_layers + 2]._module is layer.get_submodule(mlp[0])
        )


def test_hybrid_layers_have_attention_or_a_mixer() -> None:
    model = StandardizedTransformer(build("jamba"), tokenizer=tiny_tokenizer(), verify=False)
    with_attention = [layer for layer in range(model.num_layers) if model.has(f"attn_out.{layer}")]
    with_mixer = [layer for layer in range(model.num_layers) if model.has(f"mixer_out.{layer}")]
    assert with_attention
    assert with_mixer
    assert sorted(with_attention + with_mixer) == list(range(model.num_layers))
    where = ", ".join(map(str, with_attention))
    message = (
        rf"'attn_out.{with_mixer[0]}' does not exist .* has no attention; it has mixer \(JambaMambaMixer\) and mlp"
    )
    with pytest.raises(InterpError, match=rf"{message}.*Layers with one: {where}. Use mixer_in and mixer_out"):  # noqa: SIM117
        with model.trace(input_ids=IDS, use_cache=False):
            model.read(f"attn_out.{with_mixer[0]}")
    with pytest.raises(InterpError, match="has no attention"):
        model.attentions[with_mixer[0]]


@torch.no_grad()
def test_what_is_fed() -> None:
    model, tokenizer = wrapped("llama"), tiny_tokenizer()
    prompts = ["hello", "The quick brown fox"]
    with model.trace(prompts):
        ids = model.input_ids.clone().save()
        mask = model.attention_mask.clone().save()
        size = nnsight.save(model.input_size)
        embedded = model.token_embeddings.clone().save()
        model.token_embeddings = embedded * 2
        entered = model.layers_input[0].clone().save()
    encoded = tokenizer(prompts, padding=True, return_tensors="pt")
    assert torch.equal(ids, encoded.input_ids)
    assert torch.equal(mask, encoded.attention_mask)
    assert tuple(size) == tuple(encoded.input_ids.shape)
    weight = plain("llama").get_submodule("model.embed_tokens").weight
    assert torch.equal(embedded, nn.functional.embedding(encoded.input_ids, weight))  # type: ignore[arg-type]
    assert torch.equal(entered, embedded * 2)
    with pytest.raises(InterpError, match=r"input_ids: the model is fed .*inputs_embeds"):  # noqa: SIM117
        with model.trace(inputs_embeds=torch.zeros(1, 3, 32)):
            _ = model.input_ids


def test_a_module_cannot_be_set() -> None:
    with pytest.raises(InterpError, match=r"attentions\[1\] is a module. Set what it returns: attentions_output\[1\]"):
        wrapped("llama").attentions[1] = torch.zeros(1)


# Models that the table does not know ----------------------------------------------------------------------------------


class StrangeBlock(nn.Module):
    """A Llama layer under other names, with a norm behind attention."""

    def __init__(self, layer: Any, size: int) -> None:
        super().__init__()
        self.token_mixing, self.feed = layer.self_attn, layer.mlp
        self.first, self.second = layer.input_layernorm, layer.post_attention_layernorm
        self.behind = nn.LayerNorm(size)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        mixed, _ = self.token_mixing(hidden_states=self.first(hidden_states), **kwargs)
        hidden_states = hidden_states + self.behind(mixed)
        return hidden_states + self.feed(self.second(hidden_states))


class StrangeConfig(LlamaConfig):
    model_type = "strange"


def strange() -> nn.Module:
    torch.manual_seed(0)
    values = dict(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    module = LlamaForCausalLM(StrangeConfig(**values))
    module.model.layers = nn.ModuleList([StrangeBlock(layer, 32) for layer in module.model.layers])
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.15)
    return module.eval()


NAMES = RenameConfig(
    attn_name="token_mixing", mlp_name=["absent", "feed"], middle_name="second", attn_added_name="behind",
    ln_final_name="norm", layers_name="model.layers",
)  # fmt: skip


@torch.no_grad()
def test_a_rename_config_gives_a_strange_model_the_names() -> None:
    module = strange()
    expected = module(input_ids=IDS).logits
    seen: dict[str, Tensor] = {}
    block: Any = module.get_submodule("model.layers.1")
    hooks = [
        block.behind.register_forward_hook(lambda m, i, o: seen.__setitem__("attn_out", o.clone())),
        block.second.register_forward_pre_hook(lambda m, i: seen.__setitem__("resid_mid", i[0].clone())),
    ]
    module(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), rename_config=NAMES)
    with model.trace(input_ids=IDS):
        added = model.read("attn_out.1").clone().save()
        middle = model.read("resid_mid.1").clone().save()
        logits = model.logits.clone().save()
    assert torch.equal(added, seen["attn_out"])
    assert torch.equal(middle, seen["resid_mid"])
    assert torch.equal(logits, expected)
    assert model.layers[0].self_attn._module is model._module.get_submodule("model.layers.0.token_mixing")


def test_what_is_missing_or_wrong_is_named() -> None:
    with pytest.raises(InterpError, match=r"unknown architecture 'strange'.*RenameConfig"):
        StandardizedTransformer(strange(), tokenizer=tiny_tokenizer())
    wrong = RenameConfig(attn_name="token_mixing", mlp_name="feed", middle_name="second")
    with pytest.raises(
        InterpError, match=r"does not compute as they do. The nearest: .*does not hold at layer \d.*attn_added_name="
    ):
        StandardizedTransformer(strange(), tokenizer=tiny_tokenizer(), rename_config=wrong)
    with pytest.raises(InterpError, match=r"mlp_name='nowhere'.*no such module"):
        StandardizedTransformer(strange(), tokenizer=tiny_tokenizer(), rename_config=RenameConfig(mlp_name="nowhere"))


def test_the_user_s_names_win_over_the_table() -> None:
    """The table's record of Llama is right; the user insists on another norm, and the proof says what that breaks."""
    given = RenameConfig(ln_final_name="model.layers.0.input_layernorm")
    with pytest.raises(
        InterpError, match=r"readout\(resid_post\) == logits does not hold.*ln_final_name= and lm_head_name="
    ):
        StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), rename_config=given)
    model = StandardizedTransformer(
        tiny_model("llama"),
        tokenizer=tiny_tokenizer(),
        rename_config=given,
        verify=False,
        rename={"model.norm": "last"},
    )
    assert model.ln_final._module is model._module.get_submodule("model.layers.0.input_layernorm")
    assert model.last._module is model._module.get_submodule("model.norm")


def test_sizes_that_the_user_names() -> None:
    given = RenameConfig(
        attn_head_config_key="num_key_value_heads",
        vocab_size_config_key=123,
        hidden_size_config_key=["x", "hidden_size"],
    )
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), rename_config=given, verify=False)
    assert (model.num_heads, model.vocab_size, model.hidden_size) == (2, 123, 32)
    with pytest.raises(InterpError, match="attn_head_config_key='nope'"):
        StandardizedTransformer(
            tiny_model("llama"), tokenizer=tiny_tokenizer(), rename_config=RenameConfig(attn_head_config_key="nope")
        )


def test_a_module_cannot_take_the_name_of_something_else() -> None:
    for name in ("num_layers", "spec", "tail"):
        with pytest.raises(InterpError, match=rf"'transformer.wte' cannot be called '{name}'"):
            StandardizedTransformer(tiny_model("gpt2"), tokenizer=tiny_tokenizer(), rename={"transformer.wte": name})
