"""The names of other systems: what each is here, and the ones that would be misread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.sites import KINDS, Site, check_sites, parse_site, parse_sites
from interp.sites.spellings import SYSTEMS, hook_name

SIZES = (6, 4, 2)  # layers, heads, key-value heads

MEANINGS = {
    # TransformerLens, the names of HookedTransformer
    "blocks.3.hook_resid_pre": "resid_pre.3",
    "blocks.3.hook_resid_mid": "resid_mid.3",
    "blocks.3.hook_resid_post": "resid_post.3",
    "blocks.3.attn.hook_q": "q.3",
    "blocks.3.attn.hook_k": "k.3",
    "blocks.3.attn.hook_v": "v.3",
    "blocks.3.attn.hook_rot_q": "q.3",
    "blocks.3.attn.hook_rot_k": "k.3",
    "blocks.3.attn.hook_attn_scores": "scores.3",
    "blocks.3.attn.hook_pattern": "pattern.3",
    "blocks.3.attn.hook_z": "z.3",
    "blocks.3.attn.hook_result": "head_out.3",
    "blocks.3.hook_attn_out": "attn_out.3",
    "blocks.3.hook_mlp_out": "mlp_out.3",
    "blocks.3.mlp.hook_post": "mlp_post.3",
    # TransformerLens, the names of its bridge
    "blocks.3.hook_in": "resid_pre.3",
    "blocks.3.hook_out": "resid_post.3",
    "blocks.3.ln2.hook_in": "resid_mid.3",
    "blocks.3.attn.hook_in": "attn_in.3",
    "blocks.3.attn.q.hook_out": "q.3",
    "blocks.3.attn.k.hook_out": "k.3",
    "blocks.3.attn.v.hook_out": "v.3",
    "blocks.3.attn.o.hook_in": "z.3",
    "blocks.3.attn.hook_out": "attn_out.3",
    "blocks.3.ln1_post.hook_out": "attn_out.3",
    "blocks.3.ln2_post.hook_out": "mlp_out.3",
    "blocks.3.mlp.hook_in": "mlp_in.3",
    "blocks.3.mlp.out.hook_in": "mlp_post.3",
    "blocks.3.mlp.hook_out": "mlp_out.3",
    "blocks.3.hook_mixer_in": "mixer_in.3",
    "blocks.3.hook_mixer_out": "mixer_out.3",
    "blocks.3.mixer.hook_in": "mixer_in.3",
    "blocks.3.mixer.hook_out": "mixer_out.3",
    "blocks.3.mamba.hook_in": "mixer_in.3",
    "blocks.3.mamba.hook_out": "mixer_out.3",
    "blocks.3.linear_attn.hook_in": "mixer_in.3",
    "blocks.3.linear_attn.hook_out": "mixer_out.3",
    "ln_final.hook_out": "final_norm",
    "blocks.-1.hook_resid_post": "resid_post.5",
    # TransformerLens, in short
    "k1": "k.1",
    "q0": "q.0",
    "v5": "v.5",
    "z2": "z.2",
    "query4": "q.4",
    "key4": "k.4",
    "value4": "v.4",
    "pattern2": "pattern.2",
    "result2": "head_out.2",
    # easyroutine
    "input_embeddings": "embed",
    "resid_in_3": "resid_pre.3",
    "resid_out_3": "resid_post.3",
    "resid_in_post_layernorm_3": "attn_in.3",
    "attn_in_3": "attn_in.3",
    "attn_out_3": "attn_out.3",
    "mlp_out_3": "mlp_out.3",
    "values_3": "v.3",
    "values_L3": "v.3",
    "keys_L3": "k.3",
    "queries_L3": "q.3",
    "head_queries_L3H1": "q.3.h1",
    "pattern_L3H1": "pattern.3.h1",
    "head_out_L3H1": "head_out.3.h1",
    # nnterp
    "layers_input[3]": "resid_pre.3",
    "layers_output[3]": "resid_post.3",
    "layers_output[-1]": "resid_post.5",
    "attentions_input[3]": "attn_in.3",
    "attentions_output[3]": "attn_out.3",
    "mlps_input[3]": "mlp_in.3",
    "mlps_output[3]": "mlp_out.3",
    "attention_probabilities[3]": "pattern.3",
    "ln_final": "final_norm",
    "logits": "logits",
    # transformers
    "hidden_states[0]": "resid_pre.0",
    "hidden_states[5]": "resid_pre.5",
    "hidden_states[6]": "final_norm",
    "hidden_states[-1]": "final_norm",
    "hidden_states[-7]": "resid_pre.0",
}


@pytest.mark.parametrize("text", MEANINGS)
def test_a_name_in_another_system(text: str) -> None:
    site = parse_site(text, *SIZES)
    assert str(site) == MEANINGS[text]
    assert site == parse_site(MEANINGS[text], *SIZES)
    check_sites(text, *SIZES)
    check_sites(text, None)


def test_every_name_of_the_tables_is_tested() -> None:
    names = {name.format(layer=3, head=1) for system in SYSTEMS for name in system.meanings}
    names -= {f"{word}3" for word in ("q", "k", "v", "z", "query", "key", "value", "pattern", "result")}
    assert names - {"hidden_states[3]"} <= set(MEANINGS)
    assert {kind for system in SYSTEMS for kind in system.meanings.values()} <= {*KINDS, "hidden_states"}


SHORTHANDS = {
    ("q", 0): "q.0",
    ("query", 0): "q.0",
    ("k", 5, "a"): "k.5",
    ("key", 5): "k.5",
    ("v", 1, "attn"): "v.1",
    ("value", 1): "v.1",
    ("rot_q", 1): "q.1",
    ("z", 1): "z.1",
    ("result", 1): "head_out.1",
    ("pattern", 0, "attn"): "pattern.0",
    ("attn", 2): "pattern.2",
    ("attn_scores", 2): "scores.2",
    ("attn_logits", 2): "scores.2",
    ("resid_pre", 2): "resid_pre.2",
    ("resid_mid", 2): "resid_mid.2",
    ("resid_post", -1): "resid_post.5",
    ("resid_post", 2, "blocks"): "resid_post.2",
    ("attn_out", 2): "attn_out.2",
    ("mlp_out", 2): "mlp_out.2",
    ("post", 2): "mlp_post.2",
    ("mlp_post", 2): "mlp_post.2",
    ("in", 2, "mlp"): "mlp_in.2",
    ("in", 2, "m"): "mlp_in.2",
    ("out", 2, "attention"): "attn_out.2",
}


@pytest.mark.parametrize("shorthand", SHORTHANDS)
def test_transformer_lens_shorthand(shorthand: tuple) -> None:
    assert str(parse_site(shorthand, *SIZES)) == SHORTHANDS[shorthand]
    assert parse_sites([shorthand, "embed"], *SIZES) == [Site("embed"), parse_site(shorthand, *SIZES)]


def test_the_full_name_of_a_shorthand() -> None:
    """The examples in the documentation of TransformerLens's own function."""
    assert hook_name("k", 6, "a") == "blocks.6.attn.hook_k"
    assert hook_name("pre", 2) == "blocks.2.mlp.hook_pre"
    assert hook_name("normalized", 27, "ln2") == "blocks.27.ln2.hook_normalized"
    assert hook_name("resid_post", 3) == "blocks.3.hook_resid_post"


