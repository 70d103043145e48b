"""What a model gives by transformers alone, a prompt at a time: the twin of whatever runs prompts with images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.model import StandardizedTransformer
from interp.prompts import Prompt


def plain_inputs(model: StandardizedTransformer, prompt: Prompt) -> dict[str, Tensor]:
    """A prompt as the model's processor makes it, without what PaliGemma's puts behind the text."""
    if not prompt.images:
        return dict(model.tokenizer(prompt.text, return_tensors="pt"))
    processor: Any = model.processor
    given = dict(
        processor(text=prompt.text, images=list(prompt.images), return_tensors="np", return_mm_token_type_ids=True)
    )
    taken = inspect.signature(type(model._module).forward).parameters
    fed = {name: torch.as_tensor(value) for name, value in given.items() if name in taken and name != "labels"}
    if type(processor).__name__.startswith("PaliGemma"):  # a newline ends its texts
        rows = given["input_ids"].shape
        fed = {name: value[:, :-1] if value.shape == rows else value for name, value in fed.items()}
    return fed


@torch.no_grad()
def plain_pass(
    model: StandardizedTransformer,
    prompt: Prompt,
    changes: dict[int, Callable[[Tensor], Tensor]] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """After each layer (position, hidden), and logits (position, vocabulary).

    Arguments:
        model: the model.
        prompt: a prompt.
        changes: layer -> from its output (1, position, hidden) to what goes on in its place.
    """
    found: list[Tensor] = []

    def hook(layer: int) -> Callable[..., Any]:
        def call(_: Any, args: Any, output: Any) -> Any:
            hidden: Tensor = output if isinstance(output, Tensor) else output[0]
            new = changes[layer](hidden) if changes and layer in changes else hidden
            found.append(new[0].clone())
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return call

    hooks = [model.layer(layer)._module.register_forward_hook(hook(layer)) for layer in range(model.num_layers)]
    try:
        logits: Tensor = model._module(**plain_inputs(model, prompt)).logits[0]
    finally:
        for one in hooks:
            one.remove()
    return found, logits


def prompts_of(image: str, pictures: Sequence[Any]) -> list[Prompt]:
    """Prompts with one image, none, two, and the first prompt's text with another image.

    Arguments:
        image: the placeholder of a family.
        pictures: four images.
    """
    return [
        Prompt(f"{image} the cat is", images=(pictures[0],)),
        Prompt("the dog and the cat"),
        Prompt(f"{image}{image} a king", images=(pictures[1], pictures[2])),
        Prompt(f"{image} the cat is", images=(pictures[3],)),
    ]
