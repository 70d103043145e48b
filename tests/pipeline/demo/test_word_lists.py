"""Word lists by made-up files of their papers' shapes: languages, words, and what is said of odd ones."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.section import ConfigError
from pipeline.demo.lexicon import Lexicon, load_lexicon
from pipeline.tasks import make
from pipeline.tasks.translation import TranslationConfig
from tests.tiny import tiny_tokenizer

# Two concepts share `Bank` as their best German word, `bench` is a lesser English word of one and the best of another.
COLUMNS = ("fr", "de", "en", "zh", "word_original")
ROWS = [
    ("['banque']", "['Bank', 'Geldhaus']", "['bank', 'bench']", "['银行', '銀行']", "bank"),
    ("['banc', 'banc public']", "['Bank']", "['bench']", "['长凳']", "bench"),
    ("['eau']", "['Wasser']", "['water', 'H\"2O']", "['水']", "water"),
    ("['gare']", "['Bahnhof']", "['railway station', 'station']", "[]", "station"),
    ("['pont']", "['Brücke']", "bridge", "['桥']", "bridge"),
    ("['sel']", "['Salz']", "['salt']", "['盐']", "salt"),
]


def table(path: Path, padded: bool = False) -> Path:
    """The table of synonyms; padded: with spaces after every cell, as one of the published files has them."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        if not padded:
            csv.writer(stream).writerows([COLUMNS, *ROWS])
        else:
            for row in [COLUMNS, *ROWS]:
                cells = ['"' + cell.replace('"', '""') + '"' if "," in cell else cell for cell in row]
                stream.write(",".join(f"{cell:<30}" for cell in cells) + "\n")
    return path


def words(lexicon: Lexicon, language: str) -> dict[str, tuple[str, ...]]:
    return {concept.id: concept.words[language] for concept in lexicon.concepts if language in concept.words}


@pytest.mark.parametrize("padded", [False, True])
def test_a_table_of_synonyms(padded: bool, tmp_path: Path) -> None:
    path = table(tmp_path / "list.csv", padded)
    kept = load_lexicon(path, shared_words="keep", phrases="keep")
    assert kept.written == "word list (Dumas et al.): 4 languages, 6 concepts"
    assert dict(kept.languages) == {"fr": "Français", "de": "Deutsch", "en": "English", "zh": "中文"}
    assert words(kept, "zh") == {
        "bank": ("银行", "銀行"),
        "bench": ("长凳",),
        "water": ("水",),
        "bridge": ("桥",),
        "salt": ("盐",),
    }
    assert words(kept, "en")["water"] == ("water",)  # a quote sign would end the prompt's
    assert words(kept, "fr")["bench"] == ("banc", "banc public")
    assert words(kept, "en")["bridge"] == ("bridge",)
    assert {note.what: note.count for note in kept.notes} == {
        "words with a quote sign in them, left out": 1,
        "words that two concepts have, kept (task.shared_words)": 2,
    }


def test_shared_words_and_phrases_are_dropped_kept_or_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "list.csv")
    dropped = load_lexicon(path, shared_words="drop", phrases="drop")
    assert words(dropped, "en") == {
        "bank": ("bank",), "bench": ("bench",), "water": ("water",), "station": ("station",), "bridge": ("bridge",),
        "salt": ("salt",),
    }  # fmt: skip
    assert "bench" not in words(dropped, "de")  # its only word is the best of an earlier concept
    assert words(dropped, "de")["bank"] == ("Bank", "Geldhaus")
    assert words(dropped, "fr")["bench"] == ("banc",)
    assert [(note.count, note.what) for note in dropped.notes][1:] == [
        (2, "words with spaces in them, left out (task.phrases)"),
        (2, "words that two concepts have, kept by one (task.shared_words)"),
        (1, "concepts without words in a language, whose best is another's"),
    ]
    with pytest.raises(ValueError, match="got de 'Bank' in 'bank' and 'bench'"):
        load_lexicon(path, phrases="keep")
    with pytest.raises(ValueError, match="expected words without spaces, got fr 'banc public' in 'bench'"):
        load_lexicon(path, shared_words="drop")


def by_language(
    folder: Path, code: str, rows: list[tuple[str, str]], name: str = "clean.csv", cleaned: bool = True
) -> None:
    path = folder / code / name
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["lang", "word_original", "word_translation", "blank_prompt_original"]
    columns += ["blank_prompt_translation_masked"] if cleaned else []
    with path.open("w", encoding="utf-8", newline="") as stream:
        sheet = csv.writer(stream)
        sheet.writerow(columns)
        sheet.writerows([[code, english, word, "A ___"] + ["Ein ___"] * cleaned for english, word in rows])


