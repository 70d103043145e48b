"""Normalises what functions take as prompts: texts, `Prompt`s, token ids, encodings.

listed(["one", Prompt("two"), [1, 17, 33]])                            # as they are
listed(tokenizer(["one", "two"], padding=True, return_tensors="pt"))   # a list of token ids each, without padding
listed(tokenizer.apply_chat_template(chat))                            # one prompt
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral, Number
from typing import Any

from interp.errors import InterpError
from interp.prompts.prompt import Prompt

__all__ = ["is_ids", "listed", "token_ids"]

_EXPECTED = "texts, Prompts or lists of token ids"
# What a tokenizer may return beside the ids and their mask, of no effect on what a text is fed as.
_BESIDE = {"special_tokens_mask", "offset_mapping", "length", "overflow_to_sample_mapping", "num_truncated_tokens"}
_BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def listed(given: Any, name: str = "prompts") -> list[Any]:
    """One prompt or several as a list, each read once.

    A tokenizer's `BatchEncoding`, or a dictionary like it, is the prompts whose ids it holds, without their padding on
    either side. Arrays, tensors and columns are the lists that they hold; what can be read only once is read here.

    Arguments:
        given: what the user gave.
        name: the argument's, for messages.

    Returns:
        A list of texts, `Prompt`s, lists of token ids, and what else is given among them, such as lists of these; or
        the token ids of one prompt, where that is what was given (`is_ids` tells).

    Raises:
        InterpError: something else, whose iteration would give no prompts, or none in an order: another mapping, a
            table, a set, bytes, a number, None; or an encoding that is more than ids and padding.
    """
    if isinstance(given, str | Prompt):
        return [given]
    if isinstance(given, Mapping):
        return _rows(given, name)
    _refuse(given, name, "")
    plain = _plain(given)
    if plain is not given:
        return [plain] if isinstance(plain, str) else listed(plain, name)
    if not isinstance(given, Iterable):
        raise InterpError(f"{name}: expected {_EXPECTED}, got {_shown(given)}.")
    return [_entry(each, name, index) for index, each in enumerate(given)]


def is_ids(given: Any) -> bool:
    """Whether these are the token ids of one prompt."""
    return (
        isinstance(given, Sequence)
        and bool(given)
        and all(isinstance(token, Integral) and not isinstance(token, bool) for token in given)
    )


def token_ids(given: Any, name: str = "input_ids") -> list[list[int]]:
    """Several prompts that are token ids, from lists, tensors or an encoding.

    Arguments:
        given: what the user gave.
        name: the argument's, for messages.

    Raises:
        InterpError: what `listed` refuses, texts, or the ids of one prompt alone.
    """
    several = listed(given, name)
    for index, ids in enumerate(several):
        if not is_ids(ids) and not (isinstance(ids, Sequence) and not isinstance(ids, str) and not len(ids)):
            raise InterpError(f"{name}[{index}]: expected the token ids of a prompt, got {_shown(ids)}.")
    return [[int(token) for token in ids] for ids in several]


def _entry(given: Any, name: str, index: int) -> Any:
    """One of several prompts."""
    if isinstance(given, str | Prompt) or is_ids([given]):
        return given
    where = f" among them (entry {index})"
    if isinstance(given, Mapping):
        plain: Any = _rows(given, name, where)
    else:
        _refuse(given, name, where)
        plain = _plain(given)
        if plain is given:
            return given
    alone = isinstance(plain, list) and len(plain) == 1 and is_ids(plain[0])  # a batch of one
    return plain[0] if alone else plain


def _refuse(given: Any, name: str, where: str) -> None:
    """Raise for what is no prompt, though some of it could be iterated over."""
    columns = getattr(given, "columns", None)
    columns = getattr(given, "column_names", None) if columns is None else columns
    if columns is not None and not callable(columns):
        names = [str(column) for column in columns]
        raise InterpError(
            f"{name}: expected {_EXPECTED}, got a table ({type(given).__name__}) with the columns {_some(names)}"
            f"{where}. Pass the column that holds them, e.g. {name}=table[{(names or ['text'])[0]!r}]."
        )
    if isinstance(given, Set):
        raise InterpError(
            f"{name}: expected {_EXPECTED}, got a {type(given).__name__}{where}, which has no order. Make a list of it."
        )
    if given is None or isinstance(given, Number | bytes | bytearray | memoryview):
        raise InterpError(f"{name}: expected {_EXPECTED}, got {_shown(given)}{where}.")


def _rows(encoding: Mapping[str, Any], name: str, where: str = "") -> list[list[int]]:
    """The token ids of each prompt of a tokenizer's output, without padding."""
    keys = [str(key) for key in encoding]
    if "input_ids" not in encoding:
        if {"role", "content"} <= set(keys):
            remedy = "A chat becomes a prompt by `interp.prompts.chat_prompt`, or the tokenizer's chat template."
        else:
            remedy = f"Pass what it holds, e.g. {name}=list(texts.values())."
        raise InterpError(f"{name}: expected {_EXPECTED}, got a mapping with the keys {_some(keys)}{where}. {remedy}")
    unknown = [key for key in keys if key not in {*_BY_TOKEN, *_BESIDE} and encoding[key] is not None]
    if unknown:
        raise InterpError(
            f"{name}: expected an encoding of text, `input_ids` with an `attention_mask`, got one with {_some(unknown)}"
            f"{where} too, which a lens would leave out. Read it in a trace, or take the text alone."
        )
    given = {key: _plain(encoding.get(key)) for key in _BY_TOKEN}
    if is_ids(given["input_ids"]):  # one prompt, without an axis for the batch
        given = {key: None if value is None else [value] for key, value in given.items()}
    columns = {key: _lists(value) for key, value in given.items() if value is not None or key == "input_ids"}
    lengths = [len(row) for row in columns["input_ids"] or ()]
    for key, values in columns.items():
        if values is None or [len(row) for row in values] != lengths:
            raise InterpError(
                f"{name}: expected `{key}` as (prompt, token), an entry for each of `input_ids`, got "
                f"{_shown(encoding[key])}{where}."
            )
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [_without_padding(row, name, index) for index, row in enumerate(rows)]


