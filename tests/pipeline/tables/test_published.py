"""Published data sets by made-up files of each shape: the prompts, spans and answers that come out of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.config.section import ConfigError
from pipeline.tables.facts import FORMATS, STARTS, Choice
from pipeline.tables.reading import read_source
from pipeline.tables.table import Table, TableError
from pipeline.tasks import make
from pipeline.tasks.attribute_extraction import AttributeExtractionConfig
from pipeline.tasks.next_token import NextTokenConfig
from tests.tiny import tiny_tokenizer

RIVERS = {
    "name": "river mouth",
    "prompt_templates": ["{} flows into the", "The mouth of {} is in the"],
    "prompt_templates_zs": ["Which sea does {} flow into? It flows into the"],
    "properties": {"relation_type": "factual", "symmetric": False},
    "samples": [
        {"subject": "Nara", "object": "Red Sea"},
        {"subject": "Is", "object": "Blue Sea"},
        {"subject": "Tolm", "object": "Red Sea"},
    ],
}
OPPOSITES = [{"input": "A", "output": "z"}, {"output": "low", "input": "high"}, {"input": "hot", "output": "cold"}]
KNOWN = [
    {"known_id": 0, "subject": "Nara", "attribute": "Red", "template": "{} is in the", "prediction": " Red Sea",
     "prompt": "Nara is in the great", "relation_id": "P1"},
    {"known_id": 1, "subject": "Tolm", "attribute": "Blue", "template": "The sea of {}, Tolm, is", "prediction": " x",
     "prompt": "The sea of Tolm, Tolm, is", "relation_id": "P2"},
]  # fmt: skip
REWRITES = [
    {"case_id": 0, "pararel_idx": 7,
     "requested_rewrite": {"prompt": "The twin of {} is", "relation_id": "P3", "subject": "Nara",
                           "target_new": {"str": "Velm", "id": "Q1"}, "target_true": {"str": "Tolm", "id": "Q2"}},
     "paraphrase_prompts": ["Nara is like"], "neighborhood_prompts": []},
]  # fmt: skip
CITIES = {"Nara": {"Country": "Oz", "Sea": "Red Sea"}, "Velm": {"Country": "Ur", "Sea": ""}, "Tolm": {"Country": "Oz"}}
CITY_PROMPTS = {"Country": ['{"city": "%s", "country": "', "%s is in"], "Sea": ["The sea at %s is the"]}
PATTERNS = [
    {"pattern": "[Y] is the home of [X].", "lemma": "home", "extended_lemma": "be-home", "tense": "present"},
    {"pattern": "[X] lives in [Y].", "lemma": "live", "extended_lemma": "live-in", "tense": "present"},
    {"pattern": "The home of [X] is the [Y] town.", "lemma": "home", "extended_lemma": "home", "tense": "present"},
]
FACTS = [{"sub_label": "Nara", "obj_label": "Oz", "uuid": "1"}, {"sub_label": "Velm", "obj_label": "Ur", "uuid": "2"}]
MASKED = [
    {"uuid": "1", "obj_label": "Oz", "sub_label": "Nara of Oz", "predicate_id": "P19", "evidences": [
        {"sub_surface": "Nara", "obj_surface": "Oz", "masked_sentence": "Good Nara was born in [MASK] long ago."}]},
    {"uuid": "2", "obj_label": "Ur", "sub_label": "Velm", "predicate_id": "P19", "evidences": [
        {"sub_surface": "Velm", "obj_surface": "Ur", "masked_sentence": "[MASK] bore Velm."}]},
    {"uuid": "3", "obj_label": "Ur", "sub_label": "Tolm", "masked_sentences": ["Tolm lives in [MASK] ."]},
]  # fmt: skip
LAMA_TEMPLATES = [{"relation": "P19", "template": "[X] was born in [Y] .", "label": "birth", "type": "N-1"}]
READY = {
    "['Buch', 'Band']": {"prompt": 'Deutsch: "Tag" - English: "day"\nDeutsch: "Buch" - English: "',
                         "target": "['book', 'volume']", "word original": "book"},
}  # fmt: skip
SCOPES = (
    "\tsample_id\tprompt_target\tposition_target\tobject\tsubject\tprompt_source\tposition_source\tsource_cropped_toks\n"
    "0\t0\tThe sea of x\t-1\tRed\tNara\t At Nara, by Nara\t2\t[' At', ' Nara']\n"
    "1\t0\tThe sea of x\t-1\tRed\tVelm\t At Velm, by Velm\t2\tnot given\n"
)


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def told(table: Table, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[table.index(column)] for column in columns) for row in table.rows]


def check_places(table: Table) -> None:
    """Where the table says that a subject or a placeholder begins, there it stands."""
    for row in table.rows:
        cells = dict(zip(table.columns, row, strict=True))
        for column, marked in STARTS.items():
            word = "x" if column == "prompt_target" else cells["subject"]
            if cells.get(marked) is not None:
                assert cells[column].startswith(word, int(cells[marked]))


@pytest.mark.parametrize(
    ("name", "content", "choice", "read_as", "rows"),
    [
        ("own.json", RIVERS, Choice(), "the relations data set, JSON: 1 relation, 3 templates, 3 samples",
         [("Which sea does Nara flow into? It flows into the", "Nara", "Red Sea"),
          ("Which sea does Is flow into? It flows into the", "Is", "Blue Sea"),
          ("Which sea does Tolm flow into? It flows into the", "Tolm", "Red Sea")]),
        ("own.json", [RIVERS], Choice(template="{} is near the"),
         "the relations data set, JSON: 1 relation, 3 templates, 3 samples",
         [("Nara is near the", "Nara", "Red Sea"), ("Is is near the", "Is", "Blue Sea"),
          ("Tolm is near the", "Tolm", "Red Sea")]),
        ("own.json", OPPOSITES, Choice(), "function vectors, JSON: 1 relation, 1 template, 3 samples",
         [("Q: A\nA:", "A", "z"), ("Q: high\nA:", "high", "low"), ("Q: hot\nA:", "hot", "cold")]),
        ("own.json", KNOWN, Choice(), "known facts (ROME), JSON: 2 relations, 2 samples",
         [("Nara is in the great", "Nara", "Red"), ("The sea of Tolm, Tolm, is", "Tolm", "Blue")]),
        ("own.json", KNOWN, Choice(relations=("P2",)), "known facts (ROME), JSON: 1 relation, 1 sample",
         [("The sea of Tolm, Tolm, is", "Tolm", "Blue")]),
        ("own.jsonl", REWRITES, Choice(), "CounterFact, JSON lines: 1 relation, 1 sample",
         [("The twin of Nara is", "Nara", "Tolm")]),
        ("own.json", CITIES, Choice(template="{} is in", relations=("Country",)),
         "RAVEL, JSON: 1 relation, 3 samples",
         [("Nara is in", "Nara", "Oz"), ("Velm is in", "Velm", "Ur"), ("Tolm is in", "Tolm", "Oz")]),
        ("P1.jsonl", FACTS, Choice(template="{} lives in"), "ParaRel, JSON lines: 1 relation, 2 samples",
         [("Nara lives in", "Nara", "Oz"), ("Velm lives in", "Velm", "Ur")]),
        ("P19.jsonl", MASKED, Choice(), "LAMA, JSON lines: 1 relation, 3 samples",
         [("Good Nara was born in", "Nara", "Oz"), ("Tolm lives in", "Tolm", "Ur")]),
        ("own.json", READY, Choice(), "translation prompts (Dumas et al.), JSON: 1 relation, 1 sample",
         [('Deutsch: "Tag" - English: "day"\nDeutsch: "Buch" - English: "', "Buch", ["book", "volume"])]),
    ],
)  # fmt: skip
def test_a_file_is_known_by_its_keys(
    name: str, content: Any, choice: Choice, read_as: str, rows: list[tuple[str, str, Any]], tmp_path: Path
) -> None:
    table = read_source(written(tmp_path, name, content), choice=choice)
    assert table.written == read_as
    assert told(table, "prompt", "subject", "target") == rows
    assert told(table, "prompt_source", "object") == [(prompt, target) for prompt, _, target in rows]
    check_places(table)


def test_template_numbers_all_and_few_shot(tmp_path: Path) -> None:
    path = written(tmp_path, "rivers.json", RIVERS)
    every = read_source(path, choice=Choice(template="all"))
    assert told(every, "template") == [("0",)] * 3  # the one template for prompts without examples
    two = read_source(path, choice=Choice(template="1", shots=2))
    line = {s["subject"]: f"The mouth of {s['subject']} is in the {s['object']}\n" for s in RIVERS["samples"]}  # type: ignore[attr-defined]
    for prompt, source, subject in told(two, "prompt", "prompt_source", "subject"):
        assert source == f"The mouth of {subject} is in the"
        shown = prompt.removesuffix(source)
        assert sorted(shown.splitlines(keepends=True)) == sorted(text for name, text in line.items() if name != subject)
    assert told(two, "prompt_target") == [("The mouth of x is in the",)] * 3
    check_places(two)
    again = read_source(path, choice=Choice(template="1", shots=1, seed=0))
    assert told(again, "prompt") == told(read_source(path, choice=Choice(template="1", shots=1)), "prompt")
    words = read_source(written(tmp_path, "words.json", OPPOSITES), choice=Choice(shots=2))
    shown = told(words, "prompt")[2][0]
    assert shown in ("Q: A\nA: z\n\nQ: high\nA: low\n\nQ: hot\nA:", "Q: high\nA: low\n\nQ: A\nA: z\n\nQ: hot\nA:")
    for bad, message in (
        (Choice(template="3"), r"no template 3 of the relation 'river mouth' can be asked. It has 0."),
        (Choice(template="without"), r"expected one {} for the subject in the template 'without'"),
        (Choice(relations=("river mouths",)), r"has no relation 'river mouths'. Did you mean 'river mouth'"),
        (Choice(shots=3), r"expected at least 3 other samples .* task.shots=3, it has 2"),
    ):
        with pytest.raises(TableError, match=message):
            read_source(path, choice=bad)


def test_counterfact_has_both_answers_and_its_own_columns(tmp_path: Path) -> None:
    table = read_source(written(tmp_path, "own.json", REWRITES))
    assert told(table, "target", "target_new", "prompt_target", "requested_rewrite.prompt", "case_id") == [
        ("Tolm", "Velm", "The twin of x is", "The twin of {} is", "0")
    ]


def test_a_folder_joins_templates_and_facts(tmp_path: Path) -> None:
    written(tmp_path, "ravel/entities.json", CITIES)
    written(tmp_path, "ravel/prompts.json", CITY_PROMPTS)
    written(tmp_path, "ravel/splits.json", {"Nara": "train", "Velm": "val"})
    written(tmp_path, "ravel/wiki.json", {"In %s there is": {"split": "train", "entity": "Nara"}})
    ravel = read_source(tmp_path / "ravel")
    assert ravel.written == "RAVEL, 4 files: 2 relations, 3 templates, 4 samples"
    assert told(ravel, "prompt", "target", "relation") == [
        ('{"city": "Nara", "country": "', "Oz", "Country"), ('{"city": "Velm", "country": "', "Ur", "Country"),
        ('{"city": "Tolm", "country": "', "Oz", "Country"), ("The sea at Nara is the", "Red Sea", "Sea"),
    ]  # fmt: skip
    assert [(note.count, note.what) for note in ravel.notes] == [(1, "values that are missing")]
    check_places(ravel)
    written(tmp_path, "pararel/patterns/P1.jsonl", PATTERNS)
    written(tmp_path, "pararel/facts/P1.jsonl", FACTS)
    pararel = read_source(tmp_path / "pararel", choice=Choice(template="all"))
    assert told(pararel, "prompt", "template", "target") == [
        ("Nara lives in", "1", "Oz"), ("Velm lives in", "1", "Ur"),
        ("The home of Nara is the", "2", "Oz"), ("The home of Velm is the", "2", "Ur"),
    ]  # fmt: skip
    assert [(note.count, note.what) for note in pararel.notes] == [
        (1, "templates in which the answer stands before the subject, left out"),
        (1, "templates and prompts whose words after the answer are cut off"),
    ]
    assert pararel.where(0) == f"{tmp_path / 'pararel'}, facts/P1.jsonl, line 1"
    with pytest.raises(TableError, match=r"no template 0 of the relation 'P1' can be asked. It has 1, 2"):
        read_source(tmp_path / "pararel", choice=Choice(template="0"))
    written(tmp_path, "lama/relations.jsonl", LAMA_TEMPLATES)
    written(tmp_path, "lama/TREx/P19.jsonl", MASKED)
    lama = read_source(tmp_path / "lama")
    assert told(lama, "prompt", "subject") == [
        ("Nara of Oz was born in", "Nara of Oz"), ("Velm was born in", "Velm"), ("Tolm was born in", "Tolm")
    ]  # fmt: skip
    assert not lama.notes  # the sentences are not asked, so that nothing of them is cut
    (alone,) = [note for note in read_source(tmp_path / "lama/TREx/P19.jsonl").notes if "cut off" in note.what]
    assert (alone.count, alone.examples) == (1, ("line 1: 'Good Nara was born in [MASK] long ago.'",))
    written(tmp_path, "relations/sea/river.json", RIVERS)
    written(tmp_path, "relations/town.json", RIVERS | {"name": "town", "prompt_templates_zs": [], "samples": FACTS[:0]})
    assert read_source(tmp_path / "relations").written.startswith("the relations data set, 2 files: 1 relation,")


def test_what_is_no_known_format_is_said(tmp_path: Path) -> None:
    odd = written(tmp_path, "odd.json", {"first": {"a": ["1"]}, "second": {"b": "2"}})
    with pytest.raises(TableError) as error:
        read_source(odd)
    for name, keys in FORMATS.values():
        assert name in str(error.value) and keys in str(error.value)
    with pytest.raises(TableError, match=r"has the keys 'first', 'second', which no known format has"):
        read_source(odd)
    with pytest.raises(
        TableError, match="expected CounterFact with the keys requested_rewrite, got the keys of function"
    ):
        read_source(written(tmp_path, "words.json", OPPOSITES), choice=Choice(format="counterfact"))
    with pytest.raises(TableError, match=r"no template of the relation 'Country' can be asked: there is none"):
        read_source(written(tmp_path, "cities.json", CITIES))
    with pytest.raises(TableError, match="is RAVEL, and names no subjects"):
        read_source(written(tmp_path, "prompts.json", CITY_PROMPTS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match=r"holds no file that ends in .json"):
        read_source(tmp_path / "empty")
    with pytest.raises(TableError, match=r"holds files of different formats: .*RAVEL.*function vectors"):
        mixed = tmp_path / "mixed"
        written(mixed, "a.json", OPPOSITES), written(mixed, "b.json", CITIES)
        read_source(mixed)
    plain = written(tmp_path, "plain.json", [{"question": "Is it?", "answer": "yes"}])
    assert read_source(plain).columns == ("question", "answer")
    task = NextTokenConfig(source=str(plain), depends_on=str(plain))
    with pytest.raises(
        ConfigError, match=r"no column 'prompt'.* of no published data set that is known: the relations"
    ):
        task.check()
    for asked, key in ((Choice(shots=1), "shots"), (Choice(template="0"), "prompt_template"),
                       (Choice(relations=("town",)), "relations")):  # fmt: skip
        with pytest.raises(TableError, match=f"is read as rows, .* and task.{key} asks for some. Leave it out"):
            read_source(plain, choice=asked)
    as_rows = read_source(written(tmp_path, "words.json", OPPOSITES), choice=Choice(format="table"))
    assert as_rows.columns == ("input", "output")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def spelled(tokenizer: PreTrainedTokenizerFast, row: Any) -> str:
    start, stop = row.spans["query"]
    return tokenizer.decode(row.input_ids[start:stop]).strip()


def test_next_token_reads_prompts_spans_and_answers(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = written(tmp_path, "words.json", OPPOSITES)
    task = NextTokenConfig(source=str(path), depends_on=str(path), target_columns=["target"], subject_column="subject",
                           label_columns=["relation", "template"], shots=1)  # fmt: skip
    task.check()
    data = make(task, tokenizer, None)
    assert data.read_as == "function vectors, JSON: 1 relation, 1 template, 3 samples"
    assert [spelled(tokenizer, row) for row in data.prompts] == ["A", "high", "hot"]  # not the A of `A:`
    for row, subject in zip(data.prompts, ("A", "high", "hot"), strict=True):
        start = row.spans["query"][0]
        assert tokenizer.decode(row.input_ids[start:]).strip() == f"{subject}\nA:"
    assert [row.words["target"] for row in data.prompts] == [["z"], ["low"], ["cold"]]
    assert data.prompts[0].labels["relation"] == "words" and data.prompts[0].labels["template"] == "0"
    ids = {tokenizer.encode(text, add_special_tokens=False)[0] for text in ("low", " low")}
    assert set(data.prompts[1].answers["target"]) <= ids


def test_solved_examples_hold_no_subject_of_a_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A sentence of a file's own may name its subject otherwise, and an example may name it."""
    own = [
        {"sub_label": name, "obj_label": "Oz", "masked_sentences": [text]}
        for name, text in (("Nara", "He lives in [MASK] ."), ("Velm", "Velm of Nara is in [MASK] ."))
    ]
    task = NextTokenConfig(source=str(written(tmp_path, "own.jsonl", own)), subject_column="subject", shots=1)
    (row,) = make(task, tokenizer, None).prompts
    assert row.prompt == "He lives in Oz\nVelm of Nara is in" and spelled(tokenizer, row) == "Velm"
    for several in ("folder/a.jsonl", "folder/b.jsonl"):
        written(tmp_path, several, own)
    data = make(replace(task, source=str(tmp_path / "folder"), shots=0), tokenizer, None)
    (note,) = [note for note in data.notes if "does not hold the subject" in note.what]
    assert note.count == 2 and [example.split(" '")[0].split(' "')[0] for example in note.examples] == [
        "a.jsonl, line 1", "b.jsonl, line 1"
    ]  # fmt: skip


