"""The attention-object lens against whole target prompts run one by one, with a hook on each attention module."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.architectures import submodule
from interp.errors import InterpError
from interp.lenses import Latents, attention_object_lens
from interp.model.verdicts import verdicts_of
from tests.families import build
from tests.interp.lenses.attention_twins import attention_inputs, received_logits
from tests.interp.lenses.twins import assert_equal, expected
from tests.made import one_each, watching
from tests.tiny import tiny_tokenizer

FAST = [
    "llama", "mistral", "gemma2", "gemma3_text", "olmo2", "gptj", "gpt_neox", "phi", "cohere", "cohere2", "gpt2", "opt",
    "gpt_oss", "mixtral", "deepseek_v3", "llama4_text", "falcon", "falcon_alibi", "stablelm_parallel", "mpt", "ctrl",
    "doge",
]  # fmt: skip
SLOW = ["bloom", "xglm", "jamba", "openai-gpt"]

SEVERAL = [[5, 2], [1, 0], [3, 5], [3, 6]]  # in any order; the first and the third prompt are the same

SOURCES = [[1, 17, 33, 250], [1, 8], [1, 99, 98, 97], [1, 300, 12, 13, 14]]
TARGETS = [[1, 40, 41, 42, 43, 44], [1, 60], [1, 40, 41, 42, 43, 44], [1, 70, 71, 72, 73, 74, 75, 76, 77]]
POSITIONS = [5, 1, 5, 3]
GROUPS = [[[3 * n, 3 * n + 1], [100 + n], [200, 201, 202]] for n in range(len(TARGETS))]


@cache
def loaded(name: str) -> tuple[StandardizedTransformer, nn.Module, dict[int, nn.Module]]:
    """The standardized model, a plain one, and the plain one's attention by layer."""
    model, plain = StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False), build(name)
    layers: Any = submodule(plain, model.architecture.layers)
    path = model.architecture.attention.module  # type: ignore[union-attr]
    found = {index: submodule(layer, path) for index, layer in enumerate(layers)}
    return model, plain, {index: module for index, module in found.items() if module is not None}


def sources(name: str) -> Tensor:
    """(layer with attention, example, hidden) at the last token of the sources."""
    _, plain, attentions = loaded(name)
    return torch.stack([attention_inputs(plain, list(attentions.values()), ids, -1) for ids in SOURCES], dim=1)


def sources_at_two(name: str) -> Tensor:
    """(layer with attention, example, position, hidden) at the last two tokens of the sources."""
    _, plain, attentions = loaded(name)
    modules = list(attentions.values())
    return torch.stack([attention_inputs(plain, modules, ids, [len(ids) - 2, len(ids) - 1]) for ids in SOURCES], dim=1)


