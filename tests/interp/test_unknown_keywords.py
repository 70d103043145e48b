"""An argument that nothing takes is refused, whatever is called: no public function swallows keywords."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

import pytest
import torch

from interp import InterpError, StandardizedTransformer
from interp.compat.transformer_lens import TransformerBridge, TransformerBridgeConfig, patching
from interp.patching import activation_patching
from tests.tiny import tiny_model, tiny_tokenizer

ROOMS = [
    "interp", "interp.activations", "interp.compat.transformer_lens", "interp.compat.transformer_lens.patching",
    "interp.compat.transformer_lens.utils", "interp.interventions", "interp.lenses", "interp.model", "interp.patching",
    "interp.plots", "interp.positions", "interp.prompts", "interp.readout", "interp.results", "interp.sites",
    "interp.translators",
]  # fmt: skip
IDS = torch.tensor([[1, 44, 55, 66], [1, 77, 88, 99]])
PASSED_ON = {"StandardizedTransformer.interleave"}  # nnsight's own: the keywords of whatever it is told to run


def is_protocol(given: Any) -> bool:
    return bool(getattr(given, "_is_protocol", False))


def public() -> Iterator[tuple[str, Any]]:
    """Functions, classes and methods by name, each once."""
    seen: set[int] = set()
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            given = getattr(module, name)
            found = [(name, given)]
            if inspect.isclass(given) and not is_protocol(given):
                methods = [(method, getattr(given, method)) for method in vars(given) if not method.startswith("_")]
                found += [(f"{name}.{method}", value) for method, value in methods]
            for label, one in found:
                own = getattr(one, "__func__", one)
                if not str(getattr(own, "__module__", "")).startswith("interp") or id(own) in seen:
                    continue
                if isinstance(own, FunctionType) or (inspect.isclass(own) and not is_protocol(own)):
                    seen.add(id(own))
                    yield label, own


def takes_any(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a builtin
        return False
    return any(one.kind is one.VAR_KEYWORD for one in parameters)


def test_what_takes_keywords_passes_none_over() -> None:
    module = tiny_model("gpt2")
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    bridge = TransformerBridge(model)
    _, cache = bridge.run_with_cache(IDS)
    result = activation_patching(model, [[1, 5, 6]], [[1, 7, 6]], positions="last", answers=[(3, 4)])
    grids: dict[str, Callable[..., Any]] = {
        name: partial(getattr(patching, name), bridge, IDS, cache, lambda logits: logits[0, -1, 3])
        for name in (
            "get_act_patch_attn_head_all_pos_every", "get_act_patch_attn_head_by_pos_every",
            "get_act_patch_block_every",
        )
    }  # fmt: skip

    def traced(**keywords: Any) -> None:
        with model.trace(IDS, **keywords):
            model.read("embed").clone()

    def scanned(**keywords: Any) -> None:
        with model.scan(IDS, **keywords):
            model.read("embed").clone()

    calls: dict[str, Callable[..., Any]] = {
        "StandardizedTransformer": partial(StandardizedTransformer, module),
        "StandardizedTransformer.trace": traced,
        "StandardizedTransformer.scan": scanned,
        "NamedArrays.select": result.select,
        "TransformerBridge.run_with_cache": partial(bridge.run_with_cache, IDS),
        "TransformerBridge.run_with_hooks": partial(bridge.run_with_hooks, IDS),
        "TransformerBridge.get_caching_hooks": bridge.get_caching_hooks,
        "TransformerBridgeConfig": partial(TransformerBridgeConfig, n_layers=1, d_model=8, n_ctx=8, d_head=4),
        "TransformerBridgeConfig.from_model": partial(TransformerBridgeConfig.from_model, model),
        **grids,
    }
    assert set(calls) | PASSED_ON == {name for name, function in public() if takes_any(function)}
    for name, call in calls.items():
        with pytest.raises((InterpError, TypeError), match="colour"):
            call(colour=1)
            pytest.fail(f"{name} takes anything")
