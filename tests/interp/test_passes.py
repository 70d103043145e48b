"""What a pass switches is its own: whatever another thread begins and ends in its middle, numbers stay what they are.

Threads are held at a point by events, so that each interleaving happens for certain: one pass is stopped before its
middle layer, another one begins and ends, the first goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import _get_current_function_mode_stack
from transformers import AttentionInterface

from interp import StandardizedTransformer, passes
from interp.activations import collect
from interp.errors import InterpError
from interp.lenses import (
    attention_knockout,
    attention_object_lens,
    logit_lens,
    patchscope_generate,
    patchscope_lens,
)
from interp.matmul import SETTING, faster_products
from interp.model.verdicts import verdicts_of
from interp.sites import Site
from tests.families import build
from tests.interp.forward.test_rotary import standardized as with_rotation
from tests.tiny import tiny_tokenizer

LONG = 60  # seconds that a thread is waited for; none waits so long where all is right
PLAIN_GET_INTERFACE = AttentionInterface.get_interface
PROMPTS = [[1, 10, 20, 30, 40, 50], [1, 60, 70], [1, 80, 90, 100, 110]]  # packed, where a family allows it
ALIKE = [[1, 5, 6, 7, 8, 9, 10, *range(20 + row, 40 + row)] for row in range(8)]
INTO = "cat -> cat\n1135 -> 1135\n?"
Operation = Callable[[StandardizedTransformer], Any]


@pytest.fixture(autouse=True)
def nothing_stays_on() -> Iterator[None]:
    yield
    assert AttentionInterface.get_interface is PLAIN_GET_INTERFACE
    assert not passes._turns.held and not passes._turns.waiting


@cache
def model_of(name: str) -> StandardizedTransformer:
    return StandardizedTransformer(build(name), tokenizer=tiny_tokenizer(), verify=False)


def collected(model: StandardizedTransformer) -> list[Any]:
    sites = [Site("resid_post", layer) for layer in range(model.num_layers)]
    values = collect(model, PROMPTS, sites, [[0, len(ids) - 1] for ids in PROMPTS])
    assert verdicts_of(model)["prompts in one row"]
    return list(values.values())


def shared(model: StandardizedTransformer) -> list[Any]:
    sites = [Site("resid_post", layer) for layer in range(model.num_layers)]
    values = collect(model, ALIKE, sites, [[len(ids) - 1] for ids in ALIKE], batch_tokens=64)
    assert verdicts_of(model)["prefixes"]
    return list(values.values())


@torch.no_grad()
def traced(model: StandardizedTransformer) -> list[Any]:
    found: list[Any] = []
    with model.trace(torch.tensor([PROMPTS[0]])):
        for layer in range(model.num_layers):
            found.append(model.read(f"q.{layer}").clone())
            found.append(model.read(f"pattern.{layer}").clone())
        found.append(model.logits.clone())
    return found


def numbers(result: Any) -> list[Any]:
    return list(result.arrays().values())


OPERATIONS: dict[str, Operation] = {
    "collect": collected,
    "shared prefixes": shared,
    "trace": traced,
    "logit lens": lambda model: numbers(logit_lens(model, PROMPTS)),
    "patchscope": lambda model: numbers(patchscope_lens(model, PROMPTS, INTO)),
    "knock-out": lambda model: numbers(attention_knockout(model, PROMPTS, {"start": "first"}, window=2)),
    "attention object": lambda model: numbers(attention_object_lens(model, PROMPTS, INTO, window=2)),
    "generation": lambda model: patchscope_generate(model, PROMPTS, INTO, max_new_tokens=3).ids,
}


@cache
def alone(operation: str, name: str) -> Any:
    """What an operation gives where nothing else runs."""
    return OPERATIONS[operation](model_of(name))


def assert_same(found: Any, wanted: Any) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


class Stop:
    """A point that one thread waits at, until it may go on.

    Arguments:
        passing: how many times it is passed before.
    """

    def __init__(self, passing: int = 0) -> None:
        self.reached, self.go_on, self.left = threading.Event(), threading.Event(), passing

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == -1:
            self.reached.set()
            assert self.go_on.wait(LONG)


@contextmanager
def stopped(
    threads: ThreadPoolExecutor, operation: Operation, model: StandardizedTransformer, passing: int = 0
) -> Iterator[Future[Any]]:
    """Within this, an operation of another thread stands before the middle layer; afterwards it has ended."""
    stop = Stop(passing)

    def run() -> Any:
        hook = passes.before(model.layer(model.num_layers // 2)._module, stop)
        try:
            return operation(model)
        finally:
            hook.remove()
            stop.reached.set()

    running = threads.submit(run)
    try:
        assert stop.reached.wait(LONG)
        assert not running.done(), running.result()
        yield running
    finally:
        stop.go_on.set()
        running.exception(LONG)


@pytest.mark.parametrize("within", OPERATIONS)
@pytest.mark.parametrize("around", OPERATIONS)
def test_another_models_pass_in_the_middle_of_one(threads: ThreadPoolExecutor, around: str, within: str) -> None:
    first, second = alone(around, "llama"), alone(within, "qwen3")
    with stopped(threads, OPERATIONS[around], model_of("llama")) as running:
        assert_same(threads.submit(OPERATIONS[within], model_of("qwen3")).result(LONG), second)
    assert_same(running.result(), first)


@torch.no_grad()
def test_what_is_collected_so_is_what_transformers_gives(threads: ThreadPoolExecutor) -> None:
    """The case as it was: packed prompts, in whose pass another model's trace of the pattern begins and ends."""
    with stopped(threads, collected, model_of("llama")) as running:
        found = threads.submit(traced, model_of("qwen3")).result(LONG)
    plain, eager = build("llama"), build("qwen3")
    eager.set_attn_implementation("eager")
    for row, ids in enumerate(PROMPTS):
        states = plain.model(torch.tensor([ids]), output_hidden_states=True)
        last = torch.stack([*(state[0] for state in states.hidden_states[1:-1])])[:, [0, -1]]
        torch.testing.assert_close(running.result()[0][:-1, row], last, atol=1e-5, rtol=1e-4)
    expected = eager(torch.tensor([PROMPTS[0]]), output_attentions=True)
    for layer, pattern in enumerate(expected.attentions):
        torch.testing.assert_close(found[2 * layer + 1], pattern, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_pass_that_fails_takes_nothing_from_another(threads: ThreadPoolExecutor, operation: str) -> None:
    wanted, other = alone(operation, "llama"), model_of("qwen3")

    def failing() -> None:
        with other.trace(torch.tensor([PROMPTS[0]])):
            other.read("pattern.1")
            raise ZeroDivisionError

    def dying(_: StandardizedTransformer) -> Any:
        raise ZeroDivisionError

    with stopped(threads, OPERATIONS[operation], model_of("llama")) as running:
        with pytest.raises(ZeroDivisionError):
            threads.submit(failing).result(LONG)
        with pytest.raises(ZeroDivisionError):
            threads.submit(dying, other).result(LONG)
    assert_same(running.result(), wanted)


def test_a_pass_that_ends_by_an_error_after_another_began(threads: ThreadPoolExecutor) -> None:
    """The outer one dies while the inner one runs; the inner one goes on."""
    model, other, stop = model_of("llama"), model_of("qwen3"), Stop()

    def failing(model: StandardizedTransformer) -> None:
        with model.trace(torch.tensor([PROMPTS[0]])):
            model.read("pattern.1")
            model.read("resid_post.2")
            raise ZeroDivisionError

    wanted = alone("collect", "qwen3")
    with stopped(threads, failing, model) as dying, stopped(threads, collected, other) as running:
        assert dying is not running
        stop.go_on.set()
    with pytest.raises(ZeroDivisionError):
        dying.result()
    assert_same(running.result(), wanted)


@pytest.mark.parametrize("within", OPERATIONS)
@pytest.mark.parametrize("around", OPERATIONS)
def test_a_lens_within_a_pass_of_another_model(around: str, within: str) -> None:
    """In one thread: what a pass calls runs another model."""
    model, wanted, found = model_of("llama"), alone(within, "qwen3"), []
    first = alone(around, "llama")

    def nested(*_: Any) -> None:
        if not found:
            found.append(None)
            found[0] = OPERATIONS[within](model_of("qwen3"))

    hook = passes.before(model.layer(2)._module, nested)
    try:
        assert_same(OPERATIONS[around](model), first)
    finally:
        hook.remove()
    assert_same(found[0], wanted)


def wait_for_turn(number: int = 1) -> None:
    """Wait until so many threads wait for a model."""
    with passes._turns.changed:
        assert passes._turns.changed.wait_for(lambda: len(passes._turns.waiting) == number, LONG)


@pytest.mark.parametrize("within", OPERATIONS)
@pytest.mark.parametrize("around", OPERATIONS)
def test_one_model_in_two_threads_runs_in_turn(threads: ThreadPoolExecutor, around: str, within: str) -> None:
    first, second = alone(around, "llama"), alone(within, "llama")
    with stopped(threads, OPERATIONS[around], model_of("llama")) as running:
        waiting = threads.submit(OPERATIONS[within], model_of("llama"))
        wait_for_turn()
        assert not waiting.done()
    assert_same(running.result(), first)
    assert_same(waiting.result(LONG), second)


def test_one_module_in_two_wrappers_is_one_model(threads: ThreadPoolExecutor) -> None:
    model = StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), verify=False)
    again = StandardizedTransformer(model._module, tokenizer=tiny_tokenizer(), verify=False)
    with stopped(threads, traced, model) as running:
        waiting = threads.submit(traced, again)
        wait_for_turn()
    assert_same(running.result(), alone("trace", "llama"))
    assert_same(waiting.result(LONG), alone("trace", "llama"))


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_rotations_that_remember_a_length_are_not_shared(threads: ThreadPoolExecutor, name: str) -> None:
    model = with_rotation(name)
    prompts = [[1, *range(2, 2 + length)] for length in (6, 40)]

    def read(model: StandardizedTransformer, prompt: list[int]) -> list[Any]:
        sites = [Site("resid_post", layer) for layer in range(model.num_layers)]
        return list(collect(model, [prompt], sites, [[0, len(prompt) - 1]]).values())

    wanted = [read(with_rotation(name), prompt) for prompt in prompts]
    for one, other in ((0, 1), (1, 0)):
        with stopped(threads, lambda model, one=one: read(model, prompts[one]), model) as running:
            waiting = threads.submit(read, model, prompts[other])
            wait_for_turn()
        assert_same(running.result(), wanted[one])
        assert_same(waiting.result(LONG), wanted[other])


