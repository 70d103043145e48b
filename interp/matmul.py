"""Matrix products on a CPU by the faster library: MKL or oneDNN.

torch multiplies float32 matrices on a CPU by MKL. On processors that are not Intel's, MKL leaves half of each vector
register unused; oneDNN, which torch also comes with and uses for bfloat16, does not: on an AMD EPYC of the Zen 5 kind
the same product takes less than half the time. Rounding differs as it does between any two such libraries.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from interp.errors import InterpError

__all__ = ["by_onednn", "faster_products", "give_back", "product"]

SETTING = "INTERP_PRODUCTS"  # the environment variable: auto, torch or onednn
WORTH = 1 << 22  # multiplications; setting a smaller product up takes oneDNN longer than MKL needs for it
# Numbers in what it makes where another tensor is filled: 4 MiB. Larger ones, freed between results that stay, leave
# holes in the heap that the next one of their kind no longer fits, so that memory grows with the work.
AT_ONCE = 1 << 20

_linear, _addmm = functional.linear, torch.addmm  # what `nn.Linear` and transformers' `Conv1D` call


def faster_products(
    tokens: int | None = None,
    hidden_size: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> AbstractContextManager[Any]:
    """Context manager: large float32 products of linear layers on a CPU go to oneDNN where that is faster.

    For the calling thread alone. Whatever needs gradients, autocast or another tensor type is left to torch. Which
    processors gain is looked up, not measured, so that a run gives the same bits again: those of AMD with AVX-512. The
    environment variable `INTERP_PRODUCTS` overrides it: `torch` never, `onednn` wherever torch has it.

    Arguments:
        tokens, hidden_size, dtype, device: of the pass that comes, where they are known: one that is too small to gain,
            elsewhere than on a CPU or in another dtype is left alone, since looking at each call of torch costs a
            little.

    Raises:
        InterpError: `INTERP_PRODUCTS` is something else.
    """
    if tokens is not None and hidden_size is not None and tokens * hidden_size**2 < WORTH:
        return nullcontext()
    if dtype not in (None, torch.float32) or (device is not None and device.type != "cpu"):
        return nullcontext()
    return _OneDNN() if by_onednn() else nullcontext()


def product(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """A linear layer by the faster library, into a tensor that is there.

    Arguments:
        rows: (row, inner).
        weight: (columns, inner).
        bias: (columns,), or None.
        out: (row, columns), of their dtype; written.
    """
    if by_onednn() and _fits(rows, weight, bias):
        step = max(1, AT_ONCE // weight.shape[0])  # oneDNN makes a tensor of its own for each product
        for at in range(0, len(rows), step):
            out[at : at + step].copy_(_multiply(rows[at : at + step], weight, bias))
    elif bias is None:
        torch.mm(rows, weight.T, out=out)
    else:
        torch.addmm(bias, rows, weight.T, out=out)


def give_back() -> None:
    """Return free memory to the system, where oneDNN multiplies; called between batches.

    oneDNN allocates room of many sizes for each product. What is freed of it between results that stay is often too
    small for the next, so that glibc's heap would grow with the number of batches.
    """
    if by_onednn() and sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, other libraries do not need it
        if trim is not None:
            trim(0)


def by_onednn() -> bool:
    """Whether large products go to oneDNN here."""
    asked = os.environ.get(SETTING, "auto")
    if asked not in ("auto", "torch", "onednn"):
        raise InterpError(f"{SETTING}: expected auto, torch or onednn, got {asked!r}.")
    return asked != "torch" and _has_onednn() and (asked == "onednn" or _gains())


def _has_onednn() -> bool:
    available = torch.backends.mkldnn.is_available()
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _gains() -> bool:
    look = getattr(torch.cpu, "get_capabilities", None)  # not in older versions of torch
    found: dict[str, Any] = {} if look is None else look()
    return bool(found.get("avx512_f")) and "AMD" in found.get("cpu_name", "") and torch.backends.mkl.is_available()


class _OneDNN(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _linear:
            return _by_name(*args, **(kwargs or {}))
        if func is _addmm and not kwargs and len(args) == 3:
            bias, rows, weight = args
            if bias.dim() == 1 and _fits(rows, weight, bias, inner=0):
                return _multiply(rows, weight.t(), bias)
        return func(*args, **kwargs) if kwargs else func(*args)


def _by_name(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # torch's own names
    if _fits(input, weight, bias):
        return _multiply(input, weight, bias)
    return _linear(input, weight, bias)


def _fits(rows: Tensor, weight: Tensor, bias: Tensor | None, inner: int = 1) -> bool:
    """Whether oneDNN is to multiply these: plain float32 tensors on a CPU, without gradients, and large.

    Arguments:
        rows, weight, bias: of the product.
        inner: the axis of `weight` that is summed over.
    """
    if rows.dtype is not torch.float32 or weight.dim() != 2 or rows.numel() * weight.shape[1 - inner] < WORTH:
        return False
    given = (rows, weight) if bias is None else (rows, weight, bias)
    return (
        all(type(one) in (Tensor, nn.Parameter) and one.dtype is torch.float32 for one in given)
        and all(one.is_cpu and one.layout is torch.strided and not one.is_meta for one in given)
        and not (torch.is_grad_enabled() and any(one.requires_grad for one in given))
        and not torch.is_autocast_enabled("cpu")
        and rows.shape[-1] == weight.shape[inner]  # torch says what does not fit
        and (bias is None or bias.shape == (weight.shape[1 - inner],))
    )


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat = rows.reshape(-1, rows.shape[-1])
    count, fed = len(flat), _rounded(len(flat))
    if fed > count:
        filled = flat.new_zeros(fed, flat.shape[1])
        filled[:count] = flat
        flat = filled
    found: Tensor = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
    return found[:count].view(*rows.shape[:-1], weight.shape[0])


def _rounded(rows: int) -> int:
    """A number of rows up to a sixteenth larger: one of those that have five binary digits, then zeros.

    For each number of rows oneDNN compiles a kernel, half a megabyte that it keeps, and batches have any number.
    """
    step = 1 << max(0, rows.bit_length() - 5)
    return -(-rows // step) * step
