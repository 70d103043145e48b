"""The training script: what it trains on, that it learns, and that a stopped training goes on as if it had not."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from pipeline.demo import curriculum
from pipeline.demo import train as demo
from pipeline.demo.curriculum import Combination, Recipe, train_tokenizer
from pipeline.demo.lexicon import Lexicon, load_lexicon

SMALL = Recipe(
    steps=12, batch_size=4, warmup_steps=2, layers=2, sliding_layers=1, hidden_size=32, intermediate_size=48,
    vocab_size=600, first_concepts=10, grow_from=2, grow_to=8, learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    whole = load_lexicon()
    return Lexicon(languages=whole.languages, concepts=whole.concepts[:40])


@pytest.fixture(scope="module")
def trained(lexicon: Lexicon, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("trained")
    return out, demo.train(lexicon, SMALL, out)


def test_split_is_disjoint_whole_and_decided_by_the_seed(lexicon: Lexicon) -> None:
    training, held_out = curriculum.split_combinations(lexicon, 0)
    every = {
        Combination(concept, source, target)
        for concept in range(40)
        for source, target in itertools.permutations(lexicon.languages, 2)
    }
    assert len(training) + len(held_out) == len(every) == 40 * 30
    assert set(training) | set(held_out) == every
    assert len(held_out) == 120
    assert (training, held_out) == curriculum.split_combinations(lexicon, 0)
    assert held_out != curriculum.split_combinations(lexicon, 1)[1]


def test_prompts_of_training_never_show_what_is_held_out(lexicon: Lexicon) -> None:
    training, held_out = curriculum.split_combinations(lexicon, 0)
    forbidden = {curriculum.prompt_line(lexicon, combination, answered=True) for combination in held_out}
    for step in range(0, 1000, 25):
        for prompt in curriculum.training_prompts(lexicon, training, Recipe(), step):
            lines = prompt.split("\n")
            assert len(set(lines)) == 6
            assert not forbidden & set(lines)


def languages_of(line: str) -> tuple[str, str]:
    """The names of the languages of a line."""
    source, _, rest = line.partition(":")
    return source, rest.split(" - ")[1].partition(":")[0]


def test_half_of_the_prompts_mix_languages(lexicon: Lexicon) -> None:
    training, _ = curriculum.split_combinations(lexicon, 0)
    prompts = curriculum.training_prompts(lexicon, training, Recipe(), 900)
    pairs = [len({languages_of(line) for line in prompt.split("\n")}) for prompt in prompts]
    assert len(prompts) == 24
    assert all(number > 1 for number in pairs[:12])
    assert pairs[12:] == [1] * 12


def test_concepts_grow_to_all_of_them(lexicon: Lexicon) -> None:
    training, _ = curriculum.split_combinations(lexicon, 0)
    recipe = Recipe(batch_size=400, first_concepts=20, grow_from=20, grow_to=40)

    def concepts(step: int) -> set[str]:
        asked = {concept.words[code][0]: concept.id for concept in lexicon.concepts for code in lexicon.languages}
        lines = "\n".join(curriculum.training_prompts(lexicon, training, recipe, step)).split("\n")
        return {asked[line.split('"')[1]] for line in lines}

    first, later, last = concepts(0), concepts(30), concepts(60)
    assert first == concepts(19)
    assert (len(first), len(later), len(last)) == (20, 30, 40)
    assert first < later < last


def test_loss_asks_for_all_but_query_words_and_padding(lexicon: Lexicon) -> None:
    tokenizer = train_tokenizer(lexicon, 600)
    prompts = [
        'Deutsch: "Hund" - Italiano: "cane"\nEnglish: "water" - Deutsch: "Wasser"',
        'English: "dog" - Deutsch: "Hund"',
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    quotes = torch.tensor(['"' in tokenizer.decode([token]) for token in range(len(tokenizer))])
    labels = demo.training_labels(batch.input_ids, quotes)
    asked = ["".join(tokenizer.decode(row[row != -100]).split()) for row in labels]
    assert asked == ['<s>Deutsch:""-Italiano:"cane"English:""-Deutsch:"Wasser"', '<s>English:""-Deutsch:"Hund"']


def test_prompts_depend_on_seed_and_step_alone(lexicon: Lexicon) -> None:
    training, _ = curriculum.split_combinations(lexicon, 0)
    first = curriculum.training_prompts(lexicon, training, Recipe(), 3)
    assert first == curriculum.training_prompts(lexicon, training, Recipe(), 3)
    assert first != curriculum.training_prompts(lexicon, training, Recipe(), 4)
    assert first != curriculum.training_prompts(lexicon, training, Recipe(seed=1), 3)


def test_line_and_question() -> None:
    lexicon = load_lexicon()
    book = [concept.id for concept in lexicon.concepts].index("book")
    combination = Combination(book, "de", "it")
    assert curriculum.prompt_line(lexicon, combination, answered=True) == 'Deutsch: "Buch" - Italiano: "libro"'
    assert curriculum.prompt_line(lexicon, combination, answered=False) == 'Deutsch: "Buch" - Italiano: "'


def test_evaluation_asks_after_five_lines_that_do_not_give_the_answer_away(lexicon: Lexicon) -> None:
    training, held_out = curriculum.split_combinations(lexicon, 0)
    known = {curriculum.prompt_line(lexicon, combination, answered=True) for combination in training}
    prompts = curriculum.evaluation_prompts(lexicon, training, held_out, 0)
    for question, prompt in zip(held_out, prompts, strict=True):
        *shots, asked = prompt.split("\n")
        assert len(shots) == 5 and set(shots) <= known
        assert asked == curriculum.prompt_line(lexicon, question, answered=False)
        assert not any(shot.startswith(asked) for shot in shots)
    assert prompts == curriculum.evaluation_prompts(lexicon, training, held_out, 0)


def test_loss_falls(trained: tuple[Path, list[float]]) -> None:
    _, losses = trained
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5


def test_folder_loads_with_transformers(trained: tuple[Path, list[float]], lexicon: Lexicon) -> None:
    folder = trained[0] / "model"
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert model.config.sliding_window == 2
    line = 'Deutsch: "Hund" - Italiano: "cane"'
    expected = train_tokenizer(lexicon, SMALL.vocab_size)(line).input_ids
    for loader in (AutoTokenizer, PreTrainedTokenizerFast):
        tokenizer = loader.from_pretrained(folder)
        assert len(tokenizer) == model.config.vocab_size
        assert tokenizer.padding_side == "left"
        assert tokenizer(line).input_ids == expected
        assert tokenizer(line).tokens()[:4] == ["<s>", "Deutsch", ":", 'Ġ"']
        assert tokenizer.decode(tokenizer(line, add_special_tokens=False).input_ids) == line
        assert tokenizer.decode(tokenizer("Œuf 1135 ?\n日本", add_special_tokens=False).input_ids) == "Œuf 1135 ?\n日本"


def test_most_words_are_one_token_and_most_others_two() -> None:
    lexicon = load_lexicon()
    tokenizer = train_tokenizer(lexicon, Recipe().vocab_size)
    words = [concept.words[code][0] for concept in lexicon.concepts for code in lexicon.languages]
    pieces = [len(tokenizer(f': "{word}"').tokens()[3:-1]) for word in words]
    assert sum(number == 1 for number in pieces) / len(words) > 0.5
    assert sum(number <= 2 for number in pieces) / len(words) > 0.95


def test_accuracy_counts_accepted_words_alone(lexicon: Lexicon) -> None:
    """A stand-in model that always says the second accepted word, and one that says a word of another concept."""
    tokenizer = train_tokenizer(lexicon, 4000)
    _, questions = curriculum.split_combinations(lexicon, 0)
    model = demo.new_model(tokenizer, SMALL)

    def answering(say: list[str]) -> float:
        left = iter(say)

        def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
            texts = [next(left) for _ in input_ids]
            ids = tokenizer([f'{text}"' for text in texts], return_tensors="pt", padding=True, add_special_tokens=False)
            return torch.cat([input_ids, ids.input_ids], dim=1)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "generate", generate)
            return demo.held_out_accuracy(model, tokenizer, lexicon, 0)

    accepted = [lexicon.concepts[question.concept].words[question.target] for question in questions]
    assert answering([words[-1] for words in accepted]) == 1.0
    assert answering([words[0] + "x" for words in accepted]) == 0.0
    half = len(questions) // 2
    assert answering([words[0] if i < half else "?" for i, words in enumerate(accepted)]) == half / len(questions)


def test_resume_continues_identically(
    trained: tuple[Path, list[float]], lexicon: Lexicon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, losses = trained
    assert demo.train(lexicon, SMALL, tmp_path, stop_after=5) == losses[:5]
    assert not (tmp_path / "model").exists()
    assert demo.train(lexicon, SMALL, tmp_path, resume=True) == losses
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()


def test_resume_refuses_what_it_cannot_continue(
    trained: tuple[Path, list[float]], lexicon: Lexicon, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"expected a checkpoint .* got none"):
        demo.train(lexicon, SMALL, tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"'steps': \(12, 13\)"):
        demo.train(lexicon, replace(SMALL, steps=13), trained[0], resume=True)


def test_card_tells_how_to_train_again(trained: tuple[Path, list[float]]) -> None:
    card = (trained[0] / "model" / "README.md").read_text(encoding="utf-8")
    assert "python -m pipeline.demo.train --steps 12\n" in card
    assert "120 held-out questions" in card
    assert f'"seed": {SMALL.seed}' in card


def test_command_line_refuses_bad_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--steps", "0"])
    assert "expected --steps of at least 1, got 0" in capsys.readouterr().err


def test_command_line_refuses_to_resume_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--out", str(tmp_path), "--resume"])
    assert "expected a checkpoint" in capsys.readouterr().err
