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
from pipeline.config.section import ConfigError
from pipeline.tasks import make
from pipeline.tasks.next_token import NextTokenConfig
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
        "rows": 4, "rows_over_limit": 0, "rows_left_out": 0, "prompts": 4, "prompts_colliding": 1, "answers_missing": 1,
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


def test_a_dataset_of_the_hub_is_read_by_the_same_rules(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = [
        {"q": {"prompt": "a"}, "year": 1735.0, "image": b"\xff"},
        {"q": {"prompt": None}, "year": None, "image": b""},
    ]
    asked: list[Any] = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *given, **options: asked.append((given, options)) or datasets.Dataset.from_list(rows),
    )
    standard: dict[str, Any] = dict(source="org/texts", depends_on="marker", prompt_column="q.prompt", revision="main")
    data = make(NextTokenConfig(**standard, target_columns=["year"]), tokenizer, None)
    assert asked == [(("org/texts", None), {"split": "train", "revision": "main"})]
    assert [row.prompt for row in data.prompts] == ["a"] and data.prompts[0].words["year"] == ["1735"]
    assert data.counts["rows_left_out"] == 1 and data.read_as == "dataset on the hub"
    with pytest.raises(
        ConfigError, match=r"task.target_columns: org/texts has no column 'yeer', it has 'q', 'year', 'image', "
    ):
        make(NextTokenConfig(**standard, target_columns=["yeer"]), tokenizer, None)


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


