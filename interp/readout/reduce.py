"""Reduces hidden states (through the model's own readout) or logits to the numbers that a lens keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.batching import how_many
from interp.errors import InterpError
from interp.matmul import give_back
from interp.readout.groups import Groups, Reduced, TokenGroups
from interp.readout.softmax import check_finite
from interp.readout.stream import Places, Plan, Workspace, stream

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer
    from interp.model.head import ReadoutParts

__all__ = [
    "GivenLogits",
    "check_masses",
    "check_top_k",
    "groups_of",
    "in_blocks",
    "logits_of",
    "probabilities_of",
    "reduce_hidden",
    "reduce_logits",
]


@torch.no_grad()
def reduce_hidden(
    model: StandardizedTransformer,
    hidden: Tensor,
    groups: TokenGroups | Groups,
    top_k: int,
    *,
    kl_reference: int | Tensor | None = None,
    kl_log_probs: Tensor | None = None,
    masses: Tensor | None = None,
    inverted: bool = False,
) -> Reduced:
    """Read hidden states through the model's own readout, in chunks of the vocabulary: no row's logits exist at once.

    The head is multiplied with some rows and some tokens at a time, and each product is reduced where it lies. A head
    that is more than a matrix (quantized, offloaded, hooked) gives whole logits, of a few rows at a time. Everything
    after the model's own logits is summed in float32 or better, whatever their dtype.

    Arguments:
        model: the model.
        hidden: (row, hidden_size), residual streams; or (layer, row, hidden_size), of several layers, which share
            groups and reference row by row. Any device and float dtype.
        groups: per row, per group: token ids; or the same as `TokenGroups`.
        top_k: number of top tokens kept, at least 1.
        kl_reference: with what `kl` compares, p of KL(p || row): one of the layers by its index in `hidden`; or
            (row, hidden_size), residual streams that are read in the same way.
        kl_log_probs: instead of it: (row, vocabulary) log-probabilities p (nats).
        masses: (sets, vocabulary) bool, sets of tokens whose probability is summed for every row, `log_mass`. What is
            improbable by more than 87 nats against the row's best token counts nothing there.
        inverted: negate after the final norm: the tokens that a state lowers.

    Returns:
        The reduced rows, (row, ...) or (layer, row, ...) as `hidden`, on the device of the head.

    Raises:
        InterpError: shapes that do not fit, an id outside the vocabulary, `top_k` out of range, logits with NaN or
            infinity.
    """
    if hidden.dim() not in (2, 3) or hidden.shape[-1] != model.hidden_size or (hidden.dim() == 3 and not len(hidden)):
        raise InterpError(
            f"hidden: expected shape (row, {model.hidden_size}), or (layer, row, {model.hidden_size}) with at least "
            f"one layer, got {tuple(hidden.shape)}."
        )
    layered = hidden if hidden.dim() == 3 else hidden[None]
    _check_reference(layered, model.vocab_size, kl_reference, kl_log_probs)
    groups = groups_of(groups, layered.shape[1], model.vocab_size)
    parts = model.readout_parts(negate=inverted)
    if parts is None:
        reduced = _whole(model, layered, groups, top_k, kl_reference, kl_log_probs, masses, inverted)
    else:
        reduced = _chunked(parts, layered, groups, top_k, kl_reference, kl_log_probs, masses)
    give_back()
    return reduced.swapped() if hidden.dim() == 3 else reduced[:, 0]


@torch.no_grad()
def logits_of(model: StandardizedTransformer, hidden: Tensor, ids: Tensor, *, softcap: bool = True) -> Tensor:
    """Logits of chosen tokens.

    Arguments:
        model: the model.
        hidden: (row, hidden_size), residual streams.
        ids: (row, n) token ids.
        softcap: whether the model's softcap, where it has one, is applied, or what it caps is given.

    Returns:
        (row, n) float32, on the device of the head.

    Raises:
        InterpError: shapes that do not fit, or ids on the CPU that are outside the vocabulary.
    """
    if hidden.shape != (len(ids), model.hidden_size) or ids.dim() != 2:
        raise InterpError(
            f"expected hidden (row, {model.hidden_size}) and ids (row, n), got {tuple(hidden.shape)} and "
            f"{tuple(ids.shape)}."
        )
    # Elsewhere the question would be waited for, and the device itself stops at what is above.
    if ids.device.type == "cpu" and ids.numel() and not (ids.min() >= 0 and ids.max() < model.vocab_size):
        raise InterpError(
            f"ids: expected 0 to {model.vocab_size - 1}, the vocabulary, got {int(ids.min())} to {int(ids.max())}."
        )
    parts = model.readout_parts()
    tail = model.tail if softcap else replace(model.tail, softcap=None)
    if parts is not None:
        states, parts = parts.states(hidden)[:, None], replace(parts, tail=tail)
        return HeadLogits(parts, states, Workspace(states.device)).of(ids.to(states.device))[:, 0]
    step = how_many(model.vocab_size, model.device)
    found = []
    for at in range(0, max(len(hidden), 1), step):
        logits = tail(model.tail_input(hidden[at : at + step]), model._module.get_submodule)
        found.append(logits.gather(1, ids[at : at + step].to(logits.device)))
    return torch.cat(found).float()


@torch.no_grad()
def probabilities_of(model: StandardizedTransformer, hidden: Tensor, *, inverted: bool = False) -> Tensor:
    """Probabilities over the whole vocabulary, for few hidden states: `reduce_hidden` needs no room for them.

    Beside the result, logits of a few rows at a time are held, on the device of the head.

    Arguments:
        model: the model.
        hidden: (..., hidden_size), residual streams, anywhere.
        inverted: negate after the final norm: the tokens that a state lowers.

    Returns:
        (..., vocabulary), float32, on the CPU.
    """
    rows = hidden.flatten(0, -2)
    found = torch.empty(len(rows), model.readout(rows[:0]).shape[-1], dtype=torch.float32, device="cpu")
    step = how_many(found.shape[1], model.device)
    for start in range(0, len(rows), step):
        logits = model.readout(rows[start : start + step], negate=inverted)
        found[start : start + step] = logits.float().softmax(-1)
    return found.view(*hidden.shape[:-1], -1)


class HeadLogits:
    """Logits of hidden states, by products with parts of the head."""

    def __init__(self, parts: ReadoutParts, states: Tensor, workspace: Workspace) -> None:
        """Arguments: states (row, layer, hidden), what the head receives."""
        self.parts, self.workspace = parts, workspace
        self.rows = (states.shape[0], states.shape[1])
        self.states = states.contiguous()
        self.flat = self.states.flatten(0, 1)

    def of(self, ids: Tensor) -> Tensor:
        """(row, layer, n) float32, the logits of `ids` (row, n)."""
        # Each row has its own copy of the head's rows: few tokens at a time.
        step = how_many(self.states[:, 0].numel(), self.states.device)
        found = [self.parts.of(self.states, ids[:, at : at + step]) for at in range(0, max(ids.shape[1], 1), step)]
        return torch.cat(found, dim=-1).float()

    def write(self, start: int, stop: int, out: Tensor) -> None:
        """Write the logits of the tokens from `start` to `stop` into `out` (row * layer, stop - start) float32."""
        dtype = self.parts.weight.dtype
        if dtype == torch.float32:
            self.parts.write(self.flat, start, stop, out)
            return
        product = self.workspace.get("product", *out.shape, dtype=dtype)
        self.parts.write(self.flat, start, stop, product)
        out.copy_(product)


def _chunked(
    parts: ReadoutParts,
    hidden: Tensor,
    groups: TokenGroups,
    top_k: int,
    kl_reference: int | Tensor | None,
    kl_log_probs: Tensor | None,
    masses: Tensor | None,
) -> Reduced:
    """`reduce_hidden` of (layer, row, hidden), with a head that is a matrix; (row, layer, ...)."""
    vocabulary, device, layers = parts.vocab_size, parts.weight.device, len(hidden)
    check_top_k(top_k, vocabulary)
    masses = check_masses(masses, vocabulary, device)
    plan = Plan.of(layers + isinstance(kl_reference, Tensor), vocabulary, device)
    workspace = Workspace(device)
    places = Places(groups, plan.rows, plan.starts, vocabulary).to(device)
    groups = groups.to(device)

    def read(chosen: slice) -> tuple[Reduced, Tensor]:
        states = parts.states(hidden[:, chosen].transpose(0, 1))  # (row, layer, hidden)
        reference: int | GivenLogits | None = None
        if isinstance(kl_reference, Tensor):  # read as one more layer
            states, reference = torch.cat([states, parts.states(kl_reference[chosen])[:, None]], dim=1), layers
        elif kl_log_probs is not None:
            reference = GivenLogits(kl_log_probs[chosen].to(device))
        else:
            reference = kl_reference
        reduced, broken = stream(
            HeadLogits(parts, states, workspace),
            groups.rows(chosen),
            top_k,
            plan,
            workspace,
            places=(places, chosen.start // plan.rows),
            reference=reference,
            masses=masses,
        )
        return reduced[:, :layers], broken

    return in_blocks(read, hidden.shape[1], plan.rows)


def _whole(
    model: StandardizedTransformer,
    hidden: Tensor,
    groups: TokenGroups,
    top_k: int,
    kl_reference: int | Tensor | None,
    kl_log_probs: Tensor | None,
    masses: Tensor | None,
    inverted: bool,
) -> Reduced:
    """The same by whole logits: of some rows of one layer at a time, and of the reference."""

    def read(chosen: slice) -> tuple[Reduced, Tensor]:
        reference: GivenLogits | None = None
        if kl_log_probs is not None:
            reference = GivenLogits(kl_log_probs[chosen])
        elif kl_reference is not None:
            states = kl_reference if isinstance(kl_reference, Tensor) else hidden[kl_reference]
            reference = GivenLogits(model.readout(states[chosen], negate=inverted))
        found = [
            _read_whole(model.readout(layer[chosen], negate=inverted), groups.rows(chosen), top_k, reference, masses)
            for layer in hidden
        ]
        reduced, broken = zip(*found, strict=True)
        return Reduced.concatenate(reduced, dim=1), torch.cat(broken, dim=1)

    return in_blocks(read, hidden.shape[1], how_many(model.vocab_size, model.device))


def _read_whole(
    logits: Tensor, groups: TokenGroups, top_k: int, reference: GivenLogits | None, masses: Tensor | None
) -> tuple[Reduced, Tensor]:
    device, vocabulary = logits.device, logits.shape[1]
    check_top_k(top_k, vocabulary)
    masses = check_masses(masses, vocabulary, device)
    if reference is not None:
        reference = GivenLogits(reference.logits.to(device))
    plan = Plan.of(1, vocabulary, device)
    return stream(
        GivenLogits(logits), groups.to(device), top_k, plan, Workspace(device), reference=reference, masses=masses
    )


def _check_reference(
    hidden: Tensor, vocabulary: int, kl_reference: int | Tensor | None, kl_log_probs: Tensor | None
) -> None:
    layers, rows, size = hidden.shape
    if kl_reference is not None and kl_log_probs is not None:
        raise InterpError("expected kl_reference or kl_log_probs, got both.")
    if kl_log_probs is not None and kl_log_probs.shape != (rows, vocabulary):
        raise InterpError(
            f"kl_log_probs: expected shape (row, vocabulary) = {(rows, vocabulary)}, got {tuple(kl_log_probs.shape)}."
        )
    if isinstance(kl_reference, Tensor) and kl_reference.shape != (rows, size):
        raise InterpError(
            f"kl_reference: expected hidden states (row, hidden_size) = {(rows, size)}, got shape "
            f"{tuple(kl_reference.shape)}. Log-probabilities go into kl_log_probs."
        )
    if isinstance(kl_reference, int) and not -layers <= kl_reference < layers:
        raise InterpError(f"kl_reference: expected one of {layers} layers by its index, got {kl_reference}.")


class GivenLogits:
    """Logits of one layer, at hand."""

    def __init__(self, logits: Tensor) -> None:
        """Arguments: logits (row, vocabulary), any float dtype."""
        self.logits = logits
        self.rows = (logits.shape[0], 1)

    def of(self, ids: Tensor) -> Tensor:
        """(row, 1, n) float32, the logits of `ids` (row, n)."""
        return self.logits.gather(1, ids)[:, None].float()

    def write(self, start: int, stop: int, out: Tensor) -> None:
        """Write the logits of the tokens from `start` to `stop` into `out` (row, stop - start)."""
        out.copy_(self.logits[:, start:stop])


@torch.no_grad()
def reduce_logits(
    logits: Tensor,
    groups: TokenGroups | Groups,
    top_k: int,
    *,
    kl_reference: Tensor | None = None,
    masses: Tensor | None = None,
) -> Reduced:
    """Reduce rows of logits to group log-probabilities, ranks, top tokens and entropy.

    Everything is summed in float32 or better, whatever the dtype of the logits: in bfloat16 a sum over a vocabulary is
    wrong in its third digit.

    Arguments:
        logits: (rows, vocabulary), any float dtype; on any device, where the work is done.
        groups: per row, per group: token ids; or the same as `TokenGroups`, on the device of `logits`.
        top_k: number of top tokens kept, at least 1.
        kl_reference: (rows, vocabulary) log-probabilities p (nats); then `kl` is KL(p || row).
        masses: (sets, vocabulary) bool, sets of tokens whose probability is summed for every row, `log_mass`. What is
            improbable by more than 87 nats against the row's best token counts nothing there.

    Returns:
        The reduced rows, on the device of `logits`.

    Raises:
        InterpError: shapes that do not fit, an id outside the vocabulary, `top_k` out of range, logits with NaN or
            infinity.
    """
    if logits.dim() != 2:
        raise InterpError(f"expected logits (rows, vocabulary), got shape {tuple(logits.shape)}.")
    rows, vocabulary = logits.shape
    check_top_k(top_k, vocabulary)
    groups = groups_of(groups, rows, vocabulary).to(logits.device)
    if kl_reference is not None and kl_reference.shape != logits.shape:
        raise InterpError(
            f"kl_reference: expected shape {tuple(logits.shape)}, that of the logits, got {tuple(kl_reference.shape)}."
        )
    masses = check_masses(masses, vocabulary, logits.device)
    plan, workspace = Plan.of(1, vocabulary, logits.device), Workspace(logits.device)

    def read(chosen: slice) -> tuple[Reduced, Tensor]:
        reference = None if kl_reference is None else GivenLogits(kl_reference[chosen])
        given = GivenLogits(logits[chosen])
        return stream(given, groups.rows(chosen), top_k, plan, workspace, reference=reference, masses=masses)

    return in_blocks(read, rows, plan.rows)[:, 0]


def in_blocks(read: Callable[[slice], tuple[Reduced, Tensor]], rows: int, block: int) -> Reduced:
    """Read rows in blocks; check once, at the end, that all logits are finite.

    Arguments:
        read: a block of rows -> its readings (row, layer, ...), and which of them are broken.
        rows: how many there are.
        block: how many are read at once.

    Raises:
        InterpError: logits with NaN or infinity.
    """
    parts, broken = zip(*(read(slice(at, at + block)) for at in range(0, max(rows, 1), block)), strict=True)
    check_finite(torch.cat(broken))
    return Reduced.concatenate(parts)


def groups_of(groups: TokenGroups | Groups, rows: int, vocabulary: int) -> TokenGroups:
    """Groups as index tensors, one entry for each row.

    Raises:
        InterpError: there are more or fewer.
    """
    padded = groups if isinstance(groups, TokenGroups) else TokenGroups.pad(groups, vocabulary)
    if len(padded) != rows:
        raise InterpError(f"expected groups for {rows} rows (one entry a row of logits), got {len(padded)}.")
    return padded


def check_top_k(top_k: int, vocabulary: int) -> None:
    """Whether there are so many tokens.

    Raises:
        InterpError: there are not.
    """
    if not 1 <= top_k <= vocabulary:
        raise InterpError(f"top_k: expected 1 to {vocabulary} (the vocabulary), got {top_k}.")


def check_masses(masses: Tensor | None, vocabulary: int, device: torch.device) -> Tensor | None:
    """Sets of tokens on the device where they are needed.

    Raises:
        InterpError: not (sets, vocabulary) bool.
    """
    if masses is None:
        return None
    if masses.dim() != 2 or masses.shape[1] != vocabulary or masses.dtype != torch.bool:
        raise InterpError(
            f"masses: expected (sets, {vocabulary}) bool, one row a set of tokens, got {tuple(masses.shape)} "
            f"{str(masses.dtype).removeprefix('torch.')}."
        )
    return masses.to(device)
