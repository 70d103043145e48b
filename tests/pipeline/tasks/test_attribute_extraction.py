"""Subjects, the prompts that they are patched into, and what is said where a row lacks one of them."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from interp.errors import InterpError
from pipeline.artifacts.tokens import TaskData
from pipeline.config.section import ConfigError
from pipeline.tasks import make
from pipeline.tasks.attribute_extraction import AttributeExtractionConfig
from tests.interp.prompts.algorithms import algorithm
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
        ({"subject": "Spain"}, "whose source prompt does not hold the subject"),
        (
            {"subject": "Fran"},
            "whose source prompt holds the subject in another form (task.word_boundary=start reads it)",
        ),
        (
            {"subject": "france"},
            "whose source prompt holds the subject in another form (task.ignore_case=true reads it)",
        ),
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
    note, several = data.notes if data.notes[0].what.endswith("left out") else reversed(data.notes)
    assert several.what == "source prompts that hold their subject several times, the last is read (task.occurrence)"
    assert (note.what, note.count) == (f"rows {reason}, left out", 1) and note.examples[0].startswith("line 1")
    with pytest.raises(InterpError, match="of 1 rows none is left: .*1 rows " + re.escape(reason)):
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


SCRIPTS: dict[str, tuple[str, str]] = {
    "Chinese": ("我住在法国的首都，法国很大", "法国"),
    "Japanese": ("私はフランスの首都に住む", "フランス"),
    "Korean": ("나는 프랑스의 수도에", "프랑스"),
    "Thai": ("เมืองหลวงของไทยคือ", "ไทย"),
    "underscores": ("the_France_page", "France"),
    "decomposed accents": ("le cafe\N{COMBINING ACUTE ACCENT} du coin", "café"),
    "composed accents": ("le café du coin", "cafe\N{COMBINING ACUTE ACCENT}"),
    "full width": ("in Ｆｒａｎｃｅ!", "France"),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "name", ["byte-level BPE, many scripts", "Metaspace BPE, many scripts", "Unigram with bytes, many scripts",
             "WordPiece, cased, many scripts"],
)  # fmt: skip
def test_subjects_of_every_script(name: str, script: str, tmp_path: Path) -> None:
    prompt, subject = SCRIPTS[script]
    tokenizer = algorithm(name).tokenizer
    data = made(tmp_path, tokenizer, [ROWS[0] | {"prompt_source": prompt, "subject": subject, "object": "book"}])
    (row,) = data.prompts
    bare = unicodedata.normalize("NFKC", subject)
    ends = range(len(prompt) + 1)
    start, stop = max((a, b) for a in ends for b in ends if unicodedata.normalize("NFKC", prompt[a:b]) == bare)
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    over = [index for index, (a, b) in enumerate(offsets) if max(a, start) < min(b, stop)]
    assert row.spans["query"] == (over[0], over[-1] + 1)
    decomposed = [note.count for note in data.notes if note.what.startswith("prompts whose accents are signs")]
    assert decomposed == ([1] if script == "decomposed accents" else [])
    if tokenizer.unk_token_id not in row.input_ids:
        assert bare in unicodedata.normalize("NFKC", tokenizer.decode(row.input_ids[slice(*row.spans["query"])]))


def test_the_place_of_a_subject_is_chosen_and_said(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [ROWS[0] | {"prompt_source": "Niger, Nigeria and Niger", "subject": "Niger"},
            ROWS[0] | {"prompt_source": "the Nigerians", "subject": "Niger"},
            ROWS[0] | {"prompt_source": "NIGER is large", "subject": "Niger"}]  # fmt: skip

    def places(**rules: Any) -> tuple[list[str], list[tuple[int, str]]]:
        data = made(tmp_path, tokenizer, rows, **rules)
        before = [tokenizer.decode(row.input_ids[1 : row.spans["query"][0]]).rstrip() for row in data.prompts]
        return before, [(note.count, note.what) for note in data.notes]

    several = "source prompts that hold their subject several times, the {} is read (task.occurrence)"
    other = "rows whose source prompt holds the subject in another form (task.{} reads it), left out"
    dropped = [(1, other.format("word_boundary=start")), (1, other.format("ignore_case=true"))]
    assert places() == (["Niger, Nigeria and"], [(1, several.format("last")), *dropped])
    assert places(occurrence="first") == ([""], [(1, several.format("first")), *dropped])
    before, notes = places(occurrence="first", word_boundary="start", ignore_case=True)
    assert before == ["", "the", ""]
    assert notes == [
        (1, several.format("first")),
        (1, "subjects that are a part of a longer word in their source prompt (task.word_boundary)"),
        (1, "subjects that their source prompt spells otherwise (accents, width, case)"),
    ]


def test_a_subject_that_shares_a_token_with_its_neighbours_is_noted(tmp_path: Path) -> None:
    tokenizer = algorithm("byte-level BPE, many scripts").tokenizer
    prompt = "你好世界，今天天气很好。"
    token = next(t for t in tokenizer.tokenize(prompt) if len(t) > 3)  # a token of two characters or more
    held = tokenizer.convert_tokens_to_string([token])
    assert len(held) > 1
    data = made(tmp_path, tokenizer, [ROWS[0] | {"prompt_source": prompt, "subject": held[0], "object": "book"}])
    note = next(note for note in data.notes if "share a token" in note.what)
    assert note.count == 1 and note.examples == (f"line 1 {held[0] + ' in ' + held!r}",)
