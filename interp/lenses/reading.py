"""What every lens shares: prompts and targets encoded, their hidden states batch by batch, and the reading of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.activations import collect_blocks
from interp.activations.prompt_batches import encoded_prompts, resolved
from interp.batching import how_many
from interp.errors import InterpError
from interp.model.places import HeadOutPlace
from interp.model.resolve import place_of
from interp.patching import check_number
from interp.positions import check_positions
from interp.prompts import AnswerTokens, Media, Prompt, with_images
from interp.prompts.given import listed
from interp.prompts.prompt import Accepted
from interp.readout import Groups, Reduced, TokenGroups, logits_of, reduce_hidden
from interp.results import Coordinate, Floats, LensResult
from interp.sites import Site, Spelling, parse_sites
from interp.sites.parsing import check_lens_layers

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "LensPrompt",
    "LensPrompts",
    "Positions",
    "Targets",
    "arranged",
    "encode_prompts",
    "groups_of",
    "lens_sites",
    "read_layers",
    "states_of_prompts",
    "surprisal_of",
    "windows_of",
]


def read_layers(
    model: StandardizedTransformer,
    hidden: Tensor,
    groups: TokenGroups,
    *,
    layers: tuple[int, ...],
    top_k: int,
    reference: Tensor | None,
    baseline: Floats | None = None,
    inverted: bool = False,
) -> LensResult:
    """Read one batch of hidden states out through the model's own tail, all layers at once.

    No (row, vocabulary) tensor is made, where the head is a plain matrix: see `interp.readout.reduce_hidden`.

    Arguments:
        model: the model.
        hidden: (layer, row, hidden_size), residual streams.
        groups: the token groups of the rows.
        layers: what the axis `layer` of `hidden` stands for; the last one is what `kl` compares with.
        top_k: how many top tokens are kept.
        reference: (row, hidden_size), the residual stream after the model's last layer at the source position, which
            gives p_model; None: not known.
        baseline: goes into the result as it is.
        inverted: negate after the final norm (of `hidden`, not of `reference`).

    Returns:
        The result for these rows.
    """
    last, rows = len(layers) - 1, hidden.shape[1]
    # Often p_model is what the last layer says: then it is read once.
    known = reference is not None and not inverted and _same(reference, hidden[last])
    if reference is not None and not (known or inverted):
        hidden = torch.cat([hidden, reference[None].to(hidden.device)])
    reduced = reduce_hidden(model, hidden, groups, top_k, kl_reference=last, inverted=inverted)
    read = reduced[: last + 1]
    assert read.kl is not None
    if reference is None:
        surprisal, model_top_id = (
            torch.full((len(layers), rows), torch.nan, dtype=torch.float32, device="cpu"),
            torch.full((rows,), -1, dtype=torch.int32, device="cpu"),
        )
    else:
        source = reduce_hidden(model, reference, groups, 1) if inverted else reduced[last if known else last + 1]
        model_top_id = source.top_ids[:, 0]
        surprisal = surprisal_of(model, reference, read.top_ids[..., 0].T, source).T
    return LensResult(
        coordinates={"example": range(rows), "layer": layers},
        log_prob=_by_row(read.log_prob),
        rank=_by_row(read.rank),
        top_ids=_by_row(read.top_ids),
        top_log_prob=_by_row(read.top_log_prob),
        entropy=_by_row(read.entropy),
        kl=_by_row(read.kl),
        surprisal=_by_row(surprisal),
        model_top_id=model_top_id.cpu().numpy(),
        baseline=baseline,
    )


def surprisal_of(model: StandardizedTransformer, states: Tensor, ids: Tensor, read: Reduced) -> Tensor:
    """How unexpected tokens are to a model, without its logits of all the others.

    Arguments:
        model: the model.
        states: (row, hidden_size), residual streams after its last layer.
        ids: (row, n) token ids.
        read: what was read of `states`, with one top token at least.

    Returns:
        (row, n), -ln p of each, nats.
    """
    top, log_prob = read.top_ids[:, :1].long(), read.top_log_prob[:, :1]
    ids = ids.to(top.device).long()
    logits = logits_of(model, states, torch.cat([top, ids], dim=1))  # (row, 1 + n)
    # Two products may differ in a last bit: the top token has the number that was read.
    return torch.where(ids == top, log_prob, log_prob + logits[:, 1:] - logits[:, :1]).neg()


def _same(left: Tensor, right: Tensor) -> bool:
    return left.device == right.device and left.dtype == right.dtype and torch.equal(left, right)


def _by_row(by_layer: Tensor) -> NDArray:
    """(layer, row, ...) on any device -> (row, layer, ...)."""
    return by_layer.transpose(0, 1).contiguous().cpu().numpy()


def windows_of(
    layers: Sequence[int] | None, window: int | None, num_layers: int, *, centred: bool = False
) -> dict[int, range]:
    """The windows of layers that a lens goes through.

    Arguments:
        layers: where the windows are, ascending; None: at every layer, or without a window's size at layer 0 alone.
        window: how many layers; None: up to the last.
        num_layers: the model's depth.
        centred: a window is [layer - window // 2, layer + (window + 1) // 2), as Geva et al. place theirs, in place of
            [layer, layer + window). Either is cut off at the ends of the model.

    Returns:
        Layer -> the layers of its window, in the order of `layers`.

    Raises:
        InterpError: layers that the model does not have or not in order, a window of no layer, or one that is centred
            without a size.
    """
    if window is None:
        if centred:
            raise InterpError("centred: expected a window of so many layers, got window=None (up to the last layer).")
        starts = check_lens_layers([0] if layers is None else layers, num_layers)
        return {start: range(start, num_layers) for start in starts}
    if window < 1:
        raise InterpError(f"window: expected at least 1 layer, or None for all up to the last, got {window}.")
    places = check_lens_layers(range(num_layers) if layers is None else layers, num_layers)
    shift = window // 2 if centred else 0
    return {place: range(max(0, place - shift), min(num_layers, place - shift + window)) for place in places}


# Prompts --------------------------------------------------------------------------------------------------------------

_POLICY = "first_token"  # the default of all lenses
LensPrompt = str | Prompt | Sequence[int] | Mapping[str, Any]
"""A text, a prompt with targets and spans, token ids exactly as the model is fed, or what a tokenizer returned."""
Targets = Mapping[str, Accepted] | Sequence[Mapping[str, Accepted]] | Groups
"""Name of a group -> the words, or token ids, that count as it; or one such an example; or per example, per group: the
token ids."""
Positions = str | int | Sequence[str | int]
"""One of the vocabulary of `interp.positions`, or several."""


@dataclass(frozen=True)
class LensPrompts:
    """Prompts, where they are read, and the tokens that are told apart by group.

    Arguments:
        input_ids: per prompt: token ids as the model is fed, unpadded.
        media: per prompt: what it is fed beside them, or None.
        positions: per prompt, for each of `labels`: a token, or -1 where the prompt has no such position.
        labels: names along the axis `position`.
        single: there is exactly one position, so that no axis `position` is needed.
        groups: per prompt, per group: token ids.
        group_names: names of the groups.
    """

    input_ids: list[list[int]]
    media: list[Media | None]
    positions: list[list[int]]
    labels: list[str]
    single: bool
    groups: Groups
    group_names: tuple[str, ...]


def encode_prompts(
    model: StandardizedTransformer,
    prompts: LensPrompt | Sequence[LensPrompt],
    positions: Positions,
    targets: Targets | None = None,
    policy: str = _POLICY,
    *,
    images: Any = None,
    name: str = "prompts",
) -> LensPrompts:
    """Tokenize prompts, resolve positions in each, and find the tokens of its targets.

    Arguments:
        model: the model, whose tokenizer is used.
        prompts: one text or prompt, or several, or lists of token ids, or an encoding (`interp.prompts.given`).
        positions: one or several of the vocabulary in `interp.positions`.
        targets: as in `groups_of`.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.
        images: of the prompts, as `interp.prompts.with_images` takes them.
        name: what the caller calls the prompts, for messages.

    Raises:
        InterpError: no prompt, a position that one does not have, targets that do not fit, a prompt that is longer than
            the model's learned positions.
    """
    several = listed(with_images(prompts, images, name), name)
    encoded = encoded_prompts(model, several, name=name)
    parsed = check_positions([str(each) for each in ([positions] if isinstance(positions, str | int) else positions)])
    slots, labels = resolved(parsed, encoded)
    groups, names = groups_of(model, several, targets, policy)
    return LensPrompts(
        input_ids=[one.input_ids for one in encoded],
        media=[one.media for one in encoded],
        positions=slots,
        labels=labels,
        single=len(parsed) == 1 and parsed[0].single,
        groups=groups,
        group_names=names,
    )


def groups_of(
    model: StandardizedTransformer, prompts: Sequence[Any], targets: Targets | None, policy: str = _POLICY
) -> tuple[Groups, tuple[str, ...]]:
    """The tokens whose probability is read, by example and group, and the names of the groups.

    Arguments:
        model: the model, whose tokenizer is used.
        prompts: one an example; those that are `Prompt`s have targets of their own.
        targets: names with words for all examples, or for each its own; or per example, per group: token ids, which
            have no names; None: those of the prompts.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.

    Raises:
        InterpError: targets that do not fit, or a policy without words that it is for.
    """
    if targets is not None and _are_ids(targets):
        groups = cast(Groups, targets)
        check_number("targets", groups, len(prompts))
        _check_policy_unused(policy)
        return groups, ()
    named = _targets(model, prompts, cast(Any, targets), policy)
    names = tuple(dict.fromkeys(name for of_prompt in named for name in of_prompt))
    return [[of_prompt.get(name, ()) for name in names] for of_prompt in named], names


def _are_ids(targets: Any) -> bool:
    """Whether these are token ids by example and group: no words, and no names."""

    def is_list(given: Any) -> bool:
        return isinstance(given, Iterable) and not isinstance(given, str | Mapping)

    return is_list(targets) and all(is_list(own) and all(is_list(group) for group in own) for own in targets)


def _targets(
    model: StandardizedTransformer,
    prompts: Sequence[Any],
    targets: Mapping[str, Accepted] | Sequence[Mapping[str, Accepted]] | None,
    policy: str,
) -> list[dict[str, tuple[int, ...]]]:
    if targets is None:
        _check_policy_unused(policy)
        return [prompt.target_tokens if isinstance(prompt, Prompt) else {} for prompt in prompts]
    answers = AnswerTokens(model.tokenizer, policy)
    if isinstance(targets, Mapping):
        return [Prompt("").with_targets(targets, answers).target_tokens] * len(prompts)
    # Words without a name could be meant for all prompts, or one for each.
    if not all(isinstance(own, Mapping) for own in targets) or len(targets) != len(prompts):
        raise InterpError(
            "targets: expected names with words for all prompts, e.g. {'en': ['book']}, or one such for each of "
            f"{len(prompts)} prompts, got {targets!r:.80}."
        )
    return [Prompt("").with_targets(own, answers).target_tokens for own in targets]


def _check_policy_unused(policy: str) -> None:
    """Refuse a policy where no words are given that it could be applied to.

    Raises:
        InterpError: one is asked for.
    """
    if policy != _POLICY:
        raise InterpError(
            f"policy: {policy!r} says which tokens count as a word of `targets`, and none are given. Those of a "
            f"`Prompt` were found when it was made: Prompt.from_strings(..., policy={policy!r})."
        )


def lens_sites(
    model: StandardizedTransformer, sites: Spelling | Sequence[Spelling], kinds: Sequence[str]
) -> list[Site]:
    """Sites of a model in the order of its forward pass; `head_out` without a head becomes each of its heads.

    Arguments:
        model: the model.
        sites: any spelling, or several.
        kinds: those that may be asked for.

    Raises:
        InterpError: another kind, or a site that the model does not have.
    """
    found: set[Site] = set()
    for site in parse_sites(sites, model.num_layers, model.num_heads, model.num_kv_heads):
        if site.kind not in kinds:
            raise InterpError(f"sites: {str(site)!r} cannot be read out here. Expected {', '.join(kinds)}.")
        place = place_of(model, site)
        found |= (
            {Site(site.kind, site.layer, head) for head in range(place.z.num_heads)}
            if isinstance(place, HeadOutPlace)
            else {site}
        )
    return model.in_order(list(found))


def arranged(
    cells: Mapping[str, NDArray], prompts: LensPrompts, examples: NDArray, slots: NDArray
) -> tuple[dict[str, Any], dict[str, Sequence[Coordinate]]]:
    """Numbers of cells, put where their prompts and positions are; NaN and -1 where a prompt has no such position.

    Arguments:
        cells: name -> (cell, ...).
        prompts: the prompts.
        examples, slots: (cell,), which prompt and which of its positions, as `states_of_prompts` gives them.

    Returns:
        Name -> (example, [position,] ...), and the coordinates of these one or two axes.
    """
    arrays: dict[str, Any] = {}
    for name, values in cells.items():
        shape = (len(prompts.input_ids), len(prompts.labels), *values.shape[1:])
        arrays[name] = np.full(shape, np.nan if values.dtype.kind == "f" else -1, dtype=values.dtype)
        arrays[name][examples, slots] = values
        if prompts.single:
            arrays[name] = arrays[name][:, 0]
    numbers = range(len(prompts.input_ids))
    return arrays, {"example": numbers} if prompts.single else {"example": numbers, "position": prompts.labels}


@torch.no_grad()
def states_of_prompts(
    model: StandardizedTransformer, prompts: LensPrompts, sites: Sequence[Site], batch_tokens: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Run prompts and read sites at their positions, some prompts at a time.

    Arguments:
        model: the model.
        prompts: the prompts.
        sites: residual streams and contributions, each once.
        batch_tokens: tokens in a forward pass at most; see `interp.activations.collect`.

    Yields:
        Some cells: which prompt (cell,) and which of its positions (cell,), and (site, cell, hidden) on the CPU. Every
        position that a prompt has is a cell, once.
    """
    size = how_many(len(sites) * len(prompts.labels) * model.hidden_size, model.device)
    step = how_many(4 * len(sites) * model.hidden_size, model.device)
    starts = range(0, len(prompts.input_ids), size)
    tables = [torch.tensor(prompts.positions[start : start + size], device="cpu") for start in starts]
    parts = [slice(start, start + size) for start in starts]
    blocks = [(prompts.input_ids[part], prompts.positions[part], prompts.media[part]) for part in parts]
    collected = collect_blocks(model, blocks, sites, batch_tokens=batch_tokens)
    for start, table, values in zip(starts, tables, collected, strict=True):
        rows, columns = (table >= 0).nonzero(as_tuple=True)  # (cell,) each
        for row, column in zip(rows.split(step), columns.split(step), strict=True):
            layers = {kind: iter(of_kind) for kind, of_kind in values.items()}  # in the order of `sites`
            yield start + row, column, torch.stack([next(layers[site.kind])[row, column] for site in sites])
