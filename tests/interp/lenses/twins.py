"""Slow twins of the lenses: one prompt at a time, unpadded, the whole model with its own head, float64 afterwards.

`HookTwin` is plain transformers and torch hooks, `NnsightTwin` plain nnsight. Neither knows anything of `interp`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from nnsight import TransformersModel
from torch import Tensor, nn

from tests.tiny import tiny_model, tiny_tokenizer

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2"]
_LAYERS = {"llama": "model.layers", "gemma2": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


def _hidden(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class HookTwin:
    """A tiny model, read and written with torch hooks on whole layers."""

    def __init__(self, family: str) -> None:
        self.model = tiny_model(family)
        self.layers: nn.ModuleList = self.model.get_submodule(_LAYERS[family])

    @torch.no_grad()
    def residuals(self, ids: Sequence[int]) -> Tensor:
        """(layer, position, hidden): the output of every layer."""
        seen: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _module, _args, output: seen.append(_hidden(output)[0].clone()))
            for layer in self.layers
        ]
        self.model(torch.tensor([list(ids)]))
        for hook in hooks:
            hook.remove()
        return torch.stack(seen)

    @torch.no_grad()
    def logits(self, ids: Sequence[int], position: int = 0, latents: Mapping[int, Tensor] | None = None) -> np.ndarray:
        """(vocabulary,) float64 after the last token, with latents written over the outputs of some layers."""

        def writing(latent: Tensor):
            def hook(_module, _args, output):
                _hidden(output)[0, position] = latent.to(_hidden(output).dtype)

            return hook

        hooks = [self.layers[j].register_forward_hook(writing(latent)) for j, latent in (latents or {}).items()]
        logits = self.model(torch.tensor([list(ids)])).logits[0, -1]
        for hook in hooks:
            hook.remove()
        return logits.double().numpy()


class NnsightTwin:
    """The same model in plain nnsight."""

    def __init__(self, family: str) -> None:
        self.model = TransformersModel(tiny_model(family), tokenizer=tiny_tokenizer())
        self.layers = self.model.get(_LAYERS[family])

    @torch.no_grad()
    def logits(self, ids: Sequence[int], position: int = 0, latents: Mapping[int, Tensor] | None = None) -> np.ndarray:
        """As `HookTwin.logits`."""
        with self.model.trace([list(ids)]):
            for layer, latent in sorted((latents or {}).items()):
                _hidden(self.layers[layer].output)[0, position] = latent
            logits = self.model.output.logits[0, -1].save()
        return logits.double().numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def expected(
    by_layer: Sequence[np.ndarray], groups: Sequence[Sequence[int]], top_k: int, own: np.ndarray | None
) -> dict[str, np.ndarray]:
    """What a lens should say of one example.

    Arguments:
        by_layer: the logits at each layer of the lens.
        groups: token ids of each group.
        top_k: how many top tokens are kept.
        own: the model's own logits at the source, or None.
    """
    log_probs = [log_softmax(logits) for logits in by_layer]
    orders = [np.argsort(-logits, kind="stable") for logits in by_layer]
    last = log_probs[-1]
    own_log_probs = None if own is None else log_softmax(own)
    return {
        "log_prob": np.array([[np.log(sum(np.exp(row[t]) for t in set(g))) for g in groups] for row in log_probs]),
        "rank": np.array([[min(list(order).index(t) for t in g) for g in groups] for order in orders]),
        "top_ids": np.array([order[:top_k] for order in orders]),
        "top_log_prob": np.array([row[order[:top_k]] for row, order in zip(log_probs, orders, strict=True)]),
        "entropy": np.array([-(np.exp(row) * row).sum() for row in log_probs]),
        "kl": np.array([(np.exp(last) * (last - row)).sum() for row in log_probs]),
        "surprisal": np.array(
            [np.nan if own_log_probs is None else -own_log_probs[order[0]] for order in orders], dtype=float
        ),
        "model_top_id": np.array(-1 if own_log_probs is None else own_log_probs.argmax()),
    }


def assert_equal(
    arrays: Mapping[str, np.ndarray], examples: Sequence[Mapping[str, np.ndarray]], atol: float, *, ties: float = 0.0
) -> None:
    """Compare a lens with its twins: integers exactly, log-probabilities also as probabilities.

    With `ties`, for states that hypothesis draws, top tokens may stand in each other's place where their
    log-probabilities agree to that many nats.
    """
    for name in examples[0]:
        wanted = np.stack([example[name] for example in examples])
        found = arrays[name]
        if ties and name == "top_ids":
            others = found != wanted
            log_prob = np.stack([example["top_log_prob"] for example in examples])
            np.testing.assert_allclose(arrays["top_log_prob"][others], log_prob[others], atol=ties, rtol=0)
            continue
        if found.dtype.kind == "i":
            np.testing.assert_array_equal(found, wanted, err_msg=name)
            continue
        assert found.dtype == np.float32, name
        if name.endswith("log_prob"):
            np.testing.assert_allclose(np.exp(found), np.exp(wanted), atol=atol, rtol=0, err_msg=name)
        np.testing.assert_allclose(found, wanted, atol=10 * atol, rtol=10 * atol, err_msg=name)
