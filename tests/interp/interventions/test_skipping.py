"""Skipped layers against plain transformers whose layers are taken out, or hooked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from interp.errors import InterpError
from tests.interp.reference import IDS, plain, reading, wrapped

LAYERS = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "gemma2": "model.layers"}


def without(case: str, first: int, last: int) -> nn.Module:
    """A copy of the plain model whose layers `first` to `last` give back what they are given."""

    class Identity(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.attention_type = getattr(layer, "attention_type", None)  # which mask the model hands to the layer

        def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
            return hidden_states

    model = copy.deepcopy(plain(case))
    layers = model.get_submodule(LAYERS[case])
    assert isinstance(layers, nn.ModuleList)
    for layer in range(first, last + 1):
        layers[layer] = Identity(layers[layer])
    return model


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_skipped_layers_are_not_computed(case: str) -> None:
    model = wrapped(case)
    with model.trace(input_ids=IDS, use_cache=False):
        model.skip_layers(1, 2)
        hidden = model.layers_output[2].clone().save()
        logits = model.logits.clone().save()
    with reading(case, ["resid_post.0"]) as values:
        plain(case)(input_ids=IDS)
    assert torch.equal(hidden, values["resid_post.0"])
    torch.testing.assert_close(logits, without(case, 1, 2)(input_ids=IDS, use_cache=False).logits, atol=0, rtol=0)


@torch.no_grad()
def test_one_layer_from_the_end() -> None:
    model = wrapped("gpt2")
    with model.trace(input_ids=IDS, use_cache=False):
        model.skip_layer(-1)
        logits = model.logits.clone().save()
    torch.testing.assert_close(logits, without("gpt2", 3, 3)(input_ids=IDS, use_cache=False).logits, atol=0, rtol=0)


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_a_pass_that_starts_later_with_a_saved_residual_stream(case: str) -> None:
    model = wrapped(case)
    with model.trace(input_ids=IDS, use_cache=False):
        saved = model.layers_output[1].clone().save()
        expected = model.logits.clone().save()
    with model.trace(input_ids=IDS.flip(1), use_cache=False):  # other tokens: what they give is not looked at
        model.skip_layers(0, 1, skip_with=saved)
        logits = model.logits.clone().save()
    assert torch.equal(logits, expected)


@torch.no_grad()
def test_each_invoke_skips_with_its_own_rows() -> None:
    model = wrapped("llama")
    value = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    with model.trace(use_cache=False) as tracer:
        with tracer.invoke(IDS[:1]):
            model.skip_layer(1)
            first = model.logits.clone().save()
        with tracer.invoke(IDS[1:]):
            model.skip_layer(1, value)
            second = model.logits.clone().save()
    expected = without("llama", 1, 1)(input_ids=IDS[:1], use_cache=False).logits
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
    handle = plain("llama").get_submodule("model.layers.1").register_forward_hook(lambda *_: value)
    expected = plain("llama")(input_ids=IDS[1:]).logits
    handle.remove()
    torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("start", "end", "value", "message"),
    [
        (2, 1, None, "expected start_layer <= end_layer, got 2 and 1"),
        (0, 4, None, r"layer 4 is out of range. The model has 4 layers, 0 to 3"),
        (0, 1, torch.zeros(2, 6, 31), r"expected skip_with \(batch, position, 32\), got shape \(2, 6, 31\)"),
        (0, 1, torch.zeros(32), r"got shape \(32,\)"),
    ],
)
def test_what_cannot_be_skipped(start: int, end: int, value: Tensor | None, message: str) -> None:
    model = wrapped("llama")
    with pytest.raises(InterpError, match=message):  # noqa: SIM117
        with model.trace(input_ids=IDS):
            model.skip_layers(start, end, value)
