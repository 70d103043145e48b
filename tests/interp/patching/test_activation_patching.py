"""Activation patching against a trace for each example and cell, in a few families; its identities; what it costs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import nnsight
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.patching import activation_patching
from interp.patching.grid import GridPlan
from interp.prompts import Prompt
from interp.results import PatchingResult
from interp.sites import ATTENTION_KINDS, HEAD_KINDS
from tests.families import build
from tests.tiny import tiny_model, tiny_tokenizer

ANSWERS = [(5, 9), (7, 12), (200, 31)]


@cache
def wrapped(family: str) -> StandardizedTransformer:
    module = build(family) if family == "bloom" else tiny_model(family)
    return StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)


def prompts(length: int = 8, pairs: int = 2) -> tuple[list[list[int]], list[list[int]]]:
    """Pairs of one length that begin with the same two tokens."""
    clean = torch.randint(3, 400, (pairs, length), generator=torch.Generator().manual_seed(0)).tolist()
    corrupted = torch.randint(3, 400, (pairs, length), generator=torch.Generator().manual_seed(1)).tolist()
    return clean, [[*one[:2], *other[2:]] for one, other in zip(clean, corrupted, strict=True)]


@torch.no_grad()
def twin(
    model: StandardizedTransformer, site: str, base: Sequence[int], source: Sequence[int],
    written: Sequence[int], taken: Sequence[int], head: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Last logits (vocabulary,) of one prompt with another one's values in it, by two traces."""
    kind = site.partition(".")[0]

    def by_position(value: torch.Tensor) -> torch.Tensor:
        return value[0].transpose(0, 1) if kind in ATTENTION_KINDS else value[0]

    with model.trace(input_ids=torch.tensor([list(source)]), use_cache=False):
        value = nnsight.save(model.read(site).clone())
    logits: torch.Tensor
    with model.trace(input_ids=torch.tensor([list(base)]), use_cache=False):
        live = model.read(site).clone()
        for to, of in zip(written, taken, strict=True):
            if head is None:
                by_position(live)[to] = by_position(value)[of]
            else:
                by_position(live)[to, head] = by_position(value)[of, head]
        model.write(site, live)
        logits = nnsight.save(model.logits[0, -1].clone())
    return logits


def difference(logits: torch.Tensor, example: int) -> float:
    right, wrong = ANSWERS[example]
    return float(logits[right] - logits[wrong])


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gpt2", ["resid_pre", "attn_out", "k", "mlp_post"]),
        ("llama", ["resid_mid", "q", "z", "scores", "head_out", "mlp_in"]),  # grouped queries
        ("gemma2", ["resid_pre", "z", "pattern", "mlp_out"]),  # a window, norms behind sublayers
        ("gpt_neox", ["resid_post", "attn_in", "head_out", "v"]),  # attention and MLP side by side
        ("bloom", ["resid_pre", "z"]),  # attention of its own, so whole forward passes
    ],
)
def test_cells_are_what_single_traces_give(family: str, kinds: list[str], caplog: pytest.LogCaptureFixture) -> None:
    model = wrapped(family)
    clean, corrupted = prompts()
    layers, places = [1, model.num_layers - 1], [1, 4, 7]
    with caplog.at_level(logging.WARNING, logger="interp"):
        for kind in kinds:
            heads = [0, 1] if kind in HEAD_KINDS else None
            for direction in ("denoising", "noising") if kind == "resid_pre" else ("denoising",):
                result = activation_patching(
                    model, clean, corrupted, kind, places, layers=layers, heads=heads, answers=ANSWERS[:2],
                    direction=direction,
                )  # type: ignore[arg-type]  # fmt: skip
                base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
                for (example, layer, place), head in zip(
                    [(0, 0, 0), (1, 0, 1), (0, 1, 2), (1, 1, 1)], [0, 1, 1, 0], strict=True
                ):
                    at = [places[place]]
                    own = None if heads is None else head
                    logits = twin(model, f"{kind}.{layers[layer]}", base[example], source[example], at, at, own)
                    found = result.patched[example, layer, place, ..., 0]
                    expected = difference(logits, example)
                    np.testing.assert_allclose(found if own is None else found[own], expected, atol=1e-5, err_msg=kind)
    slow = [record.message for record in caplog.records if "as a whole" in record.message]
    assert len(slow) == (family == "bloom"), slow


