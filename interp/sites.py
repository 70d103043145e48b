"""The vocabulary of places in a model: what can be read and written, and every spelling of it.

A site is a kind, and for most kinds a layer: `resid_post.3`, `embed`. Where several are asked for, layers are
a list, a range (both ends included), counted from the end, or all: `resid_post.0,4-6,-1`, `attn_out.*`.

| kind | what it is | shape |
|---|---|---|
| `embed` | residual stream that enters layer 0 | batch, position, hidden |
| `resid_pre`, `resid_mid`, `resid_post` | residual stream before, inside, after a layer | batch, position, hidden |
| `attn_in`, `mlp_in` | what attention and the MLP receive, after their norm | batch, position, hidden |
| `attn_out`, `mlp_out` | what attention and the MLP add to the residual stream | batch, position, hidden |
| `final_norm` | after the model's last norm | batch, position, hidden |
| `logits` | the model's own output | batch, position, vocabulary |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from interp.errors import InterpError, nearest

__all__ = ["KINDS", "LAYER_KINDS", "Site", "check_layers", "check_sites", "parse_layers", "parse_site", "parse_sites"]

# In the order in which a forward pass meets them.
LAYER_KINDS = ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
KINDS = ("embed", *LAYER_KINDS, "final_norm", "logits")

_RANGE = re.compile(r"(-?\d+)-(-?\d+)")
_INTEGER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Site:
    """One place in a model.

    Arguments:
        kind: one of `KINDS`.
        layer: from 0, for the kinds that each layer has (`LAYER_KINDS`); None for the others.

    Raises:
        InterpError: an unknown kind, or a layer where there is none, or none where there must be one.
    """

    kind: str
    layer: int | None = None

    def __post_init__(self) -> None:
        _check_kind(self.kind, self.kind)
        if self.kind not in LAYER_KINDS:
            if self.layer is not None:
                raise InterpError(f"site {self.kind!r} is not part of a layer, got layer {self.layer}. Leave it out.")
        elif self.layer is None:
            raise InterpError(f"site {self.kind!r} needs a layer, e.g. {self.kind}.3.")
        elif self.layer < 0:
            raise InterpError(
                f"the layer of a Site counts from 0, got {self.layer}. `parse_site('{self.kind}.{self.layer}', "
                "num_layers)` counts from the end."
            )

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.kind}.{self.layer}"

    @property
    def depth(self) -> tuple[int, int]:
        """Sorts sites in the order in which a forward pass meets them, which is the order a trace must keep."""
        if self.layer is not None:
            return (self.layer, LAYER_KINDS.index(self.kind))
        return (-1, 0) if self.kind == "embed" else (1 << 30, KINDS.index(self.kind))


def parse_sites(text: str | Site | Iterable[str | Site], num_layers: int) -> list[Site]:
    """Turn any spelling of sites into sites.

    Arguments:
        text: `resid_post.*`, several with spaces between (`embed resid_post.0,4-6,-1`), or a list of such.
        num_layers: the model's depth.

    Returns:
        The sites, by depth, each once.

    Raises:
        InterpError: an unknown kind (with the nearest known one), a layer out of range (with the valid range), a
            spelling that cannot be read, or no site at all.
    """
    expressions = [text] if isinstance(text, str | Site) else list(text)
    found: set[Site] = set()
    for expression in expressions:
        if isinstance(expression, Site):
            if expression.layer is not None:
                _check_layer(expression.layer, num_layers, str(expression))
            found.add(expression)
            continue
        for word in _words(expression):
            kind, layers = _split(word)
            if layers is None:
                found.add(Site(kind))
            else:
                found.update(Site(kind, layer) for layer in _layers(layers, num_layers, word) or ())
    if not found:
        raise InterpError("expected at least one site, e.g. resid_post.*, got none.")
    return sorted(found, key=lambda site: site.depth)


def parse_site(text: str | Site, num_layers: int) -> Site:
    """Turn a spelling that names exactly one place into a site.

    Arguments:
        text: `resid_post.3`, `attn_out.-1`, `logits`.
        num_layers: the model's depth.

    Raises:
        InterpError: as `parse_sites`, or the text names several places.
    """
    sites = parse_sites(text, num_layers)
    if len(sites) > 1:
        raise InterpError(f"expected one site, got {text!r}, which names {len(sites)}: {sites[0]} to {sites[-1]}.")
    return sites[0]


def check_sites(texts: str | Iterable[str], num_layers: int | None) -> None:
    """Reject bad sites before anything is loaded.

    Arguments:
        texts: as in `parse_sites`.
        num_layers: the model's depth; None where it is not known: the spelling alone is checked.

    Raises:
        InterpError: as `parse_sites`.
    """
    expressions = [texts] if isinstance(texts, str) else list(texts)
    words = [word for expression in expressions for word in _words(expression)]
    if not words:
        raise InterpError("expected at least one site, e.g. resid_post.*, got none.")
    for word in words:
        _, layers = _split(word)
        if layers is not None:
            _layers(layers, num_layers, word)


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
    return _layers(_layer_text(text), num_layers, f"layers {_layer_text(text)!r}") or []


def check_layers(text: str | int | Sequence[int], num_layers: int | None) -> None:
    """Reject a bad spelling of layers before anything is loaded; as `parse_layers`, `num_layers` may be None."""
    _layers(_layer_text(text), num_layers, f"layers {_layer_text(text)!r}")


def _layer_text(text: str | int | Sequence[int]) -> str:
    if isinstance(text, str):
        return text.replace(" ", "")
    return str(text) if isinstance(text, int) else ",".join(str(layer) for layer in text)


def _words(expression: str) -> list[str]:
    if not isinstance(expression, str):
        raise InterpError(f"expected a site as text, e.g. 'resid_post.3', got {expression!r}.")
    return expression.split()


def _split(word: str) -> tuple[str, str | None]:
    """A kind, and the text of its layers where it has some."""
    kind, dot, layers = word.partition(".")
    _check_kind(kind, word)
    if kind not in LAYER_KINDS:
        if dot:
            raise InterpError(f"site {word!r}: {kind} is not part of a layer. Write {kind!r}.")
        return kind, None
    if not layers:
        raise InterpError(f"site {word!r} needs a layer, e.g. {kind}.3, {kind}.0-5 or {kind}.*")
    return kind, layers


def _check_kind(kind: str, word: str) -> None:
    if kind not in KINDS:
        raise InterpError(f"site {word!r}: unknown kind {kind!r}.{nearest(kind, KINDS)}")


def _layers(text: str, num_layers: int | None, where: str) -> list[int] | None:
    """Layer numbers, ascending; None where the depth is not known and the spelling is good."""
    layers: set[int] = set()
    for part in text.split(","):
        span = _RANGE.fullmatch(part)
        if part == "*":
            layers.update(range(num_layers or 0))
        elif span:
            first, last = (int(end) for end in span.groups())
            if num_layers is not None:
                first, last = (_check_layer(end, num_layers, where) for end in (first, last))
            if first > last and (num_layers is not None or (first < 0) == (last < 0)):
                raise InterpError(f"{where}: the range {part!r} is empty. Write the lower layer first.")
            layers.update(range(first, last + 1))
        elif _INTEGER.fullmatch(part):
            layers.add(int(part) if num_layers is None else _check_layer(int(part), num_layers, where))
        else:
            raise InterpError(f"{where}: cannot read {part!r} as layers. Expected e.g. 3, -1, 0-5, 0,2,7 or *")
    return None if num_layers is None else sorted(layers)


def _check_layer(layer: int, num_layers: int, where: str) -> int:
    if not -num_layers <= layer < num_layers:
        raise InterpError(
            f"{where}: layer {layer} is out of range. The model has {num_layers} layers: 0 to {num_layers - 1}, or "
            f"{-num_layers} to -1 from the end."
        )
    return layer % num_layers
