"""Text to train on: streamed, tokenized, packed, in an order that a resumed training finds again, with its bytes."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from interp.errors import InterpError
from interp.prompts.given import token_ids

__all__ = ["GivenSequences", "PackedText", "TextSource", "TokenSequence", "TokenStream", "token_bytes"]


_BUILDERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class TextSource:
    """Where text comes from: a data set of the hub, or a local file, read through `datasets` as a stream.

    Arguments:
        path: hub id, or a `.jsonl`, `.json`, `.parquet`, `.csv` or `.txt` file. Paragraphs of a `.txt` file are its
            documents.
        name: configuration of a hub data set.
        split: which part.
        column: where the text is.
        revision: branch, tag or commit on the hub.
        shuffle_buffer: documents that are mixed at a time; 0: the order of the source.
        seed: of the mixing.
    """

    path: str
    name: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    shuffle_buffer: int = 0
    seed: int = 0

    def documents(self, epoch: int = 0, skip: int = 0) -> Iterator[str]:
        """Texts in order.

        Arguments:
            epoch: how often all were read before; mixes them otherwise each time.
            skip: how many are left out at the beginning.

        Raises:
            InterpError: it cannot be read, or has no such column.
        """
        stream = self._open()
        if self.shuffle_buffer:
            stream = stream.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
        stream = stream.skip(skip)
        stream.set_epoch(epoch)  # of the last stream made: it would not be handed on
        for row in stream:
            if not isinstance(row.get(self.column), str):
                held = sorted(name for name, value in row.items() if isinstance(value, str))
                raise InterpError(
                    f"text in {self.path!r}: expected a column {self.column!r} that holds text, found "
                    f"{', '.join(held) or 'no text at all'}. Say which with column=."
                )
            yield row[self.column]

    def describe(self) -> dict[str, Any]:
        """What it is, without the way to a local file: its name and size."""
        told = asdict(self)
        file = Path(self.path).expanduser()
        if file.is_file():
            told |= {"path": file.name, "file_bytes": file.stat().st_size}
        return told

    def _open(self) -> Any:
        from datasets import load_dataset  # slow to import

        file = Path(self.path).expanduser()
        try:
            if not file.exists():
                return load_dataset(self.path, self.name, split=self.split, revision=self.revision, streaming=True)
            if file.suffix not in _BUILDERS:
                raise InterpError(
                    f"text in {self.path!r}: expected a file ending in {', '.join(_BUILDERS)}, got {file.name!r}."
                )
            if "::" in str(file):
                raise InterpError(
                    f"text in {self.path!r}: `datasets` takes `::` in a path for a link. Rename the file."
                )
            options = {"sample_by": "paragraph"} if file.suffix == ".txt" else {}
            named = glob.escape(str(file))  # `datasets` takes a path for a pattern
            return load_dataset(_BUILDERS[file.suffix], data_files=named, split="train", streaming=True, **options)
        except (OSError, ValueError) as error:
            if isinstance(error, InterpError):
                raise
            reason = str(error).strip().splitlines() or [""]
            raise InterpError(
                f"text in {self.path!r}: no local file of that name, and `datasets` says: {reason[0]}. Expected a hub "
                "id, or a file ending in " + ", ".join(_BUILDERS) + "."
            ) from error


class PackedText:
    """Documents packed into sequences of equal length, one behind the other.

    A document ends with the end-of-text token, where the tokenizer has one. Each sequence begins with what the
    tokenizer puts before a text (`<s>`), if anything. What is left over at the very end is not used.

    Arguments:
        tokenizer: the model's.
        source: the documents.
        sequence_length: tokens in a sequence.
        repeat: begin again after the last document, for ever.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, source: TextSource, *, sequence_length: int, repeat: bool = False
    ) -> None:
        self._tokenizer, self._source, self._repeat = tokenizer, source, repeat
        self._prefix = _prefix(tokenizer)
        if sequence_length < len(self._prefix) + 2:
            raise InterpError(
                f"sequence_length: expected at least {len(self._prefix) + 2} tokens, got {sequence_length}."
            )
        self._length = sequence_length
        self._epoch = self._document = 0
        self._last = ""  # digest of the last document
        self._ids: list[int] = []
        self._bytes: list[int] = []

    def __iter__(self) -> Iterator[TokenSequence]:
        yield from self._cut()
        tokens = 1
        while tokens:
            tokens = 0  # of this time through the documents: a source without any ends, though it be repeated
            for text in self._documents():
                tokens += self._take(text)
                yield from self._cut()
            if not self._repeat:
                return
            self._epoch, self._document = self._epoch + 1, 0

    def describe(self) -> dict[str, Any]:
        return {"source": self._source.describe(), "sequence_length": self._length, "repeat": self._repeat}

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "document": self._document,
            "last": self._last,
            "ids": list(self._ids),
            "bytes": list(self._bytes),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._document, self._last = state["epoch"], state["document"], state["last"]
        self._ids, self._bytes = list(state["ids"]), list(state["bytes"])

    def _documents(self) -> Iterable[str]:
        """The documents from the present one on; the one before is looked at, whether it is still the same."""
        if not self._document:
            return self._source.documents(self._epoch)
        found = self._source.documents(self._epoch, self._document - 1)
        if _digest(next(found, "")) != self._last:
            raise InterpError(
                f"text in {self._source.path!r}: document {self._document - 1} is no longer what it was when the "
                "training stopped, so it cannot go on where it was. Give it the same text, or begin anew "
                "(--no-resume)."
            )
        return found

    def _take(self, text: str) -> int:
        """Put a document behind what is not used yet; returns its tokens."""
        ids, num_bytes = token_bytes(self._tokenizer, text)
        end = self._tokenizer.eos_token_id
        self._ids += ids if end is None else [*ids, end]
        self._bytes += num_bytes if end is None else [*num_bytes, 0]
        self._document, self._last = self._document + 1, _digest(text)
        return len(ids)

    def _cut(self) -> Iterator[TokenSequence]:
        """The whole sequences of what is not used yet."""
        length = self._length - len(self._prefix)
        while len(self._ids) >= length:
            ids, num_bytes = self._ids[:length], self._bytes[:length]
            del self._ids[:length], self._bytes[:length]
            yield TokenSequence((*self._prefix, *ids), (*[0] * len(self._prefix), *num_bytes))


def _prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text."""
    with_special = tokenizer("a", verbose=False)["input_ids"]
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    for start in range(len(with_special) - len(bare) + 1):
        if list(with_special[start : start + len(bare)]) == list(bare):
            return tuple(with_special[:start])
    return ()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
