"""A model as a graph: what writes into the residual stream, what reads from it, and the edges between them.

Nodes are the embedding, every attention head and every MLP; their outputs are the sites `embed`, `head_out.3.h5`,
`mlp_out.3`. The stream that a node reads is the sum of the outputs before it. So an edge is one output's share of one
input, and inputs are named by the site that they become: `q.3.h5`, `k.3.h5`, `v.3.h5` (heads of keys and values, where
fewer than those of queries, are not repeated), `mlp_in.3`, and `logits`, behind the final norm. An edge is written
`head_out.0.h1 -> k.3.h5`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from interp.errors import InterpError, nearest
from interp.model.resolve import sublayer_of, why_missing
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["ComputationGraph"]


@dataclass(frozen=True)
class ComputationGraph:
    """The nodes and edges of one model.

    Arguments:
        num_layers, num_heads, num_kv_heads: sizes.
        parallel: attention and MLP of a layer read the same residual stream, so no head writes what its layer's MLP
            reads.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    parallel: bool

    @classmethod
    def of(cls, model: StandardizedTransformer) -> ComputationGraph:
        """The graph of a model.

        Raises:
            InterpError: a model whose residual stream is not the sum of what heads and MLPs write, or whose queries,
                keys and values cannot be told apart; the message says what keeps it from being one.
        """
        reason = _no_graph(model)
        if reason is not None:
            raise InterpError(f"edges of {type(model._module).__name__}: {reason} Patch sites instead.")
        return cls(model.num_layers, model.num_heads, model.num_kv_heads, model.parallel)

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """Outputs of nodes in the order of a forward pass."""
        names = ["embed"]
        for layer in range(self.num_layers):
            names += [f"head_out.{layer}.h{head}" for head in range(self.num_heads)]
            names.append(f"mlp_out.{layer}")
        return tuple(names)

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """Inputs of nodes in the order of a forward pass."""
        names = []
        for layer in range(self.num_layers):
            for part, heads in self.read_by_attention:
                names += [f"{part}.{layer}.h{head}" for head in range(heads)]
            names.append(f"mlp_in.{layer}")
        return (*names, "logits")

    @property
    def read_by_attention(self) -> tuple[tuple[str, int], ...]:
        """What the attention of a layer reads, and how many heads of it there are."""
        return ("q", self.num_heads), ("k", self.num_kv_heads), ("v", self.num_kv_heads)

    def heads(self, layer: int) -> slice:
        """Where the heads of a layer stand among the senders."""
        start = 1 + layer * (self.num_heads + 1)
        return slice(start, start + self.num_heads)

    def mlp(self, layer: int) -> int:
        """Where the MLP of a layer stands among the senders."""
        return self.heads(layer).stop

    def attention_inputs(self, layer: int) -> slice:
        """Where what the attention of a layer reads stands among the receivers: queries, keys, values."""
        width = self.num_heads + 2 * self.num_kv_heads
        return slice(layer * (width + 1), layer * (width + 1) + width)

    def mlp_input(self, layer: int) -> int:
        """Where what the MLP of a layer reads stands among the receivers."""
        return self.attention_inputs(layer).stop

    def inputs_of(self, sender: int) -> list[int]:
        """Which receivers are what a sender reads: its head's query, key and value, or its MLP's input.

        Arguments:
            sender: by number.
        """
        if not sender:
            return []
        layer, head = divmod(sender - 1, self.num_heads + 1)
        if head == self.num_heads:
            return [self.mlp_input(layer)]
        start = self.attention_inputs(layer).start
        key = start + self.num_heads + head // (self.num_heads // self.num_kv_heads)
        return [start + head, key, key + self.num_kv_heads]

    @cached_property
    def exists(self) -> NDArray[np.bool_]:
        """(sender, receiver), where there is an edge: the sender comes first."""
        mask = np.zeros((len(self.senders), len(self.receivers)), dtype=bool)
        for layer in range(self.num_layers):
            before = self.heads(layer).start
            mask[:before, self.attention_inputs(layer)] = True
            mask[: before if self.parallel else self.mlp(layer), self.mlp_input(layer)] = True
        mask[:, -1] = True
        mask.flags.writeable = False
        return mask

    @property
    def num_edges(self) -> int:
        """How many edges there are."""
        return int(self.exists.sum())

    def edges(self, mask: NDArray[np.bool_] | None = None) -> list[str]:
        """Names of edges, ordered by sender, then receiver.

        Arguments:
            mask: (sender, receiver), which; None: all.
        """
        chosen = self.exists if mask is None else mask & self.exists
        return [f"{self.senders[one]} -> {self.receivers[other]}" for one, other in np.argwhere(chosen)]

    def mask(self, edges: Iterable[str]) -> NDArray[np.bool_]:
        """(sender, receiver) of edges by name.

        Raises:
            InterpError: a name that is none, or two nodes without an edge between them.
        """
        mask = np.zeros_like(self.exists)
        for edge in edges:
            sender, arrow, receiver = (part.strip() for part in edge.partition("->"))
            if not arrow:
                raise InterpError(f"edge {edge!r}: expected sender -> receiver, e.g. embed -> {self.receivers[0]}.")
            place = _index(self.senders, sender, edge), _index(self.receivers, receiver, edge)
            if not self.exists[place]:
                raise InterpError(f"edge {edge!r}: {receiver} is read before {sender} is written.")
            mask[place] = True
        return mask

    def mask_of_nodes(self, nodes: Iterable[str]) -> NDArray[np.bool_]:
        """(sender, receiver) of a circuit that is given by nodes: all edges between two of them.

        Arguments:
            nodes: senders by name; the logits are always there.

        Raises:
            InterpError: a name that is none.
        """
        kept = np.zeros(len(self.senders), dtype=bool)
        for node in nodes:
            if node != "logits":
                kept[_index(self.senders, node, node)] = True
        owned = np.zeros(len(self.receivers), dtype=bool)
        owned[[-1, *(place for sender in np.flatnonzero(kept) for place in self.inputs_of(int(sender)))]] = True
        return self.exists & kept[:, None] & owned


def _index(names: Sequence[str], name: str, written: str) -> int:
    if name not in names:
        raise InterpError(f"{written!r}: no node {name!r} in this model.{nearest(name, names)}")
    return names.index(name)


def _no_graph(model: StandardizedTransformer) -> str | None:
    """Why a model is not such a graph; None where it is."""
    for layer in range(model.num_layers):
        record = model.architecture.of_layer(model.layer(layer)._module)
        if record.parallel != model.parallel:
            return f"layer {layer} is laid out otherwise than the model."
        if sublayer_of(model, "mixer", layer) is not None:
            return f"layer {layer} has a token mixer that is not attention."
        for kind in ("head_out", "q", "k", "v", "mlp_in", "mlp_out"):
            reason = why_missing(model, Site(kind, layer))
            if reason is not None:
                return reason
        if not record.parallel and record.middle is None:
            return f"layer {layer} has no residual stream between attention and MLP."
        for role in ("attention", "mlp"):
            sublayer = sublayer_of(model, role, layer)
            assert sublayer is not None  # it has the sites
            if sublayer.norm_after or sublayer.residual_norm or sublayer.residual_scale:
                return (
                    f"layer {layer} norms or scales the residual stream itself (post-norm), so that what a node has "
                    "written does not stay as it is."
                )
    if model.num_heads % model.num_kv_heads:
        return "its heads of keys and values do not divide those of queries."
    return None
