"""Interventions as changes of one model in runs of given examples: checked before it runs, then made pass by pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.attention.interface import hidden_score
from interp.errors import InterpError
from interp.interventions.intervention import Intervention
from interp.interventions.perform import noise, perform
from interp.interventions.shapes import SiteShape, embedding_std
from interp.prompts import Encoded
from interp.sites import ATTENTION_KINDS, MAP_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Edit", "Source", "Window"]

Tokens = list[list[int]]
"""Of each example, some of its own tokens, counted from 0."""


@dataclass(frozen=True)
class Source:
    """What has to be read of another run before an edit can be made.

    Arguments:
        encoded: the prompts of the other run.
        site: what is read, with or without one head.
        heads: which of its heads; None: all.
        positions: where, for each of these prompts.
        others: of `resample`, for each example the prompts that are others than it.
    """

    encoded: Sequence[Encoded]
    site: Site
    heads: list[int] | None
    positions: Tokens
    others: list[list[int]] | None = None


@dataclass
class Edit:
    """One intervention at one site with all its heads, for given examples.

    Arguments:
        name: what messages call it.
        intervention: what is done.
        site: where, without a head.
        heads: which heads; None: all of them, or the site has none.
        shape: of the site.
        positions: the tokens that are changed; of `scores` and `pattern`, the queries.
        keys: of `scores` and `pattern`, the tokens that are changed, or cut from these; None: all.
        value: (example, position, [head,] number), 1 where it is one for all; None: none is needed, or it is yet to be
            read from `source`.
        basis: (direction, number), orthonormal.
        source: where the value comes from, if from another run.
        ids: token ids of each example, by which noise is drawn.
    """

    name: str
    intervention: Intervention
    site: Site
    heads: list[int] | None
    shape: SiteShape
    positions: Tokens
    ids: Sequence[Sequence[int]]
    keys: Tokens | None = None
    value: Tensor | None = None
    basis: Tensor | None = None
    source: Source | None = None

    @property
    def at_every_step(self) -> bool:
        """Whether new tokens of a generation are changed too."""
        return self.intervention.steps == "every"

    def concerns(self, window: Window) -> bool:
        """Whether anything is changed in a pass."""
        return any(self.positions[example] for example in window.examples) and (
            window.start == window.first
            or self.at_every_step
            or self.is_of_all_tokens  # a cache has those of the prompt as they were
        )

    @property
    def is_of_all_tokens(self) -> bool:
        """Whether the site has the values of all tokens in each step of a generation, as keys and values do."""
        return self.site.kind in ("k", "v")

    def apply(self, model: StandardizedTransformer, live: Tensor, window: Window, entering: Tensor | None) -> Tensor:
        """Make the change.

        Arguments:
            model: the model.
            live: what the model has at the site; it stays as it is.
            window: what is fed.
            entering: of `skip` of a layer, what entered it.

        Returns:
            What the model goes on with.
        """
        if self.site.kind in MAP_KINDS:
            return self._apply_to_maps(live, window)
        inside = self.site.kind in ATTENTION_KINDS
        shift = window.start
        if self.is_of_all_tokens:
            shift = window.stop - live.shape[2]  # of a sliding window, a cache has the last ones
        entries = window.entries(self, shift)
        if not len(entries.rows):
            return live
        here, there = entries.rows.to(live.device), entries.columns.to(live.device)
        if inside:
            here, there = here[:, None], there[:, None]
            heads = self._chosen(live.shape[1]).to(live.device)[None]
            index: tuple[Tensor, ...] = (here, heads, there)
        elif self.shape.heads is not None:
            heads = self._chosen(live.shape[2]).to(live.device)[None]
            index = (here[:, None], there[:, None], heads)
        else:
            index = (here, there)
        old = live[index]  # (entry, [head,] number)
        if self.intervention.operation == "skip":
            changed = torch.zeros_like(old) if entering is None else entering[index].to(old)
        else:
            is_noise = self.intervention.operation == "noise"
            value = self._noise(model, entries) if is_noise else self._value(entries.examples, entries.slots)
            if value is not None and value.dim() < old.dim():  # one head, whose axis the value lacks
                value = value[:, None]
            value = None if value is None else value.to(live.device)
            basis = None if self.basis is None else self.basis.to(live.device)
            factor = self.intervention.factor
            changed = perform(self.intervention.operation, old, value, factor=factor, basis=basis)
        new = live.clone()
        new[index] = changed
        return new

    def _chosen(self, count: int) -> Tensor:
        return torch.tensor(self.heads if self.heads is not None else range(count), device="cpu")

    def _value(self, examples: Tensor, slots: Tensor) -> Tensor | None:
        """(entry or 1, ..., number), the value of each entry."""
        if self.value is None:
            return None
        if self.value.shape[0] == 1 and self.value.shape[1] == 1:
            return self.value[0]
        device = self.value.device
        example = examples.to(device) if self.value.shape[0] > 1 else torch.zeros_like(examples, device=device)
        slot = slots.to(device) if self.value.shape[1] > 1 else torch.zeros_like(slots, device=device)
        return self.value[example, slot]

    def _noise(self, model: StandardizedTransformer, entries: Entries) -> Tensor:
        """(entry, [head,] number), what is added."""
        given = self.intervention
        std = given.std if given.embedding_stds is None else given.embedding_stds * embedding_std(model)
        assert std is not None and self.shape.width is not None
        shape = [self.shape.width] if self.shape.heads is None else [self.shape.heads, self.shape.width]
        name, pairs = str(self.site), zip(entries.examples.tolist(), entries.tokens.tolist(), strict=True)
        drawn = std * torch.stack(
            [noise(given.seed, name, self.ids[example], token, shape) for example, token in pairs]
        )
        return drawn if self.heads is None else drawn[:, self.heads]

    def _apply_to_maps(self, live: Tensor, window: Window) -> Tensor:
        """Of `scores` and `pattern`, row by row: keys of a row begin behind its padding."""
        new, shift = live.clone(), window.stop - live.shape[3]  # of a sliding window, a cache has the last keys
        lowest = hidden_score(live.dtype)  # what the models' own masks write
        heads = self._chosen(live.shape[1]).to(live.device)[:, None, None]
        for row, (example, queries) in enumerate(window.changed(self)):
            if not queries:
                continue
            before, length = window.before[row], window.lengths[example]
            known = length + (window.grown if self.at_every_step else 0)  # tokens of the prompt see no new ones
            keys = list(range(known)) if self.keys is None else self.keys[example]
            keys = [key for key in keys if before + key - shift >= 0]
            query = torch.tensor([before + token - window.start for token in queries], device=live.device)[:, None]
            key = torch.tensor([before + key - shift for key in keys], dtype=torch.long, device=live.device)
            part = live[row, heads, query, key]  # (head, query, key)
            if self.intervention.operation in ("knockout", "isolate"):
                cut = torch.full_like(part, lowest if self.site.kind == "scores" else 0.0)
                is_kept = (key + shift == query + window.start) & (self.intervention.operation == "isolate")
                new[row, heads, query, key] = torch.where(is_kept, part, cut)
                if self.site.kind == "scores":
                    self._check_left(
                        live[row, heads[:, 0], query[:, 0][None]], new[row, heads[:, 0], query[:, 0][None]]
                    )
                continue
            slots = torch.arange(len(queries), device="cpu")
            value = self._value(torch.full_like(slots, example), slots)  # (query or 1, [head,] key)
            if value is not None:
                value = value if self._has_heads else value[:, None]
                value = value if value.shape[-1] == 1 else value[..., keys]
                value = value.transpose(0, 1).to(live.device)
            factor = self.intervention.factor
            changed = perform(self.intervention.operation, part, value, factor=factor, basis=None)
            if self.site.kind == "scores":  # what is masked stays masked
                changed = torch.where(part > lowest / 2, changed, part)
            is_new = (key + shift >= before + length) & (key + shift > query + window.start)
            new[row, heads, query, key] = torch.where(is_new, part, changed)  # a cache has no later tokens
        return new

    @property
    def _has_heads(self) -> bool:
        return self.heads is None or len(self.heads) > 1

    def _check_left(self, before: Tensor, after: Tensor) -> None:
        """Refuse a softmax over nothing; both (head, query, key).

        Raises:
            InterpError: a query that looked at something looks at nothing now.
        """
        limit = hidden_score(before.dtype) / 2
        if bool(((before > limit).any(-1) & ~(after > limit).any(-1)).any()):
            raise InterpError(
                f"{self.name}: it cuts everything that a token sees in this layer, and a softmax over nothing is not "
                "defined. Leave one of the keys (a layer with a sliding window sees the last few only), or cut behind "
                f"the softmax, at {self.intervention.site.replace('scores', 'pattern')}."
            )


@dataclass(frozen=True)
class Window:
    """What one forward pass is fed of some examples, and where their tokens are in it.

    Columns are those of the batch with its padding and everything that came before, counted from 0.

    Arguments:
        examples: of each row.
        before: of each row, columns of padding before its first token.
        lengths: of each example, tokens as it was given.
        grown: how many new tokens stand behind each.
        start, stop: the columns that are fed.
        first: the column at which a pass over the prompts begins: behind a prefix that is there already.
    """

    examples: list[int]
    before: list[int]
    lengths: Sequence[int]
    grown: int
    start: int
    stop: int
    first: int = 0
    _known: dict[tuple[int, bool, bool, int], Entries] = field(default_factory=dict)

    def changed(self, edit: Edit) -> list[tuple[int, list[int]]]:
        """Of each row its example, and the tokens that are changed in this pass, new ones included."""
        found = []
        for example, before in zip(self.examples, self.before, strict=True):
            tokens = edit.positions[example]
            if tokens and edit.at_every_step and self.grown:
                length = self.lengths[example]
                tokens = [*tokens, *range(length, length + self.grown)]
            if self.start and not edit.is_of_all_tokens:
                tokens = [token for token in tokens if before + token >= self.start]
            found.append((example, tokens))
        return found

    def entries(self, edit: Edit, shift: int) -> Entries:
        """What is changed, as entries.

        Arguments:
            edit: the edit.
            shift: the column at which the site's values begin.
        """
        # Sites in several layers have one list of positions: their entries are made once.
        key = (id(edit.positions), edit.at_every_step, edit.is_of_all_tokens, shift)
        if key not in self._known:
            table: list[tuple[int, ...]] = []
            for row, (example, tokens) in enumerate(self.changed(edit)):
                columns = (self.before[row] + token - shift for token in tokens)
                placed = zip(columns, range(len(tokens)), tokens, strict=True)
                table += [(row, column, example, slot, token) for column, slot, token in placed if column >= 0]
            self._known[key] = Entries(*torch.tensor(table, dtype=torch.long, device="cpu").reshape(-1, 5).T)
        return self._known[key]


@dataclass(frozen=True)
class Entries:
    """Tokens that are changed in a pass, each (entry,), on the CPU.

    Arguments:
        rows, columns: where they are.
        examples: of which example they are.
        slots: the place of each among the positions of its example.
        tokens: which of its own tokens each is.
    """

    rows: Tensor
    columns: Tensor
    examples: Tensor
    slots: Tensor
    tokens: Tensor
