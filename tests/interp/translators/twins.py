"""Plain transformers and torch: the inside of a whole forward pass, and the model's own tail by running the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tests.interp.lenses.twins import _LAYERS, HookTwin

Translators = Mapping[int, tuple[Tensor, Tensor]]


class TunedTwin(HookTwin):
    """A tiny model whose last layer can be made to say anything, with gradients."""

    def speak(self, ids: Sequence[int], hidden: Tensor) -> Tensor:
        """(position, vocabulary): the logits where (position, hidden) is put over the last layer's output."""

        def put(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> object:
            return (hidden[None], *output[1:]) if isinstance(output, tuple) else hidden[None]

        hook = self.layers[-1].register_forward_hook(put)
        logits = self.model(torch.tensor([list(ids)])).logits[0]
        hook.remove()
        return logits

    def losses(self, ids: Sequence[int], translators: Translators, loss: str) -> dict[int, Tensor]:
        """Layer -> the summed loss of a sequence in nats, differentiable."""
        residuals = self.residuals(ids)
        final = torch.log_softmax(self.speak(ids, residuals[-1]).detach(), dim=-1)
        found = {}
        for layer, (weight, bias) in translators.items():
            hidden = residuals[layer] + residuals[layer] @ weight.T + bias
            spoken = torch.log_softmax(self.speak(ids, hidden), dim=-1)
            if loss == "kl":
                found[layer] = (final.exp() * (final - spoken)).sum()
            else:
                found[layer] = -spoken[torch.arange(len(ids) - 1), torch.tensor(list(ids)[1:])].sum()
        return found


def random_translators(layers: Sequence[int], hidden_size: int, *, gradients: bool = False) -> Translators:
    """Small random weights and biases, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    return {
        layer: (
            (0.1 * torch.randn(hidden_size, hidden_size, generator=generator)).requires_grad_(gradients),
            torch.randn(hidden_size, generator=generator).requires_grad_(gradients),
        )
        for layer in layers
    }


def as_tensors(translators: Translators) -> dict[str, Tensor]:
    """Under the names that a saved lens has."""
    named = {f"weight.{layer}": weight.detach() for layer, (weight, _) in translators.items()}
    return named | {f"bias.{layer}": bias.detach() for layer, (_, bias) in translators.items()}


__all__ = ["_LAYERS", "TunedTwin", "as_tensors", "random_translators"]
