"""What a task makes and `tokens/` holds: prompts, the prompts that are patched into, and pairs of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.tables.notes import Note

__all__ = ["Pair", "Row", "TaskData"]


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt.

    Arguments:
        prompt: the text.
        input_ids: its token ids exactly as the model is fed, with the tokenizer's start token, unpadded.
        spans: name of a span -> (first token, one past its last token).
        labels: name -> value: what the prompt is about (`concept`, `source_language`, ...).
        answers: group -> ids of the tokens that count as its answer, distinct; empty where none is known.
        words: group -> the accepted words that the tokens come from.
    """

    prompt: str
    input_ids: Sequence[int]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """A source concept that is patched into a prompt about a target concept.

    Arguments:
        sources: rows of `prompts`, one per source language, in the config's order.
        target: row of `targets`.
        labels, answers, words: as in `Row`, for the groups of the pair.
    """

    sources: Sequence[int]
    target: int
    labels: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskData:
    """All that a task asks of a model.

    Arguments:
        prompts: the prompts whose activations are read.
        targets: the prompts that a patchscope patches into; none without `patch_into`.
        pairs: which of `prompts` are patched into which of `targets`.
        counts: what was kept and what was dropped, by reason.
        groups: group -> its label for people, over all three.
        notes: what is odd about the data, counted, with examples.
        read_as: how the user's file is written, for people; empty where there is none.
    """

    prompts: Sequence[Row]
    targets: Sequence[Row] = ()
    pairs: Sequence[Pair] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[Note] = ()
    read_as: str = ""