def test_a_text_file_is_a_prompt_a_line(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("The sun, it rises\n\n'And then,' he said\n", encoding="utf-8")
    data = make(config(path, target_columns=[], label_columns=[]), tokenizer, None)
    assert [row.prompt for row in data.prompts] == ["The sun, it rises", "'And then,' he said"]
    assert data.read_as == "text, a prompt a line"
    with pytest.raises(ConfigError, match=r"task.target_columns: .* holds prompts alone: task.target_columns=\[\]"):
        make(config(path, label_columns=[]), tokenizer, None)


def test_long_prompt_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    WRITERS["csv"](path, [*ROWS, {**ROWS[0], "prompt": "x, " * 40}])
    count = len(tokenizer("x, " * 40)["input_ids"])
    with pytest.raises(InterpError) as raised:
        make(config(path), tokenizer, count - 1)
    message = str(raised.value)
    assert f"own.csv, line 7 has {count} tokens, the model reads {count - 1} at most: {'x, ' * 20 + '…'!r}" in message


def test_prompt_that_is_no_text_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    WRITERS["jsonl"](path, [{"prompt": "fine"}, {"prompt": 1}])
    with pytest.raises(InterpError, match=r"own.jsonl, line 2: expected a text in column 'prompt', got 1\."):
        make(config(path, target_columns=[], label_columns=[]), tokenizer, None)


def test_rows_without_a_usable_prompt_are_left_out_and_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    given = ["fine", None, "", "  \t", "a\0b", "also fine"]
    WRITERS["jsonl"](path, [{"prompt": prompt} for prompt in given])
    data = make(config(path, target_columns=[], label_columns=[]), tokenizer, None)
    assert [row.prompt for row in data.prompts] == ["fine", "also fine"]
    assert data.counts["rows"] == 6 and data.counts["rows_left_out"] == 4
    assert [(note.what, note.count, list(note.examples)) for note in data.notes] == [
        ("rows without a prompt, left out", 2, ["line 2", "line 3"]),
        ("rows whose prompt is space alone, left out", 1, [r"line 4 '  \t'"]),
        ("rows whose prompt holds a NUL, left out", 1, [r"line 5 'a\x00b'"]),
    ]
    WRITERS["jsonl"](path, [{"prompt": " "}])
    with pytest.raises(InterpError, match=r"of 1 rows none is left: 1 rows whose prompt is space alone, left out"):
        make(config(path, target_columns=[], label_columns=[]), tokenizer, None)


def test_answers_and_labels_are_the_texts_that_the_file_has(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Numbers, booleans and dates by their source text; a text that spells one of them is a text."""
    path = tmp_path / "own.jsonl"
    texts = ["1735", "1735.0", "1.50", "true", '"null"', '"7"', '"2020-01-02"', '[1735, null, "x"]', "null", '"[1]"']
    path.write_text("".join(f'{{"prompt": "a {n}", "target": {text}}}\n' for n, text in enumerate(texts)))
    data = make(config(path, target_columns=["target"], label_columns=["target"]), tokenizer, None)
    words = [["1735"], ["1735.0"], ["1.50"], ["true"], ["null"], ["7"], ["2020-01-02"], ["1735", "x"], [], ["[1]"]]
    assert [list(row.words["target"]) for row in data.prompts] == words
    labels = [row.labels["target"] for row in data.prompts]
    assert labels == ["1735", "1735.0", "1.50", "true", "null", "7", "2020-01-02", '["1735", null, "x"]', "", "[1]"]
    for row, accepted in zip(data.prompts, words, strict=True):
        assert set(row.answers["target"]) == set().union(*(first_tokens(tokenizer, word) for word in accepted))


@pytest.mark.parametrize(
    ("suffix", "choice", "words"),
    [
        ("csv", "auto", [["Buch", "Papier"], ["it's"], ["1735", "-2.50", "True"], [], ["[MASK]"], ["a]"]]),
        ("csv", "text", [["['Buch', 'Papier']"], ['["it\'s"]'], ["[1735, -2.50, True]"], ["[]"], ["[MASK]"], ["a]"]]),
        ("jsonl", "auto", [["['Buch', 'Papier']"], ['["it\'s"]'], ["[1735, -2.50, True]"], ["[]"], ["[MASK]"], ["a]"]]),
        ("jsonl", "always", [["Buch", "Papier"], ["it's"], ["1735", "-2.50", "True"], [], ["[MASK]"], ["a]"]]),
    ],
)
def test_cells_that_spell_lists(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, suffix: str, choice: str, words: list[list[str]]
) -> None:
    cells = ["['Buch', 'Papier']", '["it\'s"]', "[1735, -2.50, True]", "[]", "[MASK]", "a]"]
    path = tmp_path / f"own.{suffix}"
    WRITERS[suffix](path, [{"prompt": f"[{n}]", "target": cell} for n, cell in enumerate(cells)])
    data = make(config(path, target_columns=["target"], label_columns=[], list_cells=choice), tokenizer, None)
    assert [list(row.words["target"]) for row in data.prompts] == words
    assert [row.prompt for row in data.prompts] == [f"[{n}]" for n in range(6)]  # a prompt is never a list
    told = [(note.count, "read as lists" in note.what) for note in data.notes]
    assert (
        told
        == {"csv auto": [(4, True)], "csv text": [], "jsonl auto": [(5, False)], "jsonl always": [(4, True)]}[
            f"{suffix} {choice}"
        ]
    )


def test_an_array_as_numpy_prints_it_is_no_list(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    WRITERS["csv"](path, [{"prompt": "a", "target": "['Buch' 'Papier']"}])
    with pytest.raises(InterpError, match=r"own.csv, line 2, column 'target': expected commas between the texts"):
        make(config(path, target_columns=["target"], label_columns=[]), tokenizer, None)
    data = make(config(path, target_columns=["target"], label_columns=[], list_cells="text"), tokenizer, None)
    assert data.prompts[0].words["target"] == ["['Buch' 'Papier']"]


def text_of(tokenizer: PreTrainedTokenizerFast, row: Any, span: str) -> str:
    start, stop = row.spans[span]
    return tokenizer.decode(row.input_ids[start:stop]).strip()


def test_keys_of_objects_inside_and_a_subject_that_is_filled_in(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "own.json"
    facts = [
        {"id": 1, "asked": {"prompt": "{} lives in", "subject": "Ada", "true": {"text": "London"}}},
        {"id": 2, "asked": {"prompt": "no blank", "subject": None, "true": {"text": ["Rome", "Roma"]}}},
        {"id": 3, "asked": {"prompt": "{} and {}", "subject": "A", "true": {"text": "x"}}},
        {"id": 4, "asked": {"prompt": "{} is", "subject": None, "true": {"text": "x"}}},
    ]
    path.write_text(json.dumps(facts))
    columns: dict[str, Any] = dict(prompt_column="asked.prompt", target_columns=["asked.true.text"])
    data = make(config(path, **columns, subject_column="asked.subject", label_columns=["id"]), tokenizer, None)
    assert [row.prompt for row in data.prompts] == ["Ada lives in", "A and A"]
    assert [row.words["asked.true.text"] for row in data.prompts] == [["London"], ["x"]]
    assert [row.labels["id"] for row in data.prompts] == ["1", "3"]
    assert [text_of(tokenizer, row, "query") for row in data.prompts] == ["Ada", "A"]  # the last of several
    assert [(note.count, note.what) for note in data.notes] == [(2, "rows without a subject, left out")]
    unfilled = make(config(path, **columns, label_columns=[]), tokenizer, None)
    assert [row.prompt for row in unfilled.prompts] == [fact["asked"]["prompt"] for fact in facts]
    assert [(note.count, note.what) for note in unfilled.notes] == [
        (3, "prompts that hold {}, with no subject to fill it")
    ]


def test_what_is_odd_about_prompts_and_answers_is_counted_with_examples(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token
    assert end
    path = tmp_path / "own.jsonl"
    given = [
        ("fine", "fine"), ("fine", f" x{end}"), (f"one{end}two", "a\u200bb"), ("zero\u200bwidth", "x"),
        ("ends in a space ", "x"), ("ends in a line\n", "x"), ("bell\x07", "x"),
        ("fine", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
    ]  # fmt: skip
    WRITERS["jsonl"](path, [{"prompt": prompt, "target": target} for prompt, target in given])
    data = make(config(path, target_columns=["target"], label_columns=[]), tokenizer, None)
    assert [row.prompt for row in data.prompts] == [prompt for prompt, _ in given]
    notes = {note.what: note for note in data.notes}
    assert {what: note.count for what, note in notes.items()} == {
        f"prompts whose text holds special tokens ({end})": 1,
        "prompts that hold invisible characters": 1,
        "prompts that end in a space, so that the next token begins without one": 1,
        "prompts that hold control characters": 1,
        "answers with spaces around them": 1,
        f"answers whose text holds special tokens ({end})": 1,
        "answers that hold invisible characters": 1,
        "prompts that repeat an earlier one": 2,
    }
    assert notes["prompts that hold invisible characters"].examples == (r"prompt 3 'zero\u200bwidth'",)
    assert notes["prompts that repeat an earlier one"].examples[0] == "3 times 'fine'"


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
        ({"prompt_column": "twice"}, "task.prompt_column: .* has 2 columns 'twice'"),
        ({"source": "nowhere.csv"}, "task.source: there is no file nowhere.csv"),
    ],
)
def test_bad_config_is_told(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "own.csv"
    path.write_text("prompt,target,other,kind,twice,twice\na,b,c,d,e,f\n")
    with pytest.raises(ConfigError, match=message):
        make(config(path, **changes), tokenizer, None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.csv", "", "is empty"),
        ("own.csv", "prompt\n", "has no rows"),
        ("own.jsonl", "{oops\n", "cannot read"),
        ("own.parquet", "not parquet", "cannot read"),
        ("own.xlsx", "hello", "cannot tell the format"),
    ],
)
def test_bad_file_is_told(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"task.source: .*{message}"):
        make(config(path, target_columns=[], label_columns=[]), tokenizer, None)
