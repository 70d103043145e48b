"""Few-shot prompts of the papers on multilingual models: translation, repetition, cloze and definitions.

prompt = translation_prompt([("König", "re")], "Buch", "Deutsch", "Italiano")
prompt.text     # 'Deutsch: "König" - Italiano: "re"\nDeutsch: "Buch" - Italiano: "'
prompt.spans    # `query`: Buch; `question`: the last line

Dumas et al. 2025, "Separating Tongue from Thought", arXiv 2411.08745.
Wendler et al. 2024, "Do Llamas Work in English?", arXiv 2402.10588.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import Formatter

from interp.errors import InterpError, nearest
from interp.prompts.prompt import Prompt

__all__ = [
    "BLANK",
    "LANGUAGE_NAMES",
    "Template",
    "cloze_prompt",
    "definition_prompt",
    "repetition_prompt",
    "translation_prompt",
]

BLANK = "___"  # stands for the masked word of a cloze sentence

# As the papers' prompts name the languages, each in itself.
LANGUAGE_NAMES: dict[str, str] = {
    "de": "Deutsch",
    "en": "English",
    "es": "Español",
    "et": "Eesti",
    "fi": "Suomi",
    "fr": "Français",
    "hi": "हिन्दी",
    "it": "Italiano",
    "ja": "日本語",
    "ko": "한국어",
    "nl": "Nederlands",
    "ru": "Русский",
    "zh": "中文",
}


class Template:
    """One line of a few-shot prompt, with named blanks.

    Arguments:
        text: the line; `{name}` is a blank, `{{` and `}}` are braces.
        answer: the blank that the model fills: the question is the line up to it.
        query: the blank that the question is about; it must stand before the answer.
        known: every blank that there may be.

    Raises:
        InterpError: a blank is unknown, missing, out of order, or has a width or a conversion.
    """

    def __init__(self, text: str, *, answer: str, query: str, known: Sequence[str]) -> None:
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise InterpError(f"{text!r} is not a template ({error}). Write a brace itself as '{{{{'.") from None
        for _, blank, width, conversion in parsed:
            if width or conversion:
                written = f"{blank}{f'!{conversion}' if conversion else ''}{f':{width}' if width else ''}"
                raise InterpError(
                    f"{{{written}}} in {text!r}: a blank is its name alone, without width or conversion. "
                    f"Write {{{blank}}}."
                )
        self._parts = [(literal, blank) for literal, blank, _, _ in parsed]
        blanks = [blank for _, blank in self._parts if blank is not None]
        for blank in blanks:
            if blank not in known:
                raise InterpError(f"unknown blank {{{blank}}} in {text!r}.{nearest(blank, known)}")
        for blank in (answer, query):
            if blank not in blanks:
                raise InterpError(f"expected {{{blank}}} in the template, got {text!r}.")
        if query not in blanks[: blanks.index(answer)]:
            raise InterpError(f"expected {{{query}}} before {{{answer}}}, got {text!r}.")
        self._answer, self._query = answer, query

    def line(self, values: Mapping[str, str]) -> str:
        """The solved line.

        Arguments:
            values: what each blank is filled with.
        """
        return "".join(literal + (values[blank] if blank else "") for literal, blank in self._parts)

    def question(self, values: Mapping[str, str]) -> Prompt:
        """The line up to the answer.

        Arguments:
            values: what each blank is filled with.

        Returns:
            The prompt with the spans `query`, the (last) query blank, and `question`, all of it.
        """
        text, query = "", (0, 0)
        for literal, blank in self._parts:
            text += literal
            if blank == self._answer:
                break
            if blank == self._query:
                query = (len(text), len(text) + len(values[blank]))
            text += values[blank] if blank else ""
        return Prompt(text, spans={"query": query, "question": (0, len(text))})

    def few_shot(self, shots: Sequence[Mapping[str, str]], question: Mapping[str, str]) -> Prompt:
        """Solved lines, then the question.

        Arguments:
            shots: what the blanks of each solved line are filled with.
            question: what those of the question are filled with.

        Returns:
            The prompt with the spans `query` and `question`.
        """
        before = "".join(self.line(shot) + "\n" for shot in shots)
        asked = self.question(question)
        spans = {name: (start + len(before), stop + len(before)) for name, (start, stop) in asked.spans.items()}
        return Prompt(before + asked.text, spans=spans)


_TRANSLATION = Template(
    '{source_name}: "{source}" - {target_name}: "{target}"',
    answer="target",
    query="source",
    known=("source_name", "source", "target_name", "target"),
)
_DEFINITION = Template('"{definition}" - "{word}"', answer="word", query="definition", known=("definition", "word"))
_CLOZE = Template('{sentence} "{word}".', answer="word", query="sentence", known=("sentence", "word"))


def translation_prompt(
    shots: Sequence[tuple[str, str]],
    word: str,
    source_language: str,
    target_language: str,
    *,
    cut_after_word: bool = False,
) -> Prompt:
    """Few-shot word translation (Wendler et al. 2024 with 4 shots, Dumas et al. 2025 with 5).

        Deutsch: "König" - Italiano: "re"
        Deutsch: "Buch" - Italiano: "

    Arguments:
        shots: (word, its translation) of the solved lines.
        word: what the question asks about.
        source_language: name of the word's language, as in `LANGUAGE_NAMES`.
        target_language: name of the language that is asked for.
        cut_after_word: end right after the word, `Deutsch: "Buch`: where Dumas et al. read the concept that they patch.

    Returns:
        The prompt with the spans `query`, the word, and `question`, the last line.
    """
    names = {"source_name": source_language, "target_name": target_language}
    prompt = _TRANSLATION.few_shot(
        [{**names, "source": given, "target": translated} for given, translated in shots], {**names, "source": word}
    )
    if not cut_after_word:
        return prompt
    stop = prompt.spans["query"][1]
    spans = {**prompt.spans, "question": (prompt.spans["question"][0], stop)}
    return replace(prompt, text=prompt.text[:stop], spans=spans)


def repetition_prompt(shots: Sequence[str], word: str, language: str) -> Prompt:
    """Few-shot repetition: translation from a language into itself (Wendler et al. 2024, with 4 shots).

        Français: "roi" - Français: "roi"
        Français: "livre" - Français: "

    Arguments:
        shots: the words of the solved lines.
        word: what the question asks about.
        language: its name, as in `LANGUAGE_NAMES`.

    Returns:
        The prompt with the spans `query`, the word, and `question`, the last line.
    """
    return translation_prompt([(shot, shot) for shot in shots], word, language, language)


def cloze_prompt(shots: Sequence[tuple[str, str]], sentence: str) -> Prompt:
    """Few-shot cloze: a sentence that describes a masked word (Wendler et al. 2024, with 2 shots).

        A "___" is read page by page. Answer: "book".
        A "___" carries people over water. Answer: "

    Arguments:
        shots: (sentence, its word) of the solved lines.
        sentence: what the question asks about. All sentences end in the word for "answer" in their language and a
            colon, and have one `___`.

    Returns:
        The prompt with the spans `query`, the sentence, `blank`, the `___` in it, and `question`, the last line.

    Raises:
        InterpError: the sentence does not have one `___`.
    """
    if sentence.count(BLANK) != 1:
        raise InterpError(f"expected one {BLANK!r} in the sentence, got {sentence!r}.")
    prompt = _CLOZE.few_shot([{"sentence": shown, "word": word} for shown, word in shots], {"sentence": sentence})
    blank = prompt.spans["query"][0] + sentence.index(BLANK)
    return replace(prompt, spans={**prompt.spans, "blank": (blank, blank + len(BLANK))})


def definition_prompt(shots: Sequence[tuple[str, str]], definition: str) -> Prompt:
    """Few-shot naming of what is defined, in any language (the cloze of Dumas et al. 2025, with 5 shots).

        "a male ruler" - "king"
        "bound printed pages" - "

    Arguments:
        shots: (definition, its word) of the solved lines.
        definition: what the question asks about.

    Returns:
        The prompt with the spans `query`, the definition, and `question`, the last line.
    """
    return _DEFINITION.few_shot(
        [{"definition": shown, "word": word} for shown, word in shots], {"definition": definition}
    )
