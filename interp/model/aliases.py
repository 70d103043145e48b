"""The standard names of modules, beside the model's own: `layers`, `self_attn`, `mlp`, `ln_final`, ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.architectures import Architecture, submodule

__all__ = ["aliases", "merged"]

Names = dict[Any, list[str]]


def aliases(architecture: Architecture, module: Any) -> Names:
    """What nnsight is told to call a model's modules, further to their own names.

    Arguments:
        architecture: the record of the model.
        module: the model.

    Returns:
        Path, or class, of a module -> its standard name; without those that are called so already.
    """
    names: Names = {}
    roots = {"layers": architecture.layers, "embed_tokens": architecture.embedding, "lm_head": architecture.head}
    if architecture.final_norm is not None:
        roots["ln_final"] = architecture.final_norm
    for name, path in roots.items():
        if path != name and not hasattr(module, name):  # ModernBERT calls another module lm_head
            names.setdefault(path, []).append(name)
    for layer in submodule(module, architecture.layers) or ():
        for role, sublayer in architecture.sublayers(layer):
            name = {"attention": "self_attn", "mlp": "mlp"}.get(role, sublayer.module)
            if sublayer.module == name or hasattr(layer, name):
                continue
            # Where one name holds different modules in different layers, the alias follows the module's class.
            key: Any = type(submodule(layer, sublayer.module)) if sublayer.only else sublayer.module
            names[key] = [name]
    if architecture.mlp is not None and architecture.mlp.is_spread:  # no module is the MLP
        names.pop(architecture.mlp.module, None)
    return names


def merged(standard: Names, given: Mapping[Any, Any] | None) -> Names:
    """The standard names with the user's further ones."""
    names = {key: list(values) for key, values in standard.items()}
    for key, values in (given or {}).items():
        for value in [values] if isinstance(values, str) else values:
            if value not in names.setdefault(key, []):
                names[key].append(value)
    return names
