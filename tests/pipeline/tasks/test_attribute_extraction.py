"""Subjects, the prompts that they are patched into, and what is said where a row lacks one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from interp.errors import InterpError
from pipeline.config.base import ConfigError
from pipeline.config.task import AttributeExtractionConfig
from pipeline.tasks.records import TaskData
from pipeline.tasks.registry import make
from tests.tiny import tiny_tokenizer

CURRENCY = "The official currency of x"
ROWS: list[dict[str, Any]] = [
    {"prompt_source": "France and the French love France.", "subject": "France", "prompt_target": CURRENCY,
     "object": "euro", "kind": "country"},
    {"prompt_source": "Japan is far away", "subject": "Japan", "prompt_target": "The capital of x is",
     "object": ["Tokyo", "Edo"], "kind": "country"},
    {"prompt_source": "They say (in Ghana)", "subject": "Ghana", "prompt_target": CURRENCY, "object": "cedi",
     "kind": None},
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def made(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], **changes: Any) -> TaskData:
    path = str(written(folder, rows))
    return make(AttributeExtractionConfig(source=path, depends_on=path, **changes), tokenizer, None)


def text_of(tokenizer: PreTrainedTokenizerFast, row: Any) -> str:
    start, stop = row.spans["query"]
    return tokenizer.decode(row.input_ids[start:stop]).strip()


def test_a_subject_is_patched_over_the_placeholder_of_its_own_target_prompt(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = made(tmp_path, tokenizer, ROWS, label_columns=["kind"])
    assert [row.prompt for row in data.prompts] == [row["prompt_source"] for row in ROWS]
    assert [text_of(tokenizer, row) for row in data.prompts] == ["France", "Japan", "Ghana"]
    assert data.prompts[0].spans["query"][1] > len(data.prompts[0].input_ids) // 2  # the last France, not the first
    assert [row.prompt for row in data.targets] == [CURRENCY, "The capital of x is"]  # each once
    assert [text_of(tokenizer, row) for row in data.targets] == ["x", "x"]
    assert [(list(pair.sources), pair.target) for pair in data.pairs] == [([0], 0), ([1], 1), ([2], 0)]
    assert [pair.words["answer"] for pair in data.pairs] == [["euro"], ["Tokyo", "Edo"], ["cedi"]]
    assert data.pairs[2].labels == {"subject": "Ghana", "kind": ""}
    assert data.counts["pairs"] == 3 and data.counts["targets"] == 2
    assert data.groups == {"answer": "object"}


def test_a_row_without_attribute_is_left_out_and_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = made(tmp_path, tokenizer, [*ROWS, ROWS[0] | {"object": None}], max_prompts=4)
    assert data.counts["rows_without_answer_tokens"] == 1 and len(data.pairs) == 3
    assert made(tmp_path, tokenizer, ROWS, max_prompts=2).counts["rows_over_limit"] == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"subject": "Fran"}, "whose source prompt does not hold the subject"),
        ({"prompt_target": "The currency"}, "whose target prompt does not hold the placeholder 'x'"),
        ({"prompt_target": "tax excise"}, "whose target prompt does not hold the placeholder 'x'"),
        ({"subject": ""}, "without a subject"),
        ({"subject": " "}, "whose subject is space alone"),
        ({"prompt_source": None}, "without a source prompt"),
        ({"prompt_target": "x\0"}, "whose target prompt holds a NUL"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out_and_counted(
    change: dict[str, Any], reason: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = made(tmp_path, tokenizer, [ROWS[0] | change, *ROWS])
    assert [row.prompt for row in data.prompts] == [row["prompt_source"] for row in ROWS]
    assert [(list(pair.sources), pair.target) for pair in data.pairs] == [([0], 0), ([1], 1), ([2], 0)]
    assert data.counts["rows"] == 4 and data.counts["rows_left_out"] == 1
    (note,) = data.notes
    assert (note.what, note.count) == (f"rows {reason}, left out", 1) and note.examples[0].startswith("line 1")
    with pytest.raises(InterpError, match="of 1 rows none is left: 1 rows " + reason):
        made(tmp_path, tokenizer, [ROWS[0] | change])


def test_a_subject_is_filled_in_and_attributes_may_be_numbers(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = ROWS[0] | {"prompt_source": "The French of {} lived well", "object": 1735}
    data = made(tmp_path, tokenizer, [row])
    assert data.prompts[0].prompt == "The French of France lived well"
    assert text_of(tokenizer, data.prompts[0]) == "France"
    assert data.pairs[0].words["answer"] == ["1735"]


def test_no_attribute_at_all_and_a_missing_column(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InterpError, match=r"expected rows whose attribute .* got none in 1 rows"):
        made(tmp_path, tokenizer, [ROWS[0] | {"object": []}])
    with pytest.raises(ConfigError, match=r"task.answer_column: .* has no column 'currency'"):
        made(tmp_path, tokenizer, ROWS, answer_column="currency")
