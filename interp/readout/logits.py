"""Reading logits that are at hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.readout.distributions import check_finite
from interp.readout.groups import Groups, TokenGroups
from interp.readout.plan import Plan, Workspace
from interp.readout.reduced import Reduced
from interp.readout.stream import stream

__all__ = ["GivenLogits", "check_masses", "check_top_k", "groups_of", "in_blocks", "reduce_logits"]


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
    """Read rows in blocks, and see at the end, once, whether the numbers mean something.

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
