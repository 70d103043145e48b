"""TransformerLens 4's interface over `interp`."""

from interp.compat.transformer_lens.hook_points import HookPoint
from interp.compat.transformer_lens.hooked_root import HookedRootModule
from interp.compat.transformer_lens.slices import Slice

__all__ = ["HookPoint", "HookedRootModule", "Slice"]
