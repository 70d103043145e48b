"""Concepts and their words in several languages: what the embedded model was trained on and is asked about.

lexicon = load_lexicon()
lexicon.concept("dog").words["fr"]  # ("chien",)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).parent / "lexicon.json"


@dataclass(frozen=True)
class Concept:
    """One meaning, with the words that express it.

    Arguments:
        id: the name of the concept, unique in its lexicon.
        words: for each language code the accepted words, best first.
    """

    id: str
    words: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Lexicon:
    """The concepts and the languages that each of them has words in.

    Arguments:
        languages: language code -> the name of the language in that language, as prompts spell it.
        concepts: the concepts, in the order of the file.
    """

    languages: Mapping[str, str]
    concepts: tuple[Concept, ...]

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


def load_lexicon(path: str | Path | None = None) -> Lexicon:
    """Reads a lexicon file and checks it.

    Arguments:
        path: a JSON file `{"languages": {code: name}, "concepts": [{"id": ..., "words": {code: [word, ...]}}]}`;
            None reads the embedded lexicon.

    Returns:
        The lexicon: every concept has at least one word in every language, and inside one language no word belongs
        to two concepts (an answer could not be told right or wrong).

    Raises:
        ValueError: the file is not such a lexicon; the message says what was expected, what came and what to do.
    """
    file = EMBEDDED if path is None else Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"expected a lexicon file, got {str(file)!r}, which does not exist; check the path") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {file}, got a syntax error: {error}; correct the file there") from None
    try:
        return _lexicon(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _lexicon(content: Any) -> Lexicon:
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
    concepts = tuple(_concept(entry, set(languages)) for entry in content["concepts"])

    owner: dict[tuple[str, str], str] = {}  # (language, word) -> concept
    ids: set[str] = set()
    for concept in concepts:
        if concept.id in ids:
            raise ValueError(f"expected every id once, got {concept.id!r} twice; rename or remove one of the two")
        ids.add(concept.id)
        for language, words in concept.words.items():
            for word in words:
                other = owner.setdefault((language, word), concept.id)
                if other != concept.id:
                    raise ValueError(
                        f"expected a word to belong to one concept of its language, got {language} {word!r} in "
                        f"{other!r} and {concept.id!r}; keep it in the concept that it fits best"
                    )
    return Lexicon(languages=dict(languages), concepts=concepts)


def _concept(entry: Any, languages: set[str]) -> Concept:
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
        if not isinstance(accepted, list) or not accepted or not all(map(_is_word, accepted)):
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
    return isinstance(value, str) and value != "" and '"' not in value and not any(map(str.isspace, value))
