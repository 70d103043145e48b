"""The attention knock-out against whole prompts run one by one, with edges cut where torch takes the softmax."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from torch import nn

from interp import StandardizedTransformer
from interp.architectures import submodule
from interp.lenses import attention_knockout
from tests.families import build
from tests.interp.lenses.attention_twins import cut_logits
from tests.interp.lenses.twins import assert_equal, expected
from tests.tiny import tiny_tokenizer

# Grouped queries, a sliding window alone and beside full attention, softcap, post-norm, parallel layers with one norm
# and with two, learned positions, sinks, experts, latent attention, chunks; ALiBi inside the mask.
FAST = [
    "llama", "mistral", "gemma2", "gemma3_text", "olmo2", "gptj", "gpt_neox", "phi", "cohere", "cohere2", "gpt2", "opt",
    "gpt_oss", "mixtral", "deepseek_v3", "llama4_text", "falcon", "stablelm_parallel", "gpt_neo",
]  # fmt: skip
# Their masks hold a row for each of the batch, or say what is hidden; layers carry a state; keys are chosen (Doge).
SLOW = ["falcon_alibi", "bloom", "mpt", "jamba", "recurrent_gemma", "doge", "openai-gpt"]

PROMPTS = [
    [1, 17, 250, 33, 94, 301, 77],
    [1, 60, 250, 33, 94, 301, 12],
    [1, 88, 5],
    [1, 40, 41, 42, 43, 44, 45, 46, 47, 48],
]
BLOCKS = [
    {"first": [0], "subject": [2, 3], "itself": [6, 5]},
    {"first": [0], "subject": [1, 4, 5], "itself": [6]},
    {"first": [0], "subject": [1], "itself": [2]},
    {"first": [0], "subject": [6, 7], "itself": [9]},
]
QUERIES = [[6], [3, 6], [2], [8, 9]]
GROUPS = [[[3, 9], [200]], [[5], [77, 78]], [[120], [7]], [[301], [2, 4]]]


@cache
def loaded(name: str) -> tuple[StandardizedTransformer, nn.Module]:
    """The standardized model as it is loaded by default, and a plain one with eager attention."""
    plain: Any = build(name)
    ours: Any = build(name)
    plain.config._attn_implementation = "eager"
    if name.startswith("falcon"):  # under sdpa it never forms the scores
        ours.config._attn_implementation = "eager"
    return StandardizedTransformer(ours, tokenizer=tiny_tokenizer(), verify=False), plain


def by_hand(
    name: str,
    windows: Sequence[range],
    *,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    blocks: Sequence[Mapping[str, Sequence[int]]] = BLOCKS,
    queries: Sequence[Sequence[int]] = QUERIES,
    groups: Sequence[Sequence[Sequence[int]]] = GROUPS,
) -> list[dict[str, np.ndarray]]:
    """What the lens should say of each example, its arrays (window, block, ...)."""
    model, plain = loaded(name)
    layers: Any = submodule(plain, model.architecture.layers)
    examples = []
    for ids, named, asking, wanted in zip(prompts, blocks, queries, groups, strict=True):
        own = cut_logits(plain, layers, ids, (), ())
        logits = []
        for window in windows:
            attending = [layer for layer in window if model.has(f"attn_in.{layer}")]
            for keys in named.values():
                edges = [(query, key) for query in asking for key in keys]
                logits.append(cut_logits(plain, layers, ids, attending, edges))
        flat = expected([*logits, own], wanted, 3, own)  # `kl` compares with the last
        one = {
            key: values[:-1].reshape(len(windows), len(named), *values.shape[1:])
            for key, values in flat.items()
            if key != "model_top_id"
        }
        examples.append({**one, "model_top_id": flat["model_top_id"], "baseline": flat["log_prob"][-1]})
    return examples


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_equals_the_twin(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = loaded(name)
    layers = [1, 3] if name in ("jamba", "recurrent_gemma") else [0, 1, 3]
    with caplog.at_level(logging.WARNING, logger="interp"):
        result = attention_knockout(
            model, PROMPTS, BLOCKS, GROUPS, window=2, layers=layers, query_positions=QUERIES, top_k=3, batch_size=2
        )
    windows = [range(layer, min(layer + 2, model.num_layers)) for layer in layers]
    assert_equal(result.arrays(), by_hand(name, windows), atol=1e-5)
    assert model.verdicts["attention that is cut"] == (name in FAST)
    assert len([record for record in caplog.records if "(slow)" in record.message]) == (name in SLOW)
