"""Token sequences in an order that is found again, and the bytes of text that their tokens stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from interp.errors import InterpError
from interp.prompts.given import token_ids

__all__ = ["GivenSequences", "TokenSequence", "TokenStream", "token_bytes"]


@dataclass(frozen=True)
class TokenSequence:
    """Tokens that are fed together.

    Arguments:
        ids: token ids.
        num_bytes: UTF-8 bytes of text that each token stands for; 0 for a special token.
    """

    ids: tuple[int, ...]
    num_bytes: tuple[int, ...]


class TokenStream(Protocol):
    """Sequences in a fixed order, from a place that can be kept."""

    def __iter__(self) -> Iterator[TokenSequence]:
        """The sequences from the present place on."""

    def describe(self) -> dict[str, Any]:
        """What decides the sequences and their order, JSON; a checkpoint of another is refused."""

    def state(self) -> dict[str, Any]:
        """The present place, JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state` gave.

        Raises:
            InterpError: what lies there is no longer what was.
        """


class GivenSequences:
    """Sequences held in memory.

    Arguments:
        sequences: in the order in which they are used.
        repeat: begin again after the last one, for ever.

    Raises:
        InterpError: no sequence, or one without tokens.
    """

    def __init__(self, sequences: Sequence[TokenSequence], *, repeat: bool = False) -> None:
        if not sequences or not all(sequence.ids for sequence in sequences):
            raise InterpError("expected at least one sequence, and tokens in each.")
        self._sequences, self._repeat, self._next = list(sequences), repeat, 0
        self._digest = hashlib.sha256(repr([(s.ids, s.num_bytes) for s in sequences]).encode()).hexdigest()

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[Sequence[int]], *, repeat: bool = False
    ) -> GivenSequences:
        """Prompts as they are fed; a prompt's bytes are spread evenly over its tokens, special ones left out.

        Arguments:
            tokenizer: the model's.
            input_ids: token ids of each prompt, unpadded; or what a tokenizer returned, whose padding is left away.
            repeat: as above.

        Raises:
            InterpError: texts, or something else that is no token ids.
        """
        special = set(tokenizer.all_special_ids)
        sequences = []
        for ids in token_ids(input_ids):
            size = len(str(tokenizer.decode(list(ids), skip_special_tokens=True)).encode())
            sequences.append(TokenSequence(tuple(ids), _spread(size, [i not in special for i in ids])))
        return cls(sequences, repeat=repeat)

    def __iter__(self) -> Iterator[TokenSequence]:
        while self._repeat or self._next < len(self._sequences):
            self._next += 1
            yield self._sequences[(self._next - 1) % len(self._sequences)]

    def describe(self) -> dict[str, Any]:
        return {"sequences_sha256": self._digest, "number": len(self._sequences), "repeat": self._repeat}

    def state(self) -> dict[str, Any]:
        return {"next": self._next}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._next = int(state["next"])


def token_bytes(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Tokens of a text, without special ones, and how many of its UTF-8 bytes each stands for.

    What lies between two tokens counts with the later one, what follows the last with that; of tokens that share a
    character the first gets all its bytes. A tokenizer that does not say where its tokens stand has the bytes spread
    evenly. In each case they sum to the bytes of the text.

    Returns:
        Token ids, and as many numbers of bytes.
    """
    options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    if not tokenizer.is_fast:
        ids = list(tokenizer(text, **options)["input_ids"])
        return ids, list(_spread(len(text.encode()), [True] * len(ids)))
    encoded = tokenizer(text, return_offsets_mapping=True, **options)
    ids = list(encoded["input_ids"])
    if not ids:
        return [], []
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    before = np.concatenate([[0], np.cumsum(sizes)])  # bytes before each character
    ends = np.maximum.accumulate([end for _, end in encoded["offset_mapping"]])
    ends[-1] = len(points)
    return ids, np.diff(before[ends], prepend=0).tolist()


def _spread(size: int, counts: Sequence[bool]) -> tuple[int, ...]:
    """Whole numbers that sum to `size`, as equal as can be, 0 where a token does not count."""
    number, seen, spread = sum(counts), 0, []
    for count in counts:
        spread.append((seen + 1) * size // number - seen * size // number if count else 0)
        seen += count
    return tuple(spread)
