"""Images of prompts: given beside texts, expanded into the tokens that stand for them, fed beside the token ids.

with_images(["What is this? <image>", "Hello"], [picture, None])     # prompts that have their images
encode_with_images(model.processor, prompt, feeds, image_token_id)   # token ids, `image[0]`, ..., pixel values
media_inputs([encoded.media])                                        # pixel values of a batch
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.positions import Span, TokenSet
from interp.prompts.encoding import Encoded, check_unicode
from interp.prompts.given import is_ids, listed
from interp.prompts.opening import opened
from interp.prompts.prompt import Prompt

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import ProcessorMixin

__all__ = [
    "IMAGES_BY_ROW",
    "Media",
    "by_token",
    "check_no_images",
    "encode_with_images",
    "image_digests",
    "image_markers",
    "image_spans",
    "media_inputs",
    "media_of",
    "same_prompt",
    "with_images",
]

# What a processor gives that is not fed beside the ids, or that the batch makes itself.
_OWN = {"input_ids", "attention_mask", "labels", "offset_mapping", "special_tokens_mask", "text_replacement_offsets"}
# Families that give each row its images along an axis; in the others the images of all rows stand one after another.
IMAGES_BY_ROW = ("Idefics2", "Idefics3", "SmolVLM")
# Families whose processor writes the placeholders itself, before the text.
_BEFORE_TEXT = ("PaliGemma",)
# In these the prompt of an image is looked at from both sides (0); what is written behind it, and other text, is not.
_OF_TEXT = {"token_type_ids": 1}


@dataclass(frozen=True, eq=False)
class Media:
    """What a forward pass is fed beside the token ids of one prompt.

    Arguments:
        inputs: name -> tensor, as the processor gives it for a batch of this prompt alone (`pixel_values`, ...).
        by_token: name -> a number for each token (`token_type_ids`, `mm_token_type_ids`).
        by_row: the tensors have an axis of one for the prompt; else their first axis is one of images or patches.
        of_text: name -> the number of a token of text that no image stands before, or that is written behind; 0 for
            names that are not here.
    """

    inputs: Mapping[str, Tensor]
    by_token: Mapping[str, list[int]] = field(default_factory=dict)
    by_row: bool = False
    of_text: Mapping[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of what the images are fed as."""
        found = hashlib.sha256()
        for name, value in sorted(self.inputs.items()):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.cpu().double().numpy().tobytes())
        return found.hexdigest()

    def followed(self, more: int, numbers: Mapping[str, int] | None = None) -> Media:
        """The same with tokens behind the prompt that are no part of an image.

        Arguments:
            more: how many.
            numbers: what each of them has by name; 0 where it is not said.
        """
        after = numbers or {}
        return replace(
            self, by_token={name: [*own, *[after.get(name, 0)] * more] for name, own in self.by_token.items()}
        )


def image_digests(media: Sequence[Media | None]) -> dict[str, list[str | None]]:
    """`images`: of each prompt the digest of its images, or None; nothing where no prompt has any."""
    return {"images": [None if one is None else one.digest() for one in media]} if any(media) else {}


def same_prompt(one: Encoded, other: Encoded) -> bool:
    """Whether two prompts are the same to a model: their tokens, and what stands for them."""
    if one.input_ids != other.input_ids or one.media is other.media:
        return one.input_ids == other.input_ids
    return one.media is not None and other.media is not None and one.media.digest() == other.media.digest()


# Given beside prompts -------------------------------------------------------------------------------------------------


def with_images(prompts: Any, images: Any, name: str = "prompts") -> Any:
    """Prompts that have their images.

    Arguments:
        prompts: one text or `Prompt`, or several.
        images: None: no more than the prompts have; for one prompt an image or several; for several prompts an entry
            each: None, an image, or several. An image is a PIL image, a path, or an array or tensor (height, width,
            channel).
        name: what the caller calls the prompts, for messages.

    Returns:
        The prompts as they are where there are no images; else a list of `Prompt`s.

    Raises:
        InterpError: another number of entries, images of a prompt that has some, or of token ids.
    """
    if images is None:
        return prompts
    alone = isinstance(prompts, str | Prompt)
    several = listed(prompts, name)
    if is_ids(several):
        several = [several]
    entries = [images] if alone else list(images) if isinstance(images, list | tuple) else None
    if entries is None or len(entries) != len(several):
        came = "one image" if entries is None else f"{len(entries)}"
        raise InterpError(
            f"images: expected an entry for each of {len(several)} {name} (None, an image or several), got {came}."
        )
    return [
        _given(prompt, _listed(entry), index)
        for index, (prompt, entry) in enumerate(zip(several, entries, strict=True))
    ]


