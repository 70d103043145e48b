"""The user's own prompts in every file format."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

from interp.errors import InterpError
from pipeline.config.base import ConfigError
from pipeline.config.task import NextTokenConfig
from pipeline.tasks.registry import make
from tests.interp.prompts.algorithms import algorithm
from tests.tiny import tiny_tokenizer

ROWS: list[dict[str, Any]] = [
    {"prompt": "The quick brown", "target": "fox", "other": "dog", "kind": "animal"},
    {"prompt": 'He said "so, what?"\nand went', "target": None, "other": "away", "kind": None},
    {
        "prompt": "<script>alert(1)</script> 👩\N{ZERO WIDTH JOINER}👧 مرحبا",
        "target": "NA",
        "other": "None",
        "kind": "7",
    },
    {"prompt": "1 + 1 =", "target": "2", "other": "3", "kind": "sum"},
]


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "csv": write_csv,
    "tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    "jsonl": lambda path, rows: path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"),
    "parquet": lambda path, rows: pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def config(path: Path, **changes: Any) -> NextTokenConfig:
    standard: dict[str, Any] = dict(
        source=str(path), target_columns=["target", "other"], label_columns=["kind"], depends_on=str(path)
    )
    return NextTokenConfig(**(standard | changes))


def first_tokens(tokenizer: PreTrainedTokenizerFast, word: str | None) -> set[int]:
    """A byte-level tokenizer reads a word alone as it does inside a text. A space alone is no answer."""
    variants = [] if word is None else [word, " " + word]
    first = {tokenizer.encode(variant, add_special_tokens=False)[0] for variant in variants}
    return first - set(tokenizer.encode(" ", add_special_tokens=False))


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_prompts(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own.{suffix}"
    WRITERS[suffix](path, ROWS)
    data = make(config(path), tokenizer, 256)
    assert [row.prompt for row in data.prompts] == [row["prompt"] for row in ROWS]
    for row, given in zip(data.prompts, ROWS, strict=True):
        assert row.input_ids == tokenizer(given["prompt"])["input_ids"]
        assert {group: set(ids) for group, ids in row.answers.items()} == {
            group: first_tokens(tokenizer, given[group]) for group in ("target", "other")
        }
        assert row.labels["kind"] == (given["kind"] or "")
        shared = set(row.answers["target"]) & set(row.answers["other"])
        assert row.labels["collides"] == ("yes" if shared else "no")
    assert data.prompts[2].labels["collides"] == "yes"  # NA and None begin with the same token
    assert data.counts == {
        "rows": 4, "rows_over_limit": 0, "prompts": 4, "prompts_colliding": 1, "answers_missing": 1,
        "answers_without_tokens": 0, "words_without_tokens": 0,
    }  # fmt: skip
    assert data.groups == {"target": "target", "other": "other"}


def test_list_of_accepted_answers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    WRITERS["jsonl"](path, [{"prompt": "a", "target": ["fox", "dog"]}, {"prompt": "b", "target": []}])
    data = make(config(path, target_columns=["target"], label_columns=[]), tokenizer, None)
    assert set(data.prompts[0].answers["target"]) == first_tokens(tokenizer, "fox") | first_tokens(tokenizer, "dog")
    assert data.prompts[0].words["target"] == ["fox", "dog"]
    assert data.prompts[1].answers == {"target": []}


def test_answers_without_tokens_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    WRITERS["csv"](path, [{"prompt": "a", "target": "king"}, {"prompt": "b", "target": "kings"}])
    tokenizer = algorithm("byte-level BPE, GPT-2's words").tokenizer
    data = make(config(path, target_columns=["target"], label_columns=[], target_policy="exact"), tokenizer, None)
    assert [bool(row.answers["target"]) for row in data.prompts] == [True, False]
    assert data.counts["answers_without_tokens"] == data.counts["words_without_tokens"] == 1


def test_no_columns_but_the_prompt_and_a_limit(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    WRITERS["parquet"](path, ROWS)
    data = make(config(path, target_columns=[], label_columns=[], max_prompts=2), tokenizer, None)
    assert [row.prompt for row in data.prompts] == [row["prompt"] for row in ROWS[:2]]
    assert data.groups == {}
    assert data.counts["rows_over_limit"] == 2


def test_long_prompt_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    WRITERS["csv"](path, [*ROWS, {**ROWS[0], "prompt": "x, " * 40}])
    count = len(tokenizer("x, " * 40)["input_ids"])
    with pytest.raises(InterpError) as raised:
        make(config(path), tokenizer, count - 1)
    message = str(raised.value)
    assert f"own.csv, row 4 has {count} tokens, the model reads {count - 1} at most: {'x, ' * 20 + '…'!r}" in message


@pytest.mark.parametrize("value", [3, None, ""])
def test_prompt_that_is_no_text_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, value: object) -> None:
    path = tmp_path / "own.jsonl"
    prompts = [1, value] if isinstance(value, int) else ["fine", value]
    WRITERS["jsonl"](path, [{"prompt": prompt} for prompt in prompts])
    row = 0 if isinstance(value, int) else 1
    with pytest.raises(
        InterpError, match=f"own.jsonl, row {row}: expected a text in column 'prompt', got {prompts[row]!r}"
    ):
        make(config(path, target_columns=[], label_columns=[]), tokenizer, None)


def test_answer_that_is_no_text_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    WRITERS["jsonl"](path, [{"prompt": "1 + 1 =", "target": 2}])
    with pytest.raises(InterpError, match="row 0, column 'target': expected a text, a list of texts or nothing, got 2"):
        make(config(path, target_columns=["target"], label_columns=[]), tokenizer, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt_column": "promt"},
            "task.prompt_column: .* no column 'promt', it has 'prompt', .*Did you mean 'prompt'",
        ),
        ({"target_columns": ["answer"]}, "task.target_columns: .* no column 'answer'"),
        ({"label_columns": ["kinds"]}, "task.label_columns: .* Did you mean 'kind'"),
        ({"target_columns": ["target", "target"]}, "task.target_columns: expected different columns"),
        ({"label_columns": ["collides"]}, "'collides' is a label that the task writes itself"),
        ({"max_prompts": 0}, "task.max_prompts: expected at least 1"),
        ({"source": "nowhere.csv"}, "task.source: there is no file nowhere.csv"),
    ],
)
def test_bad_config_is_told(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "own.csv"
    WRITERS["csv"](path, ROWS)
    with pytest.raises(ConfigError, match=message):
        make(config(path, **changes), tokenizer, None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.csv", "", "is empty"),
        ("own.csv", "prompt\n", "has no rows"),
        ("own.csv", "prompt,prompt\na,b\n", "different column names"),
        ("own.jsonl", "{oops\n", "cannot read"),
        ("own.parquet", "not parquet", "cannot read"),
        ("own.txt", "hello", "cannot tell the format"),
    ],
)
def test_bad_file_is_told(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"task.source: .*{message}"):
        make(config(path, target_columns=[], label_columns=[]), tokenizer, None)
