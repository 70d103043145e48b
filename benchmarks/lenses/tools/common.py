"""What the tools share: batches, padding, and what is kept of a batch's probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.lenses.works import Result

__all__ = ["BATCH", "batches", "expanded", "layers_last", "load_transformers", "padded", "read"]

BATCH = 32  # prompts in a forward pass: what nnterp's `run_prompts` and `patchscope_generate` take


def load_transformers(folder: str) -> tuple[Any, Any]:
    """Model and tokenizer, no parameter asking for gradients: no tool then pays for graphs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(folder)


def batches(count: int) -> Iterator[slice]:
    """Rows in the order given, some at a time."""
    return (slice(start, start + BATCH) for start in range(0, count, BATCH))


def padded(prompts: Sequence[Sequence[int]], device: Any = "cpu") -> dict[str, Tensor]:
    """Prompts as a model takes them, padded on the left."""
    longest = max(len(ids) for ids in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def expanded(target_ids: Sequence[int], rows: int, device: Any = "cpu") -> Tensor:
    """(row, length): one prompt, `rows` times."""
    return torch.tensor([list(target_ids)] * rows, device=device)


def read(probabilities: Tensor, answers: Sequence[int], top_k: int, *, entropy: bool = False) -> Result:
    """What is kept of (row, vocabulary) probabilities: `answer` (row,), `top` (row, k), `entropy` (row,) in nats."""
    rows = torch.tensor(answers, device=probabilities.device)
    kept = {
        "answer": probabilities.gather(1, rows[:, None])[:, 0].float().cpu(),
        "top": probabilities.topk(top_k, dim=-1).values.float().cpu(),
    }
    if entropy:
        kept["entropy"] = torch.special.entr(probabilities).sum(-1).float().cpu()
    return kept


def layers_last(by_layer: Sequence[Result]) -> Result:
    """(row, layer, ...) of what was kept layer by layer."""
    return {name: torch.stack([kept[name] for kept in by_layer], dim=1) for name in by_layer[0]}