def _listed(entry: Any) -> tuple[Any, ...]:
    if entry is None or (isinstance(entry, float) and entry != entry):  # a table's missing value
        return ()
    return tuple(entry) if isinstance(entry, list | tuple) else (entry,)


def _given(prompt: Any, images: tuple[Any, ...], index: int) -> Any:
    if not images:
        return prompt
    if isinstance(prompt, Prompt):
        if prompt.images:
            raise InterpError(f"images: prompt {index} has images of its own. Give them in one place.")
        return replace(prompt, images=images)
    if not isinstance(prompt, str):
        raise InterpError(
            f"images: prompt {index} is token ids, which cannot be expanded by those of an image. Give its text."
        )
    return Prompt(prompt, images=images)


def check_no_images(prompts: Sequence[Encoded | Prompt | Any], name: str, why: str) -> None:
    """Refuse prompts with images where these would be left out.

    Arguments:
        prompts: `Prompt`s, encoded or not, and others.
        name: what the caller calls them, for messages.
        why: why they cannot have images, and what can be done, without a full stop.

    Raises:
        InterpError: one has images.
    """
    for index, one in enumerate(prompts):
        if getattr(one, "images", ()) or getattr(one, "media", None) is not None:
            raise InterpError(f"{name}: prompt {index} has images, and {why}.")


# Encoding -------------------------------------------------------------------------------------------------------------


def encode_with_images(
    processor: ProcessorMixin, prompt: Prompt, feeds: Collection[str], image_token_id: int
) -> Encoded:
    """Token ids of a prompt with images, the spans of both, and what the forward pass is fed besides.

    Arguments:
        processor: the model's.
        prompt: a prompt with images.
        feeds: names of the inputs that the model's forward pass takes.
        image_token_id: the token in whose place the model puts what it sees.

    Raises:
        InterpError: another number of placeholders than images; a span without a token of its own.
    """
    import numpy as np
    import torch

    check_unicode(prompt.text)
    text, before = _placed(processor, prompt)
    images = [[opened(image) for image in prompt.images]]
    # No turn is ended behind the text: the model goes on with it.
    completed = {"return_for_text_completion": True} if hasattr(processor, "return_for_text_completion") else {}
    given = processor(
        text=[text],
        images=images,
        add_special_tokens=prompt.add_special_tokens,
        return_mm_token_type_ids=True,
        return_text_replacement_offsets=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_tensors="np",  # with torch's, numpy warns of what PaliGemma's processor does with them
        **completed,
    )
    added: list[int] = given["special_tokens_mask"][0].tolist()
    # What the tokenizer puts behind the text is left out, as without images.
    kept = len(added) - added[::-1].index(0) if 0 in added else len(added)
    by_token = {
        name: value[0, :kept].tolist()
        for name, value in given.items()
        if name in feeds and name.endswith("token_type_ids")
    }
    inputs = {
        name: torch.from_numpy(np.asarray(value))
        for name, value in given.items()
        if name in feeds and name not in {*_OWN, *by_token}
    }
    media = media_of(processor, inputs, by_token)
    ids: list[int] = given["input_ids"][0, :kept].tolist()
    offsets: list[tuple[int, int]] = [(start, stop) for start, stop in given["offset_mapping"][0, :kept].tolist()]
    replaced = given["text_replacement_offsets"][0]
    laid_out = processor.prepare_inputs_layout(images=images, text=[text])[1][0]
    expanded = _Expanded(text.split(processor.image_token), laid_out, replaced)
    spans = image_spans(ids, offsets, replaced, image_token_id, image_markers(processor))
    characters: dict[str, tuple[int, int]] = {}
    for name, (start, stop) in prompt.spans.items():
        if name in spans or name == "text":
            raise InterpError(f"span {name!r}: in a prompt with images that is a name of theirs. Call it otherwise.")
        first, end = expanded.at(before + start), expanded.at(before + stop - 1, last=True) + 1
        tokens = [index for index, (begin, stop) in enumerate(offsets) if begin < end and stop > first and begin < stop]
        if not tokens:
            raise InterpError(f"span {name!r}: the tokenizer gives its characters no token of their own.")
        spans[name], characters[name] = (tokens[0], tokens[-1] + 1), (start, stop)
    return Encoded(ids, spans, characters, media)


