"""One value of a config."""

from __future__ import annotations

from typing import Any

__all__ = ["value_of"]


def value_of(config: Any, *names: str) -> Any:
    """The first of several fields that a config has and that is not None; None where there is none.

    Arguments:
        config: a transformers config. Of a field that differs by layer, the value of most layers is taken.
        names: the fields' names.
    """
    for name in names:
        inside, _, rest = name.partition(".")
        if rest:
            nested = getattr(config, inside, None)
            value = nested.get(rest) if isinstance(nested, dict) else getattr(nested, rest, None)
        elif getattr(config, "attribute_map", {}).get(name, name) in (
            getattr(config, "per_layer_attributes", None) or ()
        ):
            values = [getattr(layer, name, None) for layer in config.per_layer_config]
            value = max(values, key=values.count)
        else:
            value = getattr(config, name, None)
        if value is not None:
            return value
    return None
