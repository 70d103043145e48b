"""Activations of many prompts: batches under a token budget, shared prefixes, copies off the device as they come."""

from interp.activations.collecting import collect, collect_blocks

__all__ = [
    "collect",
    "collect_blocks",
]
