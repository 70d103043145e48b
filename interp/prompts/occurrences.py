"""Finds a word in a text, by its characters.

found = find_word("Le café de la Paix, un cafe\\u0301", "café")     # both spellings of é are one letter
[text[one.start : one.stop] for one in found]

A word has an edge where its script writes one: `France` is no word of `Frances`, and 法国 is one of 在法国的. Chinese,
Japanese, Korean with its particles, Thai and their like are written without spaces, so that no edge is asked for there.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from interp.errors import InterpError, nearest

__all__ = ["BOUNDARIES", "OCCURRENCES", "Occurrence", "find_word", "mark_word", "other_form"]

BOUNDARIES = ("both", "start", "none")
OCCURRENCES = ("first", "last")

# How Unicode's names begin in the scripts that put no space between words, or, as Korean does, none between a word and
# what is said about it. The standard library knows no scripts, but these names are stable for good.
_UNSPACED = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "YI SYLLABLE", "THAI", "LAO", "KHMER",
    "MYANMAR", "TIBETAN", "TAI ", "NEW TAI ", "JAVANESE", "BALINESE",
)  # fmt: skip
_JAMO_INSIDE = ((0x1160, 0x11FF), (0xD7B0, 0xD7FF))  # vowels and finals: they belong to the syllable begun before them


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A place of a word in a text.

    Arguments:
        start, stop: first character, and one past the last, in the text as it was given.
        begins: whether a word begins at `start`: no letter or digit of a script with spaces stands before.
        ends: whether a word ends at `stop`.
    """

    start: int
    stop: int
    begins: bool = True
    ends: bool = True


def find_word(
    text: str, word: str | Sequence[str], *, boundary: str = "both", ignore_case: bool = False
) -> list[Occurrence]:
    """Find every place where a word stands in a text.

    Composed and decomposed accents are the same letter. Where nothing is found so, characters that Unicode calls
    compatible (full-width letters, ligatures, other spaces) count as the same too, and an underscore as a space.

    Arguments:
        text: the text.
        word: the word, or several forms of it; spaces around a form are ignored.
        boundary: which edges of a word are asked for, in scripts that have them. `both`: a word of its own; `start`:
            where it nowhere is one, a longer word that begins with it (`Buch` in `Buches`); `none`: where there is no
            such word either, anywhere (Arabic and Hebrew articles, compounds).
        ignore_case: whether capital and small letters are the same.

    Returns:
        The places in the order of the text; none where it does not occur.

    Raises:
        InterpError: an unknown boundary, or a blank word.
    """
    if boundary not in BOUNDARIES:
        known = nearest(boundary, BOUNDARIES)
        raise InterpError(f"boundary: expected one of {', '.join(BOUNDARIES)}, got {boundary!r}.{known}")
    forms = [form.strip() for form in ([word] if isinstance(word, str) else word)]
    if not forms or not all(forms):
        raise InterpError(f"expected a word to find, got {word!r}.")
    ways = [
        {place for form in forms for place in _places(text, form, ignore_case, compatible)}
        for compatible in (False, True)
    ]
    for wanted in BOUNDARIES[: BOUNDARIES.index(boundary) + 1]:
        for places in ways:
            found = [
                one for one in sorted(places, key=lambda place: (place.start, place.stop))
                if wanted == "none" or (one.begins and (one.ends or wanted == "start"))
            ]  # fmt: skip
            if found:
                return found
    return []


def mark_word(
    text: str, word: str | Sequence[str], occurrence: str = "last", *, boundary: str = "both", ignore_case: bool = False
) -> Occurrence:
    """The first or the last place of a word; other arguments as of `find_word`.

    Raises:
        InterpError: it does not occur; the message says in which other form it does.
    """
    if occurrence not in OCCURRENCES:
        known = nearest(occurrence, OCCURRENCES)
        raise InterpError(f"occurrence: expected one of {', '.join(OCCURRENCES)}, got {occurrence!r}.{known}")
    found = find_word(text, word, boundary=boundary, ignore_case=ignore_case)
    if not found:
        named = repr(word) if isinstance(word, str) else " or ".join(map(repr, word))
        other = other_form(text, word, boundary=boundary, ignore_case=ignore_case)
        advice = "" if other is None else f" It stands there as {other[0]!r}: {_spelled(other[1])} reads it."
        raise InterpError(f"{named} is no word of {text!r}.{advice}")
    return found[0 if occurrence == "first" else -1]


