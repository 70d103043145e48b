"""Refuses keyword arguments that transformers' models would swallow, and inputs that are not prompts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from transformers.utils import TransformersKwargs

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["check_inputs", "check_keywords", "check_prompts", "has_images"]

# What a forward pass reads beyond its signature, in most families.
_SHARED = {*TransformersKwargs.__annotations__, "cache_position", "return_dict", "logits_to_keep", "use_cache"}

_INPUTS = {"input_ids", "inputs_embeds", "inputs", "text", "text_inputs", "messages"}


def check_keywords(model: StandardizedTransformer, fn: Any, given: Mapping[str, Any]) -> None:
    """Refuse a keyword that neither the model's forward pass nor its tokenizer takes.

    `generate` and `pipe` check their own.

    Arguments:
        model: the model.
        fn: what a trace runs; `__call__` and `model._call` are the forward pass.
        given: what nnsight is about to run it with; the inputs of invokes are under `batcher`.

    Raises:
        InterpError: there is one, with the nearest known names.
    """
    if fn not in ("__call__", model._call):
        return
    batcher = given.get("batcher")
    names = {name for name in given if name != "batcher"}
    for _, keywords in [] if batcher is None else batcher.invokes:
        names |= set(keywords)
    if not names:
        return
    known = _taken(type(model._module).forward) | _taken(type(model.tokenizer).__call__) | _SHARED | {"images"}
    for name in sorted(names - known):
        near = get_close_matches(name, known, n=1, cutoff=0.6)
        advice = f" Did you mean {near[0]!r}?" if near else ""
        raise InterpError(f"{type(model._module).__name__} takes no keyword {name!r} in a trace.{advice}")


def _taken(function: Any) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name for parameter in parameters if parameter.kind in named} - {"self"}


def check_inputs(given: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Refuse a pass without a trace that is given nothing to run on.

    Arguments:
        given, keywords: what nnsight is about to run.

    Raises:
        InterpError: there is no input, and no invoke that could bring one.
    """
    if keywords.get("batcher") is None and not given and not _INPUTS & keywords.keys():
        raise InterpError(
            "there is nothing to run the model on: give it a text, token ids or input_ids=..., e.g. "
            "model.trace('The Eiffel Tower is in', trace=False)."
        )


def check_prompts(given: Sequence[Any]) -> None:
    """Refuse what nnsight would hand to the tokenizer, and that is no text and no list of texts.

    Arguments:
        given: the inputs of one invoke.

    Raises:
        InterpError: lists of lists of texts, texts among other things, a number, or a mapping of texts.
    """
    data = given[0] if given else None
    items = data if isinstance(data, list | tuple) else []
    nested = [item for item in items if isinstance(item, list | tuple) and any(isinstance(one, str) for one in item)]
    texts = sum(isinstance(item, str) for item in items)
    if nested:
        got = (
            f"lists of texts in a list, such as {nested[0]!r:.60}: flatten them, or give each list an invoke of its own"
        )
    elif 0 < texts < len(items):
        other = next(item for item in items if not isinstance(item, str))
        got = f"{other!r:.60} ({type(other).__name__}) among texts"
    elif isinstance(data, int | float):
        got = f"{data!r}"
    elif isinstance(data, Mapping) and any(isinstance(value, str) for value in data.values()):
        got = f"a mapping of texts, with keys {', '.join(map(str, data))}: give the texts alone"
    else:
        return
    raise InterpError(f"expected a text, a list of texts, token ids or what a tokenizer returned, got {got}.")


def has_images(given: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    """Whether an invoke has images, or prompts (`interp.prompts.Prompt`) that may have some."""
    if keywords.get("images") is not None:
        return True
    data = given[0] if given else None
    return any(hasattr(one, "images") for one in (data if isinstance(data, list | tuple) else [data]))
