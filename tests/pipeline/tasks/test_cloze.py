"""Cloze prompts against the embedded sentences, and faults of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from interp.errors import InterpError
from pipeline.config.section import ConfigError
from pipeline.tables.table import TableError
from pipeline.tasks import make
from pipeline.tasks.cloze import ClozeConfig, read_sentences
from tests.tiny import tiny_tokenizer

EMBEDDED = "pipeline/demo/cloze.jsonl"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def config(path: str = EMBEDDED, **changes: Any) -> ClozeConfig:
    return ClozeConfig(**(dict(sentences=path, language="fr", latent_languages=["en"], depends_on=path) | changes))


def rows() -> dict[tuple[str, str], dict[str, Any]]:
    parsed = [json.loads(line) for line in Path(EMBEDDED).read_text(encoding="utf-8").splitlines()]
    return {(row["concept"], row["language"]): row for row in parsed}


def test_embedded_sentences_have_every_concept_in_every_language() -> None:
    sentences = read_sentences(EMBEDDED)
    languages = {sentence.language for sentence in sentences}
    concepts = {sentence.concept for sentence in sentences}
    assert len(languages) >= 4
    assert len(concepts) >= 20
    assert len(sentences) == len(languages) * len(concepts)
    for sentence in sentences:  # a sentence must not give its word away
        said = sentence.text.casefold().replace("'", " ").split()
        assert not {word.casefold() for word in sentence.words} & {word.strip('.,:"') for word in said}


@pytest.mark.parametrize("language", ["en", "fr", "de", "es"])
def test_prompts_are_solved_sentences_and_a_question(tokenizer: PreTrainedTokenizerFast, language: str) -> None:
    latent = "de" if language == "en" else "en"
    data = make(config(language=language, latent_languages=[latent]), tokenizer, None)
    known = rows()
    solved_lines = {f'{r["text"]} "{r["words"][0]}"': c for (c, tongue), r in known.items() if tongue == language}
    assert [row.labels["concept"] for row in data.prompts] == [c for c, tongue in known if tongue == language]
    for row in data.prompts:
        concept = row.labels["concept"]
        sentence = known[concept, language]
        *solved, question = row.prompt.split("\n")
        assert question == f'{sentence["text"]} "'
        shots = [solved_lines[line] for line in solved]
        assert len(set(shots)) == len(shots) == 2
        assert concept not in shots
        start, stop = row.spans["query"]
        assert tokenizer.decode(row.input_ids[start:stop]).strip() == sentence["text"]
        start, stop = row.spans["blank"]
        assert "___" in tokenizer.decode(row.input_ids[start:stop])
        assert row.words == {"answer": sentence["words"], f"latent_{latent}": known[concept, latent]["words"]}
        shared = set(row.answers["answer"]) & set(row.answers[f"latent_{latent}"])
        assert row.labels["collides"] == ("yes" if shared else "no")
    assert data.groups == {
        "answer": f"concept in the language of the sentence ({language})",
        f"latent_{latent}": f"concept in {latent}",
    }


def test_seed_and_limit(tokenizer: PreTrainedTokenizerFast) -> None:
    every = [row.prompt for row in make(config(), tokenizer, None).prompts]
    few = make(config(max_concepts=5), tokenizer, None)
    assert [row.prompt for row in few.prompts] == every[:5]
    assert few.counts["concepts_over_limit"] == len(every) - 5
    assert [row.prompt for row in make(config(seed=3), tokenizer, None).prompts] != every


def test_concept_without_latent_words_is_dropped_and_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "some.jsonl"
    lines = [json.dumps(row) for key, row in rows().items() if key not in {("dog", "en"), ("book", "en")}]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    data = make(config(str(path)), tokenizer, None)
    assert data.counts["concepts_without_latent_words"] == 2
    assert not {"dog", "book"} & {row.labels["concept"] for row in data.prompts}


def test_nothing_left_says_why(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InterpError, match=r"of 30 concepts none is left: .* 30 have a language without answer tokens"):
        make(config(target_policy="exact", latent_languages=["de", "es"]), tokenizer, None)


GOOD = {"concept": "dog", "language": "en", "text": "A ___ barks.", "words": ["dog"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected JSON, got a syntax error: Expecting"),
        ('["a"]', r"line 2: expected a JSON object, got '\[\"a\"\]'"),
        (json.dumps({**GOOD, "extra": 1}), "line 2: expected an object with exactly"),
        (json.dumps({**GOOD, "words": "dog"}), "line 2: expected 'words' to be a list"),
        (json.dumps({**GOOD, "words": []}), "line 2: expected 'words' to be a list"),
        (json.dumps({**GOOD, "concept": ["dog"]}), r"line 2: expected 'concept' to be a text, got \['dog'\]"),
        (json.dumps({**GOOD, "text": "A dog barks."}), "line 2: expected one '___' in 'text'"),
        (json.dumps(GOOD), "line 2: a second sentence for 'dog' in 'en'"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(TableError, match=message):
        read_sentences(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentences": "nowhere.jsonl"}, "task.sentences: there is no file nowhere.jsonl"),
        ({"language": "frr"}, "task.language: .* no language 'frr'. Did you mean 'fr'"),
        ({"latent_languages": ["fr"]}, "task.latent_languages: expected different languages"),
        ({"latent_languages": ["en", "en"]}, "task.latent_languages: expected different languages"),
        ({"shots": 30}, "task.shots: expected 0 to 29"),
        ({"template": "{sentence}"}, "task.template: expected {word}"),
    ],
)
def test_bad_config_is_told(tokenizer: PreTrainedTokenizerFast, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(config(**changes), tokenizer, None)


def test_empty_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TableError, match="holds no sentence"):
        read_sentences(tmp_path / "empty.jsonl")