def marked(before: str, word: str, after: str) -> Prompt:
    return Prompt(before + word + after, spans={"subject": (len(before), len(before) + len(word))})


def test_pairs_of_different_lengths() -> None:
    model = wrapped("llama")
    clean = [marked("the quick ", "fox", " jumps over"), marked("hello ", "cat", "?")]
    corrupted = [marked("a very lazy ", "dog", " jumps over"), marked("king of the ", "hare", "?!")]
    both = [[one.encode(model.tokenizer) for one in several] for several in (clean, corrupted)]
    assert {len(of.input_ids) - len(into.input_ids) for of, into in zip(*both, strict=True)} != {0}
    result = activation_patching(
        model, clean, corrupted, "mlp_out", ["subject.last", "-1"], layers=[0, 2], answers=ANSWERS[:2]
    )
    together = activation_patching(
        model, clean, corrupted, "mlp_out", {"both": ["subject.last", "last"]}, layers=[0, 2], answers=ANSWERS[:2]
    )
    assert result.along("position") == ("subject.last", "-1") and together.along("position") == ("both",)
    assert result.token_ids is not None and together.token_ids is None
    for example, (of, into) in enumerate(zip(*both, strict=True)):
        ends = [(one.spans["subject"][1] - 1, len(one.input_ids) - 1) for one in (into, of)]
        assert result.token_ids[example].tolist() == [into.input_ids[at] for at in ends[0]]
        for layer, number in enumerate((0, 2)):
            for place in (0, 1):
                logits = twin(
                    model, f"mlp_out.{number}", into.input_ids, of.input_ids, [ends[0][place]], [ends[1][place]]
                )
                np.testing.assert_allclose(
                    result.patched[example, layer, place, 0], difference(logits, example), atol=1e-5
                )
            logits = twin(model, f"mlp_out.{number}", into.input_ids, of.input_ids, *ends)
            np.testing.assert_allclose(together.patched[example, layer, 0, 0], difference(logits, example), atol=1e-5)


def test_prompts_with_fewer_positions_have_no_number_there() -> None:
    model = wrapped("gpt2")
    clean, corrupted = prompts(8)
    clean[1], corrupted[1] = clean[1][:5], corrupted[1][:5]
    result = activation_patching(model, clean, corrupted, layers=[1], answers=ANSWERS[:2])
    assert result.along("position") == tuple(range(8))
    assert np.isnan(result.patched[1, 0, 5:]).all() and np.isfinite(result.patched[0]).all()
    assert result.token_ids is not None and result.token_ids[1].tolist() == [*corrupted[1], -1, -1, -1]
    alone = activation_patching(model, clean[1:], corrupted[1:], layers=[1], answers=ANSWERS[1:2])
    np.testing.assert_allclose(alone.patched[0, 0], result.patched[1, 0, :5], atol=1e-6)


