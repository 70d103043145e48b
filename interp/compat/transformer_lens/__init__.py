"""TransformerLens 4's interface over `interp`: change the import, and a script written for TransformerLens 4 runs.

    from interp.compat.transformer_lens import TransformerBridge

    model = TransformerBridge.boot_transformers("openai-community/gpt2")
    logits, cache = model.run_with_cache("The Eiffel Tower is in")

What differs from TransformerLens 4.3, beside the errors that it made, stands in `docs/migrating.md`.
"""

from typing import Any

from interp.compat.transformer_lens import patching, utilities, utils
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
    "patching",
    "utilities",
    "utils",
]


def __getattr__(name: str) -> Any:
    if name.startswith("HookedTransformer") or name in ("HookedEncoder", "HookedEncoderDecoder"):
        raise ImportError(
            f"{name}: TransformerLens 4 has no such class any more. For HookedTransformer.from_pretrained(name) "
            "write TransformerBridge.boot_transformers(name); `enable_compatibility_mode()` folds and centres the "
            "weights as it did."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