@torch.no_grad()
@pytest.mark.parametrize("operation", OPERATIONS)
def test_transformers_own_pass_of_the_model_is_plain(threads: ThreadPoolExecutor, operation: str) -> None:
    """In another thread, whose pass sees neither the trace nor the hooks nor the attention of the one that stands."""
    model, ids = model_of("llama"), torch.tensor([PROMPTS[0]])
    wanted, logits = alone(operation, "llama"), build("llama")(ids).logits

    def plain() -> Any:
        with torch.no_grad():
            return model._module(ids).logits

    with stopped(threads, OPERATIONS[operation], model) as running:
        assert torch.equal(threads.submit(plain).result(LONG), logits)
    assert_same(running.result(), wanted)


def test_threads_that_wait_for_each_other_are_refused(threads: ThreadPoolExecutor) -> None:
    models = [model_of("llama"), model_of("qwen3")]
    barrier = threading.Barrier(2)

    def run(own: int) -> Any:
        hold = []
        with models[own].trace(torch.tensor([PROMPTS[0]])):
            models[own].read("resid_post.0")
            barrier.wait(LONG)
            hold.append(logit_lens(models[1 - own], PROMPTS))
        return numbers(hold[0])

    running = [threads.submit(run, own) for own in (0, 1)]
    errors = [each.exception(LONG) for each in running]
    refused = [error for error in errors if error is not None]
    assert len(refused) == 1 and isinstance(refused[0], InterpError)
    assert "in use by a thread that waits for a model which this thread uses" in str(refused[0])
    other = errors.index(None)
    assert_same(running[other].result(), alone("logit lens", ["qwen3", "llama"][other]))