def media_of(processor: ProcessorMixin, inputs: Mapping[str, Tensor], by_token: Mapping[str, list[int]]) -> Media:
    """What a family's processor gave for one prompt, and how a batch of such is made.

    Arguments:
        processor: the model's.
        inputs, by_token: as of `Media`.
    """
    kind = type(processor).__name__
    return Media(inputs, by_token, kind.startswith(IMAGES_BY_ROW), _OF_TEXT if kind.startswith(_BEFORE_TEXT) else {})


def _placed(processor: ProcessorMixin, prompt: Prompt) -> tuple[str, int]:
    """The text with a placeholder for each image, and how many characters stand before what was given."""
    token, images, text = processor.image_token, len(prompt.images), prompt.text
    before = ""
    if token not in text and type(processor).__name__.startswith(_BEFORE_TEXT):
        before = token * images
    found = (before + text).count(token)
    if found != images:
        raise InterpError(
            f"images: {images} of them in a prompt with {found} placeholders {token!r}. Write one where each image "
            f"stands, e.g. {token + ' What is this?'!r}; a chat template does (interp.prompts.chat_prompt)."
        )
    return before + text, len(before)


class _Expanded:
    """Where the characters of a text are once its placeholders are expanded.

    Arguments:
        segments: the text between placeholders.
        laid_out: the text as the processor changes it before (PaliGemma puts its start token behind the images).
        replaced: the processor's `text_replacement_offsets`.
    """

    def __init__(self, segments: Sequence[str], laid_out: str, replaced: Sequence[Mapping[str, Any]]) -> None:
        self.segments, self.replaced = segments, replaced
        edges = [(0, 0), *(one["span"] for one in replaced), (len(laid_out), len(laid_out))]
        ends = [0, *(one["new_span"][1] for one in replaced)]
        self.starts = [
            end + laid_out[before[1] : after[0]].index(segment)
            for segment, before, after, end in zip(segments, edges, edges[1:], ends, strict=False)
        ]

    def at(self, character: int, *, last: bool = False) -> int:
        """The place of a character; of one of a placeholder's, the first or last of what stands for it."""
        for segment, start, one in zip(self.segments, self.starts, [*self.replaced, None], strict=True):
            if character < len(segment):
                return start + character
            character -= len(segment)
            size = 0 if one is None else one["span"][1] - one["span"][0]
            if one is not None and character < size:
                return int(one["new_span"][1] - 1 if last else one["new_span"][0])
            character -= size
        raise AssertionError("a character behind the end")


# What processors and tokenizers call the tokens that mark an image.
_MARKERS = {
    "begin": ("boi_token", "image_start_token", "start_image_token", "vision_start_token", "fake_image_token"),
    "end": ("eoi_token", "image_end_token", "end_image_token", "vision_end_token", "fake_image_token"),
}


def image_markers(processor: Any) -> dict[str, set[int]]:
    """Ids of the tokens that stand before and behind an image; none in some families."""
    named = {
        side: {
            getattr(holder, name) for name in names for holder in (processor, processor.tokenizer)
            if isinstance(getattr(holder, name, None), str)
        }
        for side, names in _MARKERS.items()
    }  # fmt: skip
    return {side: {processor.tokenizer.convert_tokens_to_ids(token) for token in named[side]} for side in named}


