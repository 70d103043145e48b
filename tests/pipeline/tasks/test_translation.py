"""Translation prompts and pairs against plain loops over the lexicon."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from interp.errors import InterpError
from pipeline.artifacts.tokens import TaskData
from pipeline.config.section import ConfigError
from pipeline.tasks import make
from pipeline.tasks.translation import PatchIntoConfig, TranslationConfig
from tests.interp.prompts.algorithms import algorithm, words
from tests.tiny import tiny_tokenizer

LEXICON: dict[str, Any] = {
    "languages": {"en": "English", "fr": "Français", "de": "Deutsch", "it": "Italiano", "es": "Español"},
    "concepts": [
        {"id": "book", "words": {"en": ["book"], "fr": ["livre"], "de": ["Buch"], "it": ["libro"], "es": ["libro"]}},
        {"id": "dog", "words": {"en": ["dog"], "fr": ["chien"], "de": ["Hund"], "it": ["cane"], "es": ["perro"]}},
        {
            "id": "sun",
            "words": {"en": ["sun"], "fr": ["soleil"], "de": ["Sonne"], "it": ["sole"], "es": ["astro", "sol"]},
        },
        {"id": "king", "words": {"en": ["king"], "fr": ["roi"], "de": ["König"], "it": ["re"], "es": ["monarca"]}},
        {"id": "milk", "words": {"en": ["milk"], "fr": ["lait"], "de": ["Milch"], "it": ["latte"], "es": ["leche"]}},
        {"id": "house", "words": {"en": ["house"], "fr": ["maison"], "de": ["Haus"], "it": ["casa"], "es": ["hogar"]}},
        {"id": "water", "words": {"en": ["water"], "fr": ["eau"], "de": ["Wasser"], "it": ["acqua"], "es": ["linfa"]}},
        {"id": "fire", "words": {"en": ["fire"], "fr": ["feu"], "de": ["Brand"], "it": ["incendio"], "es": ["quema"]}},
    ],
}
WORDS: dict[str, dict[str, list[str]]] = {c["id"]: c["words"] for c in LEXICON["concepts"]}


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("lexicon") / "lexicon.json"
    path.write_text(json.dumps(LEXICON), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def config(path: str, **changes: Any) -> TranslationConfig:
    standard: dict[str, Any] = dict(
        lexicon=path, source_languages=["de", "fr"], target_language="it", latent_languages=["en"],
        patch_into=PatchIntoConfig("fr", "es"), shots=3, pairs=None, depends_on=path,
    )  # fmt: skip
    return TranslationConfig(**(standard | changes))


def first_tokens(tokenizer: PreTrainedTokenizerFast, accepted: list[str]) -> set[int]:
    """A byte-level tokenizer reads a word alone as it does inside a text. A space alone is no answer."""
    variants = [variant for word in accepted for variant in (word, " " + word)]
    first = {tokenizer.encode(variant, add_special_tokens=False)[0] for variant in variants}
    return first - set(tokenizer.encode(" ", add_special_tokens=False))


def check_prompt(prompt: str, concept: str, source: str, target: str, shots: int) -> None:
    names = LEXICON["languages"]
    *solved, question = prompt.split("\n")
    assert question == f'{names[source]}: "{WORDS[concept][source][0]}" - {names[target]}: "'
    lines = {
        f'{names[source]}: "{known[source][0]}" - {names[target]}: "{known[target][0]}"': other
        for other, known in WORDS.items()
    }
    asked = [lines[line] for line in solved]
    assert len(set(asked)) == len(asked) == shots
    assert concept not in asked


def test_prompts_are_few_shot_questions_with_their_answers(lexicon: str, tokenizer: PreTrainedTokenizerFast) -> None:
    data = make(config(lexicon), tokenizer, 256)
    asked = list(itertools.product(WORDS, ["de", "fr"]))
    assert [(row.labels["concept"], row.labels["source_language"]) for row in data.prompts] == asked
    for row, (concept, source) in zip(data.prompts, asked, strict=True):
        check_prompt(row.prompt, concept, source, "it", shots=3)
        assert row.input_ids == tokenizer(row.prompt)["input_ids"]
        start, stop = row.spans["query"]
        assert tokenizer.decode(row.input_ids[start:stop]) == WORDS[concept][source][0]
        assert tokenizer.decode(row.input_ids[stop:]) == '" - Italiano: "'
        expected = {"answer": "it", "source_language": source, "latent_en": "en"}
        tokens = {group: first_tokens(tokenizer, WORDS[concept][language]) for group, language in expected.items()}
        assert {group: set(ids) for group, ids in row.answers.items()} == tokens
        assert list(row.answers) == list(expected)
        assert row.words["answer"] == WORDS[concept]["it"]
        shared = any(a & b for a, b in itertools.combinations(tokens.values(), 2))
        assert row.labels["collides"] == ("yes" if shared else "no")
    assert data.counts["prompts"] == 16
    assert data.counts["prompts_colliding"] == sum(row.labels["collides"] == "yes" for row in data.prompts)


def test_a_word_measured_twice_is_no_collision(lexicon: str, tokenizer: PreTrainedTokenizerFast) -> None:
    data = make(config(lexicon, source_languages=["en"], latent_languages=["en"]), tokenizer, 256)
    free = 0
    for row in data.prompts:
        assert row.answers["source_language"] == row.answers["latent_en"]
        shared = set(row.answers["answer"]) & set(row.answers["latent_en"])
        assert row.labels["collides"] == ("yes" if shared else "no")
        free += not shared
    assert free


def test_pairs_are_all_that_do_not_collide(lexicon: str, tokenizer: PreTrainedTokenizerFast) -> None:
    data = make(config(lexicon), tokenizer, 256)
    order = list(WORDS)
    expected = {}
    for source, target in itertools.permutations(WORDS, 2):
        groups = {
            "target_concept_target_language": first_tokens(tokenizer, WORDS[target]["es"]),
            "target_concept_source_language": first_tokens(tokenizer, WORDS[target]["it"]),
            "source_concept_source_language": first_tokens(tokenizer, WORDS[source]["it"]),
            "source_concept_target_language": first_tokens(tokenizer, WORDS[source]["es"]),
            "source_concept_en": first_tokens(tokenizer, WORDS[source]["en"]),
            "target_concept_en": first_tokens(tokenizer, WORDS[target]["en"]),
        }
        if not any(a & b for a, b in itertools.combinations(groups.values(), 2)):
            expected[source, target] = groups
    found = {}
    for pair in data.pairs:
        concepts = (pair.labels["source_concept"], pair.labels["target_concept"])
        found[concepts] = {group: set(ids) for group, ids in pair.answers.items()}
        assert [data.prompts[row].labels for row in pair.sources] == [
            {"concept": concepts[0], "source_language": language, "target_language": "it",
             "collides": data.prompts[row].labels["collides"]}
            for row, language in zip(pair.sources, ["de", "fr"], strict=True)
        ]  # fmt: skip
        assert data.targets[pair.target].labels["concept"] == concepts[1]
    assert found == expected
    assert 0 < len(found) < 56  # libro is libro in both languages
    assert data.counts["pairs"] == len(found)
    assert data.counts["pairs_possible"] == len(order) * (len(order) - 1)
    assert data.counts["pairs_colliding"] == 56 - len(found)
    for row in data.targets:
        check_prompt(row.prompt, row.labels["concept"], "fr", "es", shots=3)
        start, stop = row.spans["query"]
        assert tokenizer.decode(row.input_ids[start:stop]) == WORDS[row.labels["concept"]]["fr"][0]
    assert {row.labels["concept"] for row in data.targets} == {target for _, target in expected}
    assert data.groups["target_concept_target_language"] == "target concept in the target language (es)"
    assert data.groups["source_concept_en"] == "source concept in English (en)"


def test_fewer_pairs_are_the_first_of_many(lexicon: str, tokenizer: PreTrainedTokenizerFast) -> None:
    def labels(data: TaskData) -> list[tuple[str, str]]:
        return [(pair.labels["source_concept"], pair.labels["target_concept"]) for pair in data.pairs]

    every = labels(make(config(lexicon), tokenizer, None))
    few = make(config(lexicon, pairs=5), tokenizer, None)
    assert labels(few) == every[:5]
    assert {row.labels["concept"] for row in few.targets} == {target for _, target in every[:5]}
    other_seed = labels(make(config(lexicon, seed=1), tokenizer, None))
    assert other_seed != every
    assert set(other_seed) == set(every)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_concepts": 4},
        {"patch_into": None},
        {"latent_languages": []},
        {"pairs": 3},
        {"source_languages": ["fr", "de"]},
    ],
)
def test_prompt_depends_on_seed_languages_and_concept_alone(
    lexicon: str, tokenizer: PreTrainedTokenizerFast, changes: dict[str, Any]
) -> None:
    def prompts(data: TaskData) -> dict[tuple[str, str], str]:
        return {(row.labels["concept"], row.labels["source_language"]): row.prompt for row in data.prompts}

    standard = prompts(make(config(lexicon), tokenizer, None))
    changed = prompts(make(config(lexicon, **changes), tokenizer, None))
    assert changed.items() <= standard.items()
    assert prompts(make(config(lexicon, seed=5), tokenizer, None)) != standard


def test_same_languages_collapse_groups(lexicon: str, tokenizer: PreTrainedTokenizerFast) -> None:
    data = make(config(lexicon, patch_into=PatchIntoConfig("fr", "it")), tokenizer, None)
    groups = [
        "target_concept_target_language",
        "source_concept_target_language",
        "source_concept_en",
        "target_concept_en",
    ]
    assert list(data.pairs[0].answers) == groups
    repetition = make(config(lexicon, source_languages=["it"], patch_into=None), tokenizer, None)
    assert list(repetition.prompts[0].answers) == ["answer", "latent_en"]


def test_the_language_of_the_prompt_costs_prompts_only_where_it_is_measured(
    lexicon: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """`milk` begins alike in French and Italian: to measure both drops it, to measure Italian and English does not."""
    changes: dict[str, Any] = {"source_languages": ["fr"], "patch_into": None}
    with_it = make(config(lexicon, **changes), tokenizer, None)
    without = make(config(lexicon, **changes, measure_source_language=False), tokenizer, None)
    assert list(with_it.prompts[0].answers) == ["answer", "source_language", "latent_en"]
    assert list(without.prompts[0].answers) == list(without.groups) == ["answer", "latent_en"]
    assert [row.prompt for row in with_it.prompts] == [row.prompt for row in without.prompts]

    def colliding(data: TaskData, languages: list[str]) -> set[str]:
        found = {row.labels["concept"] for row in data.prompts if row.labels["collides"] == "yes"}
        plain = {
            concept
            for concept, words in WORDS.items()
            if any(
                first_tokens(tokenizer, words[one]) & first_tokens(tokenizer, words[other])
                for one, other in itertools.combinations(languages, 2)
            )
        }
        assert found == plain
        return found

    assert colliding(without, ["it", "en"]) < colliding(with_it, ["it", "en", "fr"])


def test_without_patch_into_there_are_prompts_alone(lexicon: str, tokenizer: PreTrainedTokenizerFast) -> None:
    data = make(config(lexicon, patch_into=None, latent_languages=[]), tokenizer, None)
    assert (len(data.prompts), data.targets, data.pairs) == (16, (), ())
    assert list(data.groups) == ["answer", "source_language"]


def test_single_token_queries(lexicon: str) -> None:
    tokenizer = algorithm("byte-level BPE, Llama 3's words").tokenizer  # it knows some of the words as one token
    task = config(lexicon, source_languages=["en", "de"], latent_languages=[], patch_into=None)

    def single(language: str) -> set[str]:
        lengths = {name: len(tokenizer.encode(known[language][0])) for name, known in WORDS.items()}
        return {name for name, length in lengths.items() if length == 2}  # <s> and the word

    kept = [name for name in WORDS if name in single("en") & single("de")]
    assert 2 <= len(kept) < len(WORDS)
    data = make(dataclasses.replace(task, single_token_queries=True), tokenizer, None)
    assert list(dict.fromkeys(row.labels["concept"] for row in data.prompts)) == kept
    assert data.counts["concepts_with_split_query"] == len(WORDS) - len(kept)
    assert "dog" not in single("fr")
    with pytest.raises(InterpError, match="have a query word of several tokens"):
        into = PatchIntoConfig("fr", "es")  # the words of its prompts count too
        make(dataclasses.replace(task, single_token_queries=True, patch_into=into), tokenizer, None)


def test_exact_policy_drops_and_counts(lexicon: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InterpError, match=r"8 have a language without answer tokens by task.target_policy=exact"):
        make(config(lexicon, target_policy="exact"), tokenizer, None)


def test_own_template(lexicon: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template = "{{{source_word}}} [{source_name}] means [{target_name}] {target_word}."
    data = make(config(lexicon, template=template, shots=1), tokenizer, None)
    row = data.prompts[0]
    assert row.prompt.split("\n")[1] == "{Buch} [Deutsch] means [Italiano] "
    start, stop = row.spans["query"]
    assert "Buch" in tokenizer.decode(row.input_ids[start:stop])


def test_prompt_longer_than_the_context_is_named(lexicon: str, tokenizer: PreTrainedTokenizerFast) -> None:
    data = make(config(lexicon), tokenizer, None)
    longest = max(len(row.input_ids) for row in [*data.prompts, *data.targets])
    assert make(config(lexicon), tokenizer, longest) == data
    first = next(i for i, row in enumerate(data.prompts) if len(row.input_ids) > 60)
    count, start = len(data.prompts[first].input_ids), data.prompts[first].prompt[:60]
    with pytest.raises(InterpError) as raised:
        make(config(lexicon), tokenizer, 60)
    assert f"prompts row {first} has {count} tokens, the model reads 60 at most: {start + '…'!r}" in str(raised.value)


def test_all_pairs_dropped_says_why(lexicon: str, tokenizer: PreTrainedTokenizerFast) -> None:
    # the words of both languages are the same
    same = config(lexicon, target_language="it", patch_into=PatchIntoConfig("fr", "es"), max_concepts=2)
    twins = json.loads(Path(lexicon).read_text())
    for concept in twins["concepts"]:
        concept["words"]["es"] = concept["words"]["it"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lexicon.json"
        path.write_text(json.dumps(twins))
        with pytest.raises(InterpError, match=r"all 2 pairs of 2 concepts were dropped.*share a token"):
            make(dataclasses.replace(same, lexicon=str(path)), tokenizer, None)
        with pytest.raises(InterpError, match="all 8 prompts were dropped"):
            make(config(str(path), source_languages=["es"], patch_into=None), tokenizer, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lexicon": "nowhere.json"}, "task.lexicon: .*'nowhere.json'.*does not exist"),
        ({"target_language": "its"}, "task.target_language: .* no language 'its'. Did you mean 'it'"),
        ({"source_languages": ["de", "fi"]}, "task.source_languages: .* no language 'fi'"),
        ({"source_languages": []}, "task.source_languages: expected at least one"),
        ({"source_languages": ["de", "de"]}, "task.source_languages: expected different languages"),
        ({"latent_languages": ["zh"]}, "task.latent_languages: .* no language 'zh'"),
        ({"latent_languages": ["es"]}, "task.latent_languages: 'es' is a language that the prompts ask for"),
        ({"patch_into": PatchIntoConfig("xx", "es")}, "task.patch_into.source_language: .* no language 'xx'"),
        ({"shots": 8}, "task.shots: expected 0 to 7, .* got 8"),
        ({"shots": -1}, "task.shots: expected 0 to 7"),
        ({"target_policy": "first"}, "task.target_policy: .* Did you mean 'first_token'"),
        ({"template": "{source_word}"}, "task.template: expected {target_word}"),
        ({"template": "{target_word}: {source_word}"}, "task.template: expected {source_word} before {target_word}"),
        ({"template": "{sourceword}: {target_word}"}, "unknown blank {sourceword} .* Did you mean 'source_word'"),
        ({"template": "{source_word: {target_word}"}, "is not a template"),
    ],
)
def test_bad_config_is_told(
    lexicon: str, tokenizer: PreTrainedTokenizerFast, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(config(lexicon, **changes), tokenizer, None)


@pytest.mark.parametrize("name", ["byte-level BPE, Llama 3's words", "Metaspace BPE, Llama 2's normalizer"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    chosen=st.lists(
        words().filter(lambda word: not set('"▁\N{REPLACEMENT CHARACTER}') & set(word)),
        min_size=6,
        max_size=6,
        unique=True,
    )
)
def test_spans_mark_words_of_any_script(name: str, chosen: list[str]) -> None:
    made = algorithm(name).tokenizer
    concepts = [
        {"id": str(i), "words": {"de": [chosen[2 * i]], "it": [chosen[2 * i + 1]]}} for i in range(len(chosen) // 2)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lexicon.json"
        content = {"languages": {"de": "Deutsch", "it": "Italiano"}, "concepts": concepts}
        path.write_text(json.dumps(content), encoding="utf-8")
        task = TranslationConfig(lexicon=str(path), target_language="it", shots=1, depends_on="x")
        try:
            data = make(task, made, None)
        except InterpError as error:
            assert "share a token" in str(error)
            return
    for row in data.prompts:
        word = concepts[int(row.labels["concept"])]["words"]["de"][0]
        start, stop = row.spans["query"]
        assert word in made.decode(row.input_ids[start:stop])
        smaller = [(start + 1, stop), (start, stop - 1)]
        assert all(word not in made.decode(row.input_ids[a:b]) for a, b in smaller)
