"""Every family's points against plain transformers in eager, with a padded prompt in the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.families import build
from tests.interp.attention.models import (
    KINDS,
    MASK,
    WITH_ATTENTION,
    WITHOUT_ATTENTION,
    Traced,
    feed,
    plain_patterns,
    switched,
)

FALCONS = [name for name in WITH_ATTENTION if name.startswith("falcon") and name != "falcon_h1"]
# Sinks take a part of each row.
SINKS = ("gpt_oss", "flint", "mimo_v2_flash")


@torch.no_grad()
def read_all(model: Traced, *, write: bool = False) -> tuple[dict[tuple[str, int], Tensor], Tensor]:
    """Every point of every layer from one trace, and the logits; `write` puts a copy in the place of each."""
    values: dict[tuple[str, int], Tensor] = {}
    logits = []
    with model.trace(**feed(model._module)):
        for layer in range(len(model.paths)):
            for kind in KINDS:
                if model.access.available(kind, layer) is None:
                    values[kind, layer] = model.access.read(kind, layer).clone()
                    if write:
                        model.access.write(kind, layer, values[kind, layer].clone())
        logits.append(model.output.logits.clone())
    return values, logits[0]


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_patterns_are_those_of_eager(name: str) -> None:
    reference = switched(build(name), "eager")
    patterns, expected_logits = plain_patterns(reference, **feed(reference))
    assert patterns
    module = build(name)
    loaded_as = module.config.get_text_config()._attn_implementation
    with torch.no_grad():
        unasked = module(**feed(module)).logits
    model = Traced(module, list(patterns))
    for implementation in dict.fromkeys((loaded_as, "eager")):
        switched(module, implementation)
        values, logits = read_all(model)
        for layer, expected in enumerate(patterns.values()):
            if name in FALCONS and implementation == "sdpa":
                continue
            assert torch.equal(values["pattern", layer], expected)
            by_hand = values["scores", layer].softmax(-1)
            if name in SINKS:
                real = MASK[:, None, :, None].bool()
                rows = values["pattern", layer].sum(-1, keepdim=True)
                assert (rows <= 1 + 1e-6).all()
                share = (values["pattern", layer] / rows).where(real, by_hand)
                torch.testing.assert_close(share, by_hand, atol=1e-6, rtol=1e-4)
            else:
                torch.testing.assert_close(values["pattern", layer], by_hand, atol=1e-6, rtol=0)
        if not (name in FALCONS and implementation == "sdpa"):
            assert torch.equal(logits, expected_logits)
        again, rewritten = read_all(model, write=True)
        if name.startswith("bloom"):  # a copy of its keys lies otherwise in memory, and is multiplied otherwise
            torch.testing.assert_close(rewritten, logits, atol=1e-5, rtol=0)
        else:
            assert torch.equal(rewritten, logits)
            assert all(torch.equal(again[point], values[point]) for point in values)
    switched(module, loaded_as)
    with torch.no_grad():
        assert torch.equal(module(**feed(module)).logits, unasked)


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_families_without_attention_have_none(name: str) -> None:
    """Every family of the table is tested above, or gives nothing that could be tested."""
    module = switched(build(name), "eager")
    patterns, _ = plain_patterns(module, **feed(module))
    assert not patterns
