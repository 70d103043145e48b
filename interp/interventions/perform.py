"""The operations of interventions: what each makes of a value, what it needs, and at which sites it makes sense.

Tensors here are entries, (entry, ..., number): one entry for each token of each example that is changed, with the heads
that are changed between where the site has heads, and the site's numbers last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.sites import KINDS, MAP_KINDS

__all__ = ["OPERATIONS", "Operation", "drawn", "draws", "noise", "orthonormal", "perform"]

_NUMBERS = tuple(kind for kind in KINDS if kind not in MAP_KINDS)
SKIPPED = ("resid_post", "attn_out", "mixer_out", "mlp_out")


@dataclass(frozen=True)
class Operation:
    """One operation.

    Arguments:
        does: what it does to the value at a site, for messages and documentation.
        sites: the kinds that take it.
        takes: the kinds of values that it takes: `tensor`, `file`, `run`; empty: it takes none.
        needs: what it cannot do without: of `value` and its parameters, one of each group.
        parameters: the fields of an intervention that are for it.
        overwrites: nothing of what was there before is left.
    """

    does: str
    sites: Sequence[str] = _NUMBERS
    takes: Sequence[str] = ()
    needs: Sequence[Sequence[str]] = ()
    parameters: Sequence[str] = ()
    overwrites: bool = False


_ANY = ("tensor", "file", "run")
_KEYS = ("from_positions",)  # at `scores` and `pattern`
OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "set": Operation("replaces it by the value", KINDS, _ANY, [["value"]], _KEYS, overwrites=True),
        "add": Operation("adds factor times the value", KINDS, _ANY, [["value"]], ["factor", *_KEYS]),
        "scale": Operation("multiplies it by the value", KINDS, ("tensor", "file"), [["value"]], _KEYS),
        "zero": Operation("replaces it by zero", KINDS, (), (), _KEYS, overwrites=True),
        "mean": Operation(
            "replaces it by its mean over reference prompts", takes=("run",), needs=[["value"]],
            parameters=["mean_over"], overwrites=True,
        ),
        "resample": Operation(
            "replaces it by that of another example, drawn with a seed", takes=("run",), parameters=["seed"],
            overwrites=True,
        ),
        "noise": Operation(
            "adds Gaussian noise, drawn with a seed", needs=[["std", "embedding_stds"]],
            parameters=["std", "embedding_stds", "seed"],
        ),
        "project_out": Operation(
            "takes away its part along a direction, or in a subspace", takes=("tensor", "file"), needs=[["value"]]
        ),
        "project_onto": Operation(
            "leaves its part along a direction, or in a subspace", takes=("tensor", "file"), needs=[["value"]]
        ),
        "rotate_set": Operation(
            "replaces its part in a subspace by that of the value", takes=_ANY, needs=[["value"], ["basis"]],
            parameters=["basis"],
        ),
        "knockout": Operation(
            "cuts attention from `from_positions` to `positions`", MAP_KINDS, needs=[["from_positions"]],
            parameters=["from_positions"],
        ),
        "isolate": Operation("cuts attention from every other token to `positions`", MAP_KINDS),
        "skip": Operation("leaves out a layer (resid_post), an attention, a mixer or an MLP", SKIPPED, overwrites=True),
    }
)  # fmt: skip


def perform(operation: str, live: Tensor, value: Tensor | None, *, factor: float, basis: Tensor | None) -> Tensor:
    """What an operation makes of entries.

    Arguments:
        operation: one of `OPERATIONS`, but for `knockout`, `isolate` and `skip`.
        live: (entry, ..., number), what is there.
        value: what broadcasts to it: what is set or added (of `noise`, the noise); None for `zero` and projections.
        factor: of `add`.
        basis: (direction, number), orthonormal, of projections and `rotate_set`.

    Returns:
        Entries of the shape and dtype of `live`.
    """
    if operation == "zero":
        return torch.zeros_like(live)
    # Half precision is left for the arithmetic, and come back to with the result.
    own = live.float() if live.dtype in (torch.bfloat16, torch.float16) else live
    given = None if value is None else value.to(own)
    if operation in ("project_out", "project_onto", "rotate_set"):
        assert basis is not None
        basis = basis.to(own)
        moved = own if given is None else given - own
        along = (moved @ basis.T) @ basis
        new = {"project_out": own - along, "project_onto": along, "rotate_set": own + along}[operation]
        return new.to(live.dtype)
    assert given is not None
    if operation in ("add", "noise"):
        return (own + factor * given).to(live.dtype)
    if operation == "scale":
        return (own * given).to(live.dtype)
    return given.expand_as(live).to(live.dtype)  # set, mean, resample


def orthonormal(directions: Tensor, name: str) -> Tensor:
    """An orthonormal basis of what directions span.

    Arguments:
        directions: (number,) or (direction, number).
        name: of the field, for messages.

    Returns:
        (direction, number), float32 at least, on the path of gradients of `directions`.

    Raises:
        InterpError: another shape, or directions that depend on each other.
    """
    rows = directions[None] if directions.dim() == 1 else directions
    if rows.dim() != 2:
        raise InterpError(
            f"{name}: expected a direction (number,) or a subspace (direction, number), got shape "
            f"{tuple(directions.shape)}."
        )
    rows = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
    sizes = rows.norm(dim=1, keepdim=True)
    if len(rows) > rows.shape[1] or not bool((sizes > 0).all()):
        raise InterpError(f"{name}: expected directions that are not zero, at most {rows.shape[1]}, got {len(rows)}.")
    rows = rows / sizes
    if len(rows) == 1:
        return rows
    basis, triangle = torch.linalg.qr(rows.T)
    if float(triangle.detach().diagonal().abs().min()) < 1e-4:
        raise InterpError(f"{name}: its {len(rows)} directions depend on each other. Leave out those that others span.")
    return basis.T


def noise(seed: int, name: str, ids: Sequence[int], token: int, shape: Sequence[int]) -> Tensor:
    """Standard Gaussian noise for a token of an example, which depends on nothing but what is named here.

    So a prompt has the same noise alone and in a batch, and at a token whatever others are changed.

    Arguments:
        seed: the user's.
        name: the site's.
        ids: token ids of the example, as it was given.
        token: which of its tokens.
        shape: of the noise.

    Returns:
        A tensor of that shape, float32.
    """
    return torch.from_numpy(_generator(seed, name, ids, token).standard_normal(tuple(shape), np.float32))


def drawn(seed: int, name: str, ids: Sequence[int], among: int) -> int:
    """Which of so many is drawn for an example; as `noise`, a function of its arguments."""
    return int(_generator(seed, name, ids, -1).integers(among))


def _generator(seed: int, name: str, ids: Sequence[int], token: int) -> np.random.Generator:
    said = f"{seed}/{name}/{token}/{','.join(map(str, ids))}".encode()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(said).digest()[:16], "little")))


def draws(seed: int, ids: Sequence[int], count: int) -> list[float]:
    """Numbers in [0, 1) by which the new tokens of an example are drawn; of more, these are the first."""
    return _generator(seed, "tokens", ids, -1).random(count).tolist()
