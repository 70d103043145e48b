"""Bridges on the recorded tiny models, made once for all tests that leave them as they are."""

from __future__ import annotations

from functools import cache

import torch

from interp.compat.transformer_lens import TransformerBridge
from tests.interp.compat.transformer_lens.recorded_models import OTHER, PROMPT, made, words

IDS, OTHER_IDS = torch.tensor(PROMPT), torch.tensor(OTHER)


def new_bridge(family: str) -> TransformerBridge:
    """A bridge of one's own, on a model of its own."""
    return TransformerBridge.boot_transformers(made(family), tokenizer=words())


@cache
def bridge_of(family: str) -> TransformerBridge:
    """The bridge of a family, for tests that take off what they put on."""
    return new_bridge(family)
