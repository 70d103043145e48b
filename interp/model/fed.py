"""Checks that a model has embeddings for the ids and positions of every forward pass."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.architectures import vision_layout
from interp.batching import left_padded
from interp.errors import InterpError
from interp.model.processor import image_token
from interp.prompts import Media

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["Fed", "check_fed", "first_position", "is_fake", "position_limit", "whole_inputs"]


def check_fed(
    model: StandardizedTransformer,
    input_ids: Sequence[Sequence[int]],
    name: str,
    more: int = 0,
    media: Sequence[Media | None] | None = None,
) -> None:
    """Refuse prompts with token ids or positions that the model has no embeddings for.

    Arguments:
        model: the model.
        input_ids: token ids of each prompt, unpadded.
        name: what the caller calls the prompts, for messages.
        more: tokens that are written behind each.
        media: what each is fed beside them; None: nothing.

    Raises:
        InterpError: an id outside the vocabulary, a prompt without tokens, one beyond its table of positions, or tokens
            of an image without the image.
    """
    image = image_token(model._module)
    limit, vocabulary = model.position_limit, model.vocab_size  # asked for once: the model looks at all its modules
    for index, ids in enumerate(input_ids):
        one = f"{name}: example {index} has"
        if not len(ids):
            raise InterpError(f"{one} 0 tokens, expected at least one.")
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise InterpError(
                f"{one} ids {min(ids)} to {max(ids)}, expected token ids from 0 to {vocabulary - 1}. Were they "
                "made with another model's tokenizer?"
            )
        if image is not None and image in ids and (media is None or media[index] is None):
            raise InterpError(
                f"{one} the image token {model.tokenizer.convert_ids_to_tokens(image)!r} and no image, so the model "
                "would read the token itself. Give the prompt its images: Prompt(text, images=(picture,)), or images=."
            )
        if limit is not None and len(ids) + more > limit:
            behind = f", and {more} more are written behind them" if more else ""
            raise InterpError(f"{one} {_beyond(model, len(ids), limit)}{behind}. Shorten it, e.g. to its last tokens.")


def position_limit(module: nn.Module) -> int | None:
    """How many positions a model has a table for, learned or fixed; None: it computes them, or needs none.

    Arguments:
        module: what holds the layers; beside them there may be towers for images and sound, which have layers and
            positions of their own.
    """
    towers = {
        part
        for tower in module.children()
        if not isinstance(tower, nn.ModuleList) and any(isinstance(part, nn.ModuleList) for part in tower.modules())
        for part in tower.modules()
    }
    for name, part in module.named_modules():
        if part in towers:
            continue
        leaf = name.rpartition(".")[2]
        if isinstance(part, nn.Embedding) and (leaf == "wpe" or "pos" in leaf):
            return part.num_embeddings - int(getattr(part, "offset", 0))
        for table in ("pos_encoding", "embed_positions"):  # CTRL; GPT-J, CodeGen
            held = getattr(part, table, None)
            if isinstance(held, Tensor) and held.dim() == 2:
                return held.shape[0]
    return None


def _beyond(model: StandardizedTransformer, tokens: int, limit: int) -> str:
    return f"{tokens} tokens, {type(model._module).__name__} has {limit} positions"


class Fed(threading.local):
    """Checks the token ids and positions of every forward pass of this thread; keeps the shape of its batch."""

    def __init__(self) -> None:
        self.shape = (0, 0)

    def __reduce__(self) -> tuple[type[Fed], tuple[()]]:  # sent to a server with the model
        return Fed, ()

    def take(self, model: StandardizedTransformer, args: Any, kwargs: dict[str, Any]) -> None:
        """Look at the arguments of a forward pass.

        Raises:
            InterpError: ids without a row in the embedding, or positions beyond the table.
        """
        ids = args[0] if args else kwargs.get("input_ids")
        given = kwargs["inputs_embeds"] if ids is None else ids
        self.shape = (int(given.shape[0]), int(given.shape[1]))
        if given.is_meta:
            return
        if ids is not None:
            _check_rows(model, ids)
        _check_positions(model, self.shape[1], kwargs)


def _check_rows(model: StandardizedTransformer, ids: Tensor) -> None:
    """Refuse ids that the token embedding has no row for. On an accelerator looking costs a wait: padding alone is."""
    weight = getattr(model.get(model.architecture.embedding)._module, "weight", None)
    pad = model.tokenizer.pad_token_id
    if not isinstance(weight, Tensor) or weight.dim() != 2:  # quantized, or adapted
        return
    rows = weight.shape[0]
    if not ids.numel() or not (ids.device.type == "cpu" or (pad is not None and pad >= rows)) or is_fake(ids):
        return
    most = int(ids.max())
    if most < rows and int(ids.min()) >= 0:
        return
    if most == pad:
        raise InterpError(
            f"the tokenizer's pad token {model.tokenizer.pad_token!r} has the id {pad}, {type(model._module).__name__} "
            f"has embeddings for 0 to {rows - 1}, so texts of unequal length cannot be padded. Pad with a token that "
            "the model has, `model.tokenizer.pad_token = model.tokenizer.eos_token` (a mask hides it), or resize the "
            "embedding before the model is wrapped (`resize_token_embeddings(len(tokenizer))`)."
        )
    wrong = most if most >= rows else int(ids.min())
    raise InterpError(
        f"expected token ids from 0 to {rows - 1}, got {wrong}. Were they made with another model's tokenizer?"
    )


def _check_positions(model: StandardizedTransformer, tokens: int, kwargs: dict[str, Any]) -> None:
    limit = model.position_limit
    if limit is None:
        return
    cache: Any = kwargs.get("past_key_values")
    before = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
    if before + tokens <= limit:
        return
    positions = kwargs.get("position_ids")  # of a padded or packed batch, prompts' own
    if isinstance(positions, Tensor):
        if is_fake(positions) or int(positions.max()) < limit:
            return
        tokens = int(positions.max()) + 1 - before
    raise InterpError(f"got {_beyond(model, before + tokens, limit)}. Shorten the prompt, or generate fewer tokens.")


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and no numbers, as in nnsight's `scan`."""
    return type(tensor) not in (Tensor, nn.Parameter) or isinstance(tensor, torch._subclasses.FakeTensor)


def whole_inputs(model: StandardizedTransformer, input_ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The inputs of a forward pass over whole prompts; padded only where padding leaves the model's numbers alone.

    Arguments:
        model: the model.
        input_ids: token ids of each prompt, unpadded.

    Returns:
        `input_ids`, and `attention_mask` and `position_ids` where the model takes them, each (row, position).
    """
    inputs = left_padded(input_ids, 0, model.device)  # 0 is in every vocabulary, a pad token may not be
    if "attention_mask" not in inspect.signature(type(model._module).forward).parameters:
        del inputs["attention_mask"]
    if not model.takes_position_ids:  # no positions (Bloom, MPT), only distances, which padding leaves alone
        del inputs["position_ids"]
    else:
        inputs["position_ids"] += first_position(model)
    return inputs


def first_position(model: StandardizedTransformer) -> int:
    """The number of a prompt's first position, 0 but in a few families."""
    layout = vision_layout(model._module.config)
    return 0 if layout is None else layout.first_position
