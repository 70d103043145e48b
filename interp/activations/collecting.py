"""Collect sites of a model at chosen positions of many prompts: here, or where the weights are (NDIF), one nnsight
session a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.activations.block import Block, Entries, checked_block, checked_sites
from interp.activations.offload import Copies
from interp.activations.read_batch import read_places, read_tokens
from interp.batching import (
    ACCELERATOR_TOKENS,
    Budget,
    batches_by_tokens,
    batches_in_one_row,
    is_out_of_memory,
    left_padded,
    right_padded,
)
from interp.errors import InterpError
from interp.forward.batch import Feed, SharedPrefix, packing_fits, plan_prefixes, prefixes_fit
from interp.forward.layers import check_ready, is_causal
from interp.forward.packing import Packed, sent
from interp.forward.prefix import FrozenPrefix
from interp.forward.rope import forget_lengths, rotary_limit
from interp.matmul import faster_products
from interp.model.fed import check_fed
from interp.model.image_inputs import batches_images, inputs_of_prompts
from interp.model.padding import pads
from interp.model.verdicts import is_changed
from interp.passes import turn
from interp.prompts import Media
from interp.prompts.given import token_ids
from interp.sites import ATTENTION_KINDS, VISION_KINDS, Site, Spelling, parse_sites

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["collect", "collect_blocks", "collect_elsewhere"]


Prompts = Sequence[Sequence[int]]
Blocks = Iterable[
    tuple[Prompts, Sequence[Sequence[int]]] | tuple[Prompts, Sequence[Sequence[int]], Sequence[Media | None] | None]
]
"""Token ids and positions of some prompts each, and where they have images, what they are fed beside their ids."""


def collect(
    model: StandardizedTransformer,
    input_ids: Prompts,
    sites: Spelling | Sequence[Spelling],
    positions: Sequence[Sequence[int]],
    *,
    media: Sequence[Media | None] | None = None,
    batch_tokens: int | None = None,
    share_prefixes: bool = True,
    progress: Callable[[int], None] | None = None,
    remote: bool | str = False,
) -> dict[str, Tensor]:
    """Read sites of a model at chosen positions of many prompts.

    What is not needed is not computed: layers after the last site that is asked for, the head unless `logits` is asked
    for, tokens after the last position of a prompt, and tokens that several prompts begin with more than once. How
    prompts are put into batches depends on the prompts, the positions and the budget alone. Where memory runs out, the
    budget is halved, which the log says, down to one prompt at a time.

    Prompts with images are run whole, by the model's own forward pass: in some families image tokens see what comes
    after them, and their ids do not say what they stand for.

    Arguments:
        model: the model.
        input_ids: token ids of each prompt exactly as they are fed, unpadded; or what a tokenizer returned, whose
            padding is left away.
        sites: what is read, in any spelling, each once; those of one kind all with all their heads, or all of one head.
        positions: for each prompt, indices into its own tokens, from 0; -1 stands for none. Prompts may have different
            numbers of them.
        media: for each prompt what it is fed beside its ids, `Encoded.media` of `interp.prompts`, or None; None: there
            are no images.
        batch_tokens: tokens in a forward pass at most, padding included; a longer prompt goes alone. None: what suits
            the device, 512 on a processor, whose caches then hold the activations, and 8192 elsewhere.
        share_prefixes: compute the tokens that several prompts begin with once, where that saves work and fits the
            model's family (`interp.forward.prefix`).
        progress: called after each batch with the number of prompts that are done; elsewhere, when all are.
        remote: True: on NDIF, all batches in one session, by plain traces of left-padded prompts; `local`: packed as
            for a server, and run here; or a server's address.

    Returns:
        By kind of site, a CPU tensor (layer, prompt, position, hidden) in the model's dtype. Layers are in the order of
        `sites` (one, for a kind without layers), prompts in the order given; `hidden` is the vocabulary for `logits`
        and the neurons for `mlp_post`. Kinds with heads have two axes in its place: head and head_dim (`q`, `z`),
        key-value head and head_dim (`k`, `v`), head and hidden (`head_out`), head and key (`scores`, `pattern`; the
        position is the query, keys count from each prompt's own first token up to the longest prompt); where sites
        are of one head each, the head axis is left out, and each is a row along `layer`.
        Where a prompt has no position (-1, or fewer than another prompt), and no key, it holds NaN.

    Raises:
        InterpError: no prompt, no site, a site twice, one kind with all heads and with one, an empty prompt, a position
            outside its prompt, layers of one kind that differ in width or in the number of heads, a hook of the user's
            that was put on the model meanwhile, or images that are to be seen elsewhere.
    """
    input_ids, sites = token_ids(input_ids), _listed(model, sites)
    if not input_ids or not sites:
        raise InterpError(f"expected prompts and sites, got {len(input_ids)} prompts and {len(sites)} sites.")
    given = dict(batch_tokens=batch_tokens, share_prefixes=share_prefixes, progress=progress, remote=remote)
    [values] = collect_blocks(model, [(input_ids, positions, media)], sites, **given)  # type: ignore[arg-type]
    return values


def _listed(model: StandardizedTransformer, sites: Spelling | Sequence[Spelling]) -> list[Site]:
    several = [sites] if isinstance(sites, str | Site) else list(sites)
    given = [site for site in several if isinstance(site, Site)]
    if len(given) == len(several) and not any(site.kind in VISION_KINDS for site in given):  # which are refused
        return given
    return parse_sites(sites, model.num_layers, model.num_heads, model.num_kv_heads)


@torch.no_grad()
def collect_blocks(
    model: StandardizedTransformer,
    blocks: Blocks,
    sites: Spelling | Sequence[Spelling],
    *,
    batch_tokens: int | None = None,
    share_prefixes: bool = True,
    progress: Callable[[int], None] | None = None,
    remote: bool | str = False,
) -> Iterator[dict[str, Tensor]]:
    """Read sites block by block, as `collect` reads each; on a CUDA device without a pause between two blocks.

    The batches of a block run inside one nnsight session.

    Arguments:
        model: the model.
        blocks: (input_ids, positions) or (input_ids, positions, media) of some prompts each; taken one at a time, as
            they are needed.
        sites, batch_tokens, share_prefixes, remote: as in `collect`.
        progress: called after each batch with the number of prompts that are done in its block.

    Yields:
        What `collect` gives of each block, in their order.

    Raises:
        InterpError: as `collect`.
    """
    check_ready(model)
    chosen = _listed(model, sites)
    rows_of_kind = checked_sites(chosen)
    if remote:
        budget = Budget(ACCELERATOR_TOKENS) if batch_tokens is None else Budget.of(batch_tokens, torch.device("cpu"))
        for given in blocks:
            block = _checked(model, *given, rows_of_kind=rows_of_kind)
            yield collect_elsewhere(model, block, model.in_order(chosen), budget, remote)
            if progress is not None:
                progress(len(block.input_ids))
        return
    collector = _Collector(
        model,
        model.in_order(chosen),  # a trace is read in the order of the forward pass
        Copies(model.device),
        Budget.of(batch_tokens, model.device),
        share_prefixes,
    )
    waiting: Block | None = None  # its last copy is under way
    for given in blocks:
        block = _checked(model, *given, rows_of_kind=rows_of_kind)
        with model.session():
            for done in collector.in_turns(block):
                if progress is not None:
                    progress(done)
        if waiting is not None:
            yield waiting.values()
            waiting = None
        if collector.copies.pending:
            waiting = block
        else:
            yield block.values()
    collector.copies.finish()
    if waiting is not None:
        yield waiting.values()


def _checked(
    model: StandardizedTransformer,
    input_ids: Prompts,
    positions: Sequence[Sequence[int]],
    media: Sequence[Media | None] | None = None,
    *,
    rows_of_kind: dict[str, dict[Site, int]],
) -> Block:
    """Prompts and positions that the model can be fed."""
    block = checked_block(token_ids(input_ids), positions, rows_of_kind, media)
    check_fed(model, block.input_ids, "input_ids", media=block.media)
    return block


@dataclass
class _Collector:
    """Runs the model over blocks of prompts.

    Arguments:
        model: the model.
        sites: what is read, in the order of the forward pass.
        copies: takes it off the device.
        budget: tokens in a forward pass.
        share: whether tokens that prompts begin with are computed once.
        last_prefix: the last of these beginnings; the next block's prompts often have it too.
    """

    model: StandardizedTransformer
    sites: list[Site]
    copies: Copies
    budget: Budget
    share: bool
    last_prefix: tuple[list[int], FrozenPrefix] | None = None

    @property
    def inside_attention(self) -> bool:
        """Whether something is read there: then prompts are whole and side by side, each with keys of its own."""
        return any(site.kind in ATTENTION_KINDS for site in self.sites)

    def in_turns(self, block: Block) -> Iterator[int]:
        """Read a block, each batch in one turn of the model: other threads may run it in between."""
        batches = self.run(block)
        changed: bool | None = None
        while True:
            with turn(self.model._module):
                if changed is None:
                    changed = is_changed(self.model)
                elif not changed and is_changed(self.model):  # batches are planned, and would show it other tokens
                    raise InterpError(
                        "a hook, a forward pass or an edit of yours was put on the model while it was collected from. "
                        "Put it there before, or collect first."
                    )
                forget_lengths(self.model)
                done = next(batches, None)
            if done is None:
                return
            yield done

    def run(self, block: Block) -> Iterator[int]:
        """Read a block; after each batch, give the number of prompts that are done."""
        limit, seeing = rotary_limit(self.model), set(block.seeing)
        long = {row for row in block.rows if limit is not None and len(block.input_ids[row]) > limit}
        short = [row for row in block.rows if row not in long | seeing]
        longest = max((len(block.input_ids[row]) for row in short), default=0)
        whole = block
        if set(block.rows) > seeing and (block.is_even or is_causal(self.model, longest)):
            block = block.cut(keep=block.rows if self.inside_attention else long | seeing)
        done = len(block.input_ids) - len(block.rows)  # of those without a position nothing is read
        groups = [(block, shared) for shared in self._groups(block, short)]
        if seeing - long and batches_images(self.model):
            groups.append((whole, SharedPrefix(0, sorted(seeing - long))))
        else:
            long |= seeing  # each alone
        for row in sorted(long, key=lambda row: len(block.input_ids[row])):
            groups.append((whole if row in seeing else block, SharedPrefix(0, [row])))
        for of, shared in groups:
            prefix = self._prefix(of, shared)
            for batch in self._batches(of, shared, prefix):
                done += len(batch)
                yield done

    def _groups(self, block: Block, rows: list[int]) -> list[SharedPrefix]:
        """Prompts that begin alike, where that is of use."""
        alone = [SharedPrefix(0, rows)] if rows else []
        if not self.share or not block.causal or not rows or self.inside_attention:
            return alone
        groups = plan_prefixes([block.input_ids[row] for row in rows], cost=2 * self.budget.batch_cost)
        groups = [SharedPrefix(length, [rows[index] for index in indices]) for length, indices in groups]
        longest = max(groups, key=lambda group: group.length)
        prompts = [block.input_ids[row] for row in longest.rows]
        return groups if not longest.length or prefixes_fit(self.model, prompts, longest.length) else alone

    def _prefix(self, block: Block, shared: SharedPrefix) -> FrozenPrefix | None:
        """Run what a group begins with, and read what is wanted of it."""
        if not shared.length:
            return None
        tokens = block.input_ids[shared.rows[0]][: shared.length]
        ids = sent(torch.tensor([tokens], device="cpu"), self.model.device)
        entries = block.entries(shared.rows, 0, shared.length)
        if len(entries):
            self._read(block, Feed.of(self.model, ids), entries.in_one_row())
        if self.last_prefix is None or self.last_prefix[0] != tokens:
            self.last_prefix = None  # its memory is free before the next is made
            self.last_prefix = tokens, FrozenPrefix.of(self.model, ids)
        return self.last_prefix[1]

    def _batches(self, block: Block, shared: SharedPrefix, prefix: FrozenPrefix | None) -> Iterator[list[int]]:
        """Run prompts from a prefix on, batch by batch."""
        packed = self._in_one_row(block, shared)
        waiting = self._planned(block, shared.rows, shared.length, packed=packed)
        while waiting:
            if self._ran(block, waiting[0], shared.length, prefix, packed=packed):
                yield waiting.pop(0)
            else:
                rows = [row for batch in waiting for row in batch]
                waiting = self._planned(block, rows, shared.length, packed=packed)

    def _planned(self, block: Block, rows: list[int], start: int, *, packed: bool) -> list[list[int]]:
        lengths = {row: len(block.input_ids[row]) - start for row in rows}
        if packed:
            planned = batches_in_one_row(list(lengths.values()), self.budget.tokens)
            return [[rows[index] for index in batch] for batch in planned]
        together = [rows]
        if not block.causal and len(set(lengths.values())) > 1 and not pads(self.model, max(lengths.values())):
            together = [[row for row in rows if lengths[row] == length] for length in sorted(set(lengths.values()))]
        return [
            [group[index] for index in batch]
            for group in together
            for batch in batches_by_tokens([lengths[row] for row in group], self.budget.tokens, self.budget.batch_cost)
        ]

    def _in_one_row(self, block: Block, shared: SharedPrefix) -> bool:
        """Whether the prompts of a group, of several lengths, go one behind the other."""
        lengths = [len(block.input_ids[row]) - shared.length for row in shared.rows]
        if not block.causal or self.inside_attention or len(set(lengths)) < 2:
            return False
        row = max(*lengths, min(sum(lengths), self.budget.tokens))
        return packing_fits(self.model, shared.length + row, behind_prefix=shared.length > 0)

    def _ran(self, block: Block, batch: list[int], start: int, prefix: FrozenPrefix | None, *, packed: bool) -> bool:
        """Run one batch; False where memory ran out, and the budget is smaller now."""
        tokens = [block.input_ids[row][start:] for row in batch]
        entries = block.entries(batch, start)
        if not block.causal:
            longest = max(len(ids) for ids in tokens)
            entries = entries.moved([longest - len(ids) for ids in tokens])
        media = [block.media[row] for row in batch]
        feed = self._feed(block, tokens, media, prefix, packed=packed)
        try:
            self._read(block, feed, entries)
            return True
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
        # Not above: there the error still holds what the forward pass had in its hands.
        self.budget.halve(feed.inputs["input_ids"].numel())
        return False

    def _feed(
        self,
        block: Block,
        tokens: Prompts,
        media: Sequence[Media | None],
        prefix: FrozenPrefix | None,
        *,
        packed: bool,
    ) -> Feed:
        """A batch as it goes through the model."""
        lengths = [len(ids) for ids in tokens]
        if packed and len(set(lengths)) > 1:
            row = torch.tensor([[token for ids in tokens for token in ids]], device="cpu")
            return Feed.of(self.model, row, prefix, Packed.of(lengths, self.model.device))
        if block.causal:
            return Feed.of(self.model, right_padded(tokens), prefix)
        sees = any(one is not None for one in media)
        return Feed({**inputs_of_prompts(self.model, tokens, media), "use_cache": False}, sees=sees)

    def _read(self, block: Block, feed: Feed, entries: Entries) -> None:
        """Run one forward pass, and start the copy of what it gives at some tokens."""
        rows, columns = sent(entries.rows, self.model.device), sent(entries.columns, self.model.device)
        with faster_products(
            feed.inputs["input_ids"].numel(), self.model.hidden_size, self.model.dtype, self.model.device
        ):
            gathered = read_tokens(self.model, feed, self.sites, rows, columns)
        self.copies.start(gathered, lambda values: block.keep(self.sites, entries, values))


def collect_elsewhere(
    model: StandardizedTransformer, block: Block, sites: Sequence[Site], budget: Budget, remote: bool | str
) -> dict[str, Tensor]:
    """Read a block in one remote session: a plain trace for each batch of left-padded prompts, and no fast way.

    Arguments:
        model: the model, with or without its weights here.
        block: prompts and positions.
        sites: in the order of the forward pass.
        budget: tokens in a forward pass.
        remote: as in nnsight's `session`: True: on NDIF; `local`: packed as for a server, and run here; or an address.

    Returns:
        What `collect` gives.
    """
    if block.seeing:
        raise InterpError(
            f"remote: prompt {block.seeing[0]} has images, and only token ids are sent. Collect from a model that is "
            "loaded here, or see the images in a trace(..., remote=...)."
        )
    lengths = [len(block.input_ids[row]) for row in block.rows]
    planned = batches_by_tokens(lengths, budget.tokens, budget.batch_cost)
    batches = [[block.rows[index] for index in batch] for batch in planned]
    fed = []
    entries = []
    for batch in batches:
        ids = [block.input_ids[row] for row in batch]
        longest = max(map(len, ids))
        inputs = left_padded(ids, 0, torch.device("cpu"))  # 0 is in every vocabulary, a pad token may not be
        if not model.takes_position_ids:
            del inputs["position_ids"]
        entries.append(block.entries(batch, 0).moved([longest - len(own) for own in ids]))
        fed.append((inputs, entries[-1].rows, entries[-1].columns))
    found: Any = None
    with torch.no_grad(), model.session(remote=remote):
        found = []
        for inputs, rows, columns in fed:
            with model.trace(**inputs) as tracer:
                values = read_places(model, sites, rows, columns, inputs["attention_mask"])
                values = [value.cpu() for value in values]
                tracer.stop()
            found.append(values)
        found = nnsight.save(found)
    for where, read in zip(entries, found, strict=True):
        block.keep(sites, where, read)
    return block.values()
