"""The readout in two parts: its logits are the whole readout's, and a head that is more than a matrix has no parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from interp.model import StandardizedTransformer
from interp.model.head import plain_head
from tests.families import build
from tests.tiny import HIDDEN_SIZE, tiny_tokenizer


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "cohere", "granite", "phi", "modernbert-decoder"])
def test_parts_give_the_readout(family):
    model = StandardizedTransformer(build(family), tokenizer=tiny_tokenizer(), verify=False)
    hidden = torch.randn(2, 3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)).double()  # the model's is used
    expected = model.readout(hidden).detach()
    parts = model.readout_parts()
    assert parts is not None
    states = parts.states(hidden)
    assert not states.requires_grad
    assert parts.vocab_size == expected.shape[-1]
    out = torch.empty(6, 150)
    parts.write(states.flatten(0, 1), 100, 250, out)
    torch.testing.assert_close(out.view(2, 3, 150), expected[..., 100:250])
    ids = torch.tensor([[0, 399], [7, 7]])
    chosen = expected.gather(2, ids[:, None].expand(2, 3, 2))
    torch.testing.assert_close(parts.of(states, ids), chosen)


def test_no_parts_in_a_trace():
    model = StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), verify=False)
    found: list[Any] = []
    with torch.no_grad(), model.trace([[1, 2, 3]]):
        model.read("resid_post.0")
        found.append(model.readout_parts())
    assert found == [None]
    assert model.readout_parts() is not None


class _Half(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def _head(**changes: Any) -> nn.Linear:
    head = nn.Linear(4, 6)
    for name, value in changes.items():
        setattr(head, name, value)
    return head


def test_what_is_a_plain_head():
    assert plain_head(_head())
    assert plain_head(_head(_hf_hook=SimpleNamespace(offload=False)))  # accelerate has placed it, no more
    assert not plain_head(_head(_hf_hook=SimpleNamespace(offload=True)))
    assert not plain_head(_head(_hf_hook=SimpleNamespace()))  # a hook of someone else's
    assert not plain_head(_head(forward=lambda states: states))
    assert not plain_head(nn.Linear(4, 6, device="meta"))
    assert not plain_head(nn.Identity())
    assert not plain_head(type("Quantized", (nn.Linear,), {})(4, 6))
    changed = _head()
    parametrize.register_parametrization(changed, "weight", _Half())
    assert not plain_head(changed)
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        hooked = _head()
        handle = getattr(hooked, register)(lambda *_: None)
        assert not plain_head(hooked)
        handle.remove()
        assert plain_head(hooked)
