"""Write and read the artifact `tokens/`: the records that tasks make, for the stages after `tokenize`.

    tokens = load_tokens()          # tokens/ of the current run folder
    rows = load_prompts()           # tokens/prompts alone, for a stage that must not depend on the rest

The folders are `datasets` datasets. Their Arrow files are read directly: importing `datasets` takes longer than that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from interp.positions import Span, TokenSet
from pipeline.tables.table import Note

__all__ = [
    "FORMAT", "IMAGES", "Pair", "Row", "TaskData", "Tokens", "load_prompts", "load_tokens", "plain_span",
    "prompts_digest", "ranges_of",
]  # fmt: skip


FORMAT = "interpipe.tokens/1"
IMAGES = Path("tokens", "images")
"""The images of the prompts of a run folder, each named by its content."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The whole artifact.

    Arguments:
        manifest: `manifest.json`: kind of the task, digests, counts, and the groups with their labels.
        prompts: the prompts whose activations are read.
        targets: the prompts that are patched into; empty where the task has none.
        pairs: which prompts are patched into which targets.
    """

    manifest: dict[str, Any]
    prompts: list[Row]
    targets: list[Row]
    pairs: list[Pair]


def load_tokens(folder: str | Path = "tokens") -> Tokens:
    """Read the whole artifact.

    Arguments:
        folder: the artifact.

    Raises:
        InterpError: the stage `tokenize` has not run there, or its output is of another format.
    """
    folder = Path(folder)
    manifest = _load_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise InterpError(
            f"{folder}/manifest.json: expected format {FORMAT!r}, got {manifest.get('format')!r}. "
            "Run the stage `tokenize` again with this version of the code."
        )
    return Tokens(
        manifest=manifest,
        prompts=load_prompts(folder),
        targets=[_row(values) for values in _load_dataset(folder / "targets")],
        pairs=[_pair(values) for values in _load_dataset(folder / "pairs")],
    )


def load_prompts(folder: str | Path = "tokens") -> list[Row]:
    """Read `prompts` and nothing else of the artifact.

    Arguments:
        folder: the artifact, that is the folder that holds `prompts`.

    Raises:
        InterpError: the stage `tokenize` has not run there.
    """
    return [_row(values) for values in _load_dataset(Path(folder) / "prompts")]


def prompts_digest(rows: Iterable[Row]) -> str:
    """SHA-256, in hexadecimal, of what decides the activations of prompts: texts, token ids, spans, images, in order.

    Labels and answers are left out: they can change without any activation changing.
    """
    digest = hashlib.sha256()
    for row in rows:
        spans = sorted((name, *part) for name, span in row.spans.items() for part in ranges_of(span))
        images = [list(row.images)] if row.images else []  # their names are digests of what they hold
        line = json.dumps([row.prompt, list(row.input_ids), spans, *images], ensure_ascii=False)
        digest.update(line.encode("utf-8") + b"\n")
    return digest.hexdigest()


def ranges_of(span: Span) -> list[tuple[int, int]]:
    """A span as ranges of tokens (start, stop), ascending, with gaps between them."""
    if not isinstance(span, TokenSet):
        return [span]
    tokens = span.tokens
    starts = [token for token, before in zip(tokens, (-2, *tokens), strict=False) if token != before + 1]
    stops = [token + 1 for token, after in zip(tokens, (*tokens[1:], -2), strict=True) if after != token + 1]
    return list(zip(starts, stops, strict=True))


def plain_span(ranges: Sequence[tuple[int, int]]) -> Span:
    """The span of some ranges: one range where it has no gap."""
    if len(ranges) == 1:
        return ranges[0]
    return TokenSet(tuple(token for start, stop in ranges for token in range(start, stop)))


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InterpError(
            f"expected {path}, found none. It is made by `python -m pipeline.stages.tokenize` "
            "(or `dvc repro tokenize`) in the run folder."
        ) from None
    except ValueError as error:
        raise InterpError(f"{path} is damaged ({error}). Run the stage `tokenize` again.") from None
    return content


def _load_dataset(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a dataset that `datasets` saved to disk."""
    import pyarrow as pa  # a moment, which a config that is only checked need not wait for

    files: Sequence[dict[str, str]] = _load_json(folder / "state.json")["_data_files"]
    for file in files:
        path = folder / file["filename"]
        try:
            with pa.memory_map(str(path)) as stream, pa.ipc.open_stream(stream) as reader:
                table = reader.read_all()
                yield from table.to_pylist()
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise InterpError(f"{path} is missing or damaged ({error}). Run the stage `tokenize` again.") from None


def _row(values: dict[str, Any]) -> Row:
    spans: dict[str, list[tuple[int, int]]] = {}
    for span in values["spans"]:  # one with gaps stands there several times
        spans.setdefault(span["name"], []).append((span["start"], span["stop"]))
    return Row(
        prompt=values["prompt"],
        input_ids=values["input_ids"],
        spans={name: plain_span(ranges) for name, ranges in spans.items()},
        images=tuple(values.get("images", ())),
        labels=_labels(values),
        answers={answer["group"]: answer["token_ids"] for answer in values["answers"]},
        words={answer["group"]: answer["words"] for answer in values["answers"]},
    )


def _pair(values: dict[str, Any]) -> Pair:
    return Pair(
        sources=values["sources"],
        target=values["target"],
        labels=_labels(values),
        answers={answer["group"]: answer["token_ids"] for answer in values["answers"]},
        words={answer["group"]: answer["words"] for answer in values["answers"]},
    )


def _labels(values: dict[str, Any]) -> dict[str, str]:
    return {label["name"]: label["value"] for label in values["labels"]}


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt.

    Arguments:
        prompt: the text.
        input_ids: its token ids exactly as the model is fed, with the tokenizer's start token, unpadded.
        spans: name of a span -> (first token, one past its last token), or a `TokenSet` where it has gaps.
        labels: name -> value: what the prompt is about (`concept`, `source_language`, ...).
        answers: group -> ids of the tokens that count as its answer, distinct; empty where none is known.
        words: group -> the accepted words that the tokens come from.
        images: names of its images in `tokens/images`, in the order of their placeholders in the text; those are the
            model's own, and stand there once an image, while `input_ids` have all tokens of it.
    """

    prompt: str
    input_ids: Sequence[int]
    spans: Mapping[str, Span] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    images: Sequence[str] = ()


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
        images: name in `tokens/images`, which is made of its content's digest -> the user's file.
    """

    prompts: Sequence[Row]
    targets: Sequence[Row] = ()
    pairs: Sequence[Pair] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[Note] = ()
    read_as: str = ""
    images: Mapping[str, Path] = field(default_factory=dict)
