"""Few-shot word translation (Wendler et al. 2024, arXiv 2402.10588; Dumas et al. 2025, arXiv 2411.08745).

    Deutsch: "König" - Italiano: "re"
    Deutsch: "Buch" - Italiano: "

The model is asked for one word. Patchscopes write what it holds for one concept into the prompt of another, in other
languages, so that what comes out tells the concept from the language.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from interp.errors import InterpError
from interp.positions import Position
from interp.prompts import POLICIES, encode
from pipeline.artifacts.tokens import Pair, Row, TaskData
from pipeline.config.paths import located
from pipeline.config.section import (
    LARGEST_COUNT,
    LARGEST_SEED,
    MISSING,
    ConfigError,
    bounded,
    chosen,
    nearest,
    passage,
)  # fmt: skip
from pipeline.config.task import TaskConfig
from pipeline.demo.lexicon import POLICIES as WORD_POLICIES
from pipeline.demo.lexicon import Concept, Lexicon, load_lexicon
from pipeline.tasks.build import (
    Answer,
    Answers,
    check_different,
    check_file_encoding,
    check_language,
    collide,
    configured_template,
    log,
    make_row,
)  # fmt: skip

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PatchIntoConfig", "TranslationConfig"]

BLANKS = ("source_name", "source_word", "target_name", "target_word")


@dataclass  # not frozen: OmegaConf cannot merge into a nested frozen dataclass
class PatchIntoConfig:
    """The prompts that a patchscope patches into (Dumas et al. 2025: the *target* prompts).

    Arguments:
        source_language: language of the word that they ask about.
        target_language: language that they ask for.
    """

    source_language: str = MISSING
    target_language: str = MISSING


@dataclass(frozen=True)
class TranslationConfig(TaskConfig):
    """Few-shot word translation (Wendler et al. 2024; Dumas et al. 2025).

    Arguments:
        kind: `translation`.
        lexicon: path of the lexicon file, or of a word list as its paper ships it: the table of Dumas et al., a file of
            Wendler et al. or the folder of theirs.
        encoding: of its text, as in `NextTokenConfig`.
        shared_words: what becomes of a word that two concepts have in one language: `drop` it from the one in which it
            is the lesser word, `keep` it in both, `refuse` the file. Pairs whose answers share a token are left out in
            any case.
        phrases: what becomes of a word with spaces in it: `keep`, `drop` or `refuse`.
        source_languages: languages in which the prompts give the word; with several, a patchscope can take their mean.
        target_language: language in which the prompts ask for the word.
        latent_languages: further languages whose words are measured (English in the papers).
        measure_source_language: also measure the words of the language that a prompt gives; a prompt is dropped where
            two of its groups share a token, so each group costs prompts. Wendler et al. measure the answer and English.
        patch_into: the prompts that a patchscope patches into; null: none.
        shots: solved lines before the question.
        template: one line; `{source_name}`, `{source_word}`, `{target_name}`, `{target_word}` are filled in. The
            question is the line up to the target word.
        pairs: how many (source concept, target concept) pairs at most; null: all.
        max_concepts: how many concepts at most; null: all.
        single_token_queries: keep only concepts whose query words are one token.
        target_policy: which tokens count as an answer: `first_token`, `all_prefixes` or `exact`.
        seed: of the shots and the pairs.
        depends_on: the file that the stage depends on, the lexicon.
    """

    file_key: ClassVar[str] = "lexicon"

    kind: str = "translation"
    lexicon: str = MISSING
    encoding: str = "auto"
    shared_words: str = chosen("drop", *WORD_POLICIES)
    phrases: str = chosen("keep", *WORD_POLICIES)
    source_languages: list[str] = field(default_factory=lambda: ["de"])
    target_language: str = MISSING
    latent_languages: list[str] = field(default_factory=list)
    measure_source_language: bool = True
    patch_into: PatchIntoConfig | None = None
    shots: int = bounded(5, 0, 1000)
    template: str = passage('{source_name}: "{source_word}" - {target_name}: "{target_word}"')
    pairs: int | None = bounded(200, 1, LARGEST_COUNT)
    max_concepts: int | None = bounded(None, 1, LARGEST_COUNT)
    single_token_queries: bool = False
    target_policy: str = chosen("first_token", *POLICIES)
    seed: int = bounded(0, 0, LARGEST_SEED)
    depends_on: str = MISSING

    def lacks_targets(self) -> str:
        """Why it makes no prompts to patch into; empty where it makes some."""
        return "no task.patch_into" if self.patch_into is None else ""

    def averaged(self) -> Sequence[str]:
        """The languages whose source prompts a pair has."""
        return self.source_languages

    @property
    def directions(self) -> list[tuple[str, str]]:
        """(from, into) of the translations that prompts ask for."""
        into = [] if self.patch_into is None else [(self.patch_into.source_language, self.patch_into.target_language)]
        return [*((source, self.target_language) for source in self.source_languages), *into]

    def check(self) -> None:
        """Check the settings against each other and against the input file; raises ConfigError."""
        check_file_encoding(self.encoding)
        lexicon = _read_lexicon(self, located(self.lexicon))
        if not self.source_languages:
            raise ConfigError("task.source_languages: expected at least one language, got none.")
        languages = [(f"task.source_languages[{i}]", code) for i, code in enumerate(self.source_languages)]
        languages += [("task.target_language", self.target_language)]
        languages += [(f"task.latent_languages[{i}]", code) for i, code in enumerate(self.latent_languages)]
        if self.patch_into is not None:
            languages += [("task.patch_into.source_language", self.patch_into.source_language)]
            languages += [("task.patch_into.target_language", self.patch_into.target_language)]
        for where, code in languages:
            check_language(where, code, lexicon.languages, self.lexicon)
        check_different("task.source_languages", self.source_languages)
        check_different("task.latent_languages", self.latent_languages)
        repetition = self.source_languages == [self.target_language] and self.patch_into is None  # Wendler et al. 2024
        if self.target_language in self.source_languages and not repetition:
            raise ConfigError(
                f"task.target_language: {self.target_language!r} is also one of task.source_languages "
                f"({', '.join(self.source_languages)}). Translation needs two languages, or, to repeat a word, that "
                "one source language and task.patch_into=null."
            )
        if self.patch_into is not None and self.patch_into.source_language == self.patch_into.target_language:
            raise ConfigError(
                f"task.patch_into: source_language and target_language are both {self.patch_into.target_language!r}. "
                "Translation needs two languages: change one of the two."
            )
        measured = [self.target_language] + ([self.patch_into.target_language] if self.patch_into else [])
        for code in self.latent_languages:
            if code in measured:
                raise ConfigError(
                    f"task.latent_languages: {code!r} is already measured as a target language, so every prompt would "
                    "collide with itself. Leave it out."
                )
        if self.measure_source_language and set(self.source_languages) <= set(self.latent_languages):
            raise ConfigError(
                f"task.latent_languages: {', '.join(self.latent_languages)} covers every source language, whose words "
                "are measured already, so every prompt would collide with itself. Leave one out."
            )
        fewest = min(len(lexicon.speaking(*pair)) for pair in self.directions)
        if self.shots >= fewest:
            raise ConfigError(
                f"task.shots: {self.shots} solved lines and a question need {self.shots + 1} concepts, and "
                f"{self.lexicon} has {fewest} with words in both languages. Lower task.shots."
            )
        if self.patch_into is not None and self.max_concepts == 1:
            raise ConfigError("task.max_concepts: a pair needs two different concepts, got 1. Raise it.")
        configured_template(self.template, answer="target_word", query="source_word", known=BLANKS)

    def make(self, tokenizer: PreTrainedTokenizerBase, context_length: int | None) -> TaskData:
        """Make prompts in every source language for every concept, target prompts, and collision-free pairs of both.

        Arguments:
            tokenizer: the model's.
            context_length: how many tokens the model reads at most; None: no limit is known.

        Raises:
            ConfigError: the lexicon cannot be read, a language is not in it, it has too few concepts, or the template
                is wrong.
            InterpError: a prompt is too long, or nothing is left after dropping.
        """
        return _Translation(self, tokenizer, context_length).make()


class _Translation:
    """One task in the making: the lexicon and the tokenizer, held together."""

    def __init__(
        self, config: TranslationConfig, tokenizer: PreTrainedTokenizerBase, context_length: int | None
    ) -> None:
        self.config, self.tokenizer, self.context_length = config, tokenizer, context_length
        self.lexicon = _lexicon(config)
        self.template = configured_template(config.template, answer="target_word", query="source_word", known=BLANKS)
        self.answers = Answers(tokenizer, config.target_policy)

    def make(self) -> TaskData:
        config = self.config
        concepts, counts = self._concepts()
        prompts = [
            self._row(f"prompts row {number}", concept, source, config.target_language)
            for number, (concept, source) in enumerate((c, s) for c in concepts for s in config.source_languages)
        ]
        counts["prompts"] = len(prompts)
        counts["prompts_colliding"] = colliding = sum(row.labels["collides"] == "yes" for row in prompts)
        groups = self._prompt_groups()
        if config.patch_into is None:
            if colliding == len(prompts):
                raise InterpError(
                    f"all {colliding} prompts were dropped: in each, two of the answer groups "
                    f"({', '.join(groups)}) share a token, so that their probabilities cannot be told apart. Choose "
                    "other languages, or task.target_policy=exact."
                )
            return self._told(TaskData(prompts, counts=counts, groups=groups))
        chosen = self._pairs(concepts, counts)
        asked = sorted({target for _, target, _ in chosen})  # only concepts that a pair needs
        into = config.patch_into
        targets = [
            self._row(f"targets row {number}", concepts[index], into.source_language, into.target_language)
            for number, index in enumerate(asked)
        ]
        row_of = {index: number for number, index in enumerate(asked)}
        per_concept = len(config.source_languages)
        pairs = [
            Pair(
                sources=list(range(source * per_concept, (source + 1) * per_concept)),
                target=row_of[target],
                labels={
                    "source_concept": concepts[source].id,
                    "target_concept": concepts[target].id,
                    "source_language": config.target_language,
                    "target_language": into.target_language,
                },
                answers={group: answer.token_ids for group, answer in answers.items()},
                words={group: answer.words for group, answer in answers.items()},
            )
            for source, target, answers in chosen
        ]
        counts["targets"] = len(targets)
        return self._told(TaskData(prompts, targets, pairs, counts, {**groups, **self._pair_groups()}))

    def _concepts(self) -> tuple[list[Concept], dict[str, int]]:
        """The concepts that are asked about, and what was dropped."""
        config, into = self.config, self.config.patch_into
        asked = config.directions
        measured = [config.target_language, *config.latent_languages]
        if into is not None:
            measured.append(into.target_language)
        if config.measure_source_language:
            measured += [source for source, _ in asked]
        needed = [*measured, *(language for pair in asked for language in pair)]
        spoken = self.lexicon.speaking(*needed)
        kept: list[Concept] = []
        wordless = split = over = 0
        for concept in spoken:
            if not all(self.answers(concept.words[language]).token_ids for language in measured):
                wordless += 1
            elif config.single_token_queries and not all(self._one_token(concept, *pair) for pair in asked):
                split += 1
            elif config.max_concepts is not None and len(kept) >= config.max_concepts:
                over += 1
            else:
                kept.append(concept)
        counts = {
            "concepts": len(self.lexicon.concepts),
            "concepts_without_words": len(self.lexicon.concepts) - len(spoken),
            "concepts_without_answer_tokens": wordless,
            "concepts_with_split_query": split,
            "concepts_over_limit": over,
            "concepts_kept": len(kept),
        }
        if len(kept) < (1 if into is None else 2):
            raise InterpError(
                f"expected at least {1 if into is None else 2} concepts, {len(kept)} of {len(self.lexicon.concepts)} "
                f"are left: {counts['concepts_without_words']} have no word in one of the languages, {wordless} have a "
                f"language without answer tokens by task.target_policy={config.target_policy}, {split} have a query "
                f"word of several tokens (task.single_token_queries={config.single_token_queries}), {over} are over "
                f"task.max_concepts={config.max_concepts}."
            )
        return kept, counts

    def _one_token(self, concept: Concept, source: str, target: str) -> bool:
        prompt, query = self._prompt(concept, source, target)
        encoded = encode(self.tokenizer, prompt, {"query": query})
        return len(Position.parse("query.all").resolve(len(encoded.input_ids), encoded.spans)) == 1

    def _row(self, where: str, concept: Concept, source: str, target: str) -> Row:
        prompt, query = self._prompt(concept, source, target)
        languages = {"answer": target, **self._measured(source, target)}
        return make_row(
            self.tokenizer,
            self.context_length,
            where=where,
            prompt=prompt,
            spans={"query": query},
            labels={"concept": concept.id, "source_language": source, "target_language": target},
            answers={group: self.answers(concept.words[language]) for group, language in languages.items()},
            languages=languages,
        )

    def _prompt(self, concept: Concept, source: str, target: str) -> tuple[str, tuple[int, int]]:
        """The prompt, and the characters of the word that it asks about.

        The shots are drawn from the whole lexicon by seed, languages and concept alone: no other setting changes them.
        """
        others = [other for other in self.lexicon.speaking(source, target) if other.id != concept.id]
        shots = random.Random(f"{self.config.seed} {source} {target} {concept.id}").sample(others, self.config.shots)
        prompt = self.template.few_shot(
            [self._values(shot, source, target) for shot in shots], self._values(concept, source, target)
        )
        return prompt.text, prompt.spans["query"]

    def _values(self, concept: Concept, source: str, target: str) -> dict[str, str]:
        return {
            "source_name": self.lexicon.languages[source],
            "source_word": concept.words[source][0],
            "target_name": self.lexicon.languages[target],
            "target_word": concept.words[target][0],
        }

    def _measured(self, source: str, target: str) -> dict[str, str]:
        """The groups of a prompt beside its answer -> their languages."""
        # Where all prompts repeat the word in its own language, its input is its answer.
        repetition = self.config.source_languages == [self.config.target_language]
        given = {"source_language": source} if self.config.measure_source_language and not repetition else {}
        return given | {f"latent_{language}": language for language in self.config.latent_languages}

    def _pairs(self, concepts: Sequence[Concept], counts: dict[str, int]) -> list[tuple[int, int, dict[str, Answer]]]:
        """Pairs of different concepts in an order that the seed decides: those without collision, from the first on."""
        config = self.config
        languages = self._pair_languages()
        size = len(concepts)
        order = random.Random(f"{config.seed} pairs").sample(range(size * (size - 1)), size * (size - 1))
        chosen: list[tuple[int, int, dict[str, Answer]]] = []
        dropped = 0
        for number in order:
            source, target = divmod(number, size - 1)
            target += target >= source  # the diagonal, a concept with itself, is not numbered
            role = {"source": concepts[source], "target": concepts[target]}
            answers = {group: self.answers(role[who].words[language]) for group, (who, language) in languages.items()}
            if collide(answer.token_ids for answer in answers.values()):
                dropped += 1
                continue
            chosen.append((source, target, answers))
            if len(chosen) == config.pairs:
                break
        counts["pairs_possible"] = len(order)
        counts["pairs_colliding"] = dropped
        counts["pairs"] = len(chosen)
        if not chosen:
            raise InterpError(
                f"all {dropped} pairs of {size} concepts were dropped: in each, two of the answer groups "
                f"({', '.join(languages)}) share a token, so that their probabilities cannot be told apart. Choose "
                "languages whose words begin differently, task.target_policy=exact, or fewer task.latent_languages."
            )
        if config.pairs is not None and len(chosen) < config.pairs:
            log.info("%d pairs are without collisions, fewer than task.pairs=%d", len(chosen), config.pairs)
        return chosen

    def _pair_languages(self) -> dict[str, tuple[str, str]]:
        """The groups of a pair -> (whose concept, in which language)."""
        into = self.config.patch_into
        assert into is not None
        target, source = into.target_language, self.config.target_language
        groups = {
            "target_concept_target_language": ("target", target),
            "target_concept_source_language": ("target", source),
            "source_concept_source_language": ("source", source),
            "source_concept_target_language": ("source", target),
        }
        if source == target:
            groups = {name: value for name, value in groups.items() if name.endswith("_target_language")}
        for language in self.config.latent_languages:
            groups[f"source_concept_{language}"] = ("source", language)
            groups[f"target_concept_{language}"] = ("target", language)
        return groups

    def _prompt_groups(self) -> dict[str, str]:
        label = {"answer": f"concept in the target language ({self.config.target_language})"}
        for group, language in self._measured("", "").items():
            label[group] = f"concept in {self._named(language)}" if language else "concept in the prompt's language"
        return label

    def _pair_groups(self) -> dict[str, str]:
        labels = {}
        for group, (which, language) in self._pair_languages().items():
            side = "target" if group.endswith("_target_language") else "source"
            own = f"the {side} language ({language})" if group.endswith("_language") else self._named(language)
            labels[group] = f"{which} concept in {own}"
        return labels

    def _named(self, language: str) -> str:
        return f"{self.lexicon.languages[language]} ({language})"

    def _told(self, data: TaskData) -> TaskData:
        counts = {**data.counts, "words_without_tokens": len(self.answers.unusable)}
        return replace(data, counts=counts, notes=self.lexicon.notes, read_as=self.lexicon.written)


def _read_lexicon(config: TranslationConfig, path: str | Path) -> Lexicon:
    try:
        return load_lexicon(path, config.encoding, shared_words=config.shared_words, phrases=config.phrases)
    except (ValueError, OSError) as error:
        raise ConfigError(f"task.lexicon: {error}") from None


def _lexicon(config: TranslationConfig) -> Lexicon:
    """The lexicon, checked against the config."""
    lexicon = _read_lexicon(config, config.lexicon)
    settings = {"source_languages": config.source_languages, "target_language": [config.target_language]}
    settings["latent_languages"] = config.latent_languages
    if config.patch_into is not None:
        settings["patch_into.source_language"] = [config.patch_into.source_language]
        settings["patch_into.target_language"] = [config.patch_into.target_language]
    for name, languages in settings.items():
        for language in languages:
            if language not in lexicon.languages:
                raise ConfigError(
                    f"task.{name}: {config.lexicon} has no language {language!r}.{nearest(language, lexicon.languages)}"
                )
        if len(set(languages)) < len(languages):
            raise ConfigError(f"task.{name}: expected different languages, got {languages}.")
    if not config.source_languages:
        raise ConfigError("task.source_languages: expected at least one language, got none.")
    for language in config.latent_languages:
        if language in [target for _, target in config.directions]:
            raise ConfigError(
                f"task.latent_languages: {language!r} is a language that the prompts ask for, which is measured "
                "anyway. Leave it out."
            )
    fewest = min(len(lexicon.speaking(*pair)) for pair in config.directions)
    if not 0 <= config.shots < fewest:
        raise ConfigError(
            f"task.shots: expected 0 to {fewest - 1}, since {config.lexicon} has {fewest} concepts with words in both "
            f"languages and a prompt never shows the one that it asks about; got {config.shots}."
        )
    return lexicon
