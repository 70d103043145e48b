"""A model that sees in plain transformers: a processor, a forward pass, hooks of torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

Edit = Callable[[int, Tensor], Tensor]


class Plain:
    """One model, in float64, given one prompt at a time.

    Arguments:
        folder: where it is.
        processor: its processor.
        layers: the list of its language model's layers, dotted.
    """

    def __init__(self, folder: Path, processor: Any, layers: str) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64).eval()
        self.processor = processor
        self.layers: Any = self.model.get_submodule(layers)

    def inputs(self, text: str, images: Sequence[Any]) -> dict[str, Tensor]:
        """What the processor makes of a prompt."""
        if not images:
            return {"input_ids": torch.tensor(self.processor.tokenizer([text])["input_ids"])}
        # As numpy arrays: numpy warns of what PaliGemma's processor does with tensors.
        ended = {"return_for_text_completion": True} if hasattr(self.processor, "return_for_text_completion") else {}
        given = dict(self.processor(images=[list(images)], text=[text], return_tensors="np", **ended))
        taken = set(inspect.signature(type(self.model).forward).parameters) - {"labels"}
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in given.items() if name in taken}
        return {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}

    @torch.no_grad()
    def logits(self, text: str, images: Sequence[Any], edit: Edit | None = None) -> Tensor:
        """(position, vocabulary) of one prompt; `edit(layer, output)` changes what a layer gives."""
        with _Edited(self.layers, edit):
            return self.model(**self.inputs(text, images)).logits[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def outputs(self, text: str, images: Sequence[Any], modules: Sequence[Any]) -> list[Tensor]:
        """What modules give for one prompt."""
        found: dict[int, Tensor] = {}

        def keep(index: int) -> Any:
            return lambda module, args, output: found.__setitem__(index, _first(output).clone())

        hooks = [module.register_forward_hook(keep(index)) for index, module in enumerate(modules)]
        self.model(**self.inputs(text, images))
        for hook in hooks:
            hook.remove()
        return [found[index] for index in range(len(modules))]

    @torch.no_grad()
    def greedy(self, text: str, images: Sequence[Any], steps: int, edit: Edit | None = None) -> list[int]:
        """New tokens, each by a whole forward pass without a cache."""
        inputs, new = self.inputs(text, images), []
        prompt = inputs["input_ids"].shape[1]
        for _ in range(steps):
            grown = {name: self._grown(name, value, prompt, new) for name, value in inputs.items()}
            with _Edited(self.layers, edit):
                new.append(int(self.model(**grown, use_cache=False).logits[0, -1].argmax()))
        return new

    def _grown(self, name: str, value: Tensor, prompt: int, new: list[int]) -> Tensor:
        if value.shape != (1, prompt) or not new:
            return value
        if name == "input_ids":
            return torch.cat([value, torch.tensor([new])], dim=1)
        # New tokens are text; PaliGemma calls text behind the prompt 1, as transformers' `generate` does.
        is_one = name == "attention_mask" or (name == "token_type_ids" and "PaliGemma" in type(self.model).__name__)
        return torch.cat([value, value.new_full((1, len(new)), int(is_one))], dim=1)

    def generated(self, text: str, images: Sequence[Any], steps: int) -> list[int]:
        """The new tokens of transformers' own `generate`."""
        inputs = self.inputs(text, images)
        mask = {"attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}
        ids = self.model.generate(**mask, max_new_tokens=steps, do_sample=False, pad_token_id=0)
        return ids[0, inputs["input_ids"].shape[1] :].tolist()  # type: ignore[no-any-return]


class _Edited:
    """Hooks that change what layers give, before transformers' own keep it."""

    def __init__(self, layers: Any, edit: Edit | None) -> None:
        self.layers, self.edit, self.hooks = layers, edit, []  # type: ignore[var-annotated]

    def __enter__(self) -> None:
        for index, layer in enumerate(self.layers if self.edit is not None else ()):
            self.hooks.append(layer.register_forward_hook(self._hook(index), prepend=True))

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _hook(self, index: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            assert self.edit is not None
            new = self.edit(index, _first(output))
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return hook


def _first(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found
