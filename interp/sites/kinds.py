"""Kinds of sites, their shapes, and `Site`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import total_ordering
from types import MappingProxyType

from interp.errors import InterpError, nearest

__all__ = [
    "ATTENTION_KINDS",
    "HEAD_KINDS",
    "HIDDEN_KINDS",
    "KINDS",
    "LAYER_KINDS",
    "MAP_KINDS",
    "SHAPES",
    "VISION_KINDS",
    "VISION_SHAPES",
    "Site",
]

# In the order in which a forward pass meets them. `hidden` is hidden_size numbers, `position` one token of a prompt.
SHAPES: Mapping[str, str] = MappingProxyType(
    {
        "embed": "batch, position, hidden",
        "resid_pre": "batch, position, hidden",
        "attn_in": "batch, position, hidden",
        "q": "batch, head, position, head_dim",
        "k": "batch, key-value head, position, head_dim",
        "v": "batch, key-value head, position, head_dim",
        "scores": "batch, head, query, key",
        "pattern": "batch, head, query, key",
        "z": "batch, position, head, head_dim",
        "head_out": "batch, position, head, hidden",
        "attn_out": "batch, position, hidden",
        "mixer_in": "batch, position, hidden",
        "mixer_out": "batch, position, hidden",
        "resid_mid": "batch, position, hidden",
        "mlp_in": "batch, position, hidden",
        "mlp_post": "batch, position, mlp_width",
        "mlp_out": "batch, position, hidden",
        "resid_post": "batch, position, hidden",
        "final_norm": "batch, position, hidden",
        "logits": "batch, position, vocabulary",
    }
)
KINDS = tuple(SHAPES)
LAYER_KINDS = tuple(kind for kind in KINDS if kind not in ("embed", "final_norm", "logits"))
HEAD_KINDS = ("q", "k", "v", "scores", "pattern", "z", "head_out")
ATTENTION_KINDS = ("q", "k", "v", "scores", "pattern")  # inside the attention function: heads before positions
MAP_KINDS = ("scores", "pattern")  # from each query to each key
# The residual stream of a vision tower, in a trace alone: its axes are no prompts and no tokens.
VISION_SHAPES: Mapping[str, str] = MappingProxyType(
    {"vision.resid_pre": "image or tile, patch, width", "vision.resid_post": "image or tile, patch, width"}
)
VISION_KINDS = tuple(VISION_SHAPES)
HIDDEN_KINDS = tuple(kind for kind in LAYER_KINDS if SHAPES[kind] == "batch, position, hidden")


@total_ordering
@dataclass(frozen=True)
class Site:
    """One place in a model. Sites sort by `depth`.

    Arguments:
        kind: one of `KINDS`, or of `VISION_KINDS`.
        layer: from 0, for the kinds that layers have (`LAYER_KINDS`, `VISION_KINDS`); None for the others.
        head: from 0, for the kinds that have a head axis (`HEAD_KINDS`), where one head is meant; None: all of them.

    Raises:
        InterpError: an unknown kind; a layer or a head where there is none; no layer where there must be one.
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind, self.kind)
        if self.kind not in (*LAYER_KINDS, *VISION_KINDS):
            if self.layer is not None:
                raise InterpError(f"site {self.kind!r} is not part of a layer, got layer {self.layer}. Leave it out.")
        elif self.layer is None:
            raise InterpError(f"site {self.kind!r} needs a layer, e.g. {self.kind}.3.")
        elif self.layer < 0:
            raise InterpError(
                f"the layer of a Site counts from 0, got {self.layer}. `parse_site('{self.kind}.{self.layer}', "
                "num_layers)` counts from the end."
            )
        if self.head is None:
            return
        if self.kind not in HEAD_KINDS:
            raise InterpError(f"site {self.kind!r} has no head axis, got head {self.head}. {heads_are_of()}")
        if self.head < 0:
            raise InterpError(
                f"the head of a Site counts from 0, got {self.head}. "
                f"`parse_site('{self.kind}.{self.layer}.h{self.head}', num_layers, num_heads, num_kv_heads)` counts "
                "from the end."
            )

    def __str__(self) -> str:
        layer = "" if self.layer is None else f".{self.layer}"
        return f"{self.kind}{layer}" + ("" if self.head is None else f".h{self.head}")

    def __lt__(self, other: Site) -> bool:
        return self.depth < other.depth

    @property
    def depth(self) -> tuple[int, int, int]:
        """Sorts sites in the order in which a forward pass meets them, which is the order a trace must keep.

        Layer, kind, head; all heads together come before each of them.
        """
        if self.kind in VISION_KINDS:  # the tower is done before the language model begins
            return ((self.layer or 0) - (1 << 30), VISION_KINDS.index(self.kind), -1)
        outside = -1 if self.kind == "embed" else 1 << 30
        return (
            outside if self.layer is None else self.layer,
            KINDS.index(self.kind),
            -1 if self.head is None else self.head,
        )


def check_kind(kind: str, word: str) -> None:
    """Raise on a kind that is none, with the nearest ones; `word` is what the user wrote."""
    if kind not in (*KINDS, *VISION_KINDS):
        raise InterpError(f"site {word!r}: unknown kind {kind!r}.{nearest(kind, (*KINDS, *VISION_KINDS))}")


def heads_are_of() -> str:
    """The sentence that says which kinds have heads."""
    return f"Heads are of {', '.join(HEAD_KINDS)}."