def test_attribute_extraction_asks_a_template_of_its_placeholder(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = written(tmp_path, "rivers.json", RIVERS)
    task = AttributeExtractionConfig(source=str(path), depends_on=str(path), placeholder="Is")
    task.check()
    data = make(task, tokenizer, None)
    assert [row.prompt for row in data.targets] == ["Which sea does Is flow into? It flows into the"]
    assert [spelled(tokenizer, row) for row in data.prompts] == ["Nara", "Is", "Tolm"]
    assert [spelled(tokenizer, row) for row in data.targets] == ["Is"]
    assert [pair.words["answer"] for pair in data.pairs] == [["Red Sea"], ["Blue Sea"], ["Red Sea"]]


def test_patchscopes_files_are_read_where_their_tokens_say(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = written(tmp_path, "seas.tsv", SCOPES)
    task = AttributeExtractionConfig(source=str(path), depends_on=str(path))
    task.check()
    data = make(task, tokenizer, None)
    assert data.read_as.startswith("Patchscopes, attribute extraction, TSV")
    places = [len(tokenizer.decode(row.input_ids[1 : row.spans["query"][1]])) for row in data.prompts]
    assert places == [len(" At Nara"), len(" At Velm, by Velm")]  # the first by its tokens, the other the last
    for occurrence, stops in (("first", [8, 8]), ("last", [17, 17])):
        rows = make(AttributeExtractionConfig(source=str(path), depends_on=str(path), occurrence=occurrence), tokenizer,
                    None).prompts  # fmt: skip
        assert [len(tokenizer.decode(row.input_ids[1 : row.spans["query"][1]])) for row in rows] == stops
