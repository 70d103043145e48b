"""What a forward pass over prompts with images is fed: in a batch, and in the invokes of a trace."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from interp.architectures import vision_layout
from interp.errors import InterpError
from interp.model.fed import whole_inputs
from interp.model.processor import image_feeds
from interp.positions import TokenSet
from interp.prompts import Encoded, Media, Prompt, encode, encode_with_images, with_images
from interp.prompts.given import is_ids, listed
from interp.prompts.images import by_token, media_inputs

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = [
    "batches_images",
    "check_text_goes_on",
    "encoded_prompt",
    "encoded_with_images",
    "inputs_of_invokes",
    "inputs_of_prompts",
    "position_offsets",
    "rows_of",
    "sample_with_image",
    "with_media",
]


def encoded_with_images(model: StandardizedTransformer, prompt: Prompt) -> Encoded:
    """A prompt with images as token ids, spans, and what the forward pass is fed besides.

    Raises:
        InterpError: the model takes no images, or has no processor; the processor cannot read the prompt.
    """
    if model.processor is None:
        raise InterpError(f"images: {model.no_processor}")
    config: Any = model._module.config
    return encode_with_images(model.processor, prompt, image_feeds(model._module), config.image_token_id)


def encoded_prompt(model: StandardizedTransformer, prompt: Any, name: str) -> Encoded:
    """A text, a `Prompt` with or without images, or token ids, as a model is fed it.

    Arguments:
        model: the model, whose tokenizer and processor are used.
        prompt: one prompt.
        name: what the caller calls the prompts, for messages.

    Raises:
        InterpError: something else, or images that the model cannot be shown.
    """
    if isinstance(prompt, Prompt):
        return encoded_with_images(model, prompt) if prompt.images else prompt.encode(model.tokenizer)
    if isinstance(prompt, str):
        return encode(model.tokenizer, prompt)
    if is_ids(prompt):
        return Encoded([int(token) for token in prompt], {})
    raise InterpError(f"{name}: expected texts, Prompts or lists of token ids, got {prompt!r:.80} among them.")


def batches_images(model: StandardizedTransformer) -> bool:
    """Whether it is known how the family is given the images of several prompts at once."""
    return vision_layout(model._module.config) is not None


def with_media(
    model: StandardizedTransformer, inputs: Mapping[str, Tensor], media: Sequence[Media | None], before: Sequence[int]
) -> dict[str, Tensor]:
    """The inputs of a batch with what its images are fed as.

    Arguments:
        model: the model.
        inputs: of the token ids, each (row, column).
        media: of each row; None: it has no image.
        before: columns of padding before each row.

    Returns:
        Keywords of the forward pass, on the model's device and in its dtype.
    """
    if not any(media):
        return dict(inputs)
    whole = {**inputs, **by_token(media, inputs["input_ids"].shape[1], before), **media_inputs(media)}
    if hasattr(model._module.base_model, "get_rope_index"):
        whole.pop("position_ids", None)  # the model counts rows and columns of images
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in whole.items()
    }


def inputs_of_prompts(
    model: StandardizedTransformer, input_ids: Sequence[Sequence[int]], media: Sequence[Media | None] | None
) -> dict[str, Tensor]:
    """The inputs of a forward pass over whole prompts, padded on the left, with what their images are fed as.

    Arguments:
        model: the model.
        input_ids: token ids of each prompt, unpadded.
        media: of each; None: there is no image.
    """
    inputs = whole_inputs(model, input_ids)
    if media is None:
        return inputs
    width = inputs["input_ids"].shape[1]
    return with_media(model, inputs, media, [width - len(own) for own in input_ids])


def position_offsets(model: StandardizedTransformer, inputs: Mapping[str, Any]) -> Tensor | None:
    """How far the positions behind prompts are from their numbers of tokens, where a model counts those of images.

    Arguments:
        model: the model, which has just run these prompts.
        inputs: what it was fed.

    Returns:
        (row, 1); None: the model is fed positions, or none.
    """
    whole: Any = model._module.base_model
    if "position_ids" in inputs or not hasattr(whole, "get_rope_index"):
        return None
    offsets: Tensor = whole.rope_deltas.clone()
    return offsets


def check_text_goes_on(model: StandardizedTransformer, media: Sequence[Media | None] | None) -> None:
    """Refuse to go on from text alone where a family looks at text alone from both sides.

    Raises:
        InterpError: it does, and a prompt has no image.
    """
    layout = vision_layout(model._module.config)
    if layout is not None and not layout.mixes and not all(media or [None]):
        raise InterpError(
            f"{type(model._module).__name__} looks at a prompt without an image from both sides, at new tokens too: "
            "what it generates depends on how it is run. Give the prompt an image."
        )


def sample_with_image(model: StandardizedTransformer) -> tuple[dict[str, Tensor], list[int]]:
    """A prompt with a small image, as the forward pass is fed it, and where the tokens of the image are.

    Raises:
        InterpError: the processor cannot read it.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    processor: Any = model.processor
    encoded = encoded_with_images(model, Prompt(f"{processor.image_token}a", images=(pixels,)))
    seen = encoded.spans["image"]
    assert isinstance(seen, TokenSet)
    return with_media(model, whole_inputs(model, [encoded.input_ids]), [encoded.media], [0]), list(seen.tokens)


