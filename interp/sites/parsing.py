"""Parses sites: ranges, lists, counting from the end, and other systems' names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from interp.errors import InterpError, nearest
from interp.sites.kinds import HEAD_KINDS, KINDS, LAYER_KINDS, VISION_KINDS, Site, check_kind, heads_are_of
from interp.sites.spellings import SYSTEMS, hook_name, matcher

if TYPE_CHECKING:
    pass

__all__ = [
    "Spelling",
    "canonical",
    "check_layers",
    "check_lens_layers",
    "check_sites",
    "layers_by_kind",
    "parse_layers",
    "parse_site",
    "parse_sites",
]


# A tuple is TransformerLens's shorthand: ("q", 0), ("pattern", 0, "attn").
Spelling: TypeAlias = str | Site | tuple[str, int] | tuple[str, int, str]

_RANGE = re.compile(r"(-?\d+)-(-?\d+)")
_INTEGER = re.compile(r"-?\d+")


def parse_sites(
    text: Spelling | Iterable[Spelling],
    num_layers: int,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    num_vision_layers: int | None = None,
) -> list[Site]:
    """Turn any spelling of sites into sites.

    Arguments:
        text: `resid_post.*`, several with spaces between (`embed resid_post.0,4-6,-1 pattern.2.h*`), a name in another
            system (`interp.sites.spellings`), or a list of such.
        num_layers: the model's depth.
        num_heads: attention heads in a layer; needed where heads are named.
        num_kv_heads: key-value heads in a layer, which `k` and `v` have; needed where heads of these are named.
        num_vision_layers: layers of the model's vision tower; None: its sites are refused, because it has none, or
            because they cannot be read where they are named.

    Returns:
        The sites, by depth, each once.

    Raises:
        InterpError: an unknown kind (with the nearest known one), a layer or head out of range (with the valid range),
            a spelling that cannot be read or would be misread, or no site at all.
    """
    sizes = _Sizes(num_layers, num_heads, num_kv_heads, num_vision_layers)
    return sorted({site for written in _read(text) for site in _sites(written, sizes)})


def parse_site(
    text: Spelling,
    num_layers: int,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    num_vision_layers: int | None = None,
) -> Site:
    """Turn a spelling that names exactly one place into a site.

    Arguments:
        text: `resid_post.3`, `attn_out.-1`, `z.3.h0`, `logits`, `blocks.3.hook_resid_post`.
        num_layers, num_heads, num_kv_heads, num_vision_layers: as in `parse_sites`.

    Raises:
        InterpError: as `parse_sites`, or the text names several places.
    """
    sites = parse_sites(text, num_layers, num_heads, num_kv_heads, num_vision_layers)
    if len(sites) > 1:
        raise InterpError(f"expected one site, got {text!r}, which names {len(sites)}: {sites[0]} to {sites[-1]}.")
    return sites[0]


def check_sites(
    texts: Spelling | Iterable[Spelling],
    num_layers: int | None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
) -> None:
    """Reject bad sites before anything is loaded.

    Arguments:
        texts: as in `parse_sites`.
        num_layers: the model's depth; None where it is not known: the spelling alone is checked.
        num_heads, num_kv_heads: likewise.

    Raises:
        InterpError: as `parse_sites`.
    """
    for written in _read(texts):
        if written.kind in VISION_KINDS:
            raise InterpError(_of_vision(written.text))
        if written.kind == "hidden_states":
            _hidden_states(written, num_layers)
            continue
        if written.layers is not None:
            _indices(written.layers, num_layers, written.text, "layer")
        if written.heads is not None:
            count = _Sizes(0, num_heads, num_kv_heads).heads(written.kind)
            _indices(written.heads, count, written.text, _noun(written.kind))


def canonical(text: Spelling | Iterable[Spelling]) -> str:
    """Any spelling of sites as text in this vocabulary, without a model: `blocks.3.hook_z` is `z.3`.

    `hidden_states[4]` stays, since what it is depends on the model's depth.

    Raises:
        InterpError: as `parse_sites`, but for layers and heads that a model may lack.
    """
    check_sites(text, None)
    return " ".join(_canonical(written) for written in _read(text))


def _canonical(written: _Written) -> str:
    if written.kind == "hidden_states":
        return written.text
    heads = "" if written.heads is None else f".h{written.heads}"
    return written.kind + ("" if written.layers is None else f".{written.layers}") + heads


def layers_by_kind(text: Spelling | Iterable[Spelling], num_layers: int) -> dict[str, set[int]]:
    """The kinds that a spelling names, and of each the layers, whatever heads.

    Arguments:
        text, num_layers: as in `parse_sites`.

    Raises:
        InterpError: as `parse_sites`.
    """
    layers: dict[str, set[int]] = {}
    for written in _read(text):
        for site in _sites(replace(written, heads=None), _Sizes(num_layers, None, None)):
            layers.setdefault(site.kind, set()).update(() if site.layer is None else (site.layer,))
    return layers


def parse_layers(text: str | int | Sequence[int], num_layers: int) -> list[int]:
    """Turn any spelling of layers into layer numbers.

    Arguments:
        text: `*`, `3`, `-1`, `0,4-6,-1` (ranges hold both ends), or integers.
        num_layers: the model's depth.

    Returns:
        Layers from 0, ascending, each once.

    Raises:
        InterpError: a layer out of range (with the valid range) or a spelling that cannot be read.
    """
    return _indices(_layer_text(text), num_layers, f"layers {_layer_text(text)!r}", "layer")


def check_layers(text: str | int | Sequence[int], num_layers: int | None) -> None:
    """Reject a bad spelling of layers before anything is loaded; as `parse_layers`, `num_layers` may be None."""
    _indices(_layer_text(text), num_layers, f"layers {_layer_text(text)!r}", "layer")


def _layer_text(text: str | int | Sequence[int]) -> str:
    if isinstance(text, str):
        return text.replace(" ", "")
    return str(text) if isinstance(text, int) else ",".join(str(layer) for layer in text)


@dataclass(frozen=True)
class _Written:
    """One spelling taken apart.

    Arguments:
        text: what the user wrote, for messages.
        kind: one of `KINDS`, or `hidden_states`.
        layers, heads: the text of those; None where there are none.
        site: the site, where the user gave one.
    """

    text: str
    kind: str
    layers: str | None = None
    heads: str | None = None
    site: Site | None = None


@dataclass(frozen=True)
class _Sizes:
    num_layers: int
    num_heads: int | None
    num_kv_heads: int | None
    num_vision_layers: int | None = None

    def heads(self, kind: str) -> int | None:
        return self.num_kv_heads if kind in ("k", "v") else self.num_heads


def _read(text: Spelling | Iterable[Spelling]) -> list[_Written]:
    """Take every spelling apart."""
    written: list[_Written] = []
    for spelling in [text] if isinstance(text, str | Site) or _is_shorthand(text) else text:
        if isinstance(spelling, Site):
            layer = None if spelling.layer is None else str(spelling.layer)
            head = None if spelling.head is None else str(spelling.head)
            written.append(_Written(str(spelling), spelling.kind, layer, head, spelling))
        elif isinstance(spelling, str):
            written += [_word(word) for word in spelling.split()]
        elif _is_shorthand(spelling):
            written.append(_foreign(hook_name(*spelling), str(spelling)))
        else:
            raise InterpError(f"expected a site as text, e.g. 'resid_post.3', got {spelling!r}.")
    if not written:
        raise InterpError("expected at least one site, e.g. resid_post.*, got none.")
    return written


def _is_shorthand(text: object) -> TypeGuard[tuple[str, int] | tuple[str, int, str]]:
    return isinstance(text, tuple) and tuple(map(type, text)) in ((str, int), (str, int, str))


def _word(word: str) -> _Written:
    kind, *rest = word.split(".")
    if kind == "vision":
        kind, rest = ".".join([kind, *rest[:1]]), rest[1:]
        check_kind(kind, word)
        return _own(word, kind, rest)
    if kind in KINDS and "hook_" not in word:
        return _own(word, kind, rest)
    return _foreign(word, word)


def _own(word: str, kind: str, rest: list[str]) -> _Written:
    """`kind`, `kind.layers` or `kind.layers.hHEADS`."""
    if kind not in (*LAYER_KINDS, *VISION_KINDS):
        if rest:
            raise InterpError(f"site {word!r}: {kind} is not part of a layer. Write {kind!r}.")
        return _Written(word, kind)
    if not rest or not rest[0]:
        raise InterpError(f"site {word!r} needs a layer, e.g. {kind}.3, {kind}.0-5 or {kind}.*")
    if len(rest) == 1:
        return _Written(word, kind, rest[0])
    heads = ".".join(rest[1:])
    if kind not in HEAD_KINDS:
        raise InterpError(f"site {word!r}: {kind} has no head axis, got {heads!r} after its layer. {heads_are_of()}")
    if not heads.startswith("h"):
        raise InterpError(f"site {word!r}: cannot read {heads!r} as heads. Expected e.g. h0, h-1, h0-5, h0,2,7 or h*")
    return _Written(word, kind, rest[0], heads[1:])


def _foreign(word: str, text: str) -> _Written:
    """A name in another system; `text` is what the user wrote."""
    for system in SYSTEMS:
        for spelling, kind in system.meanings.items():
            if match := matcher(spelling).fullmatch(word):
                found = match.groupdict()
                return _Written(text, kind, found.get("layer"), found.get("head"))
        for spelling, reason in system.refused.items():
            if match := matcher(spelling).fullmatch(word):
                raise InterpError(f"site {text!r}: in {system.name} that is {reason.format(**match.groupdict())}")
    likely = [system for system in SYSTEMS if system.marks.search(word)]
    if not likely:
        check_kind(word.split(".")[0], text)
    known = [name for system in likely for name in _names_like(word, (*system.meanings, *system.refused))]
    known += _names_like(word, (f"{kind}.{{layer}}" for kind in LAYER_KINDS))
    of = " or ".join(system.name for system in likely)
    raise InterpError(f"site {text!r}: unknown name of {of}.{nearest(word, known)}")


def _names_like(word: str, spellings: Iterable[str]) -> list[str]:
    """Spellings with the numbers that stand in a word."""
    numbers = re.findall(r"\d+", word)
    layer, head = (*numbers, *("3", "0")[len(numbers) :])[:2]
    return [spelling.format(layer=layer, head=head) for spelling in spellings]


def _sites(written: _Written, sizes: _Sizes) -> list[Site]:
    if written.kind == "hidden_states":
        return _hidden_states(written, sizes.num_layers)
    if written.layers is None:
        return [Site(written.kind)]
    count = sizes.num_vision_layers if written.kind in VISION_KINDS else sizes.num_layers
    if count is None:
        raise InterpError(_of_vision(written.text))
    layers = _indices(written.layers, count, written.text, "layer")
    if written.heads is None:
        return [Site(written.kind, layer) for layer in layers]
    count = sizes.heads(written.kind)
    if count is None and written.site is not None:
        return [written.site]
    if count is None:
        name = "num_kv_heads" if written.kind in ("k", "v") else "num_heads"
        raise InterpError(
            f"{written.text}: names heads, and how many a layer has is not known here. Give {name}, or leave the "
            f"heads out: {written.kind}.{written.layers}"
        )
    heads = _indices(written.heads, count, written.text, _noun(written.kind))
    return [Site(written.kind, layer, head) for layer in layers for head in heads]


def _of_vision(text: str) -> str:
    return (
        f"site {text!r} is of a vision tower: its axes are images and patches, not prompts and positions. It is read "
        f"and written in a trace of a model that sees: model.read({text!r}) in model.trace(text, images=...)."
    )


def _noun(kind: str) -> str:
    return "key-value head" if kind in ("k", "v") else "head"


def _hidden_states(written: _Written, num_layers: int | None) -> list[Site]:
    """What transformers returns as `hidden_states`: before each layer, then after the last norm."""
    count = None if num_layers is None else num_layers + 1
    found = _indices(str(written.layers), count, written.text, "hidden state")
    return [Site("final_norm") if index == num_layers else Site("resid_pre", index) for index in found]


def _indices(text: str, count: int | None, where: str, noun: str) -> list[int]:
    """Numbers from 0, ascending; none where the count is not known and the spelling is good."""
    found: set[int] = set()
    for part in text.split(","):
        span = _RANGE.fullmatch(part)
        if part == "*":
            found.update(range(count or 0))
        elif span:
            first, last = (int(end) for end in span.groups())
            if count is not None:
                first, last = (_index(end, count, where, noun) for end in (first, last))
            if first > last and (count is not None or (first < 0) == (last < 0)):
                raise InterpError(f"{where}: the range {part!r} is empty. Write the lower {noun} first.")
            found.update(range(first, last + 1))
        elif _INTEGER.fullmatch(part):
            found.add(int(part) if count is None else _index(int(part), count, where, noun))
        else:
            raise InterpError(f"{where}: cannot read {part!r} as {noun}s. Expected e.g. 3, -1, 0-5, 0,2,7 or *")
    return [] if count is None else sorted(found)


def _index(index: int, count: int, where: str, noun: str) -> int:
    if not -count <= index < count:
        raise InterpError(
            f"{where}: {noun} {index} is out of range. The model has {count} {noun}s: 0 to {count - 1}, or {-count} to "
            "-1 from the end."
        )
    return index % count


def check_lens_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The layers of a lens, checked: at least one, ascending, each once, in the model.

    Raises:
        InterpError: they are not.
    """
    given: object = layers
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise InterpError(f"layers: expected several numbers, e.g. [0, 3] or range(3, 6), got {given!r}.")
    layers = tuple(int(layer) for layer in layers)
    if not layers or any(b <= a for a, b in pairwise(layers)):
        raise InterpError(f"layers: expected layers in ascending order, each once, got {list(layers)}.")
    if layers[0] < 0 or layers[-1] >= num_layers:
        raise InterpError(f"layers: expected layers of the model, 0 to {num_layers - 1}, got {list(layers)}.")
    return layers
