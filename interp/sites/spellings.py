"""Other systems' names of sites, one table each.

`meanings` holds the spellings that are read; `{layer}` and `{head}` may be lists, ranges and `*`, as everywhere.
`refused` holds spellings that would be misread, and why: there the other system means a tensor that is none of ours.

Where the meaning is the same and the numbers can still differ:

* `q` and `k` are what the attention function receives, after rotary embedding and norms. TransformerLens's `hook_q`
  and `hook_k` and easyroutine's queries and keys are taken before it; TransformerLens's `hook_rot_q` and `hook_rot_k`
  after it. Axes and packing are ours (`SHAPES`), whatever the spelling.
* `attn_out` and `mlp_out` are what is added to the residual stream. nnterp's `attentions_output` and `mlps_output`,
  easyroutine's `attn_out` and `mlp_out` and TransformerLens's `attn.hook_out` and `mlp.hook_out` are what a module
  gives, which is something else in families that norm or scale it before they add it (Gemma 2, OLMo 2, Granite).
* easyroutine's `head_out` has a part of the bias in every head, ours has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["EASYROUTINE", "NNTERP", "SYSTEMS", "TRANSFORMERS", "TRANSFORMER_LENS", "System", "hook_name", "matcher"]

_EMBED = (
    "ours is embed, the residual stream that enters layer 0, with position embeddings, norms and scales. Write embed."
)
_BRANCH = "before the norm, as the {part} alone sees it. Write {stream} for the stream, or {inside} for after the norm."
_INSIDE_NORM = "{what} a norm, which no site is. Write {after} for what the norm gives."
_HEAD = "what the head gives before softcap and scale. Write logits for the model's own output."
_NEURONS = "neurons before the activation function, which no site is. Write mlp_post.{layer} for after it."


@dataclass(frozen=True)
class System:
    """The names of places in one system.

    Arguments:
        name: of the system.
        marks: found in words that are its names, or are meant to be.
        meanings: its name -> our kind. Its layers and heads are ours.
        refused: its name -> what that is there and what to write here.
    """

    name: str
    marks: re.Pattern[str]
    meanings: Mapping[str, str]
    refused: Mapping[str, str]


TRANSFORMER_LENS = System(
    "TransformerLens",
    re.compile(r"hook_|^blocks\."),
    meanings={
        "blocks.{layer}.hook_resid_pre": "resid_pre",
        "blocks.{layer}.hook_in": "resid_pre",
        "blocks.{layer}.attn.hook_in": "attn_in",
        "blocks.{layer}.attn.hook_q": "q",
        "blocks.{layer}.attn.hook_rot_q": "q",
        "blocks.{layer}.attn.q.hook_out": "q",
        "blocks.{layer}.attn.hook_k": "k",
        "blocks.{layer}.attn.hook_rot_k": "k",
        "blocks.{layer}.attn.k.hook_out": "k",
        "blocks.{layer}.attn.hook_v": "v",
        "blocks.{layer}.attn.v.hook_out": "v",
        "blocks.{layer}.attn.hook_attn_scores": "scores",
        "blocks.{layer}.attn.hook_pattern": "pattern",
        "blocks.{layer}.attn.hook_z": "z",
        "blocks.{layer}.attn.o.hook_in": "z",
        "blocks.{layer}.attn.hook_result": "head_out",
        "blocks.{layer}.hook_attn_out": "attn_out",
        "blocks.{layer}.attn.hook_out": "attn_out",
        "blocks.{layer}.ln1_post.hook_out": "attn_out",
        "blocks.{layer}.hook_mixer_in": "mixer_in",
        "blocks.{layer}.mixer.hook_in": "mixer_in",
        "blocks.{layer}.mamba.hook_in": "mixer_in",
        "blocks.{layer}.linear_attn.hook_in": "mixer_in",
        "blocks.{layer}.hook_mixer_out": "mixer_out",
        "blocks.{layer}.mixer.hook_out": "mixer_out",
        "blocks.{layer}.mamba.hook_out": "mixer_out",
        "blocks.{layer}.linear_attn.hook_out": "mixer_out",
        "blocks.{layer}.hook_resid_mid": "resid_mid",
        "blocks.{layer}.ln2.hook_in": "resid_mid",
        "blocks.{layer}.mlp.hook_in": "mlp_in",
        "blocks.{layer}.mlp.hook_post": "mlp_post",
        "blocks.{layer}.mlp.out.hook_in": "mlp_post",
        "blocks.{layer}.hook_mlp_out": "mlp_out",
        "blocks.{layer}.mlp.hook_out": "mlp_out",
        "blocks.{layer}.ln2_post.hook_out": "mlp_out",
        "blocks.{layer}.hook_resid_post": "resid_post",
        "blocks.{layer}.hook_out": "resid_post",
        "ln_final.hook_out": "final_norm",
        # Its shorthand in one word, where that cannot be taken for anything else.
        "q{layer}": "q",
        "query{layer}": "q",
        "k{layer}": "k",
        "key{layer}": "k",
        "v{layer}": "v",
        "value{layer}": "v",
        "z{layer}": "z",
        "pattern{layer}": "pattern",
        "result{layer}": "head_out",
    },
    refused={
        "hook_embed": f"the embedding of the tokens alone; {_EMBED}",
        "embed.hook_out": f"the embedding of the tokens alone; {_EMBED}",
        "hook_pos_embed": f"the embedding of the positions alone, which no site is; {_EMBED}",
        "pos_embed.hook_out": f"the embedding of the positions alone, which no site is; {_EMBED}",
        "hook_unembed": _HEAD,
        "unembed.hook_out": _HEAD,
        "ln_final.hook_in": "the residual stream after the last layer. Write resid_post.-1.",
        **{
            f"{norm}.hook_{point}": _INSIDE_NORM.format(what=what, after=after)
            for norm, after in (
                ("blocks.{layer}.ln1", "attn_in.{layer}"), ("blocks.{layer}.ln2", "mlp_in.{layer}"),
                ("ln_final", "final_norm"),
            )
            for point, what in (("normalized", "a value before the weight and bias of"), ("scale", "the divisor of"))
        },
        **{
            f"blocks.{{layer}}.hook_{name}": "the residual stream, a copy for each head, "
            + _BRANCH.format(part=part, stream="resid_pre.{layer}", inside="attn_in.{layer}")
            for name, part in (
                ("attn_in", "attention"), ("q_input", "query"), ("k_input", "key"), ("v_input", "value"),
            )
        },
        "blocks.{layer}.hook_mlp_in": "the residual stream "
        + _BRANCH.format(part="MLP", stream="resid_mid.{layer}", inside="mlp_in.{layer}"),
        "blocks.{layer}.mlp.hook_pre": _NEURONS,
        "blocks.{layer}.mlp.hook_pre_linear": _NEURONS,
        "blocks.{layer}.mlp.in.hook_out": _NEURONS,
        "blocks.{layer}.mlp.gate.hook_out": _NEURONS,
    },
)  # fmt: skip

_BY_QUERY_HEAD = (
    "counted by query heads, and under grouped-query attention of the wrong group; ours counts key-value heads. Write "
    "{kind}.{{layer}}.h{{head}} for key-value head {{head}}."
)
_PROJECTED = (
    "a head's {what} through the output projection, which no site is. Write {kind}.{{layer}}.h{{head}} for the {what}, "
    "or head_out.{{layer}}.h{{head}} for what the head adds."
)

EASYROUTINE = System(
    "easyroutine",
    re.compile(r"^[a-z_]+_(L?[-\d,*]+)(H[-\d,*]+)?$|^input_|^last_layernorm"),
    meanings={
        "input_embeddings": "embed",
        "resid_in_{layer}": "resid_pre",
        "resid_in_post_layernorm_{layer}": "attn_in",
        "attn_in_{layer}": "attn_in",
        "queries_L{layer}": "q",
        "head_queries_L{layer}H{head}": "q",
        "keys_L{layer}": "k",
        "values_L{layer}": "v",
        "values_{layer}": "v",
        "pattern_L{layer}H{head}": "pattern",
        "head_out_L{layer}H{head}": "head_out",
        "attn_out_{layer}": "attn_out",
        "mlp_out_{layer}": "mlp_out",
        "resid_out_{layer}": "resid_post",
    },
    refused={
        "resid_mid_{layer}": "the residual stream after a norm (of Gemma 3, attention's output after one). Write "
        "mlp_in.{layer} for what the MLP receives after its norm, or resid_mid.{layer} for the stream before that.",
        "head_keys_L{layer}H{head}": _BY_QUERY_HEAD.format(kind="k"),
        "head_values_L{layer}H{head}": _BY_QUERY_HEAD.format(kind="v"),
        "projected_query_L{layer}H{head}": _PROJECTED.format(what="query", kind="q"),
        "projected_key_L{layer}H{head}": _PROJECTED.format(what="key", kind="k"),
        "projected_value_L{layer}H{head}": _PROJECTED.format(what="value", kind="v"),
        "avg_pattern_L{layer}H{head}": "a mean over examples. Write pattern.{layer}.h{head} and take the mean.",
        "last_layernorm": "statistics of what the last norm receives. Write resid_post.-1 for that, or final_norm for "
        "what the norm gives.",
        "input_ids": "the tokens, which are given to the model and not read from it.",
    },
)

_MODULE = "a module. Write {sites} for what it takes and gives."

NNTERP = System(
    "nnterp",
    re.compile(r"\[|^token_embeddings$"),
    meanings={
        "layers_input[{layer}]": "resid_pre",
        "attentions_input[{layer}]": "attn_in",
        "attention_probabilities[{layer}]": "pattern",
        "attentions_output[{layer}]": "attn_out",
        "mlps_input[{layer}]": "mlp_in",
        "mlps_output[{layer}]": "mlp_out",
        "layers_output[{layer}]": "resid_post",
        "ln_final": "final_norm",
    },
    refused={
        "token_embeddings": f"what the embedding module gives; {_EMBED}",
        "layers[{layer}]": _MODULE.format(sites="resid_pre.{layer} and resid_post.{layer}"),
        "attentions[{layer}]": "a module, and in transformers attention weights. Write attn_in.{layer} and "
        "attn_out.{layer} for what the module takes and gives, or pattern.{layer} for the weights.",
        "mlps[{layer}]": _MODULE.format(sites="mlp_in.{layer} and mlp_out.{layer}"),
    },
)

TRANSFORMERS = System(
    "transformers",
    re.compile(r"\["),
    # Not a kind: `hidden_states[i]` is resid_pre.i, and final_norm for the last of them (`interp.sites.parsing`).
    meanings={"hidden_states[{layer}]": "hidden_states"},
    refused={},
)

SYSTEMS = (TRANSFORMER_LENS, EASYROUTINE, NNTERP, TRANSFORMERS)

_NAMES = {"attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v"}
_NAMES |= {"mlp_pre": "pre", "mlp_mid": "mid", "mlp_post": "post"}
_OF_ATTENTION = ("k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores")
_OF_MLP = ("pre", "post", "mid", "pre_linear")
_MODULES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}


def hook_name(name: str, layer: int, module: str = "") -> str:
    """The full name of a TransformerLens shorthand: `("pattern", 0, "attn")` is `blocks.0.attn.hook_pattern`.

    Arguments:
        name: of the activation, e.g. `q`, `resid_post`.
        layer: its layer.
        module: the module it belongs to, for names that several have.
    """
    name = _NAMES.get(name, name)
    module = "attn" if name in _OF_ATTENTION else "mlp" if name in _OF_MLP else _MODULES.get(module, module)
    return f"blocks.{layer}.{module}{'.' if module else ''}hook_{name}"


# Not `functools.cache`, whose functions cannot be sent to a server by what they say.
_matchers: dict[str, re.Pattern[str]] = {}


def matcher(spelling: str) -> re.Pattern[str]:
    """A spelling of a table as a regular expression with the groups `layer` and `head`."""
    if spelling not in _matchers:
        text = re.escape(spelling)
        for place in ("layer", "head"):
            text = text.replace(re.escape(f"{{{place}}}"), rf"(?P<{place}>[-\d,*]+)")
        _matchers[spelling] = re.compile(text)
    return _matchers[spelling]