@pytest.mark.parametrize("kind", ["resid_pre", "head_out", "pattern"])
def test_identities(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("llama")
    clean, corrupted = prompts(9)
    given: dict[str, Any] = dict(answers=ANSWERS[:2], metric=["logit_difference", "log_probability"])
    denoised = activation_patching(model, clean, corrupted, kind, **given)
    noised = activation_patching(model, corrupted, clean, kind, direction="noising", **given)
    np.testing.assert_array_equal(denoised.patched, noised.patched)  # each other's mirror
    np.testing.assert_array_equal(denoised.clean, noised.corrupted)
    np.testing.assert_allclose(denoised.recovery, 1 - noised.recovery, atol=1e-5)
    # Before the first token that differs nothing changes, and none of it is run.
    np.testing.assert_array_equal(denoised.effect[:, :, :2], 0)
    assert (np.abs(denoised.effect[:, :, 2:]) > 0).any()
    monkeypatch.setattr(GridPlan, "_same", lambda *_: 0)
    itself = activation_patching(model, clean, clean, kind, **given)
    np.testing.assert_allclose(itself.effect, 0, atol=1e-5)  # self-patching changes nothing
    np.testing.assert_allclose(activation_patching(model, clean, corrupted, kind, **given).patched, denoised.patched,
                               atol=1e-5)  # fmt: skip


def test_cells_that_change_nothing_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("llama")
    clean, _ = prompts(9)
    corrupted = [[*one[:4], one[4] + 1, *one[5:]] for one in clean]
    given: dict[str, Any] = dict(answers=ANSWERS[:2])
    result = activation_patching(model, clean, corrupted, **given)
    np.testing.assert_array_equal(result.effect[:, :, :4], 0)
    np.testing.assert_array_equal(result.effect[:, 0, 5:], 0)  # the embedding of the same token
    np.testing.assert_allclose(result.recovery[:, 0, 4], 1, atol=1e-3)
    assert (np.abs(result.effect[:, 1:, 4:]) > 0).all()
    monkeypatch.setattr(GridPlan, "fits", lambda _: False)
    np.testing.assert_allclose(activation_patching(model, clean, corrupted, **given).patched, result.patched, atol=1e-5)


def test_everything_at_layer_0_gives_the_source() -> None:
    model = wrapped("gemma2")
    clean, corrupted = prompts(9)
    metrics = ["logit_difference", "probability", "kl"]
    result = activation_patching(
        model, clean, corrupted, positions=None, layers=[0], answers=ANSWERS[:2], metric=metrics
    )
    assert result.axes == ("example", "layer")
    np.testing.assert_allclose(result.patched[:, 0], result.clean, atol=1e-5)
    np.testing.assert_allclose(result.recovery, 1, atol=1e-4)
    np.testing.assert_allclose(result.clean[:, 2], 0, atol=1e-6)
    assert (result.corrupted[:, 2] > 1e-3).all()


@torch.no_grad()
def test_a_grid_costs_less_than_a_third_of_its_forward_passes() -> None:
    layers, tokens = 8, 16
    model = StandardizedTransformer(
        tiny_model("llama", num_hidden_layers=layers), tokenizer=tiny_tokenizer(), verify=False
    )
    clean, corrupted = prompts(tokens)
    corrupted = [[one[0] + 1, *one[1:]] for one in corrupted]  # they differ from the first token on
    activation_patching(model, clean[:1], corrupted[:1], answers=ANSWERS[:1])  # the trial
    with FlopCounterMode(display=False) as forward:
        model._module(input_ids=torch.tensor(corrupted), use_cache=False, logits_to_keep=1)
    with FlopCounterMode(display=False) as grid:
        found = activation_patching(model, clean, corrupted, answers=ANSWERS[:2])
    cells = layers * tokens
    assert 0.2 < grid.get_total_flops() / (cells * forward.get_total_flops()) < 0.3
    for example, layer, place in ((0, 0, 0), (1, 7, 15), (1, 4, 9)):
        logits = twin(model, f"resid_pre.{layer}", corrupted[example], clean[example], [place], [place])
        np.testing.assert_allclose(found.patched[example, layer, place, 0], difference(logits, example), atol=1e-5)


def test_several_sites_some_layers_and_a_small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("gpt2")
    clean, corrupted = prompts(7, pairs=3)
    given: dict[str, Any] = dict(layers=[0, 3], metric={"own": lambda logits, examples: logits[:, 3] + examples})
    whole = activation_patching(model, clean, corrupted, ["attn_out", "resid_post"], [-1, "2:4"], **given)
    assert whole.axes == ("example", "site", "layer", "position") and whole.group_names == ("own",)
    assert whole.along("position") == ("-1", "2:4[0]", "2:4[1]")
    monkeypatch.setattr(GridPlan, "budget", 1)
    monkeypatch.setattr("interp.patching.grid_walk._PIECE", 1)
    few = activation_patching(model, clean, corrupted, ["attn_out", "resid_post"], [-1, "2:4"], batch_size=2, **given)
    np.testing.assert_allclose(few.patched, whole.patched, atol=1e-5)


@torch.no_grad()
def test_a_model_that_the_user_has_changed_runs_whole_prompts(caplog: pytest.LogCaptureFixture) -> None:
    module = tiny_model("llama")
    module.get_submodule("model.layers.1.mlp").register_forward_hook(lambda *given: 1.1 * given[2])
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    clean, corrupted = prompts(6)
    with caplog.at_level(logging.WARNING, logger="interp"):
        result = activation_patching(model, clean, corrupted, "z", [3], layers=[1], heads=[2], answers=ANSWERS[:2])
    assert "prompts are run as a whole" in caplog.text
    logits = twin(model, "z.1", corrupted[1], clean[1], [3], [3], 2)
    np.testing.assert_allclose(result.patched[1, 0, 0, 0, 0], difference(logits, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sites="resid_pref"), "got 'resid_pref'. Did you mean 'resid_pre'"),
        (dict(sites="logits"), "expected kinds of site that layers have, got 'logits'"),
        (dict(sites=["z", "z"]), "each once"),
        (dict(sites="mlp_post", heads="all"), "mlp_post has no heads"),
        (dict(sites=["q", "k"], heads="all"), r"different numbers of heads \(q 4, k 2\)"),
        (dict(sites="z", heads=[4]), "expected some of 0 to 3"),
        (dict(sites="z", heads="each"), "expected 'all', numbers from 0"),
        (dict(layers=[4]), "layer"),
        (dict(layers=1), r"several numbers, e\.g\. \[0, 3\]"),
        (dict(positions="9"), "positions: position '9' is out of range"),
        (dict(positions={"two": ["1", "1:3"]}), "some tokens are named twice"),
        (dict(direction="forwards"), "direction: unknown 'forwards'"),
        (dict(corrupted=[[5, 6, 7]]), "got 2 clean and 1 corrupted"),
        (dict(corrupted=[[5, 6, 7]] * 2), "'all': pair 0 has 3 and 8 such tokens"),
        (dict(corrupted=[[5, 6, 7]] * 2, positions=None), "pair 0 has 3 and 8 tokens, and whole prompts"),
        (dict(corrupted=[[5, 6, 7]] * 2, positions="last", sites="pattern"), "maps from queries to keys"),
        (dict(answers=None), "needs answers"),
        (dict(batch_size=0), "batch_size: expected at least 1"),
    ],
)
def test_mistakes_are_refused(changes: dict[str, Any], message: str) -> None:
    clean, corrupted = prompts()
    given: dict[str, Any] = dict(clean=clean, corrupted=corrupted, answers=ANSWERS[:2])
    with pytest.raises(InterpError, match=message):
        activation_patching(wrapped("llama"), **{**given, **changes})


def test_a_result_says_what_it_is() -> None:
    clean, corrupted = prompts()
    result = activation_patching(wrapped("gpt2"), clean, corrupted, "z", "last", heads="all", answers=ANSWERS[:2])
    assert isinstance(result, PatchingResult)
    assert repr(result).startswith(
        "PatchingResult(example: 2, layer: 4, position: 1, head: 4; groups: logit_difference"
    )
    with pytest.raises(InterpError, match=r"resid_mid\.0 does not exist in GPTNeoXForCausalLM"):
        activation_patching(wrapped("gpt_neox"), clean, corrupted, "resid_mid", answers=ANSWERS[:2])
