"""Queries as a list, a dictionary or a table, read into rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError, nearest

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["layers_of", "query_rows"]


def query_rows(given: Any, argument: str, needed: Sequence[str], known: Sequence[str]) -> list[dict[str, Any]]:
    """The queries, one dictionary each; what was given stays as it was.

    Arguments:
        given: a list of dictionaries; one dictionary; a dictionary of columns, as `DataFrame.to_dict` gives it; a
            `DataFrame`, where what is missing is None or NaN; None: no query.
        argument: its name, for messages.
        needed: the keys that a query must have.
        known: further ones that it may have.

    Raises:
        InterpError: something else, an unknown key, or a missing one.
    """
    if given is None:
        return []
    rows = _rows(given, argument, needed[0])
    found = []
    for index, row in enumerate(rows):
        name = f"{argument}[{index}]"
        if not isinstance(row, Mapping):
            raise InterpError(f"{name}: expected a dictionary with {', '.join(needed)}, got {row!r:.80}.")
        row = {str(key): value for key, value in row.items() if not _is_missing(value)}
        for key in row:
            if key not in (*needed, *known):
                raise InterpError(f"{name}: a query has no {key!r}.{nearest(key, (*needed, *known))}")
        missing = [key for key in needed if key not in row]
        if missing:
            raise InterpError(f"{name}: a query needs {', '.join(missing)}; got {', '.join(row) or 'nothing'}.")
        found.append(row)
    return found


def _rows(given: Any, argument: str, first: str) -> list[Any]:
    if callable(getattr(given, "to_dict", None)) and hasattr(given, "columns"):
        return list(given.to_dict("records"))
    if isinstance(given, Mapping):
        column = given.get(first)
        if isinstance(column, Mapping):  # {"type": {0: "std"}, ...}
            return [{key: column[index] for key, column in given.items() if index in column} for index in column]
        if isinstance(column, Sequence) and not isinstance(column, str):  # {"type": ["std"], ...}
            return [{key: column[index] for key, column in given.items()} for index in range(len(column))]
        inside = list(given.values())
        return inside if inside and all(isinstance(row, Mapping) and first in row for row in inside) else [given]
    if isinstance(given, Sequence) and not isinstance(given, str):
        return list(given)
    raise InterpError(f"{argument}: expected a list of dictionaries, a dictionary or a DataFrame, got {given!r:.80}.")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def layers_of(given: Any, model: StandardizedTransformer, name: str) -> list[int]:
    """Layers of a model, each once and in their order.

    Arguments:
        given: one layer, several, or `all`.
        model: the model.
        name: what messages call it.

    Raises:
        InterpError: a layer that the model lacks, or none.
    """
    if given == "all" or (isinstance(given, Sequence) and list(given) == ["all"]):
        return list(range(model.num_layers))
    several = given.tolist() if callable(getattr(given, "tolist", None)) else given
    several = [several] if isinstance(several, int) else several
    if not isinstance(several, Sequence | range) or isinstance(several, str) or not len(several):
        raise InterpError(f"{name}: expected layers, e.g. [0, 1], or 'all', got {given!r:.80}.")
    for layer in several:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < model.num_layers:
            raise InterpError(f"{name}: layer {layer!r}; the model has layers 0 to {model.num_layers - 1}.")
    return sorted(set(several))
