"""Path patching against two traces a cell, all else written by hand; and what follows from the definition."""

from __future__ import annotations

import logging
from typing import Any

import nnsight
import numpy as np
import pytest
import torch

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.model.verdicts import verdicts_of
from interp.patching import activation_patching, path_patching
from interp.sites import ATTENTION_KINDS
from tests.interp.patching.test_activation_patching import ANSWERS, difference, prompts, wrapped


def sites_of(model: StandardizedTransformer) -> list[str]:
    kinds = ("attn_out", "mlp_out")
    return [f"{kind}.{layer}" for layer in range(model.num_layers) for kind in kinds]


@torch.no_grad()
def values(model: StandardizedTransformer, ids: list[int], sites: list[str]) -> dict[str, torch.Tensor]:
    found: dict[str, Any] = {}
    with model.trace(input_ids=torch.tensor([ids]), use_cache=False):
        for site in model.in_order(sites):
            found[str(site)] = nnsight.save(model.read(site).clone())
    return found


@torch.no_grad()
def twin(
    model: StandardizedTransformer, base: list[int], source: list[int], sender: str, position: int, head: int | None,
    receiver: str, receiver_head: int | None, own: str,
) -> torch.Tensor:  # fmt: skip
    """Last logits of one prompt, after the sender's value of another one has come to the receiver directly.

    Arguments:
        own: the output that the sender is on the way to; it is not held.
    """
    given = values(model, source, [sender])[sender]
    held = values(model, base, sites_of(model))
    order = model.in_order([sender, receiver, *held])
    first, last = (next(i for i, site in enumerate(order) if str(site) == name) for name in (sender, receiver))
    received: torch.Tensor
    with model.trace(input_ids=torch.tensor([base]), use_cache=False):
        for index in range(first, last + 1):
            name = str(order[index])
            if name == sender:
                live = model.read(name).clone()
                live[0, position] = given[0, position] if head is None else live[0, position]
                if head is not None:
                    live[0, position, head] = given[0, position, head]
                model.write(name, live)
            elif name == receiver:
                received = nnsight.save(model.read(name).clone())
            elif name != own:
                model.write(name, held[name])
    logits: torch.Tensor
    with model.trace(input_ids=torch.tensor([base]), use_cache=False):
        live = model.read(receiver).clone()
        if receiver_head is None:
            live = received
        else:
            live[:, receiver_head] = received[:, receiver_head]
        model.write(receiver, live)
        logits = nnsight.save(model.logits[0, -1].clone())
    return logits


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom"])
def test_paths_are_what_traces_by_hand_give(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = wrapped(family)
    verdicts_of(model).clear()  # other tests may have had it tried before
    clean, corrupted = prompts(7)
    last = model.num_layers - 1
    paths = [("z", "q", 1, "attn_out"), ("mlp_post", "mlp_in", None, "mlp_out"), ("attn_out", "v", 0, "attn_out")]
    if family == "bloom":
        paths = [("attn_out", "mlp_in", None, "attn_out")]
    effects = []
    with caplog.at_level(logging.WARNING, logger="interp"):
        for sender, receiver, receiver_head, own in paths:
            heads = [0, 2] if sender == "z" else None
            name = f"{receiver}.{last}" if receiver_head is None else f"{receiver}.{last}.h{receiver_head}"
            result = path_patching(
                model, clean, corrupted, sender, name, [4, 6], layers=[0, 1], heads=heads, answers=ANSWERS[:2]
            )
            assert receiver not in ATTENTION_KINDS or receiver_head is not None
            for example, layer, place in ((0, 0, 0), (1, 1, 0), (0, 1, 1)):
                head = None if heads is None else heads[example]
                logits = twin(
                    model, corrupted[example], clean[example], f"{sender}.{layer}", [4, 6][place], head,
                    f"{receiver}.{last}", receiver_head, f"{own}.{layer}",
                )  # fmt: skip
                found = result.patched[example, layer, place, ..., 0]
                expected = difference(logits, example)
                np.testing.assert_allclose(found if head is None else found[example], expected, atol=1e-5)
            effects.append(float(np.abs(result.effect).max()))
    assert max(effects) > 1e-2
    assert len([one for one in caplog.records if "as a whole" in one.message]) == (family == "bloom")


def test_what_the_definition_says() -> None:
    model = wrapped("llama")
    clean, corrupted = prompts(7)
    given: dict[str, Any] = dict(answers=ANSWERS[:2], metric=["logit_difference", "kl"])
    last = f"resid_post.{model.num_layers - 1}"
    # From the last layer's MLP there is one path to the logits.
    direct = path_patching(model, clean, corrupted, "mlp_out", last, "all", **given)
    total = activation_patching(model, clean, corrupted, "mlp_out", **given)
    np.testing.assert_allclose(direct.patched[:, -1], total.patched[:, -1], atol=1e-5)
    assert np.abs(direct.patched[:, 0] - total.patched[:, 0]).max() > 1e-3
    # Behind the receivers, and at other receiving tokens, nothing comes.
    behind = path_patching(model, clean, corrupted, "z", "q.1.h0", heads="all", **given)
    assert behind.axes == ("example", "layer", "head")
    np.testing.assert_array_equal(behind.effect[:, 1:], 0)
    elsewhere = path_patching(model, clean, corrupted, "z", ["k.2.h0", "v.2.h1"], -1, receiver_positions=3, **given)
    np.testing.assert_allclose(elsewhere.effect, 0, atol=1e-5)
    # What is not held goes on: then MLPs carry some of it too.
    through_mlps = path_patching(model, clean, corrupted, "z", "q.3.h0", frozen=["attn_out"], **given)
    held = path_patching(model, clean, corrupted, "z", "q.3.h0", **given)
    assert np.abs(through_mlps.patched[:, 0] - held.patched[:, 0]).max() > 1e-5
    np.testing.assert_allclose(through_mlps.patched[:, 3], held.patched[:, 3], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(receivers="logits"), "'logits' is not part of a layer. The direct effect on the logits"),
        (dict(receivers="q.9"), "layer"),
        (dict(frozen=["resid_post"]), "frozen: expected some of attn_out, mixer_out, mlp_out"),
        (dict(senders=["z", "q"]), "one kind"),
        (dict(receiver_positions=40), "out of range"),
    ],
)
def test_mistakes_are_refused(changes: dict[str, Any], message: str) -> None:
    clean, corrupted = prompts()
    given: dict[str, Any] = dict(clean=clean, corrupted=corrupted, senders="z", receivers="q.3", answers=ANSWERS[:2])
    with pytest.raises(InterpError, match=message):
        path_patching(wrapped("llama"), **{**given, **changes})
