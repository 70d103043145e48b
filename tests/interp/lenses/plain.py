"""Slow twins of what lenses do on prompts, in plain transformers: one prompt at a time, unpadded, hooks, whole models.

Nothing here knows anything of `interp`. What each family adds to the residual stream, and its norms, are written down
by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from tests.families import build


@dataclass(frozen=True)
class Told:
    """What is known of a family.

    Arguments:
        attention, mlp: in a layer, the module whose output is added to the residual stream.
        norm: the final norm.
        kind: `rms` (times weight), `rms+1` (times 1 + weight) or `layer` (centred; weight and bias).
        added: what multiplies both before they are added.
        scale: what multiplies the head's output.
        softcap: c of c tanh(logits / c).
        projection: in a layer, the last linear map of attention.
    """

    attention: str
    mlp: str
    norm: str = "model.norm"
    kind: str = "rms"
    added: float = 1.0
    scale: float = 1.0
    softcap: float | None = None
    projection: str = "self_attn.o_proj"


_LLAMA = Told("self_attn", "mlp")
_SANDWICH = Told("post_attention_layernorm", "post_feedforward_layernorm")
TOLD: dict[str, Told] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,  # sliding window
    "qwen2": _LLAMA,  # grouped queries, two kinds of attention
    "gemma2": Told("post_attention_layernorm", "post_feedforward_layernorm", kind="rms+1", softcap=2.0),
    "olmo2": _SANDWICH,  # norms behind the sublayers
    "granite": Told("self_attn", "mlp", added=0.7, scale=1 / 4.0),
    "cohere": Told("self_attn", "mlp", kind="layer", scale=0.25),  # parallel; a layer norm without bias
    "phi": Told("self_attn", "mlp", norm="model.final_layernorm", kind="layer", projection="self_attn.dense"),
    "gptj": Told("attn", "mlp", norm="transformer.ln_f", kind="layer", projection="attn.out_proj"),
    "gpt2": Told("attn", "mlp", norm="transformer.ln_f", kind="layer", projection="attn.c_proj"),
    "gpt_neox": Told("attention", "mlp", norm="gpt_neox.final_layer_norm", kind="layer", projection="attention.dense"),
    "mixtral": _LLAMA,  # mixture of experts
}


class PlainModel:
    """A tiny model of a family, read and written with torch hooks."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float32) -> None:
        self.told = TOLD[family]
        self.model = build(family).to(dtype)
        self.layers = next(m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
        self.head: nn.Linear = self.model.get_output_embeddings()
        self.norm: nn.Module = self.model.get_submodule(self.told.norm)

    @torch.no_grad()
    def run(self, ids: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Values by the name of their site, (position, ...), and the logits (position, vocabulary)."""
        seen: dict[str, Tensor] = {}

        def keep(name: str, factor: float = 1.0) -> Callable:
            def hook(_module, _args, output) -> None:
                seen[name] = (output[0] if isinstance(output, tuple) else output)[0].clone() * factor

            return hook

        hooks = [self.norm.register_forward_pre_hook(lambda _m, args: seen.update(last=args[0][0].clone()))]
        for index, layer in enumerate(self.layers):
            for kind, path in (("attn_out", self.told.attention), ("mlp_out", self.told.mlp)):
                name = f"{kind}.{index}"
                hooks.append(layer.get_submodule(path).register_forward_hook(keep(name, self.told.added)))
            hooks.append(
                layer.get_submodule(self.told.projection).register_forward_pre_hook(
                    lambda _m, args, name=f"z.{index}": seen.update({name: args[0][0].clone()})
                )
            )
        output = self.model(torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
        for hook in hooks:
            hook.remove()
        states = output.hidden_states
        seen |= {f"resid_post.{index - 1}": states[index][0] for index in range(1, len(self.layers))}
        seen |= {f"resid_pre.{index}": states[index][0] for index in range(len(self.layers))}
        seen |= {"embed": states[0][0], f"resid_post.{len(self.layers) - 1}": seen["last"], "final_norm": seen["last"]}
        return {name: value.clone() for name, value in seen.items()}, output.logits[0].clone()

    @torch.no_grad()
    def read(self, state: Tensor, ids: Sequence[int], position: int, inverted: bool = False) -> np.ndarray:
        """(vocabulary,) float64: what the whole model says where its last residual stream is replaced at a position."""

        def write(_module, args):
            hidden = args[0].clone()
            hidden[0, position] = state
            return (hidden, *args[1:])

        with _hooked(self.norm, write), _hooked(self.head, lambda _m, args: (-args[0],) if inverted else args):
            logits = self.model(torch.tensor([list(ids)]), use_cache=False).logits[0, position]
        return logits.double().numpy()

    def contribution(self, part: Tensor, last: Tensor, token: int) -> float:
        """What a part (hidden,) of a residual stream `last` adds to the logit of a token, in float64 by hand."""
        part, last = part.double(), last.double()
        weight = self.norm.weight.detach().double() + (1.0 if self.told.kind == "rms+1" else 0.0)
        eps = next(getattr(self.norm, n) for n in ("eps", "variance_epsilon") if hasattr(self.norm, n))
        if self.told.kind == "layer":
            part, last = part - part.mean(), last - last.mean()
        read = weight * part / (last.pow(2).mean() + eps).sqrt()
        return float(self.told.scale * (self.head.weight[token].detach().double() @ read))

    def constant(self, token: int) -> float:
        """What the biases of norm and head give."""
        bias = getattr(self.norm, "bias", None)
        given = 0.0 if bias is None else float(self.head.weight[token].detach().double() @ bias.detach().double())
        own = 0.0 if self.head.bias is None else float(self.head.bias[token].detach())
        return self.told.scale * (given + own)

    def uncapped(self, logits: Tensor) -> np.ndarray:
        """Logits before the softcap."""
        wide = logits.double()
        return (
            wide if self.told.softcap is None else self.told.softcap * torch.atanh(wide / self.told.softcap)
        ).numpy()


@contextmanager
def _hooked(module: nn.Module, hook: Callable):
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@cache
def plain(family: str) -> PlainModel:
    """The twin of a family, made once."""
    return PlainModel(family)
