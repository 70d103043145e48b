"""What a processor makes of texts and images, taken apart: each example's tokens, where its images are, its pixels.

A processor gives the images of a whole batch one after the other, and of the text only token ids. Where an image begins
and ends is read from these: by the family's markers, or by how many tokens an image has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.model.processor import image_feeds
from interp.prompts import Encoded
from interp.prompts.images import IMAGES_BY_ROW, image_markers, image_spans, media_of

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["encoded_rows", "fed_beside", "of_processor"]

_TILE = re.compile(r"<row_\d+_col_\d+>|<global-img>")


def fed_beside(model: StandardizedTransformer, inputs: Mapping[str, Any]) -> list[str]:
    """The names of what a batch feeds a model that sees, beside token ids and mask."""
    feeds = image_feeds(model._module) if "pixel_values" in inputs else set()
    return [name for name in inputs if name in feeds and name not in ("input_ids", "attention_mask", "labels")]


def of_processor(model: StandardizedTransformer) -> set[str]:
    """The names of what a model's processor gives, some of which no model is fed."""
    names = [] if model.processor is None else [*model.processor.model_input_names, "mm_token_type_ids"]
    return {name for name in names if name != "labels"}


def encoded_rows(model: StandardizedTransformer, inputs: Mapping[str, Any]) -> list[Encoded]:
    """The examples of a batch with images.

    Arguments:
        model: the model.
        inputs: what its processor gives: `input_ids` and `attention_mask`, padded on either side, `pixel_values`, ...

    Returns:
        Each example with the spans that its images have (`image[0]`, `image`, `text`, ...).

    Raises:
        InterpError: what is no tensor, or images that cannot be told apart.
    """
    ids = torch.as_tensor(inputs["input_ids"])
    ids = ids[None] if ids.dim() == 1 else ids
    mask = torch.as_tensor(inputs.get("attention_mask", torch.ones_like(ids))).reshape(ids.shape).bool().cpu()
    beside = {name: inputs[name] for name in fed_beside(model, inputs)}
    wrong = next((name for name, value in beside.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise InterpError(f"inputs: expected tensors of the processor (return_tensors='pt'), {wrong} is none.")
    by_token = {name: value for name, value in beside.items() if name.endswith("token_type_ids")}
    whole = {name: value for name, value in beside.items() if name not in by_token}
    rows: list[list[int]] = [row[own].tolist() for row, own in zip(ids.cpu(), mask, strict=True)]
    processor = model.processor
    if processor is None:
        raise InterpError("inputs: pixel_values, but the model was loaded without its processor.")
    find = _Images(model, processor, rows, whole)
    shares = _shares(model, whole, [len(one) for one in find.blocks], find.tokens)
    found = []
    for index, row in enumerate(rows):
        if not find.blocks[index]:
            found.append(Encoded(row, {}))
            continue
        spans = image_spans(
            row,
            [(token, token + 1) for token in range(len(row))],
            [{"new_span": block} for block in find.blocks[index]],
            find.token,
            find.markers,
        )
        numbers = {name: value[index].cpu()[mask[index]].tolist() for name, value in by_token.items()}
        found.append(Encoded(row, spans, {}, media_of(processor, shares[index], numbers)))
    return found


class _Images:
    """Where the images of some rows are.

    Attributes:
        token: the id in whose place the model puts what it sees.
        markers: ids that stand before and behind an image.
        tokens: of each row, how many stand for images.
        blocks: of each row, the images as (first token, one past the last), with what stands between their rows.
    """

    def __init__(
        self,
        model: StandardizedTransformer,
        processor: Any,
        rows: Sequence[Sequence[int]],
        whole: Mapping[str, Tensor],
    ) -> None:
        config: Any = model._module.config
        tokenizer = processor.tokenizer
        self.token: int = config.image_token_id
        self.markers = image_markers(processor)
        words = tokenizer.get_added_vocab()
        named = {getattr(holder, "image_break_token", None) for holder in (processor, tokenizer)}
        self._between = {number for word, number in words.items() if word in named or _TILE.fullmatch(word)}
        self._around = _around(processor, self.token)
        self._last_tile = words.get("<global-img>")
        self.tokens = [list(row).count(self.token) for row in rows]
        images = None if self._is_marked or "image_sizes" in whole else len(whole["pixel_values"])
        self._each = sum(self.tokens) // images if images else None
        self.blocks = [self._of(row) for row in rows]
        sizes = whole.get("image_sizes")
        if sizes is not None and sum(map(len, self.blocks)) != len(sizes):
            raise InterpError(
                f"inputs: {len(sizes)} images, and tokens by which {sum(map(len, self.blocks))} can be told apart. "
                "Put text between images that stand side by side."
            )

    @property
    def _is_marked(self) -> bool:
        return any(self.markers.values())

    def _of(self, row: Sequence[int]) -> list[tuple[int, int]]:
        runs = self._runs(row)
        if self._last_tile is not None:
            return self._tiled(row, runs)
        blocks: list[tuple[int, int]] = []
        for start, stop in runs:
            if blocks and set(row[blocks[-1][1] : start]) <= self._between:  # rows of one image
                blocks[-1] = (blocks[-1][0], stop)
            elif self._each:
                blocks += [(at, at + self._each) for at in range(start, stop, self._each)]
            else:
                blocks.append((start, stop))
        before, behind = self._around
        return [
            (
                start - len(before) if before and list(row[start - len(before) : start]) == before else start,
                stop + len(behind) if behind and list(row[stop : stop + len(behind)]) == behind else stop,
            )
            for start, stop in blocks
        ]

    def _runs(self, row: Sequence[int]) -> list[tuple[int, int]]:
        """Where image tokens stand one after the other."""
        runs: list[tuple[int, int]] = []
        for at, token in enumerate(row):
            if token != self.token:
                continue
            if runs and runs[-1][1] == at:
                runs[-1] = (runs[-1][0], at + 1)
            else:
                runs.append((at, at + 1))
        return runs

    def _tiled(self, row: Sequence[int], runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Of images in tiles, the last of which is the whole image."""
        blocks: list[tuple[int, int]] = []
        begin: int | None = None
        for start, stop in runs:
            begin = start if begin is None else begin
            if row[start - 1] == self._last_tile:
                while begin and row[begin - 1] in self._between:
                    begin -= 1
                blocks.append((begin, stop))
                begin = None
        return blocks


def _around(processor: Any, token: int) -> tuple[list[int], list[int]]:
    """The tokens that a processor writes around those of an image (Gemma 3: line breaks and markers)."""
    text = getattr(processor, "full_image_sequence", None)
    ids = [] if text is None else list(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    if token not in ids:
        return [], []
    return ids[: ids.index(token)], ids[len(ids) - ids[::-1].index(token) :]


def _shares(
    model: StandardizedTransformer, whole: Mapping[str, Tensor], images: Sequence[int], tokens: Sequence[int]
) -> list[dict[str, Tensor]]:
    """What of the pixels is each row's.

    Arguments:
        model: the model.
        whole: of the batch.
        images: how many images each row has.
        tokens: how many tokens stand for them.
    """
    rows = len(images)
    by_row = type(model.processor).__name__.startswith(IMAGES_BY_ROW)
    shares: list[dict[str, Tensor]] = [{} for _ in range(rows)]
    for name, value in whole.items():
        if rows == 1:
            parts: Sequence[Tensor] = [value]
        elif name.startswith("batch_"):  # a number for each row
            parts = value.split(1)
        elif by_row and len(value) == rows:
            parts = [_without_padding(value[row : row + 1], whole, row) for row in range(rows)]
        elif len(value) == sum(images):
            parts = value.split(list(images))
        elif all(count * len(value) % max(1, sum(tokens)) == 0 for count in tokens):  # patches, as many for each token
            parts = value.split([count * len(value) // sum(tokens) for count in tokens])
        else:
            raise InterpError(
                f"inputs: {name} of shape {tuple(value.shape)} cannot be shared out among {rows} examples with "
                f"{', '.join(map(str, images))} images. Give batches of one example."
            )
        for share, part in zip(shares, parts, strict=True):
            share[name] = part
    return shares


def _without_padding(value: Tensor, whole: Mapping[str, Tensor], row: int) -> Tensor:
    """Of one row's pixels or their mask the images that it has: those behind them are zeros."""
    there = whole["pixel_values"][row].flatten(1).any(1)
    return value[:, : int(there.sum())]
