"""One layer at a time: what its nodes write, and what gradients its nodes are given, for edges of a computation graph.

A layer is run by itself, as the model calls it, with visits inside (`interp.model.visits.visit_part`): for gradients
again, from the residual stream that it was given, so that of all layers together only that and what heads and MLPs
wrote is held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.forward import forget_lengths
from interp.model.image_inputs import inputs_of_prompts
from interp.model.places import HeadOutPlace
from interp.model.resolve import head_out_place, place_of
from interp.model.visits import Visit, run_visiting, visit_part
from interp.patching.computation_graph import ComputationGraph
from interp.patching.patched_runs import CleanRun
from interp.prompts import Media
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["LayerGradients", "NodeOutputs", "OutputDifferences", "check_heads", "run_layer"]

Calls = Mapping[str, Callable[[Tensor], Tensor | None]]
"""Kind of a site of one layer -> what is done there, in this order."""


def run_layer(run: CleanRun, layer: int, hidden: Tensor, calls: Calls) -> Tensor:
    """Run rows through one layer as the model calls it, under the caller's grad mode.

    Arguments:
        run: prompts of one length, from position 0 on.
        layer: which.
        hidden: (row, position, hidden), the residual stream before it.
        calls: what is done inside.

    Returns:
        The same after the layer.
    """
    model, part = run.model, run.model.layer(layer)._module
    visits = [Visit(f"{kind}.{layer}", place_of(model, Site(kind, layer)), call) for kind, call in calls.items()]
    output: Any = visit_part(
        model, visits, lambda: part(hidden, **run.calls[layer].keywords), (hidden.shape[0], hidden.shape[1])
    )
    return output if isinstance(output, Tensor) else output[0]


@dataclass(frozen=True)
class NodeOutputs:
    """What the nodes of a run wrote into the residual stream, and what came of it.

    Arguments:
        embed: (row, position, hidden).
        z: per layer (row, position, head, head_dim), from which what each head wrote follows.
        mlps: per layer (row, position, hidden).
        final: (row, hidden), the residual stream after the last layer at the last token.
    """

    embed: Tensor
    z: list[Tensor]
    mlps: list[Tensor]
    final: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: StandardizedTransformer, input_ids: Tensor, media: Sequence[Media | None] = ()) -> NodeOutputs:
        """Run prompts of one length.

        Arguments:
            model: the model.
            input_ids: (row, position), without padding.
            media: what each row is fed beside them, all or none of them.

        Raises:
            InterpError: something else writes into the residual stream too.
        """
        embed: list[Tensor] = []
        kept: dict[str, list[Tensor]] = {"z": [], "mlp_out": []}
        total: list[Tensor] = []

        def begin(value: Tensor) -> None:
            embed.append(value.clone())
            total.append(value.clone())

        def keep(kind: str, value: Tensor) -> None:
            kept[kind].append(value.clone())

        def add(value: Tensor) -> None:
            total[0] += value.to(total[0].device)

        def end(value: Tensor) -> None:
            final.append(value.clone())

        final: list[Tensor] = []
        visits = [Visit("embed", place_of(model, Site("embed")), begin)]
        for layer in range(model.num_layers):
            kinds: list[tuple[str, Callable[[Tensor], None]]] = [("z", partial(keep, "z")), ("attn_out", add)]
            kinds += [("mlp_out", partial(keep, "mlp_out")), ("mlp_out", add)]
            visits += [Visit(f"{kind}.{layer}", place_of(model, Site(kind, layer)), call) for kind, call in kinds]
        last = Site("resid_post", model.num_layers - 1)
        visits.append(Visit(str(last), place_of(model, last), end))
        forget_lengths(model)
        fed = inputs_of_prompts(model, input_ids.tolist(), media or None)
        run_visiting(model, visits, stop=True, use_cache=False, **fed)
        for layer, z in enumerate(kept["z"]):
            check_heads(model, "z", layer, z.shape[2], model.num_heads)
        off = float((total[0] - final[0]).norm() / final[0].norm())
        if off > max(1e-3, 8 * torch.finfo(model.dtype).eps):
            raise InterpError(
                f"edges of {type(model._module).__name__}: embedding, heads and MLPs do not add up to the residual "
                f"stream (off by {off:.2g}): something else writes into it. Patch sites instead."
            )
        return cls(embed[0], kept["z"], kept["mlp_out"], final[0][:, -1])

    def less(self, other: NodeOutputs, model: StandardizedTransformer) -> OutputDifferences:
        """What this run wrote more than another.

        Arguments:
            other: of prompts as long.
            model: the model of both.
        """
        layers = range(len(self.z))
        places = [head_out_place(model, layer, f"head_out.{layer}") for layer in layers]
        return OutputDifferences(
            self.embed - other.embed,
            [one - two for one, two in zip(self.mlps, other.mlps, strict=True)],
            places,
            # A norm behind the heads is not linear: then what they wrote in either run has to be known.
            [
                [one, two] if place.norm else [one - two]
                for one, two, place in zip(self.z, other.z, places, strict=True)
            ],
        )


@dataclass(frozen=True)
class OutputDifferences:
    """What the nodes of one run wrote more than those of another; what heads did is computed a layer at a time.

    Arguments:
        embed: (row, position, hidden).
        mlps: per layer the same.
        places: per layer, how heads write.
        z: per layer the difference of `z`; or `z` of both, where what is written is not linear in it.
    """

    embed: Tensor
    mlps: list[Tensor]
    places: list[HeadOutPlace]
    z: list[list[Tensor]]

    @torch.no_grad()
    def heads(self, layer: int) -> Tensor:
        """(row, position, head, hidden)."""
        one, *two = [self.places[layer].heads(z) for z in self.z[layer]]
        return one - two[0] if two else one


@dataclass(frozen=True)
class LayerGradients:
    """The gradient of a number with respect to what each node of a layer reads.

    Arguments:
        inputs: (row, receiver, position, hidden), of queries, keys and values, in the order of
            `ComputationGraph.attention_inputs`, and last of what the MLP reads.
        before: (row, position, hidden), of the residual stream before the layer, by all ways together.
    """

    inputs: Tensor
    before: Tensor

    @classmethod
    def of(cls, run: CleanRun, graph: ComputationGraph, layer: int, hidden: Tensor, after: Tensor) -> LayerGradients:
        """Go back through one layer.

        What queries read is the residual stream before the norm. So the gradient at a head's queries goes back through
        what makes them, rotation, norms and projection, and through nothing else.

        Arguments:
            run: prompts of one length.
            graph: of the model.
            layer: which.
            hidden: (row, position, hidden), the residual stream before it.
            after: the gradient with respect to the residual stream after it.
        """
        kept: dict[str, Tensor] = {}

        def keep(kind: str, value: Tensor) -> Tensor:
            kept[kind] = value.clone()  # on the path
            return kept[kind]

        kinds = ("q", "k", "v", *(() if graph.parallel else ("resid_mid",)), "mlp_in")
        with torch.enable_grad():
            before = hidden.detach().requires_grad_()
            output = run_layer(run, layer, before, {kind: partial(keep, kind) for kind in kinds})
            names = ("q", "k", "v", "mlp_in")
            *inside, whole = torch.autograd.grad(
                output, [*(kept[name] for name in names), before], after, retain_graph=True
            )
            of = dict(zip(names, inside, strict=True))
            width = graph.attention_inputs(layer).stop - graph.attention_inputs(layer).start + 1
            inputs = before.detach().new_empty(before.shape[0], width, *before.shape[1:])
            place = 0
            for part, count in graph.read_by_attention:
                check_heads(run.model, part, layer, kept[part].shape[1], count)
                for head in range(count):
                    alone = torch.zeros_like(of[part])
                    alone[:, head] = of[part][:, head]
                    (inputs[:, place],) = torch.autograd.grad(kept[part], before, alone, retain_graph=True)
                    place += 1
            read_by_mlp = before if graph.parallel else kept["resid_mid"]
            (inputs[:, -1],) = torch.autograd.grad(kept["mlp_in"], read_by_mlp, of["mlp_in"])
        found = cls(inputs, whole)
        _check_ways(run.model, layer, found, after)
        return found


def _check_ways(model: StandardizedTransformer, layer: int, found: LayerGradients, after: Tensor) -> None:
    """Refuse a layer that reads the residual stream in other ways too: what went back by these must be all of it."""
    by_ways = found.inputs.sum(1) + after
    off = float((by_ways - found.before).norm() / found.before.norm().clamp_min(torch.finfo(torch.float32).tiny))
    if off > max(1e-3, 8 * torch.finfo(model.dtype).eps):
        raise InterpError(
            f"edges of {type(model._module).__name__}: layer {layer} reads the residual stream in other ways than by "
            f"queries, keys, values and mlp_in (by {off:.2g} of the gradient), such as a gate or a second MLP. Patch "
            "sites instead."
        )


def check_heads(model: StandardizedTransformer, part: str, layer: int, found: int, count: int) -> None:
    """Refuse a layer that has other heads than the model.

    Raises:
        InterpError: it has.
    """
    if found != count:
        raise InterpError(
            f"edges of {type(model._module).__name__}: expected {count} heads in {part}.{layer}, found {found}. Patch "
            "sites instead."
        )
