"""Reading the artifact `tokens/`: what the stages after `tokenize` are fed.

    tokens = load_tokens()          # tokens/ of the current run folder
    rows = load_prompts()           # tokens/prompts alone, for a stage that must not depend on the rest

The folders are `datasets` datasets. Their Arrow files are read directly: importing `datasets` takes longer than that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from interp.errors import InterpError
from pipeline.tasks.records import Pair, Row

__all__ = ["FORMAT", "Pair", "Row", "Tokens", "load_prompts", "load_tokens", "prompts_digest"]

FORMAT = "interpipe.tokens/1"


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
    """SHA-256, in hexadecimal, of what decides the activations of prompts: texts, token ids and spans, in order.

    Labels and answers are left out: they can change without any activation changing.
    """
    digest = hashlib.sha256()
    for row in rows:
        spans = sorted((name, start, stop) for name, (start, stop) in row.spans.items())
        line = json.dumps([row.prompt, list(row.input_ids), spans], ensure_ascii=False)
        digest.update(line.encode("utf-8") + b"\n")
    return digest.hexdigest()


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
    return Row(
        prompt=values["prompt"],
        input_ids=values["input_ids"],
        spans={span["name"]: (span["start"], span["stop"]) for span in values["spans"]},
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
