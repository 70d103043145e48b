"""Target prompts of Patchscopes (Ghandeharioun et al. 2024, arXiv 2401.06102).

Each asks something of its placeholder: an attribute, a description, or to say it again (repeat and identity prompts).

TargetPrompt(attribute_prompt("country_currency"), "subject.last")  # `The official currency of x`
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from interp.errors import InterpError, nearest
from interp.prompts.prompt import Prompt

__all__ = [
    "ATTRIBUTES",
    "DESCRIBED_ENTITIES",
    "IDENTITY_PROMPTS",
    "REPEATED_WORDS",
    "attribute_prompt",
    "entity_description_prompt",
    "few_shot_prompt",
    "identity_prompt",
    "repeat_prompt",
    "token_identity_prompt",
]


DESCRIBED_ENTITIES: tuple[tuple[str, str], ...] = (
    ("Syria", "Country in the Middle East"),
    ("Leonardo DiCaprio", "American actor"),
    ("Samsung", "South Korean multinational major appliance and consumer electronics corporation"),
)

# Relation -> the question, as in the paper's data: 8 of common sense, then 14 of facts. The subject always stands last.
ATTRIBUTES: dict[str, str] = {
    "fruit_inside_color": "On the inside, the color of",
    "fruit_outside_color": "On the outside, the color of",
    "object_superclass": "Among the superclasses of animal, bird, fish, vegetable, flower, fruit, the superclass of",
    "substance_phase": "At room temperature, the phase of matter of",
    "task_done_by_person": "The professional role most suited to handle",
    "task_done_by_tool": "The tool that is used for",
    "word_sentiment": "Among positive, negative, neutral, the sentiment of",
    "work_location": "The place of work where you can usually find a",
    "company_ceo": "The name of the CEO of",
    "country_capital_city": "The capital city of",
    "country_currency": "The official currency of",
    "country_largest_city": "The largest city in",
    "food_from_country": "The country of origin for",
    "person_father": "Name of father of",
    "person_mother": "Name of mother of",
    "person_plays_position_in_sport": "In their sport, the position played by",
    "person_plays_pro_sport": "The professional sport played by",
    "pokemon_evolutions": "The evolved form of",
    "product_by_company": "The company which developed",
    "star_constellation": "The name of the constellation including",
    "superhero_archnemesis": "The name of the superhero archnemesis of",
    "superhero_person": "Secret identity of",
}


def token_identity_prompt(words: Sequence[str] = ("cat", "1135", "hello"), placeholder: str = "?") -> Prompt:
    r"""Few-shot token identity, to read the next token off a hidden state.

    The default is `cat -> cat\n1135 -> 1135\nhello -> hello\n?`.

    Arguments:
        words: the words that are repeated.
        placeholder: what is replaced.

    Returns:
        The prompt, with the span `placeholder`.

    Raises:
        InterpError: the placeholder is blank.
    """
    return repeat_prompt(words, " -> ", "\n", placeholder)


def few_shot_prompt(
    examples: Sequence[tuple[str, str]], relation: str = ": ", separator: str = "\n", placeholder: str = "x"
) -> Prompt:
    """Examples of what a model should say of the placeholder, which stands last.

    Arguments:
        examples: (what is asked of, what is said of it).
        relation: between the two.
        separator: between examples.
        placeholder: what is replaced.

    Returns:
        The prompt, with the span `placeholder`.

    Raises:
        InterpError: the placeholder is blank.
    """
    before = "".join(f"{asked}{relation}{said}{separator}" for asked, said in examples)
    return _ending(before, placeholder, "placeholder")


def entity_description_prompt(
    described: Sequence[tuple[str, str]] = DESCRIBED_ENTITIES, placeholder: str = "x"
) -> Prompt:
    """Few-shot description of entities, to see when a model has resolved a name: `Syria: Country in ..., ..., x`.

    Arguments:
        described: (entity, description).
        placeholder: what is replaced.

    Returns:
        The prompt, with the span `placeholder`.

    Raises:
        InterpError: the placeholder is blank.
    """
    return few_shot_prompt(described, ": ", ", ", placeholder)


def attribute_prompt(relation: str, subject: str = "x") -> Prompt:
    """The question for an attribute of its last word.

    With the placeholder it is the target prompt of a patchscope, with a real subject the baseline without a patch.

    Arguments:
        relation: a key of `ATTRIBUTES`.
        subject: the placeholder that is replaced, or whom the question is about.

    Returns:
        The prompt, with the span `subject`.

    Raises:
        InterpError: there is no such relation, or the subject is blank.
    """
    if relation not in ATTRIBUTES:
        raise InterpError(f"no attribute is called {relation!r}.{nearest(relation, ATTRIBUTES)}")
    return _ending(ATTRIBUTES[relation] + " ", subject, "subject")


def _ending(before: str, last: str, span: str) -> Prompt:
    if not last.strip():
        raise InterpError(f"{span}: expected a word at the end of the prompt, got {last!r}.")
    return Prompt(before + last, spans={span: (len(before), len(before) + len(last))})


def identity_prompt(name_or_text: str) -> str:
    """The text of an identity prompt.

    Arguments:
        name_or_text: a key of `IDENTITY_PROMPTS`, or the user's own prompt.

    Returns:
        The prompt; the user's own text unchanged.

    Raises:
        InterpError: the text is empty, or one word that is nearly one of the names.
    """
    if name_or_text in IDENTITY_PROMPTS:
        return IDENTITY_PROMPTS[name_or_text]
    if not name_or_text.strip():
        raise InterpError(f"expected an identity prompt, got {name_or_text!r}.{nearest('', IDENTITY_PROMPTS)}")
    misspelt = len(name_or_text.split()) == 1 and get_close_matches(name_or_text, IDENTITY_PROMPTS, cutoff=0.6)
    if misspelt:
        raise InterpError(f"no identity prompt is called {name_or_text!r}.{nearest(name_or_text, IDENTITY_PROMPTS)}")
    return name_or_text


REPEATED_WORDS = ("king", "1135", "hello")


def repeat_prompt(
    words: Sequence[str] = REPEATED_WORDS, relation: str = " ", separator: str = "\n", placeholder: str = "?"
) -> Prompt:
    r"""Words that are each written twice, and a placeholder that is written once.

    The default is `king king\n1135 1135\nhello hello\n?`.

    Arguments:
        words: the words.
        relation: between a word and its repetition.
        separator: between words.
        placeholder: what stands at the end, to be replaced.

    Returns:
        The prompt, with the span `placeholder`.

    Raises:
        InterpError: the placeholder is blank, or `words` is one text.
    """
    if isinstance(words, str):
        raise InterpError(f"expected several words, got one text, {words!r}. Put it in a list.")
    if not placeholder.strip():
        raise InterpError(f"expected a placeholder, the token that is replaced, got {placeholder!r}.")
    before = "".join(f"{word}{relation}{word}{separator}" for word in words)
    return Prompt(before + placeholder, spans={"placeholder": (len(before), len(before) + len(placeholder))})


# Each of the three is in use somewhere, and they give different numbers, so a result has to say which one it used.
IDENTITY_PROMPTS: dict[str, str] = {
    "king": repeat_prompt(("king", "1135", "hello")).text,
    "cat": repeat_prompt(("cat", "1135", "hello"), relation=" -> ").text,
    "cat_dog": repeat_prompt(("cat", "dog", "1234", "hello"), separator=" ").text,
}
