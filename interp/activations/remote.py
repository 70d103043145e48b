"""Collects where a model's weights are: one nnsight session a block, on NDIF or in its simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.activations.block import Block
from interp.activations.reading import read_places
from interp.batching import Budget, batches_by_tokens, left_padded
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["collect_elsewhere"]


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
