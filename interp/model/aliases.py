"""The standard names of modules, beside the model's own: `layers`, `self_attn`, `mlp`, `ln_final`, ..."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from interp.architectures import Architecture, submodule
from interp.errors import InterpError

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


def merged(standard: Names, given: Mapping[Any, Any] | None, *, reserved: Collection[str] = ()) -> Names:
    """The standard names with the user's further ones.

    Arguments:
        standard: as `aliases` gives them.
        given: the user's, own name -> further name or names.
        reserved: names of the model's own attributes, which no module can have.

    Raises:
        InterpError: a reserved name is given.
    """
    names = {key: list(values) for key, values in standard.items()}
    for key, values in (given or {}).items():
        for value in [values] if isinstance(values, str) else values:
            if value in reserved:
                raise InterpError(
                    f"rename: {key!r} cannot be called {value!r}, which a model has already. Choose another."
                )
            if value not in names.setdefault(key, []):
                names[key].append(value)
    return names
