"""What an `Extraction` may name beside sites: statistics of attention and of the last norm, token ids.

| kind | what it is | axes |
|---|---|---|
| `pattern_mean`, `pattern_sum` | of the attention from each named set of queries to each named set of keys: its mean \
over all pairs, its sum | example, head, query_name, key_name |
| `pattern_ratio` | that mean over the mean of uniform attention: each query spreads its weight evenly over the \
keys that the model lets it see | example, head, query_name, key_name |
| `value_weighted_pattern` | the pattern times the norm of each key's value behind the output projection \
(Kobayashi et al. 2020) | example, head, query, key |
| `value_weighted_mean`, `value_weighted_sum`, `value_weighted_ratio` | the same statistics of that | example, head, \
query_name, key_name |
| `projected_value` | the value of each head through its part of the output projection, without the bias | example, \
position, head, hidden |
| `last_norm_mean`, `last_norm_variance`, `last_norm_second_moment` | over the hidden axis, of what the final norm \
receives; `last_norm` is all three | example, position |
| `input_ids` | the token at each position | example, position |

Which keys a query sees is what the mask says: those before it in a causal model, within a window where there is one,
and all of an image whose tokens see each other. A sink that takes a part of the weight and is no token is no key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from interp.activations.activation_cache import axes_of
from interp.activations.chosen_sites import sites_of
from interp.errors import InterpError, nearest
from interp.model.resolve import place_of, why_missing
from interp.sites import HEAD_KINDS, KINDS, MAP_KINDS, Site, canonical, check_sites, parse_sites

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "BLOCK_KINDS",
    "DERIVED",
    "Derived",
    "Extracted",
    "axes_of_extracted",
    "chosen",
    "heads_chosen",
    "named",
    "spelled",
]

_BLOCKS, _MAPS = "example, head, query_name, key_name", "example, head, query, key"
DERIVED: Mapping[str, str] = MappingProxyType(
    {
        "pattern_mean": _BLOCKS,
        "pattern_sum": _BLOCKS,
        "pattern_ratio": _BLOCKS,
        "value_weighted_pattern": _MAPS,
        "value_weighted_mean": _BLOCKS,
        "value_weighted_sum": _BLOCKS,
        "value_weighted_ratio": _BLOCKS,
        "projected_value": "example, position, head, hidden",
        "last_norm_mean": "example, position",
        "last_norm_variance": "example, position",
        "last_norm_second_moment": "example, position",
        "input_ids": "example, position",
    }
)
BLOCK_KINDS = tuple(kind for kind, axes in DERIVED.items() if axes == _BLOCKS)
OF_LAST_NORM = ("last_norm_mean", "last_norm_variance", "last_norm_second_moment")
_WHOLE = {"last_norm": OF_LAST_NORM, "input_ids": ("input_ids",)} | {kind: (kind,) for kind in OF_LAST_NORM}
# The sites that a layer must have for each kind; scores say which keys a query sees.
_NEEDS = {
    kind: ("pattern", *(("scores",) if kind.endswith("ratio") else ()), *(("v", "head_out") if "value" in kind else ()))
    for kind in (*BLOCK_KINDS, "value_weighted_pattern")
} | {"projected_value": ("v", "head_out")}


@dataclass(frozen=True)
class Derived:
    """One thing that is computed from what is at sites; names as of `Site`.

    Arguments:
        kind: of `DERIVED`.
        layer: from 0; None for what is no part of a layer.
        head: from 0; None: all of the layer.
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        return (
            self.kind
            + ("" if self.layer is None else f".{self.layer}")
            + ("" if self.head is None else f".h{self.head}")
        )


Extracted: TypeAlias = Site | Derived


def axes_of_extracted(one: Extracted, *, mean_over_positions: bool = False) -> tuple[str, ...]:
    """Names of the axes of what is extracted.

    Arguments:
        one: a site, or what is derived.
        mean_over_positions: whether there is one number for each named position in place of one for each token.
    """
    if isinstance(one, Site):
        axes = axes_of(one)
    else:
        axes = tuple(name for name in DERIVED[one.kind].split(", ") if one.head is None or name != "head")
    if not mean_over_positions or one.kind == "input_ids":
        return axes
    return tuple(f"{axis}_name" if axis in ("position", "query", "key") else axis for axis in axes)


def spelled(given: Any, name: str) -> str:
    """Any spelling of what is extracted as one text, canonical as far as it is without a model.

    Raises:
        InterpError: a name that is none.
    """
    words = []
    for word in _words(given):
        if isinstance(word, str) and (word == "all" or _kind(word) in (*DERIVED, *_WHOLE)):
            words.append(word if word == "all" else _checked(word))
            continue
        kind = _kind(word) if isinstance(word, str) else ""
        if kind and kind not in KINDS and "Did you mean" in (known := nearest(kind, DERIVED)):
            raise InterpError(f"{name}: {word!r} is no site and none of the statistics.{known}")
        words.append(canonical(word))
    return " ".join(words)


def _words(given: Any) -> list[Any]:
    several = [given] if isinstance(given, str | Site | Derived) or _is_shorthand(given) else list(given)
    texts = [str(one) if isinstance(one, Derived) else one for one in several]
    return [word for one in texts for word in (one.split() if isinstance(one, str) else [one])]