def by_hand(
    name: str, latents: Tensor, windows: Sequence[range], positions: Sequence[Any] = POSITIONS, targets: Any = TARGETS
) -> list[dict[str, np.ndarray]]:
    _, plain, attentions = loaded(name)
    held = dict(zip(attentions, latents, strict=True))
    examples = []
    for example, (ids, position, groups) in enumerate(zip(targets, positions, GROUPS, strict=True)):
        logits = [
            received_logits(plain, attentions, ids, position, {j: held[j][example] for j in window if j in held})
            for window in windows
        ]
        flat = expected([*logits, received_logits(plain, {}, ids, position, {})], groups, 3, None)
        one = {key: values[:-1] for key, values in flat.items() if key != "model_top_id"}
        examples.append({**one, "baseline": flat["log_prob"][-1]})
    return examples


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_equals_the_twin(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, _, _ = loaded(name)
    latents = sources(name)
    layers = [1, 3] if name == "jamba" else [0, 1, 3]
    with caplog.at_level(logging.WARNING, logger="interp"):
        result = attention_object_lens(
            model,
            Latents(latents, [1, 3] if name == "jamba" else range(model.num_layers)),
            TARGETS,
            one_each(POSITIONS),
            GROUPS,
            window=2,
            layers=layers,
            top_k=3,
            batch_size=2,
        )
    windows = [range(layer, min(layer + 2, model.num_layers)) for layer in layers]
    assert_equal(result.arrays(), by_hand(name, latents, windows), atol=1e-5)
    assert verdicts_of(model)["attention that receives other vectors"] == (name in FAST)
    assert len([record for record in caplog.records if "(slow)" in record.message]) == (name in SLOW)


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_several_tokens_at_once(name: str) -> None:
    """Two of each prompt, other ones for each, the last token and the first among them."""
    model, _, _ = loaded(name)
    latents = sources_at_two(name)
    layers = [1, 3] if name == "jamba" else [0, 2]
    result = attention_object_lens(
        model,
        Latents(latents, [1, 3] if name == "jamba" else range(model.num_layers)),
        TARGETS,
        SEVERAL,
        GROUPS,
        window=2,
        layers=layers,
        top_k=3,
        batch_size=3,
    )
    windows = [range(layer, min(layer + 2, model.num_layers)) for layer in layers]
    assert_equal(result.arrays(), by_hand(name, latents, windows, SEVERAL), atol=1e-5)


def test_one_of_several_is_one() -> None:
    model, _, _ = loaded("gemma2")
    latents = sources("gemma2")
    one = attention_object_lens(model, Latents(latents), TARGETS, one_each(POSITIONS), GROUPS, window=2)
    listed = attention_object_lens(
        model, Latents(latents[:, :, None]), TARGETS, [[at] for at in POSITIONS], GROUPS, window=2
    )
    for key, values in one.arrays().items():
        np.testing.assert_array_equal(listed.arrays()[key], values, err_msg=key)


def test_the_last_of_five_layers_and_the_unpatched_run() -> None:
    """By default five layers from every layer on, cut off at the last; `surprisal` goes by the source."""
    model, _, _ = loaded("gpt_neox")
    latents = sources("gpt_neox")
    reference = torch.randn(len(SOURCES), model.hidden_size, generator=torch.Generator().manual_seed(1))
    result = attention_object_lens(
        model, Latents(latents, reference=reference), TARGETS, one_each(POSITIONS), GROUPS, top_k=3
    )
    assert dict(result.coordinates) == {"example": (0, 1, 2, 3), "layer": (0, 1, 2, 3)}
    wanted = by_hand("gpt_neox", latents, [range(layer, 4) for layer in range(4)])
    assert_equal({**result.arrays(), "surprisal": np.full((4, 4), np.nan, np.float32)}, wanted, atol=1e-5)
    said = model.readout(reference).detach().double().log_softmax(-1).numpy()
    assert result.model_top_id.tolist() == said.argmax(-1).tolist()
    np.testing.assert_allclose(result.surprisal, -np.take_along_axis(said, result.top_ids[:, :, 0], 1), atol=1e-4)


def test_one_target_prompt_for_all_and_a_token_before_the_last() -> None:
    model, _, _ = loaded("cohere")
    latents, targets, positions = sources("cohere"), [TARGETS[3]] * 4, [2] * 4
    result = attention_object_lens(
        model, Latents(latents), targets, one_each(positions), GROUPS, window=1, top_k=3, batch_size=3
    )
    wanted = by_hand("cohere", latents, [range(n, n + 1) for n in range(4)], positions, targets)
    assert_equal(result.arrays(), wanted, atol=1e-5)


def test_what_is_there_already_changes_nothing() -> None:
    model, plain, attentions = loaded("gptj")
    modules = list(attentions.values())
    own = torch.stack([attention_inputs(plain, modules, ids, p) for ids, p in zip(TARGETS, POSITIONS, strict=True)], 1)
    result = attention_object_lens(model, Latents(own), TARGETS, one_each(POSITIONS), GROUPS)
    assert result.baseline is not None
    np.testing.assert_allclose(result.log_prob, np.repeat(result.baseline[:, None], 4, axis=1), atol=1e-5)
    np.testing.assert_allclose(result.kl, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_batches_order_memory_and_the_slow_way_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = loaded(name)
    latents = sources(name)
    whole = attention_object_lens(model, Latents(latents), TARGETS, one_each(POSITIONS), GROUPS, window=2)
    monkeypatch.setattr("interp.batching.WALKING_TOKENS", 1)
    backwards: Any = [part[::-1] for part in (TARGETS, one_each(POSITIONS), GROUPS)]
    other = attention_object_lens(model, Latents(latents.flip(1)), *backwards, window=2, batch_size=1)
    monkeypatch.setitem(verdicts_of(model), "attention that receives other vectors", False)
    slow = attention_object_lens(model, Latents(latents), TARGETS, one_each(POSITIONS), GROUPS, window=2, batch_size=3)
    for key, values in whole.arrays().items():
        np.testing.assert_allclose(other.arrays()[key], values[::-1], atol=1e-4, rtol=1e-4, err_msg=key)
        np.testing.assert_allclose(slow.arrays()[key], values, atol=1e-4, rtol=1e-4, err_msg=key)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["llama", "mistral", "gpt2", "cohere"]),
    num_layers=st.integers(1, 5),
    layers=st.sets(st.integers(0, 3), min_size=1).map(sorted),
    position=st.integers(0, 8),
)
def test_any_window_and_position(name: str, num_layers: int, layers: list[int], position: int) -> None:
    check_any(name, num_layers, layers, sources(name), [[min(position, len(ids) - 1)] for ids in TARGETS])


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["llama", "mistral", "gpt2", "cohere"]),
    num_layers=st.integers(1, 5),
    layers=st.sets(st.integers(0, 3), min_size=1).map(sorted),
    shifts=st.lists(st.integers(0, 8), min_size=len(TARGETS), max_size=len(TARGETS)),
)
def test_any_window_and_two_positions(name: str, num_layers: int, layers: list[int], shifts: list[int]) -> None:
    pairs = [
        [shift % len(ids), (shift + 1 + shift % (len(ids) - 1)) % len(ids)]
        for ids, shift in zip(TARGETS, shifts, strict=True)
    ]
    check_any(name, num_layers, layers, sources_at_two(name), pairs)


