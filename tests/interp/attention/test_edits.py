"""An edit at a point against the same edit made by hand in a plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import build
from tests.interp.attention.models import KINDS, MASK, Traced, attention_paths, feed, switched
from tests.interp.attention.twins import (
    Edit,
    eager_by_hand,
    eager_replaced,
    features_zeroed,
    plain_logits,
    softmax_edited,
)

LAYER = 1
HIDDEN = torch.finfo(torch.float32).min


def half_of_head(head: int) -> Edit:
    """One head halved and turned round."""

    def edit(x: Tensor) -> Tensor:
        x[:, head] = x[:, head].flip(-1) * 0.5
        return x

    return edit


def knocked_out(x: Tensor) -> Tensor:
    """No query sees the key at column 5."""
    x[..., 5] = HIDDEN
    return x


def without_head(x: Tensor) -> Tensor:
    """Head 2 attends to nothing."""
    x[:, 2] = 0
    return x


EDITS: dict[str, Edit] = {
    "q": half_of_head(3),
    "k": half_of_head(0),
    "v": half_of_head(1),
    "scores": knocked_out,
    "pattern": without_head,
}
# family -> how it has sinks
ROUTED = {
    "llama": "none",
    "gemma2": "none",
    "qwen3": "none",
    "gpt2": "none",
    "gpt_oss": "column",
    "granite_swa": "scale",
}


@torch.no_grad()
def edited_logits(model: Traced, kind: str, edit: Edit, *, in_place: bool = False, **more: Any) -> Tensor:
    """The logits of a trace with one edit."""
    got = []
    with model.trace(**feed(model._module, **more)):
        value = model.access.read(kind, LAYER)
        if in_place:
            edit(value)
        else:
            model.access.write(kind, LAYER, edit(value.clone()))
        got.append(model.output.logits.clone())
    return got[0]


def assert_same(got: Tensor, expected: Tensor, unedited: Tensor) -> None:
    """Equal where there are tokens, and not by doing nothing."""
    real = MASK.bool()
    torch.testing.assert_close(got[real], expected[real], atol=2e-5, rtol=1e-5)
    assert (expected - unedited)[real].abs().max() > 2e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROUTED)
def test_edit_in_a_routed_family(name: str, kind: str) -> None:
    plain = switched(build(name), "eager")
    unedited = plain_logits(plain)
    with eager_replaced(_attention(plain, name), eager_by_hand(LAYER, kind, lambda x: x, ROUTED[name])):
        torch.testing.assert_close(plain_logits(plain), unedited, atol=2e-5, rtol=1e-5)
    with eager_replaced(_attention(plain, name), eager_by_hand(LAYER, kind, EDITS[kind], ROUTED[name])):
        expected = plain_logits(plain)
    loaded_as = build(name).config._attn_implementation
    for implementation in dict.fromkeys((loaded_as, "eager")):
        model = Traced(switched(build(name), implementation), attention_paths(name))
        for in_place in (False, True):
            assert_same(edited_logits(model, kind, EDITS[kind], in_place=in_place), expected, unedited)
        torch.testing.assert_close(plain_logits(model._module)[1], unedited[1], atol=2e-5, rtol=1e-5)


def _attention(module: torch.nn.Module, name: str) -> torch.nn.Module:
    return module.get_submodule(attention_paths(name)[0])


# family -> the projection in its attention, and for head h where in its output q, k and v are
WIDTH = 8


def _thirds(kind: str, head: int) -> slice:
    """All of q, then of k, then of v."""
    start = "qkv".index(kind) * 4 * WIDTH + head * WIDTH
    return slice(start, start + WIDTH)


def _interleaved(kind: str, head: int) -> slice:
    """q, k and v of each head."""
    start = (3 * head + "qkv".index(kind)) * WIDTH
    return slice(start, start + WIDTH)


def _codegen(kind: str, head: int) -> slice:
    """q, v and k of each of four parts, of which a part is a head here."""
    start = (3 * head + "qvk".index(kind)) * WIDTH
    return slice(start, start + WIDTH)


def _shared(kind: str, head: int) -> slice:
    """q of each head, then the one k and the one v of all."""
    start = {"q": head, "k": 4, "v": 5}[kind] * WIDTH
    return slice(start, start + WIDTH)


def _own(kind: str, head: int) -> slice:
    """A projection of its own."""
    return slice(head * WIDTH, (head + 1) * WIDTH)


PROJECTIONS = {
    "bloom": ("query_key_value", _interleaved),
    "codegen": ("qkv_proj", _codegen),
    "falcon": ("query_key_value", _shared),
    "falcon_alibi": ("query_key_value", _interleaved),
    "gpt_neo": ("{}_proj", _own),
    "gptj": ("{}_proj", _own),
    "mpt": ("Wqkv", _thirds),
    "openai-gpt": ("c_attn", _thirds),
    "xglm": ("{}_proj", _own),
}


def zeroed(head: int) -> Edit:
    """One head set to zero."""

    def edit(x: Tensor) -> Tensor:
        x[:, head] = 0
        return x

    return edit


# Only Falcon has another than eager.
LOADED = [(name, "eager") for name in PROJECTIONS] + [("falcon", "sdpa"), ("falcon_alibi", "sdpa")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "implementation"), LOADED)
def test_edit_in_a_family_of_its_own(name: str, implementation: str, kind: str) -> None:
    # Falcon with alibi adds it twice in transformers' eager, once under sdpa: an edit is compared within one of them.
    plain = switched(build(name), implementation if kind in ("q", "k", "v") else "eager")
    unedited = plain_logits(plain)
    paths = attention_paths(name)
    head = 0 if name == "falcon" and kind in "kv" else 2  # it has one key/value head
    edit = EDITS[kind] if kind in ("scores", "pattern") else zeroed(head)
    if kind in ("scores", "pattern"):
        with softmax_edited(LAYER, kind, edit):
            expected = plain_logits(plain)
    else:
        projection, features = PROJECTIONS[name]
        module = plain.get_submodule(paths[LAYER]).get_submodule(projection.format(kind))
        with features_zeroed(module, features(kind, head)):
            expected = plain_logits(plain)
    model = Traced(switched(build(name), implementation), paths)
    if (reason := model.access.available(kind, LAYER)) is not None:
        assert name.startswith("falcon") and "attn_implementation=" in reason
        assert (kind == "v") == (implementation == "eager")
        return
    for more in [{}] if name == "openai-gpt" else [{}, {"use_cache": True}]:  # it has no cache
        for in_place in (False, True):
            got = edited_logits(model, kind, edit, in_place=in_place, **more)
            assert_same(got, expected, unedited)
