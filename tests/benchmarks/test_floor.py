"""The operations that are counted, against torch's own counter on runs that compute exactly what is needed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaForCausalLM

from benchmarks.lenses.floor import LIBRARIES, matrix_rate, needed_operations
from benchmarks.lenses.model import Shape, build
from benchmarks.lenses.works import HEADER, Inputs

SHAPE = Shape(layers=3, hidden=16, mlp=40, vocabulary=50, heads=2)
LENGTH, SOURCES = 7, 2


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    model = build(SHAPE)
    model.set_attn_implementation("eager")  # whose products torch counts
    return model


def weights(model: LlamaForCausalLM, *names: str) -> int:
    """Operations of the linear maps of one layer, by the names of the modules, for a token."""
    modules = dict(model.model.layers[0].named_modules())
    return sum(2 * modules[name].weight.numel() for name in names)


def counted(model: LlamaForCausalLM, lengths: list[int], *, cached: int = 0) -> int:
    """What torch counts for whole forward passes token by token, each attending to what stands before it, no head."""
    total = 0
    for length in lengths:
        cache = DynamicCache()
        for position in range(length):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model.model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
            total += counter.get_total_flops() if position >= cached else 0
    return total


def unneeded(model: LlamaForCausalLM, tokens: int, positions: range) -> int:
    """What the last layer does for tokens that are not read: all but their keys and values."""
    rest = weights(model, "self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    return tokens * rest + sum(4 * SHAPE.hidden * (position + 1) for position in positions)


def inputs(kind: str, lengths: list[int], new_tokens: int = 0) -> Inputs:
    target = [] if kind in ("collect", "few_shot", "logit_lens") else [9] * LENGTH
    return Inputs(kind, [[9] * length for length in lengths], target, [9] * len(lengths), 1, new_tokens)


def test_collecting(model: LlamaForCausalLM) -> None:
    lengths = [4, 6]
    expected = counted(model, lengths) - sum(unneeded(model, length - 1, range(length - 1)) for length in lengths)
    assert needed_operations(inputs("collect", lengths), SHAPE) == expected


def test_a_header_is_needed_once(model: LlamaForCausalLM) -> None:
    lengths = [HEADER + 2, HEADER + 4]
    header = counted(model, [HEADER]) - unneeded(model, HEADER, range(HEADER))
    own = counted(model, lengths, cached=HEADER)
    own -= sum(unneeded(model, length - 1 - HEADER, range(HEADER, length - 1)) for length in lengths)
    assert needed_operations(inputs("few_shot", lengths), SHAPE) == header + own


def layer_of_one_token(model: LlamaForCausalLM, position: int) -> float:
    linear = [name for name, module in model.model.layers[0].named_modules() if isinstance(module, nn.Linear)]
    return weights(model, *linear) + 4 * SHAPE.hidden * (position + 1)


def test_a_patchscope_is_a_prefix_a_walk_and_the_readouts(model: LlamaForCausalLM) -> None:
    prefix = counted(model, [LENGTH - 1]) - unneeded(model, LENGTH - 1, range(LENGTH - 1))
    above = sum(SHAPE.layers - 1 - layer for layer in range(SHAPE.layers))  # layers that a row runs through
    walk = SOURCES * above * layer_of_one_token(model, LENGTH - 1)
    readouts = SOURCES * SHAPE.layers * 2 * model.lm_head.weight.numel()
    given = inputs("patchscope", [4, 6])
    assert needed_operations(given, SHAPE) == prefix + walk + readouts
    collected = needed_operations(inputs("collect", [4, 6]), SHAPE)
    end_to_end = needed_operations(inputs("patchscope_end_to_end", [4, 6]), SHAPE)
    assert end_to_end == prefix + walk + readouts + collected
    assert needed_operations(inputs("logit_lens", [4, 6]), SHAPE) == collected + readouts


def test_generation_runs_every_layer_for_each_further_token(model: LlamaForCausalLM) -> None:
    rows, head = SOURCES * SHAPE.layers, 2 * model.lm_head.weight.numel()
    one, three = (needed_operations(inputs("generate", [4, 6], new_tokens=new), SHAPE) for new in (1, 3))
    steps = sum(rows * SHAPE.layers * layer_of_one_token(model, position) for position in (LENGTH, LENGTH + 1))
    assert three - one == steps + 2 * rows * head
    clean = SHAPE.layers * layer_of_one_token(model, LENGTH - 1)
    assert one == needed_operations(inputs("patchscope_end_to_end", [4, 6]), SHAPE) + clean


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_rate_is_of_both_clocks(library: str) -> None:
    rate = matrix_rate(SHAPE, library=library, repeats=1)
    assert set(rate) == {"seconds", "cpu_seconds"}
    assert all(value > 1e6 for value in rate.values())
