"""Patching queries as interventions: activations of another run, written at the tokens that a query names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.compat.easyroutine.ablation_queries import element_tokens
from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.later_interventions import set_value
from interp.compat.easyroutine.query_tables import layers_of, query_rows
from interp.compat.easyroutine.written_keys import WrittenKey, written_key
from interp.errors import InterpError
from interp.interventions import Intervention

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["KeyWrites", "checked_patches", "patches"]

_NEEDED = ("patching_elem", "layers_to_patch", "activation_type")


def checked_patches(
    queries: Any, model: StandardizedTransformer, argument: str = "patching_query"
) -> list[dict[str, Any]]:
    """Patching queries with their keys, one for each layer, in `keys`.

    Arguments:
        queries: `patching_elem`, `layers_to_patch` (a list or "all") and `activation_type` ("resid_in_{}"), as a list,
            a dictionary or a table.
        model: the model.
        argument: their name, for messages.

    Raises:
        InterpError: an unknown key, layer or activation.
    """
    rows = query_rows(queries, argument, _NEEDED, ("patching_activations", "base_activation_index"))
    for index, row in enumerate(rows):
        name, kind = f"{argument}[{index}]", row["activation_type"]
        if not isinstance(kind, str) or "{}" not in kind:
            raise InterpError(f"{name}: activation_type: expected e.g. 'resid_in_{{}}', got {kind!r:.80}.")
        layers = layers_of(row["layers_to_patch"], model, f"{name}: layers_to_patch")
        row["keys"] = [written_key(kind.format(layer), model, name) for layer in layers]
        for key in row["keys"]:
            if key.site.kind == "pattern":
                raise InterpError(f"{name}: {kind} is no activation at tokens. Write it with interventions=.")
    return rows


def patches(queries: Any, batch: InputBatch, model: StandardizedTransformer) -> list[Intervention]:
    """Patching queries that hold their activations, as interventions.

    Arguments:
        queries: as `checked_patches` takes them, with `patching_activations`, an `ActivationCache` of another run, and
            `base_activation_index`, where along its axis of positions they are (None: at the name of the same element).
        batch: the examples that are written.
        model: the model.

    Raises:
        InterpError: activations that are missing or do not fit, or an example without the element.
    """
    writes = KeyWrites(batch, model)
    for index, row in enumerate(checked_patches(queries, model, "patching_queries")):
        name = f"patching_queries[{index}]"
        held = row.get("patching_activations")
        if held is None or isinstance(held, Tensor) or not hasattr(held, "keys"):
            raise InterpError(
                f"{name}: patching_activations: expected the cache of another run, got {held!r:.80}. compute_patching "
                "makes both runs."
            )
        tokens = element_tokens(row["patching_elem"], batch, model, name)
        at = _index(row, held, name)
        for key in row["keys"]:
            if key.key not in held:
                raise InterpError(f"{name}: patching_activations has no {key.key!r}. Extract it in the other run.")
            value = held[key.key]
            if max(at) >= value.shape[1] or min(at) < -value.shape[1]:
                raise InterpError(
                    f"{name}: base_activation_index {at} is out of range: {key.key} has {value.shape[1]} positions."
                )
            writes.add(key, tokens, value[:, at], name)
    return writes.interventions()


def _index(row: Mapping[str, Any], held: Any, name: str) -> list[int]:
    """Where along the axis of positions of the other run's cache the element is."""
    given = row.get("base_activation_index")
    if given is None:
        element = row["patching_elem"]
        known = held.get("mapping_index", {})
        word = element[1:].strip() if isinstance(element, str) and element.startswith("@") else element
        if word not in known:
            raise InterpError(
                f"{name}: base_activation_index is missing, and the other run has no position {word!r}, but "
                f"{', '.join(map(str, known)) or 'none'}."
            )
        given = known[word]
    plain = given.tolist() if isinstance(given, Tensor) else given
    found = [plain] if isinstance(plain, int) else list(plain)
    if not found or not all(isinstance(one, int) for one in found):
        raise InterpError(f"{name}: base_activation_index: expected integers, got {given!r:.80}.")
    return found


class KeyWrites:
    """Vectors that are written at tokens, gathered key by key, so that what two queries name is written once.

    Arguments:
        batch: the examples that are written.
        model: the model.
    """

    def __init__(self, batch: InputBatch, model: StandardizedTransformer) -> None:
        self.batch, self.model = batch, model
        self._known: dict[str, tuple[WrittenKey, list[dict[int, Tensor]]]] = {}

    def add(self, key: WrittenKey, tokens: Sequence[Sequence[int]], value: Tensor, name: str) -> None:
        """Write a value.

        Arguments:
            key: what is written.
            tokens: of each example.
            value: (example, position, number), NaN where an example has fewer positions; one example, or one position,
                is for all.
            name: of the query, for messages.

        Raises:
            InterpError: another number of positions, or another vector at a token that is written already.
        """
        if value.dim() != 3 or value.shape[0] not in (1, len(self.batch)):
            raise InterpError(
                f"{name}: {key.key}: expected activations (example, position, number) of 1 or {len(self.batch)} "
                f"examples, got shape {tuple(value.shape)}."
            )
        _, rows = self._known.setdefault(str(key.site), (key, [{} for _ in range(len(self.batch))]))
        for index, (row, there) in enumerate(zip(rows, tokens, strict=True)):
            own = value[index if len(value) > 1 else 0].detach()
            own = own[~own.isnan().any(-1)]
            if len(own) not in (1, len(there)):
                raise InterpError(
                    f"{name}: {key.key}: example {index} is written at {len(there)} tokens, and the other run has "
                    f"{len(own)} there. Name as many, or one."
                )
            for place, token in enumerate(there):
                vector = own[place if len(own) > 1 else 0]
                if token in row and not torch.equal(row[token], vector):
                    raise InterpError(
                        f"{name}: {key.key}: another query writes something else at token {token} of example {index}."
                    )
                row[token] = vector

    def interventions(self) -> list[Intervention]:
        """One for each key."""
        made = []
        for key, rows in self._known.values():
            width = max(map(len, rows))
            first = next(vector for row in rows for vector in row.values())
            value = first.new_zeros(len(rows), width, first.shape[-1])
            for index, row in enumerate(rows):
                if row:
                    value[index, : len(row)] = torch.stack(list(row.values()))
            tokens = [list(row) for row in rows]
            made.append(Intervention(str(key.site), tokens, "set", set_value(key, value, self.batch, tokens, key.key)))
        return made
