"""What the tests of attention share: tiny models under nnsight alone, and plain ones with torch hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor, nn
from transformers import PreTrainedConfig

from interp.attention import AttentionAccess
from tests.families import FAMILIES, build
from tests.tiny import tiny_tokenizer

KINDS = ("q", "k", "v", "scores", "pattern")
# The first prompt is padded on the left.
IDS = torch.tensor([[0, 0, 0, 17, 250, 33, 94, 301, 7], [1, 88, 5, 260, 71, 12, 44, 9, 100]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 1]])
LENGTH = IDS.shape[1]


class Traced(TransformersModel):
    """A model under nnsight with `access` to its attention, and nothing else of Interpipe."""

    def __init__(self, module: nn.Module, paths: list[str], pattern_source: Callable[[Any], Any] | None = None) -> None:
        super().__init__(module, tokenizer=tiny_tokenizer(), device=module.device)
        self.paths = paths
        self.access = AttentionAccess(
            self.attention, module.config.get_text_config().model_type, pattern_source=pattern_source
        )

    def attention(self, layer: int) -> Any | None:
        """The envoy of one attention module; None past the last."""
        return self.get(self.paths[layer]) if layer < len(self.paths) else None

    def interleave(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().interleave(fn, *args, **kwargs)
        finally:
            self.access.release()


def feed(module: nn.Module, **more: Any) -> dict[str, Any]:
    """The padded prompts as a model takes them."""
    takes = inspect.signature(type(module).forward).parameters
    batch: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK, **more}
    if "position_ids" in takes or module.config.model_type == "moss_transcribe_diarize":  # there among **kwargs
        batch["position_ids"] = (MASK.cumsum(dim=1) - 1).clamp(min=0)
    if module.config.model_type != "openai-gpt":
        batch.setdefault("use_cache", False)
    return batch


def switched(module: nn.Module, implementation: str) -> nn.Module:
    """The module with another attention implementation; its parts may hold configs of their own."""
    for part in module.modules():
        if isinstance(getattr(part, "config", None), PreTrainedConfig):
            part.config._attn_implementation = implementation
    return module


@torch.no_grad()
def plain_patterns(module: nn.Module, **batch: Any) -> tuple[dict[str, Tensor], Tensor]:
    """By path, in order, the weights that a plain model's attention modules give in eager; and the logits."""
    patterns: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def after(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, tuple | list) and len(output) > 1 and _is_pattern(output[1]):
                patterns.setdefault(path, output[1].clone())

        return after

    hooks = [part.register_forward_hook(keep(path)) for path, part in module.named_modules() if path]
    try:
        # This family gives them only when asked.
        more = {"output_attentions": True} if module.config.model_type == "openai-gpt" else {}
        logits = module(**batch, **more).logits
    finally:
        for hook in hooks:
            hook.remove()
    inner = {path: x for path, x in patterns.items() if not any(other.startswith(f"{path}.") for other in patterns)}
    order = [path for path, _ in module.named_modules() if path in inner]
    return {path: inner[path] for path in order}, logits


def _is_pattern(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[-2:] == (LENGTH, LENGTH)


def attention_paths(name: str) -> list[str]:
    """Where the attention modules of a family are."""
    module = switched(build(name), "eager")
    patterns, _ = plain_patterns(module, **feed(module))
    return list(patterns)


def traced(name: str, implementation: str | None = None) -> Traced:
    """A fresh tiny model of a family under nnsight."""
    module = build(name)
    if implementation is not None:
        switched(module, implementation)
    return Traced(module, attention_paths(name))


WITHOUT_ATTENTION = ("mamba", "mamba2", "falcon_mamba")
WITH_ATTENTION = [name for name in FAMILIES if name not in WITHOUT_ATTENTION]