def check_any(name: str, num_layers: int, layers: list[int], latents: Tensor, positions: Any) -> None:
    model, _, _ = loaded(name)
    result = attention_object_lens(
        model, Latents(latents, range(4)), TARGETS, positions, GROUPS, window=num_layers, layers=layers, top_k=3
    )
    windows = [range(layer, min(4, layer + num_layers)) for layer in layers]
    assert_equal(result.arrays(), by_hand(name, latents, windows, positions), atol=1e-5)


def test_bfloat16_is_near_float32() -> None:
    """Stated tolerance: 0.05 in probability; bfloat16 has 8 bits of mantissa, rounded at every layer."""
    coarse = StandardizedTransformer(build("llama").bfloat16(), tokenizer=tiny_tokenizer(), verify=False)
    latents = sources("llama")
    result = attention_object_lens(coarse, Latents(latents), TARGETS, one_each(POSITIONS), GROUPS, window=2, top_k=3)
    assert verdicts_of(coarse)["attention that receives other vectors"]
    wanted = by_hand("llama", latents, [range(n, min(n + 2, 4)) for n in range(4)])
    np.testing.assert_allclose(np.exp(result.log_prob), np.exp([one["log_prob"] for one in wanted]), atol=0.05)


def test_the_model_is_as_it_was_also_after_an_exception() -> None:
    module: Any = build("llama")
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    latents = sources("llama")
    attention_object_lens(model, Latents(latents), TARGETS, one_each(POSITIONS), GROUPS)
    ids = torch.tensor(TARGETS[:1])
    with torch.no_grad():
        before = module(input_ids=ids).logits
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:  # the first two belong to the clean run
            raise MemoryError("in the middle")

    handle = module.model.layers[2].mlp.register_forward_hook(watching(fail))
    with pytest.raises(MemoryError, match="in the middle"):
        attention_object_lens(model, Latents(latents[:, :1]), TARGETS[:1], one_each(POSITIONS[:1]), GROUPS[:1])
    handle.remove()
    assert sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()) == hooks
    with torch.no_grad():
        assert torch.equal(module(input_ids=ids).logits, before)


