"""Result of a generating lens: token ids and texts, by example and layer."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from interp.errors import InterpError
from interp.results.drawing import plots
from interp.results.named_arrays import read_arrays, write_arrays

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answers", "GenerationResult"]

Answers = Sequence[str | Sequence[str]]
"""Per example: the accepted answer, or several."""

_PADDING = -1


@dataclass(frozen=True)
class GenerationResult:
    """What a model wrote after a patch at each of some layers.

    Arguments:
        layers: the layers, in the order in which they were asked for.
        ids: [example][layer], the new token ids; they may differ in number, where the model ended.
        texts: [example][layer], the same as text.

    Raises:
        InterpError: an example whose ids or texts are not one a layer.
    """

    layers: tuple[int, ...]
    ids: tuple[tuple[tuple[int, ...], ...], ...]
    texts: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        plain = tuple(tuple(tuple(int(token) for token in ids) for ids in by_layer) for by_layer in self.ids)
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        object.__setattr__(self, "ids", plain)
        object.__setattr__(self, "texts", tuple(tuple(by_layer) for by_layer in self.texts))
        if len(self.ids) != len(self.texts):
            raise InterpError(
                f"expected ids and texts of the same examples, got {len(self.ids)} and {len(self.texts)}."
            )
        for name, values in (("ids", self.ids), ("texts", self.texts)):
            for example, by_layer in enumerate(values):
                if len(by_layer) != len(self.layers):
                    raise InterpError(
                        f"{name}: example {example} has {len(by_layer)}, expected one for each of {len(self.layers)} "
                        "layers."
                    )

    @classmethod
    def decoded(
        cls, layers: Sequence[int], ids: Sequence[Sequence[Sequence[int]]], tokenizer: PreTrainedTokenizerBase
    ) -> Self:
        """The result whose texts are what a tokenizer makes of the ids, without special tokens."""
        texts = [
            [tokenizer.decode(list(row), skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows]
            for rows in ids
        ]
        return cls(tuple(layers), ids, texts)  # type: ignore[arg-type]  # made tuples there

    def hits(self, answers: Answers) -> NDArray[np.bool_]:
        """Whether a text contains an accepted answer, spaces removed and case folded (Ghandeharioun et al. 2024).

        Arguments:
            answers: per example: the answer, or several of which any counts.

        Returns:
            (example, layer).

        Raises:
            InterpError: not one entry an example, or an answer that is only spaces: every text contains it.
        """
        if isinstance(answers, str) or len(answers) != len(self.texts):
            raise InterpError(
                f"answers: expected one entry for each of {len(self.texts)} examples, got {answers!r:.80}."
            )
        found = np.zeros((len(self.texts), len(self.layers)), dtype=bool)
        for example, (given, by_layer) in enumerate(zip(answers, self.texts, strict=True)):
            accepted = [_bare(answer) for answer in ([given] if isinstance(given, str) else given)]
            if not accepted or not all(accepted):
                raise InterpError(f"answers: example {example} has {given!r}, expected at least one non-empty answer.")
            for index, text in enumerate(by_layer):
                found[example, index] = any(answer in _bare(text) for answer in accepted)
        return found

    def accuracy(self, answers: Answers) -> NDArray[np.float64]:
        """Attribute-extraction accuracy (Ghandeharioun et al. 2024): the share of examples whose text has the answer.

        Arguments:
            answers: as in `hits`.

        Returns:
            (layer,); NaN without examples.
        """
        hits = self.hits(answers)
        return hits.mean(axis=0) if len(hits) else np.full(len(self.layers), np.nan)

    def padded_ids(self) -> NDArray[np.int32]:
        """(example, layer, token), the ids, -1 behind the end of each text."""
        longest = max((len(row) for rows in self.ids for row in rows), default=0)
        padded = np.full((len(self.ids), len(self.layers), longest), _PADDING, dtype=np.int32)
        for example, rows in enumerate(self.ids):
            for index, row in enumerate(rows):
                padded[example, index, : len(row)] = row
        return padded

    def to_frame(self) -> pd.DataFrame:
        """A tidy table: a row for each example and layer, with `text` and `num_tokens`."""
        import pandas as pd

        rows = [
            (example, layer, text, len(ids))
            for example, (texts, by_layer) in enumerate(zip(self.texts, self.ids, strict=True))
            for layer, text, ids in zip(self.layers, texts, by_layer, strict=True)
        ]
        return pd.DataFrame(rows, columns=["example", "layer", "text", "num_tokens"])

    def plot(self, examples: Sequence[int] = (0,), *, title: str | None = None) -> Figure:
        """Draw a table of the texts, a row for each layer and a column for each of some examples.

        Raises:
            ImportError: matplotlib is not installed.
            InterpError: no such example.
        """
        return plots().generation_figure(self, examples, title=title)

    @classmethod
    def concatenate(cls, parts: Sequence[Self], order: Sequence[int] | None = None) -> Self:
        """Put results over different examples of the same layers together.

        Arguments:
            parts: at least one result.
            order: for each example of the parts, in turn, its place in the whole; None: as they come.

        Raises:
            InterpError: no part, other layers, or an order that is no permutation of the examples.
        """
        if len({part.layers for part in parts}) != 1:
            raise InterpError("concatenate: expected results over the same layers, at least one.")
        ids = [by_layer for part in parts for by_layer in part.ids]
        texts = [by_layer for part in parts for by_layer in part.texts]
        if order is not None and sorted(order) != list(range(len(ids))):
            raise InterpError(f"concatenate: order: expected each of 0 to {len(ids) - 1} once, got {list(order)}.")
        rows = range(len(ids)) if order is None else sorted(range(len(ids)), key=lambda row: order[row])
        return cls(parts[0].layers, tuple(ids[row] for row in rows), tuple(texts[row] for row in rows))

    def save(self, path: str | Path) -> None:
        """Write the result into one safetensors file, the same bytes for the same result."""
        write_arrays(path, "GenerationResult", {"ids": self.padded_ids()}, {"layers": self.layers, "texts": self.texts})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InterpError: no such file, or one that holds something else.
        """
        arrays, described = read_arrays(path, "GenerationResult")
        ids = [[[token for token in row if token != _PADDING] for row in rows] for rows in arrays["ids"].tolist()]
        return cls(described["layers"], ids, described["texts"])  # type: ignore[arg-type]


def _bare(text: str) -> str:
    """A text without spaces and case; accents on a letter and the letter with its accents are the same."""
    return unicodedata.normalize("NFC", "".join(text.split()).casefold())