def _is_shorthand(given: Any) -> bool:
    return isinstance(given, tuple) and any(isinstance(item, int) for item in given)


def _kind(word: str) -> str:
    return word.split(".", 1)[0]


def _checked(word: str) -> str:
    """A word of `DERIVED`, read as far as it can be without a model."""
    kind, dot, rest = word.partition(".")
    if kind in _WHOLE:
        if dot:
            raise InterpError(f"{word!r}: {kind} is no part of a layer. Write {kind}.")
        return word
    if not rest:
        raise InterpError(f"{word!r} needs layers, e.g. {kind}.3, {kind}.* or {kind}.2-5.h0,3.")
    check_sites(f"pattern.{rest}", None)
    return word


def named(text: str, num_layers: int, num_heads: int, num_kv_heads: int) -> list[Extracted]:
    """What one name is, by the sizes of a model; arguments as of `interp.sites.parse_sites`.

    Raises:
        InterpError: it is none.
    """
    kind, _, rest = text.partition(".")
    if kind in _WHOLE:
        return [Derived(one) for one in _WHOLE[kind]]
    if kind in DERIVED:
        places = parse_sites(f"pattern.{rest}", num_layers, num_heads, num_kv_heads)
        return [Derived(kind, place.layer, place.head) for place in places]
    return list(parse_sites(text, num_layers, num_heads, num_kv_heads))


def heads_chosen(model: StandardizedTransformer, heads: str) -> set[tuple[int, int]]:
    """Layers and heads, (layer, head), from a spelling such as `2.h0,3 5.h*`.

    Raises:
        InterpError: one that the model does not have.
    """
    words = [f"pattern.{word}" for word in heads.split()]
    found = parse_sites(words, model.num_layers, model.num_heads, model.num_kv_heads)
    missing = [site for site in found if site.head is None]
    if missing:
        raise InterpError(f"heads: expected layers and heads, e.g. 2.h0,3 or 5.h*, got {heads!r}.")
    return {(site.layer, site.head) for site in found if site.layer is not None and site.head is not None}


def chosen(model: StandardizedTransformer, text: str, heads: str | None = None) -> list[Extracted]:
    """What a text names in a model: sites in the order of the forward pass, then what is derived, as it is named.

    Arguments:
        model: the model.
        text: as `spelled` gives it.
        heads: of which heads, where the text names none: `2.h0,3 5.h*`, by query heads.

    Raises:
        InterpError: something that the model does not have.
    """
    words = text.split()
    sites = [word for word in words if _kind(word) not in DERIVED and word not in _WHOLE]
    found: list[Extracted] = []
    if sites:
        found += sites_of(model, "all" if "all" in sites else sites)
    for word in words:
        if word in _WHOLE:
            found += [Derived(kind) for kind in _WHOLE[word]]
        elif _kind(word) in DERIVED:
            found += _derived(model, word)
    if heads is not None:
        found = _of_heads(model, found, heads_chosen(model, heads), words)
    return list(dict.fromkeys(found))


def _derived(model: StandardizedTransformer, word: str) -> list[Derived]:
    kind, _, rest = word.partition(".")
    places = parse_sites(f"pattern.{rest}", model.num_layers, model.num_heads, model.num_kv_heads)
    there = [place for place in places if not any(why_missing(model, site) for site in needed(kind, place.layer))]
    if not there or (len(there) < len(places) and "*" not in rest):
        absent = next(place for place in places if place not in there)
        for site in needed(kind, absent.layer):
            try:
                place_of(model, site)
            except InterpError as error:
                raise InterpError(f"{kind}.{absent.layer} needs {site}: {error}") from None
    return [Derived(kind, place.layer, place.head) for place in there]


def needed(kind: str, layer: int | None) -> list[Site]:
    """The sites that a kind of `DERIVED` is computed from."""
    return [Site(name, layer) for name in _NEEDS.get(kind, ())]


def _of_heads(
    model: StandardizedTransformer, found: Iterable[Extracted], heads: set[tuple[int, int]], words: Sequence[str]
) -> list[Extracted]:
    """Those heads of what has heads and names none; of keys and values, the key-value heads that these read."""
    kept: list[Extracted] = []
    for one in found:
        axes = axes_of_extracted(one)
        if not any(axis.endswith("head") for axis in axes) or one.head is not None:
            kept.append(one)
            continue
        group = model.num_heads // model.num_kv_heads if one.kind in ("k", "v") else 1
        numbers = sorted({head // group for layer, head in heads if layer == one.layer})
        if not numbers and str(one) in words:
            raise InterpError(f"{one}: `heads` names none of layer {one.layer}. Name some, or leave {one} out.")
        kept += [replace(one, head=head) for head in numbers]
    if not kept:
        raise InterpError("heads: none of what is extracted has one of them.")
    return kept


def is_map(one: Extracted) -> bool:
    """Whether it is a map from queries to keys."""
    return one.kind in MAP_KINDS or one.kind == "value_weighted_pattern"


def has_heads(one: Extracted) -> bool:
    """Whether it is of heads."""
    return one.kind in HEAD_KINDS or one.kind in (*BLOCK_KINDS, "value_weighted_pattern", "projected_value")
