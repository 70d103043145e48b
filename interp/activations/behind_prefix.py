"""Prefixes computed once, and the passes of what follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from interp.activations.prompt_batches import Pass, checked_size, encoded_prompts
from interp.batching import batches_by_length
from interp.errors import InterpError
from interp.forward.batch import Feed, check_prefix, last_states
from interp.forward.layers import check_ready
from interp.forward.packing import sent
from interp.forward.prefix import FrozenPrefix
from interp.model.fed import check_fed
from interp.model.hooks import hooks_aside
from interp.model.image_inputs import batches_images, inputs_of_prompts
from interp.model.processor import image_token
from interp.model.verdicts import is_changed, off_by, sample_ids
from interp.passes import turn
from interp.prompts import Encoded, Prompt, encode, with_images
from interp.prompts.given import is_ids, listed
from interp.prompts.images import check_no_images

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["following", "freeze_prefix", "passes_behind"]


def freeze_prefix(model: StandardizedTransformer, prompts: Any, images: Any = None) -> FrozenPrefix:
    """Compute the keys and values of a prefix once, for any number of continuations (`prefix=`).

    Hooks and interventions act on what follows, the prefix is what the model computes without them.

    Arguments:
        model: the model.
        prompts: one prefix, or several of one length: texts, `Prompt`s, token ids or an encoding.
        images: of the prompts, as `interp.prompts.with_images` takes them; of each or of none. A question may then be
            asked of an image many times, where what follows changes nothing of it.

    Raises:
        InterpError: prefixes of several lengths, or a model in which whole prompts give something else (state-space
            and other recurrent layers, rotations by length, images that see what follows them or are counted in rows
            and columns).
    """
    check_ready(model)
    encoded = encoded_prompts(model, with_images(prompts, images), more=1)
    ids = [one.input_ids for one in encoded]
    lengths = sorted({len(row) for row in ids})
    if len(lengths) > 1:
        raise InterpError(
            f"freeze_prefix: expected prefixes of one length, got {lengths} tokens. Freeze each by itself."
        )
    more = sample_ids(model, 1, min(4, (model.position_limit or lengths[0] + 4) - lengths[0]))[0].tolist()
    media = [one.media for one in encoded if one.media is not None]
    if media and len(media) < len(encoded):
        raise InterpError("freeze_prefix: some of the prefixes have images, others none. Freeze these by themselves.")
    if len(media) > 1 and not batches_images(model):
        raise InterpError(
            f"freeze_prefix: how several prompts with images share a pass is not known of "
            f"{type(model._module).__name__}. Freeze each by itself."
        )
    with turn(model._module):
        check_prefix(model, [[*_without_images(model, ids[0]), *more]], lengths[0])
        prefix = FrozenPrefix.of(model, sent(torch.tensor(ids, device="cpu"), model.device), media)
        if media:
            _check_images(model, ids, more, prefix)
        return prefix


def _without_images(model: StandardizedTransformer, input_ids: Sequence[int]) -> list[int]:
    """Token ids for a case of text alone, with others in place of those of images."""
    image = image_token(model._module)
    return [(token + 1) % model.vocab_size if token == image else token for token in input_ids]


@torch.no_grad()
def _check_images(
    model: StandardizedTransformer, input_ids: Sequence[Sequence[int]], more: list[int], prefix: FrozenPrefix
) -> None:
    """Raise unless going on from a prefix with images gives what whole prompts give: tried with a few tokens."""
    edits, model._edits = model._edits, []
    try:
        with hooks_aside(model._module):
            behind = torch.tensor([more] * len(input_ids), device=model.device)
            found = last_states(model, Feed.of(model, behind, prefix))
            seen = [None if one is None else one.followed(len(more)) for one in prefix.media]
            fed = inputs_of_prompts(model, [[*ids, *more] for ids in input_ids], seen)
            whole = last_states(model, Feed({**fed, "use_cache": False}, sees=True))[:, prefix.length :]
    finally:
        model._edits = edits
    difference = off_by(model, found, whole)
    if difference is not None:
        raise InterpError(
            f"freeze_prefix: in {type(model._module).__name__}, going on from a prefix with images gives other numbers "
            f"than whole prompts (off by {difference:.2g}): its images see what follows them, or are counted in rows "
            "and columns. Run the prompts whole."
        )


def following(model: StandardizedTransformer, prompts: Any, prefix: FrozenPrefix, more: int) -> list[Encoded]:
    """What follows a prefix, without the tokenizer's start token.

    Arguments:
        model: the model.
        prompts: a multiple of the prefix's rows; prompt i goes on from row i modulo their number.
        prefix: what `model.freeze_prefix` gave.
        more: tokens that are written behind each.

    Raises:
        InterpError: another model's prefix, another number of prompts, or ids or positions that the model lacks.
    """
    if prefix.input_ids is None:
        raise InterpError("prefix: expected what model.freeze_prefix gives.")
    if prefix.layers[0].module is not model._module:
        raise InterpError("prefix: it was computed by another model. Freeze it anew with this one.")
    several = listed(prompts)
    why = "what follows a prefix is text. Put the image into the prefix, freeze_prefix(prompts, images=...), or run"
    check_no_images(several, "prompts", f"{why} the prompts whole")
    if is_ids(several):
        raise InterpError("prompts: expected texts, Prompts or lists of token ids, e.g. [[17, 33]].")
    plain = []
    for prompt in several:
        if isinstance(prompt, Prompt):
            plain.append(replace(prompt, add_special_tokens=False).encode(model.tokenizer))
        elif isinstance(prompt, str):
            plain.append(encode(model.tokenizer, prompt, add_special_tokens=False))
        else:
            plain += encoded_prompts(model, [prompt])
    if not plain or len(plain) % len(prefix):
        raise InterpError(
            f"prefix: it has {len(prefix)} rows, so expected a multiple of {len(prefix)} prompts, got {len(plain)}: "
            "prompt i goes on from row i modulo the prefix's rows."
        )
    check_fed(model, [one.input_ids for one in plain], "prompts", prefix.length + more)
    return plain


def passes_behind(
    model: StandardizedTransformer,
    encoded: Sequence[Encoded],
    prefix: FrozenPrefix,
    batch_size: int | None,
    more: int | None,
) -> list[Pass]:
    """Passes of what follows a prefix; padded on the right, where nothing counts tokens from the end.

    Arguments:
        model: the model.
        encoded: what follows, as `following` gives it.
        prefix: what it follows.
        batch_size: prompts in a pass at most; None: as many as suit the device.
        more: tokens that each goes on for, in batches of one length; None: it ends.
    """
    assert prefix.input_ids is not None
    own = [_without_images(model, ids) for ids in prefix.input_ids.tolist()]
    ids = [one.input_ids for one in encoded]
    with turn(model._module):
        fed = [[*own[row % len(own)], *ids[row], *ids[row][-1:] * (more or 0)] for row in range(len(ids))]
        check_prefix(model, fed, prefix.length)
    lengths = [len(one) for one in ids]
    batch_size = checked_size(model, batch_size, max(map(len, fed)))
    groups = [list(range(len(ids)))]
    if len(set(lengths)) > 1 and (more is not None or is_changed(model)):
        groups = [[row for row, count in enumerate(lengths) if count == length] for length in sorted(set(lengths))]
    passes = []
    for group in groups:
        for batch in batches_by_length([lengths[row] for row in group], batch_size):
            rows = sorted(group[index] for index in batch)
            passes.append(Pass.behind(model, rows, [ids[row] for row in rows], prefix.of_rows(rows)))
    return passes
