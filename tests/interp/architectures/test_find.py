"""Which records a model is tried on."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from interp.architectures import (
    REFUSED,
    Candidates,
    RenameConfig,
    candidates,
    find_architecture,
    known_model_types,
    missing_parts,
)
from interp.architectures.table.llama_like import LLAMA_LAYOUT
from interp.errors import InterpError
from tests.families import FAMILIES
from tests.interp.architectures import plain


def unknown(name: str, model_type: str = "novel", **fields: object) -> Candidates:
    """The candidates for a case whose family nobody has heard of."""
    model: Any = plain.plain(name)
    config = copy.deepcopy(model.config)
    config.model_type = model_type
    for field, value in fields.items():
        setattr(config, field, value)
    return candidates(config, model)


def holds(model: nn.Module, record: Any) -> bool:
    try:
        plain.prove(model, record)
    except (AssertionError, RuntimeError):
        return False
    return True


def test_the_layout_is_the_config_s() -> None:
    for parallel in (True, False):
        config = SimpleNamespace(use_parallel_residual=parallel)
        for model_type in ("gpt_neox", "stablelm"):
            record = find_architecture(model_type, config)
            assert record is not None
            assert record.parallel is parallel
            assert (record.middle is None) is parallel
    assert find_architecture("novel", SimpleNamespace()) is None


def test_known_model_types_are_listed_in_order() -> None:
    known = known_model_types()
    assert known == sorted(set(known))
    assert {"llama", "gpt2", "mamba", "gemma3"} <= set(known)
    assert len(known) >= 60


def test_an_unknown_family_with_llama_s_modules_is_guessed() -> None:
    found = unknown("llama")
    assert not found.known
    guess = found.records[0]
    assert (guess.family, guess.model_types) == ("novel", ("novel",))
    assert guess.middle == LLAMA_LAYOUT.middle
    assert holds(plain.plain("llama"), guess)


# One of each kind of layout.
@pytest.mark.parametrize(
    "name",
    [
        "mixtral", "gemma2", "olmo2", "glm4", "granite", "doge", "minimax", "cohere", "phi", "gpt_neox",
        "gpt_neox_sequential", "falcon", "falcon_sequential", "gpt2", "gptj", "bloom", "mpt", "opt", "opt_350m",
        "biogpt", "openai-gpt", "qwen3_next", "olmo_hybrid", "jamba", "falcon_h1", "nemotron_h", "recurrent_gemma",
        "mamba", "zamba", "gemma3", "got_ocr2",
    ],
)  # fmt: skip
def test_the_first_guess_that_is_proved_is_the_family_s_layout(name: str) -> None:
    model, own = plain.plain(name), plain.record_of(name)
    proved = next(guess for guess in unknown(name).records if holds(model, guess))
    assert proved.parallel is own.parallel
    for layer in plain.layers_of(model, own):
        assert proved.of_layer(layer).middle == own.of_layer(layer).middle
        assert [(role, part.module, plain.sources(layer, part)) for role, part in proved.sublayers(layer)] == [
            (role, part.module, plain.sources(layer, part)) for role, part in own.sublayers(layer)
        ]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3_next", "mamba"])
def test_guesses_are_distinct_and_have_their_modules(name: str) -> None:
    found = unknown(name)
    assert len(found.records) == len({repr(record) for record in found.records})
    assert [missing_parts(record, plain.plain(name)) for record in found.records] == [[] for _ in found.records]
    two_stages = [record.middle is not None for record in found.records]
    assert two_stages == sorted(two_stages, reverse=True)


def test_a_guess_is_not_tried_where_a_layer_lacks_its_scale() -> None:
    scaled = [record for record in unknown("llama").records if record.mlp is not None and record.mlp.scale is not None]
    assert scaled == []
    scaled = [record for record in unknown("granite").records if record.mlp is not None and record.mlp.scale]
    assert len(scaled) == 1


def test_an_unknown_family_of_a_layout_of_its_own_is_told_what_is_missing() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Module()
            self.model.layers = nn.ModuleList([nn.Module()])
            self.model.embed_tokens = nn.Embedding(4, 2)
            self.lm_head = nn.Linear(2, 4)

    with pytest.raises(
        InterpError,
        match=r"unknown architecture 'llam': .* \(nearest: no final norm at 'model.norm', no .*\). Say where .*"
        r"RenameConfig.*python -m interp families",
    ):
        candidates(config_of("llam"), Model())


def config_of(model_type: str, **fields: object) -> Any:
    config = SimpleNamespace(model_type=model_type, **fields)
    config.get_text_config = lambda: config
    return config


class Headless(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def test_a_known_family_without_its_head_is_told_to_load_it() -> None:
    with pytest.raises(InterpError, match=r"Headless has no head at 'lm_head', .* 'llama' .*AutoModelForCausalLM"):
        candidates(config_of("llama"), Headless(plain.plain("llama").get_submodule("model")))


def test_what_is_missing_is_named_with_its_layer() -> None:
    model = copy.deepcopy(plain.plain("gemma2"))
    record = plain.record_of("gemma2")
    layer: Any = model.get_submodule("model.layers.2")
    del layer.post_feedforward_layernorm
    del layer.pre_feedforward_layernorm
    assert missing_parts(record, model) == [
        "module between attention and MLP at 'model.layers.2.pre_feedforward_layernorm'",
        "what the mlp adds at 'model.layers.2.post_feedforward_layernorm'",
    ]
    del layer.mlp
    assert missing_parts(record, model)[0] == "MLP at 'model.layers.2.mlp'"
    del layer.self_attn
    assert "attention at 'model.layers.2.self_attn'" in missing_parts(record, model)


def test_a_layer_that_lacks_both_mixers_of_a_hybrid_is_named() -> None:
    model = copy.deepcopy(plain.plain("qwen3_next"))
    layer: Any = model.get_submodule("model.layers.1")
    del layer.self_attn
    assert missing_parts(plain.record_of("qwen3_next"), model) == [
        "attention at 'model.layers.1.self_attn or linear_attn'"
    ]


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refused_family_says_why(model_type: str) -> None:
    with pytest.raises(InterpError) as refusal:
        candidates(config_of(model_type), plain.plain("llama"))
    assert str(refusal.value) == f"{model_type!r} is not supported: {REFUSED[model_type]}"
    assert REFUSED[model_type].endswith(".")


def test_an_encoder_decoder_is_refused_whatever_its_name() -> None:
    with pytest.raises(InterpError, match=r"'novel' is not supported: an encoder-decoder has two residual streams"):
        candidates(config_of("novel", is_encoder_decoder=True), plain.plain("llama"))


def test_doge_with_experts_is_refused_because_its_tokens_see_each_other() -> None:
    config = CONFIG_MAPPING["doge"](**FAMILIES["doge"].config, is_moe=True, num_experts=16, num_experts_per_tok=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    with pytest.raises(InterpError, match=r"'doge' is not supported: its experts are chosen across tokens"):
        candidates(config, model)
    ids = torch.tensor([[1, 17, 250, 33, 94]])
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits[0, 0]
        ids[0, -1] = 5
        after = model(input_ids=ids, use_cache=False).logits[0, 0]
    assert not torch.equal(before, after)


def test_a_user_s_names_open_a_refused_family() -> None:
    found = candidates(config_of("beam"), plain.plain("llama"), RenameConfig(attn_name="self_attn"))
    assert not found.known
    assert found.records[0].family == "beam"