def other_form(
    text: str, word: str | Sequence[str], *, boundary: str = "both", ignore_case: bool = False
) -> tuple[str, dict[str, str | bool]] | None:
    """How a word stands in a text in which it is not found; arguments as of `find_word`.

    Returns:
        The word as the text has it, whole, and the arguments that find it; None: it does not stand there at all.
    """
    for wider in BOUNDARIES[BOUNDARIES.index(boundary) :]:
        for folding in dict.fromkeys((ignore_case, True)):
            found = find_word(text, word, boundary=wider, ignore_case=folding)
            if found:
                start, stop = found[0].start, found[0].stop
                while not found[0].ends and stop < len(text) and not text[stop].isspace():
                    stop += 1
                while not found[0].begins and start > 0 and not text[start - 1].isspace():
                    start -= 1
                rules: dict[str, str | bool] = {"boundary": wider} if wider != boundary else {}
                return text[start:stop], rules | ({"ignore_case": True} if folding != ignore_case else {})
    return None


def _spelled(rules: dict[str, str | bool]) -> str:
    return " and ".join(f"{name}={value!r}" for name, value in rules.items())


def _places(text: str, word: str, ignore_case: bool, compatible: bool) -> Iterator[Occurrence]:
    letters, origins = _folded(text, ignore_case, compatible)
    wanted, _ = _folded(word, ignore_case, compatible)
    at = letters.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        start, stop = min(origins[at:end]), max(origins[at:end]) + 1
        # Not a part of a character, nor a letter without the accents that are on it.
        cut = (at > 0 and origins[at - 1] >= start) or (end < len(letters) and origins[end] < stop)
        cut = cut or _inside_emoji(letters, at, end)
        if not cut and not (end < len(letters) and _belongs_to_the_letter_before(letters[end])):
            yield Occurrence(
                start, stop, not _joined(_last_letter(text[:start]), text[start]),
                not (stop < len(text) and _joined(_last_letter(text[:stop]), text[stop])),
            )  # fmt: skip
        at = letters.find(wanted, at + 1)


@lru_cache(maxsize=8)  # a text is searched for several forms, and a word in many texts
def _folded(text: str, ignore_case: bool, compatible: bool) -> tuple[str, list[int]]:
    """A text in the spelling that is compared.

    Returns:
        The text, decomposed; and for each character of it the index of the one of the given text that it is from.
    """
    form = "NFKD" if compatible else "NFD"
    units: list[tuple[str, int]] = []
    for origin, character in enumerate(text):
        decomposed = unicodedata.normalize(form, character)  # type: ignore[arg-type]
        if ignore_case:
            decomposed = unicodedata.normalize(form, decomposed.casefold())  # type: ignore[arg-type]
        if compatible and character == "_":
            decomposed = " "
        units += [(unit, origin) for unit in decomposed]
    begin = 0  # Unicode's canonical order: marks on one letter stand by their class
    for index in range(len(units) + 1):
        if index == len(units) or not unicodedata.combining(units[index][0]):
            units[begin:index] = sorted(units[begin:index], key=lambda unit: unicodedata.combining(unit[0]))
            begin = index + 1
    return "".join(unit for unit, _ in units), [origin for _, origin in units]


def _inside_emoji(letters: str, start: int, stop: int) -> bool:
    """Whether characters are a part of one picture: of several that a joiner makes one, or one without its colour."""
    picture = unicodedata.category(letters[start]) == "So" and letters[start - 1 : start] == "\u200d"
    follows = letters[stop : stop + 1]
    joined = follows == "\u200d" or "\U0001f3fb" <= follows <= "\U0001f3ff"
    return picture or (joined and unicodedata.category(letters[stop - 1]) == "So")


def _belongs_to_the_letter_before(character: str) -> bool:
    code = ord(character)
    return unicodedata.combining(character) > 0 or any(first <= code <= last for first, last in _JAMO_INSIDE)


def _last_letter(text: str) -> str:
    """The last character without the marks on it; nothing where there is none."""
    for character in reversed(text):
        if not unicodedata.combining(character):
            return character
    return ""


def _joined(before: str, after: str) -> bool:
    """Whether two neighbours are letters of one word, as far as their script tells words apart by spaces."""
    return _has_edges(before) and _has_edges(after)


def _has_edges(character: str) -> bool:
    """Whether a character is a letter or a digit of a script that puts spaces between words."""
    if not character or unicodedata.category(character)[0] not in "LMN":
        return False
    # Half-width Katakana and the like have names of their own; what they stand for has the script's.
    name = unicodedata.name(unicodedata.normalize("NFKC", character)[0], "")
    return not name.startswith(_UNSPACED)
