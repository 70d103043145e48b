"""Does the walk up the layers, and generation by it, give what plain forward passes give? Tried once on small cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import nnsight
import torch
from torch import Tensor

from interp.model.verdicts import SMALL, Trial, is_changed, sample_ids, verdict, verdicts_of
from interp.patching.generate import generate_walked
from interp.patching.patched_runs import WALKERS_READ_ONE_PREFIX, run_patched, walk
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Case", "cases", "fits", "generation_fits", "walk_fits"]


@torch.no_grad()
def walk_fits(model: StandardizedTransformer, longest: int) -> bool:
    """Whether `walk` gives what plain forward passes give.

    Recurrent layers, keys shared between layers and the like do not fit; then one line of the log says so. The verdict
    is kept.

    Arguments:
        model: the model.
        longest: tokens of the longest prompt.
    """
    consequence = "target prompts are run as a whole, layer by layer (slow): the fast way"
    return verdict(
        model, "walk", lambda length: [(case.walked, case.plain) for case in cases(model, length)], consequence,
        longest=longest, choice=WALKERS_READ_ONE_PREFIX,
    )  # fmt: skip


@torch.no_grad()
def fits(
    model: StandardizedTransformer,
    name: str,
    trial: Trial,
    *,
    longest: int,
    choice: str | None = None,
) -> bool:
    """Whether another fast way that walks gives what the slow one gives; where not, one line of the log says so.

    Where patches do not walk (`walk_fits`, which has its own line), nothing else does.

    Arguments:
        model: the model.
        name: what is done, as the log calls it.
        trial: a case of so many tokens, done both ways.
        longest: tokens of the longest prompt.
        choice: a faster form that it may take; see `interp.model.verdicts.verdict`.
    """
    if not walk_fits(model, longest):
        if not is_changed(model) and not walk_fits(model, SMALL):
            verdicts_of(model)[name] = False
        return False
    consequence = f"for {name}, prompts are run as a whole (slow): the fast way"
    return verdict(model, name, trial, consequence, longest=longest, choice=choice)


@dataclass(frozen=True)
class Case:
    """Target prompts, what is written into them, and where.

    Arguments:
        model: the model.
        ids: (row, length).
        positions: the tokens that are written.
        latents: layer -> (row, position, hidden).
        from_layer: whether later layers are written too.
    """

    model: StandardizedTransformer
    ids: Tensor
    positions: list[int]
    latents: dict[int, Tensor]
    from_layer: bool

    @property
    def layers(self) -> list[int]:
        """The layers that are patched."""
        last = self.model.num_layers - 1
        return sorted({0, self.model.num_layers // 2, last})

    def walked(self) -> Tensor:
        """(layer, row, hidden) by the walk."""
        variants = {layer: latent[None] for layer, latent in self.latents.items()}
        later = self.latents if self.from_layer else None
        ids = self.ids.to(self.model.device)
        return walk(self.model, ids, self.positions, variants, layers=self.layers, later=later)[0][:, 0]

    def plain(self, following: Tensor | None = None) -> Tensor:
        """(layer, row, hidden) by whole forward passes, also with tokens (layer, row, token) that follow."""
        found = []
        for index, layer in enumerate(self.layers):
            ids = self.ids if following is None else torch.cat([self.ids, following[index]], dim=1)
            patched = range(layer, self.model.num_layers) if self.from_layer else [layer]
            writes = [(Site("resid_post", held), self.latents[held]) for held in patched]
            found.append(run_patched(self.model, ids.tolist(), [self.positions] * len(ids), writes))
        return torch.stack(found)


def cases(model: StandardizedTransformer, length: int = SMALL) -> list[Case]:
    """Two of so many tokens: several tokens from a layer on; the last token at one layer."""
    ids = sample_ids(model, length=length).cpu()
    rows = len(ids)
    generator = torch.Generator().manual_seed(1)
    size = _typical_size(model, ids)
    latents = {
        layer: (
            size * torch.randn(rows, 2, model.hidden_size, generator=generator, dtype=torch.float32, device="cpu")
        ).to(model.device, model.dtype)
        for layer in range(model.num_layers)
    }
    first = {layer: latent[:, :1] for layer, latent in latents.items()}
    middle = length // 2
    return [Case(model, ids, [middle, middle + 2], latents, True), Case(model, ids, [length - 1], first, False)]


def _typical_size(model: StandardizedTransformer, ids: Tensor) -> float:
    """Root mean square of the residual stream in the middle of the model."""
    last = Site("resid_post", model.num_layers // 2)
    with model.trace(input_ids=ids, use_cache=False) as tracer:
        size = nnsight.save(model.read(last).float().square().mean().sqrt())
        tracer.stop()
    return float(size)


_STEPS = 3


@torch.no_grad()
def generation_fits(model: StandardizedTransformer, longest: int) -> bool:
    """Whether `generate_walked` predicts what plain forward passes predict, token by token.

    Where it does not, one line of the log says so. The verdict is kept.

    Arguments:
        model: the model.
        longest: tokens of the longest prompt, new ones included.
    """
    return fits(
        model,
        "patchscope generation",
        lambda length: [
            (
                lambda: torch.stack([_walked(case) for case in _cases(model, length)]),
                lambda: torch.stack([_plain(case) for case in _cases(model, length)]),
            )
        ],
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
