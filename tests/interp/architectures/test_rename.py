"""A user's names, put over those of a record."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from interp.architectures import RenameConfig, Sublayer, candidates, config_value
from interp.architectures.rename import renamed
from interp.architectures.table.llama_like import LLAMA_LAYOUT
from interp.errors import InterpError
from tests.interp.architectures import plain


def tree(**children: Any) -> nn.Module:
    """A module of modules: `None` is a leaf."""
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, nn.Identity() if child is None else child)
    return module


def layer(**children: Any) -> nn.Module:
    return tree(**children)


def model(*layers: nn.Module) -> nn.Module:
    body = tree(blocks=nn.ModuleList(layers), words=None, last_norm=None)
    return tree(body=body, project=None, tail=tree(norm=None))


MODEL = model(layer(mixing=tree(out=None), scaled=None, feed=tree(gate=None, out=None), between=None))


def test_no_names_leave_the_record_as_it_is() -> None:
    assert renamed(LLAMA_LAYOUT, MODEL, None) is LLAMA_LAYOUT
    assert renamed(LLAMA_LAYOUT, plain.plain("llama"), RenameConfig()) == LLAMA_LAYOUT


def test_paths_and_ends_of_paths_name_modules() -> None:
    record = renamed(
        LLAMA_LAYOUT,
        MODEL,
        RenameConfig(
            layers_name="blocks", embed_tokens_name="body.words", ln_final_name="last_norm", lm_head_name="project",
            attn_name="mixing", attn_added_name="scaled", attn_projection_name="mixing.out", mlp_name="feed",
            mlp_projection_name="feed.out", middle_name="between",
        ),
    )  # fmt: skip
    assert (record.layers, record.embedding) == ("body.blocks", "body.words")
    assert (record.final_norm, record.head) == ("body.last_norm", "project")
    assert record.attention == Sublayer("mixing", added=("scaled",), projection="mixing.out")
    assert record.mlp == Sublayer("feed", projection="feed.out")
    assert record.middle == "between"
    assert (record.family, record.softcap) == (LLAMA_LAYOUT.family, LLAMA_LAYOUT.softcap)


def test_the_shortest_path_wins_and_equals_are_refused() -> None:
    assert renamed(LLAMA_LAYOUT, MODEL, RenameConfig(ln_final_name="norm")).final_norm == "tail.norm"
    with pytest.raises(
        InterpError, match=r"mlp_projection_name='out' fits 'mixing.out' and 'feed.out'. Write the path."
    ):
        renamed(LLAMA_LAYOUT, MODEL, RenameConfig(layers_name="blocks", mlp_projection_name="out"))


def test_of_several_names_the_first_that_the_model_has_counts() -> None:
    record = renamed(LLAMA_LAYOUT, MODEL, RenameConfig(lm_head_name=["lm_head", "project", "words"]))
    assert record.head == "project"


def test_a_name_that_the_model_lacks_is_an_error_that_shows_what_it_has() -> None:
    with pytest.raises(
        InterpError, match=r"layers_name='layer': Module has no such module. It has body, body.blocks, body.words"
    ):
        renamed(LLAMA_LAYOUT, MODEL, RenameConfig(layers_name="layer"))
    with pytest.raises(InterpError, match=r"attn_name='attention': Module has no such module. It has mixing, "):
        renamed(LLAMA_LAYOUT, MODEL, RenameConfig(layers_name="blocks", attn_name="attention"))


def test_the_module_that_holds_the_layers_moves_what_it_holds() -> None:
    inner = tree(layers=nn.ModuleList([layer(self_attn=None, mlp=None)]), embed_tokens=None, norm=None)
    outer = tree(engine=tree(text=inner), vision=tree(norm=None, layers=None), lm_head=None)
    record = renamed(LLAMA_LAYOUT, outer, RenameConfig(model_name="engine.text"))
    assert record.layers == "engine.text.layers"
    assert record.embedding == "engine.text.embed_tokens"
    assert record.final_norm == "engine.text.norm"
    assert record.head == "lm_head"
    named = renamed(LLAMA_LAYOUT, outer, RenameConfig(model_name="text", ln_final_name="vision.norm"))
    assert (named.layers, named.final_norm) == ("engine.text.layers", "vision.norm")


def test_another_module_forgets_what_the_record_says_of_its_own() -> None:
    gemma = plain.record_of("gemma2")
    module = plain.plain("gemma2")
    assert renamed(gemma, module, RenameConfig(mlp_name="mlp")) == gemma
    other = renamed(gemma, module, RenameConfig(mlp_name="mlp.down_proj")).mlp
    assert other == Sublayer("mlp.down_proj", projection="mlp.down_proj.down_proj")
    added = renamed(gemma, module, RenameConfig(mlp_added_name="mlp")).mlp
    assert added == Sublayer("mlp", added=("mlp",), projection="mlp.down_proj")


def test_parallel_and_ignored_sublayers_leave_one_stage() -> None:
    module = plain.plain("llama")
    parallel = renamed(LLAMA_LAYOUT, module, RenameConfig(parallel=True))
    assert (parallel.parallel, parallel.middle) == (True, None)
    # What the layers have stays, unchecked; what no layer has is none.
    for ignored in (RenameConfig(ignore_mlp=True), RenameConfig(ignore_attn=True)):
        assert renamed(LLAMA_LAYOUT, module, ignored) == LLAMA_LAYOUT
    for kept, gone, ignored in (
        ("attention", "mlp", RenameConfig(ignore_mlp=True)),
        ("mlp", "attention", RenameConfig(ignore_attn=True)),
    ):
        only = tree(self_attn=tree(o_proj=None)) if kept == "attention" else tree(mlp=tree(down_proj=None))
        module = tree(model=tree(layers=nn.ModuleList([only])))
        without = renamed(LLAMA_LAYOUT, module, ignored)
        assert (getattr(without, gone), without.middle, getattr(without, kept)) == (
            None, None, getattr(LLAMA_LAYOUT, kept),
        )  # fmt: skip


def test_parallel_layers_become_sequential_only_with_their_middle() -> None:
    cohere, module = plain.record_of("cohere"), plain.plain("cohere")
    with pytest.raises(InterpError, match=r"parallel=False needs middle_name="):
        renamed(cohere, module, RenameConfig(parallel=False))
    record = renamed(cohere, module, RenameConfig(parallel=False, middle_name="mlp"))
    assert (record.parallel, record.middle) == (False, "mlp")


def test_a_name_that_only_some_layers_have_is_found() -> None:
    record = plain.record_of("qwen3_next")
    assert record.attention is not None
    named = renamed(record, plain.plain("qwen3_next"), RenameConfig(attn_projection_name="q_norm"))
    assert named.attention is not None
    assert named.attention.projection == "self_attn.q_norm"
    assert named.mixer == record.mixer


def test_names_within_layers_hold_in_all_of_them() -> None:
    record, module = plain.record_of("olmo_hybrid"), plain.plain("olmo_hybrid")
    assert record.variants
    assert renamed(record, module, RenameConfig(ln_final_name="norm")).variants == record.variants
    assert renamed(record, module, RenameConfig(middle_name="mlp")).variants == ()


def test_the_user_s_names_win_over_the_table() -> None:
    module: Any = plain.plain("llama")
    found = candidates(module.config, module, RenameConfig(middle_name="mlp"))
    assert found.known
    assert found.records[0].middle == "mlp"


def test_a_config_s_field_or_a_number() -> None:
    config = SimpleNamespace(n_wide=32, name="x")
    assert config_value(config, None, "hidden_size_config_key") is None
    assert config_value(config, 7, "hidden_size_config_key") == 7
    assert config_value(config, "n_wide", "hidden_size_config_key") == 32
    assert config_value(config, ["n_broad", "name", "n_wide"], "hidden_size_config_key") == 32
    with pytest.raises(InterpError, match=r"hidden_size_config_key='n_broad', but SimpleNamespace has no such number"):
        config_value(config, "n_broad", "hidden_size_config_key")