def test_several_at_once() -> None:
    assert parse_sites("blocks.1,3-4.hook_resid_post layers_input[*]", 5) == [
        Site("resid_pre", 0), Site("resid_pre", 1), Site("resid_post", 1), Site("resid_pre", 2), Site("resid_pre", 3),
        Site("resid_post", 3), Site("resid_pre", 4), Site("resid_post", 4),
    ]  # fmt: skip
    assert parse_sites("pattern_L0H*", 2, 3) == [Site("pattern", 0, head) for head in range(3)]
    hidden = [Site("resid_pre", 0), Site("resid_pre", 1), Site("final_norm")]
    assert parse_sites("hidden_states[*]", 2) == hidden
    assert parse_sites("hidden_states[-2--1]", 2) == hidden[1:]


@given(st.integers(1, 40), st.data())
def test_hidden_states_are_before_each_layer_then_after_the_last_norm(num_layers: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(-num_layers - 1, num_layers))
    expected = [*(Site("resid_pre", layer) for layer in range(num_layers)), Site("final_norm")][index]
    assert parse_site(f"hidden_states[{index}]", num_layers) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hook_embed", r"TransformerLens that is the embedding of the tokens alone; ours is embed, .* Write embed\."),
        ("embed.hook_out", r"the embedding of the tokens alone; ours is embed"),
        ("hook_pos_embed", r"the embedding of the positions alone, .* Write embed\."),
        ("pos_embed.hook_out", r"the embedding of the positions alone"),
        ("hook_unembed", r"before softcap and scale. Write logits"),
        ("unembed.hook_out", r"before softcap and scale. Write logits"),
        ("ln_final.hook_in", r"Write resid_post.-1"),
        ("ln_final.hook_normalized", r"before the weight and bias of a norm, .* Write final_norm for"),
        ("ln_final.hook_scale", r"the divisor of a norm, .* Write final_norm for"),
        ("blocks.3.ln1.hook_normalized", r"Write attn_in.3 for"),
        ("blocks.3.ln1.hook_scale", r"the divisor of a norm, .* Write attn_in.3 for"),
        ("blocks.3.ln2.hook_normalized", r"Write mlp_in.3 for"),
        ("blocks.3.ln2.hook_scale", r"Write mlp_in.3 for"),
        ("blocks.3.hook_attn_in", r"a copy for each head, before the norm, .* resid_pre.3 .* attn_in.3 for after"),
        ("blocks.3.hook_q_input", r"as the query alone sees it"),
        ("blocks.3.hook_k_input", r"as the key alone sees it"),
        ("blocks.3.hook_v_input", r"as the value alone sees it"),
        ("blocks.3.hook_mlp_in", r"before the norm, as the MLP alone sees it. Write resid_mid.3 .* mlp_in.3 for after"),
        ("blocks.3.mlp.hook_pre", r"before the activation function, .* Write mlp_post.3"),
        ("blocks.3.mlp.hook_pre_linear", r"Write mlp_post.3"),
        ("blocks.3.mlp.in.hook_out", r"Write mlp_post.3"),
        ("blocks.3.mlp.gate.hook_out", r"Write mlp_post.3"),
        (("scale", 4, "ln1"), r"site \"\('scale', 4, 'ln1'\)\": .* Write attn_in.4"),
        (("attn_in", 4), r"Write resid_pre.4"),
        (("pre", 4), r"Write mlp_post.4"),
        ("resid_mid_3", r"easyroutine that is the residual stream after a norm .* mlp_in.3 .* resid_mid.3"),
        ("head_keys_L3H1", r"counted by query heads, .* Write k.3.h1 for key-value head 1"),
        ("head_values_L3H1", r"Write v.3.h1 for key-value head 1"),
        ("projected_value_L3H1", r"a head's value through the output projection, .* v.3.h1 .* head_out.3.h1"),
        ("projected_key_L3H1", r"Write k.3.h1"),
        ("projected_query_L3H1", r"Write q.3.h1"),
        ("avg_pattern_L3H1", r"a mean over examples. Write pattern.3.h1"),
        ("last_layernorm", r"Write resid_post.-1 for that, or final_norm"),
        ("input_ids", r"the tokens, which are given to the model"),
        ("token_embeddings", r"nnterp that is what the embedding module gives; ours is embed"),
        ("layers[3]", r"a module. Write resid_pre.3 and resid_post.3"),
        ("attentions[3]", r"a module, and in transformers attention weights. .* pattern.3"),
        ("mlps[3]", r"a module. Write mlp_in.3 and mlp_out.3"),
    ],
)  # fmt: skip
def test_a_name_that_would_be_misread(text: str, reason: str) -> None:
    with pytest.raises(InterpError, match=reason):
        parse_sites(text, *SIZES)
    with pytest.raises(InterpError, match=reason):
        check_sites(text, None)


