"""Batches of prompts from whatever a user iterates over: a `DataLoader`, a data set of rows, lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import InterpError, nearest
from interp.prompts import Encoded, Prompt, with_images
from interp.prompts.given import is_ids, listed

__all__ = ["IMAGE_COLUMNS", "TEXT_COLUMNS", "GivenBatch", "given_batches"]

TEXT_COLUMNS = ("prompt", "prompts", "text", "texts")
IMAGE_COLUMNS = ("images", "image")
_BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class GivenBatch:
    """Some prompts that are run together.

    Arguments:
        prompts: texts, `Prompt`s, lists of token ids or `Encoded`s.
        given: the batch as the user's iterable gave it, for what saves more of it; single rows by column.
        entries: how many entries of that iterable it is.
    """

    prompts: list[Any]
    given: Any
    entries: int = 1


def given_batches(batches: Any, batch_size: int, column: str | None = None) -> Iterator[GivenBatch]:
    """Batches of prompts, one after the other.

    An entry that is several prompts (a list, an encoding, a mapping of columns) is a batch as it is. Entries that are
    one prompt each (a text, a `Prompt`, an `Encoded`, token ids, a row of a table) make batches of `batch_size`. Beside
    a column of texts, `images` or `image` holds the images of each.

    Arguments:
        batches: what is iterated over; a text, `Prompt`, encoding or mapping of columns is one batch.
        batch_size: prompts in a batch where they come one by one.
        column: the column that holds the prompts; None: `input_ids`, or one of `TEXT_COLUMNS`.

    Raises:
        InterpError: something that holds no prompts, or none at all.
    """
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    waiting: list[tuple[Any, Any]] = []
    found = False
    for entry in _entries(batches):
        prompts = _prompts(entry, column)
        if isinstance(prompts, list) and not is_ids(prompts):
            found = True
            if waiting:
                yield _together(waiting)
                waiting = []
            yield GivenBatch(prompts, entry)
            continue
        waiting.append((prompts, entry))
        found = True
        if len(waiting) == batch_size:
            yield _together(waiting)
            waiting = []
    if waiting:
        yield _together(waiting)
    if not found:
        raise InterpError("batches: expected at least one prompt, got none.")


def _entries(batches: Any) -> Iterable[Any]:
    if isinstance(batches, str | Prompt | Encoded | Mapping):
        return [batches]
    to_dict = getattr(batches, "to_dict", None)
    if hasattr(batches, "columns") and callable(to_dict):  # a pandas table
        return batches.to_dict("records")
    if hasattr(batches, "dim") or hasattr(batches, "ndim"):  # a tensor or array of token ids
        return [batches]
    if is_ids(batches):
        return [batches]
    if not isinstance(batches, Iterable):
        raise InterpError(
            f"batches: expected batches or prompts, e.g. a DataLoader, a list of texts or rows; got {batches!r:.80}."
        )
    return batches


def _prompts(entry: Any, column: str | None) -> Any:
    """The prompt, or the list of prompts, that an entry is."""
    if isinstance(entry, str | Prompt | Encoded):
        return entry
    if isinstance(entry, Mapping):
        return _of_columns(entry, column)
    if isinstance(entry, Sequence) and entry and all(isinstance(row, Mapping) for row in entry):
        found = [_of_columns(row, column) for row in entry]
        return [one[0] if isinstance(one, list) and len(one) == 1 and not is_ids(one) else one for one in found]
    if isinstance(entry, list | tuple) and len(entry) == 1 and getattr(entry[0], "ndim", 0) == 2:
        entry = entry[0]  # a TensorDataset's batch
    return listed(entry, "batches")


def _of_columns(entry: Mapping[str, Any], column: str | None) -> Any:
    """The prompt or prompts of a mapping: a row, or columns of several rows."""
    keys = [str(key) for key in entry]
    if column is not None:
        if column not in entry:
            raise InterpError(f"column: the batch has no {column!r}.{nearest(column, keys)}")
        name: str | None = column
    else:
        name = next((key for key in ("input_ids", *TEXT_COLUMNS) if key in entry), None)
    if name is None:
        raise InterpError(
            f"batches: expected input_ids or one of {', '.join(TEXT_COLUMNS)}, got a batch with {', '.join(keys)}. "
            "Name the column of the prompts: column=..."
        )
    if name == "input_ids":
        seen = [key for key in keys if key.startswith("pixel_values") or (key in IMAGE_COLUMNS and _any(entry[key]))]
        if seen:
            raise InterpError(
                f"batches: token ids beside {seen[0]} cannot be cut into prompts with images. Give texts and images: "
                "Prompts with images, or rows with a column of texts and one of images (column=... names the texts)."
            )
        ids = entry["input_ids"]
        single = is_ids(ids) or getattr(ids, "ndim", 2) == 1
        found = listed({key: entry[key] for key in _BY_TOKEN if entry.get(key) is not None}, "batches")
        return found[0] if single else found
    value = entry[name]
    seen = [key for key in IMAGE_COLUMNS if entry.get(key) is not None and key != name]
    if len(seen) > 1:
        raise InterpError(f"batches: expected one column of images, got {' and '.join(seen)}. Leave one out.")
    images = entry[seen[0]] if seen else None
    if isinstance(value, str | Prompt):
        found = with_images(value, images, name)
        return found[0] if isinstance(found, list) else found
    if is_ids(value) and not _any(images):
        return value
    return with_images(listed(value, name), images, name)


def _any(images: Any) -> bool:
    """Whether a column, or an entry of one, has an image."""
    if isinstance(images, list | tuple):
        return any(_any(one) for one in images)
    return images is not None and not (isinstance(images, float) and images != images)  # NaN: nothing, in a table


def _together(waiting: Sequence[tuple[Any, Any]]) -> GivenBatch:
    """Prompts that came one by one; their rows by column."""
    rows = [row for _, row in waiting]
    given: Any = rows
    if all(isinstance(row, Mapping) for row in rows):
        given = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    return GivenBatch([prompt for prompt, _ in waiting], given, len(waiting))
