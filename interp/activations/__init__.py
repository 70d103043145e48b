"""Activations of many prompts: batches under a token budget, shared prefixes, copies off the device as they come."""

from interp.activations.batches import batches_by_length, batches_by_tokens, left_padded, right_padded, whole_inputs
from interp.activations.collecting import collect, collect_blocks

__all__ = [
    "batches_by_length",
    "batches_by_tokens",
    "collect",
    "collect_blocks",
    "left_padded",
    "right_padded",
    "whole_inputs",
]
