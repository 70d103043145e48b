"""Plain nnsight 0.8.1: a trace of the whole target prompts for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnsight
import torch
from torch import Tensor

from benchmarks.lenses.tools.common import BATCH, batches, expanded, layers_last, load_transformers, padded, read
from benchmarks.lenses.works import Inputs, Result

__all__ = ["WithNnsight"]


class WithNnsight:
    """A transformers model in nnsight's wrapper."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = nnsight.TransformersModel(model, tokenizer=tokenizer)
        self.num_layers = model.config.num_hidden_layers

    @classmethod
    def load(cls, folder: str) -> WithNnsight:
        return cls(*load_transformers(folder))

    @torch.no_grad()
    def patchscope(self, inputs: Inputs) -> Result:
        assert inputs.latents is not None
        return self._patchscope(inputs, inputs.latents)

    @torch.no_grad()
    def patchscope_end_to_end(self, inputs: Inputs) -> Result:
        return self._patchscope(inputs, self._last_tokens(inputs.source_ids))

    @torch.no_grad()
    def logit_lens(self, inputs: Inputs) -> Result:
        module = self.model._module
        parts = []
        for rows in batches(len(inputs.source_ids)):
            hidden = self._last_tokens(inputs.source_ids[rows])
            probabilities = (module.lm_head(module.model.norm(layer)).softmax(-1) for layer in hidden)
            answers = inputs.answers[rows]
            parts.append(layers_last([read(layer, answers, inputs.top_k, entropy=True) for layer in probabilities]))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def collect(self, inputs: Inputs) -> Result:
        return {"activations": self._last_tokens(inputs.source_ids)}

    few_shot = collect

    @torch.no_grad()
    def generate(self, inputs: Inputs) -> Result:
        latents = self._last_tokens(inputs.source_ids)
        ids = torch.empty(latents.shape[1], self.num_layers, inputs.new_tokens, dtype=torch.long)
        for layer in range(self.num_layers):
            for rows in batches(latents.shape[1]):
                latent = latents[layer, rows]
                prompts = expanded(inputs.target_ids, latent.shape[0])
                with self.model.generate(
                    input_ids=prompts,
                    attention_mask=torch.ones_like(prompts),
                    max_new_tokens=inputs.new_tokens,
                    do_sample=False,
                ) as tracer:
                    self.model.model.layers[layer].output[:, -1] = latent
                    found = tracer.result.save()
                ids[rows, layer] = found[:, prompts.shape[1] :]
        return {"ids": ids}

    def _patchscope(self, inputs: Inputs, latents: Tensor) -> Result:
        prompts = expanded(inputs.target_ids, latents.shape[1])
        by_layer = []
        for layer, latent in enumerate(latents):
            with self.model.trace(input_ids=prompts, use_cache=False, logits_to_keep=1):
                self.model.model.layers[layer].output[:, -1] = latent
                logits = nnsight.save(self.model.output.logits[:, -1])
            by_layer.append(read(logits.softmax(-1), inputs.answers, inputs.top_k))
        return layers_last(by_layer)

    def _last_tokens(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(layer, row, hidden), the residual stream after each layer at the last tokens."""
        parts = []
        for start in range(0, len(prompts), BATCH):
            found: list[Tensor] = []
            with self.model.trace(**padded(prompts[start : start + BATCH]), use_cache=False) as tracer:
                for layer in range(self.num_layers):
                    found.append(self.model.model.layers[layer].output[:, -1].clone())
                tracer.stop()
            parts.append(torch.stack(found))
        return torch.cat(parts, dim=1)
