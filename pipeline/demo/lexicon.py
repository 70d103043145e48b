"""Read lexicons: concepts and their words in several languages, as ours (the embedded one) or as papers ship them.

    lexicon = load_lexicon()
    lexicon.concept("dog").words["fr"]  # ("chien",)

Word lists of papers, each row a concept:

| list | columns | paper |
|---|---|---|
| a file a language, or a folder of them | `lang`, `word_original` (English), `word_translation` | Wendler et al. 2024 |
| one file for all languages | a language code each, lists of synonyms; `word_original` | Dumas et al. 2025 |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from interp.prompts.templates import LANGUAGE_NAMES
from pipeline.tables.json_rows import Literal, listed_in, parse_json
from pipeline.tables.reading import read_table
from pipeline.tables.table import Cell, Note, Table, TableError, suffix_of

__all__ = [
    "EMBEDDED", "POLICIES", "Concept", "Lexicon", "WordList", "is_word_list", "load_lexicon", "read_word_list",
]  # fmt: skip


POLICIES = ("refuse", "drop", "keep")  # what becomes of a phrase, and of a word that two concepts have
EMBEDDED = Path(__file__).parent / "lexicon.json"


@dataclass(frozen=True)
class Concept:
    """One meaning, with the words that express it.

    Arguments:
        id: the name of the concept, unique in its lexicon.
        words: for each language code the accepted words, best first; a word list may lack some in a language.
    """

    id: str
    words: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Lexicon:
    """The concepts and the languages that each of them has words in.

    Arguments:
        languages: language code -> the name of the language in that language, as prompts spell it.
        concepts: the concepts, in the order of the file.
        written: the format of the file, for people; nothing for a lexicon in JSON.
        notes: what was odd about it.
    """

    languages: Mapping[str, str]
    concepts: tuple[Concept, ...]
    written: str = field(default="", compare=False)
    notes: tuple[Note, ...] = field(default=(), compare=False)

    def speaking(self, *languages: str) -> tuple[Concept, ...]:
        """The concepts that have words in all of some languages."""
        return tuple(concept for concept in self.concepts if all(language in concept.words for language in languages))

    def concept(self, concept_id: str) -> Concept:
        """The concept of that name.

        Arguments:
            concept_id: the `id` of a concept.

        Returns:
            The concept.

        Raises:
            ValueError: no concept has that name; the message gives the nearest known names.
        """
        for concept in self.concepts:
            if concept.id == concept_id:
                return concept
        known = [concept.id for concept in self.concepts]
        nearest = get_close_matches(concept_id, known) or known[:5]
        raise ValueError(f"expected the id of one of {len(known)} concepts, got {concept_id!r}; nearest: {nearest}")


def load_lexicon(
    path: str | Path | None = None, encoding: str = "auto", *, shared_words: str = "refuse", phrases: str = "refuse"
) -> Lexicon:
    """Reads a lexicon file, or a published word list, and checks it.

    Arguments:
        path: a JSON file `{"languages": {code: name}, "concepts": [{"id": ..., "words": {code: [word, ...]}}]}`; or a
            word list as its paper ships it (see above); None reads the embedded lexicon.
        encoding: of its text; `auto`: as the byte-order mark says, else UTF-8.
        shared_words: what becomes of a word that two concepts have in one language, so that an answer could not be told
            right or wrong: `refuse` the file; `drop` it from the concept in which it is the lesser word (where it is
            the best word of both, the later concept has no words in that language); `keep` it.
        phrases: what becomes of a word with spaces in it: `refuse` the file, `drop` it, or `keep` it.

    Returns:
        The lexicon. From JSON every concept has at least one word in every language, but for what was dropped.

    Raises:
        ValueError: the file is not such a lexicon; the message says what was expected, what came and what to do.
    """
    file = EMBEDDED if path is None else Path(path)
    if not file.exists():
        raise ValueError(f"expected a lexicon file, got {str(file)!r}, which does not exist; check the path")
    try:
        if is_word_list(file):
            listed = read_word_list(file, encoding)
            concepts = [Concept(name, {code: tuple(words[code]) for code in words})
                        for name, words in listed.concepts.items()]  # fmt: skip
            lexicon = Lexicon(listed.languages, tuple(concepts), listed.written, listed.notes)
            return _told_apart(_without_quotes(lexicon), shared_words, phrases)
        content = parse_json(file, encoding)
    except TableError as error:
        raise ValueError(f"expected JSON in {file}, or a word list: {error}") from None
    try:
        return _told_apart(_lexicon(content, phrases), shared_words, phrases)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _lexicon(content: Any, phrases: str) -> Lexicon:
    if not isinstance(content, dict) or set(content) != {"languages", "concepts"}:
        came = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"expected an object with exactly the keys 'languages' and 'concepts', got {came}")
    languages = content["languages"]
    if not isinstance(languages, dict) or len(languages) < 2 or not all(map(_is_word, languages.values())):
        raise ValueError(
            f"expected 'languages' to map at least two codes to names, got {languages!r}; "
            'write them as {"en": "English", "fr": "Français"}'
        )
    if not isinstance(content["concepts"], list) or not content["concepts"]:
        raise ValueError(f"expected 'concepts' to be a list with at least one concept, got {content['concepts']!r}")
    concepts = tuple(_concept(entry, set(languages), phrases) for entry in content["concepts"])
    ids: set[str] = set()
    for concept in concepts:
        if concept.id in ids:
            raise ValueError(f"expected every id once, got {concept.id!r} twice; rename or remove one of the two")
        ids.add(concept.id)
    return Lexicon(languages=dict(languages), concepts=concepts)


def _without_quotes(lexicon: Lexicon) -> Lexicon:
    """A word list without the words that would end the quotes of a prompt."""
    return _dropped(lexicon, lambda word: '"' in word, "words with a quote sign in them, left out")


def _dropped(lexicon: Lexicon, unwanted: Callable[[str], bool], what: str) -> Lexicon:
    found: list[str] = []
    concepts = []
    for concept in lexicon.concepts:
        words = {}
        for language, accepted in concept.words.items():
            kept = tuple(word for word in accepted if not unwanted(word))
            found += [f"{language} {word!r}" for word in accepted if unwanted(word)]
            if kept:
                words[language] = kept
        concepts.append(Concept(concept.id, words))
    return _noted(lexicon, concepts, what, found)


def _noted(lexicon: Lexicon, concepts: Sequence[Concept], what: str, found: Sequence[str]) -> Lexicon:
    notes = (Note(what, len(found), tuple(found[:3])),) if found else ()
    return replace(lexicon, concepts=tuple(concepts), notes=(*lexicon.notes, *notes))


def _told_apart(lexicon: Lexicon, shared_words: str, phrases: str) -> Lexicon:
    """The lexicon after what is said of phrases and of words that two concepts have."""
    for name, policy in (("shared_words", shared_words), ("phrases", phrases)):
        if policy not in POLICIES:
            raise ValueError(f"expected {name} to be one of {', '.join(POLICIES)}, got {policy!r}")
    with_spaces = [(concept.id, language, word) for concept in lexicon.concepts
                   for language, words in concept.words.items() for word in words if _is_phrase(word)]  # fmt: skip
    if with_spaces and phrases == "refuse":
        concept_id, language, word = with_spaces[0]
        raise ValueError(
            f"expected words without spaces, got {language} {word!r} in {concept_id!r}; drop or keep phrases"
        )
    if phrases == "drop":
        lexicon = _dropped(lexicon, _is_phrase, "words with spaces in them, left out (task.phrases)")
    owners: dict[tuple[str, str], list[tuple[int, int]]] = {}  # (language, word) -> (rank, concept) of each place
    for number, concept in enumerate(lexicon.concepts):
        for language, words in concept.words.items():
            for rank, word in enumerate(words):
                owners.setdefault((language, word), []).append((rank, number))
    shared = {word: sorted(places) for word, places in owners.items() if len(places) > 1}
    if not shared:
        return lexicon
    if shared_words == "refuse":
        (language, word), places = next(iter(shared.items()))
        first, second = (lexicon.concepts[number].id for _, number in sorted(places, key=lambda place: place[1])[:2])
        raise ValueError(
            f"expected a word to belong to one concept of its language, got {language} {word!r} in "
            f"{first!r} and {second!r}; keep it in the concept that it fits best"
        )
    named = [f"{language} {word!r}" for language, word in shared]
    if shared_words == "keep":
        return _noted(lexicon, lexicon.concepts, "words that two concepts have, kept (task.shared_words)", named)
    lost = {(language, word, number) for (language, word), places in shared.items() for _, number in places[1:]}
    concepts, wordless = [], []
    for number, concept in enumerate(lexicon.concepts):
        own: dict[str, tuple[str, ...]] = {}
        for language, accepted in concept.words.items():
            if (language, accepted[0], number) in lost:  # another word in its place would be a lesser one
                wordless.append(f"{concept.id!r} in {language}")
            else:
                own[language] = tuple(word for word in accepted if (language, word, number) not in lost)
        concepts.append(Concept(concept.id, own))
    lexicon = _noted(lexicon, concepts, "words that two concepts have, kept by one (task.shared_words)", named)
    return _noted(lexicon, concepts, "concepts without words in a language, whose best is another's", wordless)


def _concept(entry: Any, languages: set[str], phrases: str) -> Concept:
    if not isinstance(entry, dict) or set(entry) != {"id", "words"} or not _is_word(entry["id"]):
        raise ValueError(f'expected a concept {{"id": "dog", "words": {{...}}}}, got {entry!r}')
    words = entry["words"]
    if not isinstance(words, dict) or set(words) != languages:
        came = sorted(words) if isinstance(words, dict) else words
        raise ValueError(
            f"expected concept {entry['id']!r} to have words in exactly {sorted(languages)}, got {came}; "
            "add what is missing or list the language under 'languages'"
        )
    for language, accepted in words.items():
        valid = _is_word if phrases == "refuse" else _is_phrase_or_word
        if not isinstance(accepted, list) or not accepted or not all(map(valid, accepted)):
            raise ValueError(
                f"expected concept {entry['id']!r} to have a list of single words (no spaces or quotes) in {language}, "
                f'got {accepted!r}; write one or more, best first, as ["small", "little"]'
            )
        if len(set(accepted)) < len(accepted):
            raise ValueError(
                f"expected different words for {entry['id']!r} in {language}, got {accepted!r}; remove one"
            )
    return Concept(id=entry["id"], words={language: tuple(accepted) for language, accepted in words.items()})


def _is_word(value: Any) -> bool:
    return _is_phrase_or_word(value) and not _is_phrase(value)


def _is_phrase(word: str) -> bool:
    return any(map(str.isspace, word))


def _is_phrase_or_word(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Literal) and bool(value.strip()) and '"' not in value


SUFFIXES = (".csv", ".tsv")
CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?")
ONE_LANGUAGE = {"lang", "word_original", "word_translation"}
CLEANED = "blank_prompt_translation_masked"  # the files of Wendler et al. that their results are from have it
ENGLISH = "en"


@dataclass(slots=True)
class WordList:
    """Concepts in the order of the file.

    Arguments:
        languages: code -> the language's name in that language.
        concepts: name of a concept -> code -> its words, best first; a language may be missing.
        written: the format, for people.
        notes: what a reader should know.
    """

    languages: dict[str, str] = field(default_factory=dict)
    concepts: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    written: str = ""
    notes: tuple[Note, ...] = ()


def is_word_list(path: Path) -> bool:
    """Whether a path is a folder or a table, and so no lexicon in JSON."""
    return path.is_dir() or suffix_of(path) in SUFFIXES


def read_word_list(path: Path, encoding: str = "auto") -> WordList:
    """Read a published word list.

    Arguments:
        path: a file, or a folder with a file a language, at any depth.
        encoding: of their text; `auto`: as the byte-order mark says, else UTF-8.

    Raises:
        TableError: it cannot be read, or its columns are of no known list.
    """
    files = [file for file in sorted(path.rglob("*")) if suffix_of(file) in SUFFIXES] if path.is_dir() else [path]
    tables = [read_table(file, encoding) for file in files]
    single = [table for table in tables if _named(table) >= ONE_LANGUAGE]
    if single:
        return _by_file(single, path, len(tables))
    several = [table for table in tables if len(_codes(table)) > 1]
    if len(several) != 1:
        came = f"{len(several)} such files; name one of them" if several else _shown(tables)
        raise TableError(
            f"{path}: expected one table whose columns are language codes (de, fr, ...; word_original names the "
            f"concept), or tables with the columns lang, word_original and word_translation, got {came}. A lexicon of "
            "your own is a JSON file; the README shows one."
        )
    return _by_column(several[0])


def _named(table: Table) -> set[str]:
    return {column.strip() for column in table.columns}


def _codes(table: Table) -> dict[str, int]:
    """Language code -> its column."""
    return {name.strip(): place for place, name in enumerate(table.columns) if CODE.fullmatch(name.strip())}


def _shown(tables: list[Table]) -> str:
    return ", ".join(map(repr, tables[0].columns[:8])) if tables else "no table"


def _by_file(tables: list[Table], path: Path, files: int) -> WordList:
    """Wendler et al.: a row gives the English word and its translation into the file's language."""
    cleaned = [table for table in tables if CLEANED in _named(table)] or tables
    made = WordList()
    twice = empty = 0
    for table in cleaned:
        places = {name.strip(): place for place, name in enumerate(table.columns)}
        for row in table.rows:
            code, english, word = (_text(row[places[name]]) for name in ("lang", "word_original", "word_translation"))
            if not code or not english or not word:
                empty += 1
                continue
            words = made.concepts.setdefault(english, {ENGLISH: [english]})
            twice += code in words and words[code] != [word]
            words.setdefault(code, [word])
    used = {code for words in made.concepts.values() for code in words}
    made.languages = {code: LANGUAGE_NAMES.get(code, code) for code in sorted(used)}
    return _described(
        made,
        "word list (Wendler et al.)",
        Note("files left out (no cleaned word list)", files - len(cleaned)),
        Note("rows without a word, left out", empty),
        Note("rows that translate a word again, left out", twice),
    )


