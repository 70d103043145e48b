"""Concepts and their words in several languages: what the embedded model was trained on and is asked about.

lexicon = load_lexicon()
lexicon.concept("dog").words["fr"]  # ("chien",)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.tables.json_rows import Literal, parse_json
from pipeline.tables.table import Note, TableError
from pipeline.tables.word_lists import is_word_list, read_word_list

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
            word list as its paper ships it (see `pipeline.tables.word_lists`); None reads the embedded lexicon.
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
