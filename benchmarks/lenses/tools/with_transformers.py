"""Plain transformers with hooks: a forward pass of the whole target prompts for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lenses.tools.common import BATCH, batches, expanded, layers_last, load_transformers, padded, read
from benchmarks.lenses.works import Inputs, Result

__all__ = ["WithTransformers"]

Hook = Callable[[nn.Module, Any, Tensor], Tensor | None]


@contextmanager
def _hooked(module: nn.Module, hook: Hook) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _writes(latents: Tensor) -> Hook:
    """A hook that writes (row, hidden) at the last token of a prompt; single tokens that are generated are let be."""

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        if output.shape[1] > 1:
            output = output.clone()
            output[:, -1] = latents
        return output

    return hook


class WithTransformers:
    """A Llama of transformers, in float32 or less."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = model.model.layers

    @classmethod
    def load(cls, folder: str) -> WithTransformers:
        return cls(load_transformers(folder)[0])

    @torch.no_grad()
    def patchscope(self, inputs: Inputs) -> Result:
        assert inputs.latents is not None
        return self._patchscope(inputs, inputs.latents)

    @torch.no_grad()
    def patchscope_end_to_end(self, inputs: Inputs) -> Result:
        return self._patchscope(inputs, self._last_tokens(inputs.source_ids))

    @torch.no_grad()
    def logit_lens(self, inputs: Inputs) -> Result:
        parts = []
        for rows in batches(len(inputs.source_ids)):
            hidden = self._last_tokens(inputs.source_ids[rows])
            probabilities = (self.model.lm_head(self.model.model.norm(layer)).float().softmax(-1) for layer in hidden)
            answers = inputs.answers[rows]
            parts.append(layers_last([read(layer, answers, inputs.top_k, entropy=True) for layer in probabilities]))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def collect(self, inputs: Inputs) -> Result:
        return {"activations": self._last_tokens(inputs.source_ids).cpu()}

    few_shot = collect

    @torch.no_grad()
    def generate(self, inputs: Inputs) -> Result:
        """`margin`: how far, in probability, each token was from being another one; for comparing greedy choices."""
        latents = self._last_tokens(inputs.source_ids)
        ids = torch.empty(latents.shape[1], len(self.layers), inputs.new_tokens, dtype=torch.long)
        margin = torch.empty(ids.shape)
        for layer, module in enumerate(self.layers):
            for rows in batches(latents.shape[1]):
                prompts = expanded(inputs.target_ids, latents[layer, rows].shape[0], self.model.device)
                with _hooked(module, _writes(latents[layer, rows])):
                    found = self.model.generate(
                        prompts,
                        attention_mask=torch.ones_like(prompts),
                        max_new_tokens=inputs.new_tokens,
                        do_sample=False,
                        output_scores=True,
                        return_dict_in_generate=True,
                    )
                ids[rows, layer] = found.sequences[:, prompts.shape[1] :].cpu()
                for step, scores in enumerate(found.scores):
                    first, second = scores.float().softmax(-1).topk(2).values.unbind(-1)
                    margin[rows, layer, step] = (first - second).cpu()
        return {"ids": ids, "margin": margin}

    def _patchscope(self, inputs: Inputs, latents: Tensor) -> Result:
        prompts = expanded(inputs.target_ids, latents.shape[1], self.model.device)
        by_layer = []
        for module, latent in zip(self.layers, latents.to(self.model.device), strict=True):
            with _hooked(module, _writes(latent)):
                logits = self.model(input_ids=prompts, use_cache=False, logits_to_keep=1).logits[:, -1]
            by_layer.append(read(logits.float().softmax(-1), inputs.answers, inputs.top_k))
        return layers_last(by_layer)

    def _last_tokens(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(layer, row, hidden), the residual stream after each layer at the last tokens."""
        parts = []
        for start in range(0, len(prompts), BATCH):
            found: list[Tensor] = []
            handles = [
                layer.register_forward_hook(lambda _, __, output, found=found: found.append(output[:, -1].clone()))
                for layer in self.layers
            ]
            try:
                self.model.model(**padded(prompts[start : start + BATCH], self.model.device), use_cache=False)
            finally:
                for handle in handles:
                    handle.remove()
            parts.append(torch.stack(found))
        return torch.cat(parts, dim=1)
