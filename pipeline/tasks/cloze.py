"""Cloze: complete a sentence that describes a masked word (Wendler et al. 2024, arXiv 2402.10588).

A "___" is read page by page. Answer: "book"
A "___" carries people over water. Answer: "
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from interp.errors import InterpError, nearest
from interp.prompts.templates import BLANK
from pipeline.artifacts.tokens import Row, TaskData
from pipeline.config.base import ConfigError
from pipeline.config.task import ClozeConfig
from pipeline.tables.sentences import Sentence, read_sentences
from pipeline.tables.table import TableError
from pipeline.tasks.build import Answers, configured_template, make_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["make_cloze"]


def make_cloze(config: ClozeConfig, tokenizer: PreTrainedTokenizerBase, context_length: int | None) -> TaskData:
    """One prompt for every concept that has a sentence in the language and words in all latent languages.

    Spans: `query`, the last sentence, and `blank`, the `___` in it.

    Arguments:
        config: the task. Concepts are taken in the file's order.
        tokenizer: the model's.
        context_length: how many tokens the model reads at most; None: no limit is known.

    Raises:
        ConfigError: the sentences cannot be read, a language is not among them, they are too few, or the template is
            wrong.
        InterpError: a prompt is too long, or nothing is left after dropping.
    """
    template = configured_template(config.template, answer="word", query="sentence", known=("sentence", "word"))
    by_language: dict[str, dict[str, Sentence]] = {}
    try:
        read = read_sentences(config.sentences, config.encoding)
    except TableError as error:
        raise ConfigError(f"task.sentences: {error}") from None
    for sentence in read:
        by_language.setdefault(sentence.language, {})[sentence.concept] = sentence
    for name, language in [("language", config.language), *(("latent_languages", x) for x in config.latent_languages)]:
        if language not in by_language:
            raise ConfigError(
                f"task.{name}: {config.sentences} has no language {language!r}.{nearest(language, by_language)}"
            )
    if len({config.language, *config.latent_languages}) <= len(config.latent_languages):
        raise ConfigError(
            f"task.latent_languages: expected different languages beside task.language={config.language}, "
            f"got {config.latent_languages}."
        )
    sentences = by_language[config.language]
    if not 0 <= config.shots < len(sentences):
        raise ConfigError(
            f"task.shots: expected 0 to {len(sentences) - 1}, since {config.sentences} has {len(sentences)} sentences "
            f"in {config.language!r} and a prompt never shows the one that it asks about; got {config.shots}."
        )
    answers = Answers(tokenizer, config.target_policy)
    groups = {"answer": config.language} | {f"latent_{language}": language for language in config.latent_languages}
    prompts: list[Row] = []
    untranslated = wordless = over = 0
    for concept, sentence in sentences.items():
        if not all(concept in by_language[language] for language in config.latent_languages):
            untranslated += 1
            continue
        accepted = {group: answers(by_language[language][concept].words) for group, language in groups.items()}
        if not all(answer.token_ids for answer in accepted.values()):
            wordless += 1
            continue
        if config.max_concepts is not None and len(prompts) >= config.max_concepts:
            over += 1
            continue
        # The shots depend on seed, language and concept alone: no other setting changes them.
        others = [other for other in sentences.values() if other.concept != concept]
        shots = random.Random(f"{config.seed} {config.language} {concept}").sample(others, config.shots)
        values = [{"sentence": shown.text, "word": shown.words[0]} for shown in (*shots, sentence)]
        prompt = template.few_shot(values[:-1], values[-1])
        query = prompt.spans["query"]
        blank = query[0] + sentence.text.index(BLANK)
        prompts.append(
            make_row(
                tokenizer,
                context_length,
                where=f"prompts row {len(prompts)}",
                prompt=prompt.text,
                spans={"query": query, "blank": (blank, blank + len(BLANK))},
                labels={"concept": concept, "language": config.language},
                answers=accepted,
            )
        )
    colliding = sum(row.labels["collides"] == "yes" for row in prompts)
    counts = {
        "concepts": len(sentences),
        "concepts_without_latent_words": untranslated,
        "concepts_without_answer_tokens": wordless,
        "concepts_over_limit": over,
        "concepts_kept": len(prompts),
        "prompts": len(prompts),
        "prompts_colliding": colliding,
        "words_without_tokens": len(answers.unusable),
    }
    if colliding == len(prompts):
        raise InterpError(
            f"of {len(sentences)} concepts none is left: {untranslated} have no words in a latent language, {wordless} "
            f"have a language without answer tokens by task.target_policy={config.target_policy}, {over} are over "
            f"task.max_concepts={config.max_concepts}, and in {colliding} the answer groups share a token. "
            "Choose other languages, or another task.target_policy."
        )
    labels = {"answer": f"concept in the language of the sentence ({config.language})"}
    labels |= {f"latent_{language}": f"concept in {language}" for language in config.latent_languages}
    return TaskData(prompts, counts=counts, groups=labels)
