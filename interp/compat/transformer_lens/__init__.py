"""TransformerLens 4's interface over `interp`: change the import, and a script written for it runs.

from interp.compat.transformer_lens import HookedRootModule, HookPoint, TransformerBridgeConfig, utils
"""

from interp.compat.transformer_lens import utilities, utils
from interp.compat.transformer_lens.config import TransformerBridgeConfig
from interp.compat.transformer_lens.hook_points import HookPoint
from interp.compat.transformer_lens.hooked_root import HookedRootModule
from interp.compat.transformer_lens.key_value_cache import (
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
)

__all__ = [
    "HookPoint",
    "HookedRootModule",
    "TransformerBridgeConfig",
    "TransformerLensKeyValueCache",
    "TransformerLensKeyValueCacheEntry",
    "utilities",
    "utils",
]
