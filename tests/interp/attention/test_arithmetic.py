"""q, k, v -> scores -> pattern -> z by arithmetic written here, in families whose attention differs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.families import build
from tests.interp.attention.models import (
    IDS,
    KINDS,
    LENGTH,
    MASK,
    Traced,
    attention_paths,
    feed,
    plain_patterns,
    switched,
)

HEADS = 4


@dataclass(frozen=True)
class Attention:
    """What is particular in a family's attention.

    Arguments:
        scale: what multiplies q k^T.
        by_depth: that scale is divided by the layer, counted from 1.
        softcap: c of c tanh(scores / c).
        window: keys that a query sees, itself included.
        windowed: the layers that have that window.
        sinks: the parameter with a logit for each head, which takes a part of each row.
        projection: the output projection.
    """

    scale: float = 8**-0.5
    by_depth: bool = False
    softcap: float | None = None
    window: int = LENGTH
    windowed: tuple[int, ...] = (0, 1, 2, 3)
    sinks: str | None = None
    projection: str = "o_proj"


EVEN = (0, 2)
CASES = {
    "llama": Attention(),
    "mistral": Attention(window=4),
    "qwen2_moe": Attention(),
    "qwen3": Attention(),
    "gemma2": Attention(softcap=1.0, window=4, windowed=EVEN),
    "gemma3_text": Attention(window=4, windowed=EVEN),
    "gpt_oss": Attention(sinks="sinks", window=4, windowed=EVEN),
    "deepseek_v3": Attention(scale=12**-0.5),
    "gpt2": Attention(by_depth=True, projection="c_proj"),
    "gpt_neox": Attention(projection="dense"),
    "cohere": Attention(),
    "phi": Attention(projection="dense"),
    "phi3": Attention(window=4),
    "olmo2": Attention(),
    "granite": Attention(scale=0.5),
    "starcoder2": Attention(window=4),
    "opt": Attention(scale=1.0, projection="out_proj"),  # its queries are scaled already
    "dbrx": Attention(projection="out_proj"),
    "jamba": Attention(),
}


def repeated(x: Tensor, heads: int) -> Tensor:
    """Each key/value head once for every query head that uses it."""
    return torch.stack([x[:, head * x.shape[1] // heads] for head in range(heads)], dim=1)


def visible(window: int) -> Tensor:
    """(batch, 1, query, key): which keys a query may see."""
    seen = torch.zeros(len(IDS), 1, LENGTH, LENGTH, dtype=torch.bool)
    for row in range(len(IDS)):
        for query in range(LENGTH):
            for key in range(LENGTH):
                seen[row, 0, query, key] = bool(MASK[row, key]) and query - window < key <= query
    return seen


# Softcaps and sinks are in eager alone.
LOADED = [(name, "eager") for name in CASES] + [(name, "sdpa") for name in CASES if name not in ("gemma2", "gpt_oss")]


@pytest.mark.parametrize(("name", "implementation"), LOADED)
@torch.no_grad()
def test_attention_by_hand(name: str, implementation: str) -> None:
    case = CASES[name]
    model = Traced(switched(build(name), implementation), attention_paths(name))
    layers = range(len(model.paths))
    values: dict[tuple[str, int], Tensor] = {}
    with model.trace(**feed(model._module)):
        for layer in layers:
            for kind in KINDS:
                values[kind, layer] = model.access.read(kind, layer).clone()
            values["z", layer] = model.attention(layer).get(case.projection).input.clone()
    real = MASK[:, None, :, None].bool()
    for layer in layers:
        q, k, v, scores, pattern = (values[kind, layer] for kind in KINDS)
        assert q.shape[:3] == (2, HEADS, LENGTH) and k.shape[:3] == v.shape[:3] == (2, k.shape[1], LENGTH)
        by_hand = torch.einsum("bhqd,bhkd->bhqk", q, repeated(k, HEADS))
        by_hand = by_hand * case.scale / (layer + 1 if case.by_depth else 1)
        if case.softcap is not None:
            by_hand = case.softcap * torch.tanh(by_hand / case.softcap)
        seen = visible(case.window if layer in case.windowed else LENGTH).expand_as(by_hand)
        torch.testing.assert_close(scores[seen], by_hand[seen], atol=1e-5, rtol=1e-5)
        assert (scores[~seen] < -1e30).all()
        exponentials = by_hand.exp().where(seen, 0.0)
        total = exponentials.sum(-1, keepdim=True)
        if case.sinks is not None:
            sink = getattr(model.attention(layer)._module, case.sinks)
            total = total + sink.exp()[None, :, None, None]
        torch.testing.assert_close(
            pattern.where(real, 0.0), (exponentials / total).where(real, 0.0), atol=1e-5, rtol=1e-4
        )
        z = torch.einsum("bhqk,bhkd->bqhd", pattern, repeated(v, HEADS)).flatten(2)
        torch.testing.assert_close(values["z", layer][MASK.bool()], z[MASK.bool()], atol=1e-5, rtol=1e-4)


def rotated(x: Tensor, base: float) -> Tensor:
    """Rotary position embedding (Su et al. 2021), first half of a head with its second."""
    positions = (MASK.cumsum(1) - 1).clamp(min=0)
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    for pair in range(half):
        angle = positions * base ** (-2 * pair / x.shape[-1])
        cos, sin = (f(angle)[:, None].to(x.dtype) for f in (torch.cos, torch.sin))
        out[..., pair] = x[..., pair] * cos - x[..., pair + half] * sin
        out[..., pair + half] = x[..., pair + half] * cos + x[..., pair] * sin
    return out


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@torch.no_grad()
def test_queries_keys_values_by_hand(name: str) -> None:
    """q and k are rotated (and normed, in Qwen 3) projections of what attention receives; v is not rotated."""
    model = Traced(build(name), attention_paths(name))
    values: dict[str, Tensor] = {}
    with model.trace(**feed(model._module)):
        values["x"] = model.attention(1).inputs[1]["hidden_states"].clone()
        for kind in ("q", "k", "v"):
            values[kind] = model.access.read(kind, 1).clone()
    module = model.attention(1)._module
    for kind, projection in (("q", module.q_proj), ("k", module.k_proj), ("v", module.v_proj)):
        heads = (values["x"] @ projection.weight.T).unflatten(-1, (-1, 8)).transpose(1, 2)
        if name == "qwen3" and kind != "v":
            weight = getattr(module, f"{kind}_norm").weight
            heads = weight * heads / (heads.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        expected = heads if kind == "v" else rotated(heads, 10000.0)
        torch.testing.assert_close(values[kind], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_diffllama_subtracts_one_pattern_from_another() -> None:
    """Its two attentions share q, k, scores and pattern (Ye et al. 2024); only its values are two things."""
    model = Traced(build("diffllama"), attention_paths("diffllama"))
    assert "attends twice" in str(model.access.available("v", 0))
    new = torch.softmax(torch.randn(2, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)), -1)
    got: dict[str, Tensor] = {}
    with model.trace(**feed(model._module)):
        got["values"] = model.attention(1).get("v_proj").output.clone()
        model.access.write("pattern", 1, new)
        got["z"] = model.attention(1).get("o_proj").input.clone()
    module = model.attention(1)._module
    v = got["values"].unflatten(-1, (-1, 8)).transpose(1, 2)  # two kv heads: one for each half of what is concatenated
    both = torch.cat([new @ repeated(v[:, :1], HEADS), new @ repeated(v[:, 1:], HEADS)], dim=-1)
    first, second = both.chunk(2, dim=1)
    start = 0.8 - 0.6 * math.exp(-0.3 * 1)
    weight = math.exp(float(module.lambda_q1 @ module.lambda_k1)) - math.exp(float(module.lambda_q2 @ module.lambda_k2))
    difference = first - (weight + start) * second
    normed = difference / (difference.pow(2).mean(-1, keepdim=True) + module.groupnorm.eps).sqrt()
    expected = ((1 - start) * normed).transpose(1, 2).flatten(2)
    torch.testing.assert_close(got["z"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "implementation", "dtype"),
    [
        ("llama", "sdpa", torch.bfloat16),
        ("llama", "eager", torch.bfloat16),
        ("gemma2", "eager", torch.float16),
        ("gpt_oss", "eager", torch.bfloat16),
        ("gptj", "eager", torch.bfloat16),
        ("bloom", "eager", torch.bfloat16),
        ("xglm", "eager", torch.float16),
        ("xglm", "eager", torch.bfloat16),
    ],
)
@torch.no_grad()
def test_in_half_precision(name: str, implementation: str, dtype: torch.dtype) -> None:
    """The pattern is in the model's dtype, rounded as the model rounds it."""
    plain = switched(build(name), "eager").to(dtype)
    patterns, logits = plain_patterns(plain, **feed(plain))
    model = Traced(switched(build(name), implementation).to(dtype), list(patterns))
    got: list[Tensor] = []
    with model.trace(**feed(model._module)):
        for layer in range(len(patterns)):
            model.access.read("scores", layer)
            got.append(model.access.read("pattern", layer).clone())
        got.append(model.output.logits.clone())
    for pattern, expected in zip(got, [*patterns.values(), logits], strict=True):
        assert pattern.dtype == dtype
        assert torch.equal(pattern, expected)
