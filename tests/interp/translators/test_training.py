"""Training: gradients are autograd's, a killed training ends with the same bytes, the lens learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.translators import (
    GivenSequences,
    PackedText,
    TextSource,
    TokenSequence,
    TunedLens,
    TuningSettings,
    TuningStep,
    evaluate_tuned_lens,
    states,
    train_tuned_lens,
)
from interp.translators.training import accumulate_gradients
from tests.interp.lenses.twins import FAMILIES
from tests.interp.translators.conftest import random_sequences
from tests.interp.translators.twins import TunedTwin, as_tensors, random_translators
from tests.tiny import HIDDEN_SIZE, VOCABULARY_SIZE

Standardized = Callable[[str], StandardizedTransformer]
LAYERS = (0, 2)
SMALL = TuningSettings(steps=7, tokens_per_step=20, batch_tokens=24, learning_rate=0.5)


@pytest.mark.parametrize("loss", ["kl", "cross_entropy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_autograd_on_the_whole(
    standardized: Standardized, family: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "CHUNK_ELEMENTS", 5 * VOCABULARY_SIZE)  # several chunks of tokens
    model, sequences = standardized(family), list(random_sequences())
    lens = TunedLens.of(model, LAYERS)
    lens.take(as_tensors(random_translators(LAYERS, HIDDEN_SIZE)))
    totals: dict[int, torch.Tensor] = {}
    collected = states.token_states(model, sequences, LAYERS)
    tokens = accumulate_gradients(model, lens, collected, loss, totals)  # type: ignore[arg-type]

    twin, translators = TunedTwin(family), random_translators(LAYERS, HIDDEN_SIZE, gradients=True)
    by_sequence = [twin.losses(sequence.ids, translators, loss) for sequence in sequences]
    whole = {layer: torch.stack([each[layer] for each in by_sequence]).sum() for layer in LAYERS}
    torch.stack(list(whole.values())).sum().backward()

    assert tokens == sum(len(sequence.ids) - (loss == "cross_entropy") for sequence in sequences)
    for layer, (weight, bias) in translators.items():
        assert float(totals[layer]) == pytest.approx(float(whole[layer].detach()), rel=1e-5)
        for own, twins in zip(lens.parameters_of(layer), (bias, weight), strict=True):
            assert own.grad is not None
            assert twins.grad is not None
            torch.testing.assert_close(own.grad, twins.grad, rtol=1e-4, atol=1e-5 * float(twins.grad.abs().max()))
    assert all(parameter.grad is None for parameter in model._module.parameters())


def test_gradients_in_bfloat16_point_the_same_way(model_folder: Callable[[str], Path]) -> None:
    found = []
    for dtype in ("float32", "bfloat16"):
        model = StandardizedTransformer(model_folder("llama"), dtype=dtype, device_map="cpu")
        lens = TunedLens.of(model, LAYERS)
        accumulate_gradients(model, lens, states.token_states(model, list(random_sequences()), LAYERS), "kl", {})
        grads = [parameter.grad for layer in LAYERS for parameter in lens.parameters_of(layer)]
        assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)
        found.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    assert torch.cosine_similarity(found[0], found[1], dim=0) > 0.999
    assert float(found[1].norm() / found[0].norm()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        TuningSettings(steps=7, tokens_per_step=20, batch_tokens=24, optimizer="adam", loss="cross_entropy"),
        TuningSettings(steps=7, tokens_per_step=20, optimizer="adam", bias_only=True, layers=(1,), warmup_steps=0),
    ],
    ids=["sgd", "adam", "bias"],
)
@pytest.mark.parametrize("killed_in", [1, 4, 6])
def test_a_killed_training_ends_with_the_same_bytes(
    standardized: Standardized, tmp_path: Path, settings: TuningSettings, killed_in: int
) -> None:
    model = standardized("llama")

    class Killed(Exception):
        pass

    def kill(told: TuningStep) -> None:
        if told.step == killed_in:
            raise Killed

    train_tuned_lens(model, random_sequences(repeat=True), settings).save(tmp_path / "whole")
    checkpoint = tmp_path / "checkpoint.safetensors"

    def train(progress: Callable[[TuningStep], None]) -> TunedLens:
        stream = random_sequences(repeat=True)
        return train_tuned_lens(model, stream, settings, checkpoint=checkpoint, checkpoint_every=2, progress=progress)

    with pytest.raises(Killed):
        train(kill)
    assert checkpoint.exists() == (killed_in > 1)
    steps: list[int] = []
    train(lambda told: steps.append(told.step)).save(tmp_path / "resumed")
    assert steps == list(range(killed_in // 2 * 2 + 1, 8))  # from the last checkpoint on
    for name in ("lens.safetensors", "config.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_training_on_streamed_text_resumes_to_the_same_bytes(
    demo: StandardizedTransformer, demo_text: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = TuningSettings(steps=4, tokens_per_step=256, layers=(3,))
    checkpoint = tmp_path / "checkpoint.safetensors"

    def train(progress: Callable[[TuningStep], None] | None = None, **options: object) -> TunedLens:
        text = PackedText(demo.tokenizer, TextSource(str(demo_text[0]), shuffle_buffer=20), sequence_length=64)
        return train_tuned_lens(demo, text, settings, progress=progress, **options)  # type: ignore[arg-type]

    def stop(told: TuningStep) -> None:
        if told.step == 3:
            raise KeyboardInterrupt

    train().save(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(stop, checkpoint=checkpoint, checkpoint_every=1)
    assert load_file(checkpoint).keys() == {
        "bias.3", "weight.3", "optimizer.0.momentum_buffer", "optimizer.1.momentum_buffer"
    }  # fmt: skip
    train(checkpoint=checkpoint).save(tmp_path / "resumed")
    for name in ("lens.safetensors", "config.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_checkpoint_of_another_training_is_refused(standardized: Standardized, tmp_path: Path) -> None:
    model, checkpoint = standardized("llama"), tmp_path / "checkpoint.safetensors"
    train_tuned_lens(model, random_sequences(repeat=True), SMALL, checkpoint=checkpoint)
    other = TuningSettings(steps=7, tokens_per_step=20, batch_tokens=24, learning_rate=0.25)
    with pytest.raises(InterpError, match=r"another training: learning_rate 0\.5 there, 0\.25 here"):
        train_tuned_lens(model, random_sequences(repeat=True), other, checkpoint=checkpoint)
    with pytest.raises(InterpError, match=r"number 4 there, 2 here, sequences_sha256"):
        train_tuned_lens(model, random_sequences((5, 6), repeat=True), SMALL, checkpoint=checkpoint)
    with pytest.raises(InterpError, match="unembedding_sha256"):
        train_tuned_lens(standardized("gpt2"), random_sequences(repeat=True), SMALL, checkpoint=checkpoint)
    checkpoint.write_bytes(b"nothing")
    with pytest.raises(InterpError, match="is no checkpoint of a tuned lens"):
        train_tuned_lens(model, random_sequences(repeat=True), SMALL, checkpoint=checkpoint)


def test_a_layer_does_not_depend_on_the_other_layers(standardized: Standardized) -> None:
    model = standardized("gpt2")
    both, one = (
        train_tuned_lens(
            model, random_sequences(repeat=True), TuningSettings(steps=4, tokens_per_step=20, layers=layers, clip=0.1)
        )
        for layers in ((0, 2), (2,))
    )
    for name in ("weight.2", "bias.2"):
        assert torch.equal(both.tensors()[name], one.tensors()[name])


def test_how_sequences_are_batched_makes_no_difference(standardized: Standardized) -> None:
    model = standardized("gpt2")  # learned positions: padding must not count
    lenses = [
        train_tuned_lens(
            model, random_sequences(repeat=True), TuningSettings(steps=3, tokens_per_step=30, batch_tokens=tokens)
        )
        for tokens in (1, 1000)
    ]
    for name, value in lenses[0].tensors().items():
        torch.testing.assert_close(lenses[1].tensors()[name], value, rtol=1e-3, atol=1e-5)


def test_the_lens_learns_and_beats_the_logit_lens_on_text_it_has_not_seen(
    demo: StandardizedTransformer, demo_text: tuple[Path, Path]
) -> None:
    told: list[TuningStep] = []
    layers = (3, 4)
    text = PackedText(demo.tokenizer, TextSource(str(demo_text[0])), sequence_length=64, repeat=True)
    settings = TuningSettings(steps=20, tokens_per_step=768, layers=layers)
    before = {name: value.clone() for name, value in demo._module.state_dict().items()}
    lens = train_tuned_lens(demo, text, settings, progress=told.append)
    for layer in layers:
        assert told[-1].loss[layer] < 0.8 * told[0].loss[layer]
        assert told[0].bits_per_byte[layer] < told[0].loss[layer]  # more than a byte and a half a token
    held_out = PackedText(demo.tokenizer, TextSource(str(demo_text[1])), sequence_length=64)
    result = evaluate_tuned_lens(demo, lens, held_out, max_tokens=2000)
    logit, tuned = result.kl[:, :2]
    assert (tuned < 0.8 * logit).all()
    assert (result.agreement[1, :2] > result.agreement[0, :2]).all()
    for name, value in demo._module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in lens.parameters())


def test_the_learning_rate_rises_and_falls() -> None:
    plain = TuningSettings(steps=4)
    assert [plain.rate(step) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    adam = TuningSettings(steps=10, optimizer="adam")
    assert [round(adam.rate(step) / 1e-3, 4) for step in range(4)] == [0.3333, 0.6667, 1.0, 0.875]


def test_text_that_ends_too_early_is_an_error(standardized: Standardized) -> None:
    with pytest.raises(InterpError, match=r"the text ended in step 2 of 7, at 12 of 20 tokens.*--repeat"):
        train_tuned_lens(standardized("llama"), random_sequences((9, 12, 12)), SMALL)


def test_numbers_that_overflow_are_an_error(standardized: Standardized) -> None:
    settings = TuningSettings(steps=5, tokens_per_step=20, learning_rate=1e38, clip=1e38, weight_decay=1e3)
    with pytest.raises(InterpError, match=r"the loss of layers \[0, 1, 2\] is not finite"):
        train_tuned_lens(standardized("llama"), random_sequences(repeat=True), settings)


def test_cross_entropy_needs_tokens_that_follow(standardized: Standardized) -> None:
    stream = GivenSequences([TokenSequence((5,), (1,))], repeat=True)
    with pytest.raises(InterpError, match="no token that another follows"):
        train_tuned_lens(standardized("llama"), stream, TuningSettings(tokens_per_step=3, loss="cross_entropy"))
    with pytest.raises(InterpError, match="token id 999 is outside the vocabulary"):
        train_tuned_lens(standardized("llama"), GivenSequences([TokenSequence((999,) * 20, (1,) * 20)]), SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "mse"}, "loss: unknown 'mse'"),
        ({"optimizer": "sdg"}, "Did you mean 'sgd'"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"warmup_steps": 7, "steps": 7}, "expected fewer than the 7 steps, got 7"),
        ({"clip": 0.0}, "clip > 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InterpError, match=message):
        TuningSettings(**change)  # type: ignore[arg-type]


def test_checkpoints_are_not_never(standardized: Standardized) -> None:
    with pytest.raises(InterpError, match="checkpoint_every: expected at least 1"):
        train_tuned_lens(standardized("llama"), random_sequences(), SMALL, checkpoint_every=0)