def test_a_folder_with_a_file_a_language(tmp_path: Path) -> None:
    by_language(tmp_path, "de", [("water", "Wasser"), ("salt", "Salz"), ("net", "Netz")])
    by_language(tmp_path, "zh", [("water", "水"), ("salt", "盐")])
    by_language(tmp_path, "de", [("water", "Gewässer"), ("rock", "Fels")], "text.csv", cleaned=False)
    lexicon = load_lexicon(tmp_path)
    assert lexicon.written == "word list (Wendler et al.): 3 languages, 3 concepts"
    assert words(lexicon, "en") == {"water": ("water",), "salt": ("salt",), "net": ("net",)}
    assert words(lexicon, "de") == {"water": ("Wasser",), "salt": ("Salz",), "net": ("Netz",)}
    assert words(lexicon, "zh") == {"water": ("水",), "salt": ("盐",)}
    assert [concept.id for concept in lexicon.speaking("de", "zh")] == ["water", "salt"]
    assert [(note.count, note.what) for note in lexicon.notes] == [(1, "files left out (no cleaned word list)")]
    for file in ("de/clean.csv", "zh/clean.csv"):
        (tmp_path / file).write_text((tmp_path / file).read_text(encoding="utf-8"), encoding="gb18030")
    (tmp_path / "de" / "text.csv").unlink()
    assert words(load_lexicon(tmp_path, "gb18030"), "zh") == words(lexicon, "zh")
    with pytest.raises(ValueError, match=r"zh.clean.csv is not written in utf-8 .* task.encoding="):
        load_lexicon(tmp_path)
    one = load_lexicon(tmp_path / "zh" / "clean.csv", "gb18030")
    assert dict(one.languages) == {"en": "English", "zh": "中文"}


def test_prompts_of_a_word_list(tmp_path: Path) -> None:
    path = table(tmp_path / "list.csv")
    given: dict[str, Any] = dict(lexicon=str(path), depends_on=str(path), shots=2, patch_into=None)
    task = TranslationConfig(source_languages=["fr"], target_language="de", latent_languages=["en"],
                             measure_source_language=False, **given)  # fmt: skip
    task.check()
    tokenizer = tiny_tokenizer()
    data = make(task, tokenizer, None)
    assert data.read_as == "word list (Dumas et al.): 4 languages, 6 concepts"
    assert [row.labels["concept"] for row in data.prompts] == ["bank", "water", "station", "bridge", "salt"]
    assert data.counts["concepts_without_words"] == 1  # `bench` has lost its German word
    assert data.prompts[0].words == {"answer": ["Bank", "Geldhaus"], "latent_en": ["bank"]}
    assert data.prompts[2].words["latent_en"] == ["railway station", "station"]
    for row, query in zip(data.prompts, ("banque", "eau", "gare", "pont", "sel"), strict=True):
        *shots, question = row.prompt.split("\n")
        assert question == f'Français: "{query}" - Deutsch: "' and len(shots) == 2
        assert not any("banc" in shot for shot in shots)
        start, stop = row.spans["query"]
        assert query in tokenizer.decode(row.input_ids[start:stop])
    kept = TranslationConfig(source_languages=["fr"], target_language="de", shared_words="keep", **given)
    assert "bench" in [row.labels["concept"] for row in make(kept, tokenizer, None).prompts]
    with pytest.raises(ConfigError, match=r"task.shots: 5 solved lines .* has 5 with words in both languages"):
        TranslationConfig(**(given | {"shots": 5}), source_languages=["fr"], target_language="de").check()
    with pytest.raises(ConfigError, match=r"no language 'es'. It has de, en, fr, zh"):
        TranslationConfig(**given, source_languages=["fr"], target_language="es").check()


def test_what_is_no_word_list_is_said(tmp_path: Path) -> None:
    odd = tmp_path / "odd.csv"
    odd.write_text("word,meaning\na,b\n")
    with pytest.raises(
        ValueError, match=r"expected one table whose columns are language codes .* got 'word', 'meaning'"
    ):
        load_lexicon(odd)
    table(tmp_path / "one.csv"), table(tmp_path / "two.csv")
    with pytest.raises(ValueError, match="got 2 such files; name one of them"):
        load_lexicon(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        load_lexicon(tmp_path / "absent.csv")
