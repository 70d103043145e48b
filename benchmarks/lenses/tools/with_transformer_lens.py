"""TransformerLens 4.3: its bridge around the transformers model, hooks and cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge  # type: ignore[import-not-found]

from benchmarks.lenses.tools.common import BATCH, batches, expanded, layers_last, load_transformers, padded, read
from benchmarks.lenses.works import Inputs, Result

__all__ = ["WithTransformerLens"]


def _writes(latents: Tensor) -> Callable[..., Tensor]:
    """A hook that writes (row, hidden) at the last token of a prompt; single tokens that are generated are let be."""

    def hook(output: Tensor, hook: Any) -> Tensor:
        if output.shape[1] > 1:
            output = output.clone()
            output[:, -1] = latents
        return output

    return hook


class WithTransformerLens:
    """The bridge, without the weight processing that would change activations."""

    def __init__(self, bridge: Any) -> None:
        self.bridge = bridge
        self.names = [f"blocks.{layer}.hook_out" for layer in range(bridge.cfg.n_layers)]

    @classmethod
    def load(cls, folder: str) -> WithTransformerLens:
        model, tokenizer = load_transformers(folder)
        return cls(TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=tokenizer))

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
            # `logit_readout` takes targets or a top-k, not both, and would read everything out twice.
            probabilities = (self.bridge.unembed(self.bridge.ln_final(layer)).softmax(-1) for layer in hidden)
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
        ids = torch.empty(latents.shape[1], len(self.names), inputs.new_tokens, dtype=torch.long)
        for layer, name in enumerate(self.names):
            for rows in batches(latents.shape[1]):
                prompts = expanded(inputs.target_ids, latents[layer, rows].shape[0])
                with self.bridge.hooks(fwd_hooks=[(name, _writes(latents[layer, rows]))]):
                    found = self.bridge.generate(
                        prompts,
                        max_new_tokens=inputs.new_tokens,
                        do_sample=False,
                        stop_at_eos=False,
                        return_type="tokens",
                        verbose=False,
                    )
                ids[rows, layer] = found[:, prompts.shape[1] :]
        return {"ids": ids}

    def _patchscope(self, inputs: Inputs, latents: Tensor) -> Result:
        prompts = expanded(inputs.target_ids, latents.shape[1])
        by_layer = []
        for name, latent in zip(self.names, latents, strict=True):
            logits = self.bridge.run_with_hooks(prompts, fwd_hooks=[(name, _writes(latent))])
            by_layer.append(read(logits[:, -1].softmax(-1), inputs.answers, inputs.top_k))
        return layers_last(by_layer)

    def _last_tokens(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(layer, row, hidden), by `run_with_cache`, stopped after the last layer."""
        parts = []
        for start in range(0, len(prompts), BATCH):
            batch = padded(prompts[start : start + BATCH])
            _, cache = self.bridge.run_with_cache(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                names_filter=self.names,
                pos_slice=-1,
                return_type=None,
            )
            parts.append(torch.stack([cache[name][:, -1] for name in self.names]))
        return torch.cat(parts, dim=1)
