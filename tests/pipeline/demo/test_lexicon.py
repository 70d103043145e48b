"""The lexicon file: what the embedded one holds, and how a broken one is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo.lexicon import Concept, Lexicon, load_lexicon


def content() -> dict[str, Any]:
    return {
        "languages": {"en": "English", "fr": "Français"},
        "concepts": [
            {"id": "dog", "words": {"en": ["dog"], "fr": ["chien"]}},
            {"id": "small", "words": {"en": ["small", "little"], "fr": ["petit"]}},
        ],
    }


def write(folder: Path, value: Any) -> Path:
    file = folder / "lexicon.json"
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def test_embedded_lexicon_is_large_and_complete() -> None:
    lexicon = load_lexicon()
    assert list(lexicon.languages) == ["en", "fr", "de", "es", "it", "nl"]
    assert len(lexicon.concepts) >= 150
    assert lexicon.concept("dog").words["de"] == ("Hund",)
    for concept in lexicon.concepts:
        assert list(concept.words) == list(lexicon.languages)


def test_embedded_lexicon_tells_spanish_from_italian() -> None:
    # The experiments compare answers in these two; where they are spelled alike nothing can be compared.
    alike = [c.id for c in load_lexicon().concepts if set(c.words["es"]) & set(c.words["it"])]
    assert alike == ["book"]


def test_file_is_read_as_written(tmp_path: Path) -> None:
    expected = Lexicon(
        languages={"en": "English", "fr": "Français"},
        concepts=(
            Concept("dog", {"en": ("dog",), "fr": ("chien",)}),
            Concept("small", {"en": ("small", "little"), "fr": ("petit",)}),
        ),
    )
    assert load_lexicon(write(tmp_path, content())) == expected
    assert load_lexicon(str(write(tmp_path, content()))) == expected


def test_missing_file_and_bad_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_lexicon(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected JSON in .*broken\.json"):
        load_lexicon(tmp_path / "broken.json")


def broken(path: list[Any], value: Any) -> dict[str, Any]:
    changed = content()
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "exactly the keys 'languages' and 'concepts', got list"),
        ({"languages": {}}, r"got \['languages'\]"),
        (content() | {"note": ""}, "exactly the keys"),
        (broken(["languages"], {"en": "English"}), "at least two codes"),
        (broken(["languages", "fr"], 3), "at least two codes to names"),
        (broken(["concepts"], []), "at least one concept"),
        (broken(["concepts", 0], "dog"), "expected a concept .* got 'dog'"),
        (broken(["concepts", 0, "id"], ""), "expected a concept"),
        (
            broken(["concepts", 0, "words"], {"en": ["dog"]}),
            r"'dog' to have words in exactly \['en', 'fr'\], got \['en'\]",
        ),
        (broken(["concepts", 0, "words"], ["dog"]), "to have words in exactly"),
        (broken(["concepts", 0, "words", "de"], ["Hund"]), "list the language under 'languages'"),
        (broken(["concepts", 0, "words", "fr"], []), "list of single words"),
        (broken(["concepts", 0, "words", "fr"], "chien"), "list of single words"),
        (broken(["concepts", 0, "words", "fr"], ["gros chien"]), "no spaces or quotes"),
        (broken(["concepts", 0, "words", "fr"], ['chi"en']), "no spaces or quotes"),
        (broken(["concepts", 0, "words", "fr"], ["chien", "chien"]), "expected different words for 'dog' in fr"),
        (broken(["concepts", 1, "id"], "dog"), "got 'dog' twice"),
        (broken(["concepts", 1, "words", "en"], ["small", "dog"]), "got en 'dog' in 'dog' and 'small'"),
    ],
)
def test_broken_lexicon_is_refused_with_the_reason(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_lexicon(write(tmp_path, value))


def test_same_word_in_two_languages_is_fine(tmp_path: Path) -> None:
    lexicon = load_lexicon(write(tmp_path, broken(["concepts", 1, "words", "fr"], ["dog"])))
    assert lexicon.concept("small").words["fr"] == ("dog",)


def test_unknown_concept_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got 'bok'; nearest: .*'book'"):
        load_lexicon().concept("bok")


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys; from pipeline.demo.lexicon import load_lexicon; load_lexicon(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