def test_a_trace_within_a_trace_of_one_model_is_refused() -> None:
    model = StandardizedTransformer(build("llama"), tokenizer=tiny_tokenizer(), verify=False)
    again = StandardizedTransformer(model._module, tokenizer=tiny_tokenizer(), verify=False)
    for other in (model, again):
        with pytest.raises(InterpError, match="a trace of LlamaForCausalLM is open"), model.trace(PROMPTS[0]):
            model.read("resid_post.0")
            with other.trace(PROMPTS[1]):
                other.read("resid_post.1")
        with pytest.raises(InterpError, match="a trace of LlamaForCausalLM is open"), model.trace(PROMPTS[0]):
            model.read("resid_post.0")
            logit_lens(other, PROMPTS)
    assert_same(traced(model), alone("trace", "llama"))


def test_a_trace_in_another_thread_is_no_trace_here(threads: ThreadPoolExecutor) -> None:
    """Values that are asked for outside a trace are refused, though another thread has one open."""
    model = model_of("llama")
    with stopped(threads, traced, model) as running:
        assert not passes.is_open(model)
        with pytest.raises(ValueError, match="outside of interleaving"):
            model.read("resid_post.1")
    assert_same(running.result(), alone("trace", "llama"))


def test_the_faster_products_are_one_threads(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "onednn")
    with faster_products():
        modes = threads.submit(_get_current_function_mode_stack).result(LONG)
        assert len(_get_current_function_mode_stack()) == len(modes) + 1


