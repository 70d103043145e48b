"""Prompts longer than what a small case tries: windows, chosen keys, chunks. Every fast way against plain transformers,
prompt by prompt, below, at and above the limit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import nnsight
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from interp import StandardizedTransformer
from interp.activations import collect
from interp.architectures import submodule
from interp.errors import InterpError
from interp.lenses import Latents, attention_knockout, attention_object_lens, patchscope_generate, patchscope_lens
from interp.model.verdicts import SMALL, regimes, verdict, verdicts_of
from interp.sites import Site
from tests.families import FAMILIES
from tests.families.cases import Family, initialized
from tests.made import one_each
from tests.tiny import tiny_tokenizer

LIMIT = 12
_GENERATOR = torch.Generator().manual_seed(0)


def _random(*lengths: int) -> list[list[int]]:
    return [torch.randint(3, 300, (length,), generator=_GENERATOR).tolist() for length in lengths]


# Each token of the first, and of what some begin with, stands twice.
_TWICE, _HEADER = [_random(9)[0] * 2, _random(7)[0] * 2]
PROMPTS = [_TWICE, *_random(5, LIMIT, LIMIT + 1, 23), *(_HEADER + end for end in _random(3, 9, 1, 6))]
TARGETS = [0, 1, 2, 4, 6]
POSITIONS = [len(PROMPTS[row]) // 2 for row in TARGETS]

# What is set to the limit in a family that has it, by name of the case.
SPARSE = "minimax_m3_sparse"
CASES: dict[str, Mapping[str, Any]] = {
    **{name: dict(index_topk=LIMIT) for name in ("deepseek_v32", "glm_moe_dsa", "axk2")},
    "dots3_note_text": dict(index_topk=LIMIT, sliding_window=LIMIT),
    SPARSE: dict(
        layer_types=["full_attention", SPARSE] * 2, index_n_heads=2, index_head_dim=8, index_block_size=4,
        index_topk_blocks=LIMIT // 4,
    ),
    "doge": dict(keep_window_size=LIMIT),
    "llama4_text": dict(attention_chunk_size=LIMIT, floor_scale=LIMIT),
    "mistral": dict(sliding_window=LIMIT),
    "gpt_oss": dict(sliding_window=LIMIT),
    "recurrent_gemma": dict(attention_window_size=LIMIT),
    "gpt_neo": dict(window_size=LIMIT),
}  # fmt: skip
# Where attention is given other keys to choose from, prompts side by side; the others stand in one row.
IN_ONE_ROW = {"mistral", "gpt_oss"}


def build(name: str) -> nn.Module:
    family = FAMILIES[name if name != SPARSE else "minimax_m3_vl_text"]
    return initialized(Family(family.model_type, {**family.config, **CASES[name]}))


def wrapped(name: str) -> StandardizedTransformer:
    return StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False)


@cache
def _plain(name: str) -> tuple[nn.Module, Any]:
    module = build(name)
    return module, submodule(module, wrapped(name).architecture.layers)


@torch.no_grad()
def plain_run(name: str, ids: list[int], written: Mapping[int, tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """(layer, position, hidden) and (vocabulary,) of one prompt by plain transformers, with latents after layers."""
    module, layers = _plain(name)
    seen: list[Tensor] = []

    def hook(index: int) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            hidden = output if isinstance(output, Tensor) else output[0]
            for position, latent in [written[index]] if index in written else []:
                hidden[0, position] = latent
            seen.append(hidden[0].clone())

        return keep

    handles = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(layers)]
    logits = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return torch.stack(seen), logits


def off_by(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", CASES)
def test_collecting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.batching.BATCH_COST", 0.01)
    monkeypatch.setattr("interp.activations.read_batch.WORTH", 1)
    model = wrapped(name)
    few = [row for row, ids in enumerate(PROMPTS) if len(ids) < 10]
    expected = [plain_run(name, ids, {})[0] for ids in PROMPTS]
    sites = [Site("resid_post", layer) for layer in range(model.num_layers)]
    # The small regime first: what it finds out must not speak for longer prompts.
    for rows, share in ((few, True), (range(len(PROMPTS)), True), (range(len(PROMPTS)), False)):
        prompts = [PROMPTS[row] for row in rows]
        found = collect(
            model, prompts, sites, [[len(ids) - 1, len(ids) // 2] for ids in prompts], batch_tokens=60,
            share_prefixes=share,
        )["resid_post"]  # fmt: skip
        for index, row in enumerate(rows):
            assert off_by(found[:, index], expected[row][:, [-1, len(PROMPTS[row]) // 2]]) < 1e-4
    long = [verdict for verdict in verdicts_of(model) if verdict.endswith(f"beyond {LIMIT} tokens")]
    assert long
    in_one_row = verdicts_of(model).get(f"prompts in one row beyond {LIMIT} tokens", False)
    assert in_one_row == (name in IN_ONE_ROW)


def by_group(logits: Tensor) -> list[float]:
    probabilities = logits.double().softmax(-1)
    return [float(probabilities[[3, 4]].sum()), float(probabilities[7])]


@cache
def latents(name: str) -> Tensor:
    """(layer, target, hidden), of the size that the model knows."""
    stream = plain_run(name, PROMPTS[0], {})[0]
    noise = torch.randn(len(stream), len(TARGETS), stream.shape[-1], generator=torch.Generator().manual_seed(3))
    return noise * stream.std()


@pytest.mark.parametrize("name", CASES)
def test_patchscopes_and_generation(name: str) -> None:
    model, targets = wrapped(name), [PROMPTS[row] for row in TARGETS]
    last, groups, tokens = model.num_layers - 1, [[[3, 4], [7]]] * len(TARGETS), 4
    walked = patchscope_lens(model, Latents(latents(name)[[0, last]], [0, last]), targets, one_each(POSITIONS), groups)
    plainly = patchscope_lens(
        model, Latents(latents(name)[[last]], [last]), targets, one_each(POSITIONS), groups, site="resid_pre"
    )
    texts = patchscope_generate(
        model,
        Latents(latents(name)[[0, last]], [0, last]),
        targets,
        one_each(POSITIONS),
        max_new_tokens=tokens,
        stop_ids=(),
    )
    for row, (ids, position) in enumerate(zip(targets, POSITIONS, strict=True)):
        for index, layer in enumerate((0, last)):
            written = {layer: (position, latents(name)[layer, row])}
            _, logits = plain_run(name, ids, written)
            np.testing.assert_allclose(np.exp(walked.log_prob[row, index]), by_group(logits), atol=1e-5)
            text = list(ids)
            for _ in range(tokens):
                text.append(int(plain_run(name, text, written)[1].argmax()))
            assert list(texts.ids[row][index]) == text[len(ids) :]
        _, logits = plain_run(name, ids, {last - 1: (position, latents(name)[last, row])})
        np.testing.assert_allclose(np.exp(plainly.log_prob[row, 0]), by_group(logits), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("recurrent_gemma", "gpt_neo", "doge")])
def test_lenses_on_attention(name: str) -> None:
    """Together, and each prompt alone by plain traces."""
    model, alone, targets = wrapped(name), wrapped(name), [PROMPTS[row] for row in TARGETS]
    verdicts_of(alone).update({"attention that is cut": False, "attention that receives other vectors": False})
    groups: Any = [[[3, 4], [7]]] * len(TARGETS)
    blocks: Any = [{"b": [position - 1, position]} for position in POSITIONS]
    received = latents(name) / latents(name).norm(dim=-1, keepdim=True)
    options: Any = dict(window=2, layers=[0, 2])
    cut = attention_knockout(model, targets, blocks, groups, window=2, layers=[0, 2]).log_prob
    seen = attention_object_lens(model, Latents(received), targets, one_each(POSITIONS), groups, **options).log_prob
    for row in range(len(TARGETS)):
        only = slice(row, row + 1)
        wanted = attention_knockout(alone, targets[only], blocks[only], groups[only], window=2, layers=[0, 2])
        np.testing.assert_allclose(np.exp(cut[only]), np.exp(wanted.log_prob), atol=1e-5)
        wanted = attention_object_lens(
            alone, Latents(received[:, only]), targets[only], one_each(POSITIONS[only]), groups[only], **options
        )
        np.testing.assert_allclose(np.exp(seen[only]), np.exp(wanted.log_prob), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "traced", "refused"),
    [
        (SPARSE, [4, 4], [1, 2]),  # its blocks of keys are counted from the first column
        ("doge", [1, 2], [1, 4]),  # of two keys that say the same, it chooses by their columns
    ],
)
@torch.no_grad()
def test_a_trace_of_padded_prompts_is_refused_where_padding_tells(
    name: str, traced: list[int], refused: list[int]
) -> None:
    model = wrapped(name)
    for _ in range(2):  # found out, and known
        with pytest.raises(InterpError, match=r"prompts that are padded.*Trace prompts of one length together"):  # noqa: SIM117
            with model.trace([PROMPTS[row] for row in refused]):
                model.logits.save()
    with model.trace([PROMPTS[row] for row in traced]):
        shape = nnsight.save(model.input_size)
        logits = model.logits[:, -1].clone().save()
    assert tuple(shape) == (2, max(len(PROMPTS[row]) for row in traced))
    for row, own in enumerate(traced):
        torch.testing.assert_close(logits[row], plain_run(name, PROMPTS[own], {})[1], atol=1e-4, rtol=1e-4)


def test_a_case_that_memory_has_no_room_for_decides_for_the_plain_way() -> None:
    model, tried = wrapped("mistral"), []

    def reason(length: int) -> None:
        tried.append(length)
        if length > SMALL:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def holds(longest: int) -> bool:
        return verdict(model, "something", reason, "the fast way", longest=longest)

    assert holds(LIMIT)
    assert not holds(LIMIT + 1)
    assert not holds(10 * LIMIT)
    assert holds(LIMIT)
    assert tried == [SMALL, LIMIT + SMALL]


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        ("llama", {}, [0]),
        ("mistral", dict(sliding_window=4096), [0, 4096]),
        ("qwen2", dict(use_sliding_window=True, sliding_window=512, max_window_layers=28), [0, 512]),
        ("gemma3_text", dict(sliding_window=4), [0]),  # a small case is longer than that
        ("deepseek_v32", dict(index_topk=2048), [0, 2048]),
        (SPARSE, dict(index_block_size=128, index_topk_blocks=16), [0, 128, 2048]),
        ("llama4_text", dict(attention_chunk_size=8000, floor_scale=8192), [0, 8000, 8192]),
        ("gpt_oss", dict(sliding_window=128), [0, 128]),
        ("bamba", dict(mamba_chunk_size=256), [0, 256]),
        ("phi3", dict(sliding_window=2047, original_max_position_embeddings=4096), [0, 2047, 4096]),
        ("ministral3", dict(rope_parameters=dict(
            rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=8192,
            llama_4_scaling_beta=0.1,
        )), [0, 8192]),
    ],
)  # fmt: skip
def test_the_limits_that_a_config_names(family: str, config: dict[str, Any], expected: list[int]) -> None:
    model = wrapped_with(family, config)
    assert regimes(model, 10**6) == expected
    assert regimes(model, expected[-1]) == (expected[:-1] or [0])


def wrapped_with(family: str, config: dict[str, Any]) -> Any:
    """What `regimes` reads of a model."""
    known = FAMILIES["minimax_m3_vl_text" if family == SPARSE else family]
    given = {**known.config, **CASES.get(family, {}), **config}
    built = CONFIG_MAPPING[known.model_type](**given)

    return SimpleNamespace(_module=SimpleNamespace(config=built))
