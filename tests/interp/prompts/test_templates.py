"""The papers' prompts, letter by letter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.prompts import (
    LANGUAGE_NAMES,
    Prompt,
    Template,
    cloze_prompt,
    definition_prompt,
    repetition_prompt,
    translation_prompt,
)

words = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
quick = settings(max_examples=50, deadline=None, derandomize=True)


def marked(prompt: Prompt) -> dict[str, str]:
    return {name: prompt.text[start:stop] for name, (start, stop) in prompt.spans.items()}


def test_translation_as_in_the_papers() -> None:
    prompt = translation_prompt([("cinq", "五"), ("cœur", "心")], "nuage", LANGUAGE_NAMES["fr"], LANGUAGE_NAMES["zh"])
    assert prompt.text == ('Français: "cinq" - 中文: "五"\nFrançais: "cœur" - 中文: "心"\nFrançais: "nuage" - 中文: "')
    assert marked(prompt) == {"query": "nuage", "question": 'Français: "nuage" - 中文: "'}
    assert prompt.targets == {}
    assert prompt.add_special_tokens


@quick
@given(st.lists(st.tuples(words, words), max_size=5), words, words, words)
def test_translation_of_any_words(shots: list[tuple[str, str]], word: str, source: str, target: str) -> None:
    prompt = translation_prompt(shots, word, source, target)
    text = ""
    for given_word, translated in shots:
        text += source + ': "' + given_word + '" - ' + target + ': "' + translated + '"\n'
    last = source + ': "' + word + '" - ' + target + ': "'
    assert prompt.text == text + last
    start = len(text) + len(source) + 3
    assert prompt.spans == {"query": (start, start + len(word)), "question": (len(text), len(text) + len(last))}

    cut = translation_prompt(shots, word, source, target, cut_after_word=True)
    assert cut.text == text + source + ': "' + word
    assert cut.spans == {"query": (start, start + len(word)), "question": (len(text), start + len(word))}


def test_repetition_is_translation_into_the_same_language() -> None:
    prompt = repetition_prompt(["roi", "chien"], "livre", "Français")
    assert prompt.text == (
        'Français: "roi" - Français: "roi"\nFrançais: "chien" - Français: "chien"\nFrançais: "livre" - Français: "'
    )
    assert marked(prompt) == {"query": "livre", "question": 'Français: "livre" - Français: "'}


def test_cloze_as_in_the_paper() -> None:
    prompt = cloze_prompt(
        [('Le chiffre qui vient après quatre est "___". Réponse :', "cinq"), ('Le "___" bat. Réponse :', "cœur")],
        'Un "___" est une masse de vapeur. Réponse :',
    )
    assert prompt.text == (
        'Le chiffre qui vient après quatre est "___". Réponse : "cinq".\n'
        'Le "___" bat. Réponse : "cœur".\n'
        'Un "___" est une masse de vapeur. Réponse : "'
    )
    assert marked(prompt) == {
        "query": 'Un "___" est une masse de vapeur. Réponse :',
        "question": 'Un "___" est une masse de vapeur. Réponse : "',
        "blank": "___",
    }
    assert prompt.spans["blank"][0] == prompt.text.rindex("___")
    with pytest.raises(InterpError, match="expected one '___' in the sentence"):
        cloze_prompt([], "Un nuage. Réponse :")


def test_definitions() -> None:
    prompt = definition_prompt([("a male ruler", "king")], "bound printed pages")
    assert prompt.text == '"a male ruler" - "king"\n"bound printed pages" - "'
    assert marked(prompt) == {"query": "bound printed pages", "question": '"bound printed pages" - "'}


def test_languages_are_named_in_themselves() -> None:
    assert len(LANGUAGE_NAMES) == 13
    assert [LANGUAGE_NAMES[code] for code in ("de", "et", "fi", "hi", "ko", "nl")] == [
        "Deutsch", "Eesti", "Suomi", "हिन्दी", "한국어", "Nederlands",
    ]  # fmt: skip


def test_own_template_with_braces_and_a_blank_used_twice() -> None:
    template = Template("{{{a}}} {a}={b} {b}!", answer="b", query="a", known=("a", "b"))
    assert template.line({"a": "{x}", "b": "y"}) == "{{x}} {x}=y y!"
    prompt = template.few_shot([{"a": "1", "b": "2"}], {"a": "{x}"})
    assert prompt.text == "{1} 1=2 2!\n{{x}} {x}="
    assert prompt.spans == {"query": (17, 20), "question": (11, 21)}  # the last of the two
    assert template.question({"a": "z"}).text == "{z} z="


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a} {b", "is not a template"),
        ("{a}", r"expected \{b\} in the template"),
        ("{b}", r"expected \{a\} in the template"),
        ("{b} {a}", r"expected \{a\} before \{b\}"),
        ("{a} {bb} {b}", r"unknown blank \{bb\}.*Did you mean 'b'"),
    ],
)
def test_wrong_templates_are_refused(text: str, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        Template(text, answer="b", query="a", known=("a", "b"))
