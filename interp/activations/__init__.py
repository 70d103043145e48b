"""Activations of prompts: caches, hooks and decompositions; collecting many, off the device as they come."""

from interp.activations.activation_cache import ActivationCache
from interp.activations.cache_blocks import CacheBlocks
from interp.activations.collecting import collect, collect_blocks
from interp.activations.model_hooks import Hook, HookPair
from interp.activations.residual_stack import ResidualStack

__all__ = [
    "ActivationCache",
    "CacheBlocks",
    "Hook",
    "HookPair",
    "ResidualStack",
    "collect",
    "collect_blocks",
]
