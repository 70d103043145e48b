"""Ablation queries as interventions: attention is changed behind the softmax, and what is left is not renormalised.

| type | what becomes of the pattern, in the named heads alone |
|---|---|
| `std` | nothing attends to the tokens of `elem-to-ablate` |
| `full-head` | nothing attends to anything |
| `keep-self-attn` | the tokens of `elem-to-ablate`, without it all, attend to themselves alone |
| `flash-attn` | as `std`, by way of the values, which there are under every implementation of attention |
| `block-img-txt`, `flash-block-img-txt` | no token of the text attends to one of an image |
| `block-img-img`, `flash-block-img-img` | no token of an image attends to one of an image |

New tokens of a generation are text, and tokens like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.projections import heads_of
from interp.compat.easyroutine.query_tables import query_rows
from interp.errors import InterpError, nearest
from interp.interventions import Intervention
from interp.interventions.shapes import site_shapes
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["TYPES", "ablations", "element_tokens"]

_log = logging.getLogger(__name__)

TYPES = (
    "std", "full-head", "keep-self-attn", "flash-attn", "block-img-txt", "block-img-img", "flash-block-img-txt",
    "flash-block-img-img",
)  # fmt: skip
_OF_ONE_PAPER = "block-img-txt-wout-special-pixtral"
_OF_AN_ELEMENT = ("std", "keep-self-attn", "flash-attn")
_KNOWN = ("elem-to-ablate", "head-layer-couple", "head", "layer")

Heads = dict[tuple[int, ...] | None, list[int]]
"""Heads (None: all) -> the layers in which it is these."""


def ablations(queries: Any, batch: InputBatch, model: StandardizedTransformer) -> list[Intervention]:
    """Ablation queries as interventions.

    Arguments:
        queries: `type`, `elem-to-ablate` (`@` and the name of a position, or the text of one token, whose first
            occurrence it is) and `head-layer-couple` ([[head, layer], ...] or ["all"]; in a table also columns `head`
            and `layer`), as a list, a dictionary or a table; None: none.
        batch: the examples.
        model: the model.

    Raises:
        InterpError: an unknown type, key, head or layer, or a token that an example lacks; says what there is.
    """
    made: list[Intervention] = []
    silenced: dict[int, set[int]] = {}  # whole heads, each once
    for index, row in enumerate(query_rows(queries, "ablation_queries", ["type"], _KNOWN)):
        name = f"ablation_queries[{index}]"
        kind, element = _checked(row, name), row.get("elem-to-ablate")
        couples = _couples(row, model, name)
        tokens = None if element is None or kind not in _OF_AN_ELEMENT else element_tokens(element, batch, model, name)
        if kind == "full-head":
            for layer, heads in couples.items():
                silenced.setdefault(layer, set()).update(heads)
        elif kind == "flash-attn":
            made += _by_values(couples, tokens, model)
        elif kind == "keep-self-attn":
            goes_on = element in (None, "@all")
            where: Any = "all" if goes_on else tokens
            made += [
                Intervention(site, where, "isolate", steps="every" if goes_on else "prompt")
                for site in _sites(couples, model)
            ]
        elif kind == "std":
            made += _cut(couples, model, "all", tokens, "every")
        else:
            images = batch.tokens("all-image")
            is_text = kind.endswith("txt")
            queried = batch.tokens("all-text") if is_text else images
            made += _cut(couples, model, queried, images, "every" if is_text else "prompt")
    whole = {layer: sorted(heads) for layer, heads in silenced.items()}
    return [*made, *(Intervention(site, "all", "zero", steps="every") for site in _sites(whole, model))]


def _checked(row: Mapping[str, Any], name: str) -> str:
    kind, element = row["type"], row.get("elem-to-ablate")
    if kind == _OF_ONE_PAPER:
        raise InterpError(
            f"{name}: {kind} left out six tokens by their places in the prompts of one paper. Name the tokens: "
            "Intervention(type='grid', activation='pattern_L0H0', token_positions=(['all-text'], [3, 4]))."
        )
    if kind not in TYPES:
        raise InterpError(f"{name}: type {kind!r} is unknown.{nearest(str(kind), TYPES)}")
    if element is None and kind in ("std", "flash-attn"):
        raise InterpError(f"{name}: {kind} needs elem-to-ablate, e.g. '@last'.")
    if element is not None and kind not in _OF_AN_ELEMENT:
        _log.warning("%s: %s takes no elem-to-ablate; %r has no effect.", name, kind, element)
    return str(kind)


def _couples(row: Mapping[str, Any], model: StandardizedTransformer, name: str) -> dict[int, list[int]]:
    """Layer -> the heads that are named there."""
    couples: Any = row.get("head-layer-couple")
    if couples is None and "head" in row and "layer" in row:
        couples = [[row["head"], row["layer"]]]
    several = couples.tolist() if callable(getattr(couples, "tolist", None)) else couples
    if several == "all" or (isinstance(several, Sequence) and list(several) == ["all"]):
        layers = [layer for layer in range(model.num_layers) if model.has(f"pattern.{layer}")]
        return {layer: list(range(heads_of(model, layer))) for layer in layers}
    if not isinstance(several, Sequence) or isinstance(several, str) or not several:
        raise InterpError(f"{name}: head-layer-couple: expected [[head, layer], ...] or ['all'], got {couples!r:.80}.")
    found: dict[int, set[int]] = {}
    for couple in several:
        if not isinstance(couple, Sequence) or len(couple) != 2 or not all(_is_index(one) for one in couple):
            raise InterpError(f"{name}: head-layer-couple: expected [head, layer], got {couple!r:.80}.")
        head, layer = (int(one) for one in couple)
        heads = heads_of(model, layer) if 0 <= layer < model.num_layers else model.num_heads
        if not 0 <= head < heads or not 0 <= layer < model.num_layers:
            raise InterpError(
                f"{name}: head-layer-couple {[head, layer]}: heads are 0 to {heads - 1} and layers 0 to "
                f"{model.num_layers - 1}, the head first."
            )
        found.setdefault(layer, set()).add(head)
    return {layer: sorted(heads) for layer, heads in sorted(found.items())}


def _is_index(given: Any) -> bool:
    return isinstance(given, int) or (isinstance(given, float) and given.is_integer())  # of a table with gaps


def element_tokens(element: Any, batch: InputBatch, model: StandardizedTransformer, name: str) -> list[list[int]]:
    """The tokens of each example that an element of a query means.

    Arguments:
        element: `@` and the name of a position, an integer or a pair; or the text of one token.
        batch: the examples.
        model: the model, whose tokenizer reads the text.
        name: of the query, for messages.

    Raises:
        InterpError: an unknown name, a text that is not one token, or an example without it.
    """
    if not isinstance(element, str):
        return batch.tokens(tuple(element) if isinstance(element, list) else element)
    if element.startswith("@"):
        return batch.tokens(element[1:].strip())
    ids = {tuple(model.tokenizer.encode(element, add_special_tokens=False))}
    known = model.tokenizer.get_vocab().get(element)
    ids = {one for one in (*ids, *([] if known is None else [(known,)])) if len(one) == 1}
    if not ids:
        raise InterpError(
            f"{name}: {element!r} is not one token of this model. For the name of a position write '@{element}'."
        )
    found = []
    for index, example in enumerate(batch.encoded):
        at = next((place for place, token in enumerate(example.input_ids) if (token,) in ids), None)
        if at is None:
            raise InterpError(
                f"{name}: example {index} has no token {element!r}. For the name of a position write '@{element}'."
            )
        found.append([at])
    return found


def _sites(couples: Mapping[int, Sequence[int]], model: StandardizedTransformer, kind: str = "pattern") -> list[str]:
    """Spellings of sites, one for all layers in which the heads are the same."""
    by_heads: Heads = {}
    for layer, heads in couples.items():
        is_all = kind == "pattern" and len(heads) == heads_of(model, layer)
        by_heads.setdefault(None if is_all else tuple(heads), []).append(layer)
    return [
        f"{kind}.{_listed(layers)}" + ("" if heads is None else f".h{_listed(heads)}")
        for heads, layers in by_heads.items()
    ]


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _cut(
    couples: Mapping[int, Sequence[int]], model: StandardizedTransformer, queries: Any, keys: Any, steps: str
) -> list[Intervention]:
    return [
        Intervention(site, queries, "knockout", from_positions=keys, steps=steps) for site in _sites(couples, model)
    ]


def _by_values(couples: Mapping[int, Sequence[int]], tokens: Any, model: StandardizedTransformer) -> list[Intervention]:
    """Values of tokens taken to zero where all heads of a group are named; of one head of several, its pattern."""
    groups: dict[int, list[int]] = {}
    alone: dict[int, list[int]] = {}
    shapes = site_shapes(model, [Site("v", layer) for layer in couples])
    for layer, heads in couples.items():
        count = shapes[Site("v", layer)].heads
        assert count is not None
        size = heads_of(model, layer) // count
        whole = [group for group in range(count) if set(range(group * size, (group + 1) * size)) <= set(heads)]
        rest = [head for head in heads if head // size not in whole]
        groups |= {layer: whole} if whole else {}
        alone |= {layer: rest} if rest else {}
    values = [Intervention(site, tokens, "scale", 0.0) for site in _sites(groups, model, "v")]
    return [*values, *_cut(alone, model, "all", tokens, "every")]
