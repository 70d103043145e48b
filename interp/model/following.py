"""Notices modules that were replaced after a model was wrapped, and resolves the names again.

Adapters (peft's `add_adapter`, `inject_adapter_in_model`), `quantize_`, `resize_token_embeddings`, pruned layers and
plain assignments change a model's modules under its wrapper, which would then read and write where nothing runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnsight.intervention import aliasing
from nnsight.intervention.envoy import Envoy
from torch import nn

from interp.architectures import RenameConfig, candidates
from interp.errors import InterpError
from interp.model.accessors import merged
from interp.model.loading import check_not_compiled
from interp.model.verdicts import verdicts_of

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["RESERVED", "Given", "ModuleTree", "follow"]

# What a model calls its own, so that no module can be called so.
RESERVED = (
    "architecture", "tokenizer", "spec", "tail", "parallel", "attention_access", "fed", "trace_memory",
    "position_limit", "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size",
    "vocab_size", "processor", "vision_tower", "projector", "num_vision_layers",
)  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """What the user gave with a model; it applies again when modules are replaced."""

    rename_config: RenameConfig | None
    rename: Mapping[Any, Any] | None
    verify: bool


class ModuleTree:
    """A snapshot of a model's modules and the kinds of their weights.

    Compared by identity: a fraction of a microsecond a module, so that every pass can ask.

    Arguments:
        module: the model; None: nothing, which never changes.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        parts = [] if module is None else list(module.modules())
        self._now = [part._modules for part in parts]
        self._then = [dict(part._modules) for part in parts]
        self._parts = parts
        # Quantization may leave the module and put weights of another type into it.
        self._weights = [part._parameters for part in parts if part._parameters]
        self._types = [[*map(type, weights.values())] for weights in self._weights]

    def is_current(self) -> bool:
        """Whether no module was added, removed, replaced or compiled since, and no weight has another type."""
        return (
            self._now == self._then
            and self._types == [[*map(type, each.values())] for each in self._weights]
            and all(part._compiled_call_impl is None for part in self._parts)
        )

    def __reduce__(self) -> tuple[Any, ...]:  # what is sent with a trace to a server names no modules
        return ModuleTree, ()


def follow(model: StandardizedTransformer) -> None:
    """Resolve the names of a model again, prove them, and drop what was cached about its former modules.

    Arguments:
        model: the model, some of whose modules were replaced.

    Raises:
        InterpError: the names do not fit any more, now and at each pass until they do.
    """
    module, given = model._module, model._given
    _log.info("%s: modules were replaced since it was wrapped; its names are proved again.", type(module).__name__)
    model._tree = ModuleTree()  # what is done here is no pass
    edits, model._edits = model._edits, []  # names are proved on the model itself, as they were at first
    try:
        check_not_compiled(module)
        found = candidates(module.config, module, given.rename_config)
        _mirror(model, merged(model._standard_names(found.records[0], module), given.rename, reserved=RESERVED))
        verdicts_of(model).clear()
        model._choose(found, module.config)
    except InterpError as error:
        model._tree = None
        raise InterpError(
            f"modules of {type(module).__name__} were changed since it was wrapped, and now: {error} Or put back what "
            "was there."
        ) from error
    except BaseException:
        model._tree = None
        raise
    finally:
        model._edits = edits


def _mirror(root: Any, names: Mapping[Any, Any]) -> None:
    """Let a tree of envoys be that of its model's modules as they are now.

    An envoy whose module was replaced stays, with its edits, and stands for the new module.

    Arguments:
        root: the model's envoy.
        names: the further names of modules, as nnsight takes them.

    Raises:
        InterpError: a name that would now hide a module of the same name.
    """
    root._update(root._module)
    envoys = list(_envoys(root))
    for envoy in envoys:  # nnsight forgets a module that took another's place
        root.interleaver.envoys[id(envoy._module)] = envoy
        envoy._rename = names
        for alias, path in list(envoy._aliases.items()):
            if alias not in envoy._child_map and _get(envoy, path) is not envoy.__dict__.get(alias):
                del envoy._aliases[alias]
                envoy.__dict__.pop(alias, None)
    for envoy in envoys:
        try:
            aliasing.bind(envoy)
        except ValueError as error:
            raise InterpError(
                f"a module that was added to {envoy.path!r} has a standard name of another ({error}). Put it in under "
                "the model's own name of what it replaces."
            ) from error


def _get(envoy: Any, path: str) -> Any:
    try:
        return envoy.get(path.lstrip("."))
    except AttributeError:
        return None


def _envoys(envoy: Envoy) -> Iterator[Envoy]:
    yield envoy
    for child in envoy._children:
        yield from _envoys(child)