def test_a_hook_that_is_removed_in_the_middle_of_another_threads_pass(threads: ThreadPoolExecutor) -> None:
    """That pass has it on its list already, and calls it without keywords."""
    layer, seen = torch.nn.Linear(2, 2), []
    handle = passes.before(layer, lambda *_: seen.append(1))
    stop = Stop()
    layer.register_forward_pre_hook(stop, prepend=True)
    running = threads.submit(layer, torch.ones(1, 2))
    assert stop.reached.wait(LONG)
    handle.remove()
    stop.go_on.set()
    torch.testing.assert_close(
        running.result(LONG), torch.nn.functional.linear(torch.ones(1, 2), layer.weight, layer.bias)
    )
    assert not seen


def gradient(model: StandardizedTransformer, stop: Callable[[], Any] = lambda: None) -> list[Any]:
    found: list[Any] = []
    with model.trace(torch.tensor([PROMPTS[0]])):
        hidden = model.read("resid_post.1")
        loss = model.logits.sum()
        with loss.backward():
            found.append(hidden.grad.clone())
            stop()
    return found


def test_gradients_that_a_trace_reads_are_one_threads(threads: ThreadPoolExecutor) -> None:
    """nnsight puts a property over `torch.Tensor.grad`; a training elsewhere reads torch's, another block waits."""
    plain_grad = torch.Tensor.grad
    models = model_of("llama"), model_of("qwen3")
    wanted = [gradient(model) for model in models]
    stop = Stop()
    running = threads.submit(gradient, models[0], stop)
    assert stop.reached.wait(LONG)
    weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]))

    def train() -> torch.Tensor | None:
        (weight**2).sum().backward()
        grad = weight.grad
        torch.optim.SGD([weight], lr=0.5).step()
        return grad

    torch.testing.assert_close(threads.submit(train).result(LONG), torch.tensor([4.0, 6.0]))
    torch.testing.assert_close(weight.detach(), torch.zeros(2))
    waiting = threads.submit(gradient, models[1])
    wait_for_turn()
    stop.go_on.set()
    assert_same(running.result(LONG), wanted[0])
    assert_same(waiting.result(LONG), wanted[1])
    assert torch.Tensor.grad is plain_grad
