"""A module of one's own with hook points.

`CachingMethods` (and `HookMethods` under it) are what every model with hook points can do. They need `hook_dict` (name
-> `HookPoint`; several names may lead to one point), `mod_dict`, and a call that passes tensors through their points.
`HookedRootModule` is torch's module with them; `TransformerBridge` overrides what is different about it:
`_position_axis`, `_fires`, `_cached`, `_run`, `check_hooks_to_add`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from interp.compat.transformer_lens.caching_methods import CachingMethods
from interp.compat.transformer_lens.hook_points import HookPoint
from interp.errors import InterpError

__all__ = ["HookedRootModule"]


class HookedRootModule(CachingMethods, nn.Module):
    """A torch module whose `HookPoint`s have names, can be hooked and cached.

    Call `self.setup()` at the end of `__init__`, after the layers were made.

    Attributes:
        name: of a module inside another; None at the root.
        mod_dict: every module inside, by dotted name.
        hook_dict: every hook point inside, by dotted name.
    """

    name: str | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.is_caching = False
        self.context_level = 0
        self.mod_dict = {}
        self.hook_dict = {}

    def setup(self) -> None:
        """Give every module inside its name, and list the hook points. Once more where modules came later."""
        modules = {name: module for name, module in self.named_modules() if name}
        for name, module in modules.items():
            module.name = name
        self.mod_dict = dict(modules)
        self.hook_dict = {name: module for name, module in modules.items() if isinstance(module, HookPoint)}
        if not self.hook_dict:
            raise InterpError(
                f"{type(self).__name__} has no HookPoint: call `setup` at the end of `__init__`, after the layers"
            )