def _by_column(table: Table) -> WordList:
    """Dumas et al.: a column for each language, a list of synonyms in each cell."""
    codes = _codes(table)
    names = next((place for place, name in enumerate(table.columns) if name.strip() == "word_original"), None)
    made = WordList(languages={code: LANGUAGE_NAMES.get(code, code) for code in codes})
    repeated = 0
    for number, row in enumerate(table.rows):
        words = {code: _words(row[place], table.where(number)) for code, place in codes.items()}
        words = {code: listed for code, listed in words.items() if listed}
        name = _text(row[names]) if names is not None else next(iter(words.values()), [""])[0]
        if not words or not name:
            continue
        times = 1
        while (unique := name if times == 1 else f"{name} ({times})") in made.concepts:
            times += 1
        repeated += times > 1
        made.concepts[unique] = words
    return _described(
        made,
        "word list (Dumas et al.)",
        Note("concepts whose name stands twice, told apart by a number", repeated),
        Note("rows without a word, left out", len(table.rows) - len(made.concepts)),
    )


def _described(made: WordList, name: str, *notes: Note) -> WordList:
    made.written = f"{name}: {len(made.languages)} languages, {len(made.concepts)} concepts"
    unnamed = [code for code, known in made.languages.items() if code == known]
    notes += (Note("languages whose name is not known; prompts use the code", len(unnamed), tuple(unnamed[:3])),)
    made.notes = tuple(note for note in notes if note.count)
    return made


def _text(cell: Cell) -> str:
    return cell.strip() if isinstance(cell, str) else ""


def _words(cell: Cell, where: str) -> list[str]:
    """The distinct words of a cell: a list, a list as text, or one word."""
    if isinstance(cell, str):
        listed = listed_in(cell, where)
        cell = [cell] if listed is None else listed
    return list(dict.fromkeys(_text(word) for word in cell or () if _text(word)))
