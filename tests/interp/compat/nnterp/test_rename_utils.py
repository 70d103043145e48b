"""Names, sizes and what a model lacks, of families with very different ones; the check of shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from interp import architectures
from interp.compat.nnterp import ModuleAccessor, StandardizedTransformer, get_rename_dict
from interp.compat.nnterp.rename_utils import (
    RenameConfig,
    RenamingError,
    check_io,
    check_model_renaming,
    default_attn_head_config_keys,
    default_hidden_size_config_keys,
    default_vocab_size_config_keys,
    expand_path_with_model,
    get_hidden_size,
    get_ignores,
    get_num_attention_heads,
    get_vocab_size,
    mlp_returns_tuple,
    text_config,
)
from interp.compat.nnterp.utils import dummy_inputs
from interp.errors import InterpError
from tests.families.cases import build as build_family
from tests.interp.compat.nnterp.models import standardized
from tests.interp.reference import build
from tests.tiny import tiny_tokenizer


def test_the_table_of_names() -> None:
    names = get_rename_dict()
    expected = {
        "transformer": "model", "gpt_neox": "model", "decoder": "model", "language_model": "model",
        "h": "layers", "blocks": "layers", "model.layers": "layers", "model.decoder.layers": "layers",
        "attn": "self_attn", "self_attention": "self_attn", "attention": "self_attn", "norm_attn_norm": "self_attn",
        "block_sparse_moe": "mlp", "ffn": "mlp",
        "final_layer_norm": "ln_final", "ln_f": "ln_final", "norm_f": "ln_final", "norm": "ln_final",
        "embedding_norm": "ln_final", "model.ln_final": "ln_final", "model.gpt_neox.ln_final": "ln_final",
        "final_layernorm": "ln_final",
        "embed_out": "lm_head",
        "wte": "embed_tokens", "embed_in": "embed_tokens", "word_embeddings": "embed_tokens",
        "model.embed_tokens": "embed_tokens", "model.transformer.embed_tokens": "embed_tokens",
    }  # fmt: skip
    assert {name: names[name] for name in expected} == expected
    assert expand_path_with_model(["h", "model.x"]) == [
        "h", "model.x", "model.transformer.x", "model.gpt_neox.x", "model.decoder.x", "model.language_model.x",
    ]  # fmt: skip


def test_the_users_names_win_over_the_defaults() -> None:
    config = RenameConfig(mlp_name=["attn", "mine"], embed_tokens_name="wpe", model_name="backbone")
    names = get_rename_dict(config)
    assert names["attn"] == "mlp" and names["mine"] == "mlp"
    assert names["wpe"] == "embed_tokens" and names["wte"] == "embed_tokens"
    assert names["backbone"] == "model"


def test_rename_config_takes_nnterps_positions() -> None:
    config = RenameConfig("a", "b", "c", "d", "e", ".f.g", len, True, False, "h", ["i"], 7)
    assert config.to_interp() == architectures.RenameConfig(
        attn_name="a",
        mlp_name="b",
        ln_final_name="c",
        lm_head_name="d",
        model_name="e",
        layers_name="f.g",
        attn_prob_source=len,
        ignore_mlp=True,
        ignore_attn=False,
        attn_head_config_key="h",
        hidden_size_config_key=["i"],
        vocab_size_config_key=7,
    )


@pytest.mark.parametrize(
    ("family", "heads", "hidden", "vocabulary"), [("gpt2", 4, 32, 400), ("mpt", 4, 32, 400), ("llama", 4, 32, 400)]
)
def test_sizes(family: str, heads: int, hidden: int, vocabulary: int) -> None:
    model = build_family(family)
    config: Any = model.config
    assert get_num_attention_heads(model) == heads
    assert get_hidden_size(model) == hidden
    assert get_vocab_size(model) == vocabulary == config.vocab_size
    assert text_config(model) is config


def test_the_text_config_of_a_model_with_several() -> None:
    model: Any = build("gemma3")
    assert text_config(model) is model.config.text_config
    assert get_hidden_size(model) == model.config.text_config.hidden_size


def test_the_users_key_is_tried_first() -> None:
    model = build("gpt2")
    assert get_num_attention_heads(model, rename_config=RenameConfig(attn_head_config_key="n_layer")) == 4
    assert get_hidden_size(model, rename_config=RenameConfig(hidden_size_config_key=["nothing", "n_positions"])) == 256
    assert get_vocab_size(model, rename_config=RenameConfig(vocab_size_config_key=17)) == 17
    assert get_vocab_size(model, rename_config=RenameConfig(vocab_size_config_key="nothing")) == 400
    wrong = RenameConfig(hidden_size_config_key=1.5)  # type: ignore[arg-type]
    with pytest.raises(InterpError, match="hidden_size_config_key"):
        get_hidden_size(model, rename_config=wrong)


def test_a_size_that_is_not_there() -> None:
    class Config:
        def get_text_config(self) -> Config:
            return self

    class Model:
        config = Config()

    assert get_hidden_size(Model(), raise_error=False) is None
    assert get_num_attention_heads(Model(), raise_error=False) is None
    with pytest.raises(InterpError, match="none of vocab_size, n_vocab"):
        get_vocab_size(Model())
    assert default_attn_head_config_keys() == ["n_heads", "num_attention_heads", "n_head", "num_heads"]
    assert default_hidden_size_config_keys() == ["hidden_size", "d_model", "n_embd"]
    assert default_vocab_size_config_keys() == ["vocab_size", "n_vocab"]


@pytest.mark.parametrize(("family", "ignores"), [("llama", []), ("opt", ["mlp"])])
def test_what_a_model_has_no_module_for(family: str, ignores: list[str]) -> None:
    assert get_ignores(build_family(family)) == ignores
    assert get_ignores(build_family("llama"), RenameConfig(ignore_attn=True)) == ["attention"]


@pytest.mark.parametrize(
    ("family", "returned"), [("llama", False), ("gpt_oss", True), ("mixtral", False), ("opt", False)]
)
def test_whether_the_mlp_returns_a_tuple(family: str, returned: bool) -> None:
    model = build_family(family)
    assert mlp_returns_tuple(model) is returned
    assert mlp_returns_tuple(model, RenameConfig(mlp_returns_tuple=not returned)) is not returned


@pytest.mark.parametrize(
    ("family", "paths"),
    [
        ("llama", ("model.layers", "model.embed_tokens", "model.norm", "lm_head", "self_attn", "mlp")),
        ("gpt2", ("transformer.h", "transformer.wte", "transformer.ln_f", "lm_head", "attn", "mlp")),
        (
            "gpt_neox",
            ("gpt_neox.layers", "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out", "attention", "mlp"),
        ),
        ("phi", ("model.layers", "model.embed_tokens", "model.final_layernorm", "lm_head", "self_attn", "mlp")),
    ],
)
def test_module_accessor(family: str, paths: tuple[str, ...]) -> None:
    model = build_family(family)
    accessor = ModuleAccessor(model)
    layers, embedding, norm, head, attention, mlp = paths
    if family == "gpt_neox" and not hasattr(model, "embed_out"):
        head = "lm_head"
    at = model.get_submodule
    assert accessor.get_layers() is accessor.layers is at(layers)
    assert accessor.get_embed_tokens() is accessor.embed_tokens is at(embedding)
    assert accessor.get_unembed_norm() is accessor.ln_final is at(norm)
    assert accessor.get_unembed() is accessor.lm_head is at(head)
    assert accessor.get_attention(1) is at(f"{layers}.1.{attention}")
    assert accessor.get_mlp(1) is at(f"{layers}.1.{mlp}")
    assert accessor.nn_model.layers[1].self_attn._module is accessor.get_attention(1)


def test_module_accessor_with_the_users_names() -> None:
    model = build("gpt2")
    accessor = ModuleAccessor(model, RenameConfig(ln_final_name="ln_f"), rename={"transformer.drop": "dropout"})
    assert accessor.dropout is model.get_submodule("transformer.drop")
    with pytest.raises(AttributeError, match="Attribute config is not a module"):
        accessor.config  # noqa: B018
    with pytest.raises(RenamingError, match="no such module"):
        ModuleAccessor(model, RenameConfig(ln_final_name="nothing"))
    with pytest.raises(RenamingError, match="its mlp"):
        ModuleAccessor(build_family("opt")).get_mlp(0)


def test_a_model_that_no_record_fits() -> None:
    class Config:
        model_type = "nothing"

        def get_text_config(self) -> Config:
            return self

    class Unknown(nn.Module):
        config = Config()

    with pytest.raises(RenamingError, match="unknown architecture"):
        ModuleAccessor(Unknown())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "gpt_oss", "mixtral", "jamba"])
def test_every_kind_of_family_passes(family: str) -> None:
    model = StandardizedTransformer(build_family(family), tokenizer=tiny_tokenizer())
    check_model_renaming(model, family, ["mlp"] if family == "opt" else [], allow_dispatch=True)


class Changed:
    """A model of which one member gives something else."""

    def __init__(self, model: StandardizedTransformer, name: str, value: Any) -> None:
        self._changed = {"model": model, name: value}

    def __getattr__(self, name: str) -> Any:
        changed = self.__dict__["_changed"]
        return changed[name] if name in changed else getattr(changed["model"], name)


@pytest.mark.parametrize(
    "name", ["layers_input", "attentions_input", "attentions_output", "mlps_input", "mlps_output", "layers_output"]
)
@pytest.mark.parametrize("layer", [0, 3])
@torch.no_grad()
def test_a_wrong_shape_in_any_layer_is_found(name: str, layer: int) -> None:
    model = standardized("llama")
    wrong = Changed(model, name, {i: torch.zeros(1, 3, 32 if i != layer else 31) for i in range(4)})
    message = rf"tiny: expected {name}\[{layer}\] to be \(1, 3, 32\), got \(1, 3, 31\)"
    with pytest.raises(RenamingError, match=message), model.trace(dummy_inputs()):
        check_io(wrong, "tiny", [])


@torch.no_grad()
def test_what_is_no_tensor_is_found() -> None:
    model = standardized("llama")
    wrong = Changed(model, "layers_output", {i: (torch.zeros(1, 3, 32),) for i in range(4)})
    with pytest.raises(RenamingError, match="got tuple"), model.trace(dummy_inputs()):
        check_io(wrong, "tiny", [])


@torch.no_grad()
def test_another_vocabulary_is_found() -> None:
    model = standardized("llama")
    message = r"lm_head.output to be \(1, 3, 7\), got \(1, 3, 400\)"
    with pytest.raises(RenamingError, match=message), model.trace(dummy_inputs()):
        check_io(Changed(model, "vocab_size", 7), "tiny", [])
