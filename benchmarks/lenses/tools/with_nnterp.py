"""nnterp 1.3.0 on nnsight 0.6.3, by its own functions, which take prompts as strings."""

from __future__ import annotations

import torch
from nnterp import StandardizedTransformer  # type: ignore[import-not-found]
from nnterp.interventions import (  # type: ignore[import-not-found]
    TargetPrompt,
    logit_lens,
    patchscope_generate,
    patchscope_lens,
)
from nnterp.nnsight_utils import collect_token_activations_batched  # type: ignore[import-not-found]
from nnterp.prompt_utils import Prompt, run_prompts  # type: ignore[import-not-found]
from torch import Tensor

from benchmarks.lenses.tools.common import BATCH, layers_last, read
from benchmarks.lenses.works import Inputs, Result

__all__ = ["WithNnterp"]


def _text(ids: list[int]) -> str:
    return " ".join(f"w{token}" for token in ids)


class _Quiet:
    """A progress bar that shows nothing: nnterp's own cannot be turned off."""

    def __new__(cls, iterable: range, **_: object) -> range:  # type: ignore[misc]
        return iterable


class WithNnterp:
    """nnterp's model."""

    def __init__(self, model: StandardizedTransformer) -> None:
        self.model = model

    @classmethod
    def load(cls, folder: str) -> WithNnterp:
        model = StandardizedTransformer(folder, device_map="cpu")
        model._module.requires_grad_(False)  # no_grad does not reach the thread that nnsight runs a trace's body in
        return cls(model)

    def patchscope(self, inputs: Inputs) -> Result:
        return self._read(patchscope_lens(self.model, None, self._target(inputs), latents=inputs.latents), inputs)

    def patchscope_end_to_end(self, inputs: Inputs) -> Result:
        sources = [_text(ids) for ids in inputs.source_ids]
        return self._read(patchscope_lens(self.model, sources, self._target(inputs)), inputs)

    def logit_lens(self, inputs: Inputs) -> Result:
        """By `run_prompts`, its way to many prompts; what that does not reduce to is taken as its batches go by."""
        prompts = [
            Prompt(_text(ids), {"answer": [answer]})
            for ids, answer in zip(inputs.source_ids, inputs.answers, strict=True)
        ]
        tops, entropies = [], []

        def probabilities(model: StandardizedTransformer, batch: list[str], remote: bool) -> Tensor:
            found: Tensor = logit_lens(model, batch, remote=remote)
            tops.append(found.topk(inputs.top_k, dim=-1).values)
            entropies.append(torch.special.entr(found).sum(-1))
            return found

        answer = run_prompts(self.model, prompts, batch_size=BATCH, get_probs_func=probabilities, tqdm=_Quiet)["answer"]
        return {"answer": answer, "top": torch.cat(tops), "entropy": torch.cat(entropies)}

    def collect(self, inputs: Inputs) -> Result:
        prompts = [_text(ids) for ids in inputs.source_ids]
        return {"activations": collect_token_activations_batched(self.model, prompts, BATCH)}

    few_shot = collect

    def generate(self, inputs: Inputs) -> Result:
        """In calls of at most 32 sources; more at once it only warns about."""
        parts = []
        for start in range(0, len(inputs.source_ids), BATCH):
            sources = [_text(ids) for ids in inputs.source_ids[start : start + BATCH]]
            found = patchscope_generate(self.model, sources, self._target(inputs), max_length=inputs.new_tokens)
            parts.append(torch.stack([found[layer] for layer in sorted(found)], dim=1))
        return {"ids": torch.cat(parts)[..., len(inputs.target_ids) :]}

    def _target(self, inputs: Inputs) -> TargetPrompt:
        return TargetPrompt(_text(inputs.target_ids), -1)

    def _read(self, probabilities: Tensor, inputs: Inputs) -> Result:
        return layers_last([read(layer, inputs.answers, inputs.top_k) for layer in probabilities.unbind(1)])
