"""TransformerLens 4's interface over `interp`."""

from interp.compat.transformer_lens.bridge import TransformerBridge
from interp.compat.transformer_lens.config import TransformerBridgeConfig
from interp.compat.transformer_lens.hook_points import HookPoint
from interp.compat.transformer_lens.hooked_root import HookedRootModule
from interp.compat.transformer_lens.key_value_cache import (
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
)
from interp.compat.transformer_lens.named_cache import ActivationCache
from interp.compat.transformer_lens.slices import Slice

__all__ = [
    "ActivationCache",
    "HookPoint",
    "HookedRootModule",
    "Slice",
    "TransformerBridge",
    "TransformerBridgeConfig",
    "TransformerLensKeyValueCache",
    "TransformerLensKeyValueCacheEntry",
]
