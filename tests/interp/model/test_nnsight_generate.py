"""Reading and changing every step of a generation, against torch hooks that count the calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.interp.model.plain import (
    IDS,
    MLP_ADDED,
    NUM_LAYERS,
    OTHER,
    PROMPT,
    changing,
    encoded,
    families,
    layers,
    plain,
    positioned,
    seeing,
    wrapped,
)
from tests.tiny import tiny_tokenizer

STEPS = 4
GREEDY = dict(max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False)


@torch.no_grad()
def greedy(family: str, **inputs: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """What the plain model generates, and what each layer gave at each step."""
    inputs = inputs or {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with seeing({str(i): layer for i, layer in enumerate(layers(family))}) as seen:
        ids = plain(family).generate(**inputs, **GREEDY)
    return ids, seen


@families
@torch.no_grad()
def test_every_step_is_read(family: str) -> None:
    model = wrapped(family)
    hidden: list[list[Tensor]] = []
    logits: list[Tensor] = []
    with model.generate(IDS, **GREEDY) as tracer:
        for _ in tracer.iter[:STEPS]:
            step = []
            for layer in range(NUM_LAYERS):
                step.append(model.layers_output[layer].clone())
            hidden.append(step)
            logits.append(model.logits[:, -1].clone())
        ids = tracer.result.save()
    expected, seen = greedy(family)
    assert torch.equal(ids, expected)
    for number, step in enumerate(hidden):
        for layer, value in enumerate(step):
            torch.testing.assert_close(value, seen[str(layer)][number])
    assert torch.equal(torch.stack(logits, dim=1).argmax(-1), expected[:, IDS.shape[1] :])


@families
@torch.no_grad()
def test_all_steps_without_a_number(family: str) -> None:
    model = wrapped(family)
    hidden = []
    with pytest.warns(UserWarning, match="by design"), model.generate(IDS, **GREEDY) as tracer:
        for _ in tracer.all():
            hidden.append(model.read("resid_post.2").clone())
    _, seen = greedy(family)
    assert [tuple(value.shape) for value in hidden] == [(2, 6, 32), *[(2, 1, 32)] * (STEPS - 1)]
    for value, expected in zip(hidden, seen["2"], strict=True):
        torch.testing.assert_close(value, expected)


@families
@pytest.mark.parametrize("steps", ["one", "some", "listed"])
@torch.no_grad()
def test_a_change_at_some_steps(family: str, steps: str) -> None:
    model = wrapped(family)
    chosen = {"one": [2], "some": [1, 2], "listed": [0, 3]}[steps]
    selected: list[int] | slice | int = {"one": 2, "some": slice(1, 3), "listed": [0, 3]}[steps]
    with model.generate(IDS, **GREEDY) as tracer:
        for step in tracer.iter[selected]:
            model.write("resid_post.2", -model.read("resid_post.2") * (1 + step))
        ids = tracer.result.save()
    with changing(layers(family)[2], lambda hidden, call: -hidden * (1 + call) if call in chosen else hidden):
        expected, _ = greedy(family)
    assert torch.equal(ids, expected)
    assert not torch.equal(ids, greedy(family)[0])


@families
@torch.no_grad()
def test_a_change_of_the_logits_chooses_the_token(family: str) -> None:
    model = wrapped(family)
    with model.generate(IDS, **GREEDY) as tracer:
        for step in tracer.iter[:STEPS]:
            logits = model.logits.clone()
            logits[:, -1, 100 + step] = 1e4
            model.logits = logits
        ids = tracer.result.save()
    assert ids[:, IDS.shape[1] :].tolist() == [[100 + step for step in range(STEPS)]] * 2


@families
@torch.no_grad()
def test_invokes_under_generate(family: str) -> None:
    model = wrapped(family)
    streams: dict[str, list[Tensor]] = {"long": [], "short": []}
    with model.generate(**GREEDY) as tracer:
        with tracer.invoke(PROMPT):
            for _ in tracer.iter[:STEPS]:
                streams["long"].append(model.read("resid_post.1").clone())
        with tracer.invoke(OTHER):
            for _ in tracer.iter[:STEPS]:
                model.steer(2, torch.ones(32), factor=3.0)
                streams["short"].append(model.layers_output[3].clone())
        with tracer.invoke():
            ids = tracer.result.save()

    def steer(hidden: Tensor, _: int) -> Tensor:
        return hidden + torch.tensor([0.0, 3.0])[:, None, None]

    with changing(layers(family)[2], steer):
        expected, seen = greedy(family, **encoded(PROMPT, OTHER))
    assert torch.equal(ids, expected)
    for step in range(STEPS):
        torch.testing.assert_close(streams["long"][step], seen["1"][step][:1])
        torch.testing.assert_close(streams["short"][step], seen["3"][step][1:])


MLPS = {"llama": "mlp", "gpt2": "mlp", "gemma2": "mlp", "opt": "fc1", "bloom": "mlp"}


@families
@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_values_that_a_family_flattens_have_their_axes_at_every_step(family: str, beams: int) -> None:
    """OPT hands its MLP (batch x position, hidden). With one token a row, that is as long as a batch has rows."""
    model = wrapped(family)
    seen: dict[str, list[Tensor]] = {"long": [], "short": []}
    with model.generate(num_beams=beams, **GREEDY) as tracer:
        with tracer.invoke(PROMPT):
            for _ in tracer.iter[:STEPS]:
                seen["long"].append(model.read("mlp_in.1").clone())
                model.write("mlp_out.1", model.read("mlp_out.1") * 2)
        with tracer.invoke(OTHER):
            for _ in tracer.iter[:STEPS]:
                seen["short"].append(model.read("mlp_in.1").clone())
        with tracer.invoke():
            ids = tracer.result.save()
    taken: list[Tensor] = []
    layer = layers(family)[1]
    watch = layer.get_submodule(MLPS[family]).register_forward_hook(lambda _, args, out: taken.append(args[0].clone()))

    def double(value: Tensor, _: int) -> Tensor:
        rows = value.shape[0] // 2 if beams == 1 else value.shape[0]  # nnsight does not divide beams among invokes
        return torch.cat([value[:rows] * 2, value[rows:]])

    with changing(layer.get_submodule(MLP_ADDED[family]), double):
        expected = plain(family).generate(**encoded(PROMPT, OTHER), num_beams=beams, **GREEDY)
    watch.remove()
    assert torch.equal(ids, expected)
    for step in range(STEPS):
        length = 8 if step == 0 else 1
        value = torch.cat([seen["long"][step], seen["short"][step]]) if beams == 1 else seen["long"][step]
        assert value.shape == (2 * beams, length, 32)
        torch.testing.assert_close(value, taken[step].reshape(value.shape))


@families
@torch.no_grad()
def test_a_cache_of_a_generation_holds_every_step(family: str) -> None:
    model = wrapped(family)
    with model.generate(IDS, **GREEDY) as tracer:
        chosen = [model.layers[1]]
        cache = tracer.cache(modules=chosen)
    _, seen = greedy(family)
    values = cache.layers[1].output
    assert len(values) == STEPS
    for value, expected in zip(values, seen["1"], strict=True):
        torch.testing.assert_close(value[0] if family == "bloom" else value, expected)


@torch.no_grad()
def test_a_direct_call_generates() -> None:
    model = wrapped("llama")
    assert torch.equal(model.generate(IDS, **GREEDY), greedy("llama")[0])
    streamed = []
    with model.generate(IDS[:1], **GREEDY) as tracer:
        for _ in tracer.iter[: STEPS + 1]:  # the prompt first, then token by token
            streamed.append(model.generator.streamer.output.clone())
    whole = plain("llama").generate(IDS[:1], attention_mask=torch.ones(1, 6).long(), **GREEDY)
    assert torch.cat([part.flatten() for part in streamed]).tolist() == whole[0].tolist()


@families
@torch.no_grad()
def test_the_whole_pipeline(family: str) -> None:
    model = wrapped(family)
    with model.pipe(PROMPT, **GREEDY) as tracer:
        for _ in tracer.iter[:1]:
            model.layers_output[1] = -model.layers_output[1]
        output = tracer.result.save()
    with changing(layers(family)[1], lambda hidden, call: -hidden if call == 0 else hidden):
        expected, _ = greedy(family, **encoded(PROMPT))
    assert output == [{"generated_text": tiny_tokenizer().decode(expected[0], skip_special_tokens=True)}]


@families
@torch.no_grad()
def test_a_prompt_of_text_is_generated_from_with_its_positions(family: str) -> None:
    model = wrapped(family)
    with model.generate([PROMPT, OTHER], **GREEDY) as tracer:
        first = model.logits[:, -1].clone().save()
        ids = tracer.result.save()
    batch = encoded(PROMPT, OTHER)
    assert torch.equal(ids, greedy(family, **batch)[0])
    torch.testing.assert_close(first, plain(family)(**positioned(family, batch)).logits[:, -1])