def image_spans(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    replaced: Sequence[Mapping[str, Any]],
    image_token_id: int,
    markers: Mapping[str, Collection[int]],
) -> dict[str, Span]:
    """The tokens of each image and of all, their markers, the text and what of it stands behind each image."""
    spans: dict[str, Span] = {}
    images: list[tuple[int, ...]] = []
    taken: set[int] = set()  # tokens of images, their markers, and what stands between their rows
    for index, one in enumerate(replaced):
        start, stop = one["new_span"]
        block = [token for token, (begin, end) in enumerate(offsets) if begin < stop and end > start and begin < end]
        images.append(tuple(token for token in block if ids[token] == image_token_id))
        if not images[-1]:
            raise InterpError(
                f"images: the processor stands for an image with the tokens {sorted({ids[at] for at in block})}, the "
                f"model expects token {image_token_id}. Load the processor of this model."
            )
        spans[f"image[{index}]"] = TokenSet(images[-1])
        taken |= {token for token in block if offsets[token][0] >= start and offsets[token][1] <= stop}
        # A marker stands in the block, or beside it, where it is the user's (or a template's) to write.
        ahead = range(images[-1][0] - 1, max(block[0] - 2, -1), -1)
        behind = range(images[-1][-1] + 1, min(block[-1] + 2, len(ids)))
        for side, around in (("begin", ahead), ("end", behind)):
            marker = next((token for token in around if ids[token] in markers[side]), None)
            if marker is not None:
                spans[f"image[{index}].{side}"] = (marker, marker + 1)
                taken.add(marker)
    spans["image"] = TokenSet(tuple(token for image in images for token in image))
    text = [token for token in range(len(ids)) if token not in taken]
    for name, first, stop in (
        ("text", 0, len(ids)),
        *(
            (f"text.after_image[{index}]", image[-1] + 1, after[0])
            for index, (image, after) in enumerate(zip(images, [*images[1:], (len(ids),)], strict=True))
        ),
    ):
        tokens = tuple(token for token in text if first <= token < stop)
        if tokens:
            spans[name] = TokenSet(tokens)
    return spans


# Batches --------------------------------------------------------------------------------------------------------------


def media_inputs(media: Sequence[Media | None]) -> dict[str, Tensor]:
    """The inputs of a batch beside those that have a number for each token.

    Arguments:
        media: of each row; None: it has no image. At least one has.

    Returns:
        Name -> tensor; where rows or images differ in size, zero behind the smaller ones.
    """
    import torch

    some = [one for one in media if one is not None]
    joined: dict[str, Tensor] = {}
    for name, first in some[0].inputs.items():
        parts = [one.inputs[name] for one in some]
        if some[0].by_row:  # images of zeros are none
            parts = [torch.zeros_like(first) if one is None else one.inputs[name] for one in media]
        sizes = [max(part.shape[axis] for part in parts) for axis in range(1, first.dim())]
        padded = []
        for part in parts:
            more = [pair for axis, size in reversed(list(enumerate(sizes, 1))) for pair in (0, size - part.shape[axis])]
            padded.append(torch.nn.functional.pad(part, more) if any(more) else part)
        joined[name] = torch.cat(padded)
    return joined


def by_token(media: Sequence[Media | None], width: int, before: Sequence[int]) -> dict[str, Tensor]:
    """The inputs of a batch that have a number for each token, zero at padding and in rows without images.

    Arguments:
        media: of each row; None: it has no image. At least one has.
        width: columns of the batch.
        before: columns of padding before each row.

    Returns:
        Name -> (row, column).
    """
    import torch

    filled: dict[str, Tensor] = {}
    some = next(one for one in media if one is not None)
    for name in some.by_token:
        rows = torch.zeros(len(media), width, dtype=torch.long, device="cpu")
        for row, (one, start) in enumerate(zip(media, before, strict=True)):
            if one is None:
                rows[row] = some.of_text.get(name, 0)
                continue
            numbers = torch.tensor(one.by_token[name][:width], device="cpu")
            rows[row, start : start + len(numbers)] = numbers
        filled[name] = rows
    return filled