def test_no_examples() -> None:
    model, _, _ = loaded("llama")
    result = attention_object_lens(model, Latents(torch.zeros(4, 0, model.hidden_size)), [], [], [], top_k=4)
    assert result.top_ids.shape == (0, 4, 4)
    assert result.baseline is not None and result.baseline.shape[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window: expected at least 1"),
        ({"layers": [1, 0]}, "ascending order"),
        ({"layers": [4]}, "layers of the model, 0 to 3"),
        ({"layers": [2]}, r"latents: expected shape \(layer, example, hidden_size\) = \(2, 2, 32\)"),
        ({"held": [0, 1, 2, 2]}, "ascending order"),
        ({"held": [0, 1, 2]}, r"need latents of layers \[0, 1, 2, 3\], got none of \[3\]"),
        ({"target_prompts": [[1, 2]] * 3}, "expected one, or one for each of 2 examples, got 3"),
        ({"target_positions": [[0]]}, "target_positions: expected one entry for each of 2 examples, got 1"),
        ({"target_positions": [[0], [3]]}, "example 1 has 3, expected a token of its target prompt, 0 to 2"),
        ({"latents": torch.zeros(4, 2, 2, 32)}, r"^latents: expected shape \(layer, example, position"),
        (
            {"target_positions": [[0, 1], [0]]},
            r"^target_positions: expected equally many tokens in every example, .* got \[1, 2\]",
        ),
        ({"target_positions": [[0, 1], [1, 2]]}, r"\(layer, example, position, hidden_size\) = \(4, 2, 2, 32\)"),
        ({"target_positions": [[1, 1], [1, 2]], "latents": torch.zeros(4, 2, 2, 32)}, "expected different tokens"),
        ({"target_prompts": [[1, 400], [1, 2, 3]]}, "example 0 has ids 1 to 400"),
        ({"targets": []}, "targets: expected one entry for each of 2 examples, got 0"),
        ({"targets": [[[400]], [[1]]]}, "token id 400 is outside the vocabulary"),
        ({"batch_size": 0}, "batch_size"),
        ({"reference": torch.zeros(1, 3)}, "reference: expected shape"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    arguments: Any = dict(
        latents=torch.zeros(4, 2, 32), target_prompts=[[1, 2], [1, 2, 3]], target_positions=[[0], [2]], targets=[[], []]
    )
    arguments |= changes
    source = Latents(arguments.pop("latents"), arguments.pop("held", None), arguments.pop("reference", None))
    with pytest.raises(InterpError, match=message):
        attention_object_lens(loaded("llama")[0], source, **arguments)


def test_layers_without_attention_are_left_out_and_windows_of_them_refused() -> None:
    model, _, _ = loaded("jamba")
    with pytest.raises(InterpError, match=r"the layers 0 to 0 have no attention; of this model \[1, 3\] have"):
        attention_object_lens(model, Latents(sources("jamba")), TARGETS, one_each(POSITIONS), GROUPS, window=1)
    with pytest.raises(InterpError, match="of this model none have"):
        attention_object_lens(mamba(), Latents(torch.zeros(0, 4, 32)), TARGETS, one_each(POSITIONS), GROUPS)


def mamba() -> StandardizedTransformer:
    return StandardizedTransformer(build("mamba"), tokenizer=tiny_tokenizer(), verify=False)