def test_every_refusal_is_a_sentence() -> None:
    """No placeholder is left, and what is recommended can be read."""
    for system in SYSTEMS:
        for name in system.refused:
            with pytest.raises(InterpError, match=rf"in {system.name} that is ") as caught:
                parse_sites(name.format(layer=3, head=1), *SIZES)
            message = str(caught.value)
            assert "{" not in message and message.endswith("."), name
            for word in message.split(": ", 1)[1].replace(",", " ").rstrip(".").split():
                if word.split(".")[0] in KINDS and "." in word:
                    parse_site(word, *SIZES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blocks.3.hook_resid_pots", "unknown name of TransformerLens. Did you mean 'blocks.3.hook_resid_post'"),
        ("blocks.4.attn.hook_patern", "Did you mean 'blocks.4.attn.hook_pattern'"),
        ("hook_resid_post", "TransformerLens"),
        (("resid_pots", 2), r"site \"\('resid_pots', 2\)\": .* Did you mean 'blocks.2.hook_resid_post'"),
        ("resid_ot_4", "unknown name of easyroutine. Did you mean 'resid_out_4'"),
        ("resid_post_4", "Did you mean .*'resid_post.4'"),
        ("resid_out_L4", "Did you mean 'resid_out_4'"),
        ("patern_L4H2", "Did you mean 'pattern_L4H2'"),
        (
            "layers_ouput[4]",
            "unknown name of nnterp or transformers. Did you mean 'layers_output[4]'".replace("[", r"\["),
        ),
        ("hidden_state[2]", r"Did you mean 'hidden_states\[2\]'"),
        ("kk1", "unknown kind 'kk1'"),
    ],
)
def test_the_nearest_names_of_the_system(text: str, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        parse_sites(text, *SIZES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blocks.6.hook_resid_post", r"blocks.6.hook_resid_post: layer 6 is out of range. The model has 6 layers"),
        ("resid_out_6", r"resid_out_6: layer 6 is out of range"),
        ("layers_output[-7]", r"layers_output\[-7\]: layer -7 is out of range"),
        (("q", 9), r"\('q', 9\): layer 9 is out of range"),
        ("pattern_L0H4", r"pattern_L0H4: head 4 is out of range. The model has 4 heads"),
        ("hidden_states[7]", r"hidden state 7 is out of range. The model has 7 hidden states: 0 to 6"),
        ("blocks.4-2.hook_resid_post", r"range '4-2' is empty"),
    ],
)
def test_out_of_range(text: str, message: str) -> None:
    for read in (parse_sites, check_sites):
        with pytest.raises(InterpError, match=message):
            read(text, *SIZES)  # type: ignore[operator]
