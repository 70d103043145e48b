"""The residual stream taken apart: by layer, head and neuron, through norms and on to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from interp.compat.transformer_lens.slices import Slice, SliceInput
from interp.errors import InterpError

__all__ = ["StackMethods", "as_slice"]

Stack = Tensor | tuple[Tensor, list[str]]


class StackMethods(ABC):
    """What a cache does with the residual stream. A stack is (component, batch, position, d_model)."""

    cache_dict: dict[str, Tensor]
    model: Any
    has_batch_dim: bool
    has_embed: bool
    has_pos_embed: bool

    @abstractmethod
    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor: ...

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stack:
        """The residual stream at each layer up to one.

        Arguments:
            layer: up to what enters this layer; None, -1 or the number of layers: up to the last.
            incl_mid: also between attention and MLP.
            apply_ln: through the norm of that layer; at the end through the final norm, each with its own scale.
            pos_slice: some positions.
            mlp_input: up to what enters that layer's MLP.
            return_labels: also the names of the components.
        """
        layer, positions = self._layer(layer), as_slice(pos_slice)
        labels, parts = [], []
        for index in range(min(layer + 1, self._count)):
            parts.append(self["resid_pre", index])
            labels.append(f"{index}_pre")
            if (incl_mid and index < layer) or (mlp_input and index == layer):
                parts.append(self["resid_mid", index])
                labels.append(f"{index}_mid")
        if layer == self._count:
            parts.append(self["resid_post", layer - 1])
            labels.append("final_post")
        stack = torch.stack([positions.apply(part, dim=-2) for part in parts])
        if apply_ln:
            own = layer == self._count
            stack = self.apply_ln_to_stack(
                stack, layer, mlp_input, positions, has_batch_dim=self.has_batch_dim, recompute_ln=own
            )
        return (stack, labels) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack:
        """What embeddings, attention and MLPs have added to the residual stream that enters a layer.

        Arguments:
            layer, apply_ln, pos_slice, return_labels: as in `accumulated_resid`.
            mlp_input: also that layer's attention.
            mode: "attn" or "mlp" alone, or "all".
            incl_embeds: the embeddings too.

        Raises:
            InterpError: an unknown mode, or a model whose residual stream is more than that sum.
        """
        if mode not in ("all", "mlp", "attn"):
            raise InterpError(f"mode: expected 'all', 'mlp' or 'attn', got {mode!r}.")
        if mode == "all" and incl_embeds:
            self._check_sum()
        layer, positions = self._layer(layer), as_slice(pos_slice)
        names: list[tuple[Any, str]] = []
        if incl_embeds:
            names += [("hook_embed", "embed")] * self.has_embed + [("hook_pos_embed", "pos_embed")] * self.has_pos_embed
        for index in range(layer + int(mlp_input)):
            if mode != "mlp":
                names.append((("attn_out", index), f"{index}_attn_out"))
            if mode != "attn" and index < layer and not self.model.cfg.attn_only:
                names.append((("mlp_out", index), f"{index}_mlp_out"))
        stack = torch.stack([positions.apply(self[name], dim=-2) for name, _ in names])
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, positions, has_batch_dim=self.has_batch_dim)
        return (stack, [label for _, label in names]) if return_labels else stack

    def compute_head_results(self) -> None:
        """Put what each head adds, `attn.hook_result`, into the cache where it is not there, from `attn.hook_z`."""
        for index in range(self._count):
            name = f"blocks.{index}.attn.hook_result"
            if name in self.cache_dict:
                continue
            z = self["z", index]
            weight = self.model.weight_of("W_O", f"blocks.{index}.attn").to(z)
            result = torch.einsum("...hd,hdm->...hm", z, weight).detach()
            scale = self.model.points.by_name[name].place.added.scale
            self.cache_dict[name] = result if scale is None else result * scale

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Slice | SliceInput = None,
        apply_ln: bool = False,
    ) -> Stack:
        """What each head before a layer gives to the residual stream: (layer x head, batch, position, d_model).

        As in TransformerLens, before the norm that some families have behind attention (Gemma 2, OLMo 2).

        Arguments:
            layer, pos_slice, apply_ln, return_labels: as in `accumulated_resid`.
            incl_remainder: also the rest of the residual stream, last.
        """
        layer, positions = self._layer(layer), as_slice(pos_slice)
        self.compute_head_results()
        labels, parts = [], []
        for index in range(layer):
            heads = positions.apply(self["result", index, "attn"], dim=-3)
            parts.append(heads.movedim(-2, 0))
            labels += [f"L{index}H{head}" for head in range(heads.shape[-2])]
        return self._stacked(layer, parts, labels, positions, incl_remainder, apply_ln, return_labels)

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Slice | SliceInput = None,
        pos_slice: Slice | SliceInput = None,
        project_output_onto: Tensor | None = None,
    ) -> Tensor:
        """What each neuron of a layer adds: (batch, position, neuron, d_model).

        Arguments:
            layer: which.
            neuron_slice, pos_slice: some neurons, some positions. One neuron keeps its axis.
            project_output_onto: (d_model,) or (d_model, n): onto this in place of d_model, computed without that axis.
        """
        neurons, positions = as_slice(neuron_slice), as_slice(pos_slice)
        if neurons.mode == "int":
            neurons = Slice.unwrap(int(neurons.slice))  # type: ignore[arg-type]
        acts = neurons.apply(positions.apply(self["post", layer, "mlp"], dim=-2), dim=-1)
        weight = neurons.apply(self.model.weight_of("W_out", f"blocks.{layer}.mlp").detach(), dim=0).to(acts)
        scale = getattr(self.model.points.by_name[f"blocks.{layer}.hook_mlp_out"].place, "scale", None)
        if scale is not None:
            acts = acts * scale
        if project_output_onto is None:
            return acts[..., None] * weight
        weight = weight @ project_output_onto.to(weight)
        return acts * weight if weight.dim() == 1 else acts[..., None] * weight

    def stack_neuron_results(
        self,
        layer: int | None = -1,
        pos_slice: Slice | SliceInput = None,
        neuron_slice: Slice | SliceInput = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
        mlp_input: bool = False,
    ) -> Stack:
        """What each neuron before a layer has added: (layer x neuron, batch, position, d_model).

        Arguments:
            layer, pos_slice, apply_ln, mlp_input, return_labels: as in `accumulated_resid`.
            neuron_slice: some neurons of each layer.
            incl_remainder: also the rest of the residual stream, last.
            project_output_onto: as in `get_neuron_results`.

        Raises:
            InterpError: a norm (`apply_ln`) of what has been projected.
        """
        if apply_ln and project_output_onto is not None:
            raise InterpError(
                "apply_ln and project_output_onto: project what stack_neuron_results(apply_ln=True) gives."
            )
        layer, positions, neurons = self._layer(layer), as_slice(pos_slice), as_slice(neuron_slice)
        labels, parts = [], []
        for index in range(layer):
            results = self.get_neuron_results(index, neurons, positions, project_output_onto)
            axis = -1 if project_output_onto is not None and project_output_onto.dim() == 1 else -2
            parts.append(results.movedim(axis, 0))
            width = self["post", index, "mlp"].shape[-1]
            labels += [f"L{index}N{neuron}" for neuron in neurons.indices(width)]
        return self._stacked(
            layer, parts, labels, positions, incl_remainder, apply_ln, return_labels, project_output_onto, mlp_input
        )

    def _stacked(
        self,
        layer: int,
        parts: list[Tensor],
        labels: list[str],
        positions: Slice,
        incl_remainder: bool,
        apply_ln: bool,
        return_labels: bool,
        onto: Tensor | None = None,
        mlp_input: bool = False,
    ) -> Stack:
        if incl_remainder or not parts:
            whole = self["resid_pre", 0] if layer == 0 else self["resid_post", layer - 1]
            if mlp_input:
                whole = self["resid_mid", layer]
            whole = positions.apply(whole, dim=-2)
            whole = whole if onto is None else whole @ onto.to(whole)
            rest = whole - torch.cat(parts).sum(0) if parts else whole
            parts = [*parts, rest[None] if incl_remainder else rest[None][:0]]
            labels = [*labels, "remainder"] if incl_remainder else labels
        stack = torch.cat(parts)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, positions, has_batch_dim=self.has_batch_dim)
        return (stack, labels) if return_labels else stack

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Stack:
        """Heads, then neurons (or MLPs), embeddings and biases: what sums to the residual stream that enters a layer.

        Not so where a norm stands behind attention or the MLP (Gemma 2, OLMo 2): heads and neurons are taken before it.
        `ActivationCache.decomposed_residual` of interp takes them through it.

        Arguments:
            layer, mlp_input, apply_ln, pos_slice, return_labels: as in `decompose_resid`.
            expand_neurons: each neuron; False: each MLP with its bias.
            project_output_onto: as in `get_neuron_results`; after the norm where there is one.

        Raises:
            InterpError: a model whose residual stream is more than that sum.
        """
        self._check_sum()
        layer, positions = self._layer(layer), as_slice(pos_slice)
        onto = None if apply_ln else project_output_onto
        labels: list[str] = []
        parts: list[Tensor] = []

        def add(stack: Tensor, names: list[str], projected: bool = False) -> None:
            parts.append(stack if onto is None or projected else stack @ onto.to(stack))
            labels.extend(names)

        found: Any = self.stack_head_results(layer + int(mlp_input), return_labels=True, pos_slice=positions)
        add(*found)
        if layer and not self.model.cfg.attn_only and expand_neurons:
            found = self.stack_neuron_results(layer, positions, return_labels=True, project_output_onto=onto)
            add(found[0], found[1], projected=True)
        elif layer and not self.model.cfg.attn_only:
            found = self.decompose_resid(layer, mode="mlp", pos_slice=positions, incl_embeds=False, return_labels=True)
            add(*found)
        for name, label in (("hook_embed", "embed"), ("hook_pos_embed", "pos_embed")):
            if name in self.cache_dict:
                add(positions.apply(self[name], dim=-2)[None], [label])
        bias = self.model.accumulated_bias(layer, mlp_input, include_mlp_biases=expand_neurons).detach()
        like = positions.apply(self["resid_pre", 0], dim=-2)
        add(bias.to(like).expand(1, *like.shape), ["bias"])
        stack = torch.cat(parts)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, positions, has_batch_dim=self.has_batch_dim)
            if project_output_onto is not None:
                stack = stack @ project_output_onto.to(stack)
        return (stack, labels) if return_labels else stack

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Tensor:
        """One value of all layers before one: (layer, ...)."""
        return torch.stack([self[activation_name, index, sublayer_type] for index in range(self._layer(layer))])

    # Norm and logits -------------------------------------------------------------------------------------------------

    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Slice | SliceInput = None,
        batch_slice: Slice | SliceInput = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Tensor:
        """Parts of the residual stream as the norm before a layer scales them: with the scale of the whole stream.

        Arguments:
            residual_stack: (component, batch, position, d_model), of these positions and this batch.
            layer: whose norm; None, -1 or the number of layers: the final one.
            mlp_input: the norm before its MLP.
            pos_slice, batch_slice: which of the cached scales are meant; rows are also taken of the stack.
            has_batch_dim: the stack has its batch axis.
            recompute_ln: at the end, each through the final norm itself, with a scale of its own.

        Raises:
            InterpError: the scale is not in the cache.
        """
        layer, positions, rows = self._layer(layer), as_slice(pos_slice), as_slice(batch_slice)
        if has_batch_dim:
            residual_stack = rows.apply(residual_stack, dim=1)
        at_end = layer == self._count
        name = "ln_final" if at_end else f"blocks.{layer}.ln{2 if mlp_input else 1}"
        if f"{name}.hook_scale" not in self.model.hook_dict:
            if f"{name}.hook_out" not in self.model.hook_dict and at_end:
                return residual_stack  # no norm
            raise self.model.points.refuse(f"{name}.hook_scale")
        if recompute_ln and at_end:
            with torch.no_grad():
                width = residual_stack.shape[-1]
                return self.model.ln_final(residual_stack.reshape(1, -1, width)).reshape(residual_stack.shape)
        place = self.model.points.by_name[f"{name}.hook_scale"].place
        scale = positions.apply(self[f"{name}.hook_scale"], dim=-2)
        if self.has_batch_dim:
            scale = rows.apply(scale)
        if place.centred:
            residual_stack = residual_stack - residual_stack.mean(-1, keepdim=True)
        return residual_stack / scale

    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: str | int | Tensor,
        incorrect_tokens: str | int | Tensor | None = None,
        pos_slice: Slice | SliceInput = None,
        batch_slice: Slice | SliceInput = None,
        has_batch_dim: bool = True,
    ) -> Tensor:
        """What each component adds to the logits of tokens, through the final norm's scale (direct logit attribution).

        Arguments:
            residual_stack: (component, batch, position, d_model).
            tokens: a text of one token, an id, ids (batch,), one a row, or (batch, position).
            incorrect_tokens: what the tokens' logits are compared with: the attribution is to the difference.
            pos_slice, batch_slice: which positions and rows the stack is of.
            has_batch_dim: the stack has its batch axis.

        Returns:
            (component, batch, position).

        Raises:
            InterpError: tokens and incorrect tokens of different shapes.
        """
        directions = self.model.tokens_to_residual_directions(tokens).detach()
        if incorrect_tokens is not None:
            other = self.model.tokens_to_residual_directions(incorrect_tokens).detach()
            if other.shape != directions.shape:
                raise InterpError(
                    f"logit_attrs: expected as many incorrect tokens as tokens, got {tuple(other.shape[:-1])} and "
                    f"{tuple(directions.shape[:-1])}."
                )
            directions = directions - other
        rows = as_slice(batch_slice)
        scaled = self.apply_ln_to_stack(residual_stack, -1, False, pos_slice, rows, has_batch_dim)
        by_row = has_batch_dim and rows.mode != "int" and scaled.ndim == 4 and directions.ndim == 2
        if by_row and directions.shape[0] == scaled.shape[1]:
            directions = directions[:, None]
        return (scaled * directions.to(scaled)).sum(-1)

    def _check_sum(self) -> None:
        reason = self.model.points.why_no_sum
        if reason is not None:
            name = type(self.model.original_model).__name__
            raise InterpError(f"the residual stream of {name} is not the sum of these components: {reason}")

    @property
    def _count(self) -> int:
        return int(self.model.cfg.n_layers)

    def _layer(self, layer: int | None) -> int:
        """Up to which layer."""
        if layer is None or layer == -1:
            return self._count
        if not 0 <= layer <= self._count:
            raise InterpError(f"layer: expected 0 to {self._count}, -1 or None, got {layer}.")
        return layer


def as_slice(given: Slice | SliceInput) -> Slice:
    """What a user gives as positions, as a `Slice`."""
    return given if isinstance(given, Slice) else Slice(given)