def _lists(given: Any) -> Any:
    """Rows of an array or of lists, whatever they hold; None for what has no rows."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        return None
    rows = [_plain(row) for row in given]
    return rows if all(isinstance(row, Sequence) and not isinstance(row, str) for row in rows) else None


def _without_padding(row: Mapping[str, list[Any]], name: str, index: int) -> list[int]:
    """The tokens of a prompt that its mask shows.

    Raises:
        InterpError: a mask that shows none, or with holes; token types; positions that do not count from 0.
    """
    ids = row["input_ids"]
    mask = row.get("attention_mask", [1] * len(ids))
    types, positions = row.get("token_type_ids"), row.get("position_ids")
    shown = [place for place, value in enumerate(mask) if value]
    if set(mask) - {0, 1}:
        raise InterpError(f"{name}: expected an `attention_mask` of 0 and 1, got {_shown(sorted(set(mask)))}.")
    if not shown:
        raise InterpError(f"{name}: the `attention_mask` of prompt {index} shows none of its {len(ids)} tokens.")
    first, stop = shown[0], shown[-1] + 1
    if len(shown) < stop - first:
        raise InterpError(
            f"{name}: expected an `attention_mask` that hides padding on the left or on the right, that of prompt "
            f"{index} has a hole at token {mask.index(0, first)}. `attention_knockout` cuts attention."
        )
    if types is not None and any(types[first:stop]):
        raise InterpError(f"{name}: expected text of one type, got `token_type_ids` other than 0 in prompt {index}.")
    if positions is not None and list(positions[first:stop]) != list(range(stop - first)):
        raise InterpError(
            f"{name}: expected `position_ids` that count from 0 at the first token of a prompt, as each lens does, got "
            f"others in prompt {index}."
        )
    return list(ids[first:stop])


def _plain(given: Any) -> Any:
    """Lists in place of an array, a tensor or a column."""
    make = getattr(given, "tolist", None)  # numpy's, torch's and pandas's name of it
    return make() if callable(make) else given


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"{shown}, ..." if len(names) > 5 else shown or "(none)"


def _shown(given: Any) -> str:
    return f"{given!r:.80}"
