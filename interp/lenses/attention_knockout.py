"""Attention knock-out: which positions does the answer need, and in which layers?

In a window of layers, attention from the last token to a block of earlier ones is cut, and the answer's probability
falls where what it needs was on its way. What is cut may have gone another way before the window, or go round it after;
and the attention that is left goes to the other tokens, the more the more was cut. In plain nnsight, with eager
attention:

    log_prob = {}
    for first in layers:
        with model.trace(prompt):
            for layer in range(first, min(first + window, model.num_layers)):
                scores = model.read(f"scores.{layer}").clone()  # (batch, head, query, key), before the softmax
                scores[:, :, -1, block] = torch.finfo(scores.dtype).min
                model.write(f"scores.{layer}", scores)
            log_prob[first] = model.logits[:, -1].log_softmax(-1)

Geva et al., "Dissecting Recall of Factual Associations in Auto-Regressive Language Models" (2023), arXiv 2304.14767.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.prompt_batches import encoded_prompts, resolved
from interp.batching import WALKING_TOKENS
from interp.errors import InterpError
from interp.forward import check_ready
from interp.lenses.reading import LensPrompt, Positions, Targets, groups_of, read_layers, windows_of
from interp.model.resolve import sublayer_of, why_missing
from interp.passes import in_turn
from interp.patching import (
    CleanRun,
    Cut,
    CutHeads,
    blocking_fits,
    check_something_is_left,
    heads_in,
    run_blocked,
    seen_keys,
    walk_blocked,
)
from interp.patching.run import Ends, EndsPlan, run
from interp.positions import check_positions
from interp.prompts import Encoded, Media, with_images
from interp.prompts.given import listed
from interp.readout import Groups, TokenGroups, reduce_hidden
from interp.results import LensResult
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "Blocks",
    "Heads",
    "KnockoutPlan",
    "attends",
    "attention_knockout",
    "check_attention",
    "cut_heads",
    "cuts_of",
]


@in_turn
@torch.no_grad()
def attention_knockout(
    model: StandardizedTransformer,
    source: LensPrompt | Sequence[LensPrompt],
    blocks: Blocks,
    targets: Targets | None = None,
    *,
    images: Any = None,
    window: int | None,
    layers: Sequence[int] | None = None,
    centred: bool = False,
    query_positions: Positions | Sequence[Sequence[int]] = "last",
    heads: Heads | None = None,
    policy: str = "first_token",
    top_k: int = 5,
    batch_size: int = 64,
) -> LensResult:
    """Attention knock-out (Geva et al. 2023): cut attention to blocks of positions in windows of layers.

    In the layers of a window, the scores of the queries for the block's keys become minus infinity before the softmax,
    in all heads or in some. Other layers, heads and positions go on as they do. In a layer that mixes tokens in another
    way (Mamba, linear attention), nothing is cut.

    Arguments:
        model: the model.
        source: one text or `Prompt`, or several, or lists of token ids.
        blocks: name -> the positions that are not to be looked at, in the vocabulary of `interp.positions`: `first`,
            `subject.all`, `:-1`, or several of these; or for each prompt name -> its own tokens, counted from 0, with
            the same names.
        targets: the groups whose probability is read: name -> words (or token ids), for all prompts or a mapping for
            each; or per prompt, per group: token ids. None: the targets of the prompts that are `Prompt`s, or where
            none has any, one group `own`: the token that the unblocked model finds most probable, as Geva et al.
            measure.
        images: of the prompts, as of `model.run`: for one an image or several, for several an entry each. Prompts with
            images run whole.
        window: in how many layers attention is cut; None: in all from each of `layers` to the last.
        layers: the first layer of each window, ascending; None: every layer, or with `window=None` layer 0. Windows are
            cut off at the model's last layer.
        centred: `layers` are the middles of the windows, [layer - window // 2, layer + (window + 1) // 2), as in Geva
            et al.; None of `layers` is then every layer, and windows are cut off at both ends.
        query_positions: the positions that may not look, in the vocabulary of `interp.positions`; or for each prompt a
            list of its own, counted from 0.
        heads: the query heads that are cut, counted from 0: the same in every layer of a window; or layer -> its heads,
            and in other layers nothing is cut. Heads that share keys and values (grouped queries) are cut each by
            itself. None: all heads.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.
        top_k: how many top tokens are kept.
        batch_size: prompts in a forward pass at most; memory does not depend on the number of examples.

    Returns:
        The lens over (example, window, block), logarithms in nats; windows as in `layers`, blocks as in the first
        example. `baseline` is what the unblocked run says, `kl` is KL(unblocked || blocked), and `surprisal`
        -ln p_unblocked(the blocked run's most probable token).

    Raises:
        InterpError: shapes that do not fit; a position outside its prompt; a block with no position that a query sees,
            or with all of them where no attention sink is left to look at; a window without attention, or without
            any of the heads; heads that a layer does not have, or cannot tell apart; token ids outside the vocabulary;
            a model whose scores are not available.
    """
    check_ready(model)
    given = _Given.of(model, with_images(source, images, "source"), blocks, query_positions, targets, policy)
    windows = windows_of(layers, window, model.num_layers, centred=centred)
    check_attention(model, windows)
    padded = None if given.groups is None else TokenGroups.pad(given.groups, model.vocab_size)
    layers_of_windows, of_layers = list(windows.values()), cut_heads(model, heads, windows)
    plan = KnockoutPlan(model, given.input_ids, given.cuts, layers_of_windows, of_layers, given.media)
    parts, order = [], []
    for chosen, (hidden, clean) in run(plan, batch_size):
        order += chosen
        parts.append(
            read_layers(
                model,
                torch.cat([hidden.flatten(0, 1), clean[None]]),  # the last is what `kl` compares with
                _own_answers(model, clean)
                if padded is None
                else padded.rows(torch.tensor(chosen, dtype=torch.long, device="cpu")),
                layers=tuple(range(plan.num_runs + 1)),
                top_k=top_k,
                reference=clean,
            )
        )
    flat = LensResult.concatenate(parts, order=order)
    return _by_window_and_block(flat, list(windows), given.block_names, given.group_names)


@dataclass(frozen=True)
class _Given:
    """What the lens is given, tokenized and found.

    Arguments:
        input_ids: per prompt: token ids, unpadded.
        media: per prompt: what it is fed beside them, or None.
        block_names: names of the blocks.
        cuts: per prompt: the edges of each block.
        groups: per prompt, per group: token ids; None: what the model finds most probable.
        group_names: names of the groups.
    """

    input_ids: list[list[int]]
    media: list[Media | None]
    block_names: list[str]
    cuts: list[list[Cut]]
    groups: Groups | None
    group_names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        source: LensPrompt | Sequence[LensPrompt],
        blocks: Blocks,
        query_positions: Positions | Sequence[Sequence[int]],
        targets: Targets | None,
        policy: str,
    ) -> _Given:
        prompts = listed(source, "source")
        if not prompts:
            return cls([], [], [], [], None if targets is None else [], ("own",) if targets is None else ())
        encoded = encoded_prompts(model, prompts, name="source")
        groups, group_names = groups_of(model, prompts, targets, policy)
        ids, media = [one.input_ids for one in encoded], [one.media for one in encoded]
        if isinstance(blocks, Mapping):
            found = {name: _tokens(encoded, positions) for name, positions in blocks.items()}
            own: Sequence[Mapping[str, Sequence[int]]] = [
                {name: tokens[prompt] for name, tokens in found.items()} for prompt in range(len(prompts))
            ]
        elif isinstance(blocks, Sequence) and all(isinstance(each, Mapping) for each in blocks):
            own = blocks
        else:
            raise InterpError(f"blocks: expected names with positions, e.g. {{'start': 'first'}}, got {blocks!r:.80}.")
        looks_ahead = [one is not None for one in media]
        names, cuts = cuts_of(ids, own, _tokens(encoded, query_positions), looks_ahead)
        asked = targets is not None or group_names
        return cls(ids, media, names, cuts, groups if asked else None, group_names if asked else ("own",))


def _tokens(encoded: Sequence[Encoded], positions: Positions | Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """The tokens of each prompt that positions name, ascending; or as they are given for each."""
    if not isinstance(positions, str | int) and not any(isinstance(each, str | int) for each in positions):
        return positions  # type: ignore[return-value]
    several = [positions] if isinstance(positions, str | int) else positions
    found, _ = resolved(check_positions([str(each) for each in several]), encoded)
    return [sorted({at for at in own if at >= 0}) for own in found]


def _own_answers(model: StandardizedTransformer, clean: Tensor) -> TokenGroups:
    """One group a row: the token that the model finds most probable after the unblocked prompt."""
    rows = len(clean)
    if not rows:
        return TokenGroups(
            torch.zeros(0, 1, 1, dtype=torch.long, device="cpu"), torch.zeros(0, 1, 1, dtype=torch.bool, device="cpu")
        )
    top = reduce_hidden(model, clean, [[]] * rows, 1).top_ids.cpu().long()  # (row, 1)
    return TokenGroups(top[:, None], torch.ones_like(top[:, None], dtype=torch.bool))


def _by_window_and_block(
    flat: LensResult, windows: Sequence[int], names: Sequence[str], group_names: tuple[str, ...]
) -> LensResult:
    """(example, window, block) of what was read as (example, window x block, and the unblocked run)."""
    leading = {"example": flat.along("example"), "window": windows, "block": names}
    shape = tuple(len(values) for values in leading.values())
    arrays: dict[str, Any] = {
        name: values[:, :-1].reshape(*shape, *values.shape[2:])
        for name, values in flat.arrays().items()
        if name != "model_top_id"
    }
    return LensResult(
        coordinates=leading,
        **arrays,
        model_top_id=flat.model_top_id,
        baseline=flat.log_prob[:, -1],
        group_names=group_names,
    )


Blocks = Mapping[str, Positions] | Sequence[Mapping[str, Sequence[int]]]
"""Name of each block -> its positions in every prompt; or per prompt: name -> its tokens."""
Heads = Sequence[int] | Mapping[int, Sequence[int]]
"""Heads that are cut in every layer; or layer -> its heads, and none in other layers."""


@dataclass(frozen=True)
class KnockoutPlan(EndsPlan):
    """What is cut where; entries are (window, block).

    Arguments:
        of: the model.
        prompts: token ids of each prompt.
        cuts: the edges of each block, by example.
        windows: the layers of each window, ascending by the first of them.
        heads: in which heads of which layers; None: in all.
        seen: what each prompt is fed beside its ids; empty: nothing.
    """

    of: StandardizedTransformer
    prompts: Sequence[Sequence[int]]
    cuts: list[list[Cut]]
    windows: list[range]
    heads: CutHeads | None
    seen: Sequence[Media | None] = ()

    @property
    def model(self) -> StandardizedTransformer:
        return self.of

    @property
    def input_ids(self) -> Sequence[Sequence[int]]:
        return self.prompts

    @property
    def media(self) -> Sequence[Media | None]:
        return self.seen or super().media

    @property
    def positions(self) -> list[int]:
        """The first position of each prompt that anything changes at."""
        return [min((min(cut.queries) for cut in cuts), default=0) for cuts in self.cuts]

    @property
    def num_blocks(self) -> int:
        return len(self.cuts[0]) if self.cuts else 0

    @property
    def entries(self) -> tuple[int, ...]:
        return len(self.windows), self.num_blocks

    def cut_in(self, window: range) -> list[int]:
        """The layers of a window in which something is cut."""
        return [layer for layer in window if self.heads is None or layer in self.heads]

    def fits(self) -> bool:
        return blocking_fits(self.model, self.longest, heads=self.heads is not None)

    def fast(self, rows: list[int]) -> Iterator[Ends]:
        ids = torch.tensor([list(self.input_ids[row]) for row in rows], device=self.model.device)
        clean = CleanRun.of(self.model, ids, self.positions[rows[0]])
        masks = [
            torch.stack([self.cuts[row][block].mask(ids.shape[1], start=clean.start) for row in rows])
            for block in range(self.num_blocks)
        ]
        blocked = torch.stack(masks).to(self.model.device)  # (block, row, position, key)
        for layer in sorted({layer for window in self.windows for layer in self.cut_in(window)}):
            check_something_is_left(self.model, layer, seen_keys(clean, layer), blocked, rows)
        entries = [(window, block) for window in self.windows for block in range(self.num_blocks)]
        at_once = max(1, WALKING_TOKENS // ids.numel())
        parts = []
        for first in range(0, len(entries), at_once):
            part = entries[first : first + at_once]
            windows, blocks = [window for window, _ in part], [block for _, block in part]
            parts.append(walk_blocked(clean, windows, blocked[blocks], self.heads))
        yield Ends(torch.cat(parts).unflatten(0, self.entries), clean.ends(len(rows)))

    def plain(self, rows: list[int]) -> Iterator[Tensor]:
        ids, media, hidden = [self.input_ids[row] for row in rows], [self.media[row] for row in rows], []
        for window in self.windows:
            layers = [layer for layer in self.cut_in(window) if attends(self.model, layer)]
            for block in range(self.num_blocks):
                cuts = [self.cuts[row][block] for row in rows]
                given: dict[str, Any] = dict(heads=self.heads, examples=rows, media=media)
                hidden.append(run_blocked(self.model, ids, cuts, layers, **given))
        yield torch.stack(hidden).unflatten(0, self.entries)


def attends(model: StandardizedTransformer, layer: int) -> bool:
    """Whether a layer has attention."""
    return sublayer_of(model, "attention", layer) is not None


def check_attention(model: StandardizedTransformer, windows: Mapping[int, range]) -> None:
    """Whether there is attention to cut in each window (place -> its layers).

    Raises:
        InterpError: there is none, or its scores are not available.
    """
    attending = [layer for layer in range(model.num_layers) if attends(model, layer)]
    for place, window in windows.items():
        if not any(layer in window for layer in attending):
            there = f"Layers with attention: {attending}." if attending else "No layer of this model has any."
            raise InterpError(
                f"layers: the window of layer {place} (layers {window.start} to {window.stop - 1}) has no attention. "
                f"{there} Choose `layers` whose windows hold one of them."
            )
    for layer in attending:
        reason = why_missing(model, Site("scores", layer))
        if reason is not None:
            raise InterpError(f"attention cannot be cut in {type(model._module).__name__}: layer {layer}: {reason}")


def cut_heads(
    model: StandardizedTransformer, heads: Heads | None, windows: Mapping[int, range]
) -> dict[int, tuple[int, ...]] | None:
    """The heads that are cut in each layer, ascending; None: all.

    Arguments:
        model: the model, whose windows have attention.
        heads: as in `attention_knockout`.
        windows: place -> the layers of its window.

    Raises:
        InterpError: a layer without attention or outside the model, a head that a layer does not have, none at all, or
            a window in which none is cut.
    """
    if heads is None:
        return None
    attending = [layer for layer in range(model.num_layers) if attends(model, layer)]
    by_layer = heads if isinstance(heads, Mapping) else dict.fromkeys(attending, heads)
    found = {}
    for layer, given in sorted(by_layer.items()):
        if layer not in attending:
            raise InterpError(
                f"heads: layer {layer} has no attention to cut. Layers of this model that have: {attending}."
            )
        count = heads_in(model, layer)
        found[layer] = tuple(sorted({int(head) for head in given}))
        outside = [head for head in found[layer] if not 0 <= head < count]
        if outside or not found[layer]:
            got = f"head {outside[0]}" if outside else "none"
            raise InterpError(f"heads: layer {layer}: expected query heads 0 to {count - 1}, at least one, got {got}.")
    for place, window in windows.items():
        if not any(layer in window for layer in found):
            raise InterpError(
                f"heads: the window of layer {place} (layers {window.start} to {window.stop - 1}) has none of the "
                f"heads, which are in layers {list(found)}. Choose `layers` whose windows hold one of these."
            )
    return found


def cuts_of(
    input_ids: Sequence[Sequence[int]],
    blocks: Sequence[Mapping[str, Sequence[int]]],
    query_positions: Sequence[Sequence[int]],
    looks_ahead: Sequence[bool] = (),
) -> tuple[list[str], list[list[Cut]]]:
    """Names of the blocks, and by example the edges of each.

    Arguments:
        input_ids: per example: token ids of its prompt.
        blocks: per example: name of each block -> its tokens.
        query_positions: per example: the tokens that may not look.
        looks_ahead: per example: whether a token may see later ones, as among those of images in some families; empty:
            none may.

    Raises:
        InterpError: they do not fit each other, or a block has nothing that a query sees.
    """
    for name, given in (("blocks", blocks), ("query_positions", query_positions)):
        if len(given) != len(input_ids):
            raise InterpError(f"{name}: expected one entry for each of {len(input_ids)} examples, got {len(given)}.")
    names = list(blocks[0]) if blocks else []
    cuts = []
    for example, (ids, positions) in enumerate(zip(input_ids, blocks, strict=True)):
        if set(positions) != set(names) or not names:
            raise InterpError(
                f"blocks: expected blocks {names or 'with names'} in each example, got {list(positions)} in example "
                f"{example}."
            )
        queries = _inside("query_positions", example, query_positions[example], len(ids))
        cuts.append([Cut(queries, _inside(f"blocks: {name!r}:", example, positions[name], len(ids))) for name in names])
        for name, cut in zip(names, cuts[-1], strict=True):
            if min(cut.keys) > max(cut.queries) and not (looks_ahead and looks_ahead[example]):
                raise InterpError(
                    f"blocks: {name!r} of example {example} is {list(cut.keys)}, which none of the query positions "
                    f"{list(cut.queries)} sees: attention looks back."
                )
    return names, cuts


def _inside(what: str, example: int, positions: Sequence[int], length: int) -> tuple[int, ...]:
    if not len(positions) or min(positions) < 0 or max(positions) >= length:
        raise InterpError(
            f"{what} example {example} has {list(positions)}, expected at least one token of its prompt, 0 to "
            f"{length - 1}. `interp.positions` resolves positions that count from the end."
        )
    return tuple(int(position) for position in positions)
