"""Interpipe itself, by its public functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.lenses.tools.common import load_transformers
from benchmarks.lenses.works import Inputs, Result
from interp import StandardizedTransformer
from interp.activations import collect
from interp.lenses import Latents, logit_lens, patchscope_generate, patchscope_lens
from interp.results import LensResult
from interp.sites import Site

__all__ = ["WithInterpipe"]


class WithInterpipe:
    """Our model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = StandardizedTransformer(model, tokenizer=tokenizer)
        self.layers = range(self.model.num_layers)

    @classmethod
    def load(cls, folder: str) -> WithInterpipe:
        return cls(*load_transformers(folder))

    def patchscope(self, inputs: Inputs) -> Result:
        assert inputs.latents is not None
        return self._patchscope(inputs, inputs.latents)

    def patchscope_end_to_end(self, inputs: Inputs) -> Result:
        return self._patchscope(inputs, self._last_tokens(inputs))

    def logit_lens(self, inputs: Inputs) -> Result:
        found = logit_lens(
            self.model,
            inputs.source_ids,
            targets=[{"answer": [answer]} for answer in inputs.answers],
            top_k=inputs.top_k,
            surprisal=False,
        )
        return {**_probabilities(found), "entropy": torch.tensor(found.entropy)}

    def collect(self, inputs: Inputs) -> Result:
        return {"activations": self._last_tokens(inputs)}

    few_shot = collect

    def generate(self, inputs: Inputs) -> Result:
        found = patchscope_generate(
            self.model,
            Latents(self._last_tokens(inputs), self.layers),
            [inputs.target_ids],
            "last",
            max_new_tokens=inputs.new_tokens,
        )
        return {"ids": torch.tensor(found.ids)}

    def _patchscope(self, inputs: Inputs, latents: Tensor) -> Result:
        found = patchscope_lens(
            self.model,
            Latents(latents, self.layers),
            [inputs.target_ids],
            "last",
            [[[answer]] for answer in inputs.answers],
            top_k=inputs.top_k,
        )
        return _probabilities(found)

    def _last_tokens(self, inputs: Inputs) -> Tensor:
        sites = [Site("resid_post", layer) for layer in self.layers]
        last = [[len(ids) - 1] for ids in inputs.source_ids]
        return collect(self.model, inputs.source_ids, sites, last)["resid_post"][:, :, 0]


def _probabilities(found: LensResult) -> Result:
    return {
        "answer": torch.tensor(found.log_prob[..., 0]).exp(),
        "top": torch.tensor(found.top_log_prob).exp(),
    }
