"""`model.run`: prompts with interventions, in batches; sites, gradients and new tokens in the same passes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.chosen_sites import sites_of
from interp.activations.edited_pass import EditedPass, GradientsOf, Read
from interp.activations.forward_passes import ForwardPasses
from interp.activations.generating import NewTokens, generate
from interp.activations.prompt_batches import PaddingSide, Pass, encoded_prompts, resolved
from interp.activations.run_result import RunResult, SiteTensors
from interp.errors import InterpError
from interp.forward.layers import check_ready
from interp.forward.prefix import FrozenPrefix
from interp.forward.rope import forget_lengths
from interp.interventions import Intervention
from interp.interventions.checks import plan_edits
from interp.interventions.edits import Edit, Source
from interp.interventions.perform import drawn
from interp.interventions.shapes import of_whole_layout
from interp.passes import check_gradients, in_turn
from interp.positions import check_positions
from interp.prompts import Encoded
from interp.readout import Sampling, stop_tokens
from interp.sites import ATTENTION_KINDS, HEAD_KINDS, MAP_KINDS, Site, Spelling

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["planned_edits", "run"]


@in_turn
def run(
    model: StandardizedTransformer,
    prompts: Any,
    interventions: Intervention | Iterable[Intervention] = (),
    *,
    images: Any = None,
    read: Spelling | Iterable[Spelling] = (),
    positions: str | int | Sequence[str | int] = "last",
    gradients_of: GradientsOf | None = None,
    logits: bool = True,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Collection[int] | None = None,
    prefix: FrozenPrefix | None = None,
    batch_size: int | None = None,
    padding_side: PaddingSide = "left",
    keep_graph: bool = False,
) -> RunResult:
    """Run prompts with interventions; see `interp.model.StandardizedTransformer.run`, which calls this."""
    check_ready(model)
    if gradients_of is not None:
        check_gradients("gradients_of")
    if model.device.type == "meta":
        raise InterpError(
            f"{type(model._module).__name__} was loaded without weights (remote=True), so it cannot be run here. Load "
            "it with them, or write into it by hand in trace(..., remote=True)."
        )
    if max_new_tokens is not None:
        _check_generation(max_new_tokens, gradients_of, padding_side, keep_graph=keep_graph)
    elif temperature or seed or any(given is not None for given in (top_k, top_p, stop_ids)):
        raise InterpError("temperature, top_k, top_p, seed, stop_ids: are of new tokens. Give max_new_tokens.")
    more = None if max_new_tokens is None else max_new_tokens - 1  # the last is not fed any more
    passes = ForwardPasses.of(
        model, prompts, images=images, prefix=prefix, batch_size=batch_size, padding_side=padding_side, more=more,
    )  # fmt: skip
    named = read if isinstance(read, str | Site | tuple) else list(read)
    sites = sites_of(model, named) if named else []
    asked = [positions] if isinstance(positions, str | int) else list(positions)
    slots, labels = resolved(check_positions([word for text in asked for word in str(text).split()]), passes.encoded)
    sampling, stops = Sampling(temperature, top_k, top_p, seed), stop_tokens(model) if stop_ids is None else stop_ids
    edits = planned_edits(passes, interventions, batch_size, padding_side)
    inside = any(site.kind in ATTENTION_KINDS for site in (*sites, *(edit.site for edit in edits)))
    differentiates = gradients_of is not None or (keep_graph and torch.is_grad_enabled())
    gathered = _Gathered(model, keep_graph=keep_graph)
    new = None if max_new_tokens is None else NewTokens.none(len(passes.encoded), max_new_tokens)
    for one in passes.passes:
        forget_lengths(model)
        done = EditedPass(
            model, passes.window(one), edits, _reading(one, sites, slots), logits=logits, last_logits=new is not None,
            keep_graph=keep_graph,
        )  # fmt: skip
        if new is not None:
            generate(done, one, passes.input_ids, new, sampling, stops, passes.media)
        else:
            with torch.set_grad_enabled(differentiates), passes.sharing(one, inside_attention=inside):
                done.run(one.inputs, gradients_of)
        gathered.take(one.batch.rows, done)
    return gathered.result(sites, labels, slots, new, logits=logits)


def _check_generation(
    max_new_tokens: int, gradients_of: GradientsOf | None, padding_side: str, *, keep_graph: bool
) -> None:
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise InterpError(f"max_new_tokens: expected at least 1, or None, got {max_new_tokens!r}.")
    if gradients_of is not None or keep_graph:
        raise InterpError(
            "max_new_tokens: the choice of a token has no gradient. Generate first; then run the whole text, prompt "
            "and new tokens, with gradients_of."
        )
    if padding_side != "left":
        raise InterpError("padding_side: a generation goes on behind each prompt's last token, so it pads on the left.")


def _reading(one: Pass, sites: Sequence[Site], slots: Sequence[Sequence[int]]) -> Read:
    batch = one.batch
    own = torch.tensor([slots[row] for row in batch.rows], device="cpu").reshape(len(batch.rows), -1)
    return Read(sites, batch.columns(own), batch.lengths + one.before, batch.before, one.before)


# Other runs -----------------------------------------------------------------------------------------------------------


def planned_edits(
    passes: ForwardPasses,
    interventions: Intervention | Iterable[Intervention],
    batch_size: int | None = None,
    padding_side: PaddingSide = "left",
) -> list[Edit]:
    """Interventions as edits of prompts, with what other runs have to give them.

    Arguments:
        passes: the prompts.
        interventions: one or several.
        batch_size, padding_side: of other runs.

    Raises:
        InterpError: what does not fit, and what would; a site that the passes do not come by.
    """

    def encode(given: Any) -> list[Encoded]:
        return encoded_prompts(passes.model, given, name="value")

    edits = plan_edits(passes.model, interventions, passes.encoded, encode, passes.whole_prompts)
    for edit in edits:
        passes.check_runs(edit.site)
    _read_sources(passes.model, edits, batch_size, padding_side)
    return edits


@torch.no_grad()
def _read_sources(
    model: StandardizedTransformer, edits: Sequence[Edit], batch_size: int | None, padding_side: PaddingSide
) -> None:
    """Read what edits take from other runs, and make it their value; each other run is made once."""
    groups: dict[int, list[tuple[Edit, Source]]] = {}
    for edit in edits:
        if edit.source is not None:
            groups.setdefault(id(edit.source.positions), []).append((edit, edit.source))
    for group in groups.values():
        encoded, positions = group[0][1].encoded, group[0][1].positions
        width = max(map(len, positions))
        slots = [[*tokens, *[-1] * (width - len(tokens))] for tokens in positions]
        sites = model.in_order(list({source.site for _, source in group}))
        gathered = _Gathered(model, keep_graph=False)
        passes = ForwardPasses.whole(model, list(encoded), batch_size, padding_side)
        for one in passes.passes:
            forget_lengths(model)
            done = EditedPass(model, passes.window(one), (), _reading(one, sites, slots))
            done.run(one.inputs)
            gathered.take(one.batch.rows, done)
        values = gathered.entries(sites)
        for edit, source in group:
            value = values[source.site]
            value = value if source.heads is None else value[:, :, source.heads]
            edit.value = _reduced(edit, source, value)


def _reduced(edit: Edit, source: Source, value: Tensor) -> Tensor:
    """What an edit takes of (prompt, position, [head,] number) in another run."""
    given = edit.intervention
    if given.operation == "mean":
        over = (0,) if given.mean_over == "prompts" else (0, 1)
        return value.float().nanmean(dim=over, keepdim=True)
    if source.others is None:
        return value
    drawn_from = zip(edit.ids, source.others, strict=True)
    return value[[others[drawn(given.seed, "resample", ids, len(others))] for ids, others in drawn_from]]


# Together -------------------------------------------------------------------------------------------------------------


class _Gathered:
    """What passes gave, of all examples in their order."""

    def __init__(self, model: StandardizedTransformer, *, keep_graph: bool) -> None:
        self.model, self.keep_graph = model, keep_graph
        self.rows: list[int] = []
        self.values: dict[Site, list[Tensor]] = {}
        self.gradients: dict[Site, list[Tensor]] = {}
        self.metric: list[Tensor] = []

    def take(self, rows: Sequence[int], done: EditedPass) -> None:
        self.rows += rows
        for into, given in ((self.values, done.values), (self.gradients, done.gradients)):
            for site, value in given.items():
                into.setdefault(site, []).append(value if self.keep_graph else value.cpu())
        if done.metric is not None:
            self.metric.append(done.metric if self.keep_graph else done.metric.cpu())

    def entries(self, sites: Iterable[Site], *, gradients: bool = False) -> dict[Site, Tensor]:
        """(example, position, [head,] number) of each site."""
        held = self.gradients if gradients else self.values
        whole = {site: self._joined(site.kind, parts) for site, parts in held.items()}
        return {
            site: whole[replace(site, head=None)] if site.head is None else self._head(site, whole) for site in sites
        }

    @staticmethod
    def _head(site: Site, whole: dict[Site, Tensor]) -> Tensor:
        every = whole[replace(site, head=None)]
        assert site.head is not None
        if site.head >= every.shape[2]:
            raise InterpError(f"{site}: this layer has {every.shape[2]} heads, from 0.")
        return every[:, :, site.head]

    def _joined(self, kind: str, parts: list[Tensor]) -> Tensor:
        if kind in MAP_KINDS:  # as many keys as the longest prompt has
            keys = max(part.shape[-1] for part in parts)
            parts = [torch.nn.functional.pad(part, (0, keys - part.shape[-1]), value=torch.nan) for part in parts]
        return self._ordered(torch.cat(parts))

    def _ordered(self, joined: Tensor) -> Tensor:
        order = torch.empty(len(self.rows), dtype=torch.long, device="cpu")
        order[torch.tensor(self.rows, device="cpu")] = torch.arange(len(self.rows), device="cpu")
        return joined[order.to(joined.device)]

    def result(
        self, sites: list[Site], labels: list[str], slots: list[list[int]], new: NewTokens | None, *, logits: bool
    ) -> RunResult:
        """All of it."""
        model = self.model
        sizes = (model.num_layers, model.num_heads, model.num_kv_heads)

        def shaped(entries: dict[Site, Tensor]) -> SiteTensors:
            return SiteTensors({site: _as_site(site, value) for site, value in entries.items()}, sizes)

        every = Site("logits")
        return RunResult(
            labels=labels,
            tokens=slots,
            activations=shaped(self.entries(sites)),
            logits=self._joined("logits", self.values[every]) if logits else None,
            metric=self._ordered(torch.cat(self.metric)) if self.metric else None,
            gradients=shaped(self.entries(sites, gradients=True)) if self.metric else None,
            new_ids=None if new is None else new.ids,
            new_logits=None if new is None else new.logits,
            texts=None if new is None else model.tokenizer.batch_decode(new.ids, skip_special_tokens=True),
        )


def _as_site(site: Site, entries: Tensor) -> Tensor:
    """The axes in the order of the site; positions and heads change places as they did when it was read."""
    return of_whole_layout(site.kind, entries, has_heads=site.kind in HEAD_KINDS and site.head is None)