# Of a trace -----------------------------------------------------------------------------------------------------------

Invoke = tuple[tuple[Any, ...], dict[str, Any]]


def rows_of(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> int:
    """How many prompts an invoke with images has."""
    return len(_prompts(inputs, dict(keywords)))


def inputs_of_invokes(model: StandardizedTransformer, invokes: Sequence[Invoke], *, generates: bool) -> dict[str, Any]:
    """What the forward pass of a trace is fed, with left padding.

    Arguments:
        model: the model.
        invokes: inputs and keywords of each; at least one has images.
        generates: for `generate`, which counts positions itself.

    Raises:
        InterpError: images that do not fit the prompts, an unknown keyword, or prompts that cannot share a pass.
    """
    encoded: list[Encoded] = []
    others: dict[str, Any] = {}
    for inputs, given in invokes:
        keywords = dict(given)
        encoded += [encoded_prompt(model, prompt, "prompts") for prompt in _prompts(inputs, keywords)]
        others |= keywords
    if not generates:
        _check_keywords(model, others)
    media = [one.media for one in encoded]
    layout = vision_layout(model._module.config)
    if any(media) and not all(media) and layout is not None and not layout.mixes:
        raise InterpError(
            f"images: {type(model._module).__name__} gives prompts without an image other numbers beside prompts with "
            "one. Trace them apart, or use model.run, which does so."
        )
    if len(encoded) > 1 and any(media) and not batches_images(model):
        raise InterpError(
            f"images: how several prompts share a pass is not known of {type(model._module).__name__}. Give each "
            "prompt a trace of its own, or use model.run, which runs them one by one."
        )
    whole = inputs_of_prompts(model, [one.input_ids for one in encoded], media)
    if generates:
        whole.pop("position_ids", None)
    return {**whole, **others}


def _prompts(inputs: Sequence[Any], keywords: dict[str, Any]) -> list[Any]:
    """The prompts of an invoke, with their images; `text` and `images` are taken out of its keywords."""
    images, text = keywords.pop("images", None), keywords.pop("text", None)
    data = inputs[0] if inputs else text
    if data is None:
        raise InterpError("images: expected a text beside them, e.g. model.trace('<image> What is this?', images=[a]).")
    if isinstance(data, str | Prompt) or is_ids(data):
        return list(with_images(data, images)) if images is not None else [data]
    several: list[Any] = listed(data, "prompts")
    return list(with_images(several, images))


def _check_keywords(model: StandardizedTransformer, keywords: Collection[str]) -> None:
    known = inspect.signature(type(model._module).forward).parameters
    of_text = sorted(set(keywords) & set(inspect.signature(type(model.tokenizer).__call__).parameters) - set(known))
    if of_text:
        raise InterpError(
            f"{', '.join(of_text)}: beside images a trace takes no keyword of the tokenizer. Leave it out."
        )
