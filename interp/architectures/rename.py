"""`RenameConfig`: module paths of a model that the table does not know, or knows wrongly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interp.architectures.record import Architecture, Sublayer, submodule
from interp.errors import InterpError

__all__ = ["RenameConfig", "config_value", "renamed"]

Names = str | Sequence[str]


@dataclass(frozen=True)
class RenameConfig:
    """Where things are in a model. What is given wins over the table; what is left out is taken from it.

    A name is a dotted path, or the end of one (`norm` for `model.norm`). Where several are given, the first that the
    model has counts. Paths inside a layer count from the layer.

    Arguments:
        layers_name: the list of layers.
        embed_tokens_name: the token embedding.
        ln_final_name: the norm after the last layer.
        lm_head_name: the projection onto the vocabulary.
        model_name: the module that holds the layers.
        attn_name: in a layer, attention.
        mlp_name: in a layer, the MLP.
        attn_added_name: in a layer, the module whose output is added to the residual stream after attention (a norm
            behind attention, say). None: attention itself.
        mlp_added_name: the same for the MLP.
        middle_name: in a layer, the module whose input is the residual stream between attention and MLP.
        attn_projection_name: in a layer, the last linear map of attention.
        mlp_projection_name: in a layer, the last linear map of the MLP.
        parallel: attention and MLP both read the residual stream at the layer's start.
        ignore_attn, ignore_mlp: do not check that part: what is known of it stays, and is not proved; where no layer
            has its modules, the layers have none.
        attn_head_config_key, hidden_size_config_key, vocab_size_config_key: the config's field, several to try, or the
            number itself.
        attn_prob_source: a function of an attention envoy that gives the nnsight operation whose output is the
            attention pattern, for attention that does not go through transformers' `AttentionInterface`.
    """

    attn_name: Names | None = None
    mlp_name: Names | None = None
    ln_final_name: Names | None = None
    lm_head_name: Names | None = None
    model_name: Names | None = None
    layers_name: Names | None = None
    embed_tokens_name: Names | None = None
    attn_added_name: Names | None = None
    mlp_added_name: Names | None = None
    middle_name: Names | None = None
    attn_projection_name: Names | None = None
    mlp_projection_name: Names | None = None
    parallel: bool | None = None
    ignore_mlp: bool | None = None
    ignore_attn: bool | None = None
    attn_head_config_key: Names | int | None = None
    hidden_size_config_key: Names | int | None = None
    vocab_size_config_key: Names | int | None = None
    attn_prob_source: Callable[[Any], Any] | None = None


def renamed(architecture: Architecture, module: Any, rename_config: RenameConfig | None) -> Architecture:
    """A record with the user's names put over its own.

    Arguments:
        architecture: the record.
        module: the model.
        rename_config: the user's names; None: the record as it is.

    Raises:
        InterpError: a name that the model does not have, or that fits several of its modules.
    """
    if rename_config is None:
        return architecture
    given = rename_config
    roots: dict[str, Any] = {
        "layers": _path([module], given.layers_name, "layers_name", given.model_name),
        "embedding": _path([module], given.embed_tokens_name, "embed_tokens_name", given.model_name),
        "final_norm": _path([module], given.ln_final_name, "ln_final_name", given.model_name),
        "head": _path([module], given.lm_head_name, "lm_head_name", None),
    }
    if given.model_name is not None:
        model = _path([module], given.model_name, "model_name", None)
        for role, path in roots.items():
            moved = f"{model}.{str(getattr(architecture, role)).rpartition('.')[2]}"
            if path is None and role != "head" and submodule(module, moved) is not None:
                roots[role] = moved
    record = replace(architecture, **{role: path for role, path in roots.items() if path is not None})
    layers = submodule(module, record.layers)
    if layers is None or not len(layers):
        return record
    inside = {
        argument: _path(list(layers), getattr(given, argument), argument, None)
        for argument in (
            "attn_name", "attn_added_name", "attn_projection_name", "mlp_name", "mlp_added_name", "mlp_projection_name",
            "middle_name",
        )
    }  # fmt: skip
    if any(inside.values()):  # they hold in every layer
        record = replace(record, variants=())
    attention = _sublayer(
        record.attention, inside["attn_name"], inside["attn_added_name"], inside["attn_projection_name"]
    )
    mlp = _sublayer(record.mlp, inside["mlp_name"], inside["mlp_added_name"], inside["mlp_projection_name"])
    parallel = record.parallel if given.parallel is None else given.parallel
    middle = inside["middle_name"] or record.middle
    no_attention = bool(given.ignore_attn) and not _is_there(layers, attention)
    no_mlp = bool(given.ignore_mlp) and not _is_there(layers, mlp)
    if parallel or ((no_attention or no_mlp) and inside["middle_name"] is None):
        middle = None  # one stage
    elif record.parallel and middle is None:
        raise InterpError(
            "rename_config: parallel=False needs middle_name=: in a layer, the module whose input is the residual "
            "stream between attention and MLP."
        )
    return replace(
        record,
        attention=None if no_attention else attention,
        mlp=None if no_mlp else mlp,
        middle=middle,
        parallel=parallel,
    )


def config_value(config: Any, key: Names | int | None, argument: str) -> int | None:
    """A size that the user named: the number itself, or the config's field; None where the user named none.

    Raises:
        InterpError: the config has no such field.
    """
    if key is None or isinstance(key, int):
        return key
    for name in [key] if isinstance(key, str) else key:
        try:
            value = getattr(config, name, None)
        except RuntimeError:  # transformers': the layers differ in it, so there is no one value
            continue
        if isinstance(value, int):
            return value
    raise InterpError(f"rename_config: {argument}={key!r}, but {type(config).__name__} has no such number.")


def _is_there(layers: Any, part: Sublayer | None) -> bool:
    """Whether some layer has the modules of a sublayer."""
    return part is not None and any(
        submodule(layer, part.module) is not None and any(submodule(layer, path) is not None for path in part.sources)
        for layer in layers
    )


def _sublayer(own: Sublayer | None, module: str | None, added: str | None, projection: str | None) -> Sublayer | None:
    if module is None and added is None and projection is None:
        return own
    if module is not None and (
        own is None or module != own.module
    ):  # another module than the record's: nothing that the record says of its own need hold
        sublayer = Sublayer(module, projection=_moved(own, module))
    else:
        sublayer = own or Sublayer(str(added or projection))
    if added is not None:
        sublayer = replace(sublayer, added=(added,))
    return sublayer if projection is None else replace(sublayer, projection=projection)


def _moved(own: Sublayer | None, module: str) -> str | None:
    """The record's projection inside the user's module."""
    if own is None or own.projection is None or not own.projection.startswith(f"{own.module}."):
        return None
    return module + own.projection.removeprefix(own.module)


def _path(modules: list[Any], names: Names | None, argument: str, parent: Names | None) -> str | None:
    """The path of the first name that a model, or some of its layers, has: as a whole path, or as the one end of it."""
    if names is None:
        return None
    tried = [names] if isinstance(names, str) else list(names)
    parents = [] if parent is None else [parent] if isinstance(parent, str) else list(parent)
    paths = list(dict.fromkeys(path for module in modules for path, _ in module.named_modules()))
    for name in tried:
        for whole in (name, *(f"{prefix}.{name}" for prefix in parents)):
            if whole in paths:
                return whole
        ending = [path for path in paths if path.endswith(f".{name}")]
        shortest = min((path.count(".") for path in ending), default=0)
        ending = [path for path in ending if path.count(".") == shortest]
        if len(ending) > 1:
            raise InterpError(
                f"rename_config: {argument}={name!r} fits {ending[0]!r} and {ending[1]!r}. Write the path."
            )
        if ending:
            return ending[0]
    raise InterpError(
        f"rename_config: {argument}={names!r}: {type(modules[0]).__name__} has no such module. It has "
        f"{', '.join(path for path in paths if path and path.count('.') < 2)[:400]}."
    )
