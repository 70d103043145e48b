"""`Intervention` of easyroutine 1.1.5: a key of the cache, positions, and what becomes of the activation there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.written_keys import WrittenKey, written_key
from interp.errors import InterpError, nearest
from interp.interventions import Intervention as Change

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["TYPES", "Intervention", "changes_of"]

_MAPS = ("columns", "rows", "grid", "columns_pre_softmax", "rows_pre_softmax", "grid_pre_softmax")
_IMAGES = ("block-img-txt", "block-img-img")
TYPES = ("full", *_MAPS, *_IMAGES, "keep-self-attn")


@dataclass
class Intervention:
    """What becomes of one activation. It acts in every row of a batch, and in generation.

    Arguments:
        type: `full`: the activation at positions. Of `pattern_L{i}H{H}`: `columns` (keys), `rows` (queries) or `grid`
            (a pair: queries, keys); the same with `_pre_softmax`, of the scores; `block-img-txt`, `block-img-img`,
            `keep-self-attn` (of these queries), as of ablation queries.
        activation: a key as the cache has it: `resid_out_3`, `pattern_L0H2`, `values_L3`, `head_out_L3H1`. Values and
            keys of a head are those of its group; queries and keys are written as their projections give them, and
            multiplied as attention receives them, behind norms and rotation.
        token_positions: names of positions; of `grid` a pair of lists. Of images, [] will do.
        patching_values: what is written: (example, position, number), the positions in their order, or what broadcasts
            to it; of a pattern (position, position), of all tokens. None or "ablation": it is multiplied.
        multiplication_value: by what. Scores that are multiplied by 0 are taken out of the softmax.
        apply_softmax: of easyroutine; a softmax over what is a softmax already is refused.
    """

    type: str
    activation: str
    token_positions: Any
    patching_values: Any = None
    multiplication_value: float = 0.0
    apply_softmax: bool = False

    def __getitem__(self, key: str) -> Any:
        """A field by name."""
        return getattr(self, key)


def changes_of(interventions: Any, batch: InputBatch, model: StandardizedTransformer) -> list[Change]:
    """Interventions of easyroutine as interp's.

    Arguments:
        interventions: one, several, or None; interp's own may be among them.
        batch: the examples.
        model: the model.

    Raises:
        InterpError: an unknown type, activation or position, or a value that does not fit; says what would.
    """
    if interventions is None:
        return []
    several = [interventions] if isinstance(interventions, Intervention | Change) else list(interventions)
    made: list[Change] = []
    for index, one in enumerate(several):
        name = f"interventions[{index}]"
        if isinstance(one, Change):
            made.append(one)
        elif isinstance(one, Intervention):
            made += _Translation(one, batch, model, f"{name} ({one.type} of {one.activation})").changes()
        else:
            raise InterpError(f"{name}: expected an Intervention(type=, activation=, ...), got {one!r:.80}.")
    return made


class _Translation:
    """One intervention, read."""

    def __init__(self, given: Intervention, batch: InputBatch, model: StandardizedTransformer, name: str) -> None:
        self.given, self.batch, self.model, self.name = given, batch, model, name
        self.key = written_key(given.activation, model, name)
        if given.type not in TYPES:
            raise InterpError(f"{name}: type {given.type!r} is unknown.{nearest(str(given.type), TYPES)}")
        is_map = self.key.name == "pattern"
        if is_map == (given.type == "full"):
            fitting = [kind for kind in TYPES if (kind != "full") == is_map]
            raise InterpError(f"{name}: {given.activation} takes {', '.join(fitting)}.")
        if given.apply_softmax:
            raise InterpError(
                f"{name}: apply_softmax would take the softmax of a softmax. The types with _pre_softmax change the "
                "scores, so that what is left is renormalised."
            )
        self.value = given.patching_values
        if isinstance(self.value, str) and self.value == "ablation":
            self.value = None
        if self.value is not None and not isinstance(self.value, Tensor):
            raise InterpError(
                f"{name}: patching_values: expected a tensor, 'ablation' or None, got {self.value!r:.80}."
            )
        factor = given.multiplication_value
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise InterpError(f"{name}: multiplication_value: expected a number, got {factor!r:.80}.")

    def changes(self) -> list[Change]:
        return self._of_map() if self.key.name == "pattern" else self._of_numbers()

    def _tokens(self, names: Any) -> list[list[int]]:
        """Of each example its tokens at several names, in their order, each once."""
        if isinstance(names, str | int) or (isinstance(names, tuple) and all(isinstance(one, int) for one in names)):
            names = [names]
        if not isinstance(names, Sequence) or not len(names):
            raise InterpError(f"{self.name}: token_positions: expected names, e.g. ['last'], got {names!r:.80}.")
        found: list[list[int]] = [[] for _ in range(len(self.batch))]
        for name in names:
            name = tuple(name) if isinstance(name, list) else name
            for row, tokens in zip(found, self.batch.tokens(name), strict=True):
                row += tokens
        return [list(dict.fromkeys(row)) for row in found]

    # Numbers at tokens ------------------------------------------------------------------------------------------------

    def _of_numbers(self) -> list[Change]:
        key, tokens, factor = self.key, self._tokens(self.given.token_positions), self.given.multiplication_value
        if key.name == "projected_value":
            if self.value is not None:
                raise InterpError(
                    f"{self.name}: projected values are no value of the model. Write the values before the projection "
                    "(head_values) or what the head gives (head_out)."
                )
            site = str(key.site)  # a value counts for its head as much as it is looked at
            return [Change(site, "all", "scale", factor, from_positions=tokens, steps="every")]
        if self.value is None:
            return [Change(str(key.site), tokens, "scale", factor)]
        return [Change(str(key.site), tokens, "set", set_value(key, self.value, self.batch, tokens, self.name))]

    # Maps from queries to keys ----------------------------------------------------------------------------------------

    def _of_map(self) -> list[Change]:
        given, kind = self.given, self.given.type
        names = given.token_positions
        queries: Any = "all"
        keys: Any = None
        steps = "every"  # of new tokens too, where all queries are meant
        is_before = kind.endswith("_pre_softmax")
        word = kind.removesuffix("_pre_softmax")
        if word == "columns":
            keys = self._tokens(names)
        elif word in ("rows", "keep-self-attn"):
            steps = "every" if list(names) == ["all"] else "prompt"
            queries = "all" if steps == "every" else self._tokens(names)
        elif word == "grid":
            if (
                not isinstance(names, tuple | list)
                or len(names) != 2
                or any(isinstance(one, str | int) for one in names)
            ):
                raise InterpError(
                    f"{self.name}: token_positions: expected a pair of lists, queries and keys, got {names!r:.80}."
                )
            steps = "every" if list(names[0]) == ["all"] else "prompt"
            queries, keys = "all" if steps == "every" else self._tokens(names[0]), self._tokens(names[1])
        else:
            keys = self.batch.tokens("all-image")
            queries = self.batch.tokens("all-text") if word == "block-img-txt" else keys
            steps = "every" if word == "block-img-txt" else "prompt"
        site = str(self.key.site)
        site = site.replace("pattern", "scores") if is_before else site
        if word == "keep-self-attn":
            self._without_value("keep-self-attn")
            return [Change(site, queries, "isolate", steps=steps)]
        if self.value is not None:
            return [self._set_map(site, queries, keys)]
        if is_before and given.multiplication_value == 0:  # a score of 0 would be looked at
            every: Any = [list(range(len(one.input_ids))) for one in self.batch.encoded]
            return [Change(site, queries, "knockout", from_positions=every if keys is None else keys, steps=steps)]
        return [Change(site, queries, "scale", given.multiplication_value, from_positions=keys, steps=steps)]

    def _without_value(self, kind: str) -> None:
        if self.value is not None or self.given.multiplication_value != 0:
            raise InterpError(f"{self.name}: {kind} takes neither patching_values nor multiplication_value.")

    def _set_map(self, site: str, queries: Any, keys: Any) -> Change:
        """Write the part of a whole map, (position, position) of all tokens, that is at these queries and keys."""
        value, lengths = self.value, [len(one.input_ids) for one in self.batch.encoded]
        longest = max(lengths)
        if (
            value.dim() not in (2, 3)
            or value.shape[-2:] != (longest, longest)
            or (value.dim() == 3 and len(value) not in (1, len(self.batch)))
        ):
            raise InterpError(
                f"{self.name}: patching_values: expected a whole pattern ({longest}, {longest}), or one for each of "
                f"{len(self.batch)} examples, got shape {tuple(value.shape)}."
            )
        rows = [list(range(length)) for length in lengths] if queries == "all" else queries
        width = max(map(len, rows))
        whole = value.expand(len(self.batch), longest, longest)
        slots = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=value.device)
        taken = whole.gather(1, slots[..., None].expand(-1, -1, longest))
        return Change(site, rows, "set", taken, from_positions=keys)


def set_value(key: WrittenKey, value: Tensor, batch: InputBatch, tokens: list[list[int]], name: str) -> Tensor:
    """A value that is written at tokens, as interp's interventions take it.

    Arguments:
        key: what is written.
        value: (example, position, number), or what broadcasts to it; NaN where an example has fewer tokens.
        batch: the examples.
        tokens: of each example.
        name: of the intervention, for messages.

    Raises:
        InterpError: a value that does not fit.
    """
    width = max(map(len, tokens))
    shape = (1,) * (3 - value.dim()) + tuple(value.shape)
    if value.dim() > 3 or shape[0] not in (1, len(batch)) or shape[1] not in (1, width):
        raise InterpError(
            f"{name}: patching_values: expected what broadcasts to (example {len(batch)}, position {width}, number), "
            f"got shape {tuple(value.shape)}."
        )
    value = value.detach().reshape(shape)
    if key.is_rotated:
        value = value.expand(len(batch), width, shape[2]).clone()
        apart = key.heads_apart(value)
        if key.is_packed:  # (example, head, position, number) -> position before head
            apart = apart.transpose(1, 2)
        made = key.received(apart, batch.encoded, tokens)
        return made.transpose(1, 2) if key.is_packed else made
    return key.heads_apart(value)
