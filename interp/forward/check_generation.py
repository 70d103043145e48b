"""Whether generation by a walk fits a model's family, found out once by small cases done both ways."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.forward.check import Case, cases, fits
from interp.forward.generate import generate_walked
from interp.model.regimes import SMALL

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["generation_fits"]

_STEPS = 3


@torch.no_grad()
def generation_fits(model: StandardizedTransformer, longest: int) -> bool:
    """Whether `generate_walked` predicts what plain forward passes predict, token by token.

    Where it does not, one line of the log says so. The verdict is kept by the model.

    Arguments:
        model: the model.
        longest: tokens of the longest prompt, new ones included.
    """
    return fits(
        model,
        "patchscope generation",
        lambda length: (
            lambda: torch.stack([_walked(case) for case in _cases(model, length)]),
            lambda: torch.stack([_plain(case) for case in _cases(model, length)]),
        ),
        longest=longest,
    )


def _cases(model: StandardizedTransformer, length: int) -> list[Case]:
    """Two prompts; and one, whose runs are one row as long as they say the same. It passes a limit as it goes on."""
    several, one = cases(model, length)
    first = replace(one, ids=one.ids[:1].expand_as(one.ids))
    if length > SMALL:
        limit = length - SMALL
        first = replace(first, ids=first.ids[:, : limit - 1], positions=[limit - 2])
    return [several, first]


def _following(case: Case) -> Tensor:
    """(layer, row, token), tokens that are given: were they chosen, roundings could change them. They are those of the
    row, but for the last layer's, which are others from the second on."""
    tokens = (
        torch.arange(_STEPS, device="cpu") + _STEPS * torch.arange(len(case.ids), device="cpu")[:, None] + 3
    )  # (row, token)
    by_layer = tokens.repeat(len(case.layers), 1, 1)
    by_layer[-1, :, 1:] += 2
    return by_layer


def _walked(case: Case) -> Tensor:
    """(layer, row, token, vocabulary), logits before each of these tokens. The first row's runs end behind their first
    one, so that the others go on without them; after that theirs are zero."""
    model, layers = case.model, case.layers
    ids = case.ids[:1] if bool((case.ids == case.ids[0]).all()) else case.ids
    tokens = _following(case).flatten(0, 1)  # (run, token)
    seen = torch.zeros(*tokens.shape, model.vocab_size, dtype=torch.float32, device="cpu")

    def choose(logits: Tensor, runs: Tensor, step: int) -> Tensor:
        seen[runs, step] = logits.float().cpu()
        return tokens[runs, step]

    generate_walked(
        model, ids.to(model.device), case.positions, case.latents, layers=layers,
        later=case.latents if case.from_layer else None, max_new_tokens=_STEPS, choose=choose,
        stop_ids=[int(tokens[0, 0])],
    )  # fmt: skip
    return seen.unflatten(0, (len(layers), -1))


def _plain(case: Case) -> Tensor:
    """The same by whole forward passes."""
    following = _following(case)
    steps = [case.model.readout(case.plain(following[..., :step])).float().cpu() for step in range(_STEPS)]
    seen = torch.stack(steps, dim=2)
    seen[:, 0, 1:] = 0
    return seen
